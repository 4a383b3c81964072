"""The benchmark of search, small: every side answers, recalls are those of a loop, the draws are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from consilience.benchmarks import search
from consilience.data.table import Table
from consilience.embedding.columns import read_column
from consilience.search.stores.base import Space
from consilience.search.stores.memory import PRODUCT_FROM
from tests.cli.conftest import Cli, cli, refused

__all__ = ["cli", "refused"]


def test_small_run(cli: Cli, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERIES", 40)
    out = tmp_path / "search.json"
    words = ("--rows", 4000, "--codes", 5000, "--threads", 1, "--repeats", 2)
    told = cli("bench", "search", *words, "-o", out, "--json").json
    assert json.loads(out.read_text()) == told
    assert set(told["ratios"]) == {"exact", "ivf", "hamming"}
    for name in ("exact", "ivf", "hamming"):
        sides = told[name]
        direct = [s["queries_per_s"]["median"] for who, s in sides.items() if not who.startswith("ours")]
        assert len(direct) >= 2
        assert told["ratios"][name] == pytest.approx(sides["ours"]["queries_per_s"]["median"] / max(direct))
        for who, side in sides.items():
            assert side["queries_per_s"]["min"] <= side["queries_per_s"]["median"] <= side["queries_per_s"]["max"]
            if "passes" not in who:
                assert side["recall_at_10"] >= (0.9 if name == "ivf" else 0.999), (name, who)
    assert faiss.cvar.distance_compute_blas_threshold == PRODUCT_FROM
    assert "bench romo takes no --rows" in refused("bench", "romo", "--rows", 10)
    assert "at least 2000 rows" in refused("bench", "search", "--rows", 10)


def test_the_table_holds_what_was_drawn(tmp_path: Path) -> None:
    space = Space("code_image", "hamming", 64, search._MARK)
    table = search.write_table(tmp_path / "t", space, search.codes(3000, 0, 0, 20))
    keys, found = read_column(Table.open(table.path), "code_image")
    np.testing.assert_array_equal(keys, np.arange(3000))
    np.testing.assert_array_equal(found, np.concatenate(list(search.codes(3000, 0, 0, 20))))
    assert len(table.select("split = 'test'")) == 300
    again, other = (np.concatenate(list(search.vectors(500, 0, draw, 20))) for draw in (1, 2))
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=1e-5)
    assert not np.allclose(again, other)
    nearest = np.sort(again @ other.T, axis=1)[:, -1]
    assert nearest.mean() > 0.7  # the same centres


def test_recall_counts_ties_as_found() -> None:
    truth = np.arange(10, dtype=np.float32)[None] // 2
    assert search._recall(truth, truth) == 1
    assert search._recall(truth[:, ::-1], truth) == 1
    assert search._recall(truth + 1, truth) == pytest.approx(0.8)

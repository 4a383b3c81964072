"""A run judged by codes: what ``evaluate`` reports is the ranking of the stored codes, worked out here one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilience.data.importers import import_table
from consilience.data.table import Table
from consilience.embedding.hashing import FOLDER, hash_columns, hasher_of
from consilience.embedding.job import embed
from consilience.errors import InputError
from consilience.evaluation.coding import CodeOptions
from consilience.evaluation.evaluate import evaluate
from consilience.heads.codes import distances
from consilience.methods.contrastive import ContrastiveConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_recipe
from tests.evaluation.test_hamming import one_ap


@pytest.fixture(scope="module")
def run(tiny_table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("coded")
    table = import_table(tiny_table.path, place / "table")
    _, method, options = read_recipe("contrastive-tiny")
    method["scorer"] = {"width": 16}
    return train(
        "contrastive", table, place / "run", config=merge(ContrastiveConfig(), method),
        train=merge(TrainConfig(), options), quiet=True,
    )  # fmt: skip


def test_figures_are_those_of_the_stored_codes(run: Run) -> None:
    """``hash_columns`` fits on split train as ``evaluate`` does: same map, same codes, same expected AP."""
    figures = evaluate(run, codes=CodeOptions(16, "itq"))["hamming"]
    embed(run, quiet=True)
    table = Table.open(run.table.path)
    assert hash_columns(run, table, bits=16) == {"image": "code_image", "points": "code_points"}
    table = Table.open(table.path)
    codes = {name: table.column(f"code_{name}") for name in ("image", "points")}
    split, label = table.column("split"), table.column("label")
    for a, b in (("image", "points"), ("points", "image")):
        asked, held = np.flatnonzero(split == "test"), np.flatnonzero(split == "train")
        aps = []
        for row in asked:
            distance = distances(codes[a][row][None], codes[b][held])[0]
            relevant = (label[held] == label[row]).tolist()
            if not any(relevant):
                continue
            rng = np.random.default_rng(row)
            orders = [np.lexsort((rng.random(len(held)), distance)).tolist() for _ in range(400)]
            aps.append(np.mean([one_ap(order, relevant) for order in orders]))
        assert figures["directions"][f"{a}->{b}"]["map"] == pytest.approx(np.mean(aps), abs=0.01)
    assert figures["database_rows"] == 48
    owner = table.provenance("code_image")
    assert owner is not None
    assert (owner["bits"], owner["by"], owner["of"]) == (16, "itq", "vector_image")
    assert (table.path / FOLDER / owner["hasher"]).is_file()
    vectors = table.column("vector_image")
    np.testing.assert_array_equal(hasher_of(table, "code_image").code(vectors), codes["image"])


def test_asymmetric_beats_hamming_and_real_beats_both_on_short_codes(run: Run) -> None:
    found = evaluate(run, codes=CodeOptions(8, "itq"))["hamming"]
    assert found["mean_asymmetric_map"] > found["mean_map"]
    assert set(found["directions"]["image->points"]["curve"]) == {"radius", "precision", "recall", "found"}
    assert 0 <= found["bit_bias"] <= 1


def test_no_codes_unless_asked_and_refusals(run: Run, tmp_path: Path) -> None:
    assert "hamming" not in evaluate(run)
    with pytest.raises(InputError, match="use lsh or learned"):
        evaluate(run, codes=CodeOptions(64))
    with pytest.raises(InputError, match="say how long"):
        hash_columns(run, Table.open(run.table.path))
    fresh = import_table(run.table.path, tmp_path / "copy")
    with pytest.raises(InputError, match="holds no codes in code_none"):
        hasher_of(fresh, "code_none")
    with pytest.raises(InputError, match="holds no vectors"):
        hash_columns(run, fresh, bits=16, name="other")
    other = train(
        "contrastive", fresh, tmp_path / "other", config=run.method.config, train=TrainConfig(seed=5), quiet=True
    )
    with pytest.raises(InputError, match="another encoder"):
        hash_columns(other, Table.open(fresh.path), bits=16)

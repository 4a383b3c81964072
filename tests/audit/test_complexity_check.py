"""The check that ranks pictures by complexity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from consilience.audit.checks.base import Context
from consilience.audit.checks.registry import run_checks
from consilience.data.reading import png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row, Table


def test_complexity_ranks_pictures_only_when_asked(tmp_path: Path) -> None:
    """Blank pictures are the plainest, noise the busiest; a column that predict wrote is taken instead."""
    levels = np.random.default_rng(0)
    rows = []
    for i in range(30):
        pixels = np.full((24, 24, 3), 90, np.uint8)
        pixels[: i * 24 // 30] = levels.integers(0, 256, (i * 24 // 30, 24, 3))
        rows.append(Row(f"r{i:02d}", "train", {"image": png_bytes(pixels)}, {"image": f"r{i}.png"}))
    table = Table.create(tmp_path / "t", rows, {"image": Kind.RGB}, "made")
    context = Context(table, table.select(), table.modalities, ())
    assert "complexity" not in run_checks(context)
    found = run_checks(context, ["complexity"])["complexity"]
    assert found.flagged.sum() == 2
    assert found.flagged[29]
    assert spearmanr(found.columns["complexity"], np.arange(30)).statistic > 0.95
    assert found.score[29] == 0
    assert "30 pictures ranked by statistics" in found.text
    assert "busiest r29" in found.text
    table.write_columns(table.indices(), {"complexity": -np.arange(30.0)}, {"run": "somewhere"})
    again = Context(Table.open(table.path), table.select(), table.modalities, ())
    predicted = run_checks(again, ["complexity"])["complexity"]
    assert "by predicted: plainest r29, busiest r00" in predicted.text
    assert not predicted.columns
    words = Context(table, table.select(), {}, ())
    assert run_checks(words, ["complexity"])["complexity"].skipped == "needs pictures"

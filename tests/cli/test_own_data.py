"""The user's own data, in each layout: check, then train, from the same source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from consilience.data.table import Table
from tests.cli import tiny
from tests.cli.conftest import Cli

MAKERS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda root: tiny.manifest(root, "csv"),
    "parquet": lambda root: tiny.manifest(root, "parquet"),
    "jsonl": lambda root: tiny.manifest(root, "jsonl"),
    "folder": tiny.folder,
    "romo lists with labels": lambda root: tiny.romo_lists(root, labels=True),
    "romo lists without labels": lambda root: tiny.romo_lists(root, labels=False),
    "kaggle h5": tiny.kaggle,
}


@pytest.mark.parametrize("layout", MAKERS)
def test_check_and_train_every_layout(layout: str, cli: Cli, tmp_path: Path) -> None:
    source, run = MAKERS[layout](tmp_path / "data"), tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    checked = cli("check", source, "--json")
    assert checked.code == 0, checked.err
    found = checked.json
    assert sorted(tmp_path.rglob("*")) == before
    assert found["splits"] == {"train": 48, "test": 12}
    assert found["problems"] == []
    assert len(found["labels"]) == (0 if "without" in layout else 3)
    assert [found["modalities"][name]["kind"] for name in sorted(found["modalities"])] == ["grey", "points"]
    trained = cli("train", "romo", "--data", source, "-o", run, *tiny.FAST, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["steps"] == 3 * 3
    assert trained.json["table"] == str(run / "table")
    table = Table.open(run / "table")
    for name in table.modalities:
        labels = table.column(f"pseudo_{name}", "split = 'train'")
        assert set(labels[labels == labels]) <= {0, 1, 2}
        listed = run / "pseudo_labels" / f"{name}_train_list_pseudo_labelling.txt"
        assert len(listed.read_text().splitlines()) == 44
    for name in ("config.yaml", "environment.json", "log.jsonl", "model.safetensors", "report.html"):
        assert (run / name).stat().st_size > 0

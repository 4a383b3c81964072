"""The demo from end to end with a tiny table and one epoch a phase in place of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import consilience.methods.romo as romo
import consilience.training.api as api
from consilience.cli import demo_verb
from consilience.data.table import Table
from tests.cli import tiny
from tests.cli.conftest import Cli

REFERENCES = {
    "contrastive alone, same budget": ({"warmup_epochs": 3, "annotate_epochs": 0, "robust_epochs": 0}, {}),
    "untrained encoders": ({"warmup_epochs": 0, "annotate_epochs": 0, "robust_epochs": 0}, {}),
    "supervised ceiling (reads labels)": ({"robust_loss": "ce"}, {"given": "label"}),
}


def test_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_config, out, table = romo.RoMoConfig, tmp_path / "demo", tmp_path / "table"
    assert cli("import", tiny.folder(tmp_path / "data"), "-o", table).code == 0

    def tiny_config() -> romo.RoMoConfig:
        return true_config(clusters=3, batch_size=16, width=8, warmup_epochs=1, annotate_epochs=1, robust_epochs=1)

    monkeypatch.setattr(romo, "RoMoConfig", tiny_config)
    monkeypatch.setattr(api, "table_of", lambda data, place, **_: Table.open(table))
    monkeypatch.setattr(demo_verb, "REFERENCES", REFERENCES)
    answer = cli("demo", "-o", out, "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert {"map", "references", "seconds"} <= set(found)
    assert set(found["map"]) == {"image->points", "points->image", "ci95"}
    for direction in ("image->points", "points->image"):
        low, high = found["map"]["ci95"][direction]
        assert low <= found["map"][direction] <= high
    assert set(found["references"]) == set(REFERENCES)
    for entry in found["references"].values():
        assert entry["mean"] == pytest.approx((entry["image->points"] + entry["points->image"]) / 2)
    assert set(found["queries"]) == {"image", "points"}
    for asked, query in found["queries"].items():
        assert Path(query["file"]).suffix == {"image": ".png", "points": ".npy"}[asked]
        assert Path(query["file"]).stat().st_size > 0
        assert len(query["answers"]) == 8
    filled = Table.open(table)
    assert len(filled.select("vector_image is not null")) == 12
    report = (out / "report.html").read_text()
    assert report.count("<img ") == 3
    assert all(name in report for name in REFERENCES)
    for step in ("importing mnist3d", "training: RoMo, without labels", "writing the test set's vectors", "drawing"):
        assert step in answer.err

    weights = (out / "romo" / "model.safetensors").stat().st_mtime_ns
    again = cli("demo", "-o", out, "--json")
    assert again.code == 0
    assert "is complete: nothing is trained again" in again.err
    assert again.json == {**found, "reused": True}
    text = cli("demo", "-o", out, "--quiet")
    assert text.err == ""
    assert "reused what was there" in text.out
    assert f"next    consilience search {found['table']} {found['queries']['image']['file']} --into points" in text.out
    assert text.out.splitlines()[-1] == f"page    consilience serve {found['table']}"
    own = found["map"]["image->points"]
    low, high = found["map"]["ci95"]["image->points"]
    assert f"{own:.3f} [{low:.3f}, {high:.3f}]" in text.out
    assert f"pseudo-labels, image: {found['pseudo_labels']['image']['accuracy']:.1%} right" in text.out
    for name in REFERENCES:
        assert f"\n{name}" in text.out

    (out / "result.json").unlink()
    third = cli("demo", "-o", out, "--json")
    assert third.code == 0
    assert "going on with: RoMo, without labels" in third.err
    assert (out / "romo" / "model.safetensors").stat().st_mtime_ns == weights
    assert third.json["map"] == found["map"]
    assert third.json["references"] == found["references"]
    assert json.loads((out / "result.json").read_text())["map"] == found["map"]
    hits = cli(*text.out.split("next    consilience ")[1].splitlines()[0].split(), "--json")
    assert hits.code == 0
    assert hits.json["into"] == "points"


def test_the_references_have_the_budget_of_the_default() -> None:
    default = romo.RoMoConfig()
    total = default.warmup_epochs + default.annotate_epochs + default.robust_epochs
    for name, (method, _) in demo_verb.REFERENCES.items():
        budget = sum(
            method.get(key, getattr(default, key)) for key in ("warmup_epochs", "annotate_epochs", "robust_epochs")
        )
        assert budget == (0 if "untrained" in name else total)

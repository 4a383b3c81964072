"""``consilience audit``: with and without a model, planted faults, cleaned copies, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from consilience.data.table import Table
from tests.cli import tiny
from tests.cli.conftest import Cli

TRAIN = ("--train", "--config", "contrastive-tiny", "--quiet")


def test_without_a_model(cli: Cli, tmp_path: Path) -> None:
    source = tiny.manifest(tmp_path / "data", "csv", 30)
    root = tmp_path / "data"
    (root / "pictures/6.png").write_bytes((root / "pictures/5.png").read_bytes())
    answer = cli("audit", source, "-o", tmp_path / "out", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert found["checks"]["near_duplicate"]["flagged"] >= 1
    assert found["checks"]["pair_mismatch"]["skipped"] == "needs a model; give --run RUN or --train"
    assert found["columns"] == ["duplicate_of", "suspicion"]
    table = Table.open(tmp_path / "out/table")
    assert table.take(table.select("id = 's6'"), ["suspicion", "duplicate_of"]).to_pylist() == [
        {"suspicion": "near-duplicate", "duplicate_of": 5}
    ]
    page = (tmp_path / "out/audit.html").read_text()
    assert "Rows that repeat an earlier row" in page
    assert "image to the byte as s5" in page
    text = cli("audit", source, "-o", tmp_path / "out").out
    assert "near_duplicate" in text
    assert "report  " in text


def test_planted_faults_end_to_end(cli: Cli, table: Path, tmp_path: Path) -> None:
    out, clean = tmp_path / "out", tmp_path / "clean"
    words = ("audit", table, *TRAIN, "-o", out, "--corrupt", "0.4", "--corrupt-labels", "0.2", "--folds", "2")
    answer = cli(*words, "--fix", clean, "--fix-labels", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert found["true_noise_ratio"] == pytest.approx(19 / 48)
    assert found["labels"]["true_noise_ratio"] == pytest.approx(10 / 48)
    for figures in (found, found["labels"]):
        assert {"auroc", "average_precision", "noise_ratio", "calibration_error", "baselines"} <= set(figures)
    assert set(found["baselines"]) == {"clip score", "cleanlab-style self-confidence"}
    assert set(found["labels"]["baselines"]) == {"confident learning", "nearest neighbours"}
    assert len(found["noise_ratio_ci95"]) == 2
    assert [Path(run).name for run in found["runs"]] == ["run-1-of-2", "run-2-of-2"]
    columns = {"pair_trust", "pair_rank", "better_image", "better_points", "label_trust", "suspicion", "duplicate_of"}
    assert set(found["columns"]) == columns
    assert columns <= set(Table.open(out / "table").columns)
    assert not columns & set(Table.open(table).columns)  # the data itself stays as it was
    assert found["fixed"]["rows"] == len(Table.open(clean)) == 60 - found["fixed"]["drop"]
    assert Path(found["fixed"]["manifest"]).read_text().startswith("id,what,why,probability\n")
    text = cli(*words).out
    assert "planted" in text
    assert "clip score" in text
    assert "--train.trust pair_trust" in text


def test_with_a_run(
    cli: Cli, refused: Callable[..., str], table: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    answer = cli(
        "audit", table, "--run", made[0], "-o", tmp_path / "out", "--checks", "pair_mismatch,outlier", "--json"
    )
    assert answer.code == 0
    assert list(answer.json["checks"]) == ["pair_mismatch", "outlier"]
    assert answer.json["runs"] == [str(made[0])]
    other = tiny.manifest(tmp_path / "other", "csv", 20)
    text = other.read_text().replace("image", "photo", 1)
    other.write_text(text)
    said = refused("audit", other, "--run", made[0], "-o", tmp_path / "second")
    assert "was trained on image (grey)" in said
    assert "give another --run" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corrupt", "0.4"), "give --train or --run RUN"),
        (("--corrupt-labels", "0.4"), "give --train or --run RUN"),
        (("--corrupt", "1.4", "--train"), "--corrupt 1.4: expected a share"),
        (("--checks", "outliers"), "did you mean 'outlier'"),
        (("--modalities", "image,point"), "did you mean 'points'"),
        (("--modalities", "image", *TRAIN), "training needs pairs of two"),
        (("--folds", "-1"), "--folds -1: expected 0 (two or five"),
        (("--folds", "40", *TRAIN), "make no 40 folds"),
        (("--where", "split = 'none'"), "widen the filter"),
        (("--where", "nonsense = 1"), "does not fit"),
        (("--run", "nowhere"), "not a run folder"),
        (("--run", "nowhere", "--train"), "give one of them"),
        (("--config", "pc2-tiny"), "--config is a recipe for --train"),
        (("--method", "pc2"), "give --train as well"),
        (("--method", "pc3", "--train"), "did you mean 'pc2'"),
        (("--method", "pc2", "--config", "ncr-tiny", "--train"), "is a recipe of ncr, not of pc2"),
        (("--trian",), "did you mean '--train'"),
    ],
)
def test_what_is_refused(
    refused: Callable[..., str], table: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused("audit", table, "-o", tmp_path / "out", *words)
    assert not (tmp_path / "out/audit.html").exists()


def test_data_without_labels_and_taken_places(
    refused: Callable[..., str], cli: Cli, table: Path, tmp_path: Path
) -> None:
    entries = tiny.files(tmp_path / "data", 20)
    for entry in entries:
        del entry["label"]
    source = tiny.write_manifest(tmp_path / "data/data.csv", entries)
    said = refused("audit", source, "-o", tmp_path / "a", "--corrupt-labels", "0.2", *TRAIN)
    assert "has no labels" in said
    shutil.copytree(table, tmp_path / "taken")
    said = refused("audit", table, "-o", tmp_path / "b", "--fix", tmp_path / "taken")
    assert "already exists" in said


def test_training_takes_the_trust_by_its_short_name(cli: Cli, table: Path, tmp_path: Path) -> None:
    opened = Table.open(table)
    rows = opened.select("split = 'train'")
    opened.write_columns(opened.indices()[rows], {"pair_trust": np.linspace(0, 1, len(rows))}, {"by": "test"})
    words = (
        "train",
        "contrastive",
        "--data",
        table,
        "--trust",
        "pair_trust",
        "--config",
        "contrastive-tiny",
        "--quiet",
    )
    answer = cli(*words, "-o", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["train"]["trust"], config["train"]["trust_as"]) == ("pair_trust", "sample")
    wrong = cli(*words, "--train.trust", "other", "-o", tmp_path / "two")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert "give one of them" in wrong.err

"""Few-label figures: draws against their definition, and what a run's figures, read-outs and predictions say."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression

from consilience.cli.main import main
from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.importers import import_table
from consilience.data.table import Row, Table
from consilience.errors import InputError
from consilience.evaluation import few_labels
from consilience.evaluation.evaluate import evaluate
from consilience.evaluation.few_labels import cosines, draw, fine_tuned, quotas, settings
from consilience.evaluation.report import Report
from consilience.methods.bidfc import BIDFCConfig
from consilience.methods.finetune import FinetuneConfig
from consilience.prediction.predict import predict_files, predict_rows, predictor_of
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.training.readouts import Readout, features_of, fit_ridge


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 50))
def test_draws_are_stratified(codes: list[int], labels: int, seed: int) -> None:
    rows = np.array(codes)
    counts = np.bincount(rows)
    classes = int((counts > 0).sum())
    if not classes <= labels <= len(rows):
        with pytest.raises(InputError, match="labels for"):
            quotas(rows, labels)
        return
    quota = quotas(rows, labels)
    assert quota.sum() == labels
    assert ((quota >= 1) == (counts > 0)).all()
    assert (quota <= counts).all()
    chosen = draw(rows, quota, seed)
    assert len(set(chosen.tolist())) == labels
    assert (np.bincount(rows[chosen], minlength=len(counts)) == quota).all()
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, draw(rows, quota, seed))


def test_shares_are_proportional_by_largest_remainders() -> None:
    rows = np.repeat([0, 1, 2], [70, 20, 10])
    assert quotas(rows, 10).tolist() == [7, 2, 1]
    assert quotas(rows, 11).tolist() == [8, 2, 1]
    assert quotas(rows, 3).tolist() == [1, 1, 1]
    assert quotas(rows, 4).tolist() == [2, 1, 1]


def test_a_larger_draw_of_a_seed_holds_the_smaller_one() -> None:
    rows = np.random.default_rng(0).integers(0, 5, 200)
    small, large = draw(rows, np.full(5, 2), 3), draw(rows, np.full(5, 9), 3)
    assert set(small.tolist()) < set(large.tolist())
    assert set(draw(rows, np.full(5, 2), 4).tolist()) != set(small.tolist())


def test_settings_that_the_rows_allow() -> None:
    listed, skipped = settings(np.repeat([0, 1], [30, 34]))
    assert {name: int(quota.sum()) for name, quota in listed.items()} == {
        "per_class_1": 2, "share_1_32": 2, "share_1_16": 4, "share_1_8": 8, "per_class_5": 10, "share_1_4": 16,
        "share_1_2": 32, "share_1_1": 64,
    }  # fmt: skip
    assert skipped == []
    listed, skipped = settings(np.repeat([0, 1, 2], [30, 4, 3]))
    assert "per_class_5" not in listed
    assert skipped == ["per_class_5: a class has fewer training rows", "share_1_32: 1 labels for 3 classes",
                       "share_1_16: 2 labels for 3 classes"]  # fmt: skip


@given(st.integers(2, 12), st.integers(0, 1000))
def test_cosines_by_a_slow_loop(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, codes = rng.normal(size=(n, 3)), rng.integers(0, 3, n)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for i in range(n):
        for j in range(n):
            if i != j:
                pairs[bool(codes[i] == codes[j])].append(float(unit[i] @ unit[j]))
    expected = {name: np.mean(pairs[key]) for name, key in (("same_class", True), ("other_class", False)) if pairs[key]}
    assert cosines(features, codes) == pytest.approx(expected)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """160 training and 100 test digits."""
    rows = [row for row in read_dataset("digits").rows if isinstance(row, Row)]
    some = [r for s, n in (("train", 160), ("test", 100)) for r in islice((r for r in rows if r.split == s), n)]
    return Table.create(tmp_path_factory.mktemp("digits") / "table", some, DATASETS["digits"].modalities, "digits")


SIZES: dict[str, Any] = {"image_size": 8, "shrink": 1}


@pytest.fixture(scope="module")
def run(digits: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = BIDFCConfig(n_views=3, batch_size=40, epochs=3, **SIZES)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train("bidfc", digits, out, config=config, train=TrainConfig(validation=0.1), quiet=True)


def test_figures_of_features(run: Run) -> None:
    found = evaluate(run)
    assert found["task"] == "classes"
    judged = found["few_labels"]
    assert (judged["train_rows"], judged["test_rows"]) == (160, 100)
    assert judged["headline"] == "per_class_1"  # 1/32 of 160 is less than one label a class
    assert judged["seeds"] == list(range(10))
    for side in (judged["linear"], *judged["baselines"].values()):
        assert set(side) == {name for name, _ in judged["labels"]}
        assert len(side["per_class_5"]["values"]) == 10
        assert len(side["share_1_1"]["values"]) == 1
        assert side["share_1_1"]["ci95"] == [None, None]
        low, high = side["per_class_5"]["ci95"]
        assert low < side["per_class_5"]["accuracy"] < high
    assert judged["accuracy"] == judged["linear"]["per_class_1"]["accuracy"]
    assert any("per_class_1" not in reason and "share_1_32" in reason for reason in judged["skipped"])
    lines = few_labels.lines(found)
    assert any(line.startswith("1 a class") and "pixels" in line for line in lines)
    assert not lines[-1].startswith("1/")
    page = Report("run")
    few_labels.report(page, found, run, "split = 'test'")
    html = page.save(run.path / "page.html").read_text()
    assert html.count("<img") == 2
    assert "network before training" in html


def test_pixel_baseline_by_hand(run: Run, digits: Table) -> None:
    """One draw of five labels a class, standardised by all training rows."""
    sides = []
    for split in ("train", "test"):
        data = digits.take(digits.select(f"split = '{split}'"), ["image"])["image"].to_pylist()
        sides.append(np.stack([np.asarray(Image.open(io.BytesIO(png)), dtype=np.float64).ravel() for png in data]))
    codes = [digits.labels(f"split = '{split}'")[0] for split in ("train", "test")]
    chosen = draw(codes[0], np.full(10, 5), 0)
    mean, scale = sides[0].mean(0), sides[0].std(0)
    scale[scale == 0] = 1
    known, asked = ((side - mean) / scale for side in sides)
    model = LogisticRegression(max_iter=2000).fit(known[chosen], codes[0][chosen])
    accuracy = (model.predict(asked) == codes[1]).mean()
    found = evaluate(run)["few_labels"]["baselines"]["pixels"]["per_class_5"]["values"][0]
    assert found == pytest.approx(accuracy, abs=0.011)  # float32 pixels may move one answer


def test_judging_reads_no_test_label_to_fit(run: Run, digits: Table, tmp_path: Path) -> None:
    """The read-out is the logistic regression of the training rows' features and labels."""
    evaluate(run)
    kept = Readout.load(run.path, "label")
    rows, features = features_of(run, "split = 'train'")
    names = np.array(digits.take(rows, ["label"])["label"].to_pylist())
    assert kept.classes == tuple(str(k) for k in range(10))
    assert (kept.predict(features) == names).mean() > 0.9


def test_rows_that_cannot_be_judged(run: Run) -> None:
    for where, message in (
        ("split = 'train'", "are training rows"),
        ("split = 'none'", "no rows"),
        ("split = 'test' and label != '3'", "class '3' has no row where"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(run, where=where)


def test_tables_without_labels_are_refused(tmp_path: Path) -> None:
    rows = (Row(r.id, r.split, r.values, r.origins) for r in read_dataset("digits").rows if isinstance(r, Row))
    table = Table.create(tmp_path / "table", islice(rows, 1290, 1400), DATASETS["digits"].modalities, "no labels")
    config = BIDFCConfig(n_views=2, batch_size=4, epochs=0, **SIZES)
    loop = TrainConfig(validation=0.0)
    unlabelled = train("bidfc", table, tmp_path / "run", config=config, train=loop, quiet=True)
    with pytest.raises(InputError, match="has a label and a picture"):
        evaluate(unlabelled)


def test_predictions_need_a_read_out(run: Run, digits: Table, tmp_path: Path) -> None:
    table = import_table(digits.path, tmp_path / "table")
    config = BIDFCConfig(n_views=2, batch_size=40, epochs=0, **SIZES)
    fresh = train("bidfc", table, tmp_path / "run", config=config, train=TrainConfig(validation=0.0), quiet=True)
    with pytest.raises(InputError, match=r"no read-out 'label'.*consilience evaluate"):
        predictor_of(fresh)
    evaluate(fresh)
    place = tmp_path / "digit.png"
    place.write_bytes(table.take(table.select()[:1], ["image"])["image"][0].as_py())
    (answer,) = predict_files(fresh, [place])
    assert answer["value"] in {str(k) for k in range(10)}
    assert next(iter(answer["likely"])) == answer["value"]
    assert answer["probability"] == max(answer["likely"].values())
    summary = predict_rows(fresh, table, where="split = 'test'")
    assert summary["column"] == "predicted_label"
    assert summary["rows"] == 100
    written = Table.open(table.path)
    assert set(written.column("predicted_label", "split = 'test'").tolist()) <= {str(k) for k in range(10)}
    fit_ridge(features_of(fresh, "split = 'train'")[1], np.arange(160.0)).save(fresh.path, "score")
    with pytest.raises(InputError, match="gives scores"):
        predictor_of(fresh, "score")


def test_fine_tuning_on_a_draw(run: Run, tmp_path: Path) -> None:
    found = fine_tuned(run, tmp_path / "fine", setting="5 a class", draws=1)
    assert found["setting"] == "per_class_5"
    for name in ("fine_tuned", "from_scratch"):
        assert 0.1 <= found[name]["accuracy"] <= 1
        assert (tmp_path / "fine" / f"{name}-per_class_5-0" / "model.safetensors").exists()
    with pytest.raises(InputError, match="setting"):
        fine_tuned(run, tmp_path / "other", setting="per_class_7")


def test_fine_tuning_by_the_command_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    means = {"fine_tuned": {"accuracy": 0.9}, "from_scratch": {"accuracy": 0.5}}
    tuned = {"setting": "share_1_4", "seeds": [0, 1], **means}
    asked = {}

    def pretend(run: Run, out: Path, **options: object) -> object:
        asked.update(options, out=out)
        return tuned

    monkeypatch.setattr("consilience.evaluation.few_labels.fine_tuned", pretend)
    assert main(["evaluate", str(run.path), "--finetune", "1/4", "--draws", "2", "--quiet"]) == 0
    assert asked["setting"] == "1/4"
    assert (asked["draws"], asked["out"]) == (2, run.path / "finetuned")
    assert "fine tuned 0.900  from scratch 0.500  (2 draws)" in capsys.readouterr().out


def test_a_classifier_is_judged_by_its_own_answers(digits: Table, tmp_path: Path) -> None:
    config = FinetuneConfig(classes=10, epochs=15, batch_size=40, **SIZES)
    made = train("finetune", digits, tmp_path / "run", config=config, train=TrainConfig(validation=0.0), quiet=True)
    found = evaluate(made)
    judged = found["few_labels"]
    assert "linear" not in judged
    low, high = judged["ci95"]
    assert low <= judged["accuracy"] <= high
    assert judged["accuracy"] > 0.5
    assert few_labels.lines(found)[0].startswith("accuracy 0.")
    page = Report("run")
    few_labels.report(page, found, made, "split = 'test'")
    summary = predict_rows(made, import_table(digits.path, tmp_path / "table"), where="split = 'test'")
    assert sum(summary["classes"].values()) == 100
    with pytest.raises(InputError, match="drop --readout"):
        predictor_of(made, "label")

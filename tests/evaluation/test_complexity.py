"""Scores judged: correlations against loops, intervals, probes that never see what they judge, categories."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, spearmanr

from consilience.data.scenes import MODALITIES, scene_rows
from consilience.data.table import Row, Table
from consilience.errors import InputError
from consilience.evaluation import complexity
from consilience.evaluation.correlation import agreement, pcc, rmae, rmse, srcc
from consilience.evaluation.evaluate import evaluate
from consilience.evaluation.report import Report
from consilience.methods.clic import CLICConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.training.readouts import Readout, fitted

VALUES = arrays(np.int64, (9,), elements=st.integers(-3, 3)).map(lambda x: x.astype(np.float64))


def loop_ranks(values: np.ndarray) -> list[float]:
    """Mean rank of every value among all."""
    return [sum(1.0 for o in values if o < v) + (sum(1.0 for o in values if o == v) + 1) / 2 for v in values]


def loop_pearson(a: Any, b: Any) -> float:
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    va, vb = sum((x - ma) ** 2 for x in a), sum((x - mb) ** 2 for x in b)
    if va < 1e-12 or vb < 1e-12:
        return 0.0
    return float(sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True)) / math.sqrt(va * vb))


@given(VALUES, VALUES)
def test_correlations_and_errors_are_their_loops(a: np.ndarray, b: np.ndarray) -> None:
    assert float(pcc(a, b)) == pytest.approx(loop_pearson(a.tolist(), b.tolist()), abs=1e-9)
    assert float(srcc(a, b)) == pytest.approx(loop_pearson(loop_ranks(a), loop_ranks(b)), abs=1e-9)
    assert float(rmse(a, b)) == pytest.approx(math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 9))
    assert float(rmae(a, b)) == pytest.approx(math.sqrt(sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 9))


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.integers(0, 6, 50).astype(float)
    assert float(pcc(a, b)) == pytest.approx(pearsonr(a, b).statistic)
    assert float(srcc(a, b)) == pytest.approx(spearmanr(a, b).statistic)


@given(VALUES, VALUES)
def test_fact_rank_correlation_ignores_monotone_maps_and_pearson_affine_ones(a: np.ndarray, b: np.ndarray) -> None:
    assert float(srcc(np.exp(a), b)) == pytest.approx(float(srcc(a, b)), abs=1e-9)
    assert float(pcc(3 * a + 7, b)) == pytest.approx(float(pcc(a, b)), abs=1e-9)
    assert float(srcc(-a, b)) == pytest.approx(-float(srcc(a, b)), abs=1e-9)


def test_fact_constant_predictions_count_as_zero_with_a_warning() -> None:
    truth = np.arange(8.0)
    for value in (0.0, 0.1, 1e9):
        with pytest.warns(UserWarning, match="all predictions are equal"):
            found = agreement(np.full(8, value), truth)
        assert found["srcc"] == found["pcc"] == 0
        assert found["ci95"]["srcc"] == [0, 0]  # type: ignore[index]


def test_intervals_cover_and_shrink() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=400)
    predicted = truth + rng.normal(size=400)
    many, few = agreement(predicted, truth), agreement(predicted[:40], truth[:40])
    for found in (many, few):
        low, high = found["ci95"]["pcc"]  # type: ignore[index]
        assert low < found["pcc"] < high
        assert low < 1 / math.sqrt(2) < high  # the true correlation
    assert np.diff(many["ci95"]["pcc"]) < 0.5 * np.diff(few["ci95"]["pcc"])  # type: ignore[index]
    assert agreement(predicted, truth) == many


def test_fact_categories_are_averaged_never_pooled() -> None:
    """Two categories that disagree perfectly in level and agree within: pooled, the correlation would be negative."""
    truth = np.concatenate([np.arange(5.0), 100 + np.arange(5.0)])
    predicted = np.concatenate([50 + np.arange(5.0), np.arange(5.0)])
    groups = [np.arange(5), np.arange(5, 10)]
    assert agreement(predicted, truth, groups)["srcc"] == pytest.approx(1)
    assert float(agreement(predicted, truth)["srcc"]) < 0  # type: ignore[arg-type]
    with pytest.raises(InputError, match="three scored rows"):
        agreement(predicted, truth, [np.arange(8), np.arange(8, 10)])
    with pytest.raises(InputError, match="not finite"):
        agreement(np.full(3, np.nan), np.arange(3.0))


def made(place: Path, train_rows: int, test_rows: int, **columns: Any) -> Table:
    """Scenes; ``columns``: name to a function of (split, number)."""
    rows = [*scene_rows(train_rows, "train"), *scene_rows(test_rows, "test", start=train_rows)]
    scalars: dict[str, pa.DataType] = {"score": pa.float64(), "shapes": pa.int64()}
    for name, value in columns.items():
        rows = [Row(r.id, r.split, r.values, r.origins, r.label, {**r.scalars, name: value(r.split, i)})
                for i, r in enumerate(rows)]  # fmt: skip
        scalars[name] = pa.float64() if name == "score" else pa.string()
    return Table.create(place, rows, MODALITIES, "scenes", scalars=scalars)


def tiny_run(table: Table, out: Path) -> Run:
    config = CLICConfig(image_size=48, width=8, epochs=1, batch_size=16)
    options = TrainConfig(validation=0.0, select="last", threads=1)
    return train("clic", table, out, config=config, train=options, quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("judged")
    return tiny_run(made(place / "table", 64, 40), place / "run")


def test_a_run_is_judged_with_everything_beside_it(run: Run, tmp_path: Path) -> None:
    found = evaluate(run)
    content = found["complexity"]
    assert found["task"] == "scoring"
    assert content["scored"] == 40
    assert content["protocol"] == "ridge on frozen features of 64 training rows"
    assert set(content["baselines"]) == {"entropy", "edge_density", "jpeg", "png", "regions", "statistics",
                                         "mean_of_statistics", "random"}  # fmt: skip
    for entry in (content, content["with_statistics"], content["baselines"]["png"], content["baselines"]["random"]):
        for name in ("srcc", "pcc", "rmse", "rmae"):
            low, high = entry["ci95"][name]
            assert low <= entry[name] <= high
    assert content["baselines"]["png"]["srcc"] > 0.8, "scenes are made so that file size tells"
    assert content["few"]["protocol"] == "30 labels, mean of 10 draws"
    assert -1 <= content["few"]["srcc"] <= 1
    assert "rmse" not in content["unsupervised"]
    assert json.loads(json.dumps(found)) == found
    assert evaluate(run) == found, "judging twice gives the same figures"
    assert set(fitted(run.path)) == {"score", "unsupervised"}
    assert Readout.load(run.path, "score").kind == "ridge"
    text = complexity.lines(found)
    assert text[1].startswith("this run")
    assert any(line.startswith("untrained encoder") for line in text)
    page = Report("x")
    complexity.report(page, found, run, "split = 'test'")
    assert page.save(tmp_path / "x.html").read_text().count("<figure>") == 2


def test_folds_within_the_judged_rows_when_no_other_row_has_a_score(run: Run) -> None:
    content = evaluate(run, where="split = 'train'")["complexity"]
    assert content["protocol"] == "ridge on frozen features, 5 folds of the judged rows"
    assert content["scored"] == 64


def test_probes_never_see_what_they_judge() -> None:
    """Random features and scores: a probe that saw its rows would fit them, as there are more features than rows."""
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(60, 200)), rng.normal(size=60)
    whole = [(np.arange(60), np.arange(0))]
    rows = complexity.Scored(np.arange(60), np.arange(0), truth, truth[:0], [""], whole)
    predicted = complexity._probe((features, features[:0]), rows)
    assert abs(float(pcc(predicted, truth))) < 0.4
    held = complexity.Scored(np.arange(60), np.arange(60), truth, rng.normal(size=60), [""], [(np.arange(60),) * 2])
    assert abs(float(pcc(complexity._probe((features, rng.normal(size=(60, 200))), held), truth))) < 0.4
    few = complexity._few((features, features[:0]), rows)
    assert few is not None
    assert abs(few["srcc"]) < 0.3


def test_categories_and_rows_without_scores(tmp_path: Path) -> None:
    table = made(
        tmp_path / "table", 48, 0,
        category=lambda split, i: ("Art", "Scenes")[i % 2],
        score=lambda split, i: None if i >= 40 else float(i % 2 * 50 + i % 7),
    )  # fmt: skip
    run = tiny_run(table, tmp_path / "run")
    content = evaluate(run, where="split = 'train'")["complexity"]
    assert content["scored"] == 40
    assert {name: entry["scored"] for name, entry in content["categories"].items()} == {"Art": 20, "Scenes": 20}
    assert content["srcc"] == pytest.approx(np.mean([entry["srcc"] for entry in content["categories"].values()]))
    assert content["few"] is None, "20 rows cannot give 30 labels"
    assert set(fitted(run.path)) == {"score-Art", "score-Scenes", "unsupervised"}
    with pytest.raises(InputError, match=r"0 rows of .* have a score"):
        evaluate(run, where="index >= 40")


def test_without_scores_there_is_nothing_to_judge_by(tmp_path: Path, tiny_table: Table) -> None:
    config, options = CLICConfig(image_size=28, epochs=1), TrainConfig(modalities="image", validation=0.0, threads=1)
    run = train("clic", tiny_table, tmp_path / "run", config=config, train=options, quiet=True)
    with pytest.raises(InputError, match="no column 'score'"):
        evaluate(run)

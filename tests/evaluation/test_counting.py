"""Judging counts: masks, errors by weather against loops, what features know, the page; and predictions."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.data.density import covered
from consilience.data.loader import read
from consilience.data.pictures import Placement
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.evaluation.counting import count_rows, errors, figures, lines, masked_density, report, weather_of
from consilience.evaluation.evaluate import evaluate
from consilience.evaluation.report import Report
from consilience.methods.multi_queue_moco import MultiQueueConfig
from consilience.prediction.counting import predictor
from consilience.prediction.predict import predict_files, predict_rows
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.views.crops import CropConfig
from tests.facts.dots import dots


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A few steps on made-up crowds, test pictures in normal weather and haze."""
    folder = tmp_path_factory.mktemp("counting")
    table = dots(folder / "table", 60, 6, {"haze": 0.25})
    config = MultiQueueConfig(image_size=48, crops=CropConfig(size=32), learn_epochs=2, refine_epochs=1, dim=8)
    options = TrainConfig(threads=1, validation=0.0)
    return train("multi-queue-moco", table, folder / "run", config=config, train=options, quiet=True)


# The part of a square that shows its picture


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (48, 48), (7, 100), (1, 1)])
def test_a_cell_is_covered_when_it_shows_a_pixel(width: int, height: int) -> None:
    place = Placement.of(width, height, 48, "whole")
    found = covered([place], 48, 12, 12)[0, 0]
    slow = torch.zeros(12, 12, dtype=torch.bool)
    for y in range(place.top, place.top + place.height):
        for x in range(place.left, place.left + place.width):
            slow[y // 4, x // 4] = True
    assert torch.equal(found, slow)


def test_what_lies_on_the_black_is_not_counted(run: Run) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 48, 3), 200, dtype=np.uint8)).save(buffer, "PNG")
    batch = Batch(torch.arange(1), {"image": torch.full((1, 3, 48, 48), 200, dtype=torch.uint8)}, {})
    with torch.no_grad():
        whole = cast(Any, run.method).density(batch)
        part = masked_density(run.method, batch, [buffer.getvalue()])
    assert torch.equal(part[:, :, 4:8], whole[:, :, 4:8])
    assert part[:, :, :4].sum() == part[:, :, 8:].sum() == 0
    assert whole.sum() > part.sum() > 0


# Errors


def test_errors_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    error, group = rng.normal(2, 5, 40), np.repeat(np.arange(10), 4)
    found = errors(error, group)
    assert found["mae"] == pytest.approx(sum(abs(e) for e in error) / 40)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in error) / 40))
    assert found["bias"] == pytest.approx(error.mean())
    for name in ("mae", "rmse"):
        low, high = found["ci95"][name]
        assert low < found[name] < high


def test_rows_of_one_picture_are_drawn_together() -> None:
    """Four copies of every error tell no more than one: the interval must not shrink."""
    error = np.random.default_rng(1).normal(0, 5, 30)
    alone = errors(error, np.arange(30))["ci95"]["mae"]
    copies = errors(np.repeat(error, 4), np.repeat(np.arange(30), 4))["ci95"]["mae"]
    naive = errors(np.repeat(error, 4), np.arange(120))["ci95"]["mae"]
    assert copies == pytest.approx(alone)
    assert naive[1] - naive[0] < 0.7 * (alone[1] - alone[0])


def test_one_picture_has_no_interval() -> None:
    assert errors(np.array([3.0]), np.array([0]))["ci95"] == {"mae": [None, None], "rmse": [None, None]}


# Figures


def test_counts_are_sums_of_densities(run: Run) -> None:
    rows = run.table.select("split = 'test'")
    seen = count_rows(run, rows)
    batch = next(read(run.table, rows, run.method.decode, len(rows)))
    with torch.no_grad():
        expected = cast(Any, run.method).density(batch).sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(seen.estimate, expected, rtol=1e-5)
    places = run.table.take(rows, ["places"])["places"].to_pylist()
    assert seen.truth.tolist() == [len(entry) for entry in places]


def test_figures_by_weather(run: Run) -> None:
    found = evaluate(run)
    counting = found["counting"]
    assert found["task"] == "counting"
    rows = run.table.select("split = 'test'")
    seen, weather = count_rows(run, rows), weather_of(run.table, rows)
    away = np.abs(seen.estimate - seen.truth)
    assert counting["rows"] == 12
    assert counting["mae"] == pytest.approx(away.mean())
    assert counting["normal"]["mae"] == pytest.approx(away[weather == "normal"].mean())
    assert counting["adverse"]["mae"] == counting["by_weather"]["haze"]["mae"]
    learnt = run.table.take(run.table.select("split = 'train'"), ["places"])["places"].to_pylist()
    mean = np.mean([len(entry) for entry in learnt])
    assert counting["baselines"]["mean_count"]["mae"] == pytest.approx(np.abs(mean - seen.truth).mean())
    assert 0 <= counting["weather_accuracy"] <= 1
    assert 0 <= counting["adverse_to_normal"] <= 1
    said = "\n".join(lines(found))
    for word in ("all", "normal", "adverse", "haze", "mean count (baseline)", "balanced accuracy", "refined to normal"):
        assert word in said


def test_normal_rows_alone(run: Run) -> None:
    counting = figures(run, "split = 'test' and weather = 'normal'")["counting"]
    assert "adverse" not in counting
    assert "weather_accuracy" not in counting
    assert counting["normal"]["mae"] == counting["mae"]
    assert lines({"counting": counting})


def test_the_page(run: Run, tmp_path: Path) -> None:
    page = Report("Counting")
    report(page, figures(run, "split = 'test'"), run, "split = 'test'")
    text = page.save(tmp_path / "page.html").read_text()
    assert text.count("data:image/png") == 1 + 2 * 8
    assert "mean count (baseline)" in text


def test_refusals(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        figures(run, "split = 'nowhere'")
    bare = Table.create(tmp_path / "bare", _plain_rows(), run.table.modalities, "no places")
    with pytest.raises(InputError, match="no column 'places'"):
        figures(replace(run, table=bare), "split = 'test'")
    with pytest.raises(InputError, match="counts by itself"):
        predictor(run, "readout")


def _plain_rows() -> list[Any]:
    from consilience.data.reading import png_bytes
    from consilience.data.table import Row

    picture = png_bytes(np.full((48, 48, 3), 90, dtype=np.uint8))
    return [Row(str(i), "test", {"image": picture}, {"image": f"{i}.png"}) for i in range(3)]


# Predictions


def test_predictions_are_counts_with_pictures(run: Run, tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (answer,) = predict_files(run, [tmp_path / "wide.png"], out=tmp_path / "out")
    assert answer["value"] > 0
    assert 0 <= answer["densest"][0] < 60
    assert 0 <= answer["densest"][1] < 20
    for name in ("density", "overlay"):
        assert Image.open(answer["pictures"][name]).size == (60, 20)


def test_predictions_of_rows_are_what_is_judged(run: Run) -> None:
    where = "split = 'test'"
    said = predict_rows(run, run.table, where=where)
    assert said["column"] == "count_estimate"
    kept = Table.open(run.table.path).column("count_estimate", where)
    np.testing.assert_allclose(kept, count_rows(run, run.table.select(where)).estimate, rtol=1e-5)

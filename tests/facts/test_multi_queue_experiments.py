"""Multi-queue MoCo on made-up crowds: section 6 (b) of its sheet, with balanced batches.

The test runs a short version of what stage 2 is said to do: with its loss features in bad weather come to lie with
those of normal weather, without it they do not. The whole experiment (1,200 training pictures, 26 epochs), which also
says whether a queue for every weather makes the weather readable where one queue does not, takes minutes:

    python tests/facts/test_multi_queue_experiments.py SEED
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from consilience.data.table import Table
from consilience.evaluation.evaluate import evaluate
from consilience.methods.base import Optimiser
from consilience.methods.multi_queue_moco import MultiQueueConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.views.crops import CropConfig
from tests.facts.dots import dots

ADAM = Optimiser("adam", 3e-3, schedule="cosine")
CONFIG = MultiQueueConfig(
    image_size=48,
    crops=CropConfig(size=48, scale_low=1, scale_high=1, grey=0),
    density_loss="map",
    sigma=1.5,
    places=256,
    dim=16,
    batch_size=48,
    learn_epochs=26,
    refine_epochs=0,
    optimiser=ADAM,
    refine_optimiser=ADAM,
)


def fit(table: Table, out: Path, config: MultiQueueConfig, **options: Any) -> tuple[Run, dict[str, Any]]:
    loop = TrainConfig(threads=1, validation=0.0, **options)
    run = train("multi-queue-moco", table, out, config=config, train=loop, quiet=True)
    return run, evaluate(run)["counting"]


@pytest.mark.slow
def test_refining_moves_bad_weather_to_normal_and_only_with_its_loss(tmp_path: Path) -> None:
    table = dots(tmp_path / "table", 320, 30)
    short = replace(CONFIG, crops=replace(CONFIG.crops, size=32), places=64, learn_epochs=14)
    learnt, before = fit(table, tmp_path / "learnt", short)
    second = replace(short, learn_epochs=0, refine_epochs=10)
    _, refined = fit(table, tmp_path / "refined", second, start=str(learnt.path))
    _, plain = fit(table, tmp_path / "plain", replace(second, refine_weight=0.0), start=str(learnt.path))
    assert before["mae"] < before["baselines"]["mean_count"]["mae"] / 1.5
    assert refined["adverse_to_normal"] >= 0.8
    assert plain["adverse_to_normal"] <= refined["adverse_to_normal"] - 0.5
    assert refined["mae"] < 1.25 * plain["mae"]


def whole(seed: int, folder: Path) -> None:
    """One line an entry: errors, weather read off features, adverse pictures refined to normal."""
    table = dots(folder / "table", 1200, 150)

    def told(name: str, found: dict[str, Any]) -> None:
        kept = (found["normal"]["mae"], found["adverse"]["mae"], found["weather_accuracy"], found["adverse_to_normal"])
        print(f"{name:<34}", " ".join(f"{value:6.3f}" for value in kept), flush=True)

    entries: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "density loss, rows as they come": ({"contrast_weight": 0.0}, {"balance": "none"}),
        "density loss, balanced": ({"contrast_weight": 0.0}, {}),
        "one queue": ({"queues": "single"}, {}),
        "a queue for every weather": ({}, {}),
    }
    for number, (name, (options, loop)) in enumerate(entries.items()):
        learnt, found = fit(table, folder / str(number), replace(CONFIG, **options), seed=seed, **loop)
        told(name, found)
    for weight in (1.0, 0.0):
        second = replace(CONFIG, learn_epochs=0, refine_epochs=8, refine_weight=weight)
        _, found = fit(table, folder / f"refined-{weight}", second, seed=seed, start=str(learnt.path))
        told(f"  refined with lambda_2 {weight}", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        whole(int(sys.argv[1]), Path(temporary))

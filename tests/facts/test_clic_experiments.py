"""CLIC on generated scenes: the small experiment of its specification, made shorter.

The whole of it, three seeds with every ablation, is the plan ``consilience reproduce clic`` (table in docs/clic.md).
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from consilience.data.scenes import MODALITIES, scene_rows
from consilience.data.table import Table
from consilience.evaluation.evaluate import evaluate
from consilience.methods.clic import CLIC, CLICConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.views.pictures import PictureViewConfig

MOCO_VIEWS = PictureViewConfig(crop_low=0.2, grey=0.2, blur=0.0)
"""MoCo v2's, for pictures of 48 pixels."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = chain(scene_rows(320, "train", seed=2), scene_rows(150, "test", seed=2, start=320))
    scalars = {"score": pa.float64(), "shapes": pa.int64()}
    place = tmp_path_factory.mktemp("scenes") / "table"
    return Table.create(place, list(rows), MODALITIES, "scenes of seed 2", scalars=scalars)


def fit(table: Table, out: Path, **options: Any) -> tuple[Run, dict[str, Any]]:
    config = CLICConfig(**{"image_size": 48, "epochs": 8, "batch_size": 64, "queue": 80, **options})
    run = train(
        "clic", table, out, config=config, train=TrainConfig(validation=0.0, select="last", threads=1), quiet=True
    )
    return run, evaluate(run)["complexity"]


def test_learnt_features_need_fewer_scores(world: Table, tmp_path: Path) -> None:
    """Ours against plain MoCo v2 and against the untrained network, 30 labels and all of them; the loss falls below
    chance, ln(K + 1)."""
    run, ours = fit(world, tmp_path / "ours")
    _, moco = fit(world, tmp_path / "moco", rcm="none", query_views=MOCO_VIEWS, key_views=MOCO_VIEWS)
    assert isinstance(run.method, CLIC)
    losses = [record["contrast"] for record in run.folder.records() if "contrast" in record]
    assert losses[-1] < math.log(run.method.queue.places + 1) - 0.3
    assert ours["few"]["srcc"] > moco["few"]["srcc"] + 0.08
    assert ours["srcc"] > moco["srcc"] + 0.02
    assert ours["few"]["srcc"] > ours["baselines"]["random"]["few"]["srcc"] + 0.10
    assert abs(ours["activation"]["srcc"]) < 0.8, "the summed activation is no score to rely on"
    assert ours["unsupervised"]["srcc"] > ours["baselines"]["entropy"]["srcc"]

"""An experiment small enough for a test: collapse without balance. The rest is in ``consilience reproduce romo``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.importers import import_table
from consilience.data.table import Row, Table
from consilience.evaluation.clustering import clustering_accuracy, used_clusters
from consilience.methods.romo import RoMoConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """1,000 training and 300 test pairs."""
    rows = [row for row in read_dataset("mnist3d").rows if isinstance(row, Row)]
    some = [
        r for split, n in (("train", 1000), ("test", 300)) for r in islice((r for r in rows if r.split == split), n)
    ]
    return Table.create(tmp_path_factory.mktemp("digits") / "table", some, DATASETS["mnist3d"].modalities, "digits")


def fit(table: Table, out: Path, config: RoMoConfig) -> Run:
    private = import_table(table.path, out / "table")
    return train("romo", private, out / "run", config=config, train=TrainConfig(threads=1), quiet=True)


def test_balanced_targets_do_not_collapse_where_arg_max_does(digits: Table, tmp_path: Path) -> None:
    """From random encoders, no warm-up: SSM against arg max of the bank has nothing against collapse (defect 5 of the
    release); fused balanced targets keep all ten clusters and find the digits."""
    accuracy, used = {}, {}
    for targets in ("per-view", "fused"):
        config = RoMoConfig(warmup_epochs=0, annotate_epochs=8, robust_epochs=0, batch_size=50, targets=targets)
        run = fit(digits, tmp_path / targets, config)
        labels = run.table.column("pseudo_image", "split = 'train'")
        known = ~np.isnan(labels)
        truth = run.table.labels("split = 'train'")[0][known]
        accuracy[targets] = clustering_accuracy(labels[known].astype(np.int64), truth)
        used[targets] = used_clusters(labels[known].astype(np.int64))
    assert used["fused"] == 10
    assert used["per-view"] < 8
    assert accuracy["fused"] > 0.5
    assert accuracy["fused"] > accuracy["per-view"] + 0.1

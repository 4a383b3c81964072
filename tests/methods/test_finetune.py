"""Fine-tuning: where its encoder comes from, what it learns from, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.base import Progress
from consilience.methods.bidfc import BIDFCConfig
from consilience.methods.finetune import Finetune, FinetuneConfig
from consilience.training.api import Run, load, train
from consilience.training.config import TrainConfig

SIZES: dict[str, Any] = {"image_size": 28, "shrink": 4}


@pytest.fixture(scope="module")
def pretrained(tiny_table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = BIDFCConfig(n_views=2, batch_size=12, epochs=1, ema=0.5, **SIZES)
    out = tmp_path_factory.mktemp("pretrained") / "run"
    return train("bidfc", tiny_table, out, config=config, train=TrainConfig(modalities="image"), quiet=True)


def fit(table: Table, out: Path, start: Path | None, **options: Any) -> Run:
    config = replace(FinetuneConfig(classes=10, epochs=1, batch_size=12, **SIZES), **options)
    loop = TrainConfig(modalities="image", start=None if start is None else str(start), validation=0.0)
    return train("finetune", table, out, config=config, train=loop, quiet=True)


def test_the_encoder_is_the_runs(tiny_table: Table, tmp_path: Path, pretrained: Run) -> None:
    """Of no epoch: every tensor of the run's encoder, and the average's where that is asked for."""
    kept = load_file(pretrained.folder.model_file)
    for part in ("encoder", "twin.network"):
        run = fit(tiny_table, tmp_path / part, pretrained.path, epochs=0, part=part)
        state = {name: value for name, value in run.method.state_dict().items() if name.startswith("encoder.")}
        assert state
        for name, value in state.items():
            assert torch.equal(value, kept[name.replace("encoder", part, 1)])


def test_a_run_loads_when_its_start_is_gone(tiny_table: Table, tmp_path: Path, pretrained: Run) -> None:
    import shutil

    start = shutil.copytree(pretrained.path, tmp_path / "start")
    run = fit(tiny_table, tmp_path / "run", start)
    shutil.rmtree(start)
    again = load(run.path)
    assert all(torch.equal(v, run.method.state_dict()[k]) for k, v in again.method.state_dict().items())


def test_another_encoder_is_refused(tiny_table: Table, tmp_path: Path, pretrained: Run) -> None:
    with pytest.raises(InputError, match="does not fit"):
        fit(tiny_table, tmp_path / "a", pretrained.path, encoder="resnet18")
    with pytest.raises(InputError, match="no part 'backbone'"):
        fit(tiny_table, tmp_path / "b", pretrained.path, part="backbone")
    assert not (tmp_path / "a").exists()


def test_other_methods_start_from_their_own(tiny_table: Table, tmp_path: Path, pretrained: Run) -> None:
    with pytest.raises(InputError, match="is a run of bidfc"):
        train("contrastive", tiny_table, tmp_path / "run", train=TrainConfig(start=str(pretrained.path)), quiet=True)


def batch(labels: list[int]) -> Batch:
    pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8)
    index = torch.arange(len(labels))
    return Batch(index, {"image": pixels}, {"image": torch.ones_like(index).bool()}, {"label": torch.tensor(labels)})


def test_rows_without_a_label_teach_nothing() -> None:
    torch.manual_seed(0)
    method = Finetune(FinetuneConfig(classes=3, **SIZES), {"image": Kind.GREY}, 4).eval()
    progress = Progress(0, "train", 0, 0.0, 0)
    known = batch([0, 2])
    both = Batch(
        torch.arange(4),
        {"image": torch.cat([known.values["image"], batch([0, 0]).values["image"]])},
        {"image": torch.ones(4, dtype=torch.bool)},
        {"label": torch.tensor([0, 2, -1, -1])},
    )
    torch.testing.assert_close(method.step(known, progress), method.step(both, progress))
    assert method.step(batch([-1, -1]), progress)["cross_entropy"].item() == 0
    with pytest.raises(InputError, match=r"--method\.classes 3"):
        method.step(batch([0, 3]), progress)


def test_classes_are_counted(tiny_table: Table, tmp_path: Path) -> None:
    run = fit(tiny_table, tmp_path / "run", None, classes=0, epochs=0)
    assert run.method.config.classes == 10
    assert run.folder.config()["method_config"]["classes"] == 10
    with pytest.raises(InputError, match="two or more"):
        Finetune(FinetuneConfig(), {"image": Kind.GREY}, 4)
    with pytest.raises(InputError, match="divisor"):
        FinetuneConfig(image_size=9, shrink=2)


def test_probabilities() -> None:
    method = Finetune(FinetuneConfig(classes=3, **SIZES), {"image": Kind.GREY}, 4).eval()
    found = method.classify(batch([0, 1, 2]))
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / "a.png")
    with pytest.raises(InputError, match="has labels of 0 classes and a classifier needs two or more; import labels"):
        train("finetune", str(tmp_path / "data"), tmp_path / "run", quiet=True)

"""A run that judges single pictures, tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilience.training.api import Run, load, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty colour pictures, 40 x 30 pixels, in two class folders."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(20):
        folder = root / "train" / ("calm", "busy")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (30, 40, 3) if number % 2 else (1, 40, 3)) + np.zeros((30, 40, 3), int)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def judge(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny complexity model of them."""
    from consilience.methods.registry import find

    content = read_yaml("clic-tiny", "")
    config = merge(find("clic").cls.Config(), content["method_config"])
    place = tmp_path_factory.mktemp("judge") / "run"
    train("clic", str(pictures), place, config=config, train=merge(TrainConfig(), content["train"]), quiet=True)
    return load(place)

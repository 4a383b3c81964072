"""The estimator for arrays: same vectors as the run behind it, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from consilience.data.datasets import read_dataset
from consilience.data.decode import DecodeConfig, decode
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError
from consilience.methods.romo import RoMoConfig
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.estimator import CommonSpace


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    sizes, kinds = DecodeConfig(), {"image": Kind.GREY, "points": Kind.POINTS}
    rows = [row for row, _ in zip(read_dataset("mnist3d").rows, range(40)) if isinstance(row, Row)]
    found = {n: np.stack([decode(row.values[n] or b"", k, "", sizes) for row in rows]) for n, k in kinds.items()}
    return {"image": found["image"][:, 0], "points": found["points"]}


def tiny() -> CommonSpace:
    content = read_yaml("romo-tiny", "")
    return CommonSpace(config=merge(RoMoConfig(), content["method_config"]), train=TrainConfig(threads=1))


def test_fit_and_transform(arrays: dict[str, np.ndarray]) -> None:
    space = clone(tiny()).fit(arrays)
    vectors = space.transform(arrays)
    assert {name: v.shape for name, v in vectors.items()} == {"image": (40, 8), "points": (40, 8)}
    np.testing.assert_allclose(np.linalg.norm(vectors["image"], axis=1), 1, rtol=1e-5)
    alone = space.transform({"points": arrays["points"][:3]})
    np.testing.assert_allclose(alone["points"], vectors["points"][:3], atol=1e-5)
    again = tiny().fit(arrays).transform(arrays)
    np.testing.assert_array_equal(again["image"], vectors["image"])


def test_refusals(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="takes no labels"):
        tiny().fit(arrays, np.zeros(40))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"different numbers of samples: \{'image': 39, 'points': 40\}"):
        tiny().fit({"image": arrays["image"][1:], "points": arrays["points"]})
    with pytest.raises(InputError, match=r"image is float64 \[40, 28, 28\]"):
        tiny().fit({"image": arrays["image"].astype(float), "points": arrays["points"]})
    with pytest.raises(InputError, match="transform before fit"):
        tiny().transform(arrays)

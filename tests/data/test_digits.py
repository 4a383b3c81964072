from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from consilience.data.datasets import DATASETS
from consilience.data.decode import DecodeConfig
from consilience.data.importers import import_table
from consilience.data.loader import read


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    table = import_table("digits", tmp_path / "table")
    info = DATASETS["digits"]
    assert table.modalities == info.modalities
    assert {split: len(table.select(f"split = '{split}'")) for split in info.rows} == info.rows
    own = load_digits()
    batch = next(read(table, table.select(), DecodeConfig(image_size=8), 1797))
    place = np.array([int(name.removeprefix("digit-")) for name in table.column("id")])
    assert sorted(place.tolist()) == list(range(1797))
    np.testing.assert_allclose(batch.values["image"][:, 0].numpy() / 255 * 16, own.images[place], atol=0.04)
    assert table.column("label").tolist() == [str(label) for label in own.target[place]]

"""The data sets that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np

from consilience.data.reading import Reading, npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import unknown


@dataclass(frozen=True)
class DatasetInfo:
    """What there is to know about an embedded data set."""

    name: str
    what: str
    modalities: dict[str, Kind]
    rows: dict[str, int]
    """Split to number of rows."""
    classes: int
    licence: str
    source: str


DATASETS: dict[str, DatasetInfo] = {
    "mnist3d": DatasetInfo(
        name="mnist3d",
        what="real handwritten digits: a grey 28 x 28 picture and a cloud of 128 points of the same digit",
        modalities={"image": Kind.GREY, "points": Kind.POINTS},
        rows={"train": 5000, "test": 1000},
        classes=10,
        licence="MNIST is commonly distributed under CC BY-SA 3.0",
        source="MNIST (Y. LeCun, C. Cortes, C. Burges): the first 5000 training and 1000 test images",
    ),
}
"""Embedded data sets by name."""


def read_dataset(name: str) -> Reading:
    """The rows of an embedded data set; :class:`InputError` with the nearest name when there is none."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    info = DATASETS[name]
    return Reading(f"embedded:{name}", dict(info.modalities), _mnist3d())


def _mnist3d() -> Iterator[Row]:
    with as_file(files("consilience.data") / "embedded" / "mnist3d.npz") as path, np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for split in ("train", "test"):
        images, points = arrays[f"{split}_images"], arrays[f"{split}_points"]
        for i, label in enumerate(arrays[f"{split}_labels"].tolist()):
            yield Row(
                id=f"{split}-{i:05d}",
                split=split,
                label=str(label),
                values={"image": png_bytes(images[i]), "points": npy_bytes(points[i])},
                origins={
                    "image": f"mnist3d.npz::{split}_images[{i}]",
                    "points": f"mnist3d.npz::{split}_points[{i}]",
                },
            )

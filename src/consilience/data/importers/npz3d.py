"""Two NumPy archives of picture / point-cloud pairs.

``kenney3d.npz``: 256 low-poly models (Kenney, CC0) with four rendered RGBA views and sampled surface
points. Of the views the first, north-east, is imported.

``mnist_train.npz``, ``mnist_test.npz`` and ``mnist_points128.npz`` in one folder: MNIST digits and the
clouds of the first of them; digits without a cloud are left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from consilience.data.reading import Bad, Reading, npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

KENNEY = "kenney3d.npz"
MNIST = ("mnist_points128.npz", "mnist_train.npz", "mnist_test.npz")


def read_npz3d(source: Path) -> Reading:
    """Open ``kenney3d.npz``, ``mnist_points128.npz`` (its digits beside it) or a folder that holds either.

    Raises :class:`InputError` when files or arrays are missing.
    """
    folder = source if source.is_dir() else source.parent
    if source.name == KENNEY or (source.is_dir() and (folder / KENNEY).is_file()):
        rows = _kenney(folder / KENNEY)
        scalars = {"text": pa.string(), "name": pa.string(), "pack": pa.string(), "triangles": pa.int64()}
        return Reading(str(source), {"image": Kind.RGB, "points": Kind.POINTS}, rows, scalars)
    if source.name in MNIST or (source.is_dir() and (folder / MNIST[0]).is_file()):
        if missing := [name for name in MNIST if not (folder / name).is_file()]:
            raise InputError(f"{folder} lacks {missing[0]}; the pairs need {', '.join(MNIST)}")
        return Reading(str(source), {"image": Kind.GREY, "points": Kind.POINTS}, _mnist(folder))
    raise InputError(f"{source} is none of {', '.join((KENNEY, *MNIST))}; list other samples in a CSV manifest")


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except KeyError as error:
        raise InputError(f"{path} lacks an array: {error.args[0]}; expected {', '.join(names)}") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable npz file; download it again") from error


def _kenney(path: Path) -> Iterator[Row | Bad]:
    text = ("pack", "name", "text", "category", "split")
    arrays = _load(path, ("images", "points", "triangles", *text))
    columns = {name: arrays[name].tolist() for name in text}
    for i in range(len(arrays["images"])):
        yield Row(
            id=f"{columns['pack'][i]}/{columns['name'][i]}",
            split=columns["split"][i],
            label=columns["category"][i],
            values={"image": png_bytes(arrays["images"][i, 0]), "points": npy_bytes(arrays["points"][i])},
            origins={"image": f"{path.name}::images[{i}, 0]", "points": f"{path.name}::points[{i}]"},
            scalars={name: columns[name][i] for name in ("text", "name", "pack")}
            | {"triangles": int(arrays["triangles"][i])},
        )


def _mnist(folder: Path) -> Iterator[Row | Bad]:
    names = ("train_points", "train_labels", "test_points", "test_labels")
    clouds = _load(folder / MNIST[0], names)
    for split in ("train", "test"):
        images = _load(folder / f"mnist_{split}.npz", ("images",))["images"]
        for i, cloud in enumerate(clouds[f"{split}_points"]):
            yield Row(
                id=f"{split}-{i:05d}",
                split=split,
                label=str(int(clouds[f"{split}_labels"][i])),
                values={"image": png_bytes(images[i]), "points": npy_bytes(cloud)},
                origins={
                    "image": f"mnist_{split}.npz::images[{i}]",
                    "points": f"{MNIST[0]}::{split}_points[{i}]",
                },
            )

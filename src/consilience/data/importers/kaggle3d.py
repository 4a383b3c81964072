"""The HDF5 files of the public "3D MNIST" set (Kaggle, daavoo/3d-mnist).

``full_dataset_vectors.h5``: voxel grids of 16 x 16 x 16, flattened. It holds no pictures: occupied voxels
become the cloud, and the largest value along depth becomes a grey picture of 16 x 16 pixels, so that both
views come from the same voxels and agree more than two sensors would.

``{train,test}_point_clouds.h5``: one group a digit with the picture ``img`` and its own cloud ``points``.

Axes. In the files depth is the first axis, right the second, up the third (the generator's last rotation, see
:mod:`consilience.data.mnist3d`); clouds are stored here as x right, y up, z depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from consilience.data.reading import Bad, Reading, npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

FILES = ("full_dataset_vectors.h5", "train_point_clouds.h5", "test_point_clouds.h5")
_SIDE = 16
_KINDS = {"image": Kind.GREY, "points": Kind.POINTS}


def read_kaggle3d(source: Path) -> Reading:
    """Open one of the files, or a folder with the two point-cloud files (or else the vector file).

    Splits come from the names (``X_train``, ``train_point_clouds.h5``); other file names count as ``train``.
    Raises :class:`InputError` when the contents are not laid out like that.
    """
    if source.is_dir():
        files = [source / name for name in FILES[1:] if (source / name).is_file()]
        files = files or [source / FILES[0]]
    else:
        files = [source]
    return Reading(str(source), dict(_KINDS), _rows(files))


def _rows(files: list[Path]) -> Iterator[Row | Bad]:
    for path in files:
        try:
            archive = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path} is not a readable HDF5 file; download it again") from error
        with archive:
            if "X_train" in archive or "X_test" in archive:
                yield from _vectors(path, archive)
            elif any(isinstance(archive[key], h5py.Group) and "points" in archive[key] for key in archive):
                yield from _clouds(path, archive)
            else:
                raise InputError(f"{path} has {', '.join(list(archive)[:5])}; expected X_train or groups with points")


def _vectors(path: Path, archive: h5py.File) -> Iterator[Row | Bad]:
    for split in ("train", "test"):
        if f"X_{split}" not in archive:
            continue
        vectors, labels = archive[f"X_{split}"], archive.get(f"y_{split}")
        if vectors.ndim != 2 or vectors.shape[1] != _SIDE**3:
            raise InputError(f"{path}: X_{split} is {vectors.shape}; expected [n, {_SIDE**3}]")
        for i in range(len(vectors)):
            picture, cloud = voxel_views(vectors[i].reshape(_SIDE, _SIDE, _SIDE))
            origin = f"{path.name}::X_{split}[{i}]"
            yield Row(
                id=f"{split}-{i:05d}",
                split=split,
                label=None if labels is None else str(int(labels[i])),
                values={"image": png_bytes(picture), "points": npy_bytes(cloud)},
                origins={"image": origin, "points": origin},
            )


def voxel_views(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [16, 16] (rows from the top) and centres float32 [n, 3] (x right, y up, z depth) of the
    occupied voxels (value above 0) of a grid [depth, right, up]."""
    projected = grid.max(0).T[::-1]
    peak = projected.max()
    picture = np.zeros(projected.shape) if not peak > 0 else projected.clip(0) * (255 / peak)
    depth, right, up = np.nonzero(grid > 0)
    return np.rint(picture).astype(np.uint8), np.stack([right, up, depth], axis=1).astype(np.float32)


def _clouds(path: Path, archive: h5py.File) -> Iterator[Row | Bad]:
    split = "test" if path.name.startswith("test") else "train"
    for key in sorted(archive, key=lambda name: (len(name), name)):
        group = archive[key]
        name, origin = f"{split}-{key:0>5}", f"{path.name}::{key}"
        if "img" not in group or "points" not in group:
            yield Bad(name, "points", origin, "group without img and points")
            continue
        picture = np.asarray(group["img"][()], dtype=np.float64)
        if picture.max() <= 1:
            picture = picture * 255
        label = group.attrs.get("label")
        yield Row(
            id=name,
            split=split,
            label=None if label is None else str(int(label)),
            values={
                "image": png_bytes(np.rint(picture).clip(0, 255).astype(np.uint8)),
                "points": npy_bytes(group["points"][()][:, [1, 2, 0]].astype(np.float32)),
            },
            origins={"image": f"{origin}/img", "points": f"{origin}/points"},
        )

"""Small data of three easy classes in every layout that the command line takes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import trimesh
from PIL import Image

CLASSES = ("ball", "plate", "rod")
SHAPES = ("npy", "npz", "ply", "off", "obj", "stl", "glb")
ROWS = 60
FAST = (
    *("--method.clusters", "3", "--method.batch_size", "16", "--method.width", "16"),
    *("--method.warmup_epochs", "1", "--method.annotate_epochs", "1", "--method.robust_epochs", "1"),
    *("--train.threads", "1", "--train.device", "cpu", "--quiet"),
)
"""Options of a training that takes a second."""


def label(i: int) -> str:
    return CLASSES[i % 3]


def split(i: int) -> str:
    return "test" if i % 5 == 4 else "train"


def picture(i: int) -> np.ndarray:
    """uint8 [12, 12]: a disc, a horizontal or a vertical bar, with noise that depends on ``i``."""
    y, x = np.mgrid[:12, :12] - 5.5
    shape = {"ball": x**2 + y**2 < 16, "plate": abs(y) < 2, "rod": abs(x) < 2}[label(i)]
    noise = np.random.default_rng(i).integers(0, 60, (12, 12))
    return (shape * 180 + noise).astype(np.uint8)


def mesh(i: int) -> trimesh.Trimesh:
    """A box with the proportions of the class, rotated a little."""
    extents = {"ball": (1, 1, 1), "plate": (2, 0.2, 2), "rod": (0.2, 2, 0.2)}[label(i)]
    box = trimesh.creation.box(extents=extents)
    box.apply_transform(trimesh.transformations.rotation_matrix(0.01 * i, [0, 0, 1]))
    return box


def cloud(i: int) -> np.ndarray:
    """float32 [40, 3] on the surface of :func:`mesh`."""
    return np.asarray(trimesh.sample.sample_surface(mesh(i), 40, seed=i)[0], dtype=np.float32)


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(i)).save(stream, format="PNG")
    return stream.getvalue()


def shape_file(i: int, form: str) -> bytes:
    """The cloud as .npy, .npz or .ply, the mesh in the other formats."""
    stream = io.BytesIO()
    if form == "npy":
        np.save(stream, cloud(i))
    elif form == "npz":
        np.savez(stream, points=cloud(i))
    else:
        raw = (trimesh.PointCloud(cloud(i)) if form == "ply" else mesh(i)).export(file_type=form)
        return raw.encode() if isinstance(raw, str) else bytes(raw)
    return stream.getvalue()


def files(root: Path, rows: int = ROWS) -> list[dict[str, Any]]:
    """Write every sample's two files below ``root``; the rows of a manifest that names them."""
    (root / "pictures").mkdir(parents=True)
    (root / "shapes").mkdir()
    entries = []
    for i in range(rows):
        image, points = f"pictures/{i}.png", f"shapes/{i}.{SHAPES[i % len(SHAPES)]}"
        (root / image).write_bytes(png(i))
        (root / points).write_bytes(shape_file(i, SHAPES[i % len(SHAPES)]))
        entries.append({"id": f"s{i}", "split": split(i), "label": label(i), "image": image, "points": points})
    return entries


def manifest(root: Path, form: str, rows: int = ROWS) -> Path:
    """``root/data.FORM`` and the files that it names."""
    path = root / f"data.{form}"
    return write_manifest(path, files(root, rows))


def write_manifest(path: Path, entries: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        pq.write_table(pa.Table.from_pylist(entries), path)
    return path


def folder(root: Path, rows: int = ROWS) -> Path:
    """``root/SPLIT/MODALITY/CLASS/STEM``."""
    for i in range(rows):
        for name, content in (
            (f"image/{label(i)}/{i}.png", png(i)),
            (f"points/{label(i)}/{i}.npy", shape_file(i, "npy")),
        ):
            path = root / split(i) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def romo_lists(root: Path, labels: bool, rows: int = ROWS) -> Path:
    """RoMo's lists, the points' lines in another order than the pictures'."""
    for part in ("train", "test"):
        mine = [i for i in range(rows) if split(i) == part]
        for name, suffix, order in (("GrayImgs", "png", mine), ("PointCloud", "npy", sorted(mine, key=str))):
            lines = []
            for i in order:
                path = Path("3D_MNIST") / name / part / f"mnist3d_{part}_{i:06d}.{suffix}"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(png(i) if suffix == "png" else shape_file(i, "npy"))
                lines.append(f"{path} {i % 3}\n" if labels else f"{path}\n")
            (root / f"mnist3d_{name}_{part}_list.txt").write_text("".join(lines))
    return root


def kaggle(root: Path, rows: int = ROWS) -> Path:
    """``full_dataset_vectors.h5``: voxels 16 x 16 x 16 of the clouds."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "full_dataset_vectors.h5"
    with h5py.File(path, "w") as archive:
        for part in ("train", "test"):
            mine = [i for i in range(rows) if split(i) == part]
            grids = np.zeros((len(mine), 16, 16, 16))
            for grid, i in zip(grids, mine, strict=True):
                place = np.clip((cloud(i) / 2.2 + 0.5) * 16, 0, 15).astype(int)
                grid[tuple(place.T)] = 1.0
            archive[f"X_{part}"] = grids.reshape(len(mine), -1)
            archive[f"y_{part}"] = np.array([i % 3 for i in mine])
    return path

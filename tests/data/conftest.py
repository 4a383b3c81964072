from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh
from PIL import Image

from consilience.data.importers import import_table
from consilience.data.schema import Kind
from consilience.data.table import Row, Table

BOX = trimesh.creation.box(extents=(1.0, 2.0, 3.0))


def png(pixels: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=form)
    return stream.getvalue()


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def export(mesh: trimesh.Trimesh | trimesh.PointCloud, form: str) -> bytes:
    raw = mesh.export(file_type=form)
    return raw.encode() if isinstance(raw, str) else raw


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def make_rows(n: int, seed: int = 0, missing: tuple[int, ...] = ()) -> Iterator[Row]:
    """``n`` different pairs; every fourth row is in the test split, rows in ``missing`` have no points."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        picture = png(rng.integers(0, 256, (10, 12), dtype=np.uint8))
        cloud = npy(rng.normal(size=(20, 3)).astype(np.float32))
        yield Row(
            id=f"s{i}",
            split="test" if i % 4 == 3 else "train",
            label=str(i % 12),
            values={"image": picture, "points": None if i in missing else cloud},
            origins={"image": f"{i}.png", "points": f"{i}.npy"},
        )


KINDS = {"image": Kind.GREY, "points": Kind.POINTS}


@pytest.fixture(scope="session")
def mnist3d(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The embedded data set, imported once. Read only."""
    return import_table("mnist3d", tmp_path_factory.mktemp("mnist3d") / "table")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.create(tmp_path / "table", make_rows(37, missing=(5,)), KINDS, "made up")


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path

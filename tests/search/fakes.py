"""A Table of known vectors and a run whose encoder is a formula: searches whose answers a loop can check."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Kind
from consilience.data.table import Row, Table
from consilience.embedding.job import fingerprint
from consilience.heads.codes import pack
from tests.cli import tiny

WIDTH, ROWS = 16, 120
KINDS = {"image": Kind.GREY, "text": Kind.TEXT, "points": Kind.POINTS}


class Formula(nn.Module):
    """Encodes by a fixed random projection of the decoded values."""

    binary = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.modalities = dict(KINDS)
        self.decode = DecodeConfig(image_size=8, n_points=16, max_tokens=24)
        draw = torch.Generator().manual_seed(seed)
        shapes = {name: int(np.prod(self.decode.shape(kind))) for name, kind in KINDS.items()}
        self.maps = nn.ParameterDict(
            {name: torch.randn(size, WIDTH, generator=draw) / size**0.5 for name, size in shapes.items()}
        )

    def encode(self, batch: Batch, modality: str) -> torch.Tensor:
        values = batch.values[modality].float().flatten(1)
        return torch.sin(3 * values @ self.maps[modality] / values.std().clamp_min(1e-3)) + 0.01


def run_at(place: Path, seed: int = 0) -> Any:
    """A run of the formula."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(json.dumps({"method": "formula", "seed": seed}))
    folder = SimpleNamespace(config_file=place / "config.yaml", path=place, config=lambda: {"method": "formula"})
    return SimpleNamespace(folder=folder, path=place, method=Formula(seed).eval(), table=None)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(place: Path, run: Any, *, rows: int = ROWS, seed: int = 0, ties: bool = True) -> Table:
    """Rows with random vectors and their signs as codes; row 7 has no image, row 9 no vectors at all, and rows 20 to 29
    share their vectors with rows 30 to 39 (``ties``)."""
    draw = np.random.default_rng(seed)

    def all_rows() -> Any:
        for i in range(rows):
            values = {"image": tiny.png(i % 30), "text": f"word{i} red heart".encode(), "points": None}
            if i == 7:
                values["image"] = None
            origins = {name: f"{name}/{i}" for name, value in values.items() if value is not None}
            yield Row(f"s{i}", "test" if i % 4 == 3 else "train", values, origins, ("a", "b", None)[i % 3])

    table = Table.create(place, all_rows(), KINDS, "fake")
    about = {"run": str(run.path), "fingerprint": fingerprint(run), "method": "formula"}
    for modality in ("image", "text"):
        vectors = unit(draw.standard_normal((rows, WIDTH)))
        if ties:
            vectors[30:40] = vectors[20:30]
        keys = np.array([i for i in range(rows) if i != 9 and not (i == 7 and modality == "image")])
        table.write_columns(keys, {f"vector_{modality}": vectors[keys]}, about)
        more = {**about, "bits": WIDTH, "hasher": "sign", "by": "sign", "of": f"vector_{modality}"}
        table.write_columns(keys, {f"code_{modality}": pack(vectors[keys])}, more)
    return Table.open(place)


def slow_search(
    table: Table,
    modalities: list[str],
    query: np.ndarray,
    where: str | None,
    by: str,
    shift: dict[str, Any] | None = None,
) -> list[tuple[float, str, int]]:
    """(score, modality, index) of every row that passes, best first, by a loop over all of them."""
    passing = set(table.indices()[table.select(where)].tolist())
    found = []
    for modality in modalities:
        entries = table.take(table.select(), ["index", f"vector_{modality}"]).to_pylist()
        for entry in entries:
            vector = entry[f"vector_{modality}"]
            if vector is None or entry["index"] not in passing:
                continue
            if by == "vector":
                score = float(np.dot(np.float64(vector), np.float64(query)))
            elif by == "asymmetric":
                signs = [1 if x >= 0 else -1 for x in vector]
                score = float(np.dot(signs, query) / (np.linalg.norm(query) * len(signs) ** 0.5))
            else:
                same = sum((a >= 0) == (b >= 0) for a, b in zip(vector, query, strict=True))
                score = 2 * same / len(vector) - 1
            found.append((score, modality, entry["index"]))
    return sorted(found, key=lambda hit: -hit[0])

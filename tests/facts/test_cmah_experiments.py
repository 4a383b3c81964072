"""CMAH on generated solids: the small experiment of its specification.

The test runs a short version. The table of docs/cmah.md comes from

    python tests/facts/test_cmah_experiments.py --write RESULTS.jsonl
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from consilience.data.loader import read
from consilience.data.solids import MODALITIES, SOLIDS, Solids, solid_rows, solids, surface
from consilience.data.table import Table
from consilience.heads.codes import distances, pack
from consilience.methods.base import Method, Optimiser
from consilience.methods.cmah import CMAH, CMAHConfig
from consilience.training.api import train
from consilience.training.config import TrainConfig
from consilience.views.geometry import ViewConfig

NOTHING: dict[str, Any] = {"masked_weight": 0.0, "points_weight": 0.0, "image_weight": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "A": NOTHING,
    "B": NOTHING | {"masked_weight": 1.0},
    "C": NOTHING | {"points_weight": 0.3, "image_weight": 0.3},
    "D": NOTHING | {"masked_weight": 1.0, "points_weight": 0.3, "image_weight": 0.3},
}
"""A: contrast of full inputs alone. B: and of masked ones. C: A and reconstruction. D: everything."""
DATABASE, QUERIES, TRAINED = 2000, 500, 300


def config(steps: int, **options: Any) -> CMAHConfig:
    """The experiment's model; 300 pairs in batches of 64 are 5 steps an epoch."""
    views = ViewConfig(rotate=0, turn=180, scale=0.2, shear=0, shift=0, flip=True, jitter=0)
    base = CMAHConfig(
        bits=32,
        image_size=32,
        image_patch=8,
        n_points=256,
        mask_image=0.6,
        views=views,
        batch_size=64,
        epochs=steps // 5,
        optimiser=Optimiser("adamw", 1e-3, 0.01),
    )
    return replace(base, **options)


def vectors(method: Method, table: Table, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """u of every row by modality, and labels."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in MODALITIES}
    rows = table.select(f"split = '{split}'")
    method.eval()
    with torch.no_grad():
        for batch in read(table, rows, method.decode, 250, modalities=tuple(MODALITIES)):
            for name, parts in found.items():
                parts.append(method.encode(batch, name))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}, table.labels(f"split = '{split}'")[0]


def average_precision(counts: np.ndarray, relevant: np.ndarray) -> float:
    """Expected average precision over the orders of ties; ``counts`` of items and of relevant ones, nearest first."""
    total, before, above = 0.0, 0, 0
    for n, r in zip(counts.tolist(), relevant.tolist(), strict=True):
        for j in range(1, n + 1):
            share = (j - 1) * (r - 1) / (n - 1) if n > 1 else 0.0
            total += r / n * (above + 1 + share) / (before + j)
        before, above = before + n, above + r
    return total / above


def hamming_map(query: np.ndarray, database: np.ndarray, labels: tuple[np.ndarray, np.ndarray], bits: int) -> float:
    gaps, values = distances(pack(query), pack(database)), []
    for row, label in zip(gaps, labels[0], strict=True):
        counts = np.bincount(row, minlength=bits + 1)
        values.append(average_precision(counts, np.bincount(row[labels[1] == label], minlength=bits + 1)))
    return float(np.mean(values))


def real_map(query: np.ndarray, database: np.ndarray, labels: tuple[np.ndarray, np.ndarray]) -> float:
    """Ranking by inner product of vectors as they are (no ties to speak of)."""
    order = np.argsort(-(query @ database.T), axis=1, kind="stable")
    hits = labels[1][order] == labels[0][:, None]
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(1) / hits.sum(1)).mean())


def judge(method: CMAH, table: Table) -> dict[str, float]:
    """Means of both directions by Hamming distance, real query against code, real vectors; and |mean| of the bits."""
    (query, of_query), (database, of_database) = vectors(method, table, "query"), vectors(method, table, "train")
    labels, bits, found = (of_query, of_database), method.config.bits, []
    for a, b in itertools.permutations(MODALITIES):
        code = np.where(database[b] >= 0, 1.0, -1.0).astype(np.float32)
        unit = query[a] / np.linalg.norm(query[a], axis=1, keepdims=True)
        real = database[b] / np.linalg.norm(database[b], axis=1, keepdims=True)
        hamming = hamming_map(query[a], database[b], labels, bits)
        balance = float(np.abs(code.mean(0)).mean())
        found.append([hamming, real_map(unit, code, labels), real_map(unit, real, labels), balance])
    names = ("hamming", "asymmetric", "real", "bit_mean")
    return dict(zip(names, np.mean(found, 0).tolist(), strict=True))


def world(folder: Path, database: int = DATABASE, queries: int = QUERIES) -> Table:
    rows = chain(solid_rows(database, "train"), solid_rows(queries, "query", start=database))
    return Table.create(folder / "solids", list(rows), MODALITIES, "generated solids")


def fit(table: Table, out: Path, settings: CMAHConfig, seed: int, trained: int = TRAINED) -> dict[str, float]:
    options = TrainConfig(seed=seed, where=f"index < {trained}", validation=0.0, select="last", threads=1)
    started = time.process_time()
    run = train("cmah", table, out, config=settings, train=options, quiet=True)
    spent = time.process_time() - started
    assert isinstance(run.method, CMAH)
    return judge(run.method, table) | {"cpu_s": spent}


def test_solids_are_what_they_say() -> None:
    """Points lie on the surface that they are said to lie on, normals have length 1 and point outwards."""
    rng = np.random.default_rng(0)
    for kind in SOLIDS:
        points, normals = surface(kind, rng)
        assert points.shape == normals.shape == (3000, 3)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
        if kind in ("ellipsoid", "box", "cylinder", "cone", "pyramid", "capsule"):  # convex ones
            gaps = ((points[None, :200] - points[:200, None]) * normals[:200, None]).sum(2)
            assert gaps.max() < 1e-9


def test_solids_are_spread_evenly() -> None:
    """Shares of area that can be worked out: caps of a cylinder, base of a pyramid, halves of a torus."""
    rng = np.random.default_rng(1)
    points, normals = surface("cylinder", rng)
    radius, height = np.linalg.norm(points[:, [0, 2]], axis=1).max(), np.ptp(points[:, 1])
    share = 2 * np.pi * radius**2 / (2 * np.pi * radius**2 + 2 * np.pi * radius * height)
    assert (np.abs(normals[:, 1]) > 0.5).mean() == pytest.approx(share, abs=0.03)
    points, normals = surface("pyramid", rng)
    base = normals[:, 1] < -0.5
    half, high = np.abs(points[:, 0]).max(), points[:, 1].max()
    slope = 4 * half * np.hypot(half, high)
    assert base.mean() == pytest.approx(4 * half**2 / (4 * half**2 + slope), abs=0.03)
    points, _ = surface("torus", rng)
    thin = np.ptp(points[:, 1]) / 2
    outer = np.linalg.norm(points[:, [0, 2]], axis=1) > 1
    assert outer.mean() == pytest.approx(0.5 + thin / np.pi, abs=0.03)


def test_pairs_depend_on_their_number_alone() -> None:
    whole, part = solids(6, seed=3), solids(2, seed=3, start=4)
    assert isinstance(whole, Solids)
    for name in ("images", "points", "labels"):
        assert np.array_equal(getattr(whole, name)[4:], getattr(part, name))
    assert np.abs(solids(2, seed=4).points - whole.points[:2]).max() > 0.1
    assert whole.images.dtype == np.uint8
    assert np.linalg.norm(whole.points, axis=2).max() < 1.06


def test_average_precision_of_ties() -> None:
    for n, r, expected in ((2, 1, 0.75), (4, 1, 0.5208333), (4, 2, 0.6805556), (4, 3, 0.8402778)):
        assert average_precision(np.array([n]), np.array([r])) == pytest.approx(expected, abs=1e-6)


def test_codes_of_solids_are_learnt(tmp_path: Path) -> None:
    """60 steps on 96 pairs: far above chance (0.10) and above an untrained network, and the masked parts cost no more
    than noise. The full experiment is in docs/cmah.md."""
    table = world(tmp_path, 300, 100)
    short = {"batch_size": 32, "epochs": 20}
    assert judge(CMAH(config(5), MODALITIES, 1), table)["hamming"] < 0.25
    a, d = (fit(table, tmp_path / n, config(60, **VARIANTS[n] | short), 0, 96) for n in ("A", "D"))
    assert d["hamming"] > 0.35
    assert d["hamming"] > a["hamming"] - 0.06
    assert d["asymmetric"] > d["hamming"]


def main(results: Path, steps: int = 900, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Every variant and seed, one line of JSON each; lines that are there already are not made again."""
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(line["variant"], line["seed"]) for line in map(json.loads, lines)}
    runs = [(name, seed, VARIANTS[name]) for seed in seeds for name in ("D", "A", "B", "C")]
    runs += [("D, 16 bits", seed, VARIANTS["D"] | {"bits": 16}) for seed in seeds]
    for name in ("D", "A"):
        runs += [(f"{name}, no norm", seed, VARIANTS[name] | {"head_norm": "none"}) for seed in seeds]
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        table = world(Path(folder))
        for name, seed, options in runs:
            if (name, seed) in done:
                continue
            settings = config(steps, **options)
            found = fit(table, Path(folder) / f"{name}-{seed}", settings, seed)
            with results.open("a") as file:
                file.write(json.dumps({"variant": name, "seed": seed, **found}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or len(sys.argv) != 3:
        sys.exit("usage: python tests/facts/test_cmah_experiments.py --write RESULTS.jsonl")
    main(Path(sys.argv[2]))

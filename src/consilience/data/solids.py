"""Generated pairs of a rendered picture and a point cloud of ten kinds of solids: a small world whose truth is known.

Every solid has random proportions, a random yaw and a slight tilt. The cloud is a sample of its surface; the picture is
what a camera somewhere around it sees, shaded. Pose of cloud and camera are independent, so that pairing needs shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int64, UInt8

from consilience.data.reading import npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row

SOLIDS = (
    "ellipsoid",
    "box",
    "cylinder",
    "cone",
    "torus",
    "pyramid",
    "capsule",
    "l-bar",
    "plus",
    "table",
)
MODALITIES = {"image": Kind.GREY, "points": Kind.POINTS}
_SAMPLES, _CLOUD, _SIDE = 3000, 256, 32
_LIGHT = np.array([0.4, 0.8, 0.45]) / np.linalg.norm([0.4, 0.8, 0.45])
_Surface = tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]


@dataclass(frozen=True)
class Solids:
    """Arrays of generated pairs; row i of each is pair i."""

    images: UInt8[np.ndarray, "n 32 32"]
    points: Float[np.ndarray, "n 256 3"]
    labels: Int64[np.ndarray, " n"]
    """Position in :data:`SOLIDS`."""


def solids(count: int, seed: int = 0, start: int = 0) -> Solids:
    """Pairs ``start`` to ``start + count``; kinds take turns, so that every ten pairs hold all of them. Pair i depends
    on ``seed`` and i alone."""
    made = [_pair(seed, i) for i in range(start, start + count)]
    images = np.stack([image for image, _ in made]) if made else np.zeros((0, _SIDE, _SIDE), np.uint8)
    points = np.stack([cloud for _, cloud in made]) if made else np.zeros((0, _CLOUD, 3), np.float32)
    return Solids(images, points, np.arange(start, start + count, dtype=np.int64) % len(SOLIDS))


def solid_rows(count: int, split: str, seed: int = 0, start: int = 0) -> Iterator[Row]:
    """The same as rows of a Table with the modalities :data:`MODALITIES`."""
    for i in range(start, start + count):
        image, cloud = _pair(seed, i)
        origins = dict.fromkeys(MODALITIES, f"solids of seed {seed}::{i}")
        values = {"image": png_bytes(image), "points": npy_bytes(cloud)}
        yield Row(id=f"{split}-{i:05d}", split=split, label=SOLIDS[i % len(SOLIDS)], values=values, origins=origins)


def _pair(seed: int, number: int) -> tuple[UInt8[np.ndarray, "32 32"], Float[np.ndarray, "256 3"]]:
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    points, normals = surface(SOLIDS[number % len(SOLIDS)], rng)
    turn = _yaw(rng.uniform(-np.pi, np.pi)) @ _about_x(rng.uniform(-0.2, 0.2)) @ _about_z(rng.uniform(-0.2, 0.2))
    points, normals = points @ turn.T, normals @ turn.T
    points = points - (points.min(0) + points.max(0)) / 2
    points = points / np.linalg.norm(points, axis=1).max()
    image = render(points, normals, rng)
    chosen = points[rng.choice(len(points), _CLOUD, replace=False)] + rng.normal(0, 0.01, (_CLOUD, 3))
    return image, chosen.astype(np.float32)


def surface(kind: str, rng: np.random.Generator) -> _Surface:
    """3,000 points spread evenly by area over the surface of a solid of random proportions, y up, and outer normals."""
    size = rng.uniform
    if kind == "ellipsoid":
        return _ellipsoid(rng, size(0.4, 1.0, 3))
    if kind == "box":
        return _boxes(rng, [(np.zeros(3), size(0.35, 1.0, 3))])
    if kind == "cylinder":
        return _revolved(rng, *_outline([(0, -1), (1, -1), (1, 1), (0, 1)], size(0.3, 0.8), size(0.5, 1.0)))
    if kind == "cone":
        return _revolved(rng, *_outline([(0, -1), (1, -1), (0, 1)], size(0.4, 0.9), size(0.6, 1.0)))
    if kind == "torus":
        return _torus(rng, size(0.15, 0.35))
    if kind == "pyramid":
        return _pyramid(rng, size(0.4, 0.9), size(0.8, 1.8))
    if kind == "capsule":
        return _capsule(rng, size(0.25, 0.45), size(0.5, 1.0))
    if kind == "l-bar":
        arm, thick, deep = size(0.7, 1.1), size(0.15, 0.3), size(0.15, 0.4)
        foot = (np.array([arm, thick, 0]), np.array([arm, thick, deep]))
        return _boxes(rng, [foot, (np.array([thick, 1 + thick, 0]), np.array([thick, 1 - thick * 0.999, deep]))])
    if kind == "plus":
        thick, deep = size(0.15, 0.32), size(0.12, 0.35)
        return _boxes(
            rng, [(np.zeros(3), np.array([1.0, thick, deep])), (np.zeros(3), np.array([thick, 1.0, deep * 0.999]))]
        )
    leg, high, wide, deep, thick = size(0.06, 0.12), size(0.4, 0.8), size(0.7, 1.0), size(0.5, 0.9), size(0.05, 0.1)
    parts = [(np.array([0, high + thick, 0]), np.array([wide, thick, deep]))]
    for x, z in product((-1, 1), (-1, 1)):
        parts.append((np.array([x * (wide - leg), 0, z * (deep - leg)]), np.array([leg, high, leg])))
    return _boxes(rng, parts)


def render(
    points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "32 32"]:
    """What a random camera sees (yaw all around, pitch 0.2 to 0.7): points splatted on 32 x 32 pixels, those within
    0.06 of the front averaged, Lambert shading 0.2 + 0.8 max(0, n . l), noise 0.03 on a black ground."""
    camera = _about_x(rng.uniform(0.2, 0.7)) @ _yaw(rng.uniform(-np.pi, np.pi))
    seen, facing = points @ camera.T, normals @ camera.T
    # 0.85: the unit ball keeps a margin; z looks out of the picture
    columns = np.clip(((seen[:, 0] * 0.85 + 1) * _SIDE / 2).astype(np.int64), 0, _SIDE - 1)
    rows = np.clip(((1 - seen[:, 1] * 0.85) * _SIDE / 2).astype(np.int64), 0, _SIDE - 1)
    pixel, depth = rows * _SIDE + columns, seen[:, 2]
    front = np.full(_SIDE * _SIDE, -np.inf)
    np.maximum.at(front, pixel, depth)
    near = depth >= front[pixel] - 0.06
    shade = 0.2 + 0.8 * np.clip(facing @ _LIGHT, 0, None)
    hits = np.bincount(pixel[near], minlength=_SIDE * _SIDE)
    light = np.bincount(pixel[near], shade[near], minlength=_SIDE * _SIDE) / np.maximum(hits, 1)
    noisy = light + rng.normal(0, 0.03, light.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8).reshape(_SIDE, _SIDE)


def _yaw(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_x(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_z(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    shortened: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return shortened


def _kept_by_area(rng: np.random.Generator, area: np.ndarray) -> np.ndarray:
    """Which of many candidates to keep so that their density follows ``area``: exactly 3,000, with repetition."""
    return rng.choice(len(area), _SAMPLES, p=area / area.sum())


def _ellipsoid(rng: np.random.Generator, radii: np.ndarray) -> _Surface:
    ball = _unit(rng.normal(size=(2 * _SAMPLES, 3)))
    normals = ball / radii
    kept = _kept_by_area(rng, np.linalg.norm(normals, axis=1))  # area element of the map from the unit sphere
    return (ball * radii)[kept], _unit(normals[kept])


def _boxes(rng: np.random.Generator, parts: list[tuple[np.ndarray, np.ndarray]]) -> _Surface:
    """Surface of the union of boxes given as (centre, half sizes)."""
    centres, halves = (np.array(each, dtype=np.float64) for each in zip(*parts, strict=True))
    area = np.stack([halves[:, (a + 1) % 3] * halves[:, (a + 2) % 3] for a in range(3)], 1)
    faces = np.repeat(area, 2, 1).ravel()  # box, axis, side
    many = 2 * _SAMPLES
    chosen = rng.choice(len(faces), many, p=faces / faces.sum())
    box, axis, side = chosen // 6, chosen % 6 // 2, np.where(chosen % 2, 1.0, -1.0)
    local, normals, own = rng.uniform(-1, 1, (many, 3)), np.zeros((many, 3)), np.arange(many)
    local[own, axis] = side
    normals[own, axis] = side
    points = centres[box] + local * halves[box]
    gaps = np.abs(points[:, None] - centres[None]) - halves[None] * (1 - 1e-9)
    inside = (gaps.max(2) < 0).any(1)
    outer = np.flatnonzero(~inside)
    kept = outer[rng.choice(len(outer), _SAMPLES, replace=len(outer) < _SAMPLES)]
    return points[kept], normals[kept]


def _outline(corners: list[tuple[float, float]], radius: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    line = np.array(corners, dtype=np.float64) * [radius, height]
    return line[:-1], line[1:]


def _revolved(rng: np.random.Generator, starts: np.ndarray, ends: np.ndarray) -> _Surface:
    """Surface of revolution about y of straight pieces (radius, height), walked from the bottom to the top."""
    steps = ends - starts
    area = np.linalg.norm(steps, axis=1) * (starts[:, 0] + ends[:, 0])
    piece = rng.choice(len(area), _SAMPLES, p=area / area.sum())
    low, high = starts[piece, 0], ends[piece, 0]
    share = rng.uniform(size=_SAMPLES)  # density along a piece grows with the radius
    radius = np.sqrt(low**2 + share * (high**2 - low**2))
    sloped = np.abs(high - low) > 1e-9
    along = np.where(sloped, (radius - low) / np.where(sloped, high - low, 1), share)
    height = starts[piece, 1] + along * steps[piece, 1]
    angle = rng.uniform(-np.pi, np.pi, _SAMPLES)
    outward = np.stack([steps[piece, 1], -steps[piece, 0]], 1)
    c, s = np.cos(angle), np.sin(angle)
    points = np.stack([radius * c, height, radius * s], 1)
    return points, _unit(np.stack([outward[:, 0] * c, outward[:, 1], outward[:, 0] * s], 1))


def _torus(rng: np.random.Generator, thin: float) -> _Surface:
    tube, around = rng.uniform(-np.pi, np.pi, (2, 2 * _SAMPLES))
    kept = _kept_by_area(rng, 1 + thin * np.cos(tube))
    tube, around = tube[kept], around[kept]
    ring = 1 + thin * np.cos(tube)
    points = np.stack([ring * np.cos(around), thin * np.sin(tube), ring * np.sin(around)], 1)
    return points, np.stack([np.cos(tube) * np.cos(around), np.sin(tube), np.cos(tube) * np.sin(around)], 1)


def _pyramid(rng: np.random.Generator, half: float, high: float) -> _Surface:
    base = half * np.array([[-1, 0, -1], [-1, 0, 1], [1, 0, 1], [1, 0, -1]], dtype=np.float64)
    top = np.array([0, high, 0])
    triangles = [np.stack([base[i], base[(i + 1) % 4], top]) for i in range(4)]
    corners = np.stack([*triangles, base[[0, 2, 1]], base[[0, 3, 2]]])
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1)
    face = rng.choice(len(area), _SAMPLES, p=area / area.sum())
    u, v = rng.uniform(size=(2, _SAMPLES))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = corners[face].transpose(1, 0, 2)
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), _unit(across)[face]


def _capsule(rng: np.random.Generator, radius: float, half: float) -> _Surface:
    """A cylinder of half height ``half`` with half balls on its ends."""
    wall = rng.uniform(size=_SAMPLES) < half / (half + radius)  # areas 4 pi r half and 4 pi r^2
    ball = _unit(rng.normal(size=(_SAMPLES, 3)))
    angle = rng.uniform(-np.pi, np.pi, _SAMPLES)
    ring = np.stack([np.cos(angle), np.zeros(_SAMPLES), np.sin(angle)], 1)
    normals = np.where(wall[:, None], ring, ball)
    lift = np.where(wall, rng.uniform(-half, half, _SAMPLES), np.sign(ball[:, 1]) * half)
    return normals * radius + np.stack([np.zeros(_SAMPLES), lift, np.zeros(_SAMPLES)], 1), normals

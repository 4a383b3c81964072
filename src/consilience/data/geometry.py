"""Triangle meshes as arrays: surface samples and MeshNet's face features, without any file format."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

MESH_COLUMNS = 18
_TINY = 1e-12


def sample_surface(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], n: int, rng: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """``n`` points drawn uniformly over the area of a triangle mesh, float64.

    Raises ValueError when the mesh has no area.
    """
    corners = vertices[faces].astype(np.float64)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    total = np.cumsum(np.linalg.norm(np.cross(first, second), axis=1))
    if not len(total) or not total[-1] > _TINY:
        raise ValueError("the mesh has no area")
    face = np.searchsorted(total, rng.random(n) * total[-1], side="right")
    face = np.minimum(face, len(faces) - 1)
    weight = rng.random((n, 2))
    outside = weight.sum(1) > 1
    weight[outside] = 1 - weight[outside]
    return np.asarray(corners[face, 0] + weight[:, :1] * first[face] + weight[:, 1:] * second[face])


def merge_vertices(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> tuple[np.ndarray, np.ndarray]:
    """The same triangles with vertices at one position counted once (STL repeats them for every face)."""
    unique, place = np.unique(vertices, axis=0, return_inverse=True)
    return unique, place.reshape(-1)[faces]


def face_neighbours(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "f 3"]:
    """For each face the face across edges (v1 v2), (v2 v3), (v3 v1), int64; the face itself where there is
    none.

    Where more than two faces meet at an edge, the lowest-numbered other one.
    """
    count = len(faces)
    edges = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    owner = np.repeat(np.arange(count), 3)
    _, edge = np.unique(edges, axis=0, return_inverse=True)
    edge = edge.reshape(-1)
    order = np.lexsort((owner, edge))
    starts = np.flatnonzero(np.r_[True, np.diff(edge[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    first = owner[order[starts]]
    second = np.where(sizes > 1, owner[order[np.minimum(starts + 1, len(order) - 1)]], first)
    lowest, next_lowest = first[edge], second[edge]
    return np.where(lowest != owner, lowest, next_lowest).reshape(count, 3).astype(np.int64)


def mesh_features(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], n_faces: int, rng: np.random.Generator
) -> Float[np.ndarray, "n 18"]:
    """Face features as :attr:`Kind.MESH` describes them (MeshNet, Feng et al., AAAI 2019), float32.

    The bounding box is centred at 0 and the farthest vertex put at radius 1. Vertices at one position are
    merged and triangles without area left out. A mesh with more than ``n_faces`` triangles keeps the
    largest ones (in their own order) and neighbours are found among those; one with fewer repeats random
    faces, whose neighbours stay those of the original. Raises ValueError when no triangle has area.
    """
    vertices, faces = merge_vertices(vertices.astype(np.float64), faces)
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    twice_area = np.linalg.norm(cross, axis=1)
    solid = np.flatnonzero(twice_area > _TINY * max(float(twice_area.max(initial=0.0)), _TINY))
    if not solid.size:
        raise ValueError("the mesh has no area")
    if solid.size > n_faces:
        largest = np.argsort(-twice_area[solid], kind="stable")[:n_faces]
        solid = solid[np.sort(largest)]
    used = np.unique(faces[solid])
    low, high = vertices[used].min(0), vertices[used].max(0)
    middle = (low + high) / 2
    radius = np.linalg.norm(vertices[used] - middle, axis=1).max()
    corners = (corners[solid] - middle) / radius
    normals = cross[solid] / twice_area[solid, None]
    return pad_faces(corners, normals, face_neighbours(faces[solid]), n_faces, rng)


def pad_faces(
    corners: Float[np.ndarray, "f 3 3"],
    normals: Float[np.ndarray, "f 3"],
    neighbours: Int[np.ndarray, "f 3"],
    n_faces: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 18"]:
    """Join the parts of at most ``n_faces`` faces into rows of 18 and repeat random faces up to
    ``n_faces``."""
    centres = corners.mean(1)
    relative = (corners - centres[:, None]).reshape(-1, 9)
    rows = np.concatenate([centres, relative, normals, neighbours], axis=1).astype(np.float32)
    repeated = rng.integers(0, len(rows), n_faces - len(rows))
    return np.concatenate([rows, rows[repeated]])

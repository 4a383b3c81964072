from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.decode import decode_mesh, decode_points
from consilience.data.geometry import face_neighbours, mesh_features, sample_surface
from consilience.errors import InputError

from .conftest import BOX, export, npz

RNG = np.random.default_rng(0)


def slow_neighbours(faces: np.ndarray) -> np.ndarray:
    """From the definition: for each edge the first other face that has both of its ends."""
    out = np.repeat(np.arange(len(faces))[:, None], 3, axis=1)
    for i, face in enumerate(faces):
        for j in range(3):
            edge = {face[j], face[(j + 1) % 3]}
            for other, corners in enumerate(faces):
                if other != i and edge <= set(corners):
                    out[i, j] = other
                    break
    return out


@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(3, 9))
@settings(max_examples=60, deadline=None)
def test_neighbours_equal_the_loop(seed: int, count: int, vertices: int) -> None:
    rng = np.random.default_rng(seed)
    faces = np.array([rng.choice(vertices, 3, replace=False) for _ in range(count)])
    np.testing.assert_array_equal(face_neighbours(faces), slow_neighbours(faces))


@pytest.mark.parametrize("form", ["ply", "off", "obj", "stl", "glb"])
def test_face_features_of_a_box(form: str) -> None:
    out = decode_mesh(export(BOX, form), f"x.{form}", 20)
    assert out.shape == (20, 18)
    assert out.dtype == np.float32
    centres, corners, normals, neighbours = np.split(out, [3, 12, 15], axis=1)
    absolute = corners.reshape(-1, 3, 3) + centres[:, None]
    assert np.linalg.norm(absolute, axis=2).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(corners.reshape(-1, 3, 3).sum(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert (np.sort(np.abs(normals), axis=1) == np.array([0, 0, 1])).all()
    assert ((centres * normals).sum(1) > 0).all()
    own = np.arange(12)
    assert len(np.unique(out[:12], axis=0)) == 12
    assert (neighbours[:12] != own[:, None]).all()
    for i, row in enumerate(neighbours[:12].astype(int)):
        for j, other in enumerate(row):
            edge = {tuple(absolute[i, j].round(4)), tuple(absolute[i, (j + 1) % 3].round(4))}
            assert edge <= {tuple(corner.round(4)) for corner in absolute[other]}
    padded = {tuple(row) for row in out[12:]}
    assert padded <= {tuple(row) for row in out[:12]}
    np.testing.assert_array_equal(out, decode_mesh(export(BOX, form), f"x.{form}", 20))


def test_too_many_faces_keep_the_largest_in_order() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [0, 5, 5], [0, 0, 0.1]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 3, 4], [0, 1, 5], [3, 4, 1]])
    out = mesh_features(vertices, faces, 2, np.random.default_rng(0))
    alone = mesh_features(vertices, faces[[1, 3]], 2, np.random.default_rng(0))
    np.testing.assert_array_equal(out, alone)
    assert out[:, 15:].tolist() == [[0, 1, 0], [0, 1, 1]]


def test_meshes_without_triangles_or_area_are_refused() -> None:
    cloud = export(trimesh.PointCloud(RNG.normal(size=(9, 3))), "ply")
    with pytest.raises(InputError, match="no triangles"):
        decode_mesh(cloud, "", 10)
    flat = trimesh.Trimesh([[0, 0, 0], [1, 1, 1], [2, 2, 2]], [[0, 1, 2]], process=False)
    with pytest.raises(InputError, match="no area"):
        decode_mesh(export(flat, "off"), "", 10)
    with pytest.raises(InputError, match="no area"):
        decode_points(export(flat, "off"), "", 10)
    with pytest.raises(InputError, match="broken off"):
        decode_mesh(b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "", 10)


@pytest.mark.parametrize("names", [("faces", "neighbors"), ("face", "neighbor_index")])
@pytest.mark.parametrize("absolute", [True, False])
def test_meshnet_archives(names: tuple[str, str], absolute: bool) -> None:
    wanted = decode_mesh(export(BOX, "ply"), "", 12)
    corners = wanted[:, 3:12] + (np.tile(wanted[:, :3], 3) if absolute else 0)
    rows = np.concatenate([wanted[:, :3], corners, wanted[:, 12:15]], axis=1)
    raw = npz(**{names[0]: rows, names[1]: wanted[:, 15:].astype(np.int64)})
    np.testing.assert_allclose(decode_mesh(raw, "", 12), wanted, atol=1e-6)
    assert decode_mesh(raw, "", 20).shape == (20, 18)
    with pytest.raises(InputError, match="12 faces"):
        decode_mesh(raw, "", 11)


def test_bad_meshnet_archives_are_refused() -> None:
    rows, near = np.zeros((4, 15)), np.zeros((4, 3), dtype=int)
    for arrays, words in (
        ({"faces": rows}, "neighbors"),
        ({"faces": rows[:, :14], "neighbors": near}, "15"),
        ({"faces": rows, "neighbors": near + 4}, "neighbour"),
        ({"faces": rows + np.arange(15) * np.ones((4, 1)) * 7, "neighbors": near}, "corners"),
    ):
        with pytest.raises(InputError, match=words):
            decode_mesh(npz(**arrays), "", 10)


def test_surface_samples_follow_area() -> None:
    """Two triangles with areas 1 : 9; 20000 samples; the share is binomial with sd 0.0021."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]], dtype=float)
    points = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]]), 20000, np.random.default_rng(0))
    low = points[:, 2] == 0
    assert low.mean() == pytest.approx(0.1, abs=0.01)
    assert (points[low][:, 0] + points[low][:, 1] <= 1 + 1e-12).all()
    np.testing.assert_allclose(points[~low].mean(0), [1, 1, 5], atol=0.05)

"""Affine hashers: what their signs keep of the vectors, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from consilience.errors import InputError
from consilience.heads.codes import distances, pack, unpack
from consilience.training.hashing import WAYS, Hasher, fit_hasher, identity_hasher


def clustered(n: int = 600, width: int = 32, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two noisy unit-length views of points about ten centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    centres = np.random.default_rng(99).normal(size=(10, width))
    views = {}
    for name in ("image", "points"):
        x = centres[labels] + 0.7 * rng.normal(size=(n, width))
        views[name] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return views, labels


def precision(codes: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """Share of a query's class among its 20 nearest of the other modality (ties by place)."""
    order = np.argsort(distances(codes["image"], codes["points"]), axis=1, kind="stable")[:, :20]
    return float((labels[order] == labels[:, None]).mean())


@pytest.mark.parametrize("by", WAYS)
def test_codes_find_the_class_on_other_data(by: str) -> None:
    fitted, (views, labels) = clustered()[0], clustered(seed=1)
    hasher = fit_hasher(fitted, 32 if by == "sign" else 16, by)
    codes = {name: hasher.code(x) for name, x in views.items()}
    assert codes["image"].shape == (600, 4 if by == "sign" else 2)
    assert precision(codes, labels) > 0.4  # chance is 0.1
    np.testing.assert_array_equal(pack(hasher.project(views["image"])), codes["image"])


def test_fitted_maps_beat_random_planes() -> None:
    fitted, (views, labels) = clustered()[0], clustered(seed=1)
    found = {}
    for by in ("lsh", "itq", "learned"):
        hasher = fit_hasher(fitted, 16, by)
        found[by] = precision({name: hasher.code(x) for name, x in views.items()}, labels)
    assert found["itq"] > found["lsh"] + 0.05
    assert found["learned"] > found["lsh"] + 0.05


def test_itq_quantises_as_well_as_faiss() -> None:
    """|B - V R|^2 over |V|^2 on the components; faiss normalises what it centred, so we do too."""
    x = np.concatenate(list(clustered()[0].values()))
    x = x - x.mean(0)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    other = faiss.ITQTransform(32, 16, True)
    other.train(x)
    ours = fit_hasher({"all": x}, 16, "itq").project(x)

    def loss(v: np.ndarray) -> float:
        scale = np.abs(v).mean()  # the best common length of the corners
        return float(np.square(np.sign(v) * scale - v).sum() / np.square(v).sum())

    assert loss(ours) < 1.02 * loss(other.apply(x))


def test_itq_rotation_keeps_lengths_in_the_components() -> None:
    x = np.concatenate(list(clustered()[0].values()))
    hasher = fit_hasher({"all": x}, 16, "itq")
    np.testing.assert_allclose(hasher.matrix.T @ hasher.matrix, np.eye(16), atol=1e-5)


@pytest.mark.parametrize("by", WAYS)
def test_same_seed_same_bits_and_a_file_keeps_them(by: str, tmp_path: Path) -> None:
    views = clustered(200)[0]
    first, again = fit_hasher(views, 32, by, seed=3), fit_hasher(views, 32, by, seed=3)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    first.save(tmp_path / "h.safetensors")
    read = Hasher.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(read.code(views["image"]), first.code(views["image"]))
    assert (read.by, read.bits) == (by, 32)


def test_own_signs() -> None:
    u = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    np.testing.assert_array_equal(unpack(identity_hasher(16).code(u)), np.where(u >= 0, 1.0, -1.0))


@pytest.mark.parametrize(
    ("bits", "by", "words"),
    [
        (12, "itq", "multiple of 8"),
        (16, "itk", "did you mean 'itq'"),
        (16, "sign", "give --bits 32"),
        (64, "itq", "use lsh or learned"),
    ],
)
def test_refusals(bits: int, by: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_hasher(clustered(50)[0], bits, by)


def test_refuses_other_widths_and_broken_files(tmp_path: Path) -> None:
    views = clustered(50)[0]
    with pytest.raises(InputError, match="do not fit a hasher of vectors with 32"):
        fit_hasher(views, 16).code(views["image"][:, :8])
    with pytest.raises(InputError, match="needs two"):
        fit_hasher({"image": views["image"]}, 16, "learned")
    with pytest.raises(InputError, match="one common space"):
        fit_hasher({"image": views["image"], "points": views["points"][:, :8]}, 16)
    with pytest.raises(InputError, match="is gone"):
        Hasher.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no hasher"):
        Hasher.load(tmp_path / "bad.safetensors")

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from consilience.data import datasets
from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.decode import DecodeConfig
from consilience.data.loader import read
from consilience.data.mnist3d import digit_points
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError


def exposed_sides(image: np.ndarray) -> int:
    lit = {tuple(at) for at in np.argwhere(image > 0)}
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
    return sum((r + dr, c + dc) not in lit for r, c in lit for dr, dc in steps)


def test_one_lit_pixel_is_a_box_of_650_points() -> None:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[10, 20] = 1
    points, normals = digit_points(image)
    assert points.shape == normals.shape == (650, 3)
    np.testing.assert_allclose(np.ptp(points, axis=0), [1, 1 / 6, 1 / 6])
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-12)
    assert sorted({tuple(normal) for normal in normals}) == sorted(
        [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    )
    # Every point lies on the face its normal belongs to.
    half = np.array([1, 1 / 6, 1 / 6]) / 2
    np.testing.assert_allclose((points * normals).sum(1), np.abs(normals) @ half, atol=1e-12)


def test_an_inner_pixel_adds_fifty_points() -> None:
    ring = np.full((3, 3), 255, dtype=np.uint8)
    full = digit_points(ring)[0]
    ring[1, 1] = 0
    hole = digit_points(ring)[0]
    assert len(full) == 50 * 9 + 150 * 12
    assert len(hole) == len(full) - 50 + 4 * 150


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
@settings(max_examples=40, deadline=None)
def test_count_and_scale_of_any_image(image: np.ndarray) -> None:
    if not image.any():
        with pytest.raises(ValueError, match="no lit pixel"):
            digit_points(image)
        return
    points, normals = digit_points(image)
    assert len(points) == len(normals) == 50 * int((image > 0).sum()) + 150 * exposed_sides(image)
    assert np.ptp(points, axis=0).max() == pytest.approx(1)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-9)


def test_axes_are_depth_right_up() -> None:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[5:25, 14] = 255
    image[5, 14:20] = 255
    points, _ = digit_points(image)
    depth, right, up = points.T
    assert np.ptp(up) > np.ptp(right) > 0
    assert right[up > up.max() - 0.01].max() == right.max()
    assert np.ptp(depth) == pytest.approx(6 / 20)


def test_point_counts_of_the_test_digits(shared: Path) -> None:
    """Sheet, section 1: 9,700 to 34,800 points, mean 21,950, over the first 1000 test digits."""
    with np.load(shared / "mnist" / "mnist_test.npz") as archive:
        images = archive["images"][:1000]
    counts = np.array([50 * int((image > 0).sum()) + 150 * exposed_sides(image) for image in images])
    assert (counts.min(), counts.max()) == (9700, 34800)
    assert counts.mean() == pytest.approx(21950, abs=5)
    for i in (0, 500, 999):
        assert len(digit_points(images[i])[0]) == counts[i]


def test_the_embedded_table(mnist3d: Table) -> None:
    info = DATASETS["mnist3d"]
    assert mnist3d.modalities == info.modalities == {"image": Kind.GREY, "points": Kind.POINTS}
    for split, count in info.rows.items():
        assert len(mnist3d.select(f"split = '{split}'")) == count
    codes, names = mnist3d.labels("split = 'train'")
    assert names == [str(i) for i in range(info.classes)]
    assert np.bincount(codes).tolist() == [479, 563, 488, 493, 535, 434, 501, 550, 462, 495]
    batch = next(read(mnist3d, mnist3d.select()[:64], DecodeConfig(), 64))
    assert tuple(batch.values["image"].shape) == (64, 1, 28, 28)
    assert tuple(batch.values["points"].shape) == (64, 128, 3)
    assert batch.values["points"].norm(dim=2).max().item() == pytest.approx(1)


def test_pictures_and_clouds_are_of_one_digit(mnist3d: Table) -> None:
    """x right, y up: where the cloud is, there is ink (share of points on lit pixels, against a wrong
    partner)."""
    rows = mnist3d.select("split = 'test'")[:200]
    batch = next(read(mnist3d, rows, DecodeConfig(), 200))
    ink = batch.values["image"][:, 0].numpy() > 0

    def overlap(clouds: np.ndarray) -> float:
        hits = []
        for picture, cloud in zip(ink, clouds, strict=True):
            lit = np.argwhere(picture)
            span, middle = np.ptp(lit, axis=0), (lit.max(0) + lit.min(0)) / 2
            flat = np.stack([-cloud[:, 1], cloud[:, 0]], 1)
            flat = (flat - (flat.max(0) + flat.min(0)) / 2) / max(np.ptp(flat, axis=0)) * max(span) + middle
            at = flat.round().astype(int).clip(0, 27)
            hits.append(picture[at[:, 0], at[:, 1]].mean())
        return float(np.mean(hits))

    clouds = batch.values["points"].numpy()
    assert overlap(clouds) > 0.85
    assert overlap(np.roll(clouds, 1, axis=0)) < 0.6
    assert overlap(clouds * np.array([1, -1, 1])) < 0.8


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'mnist3d'"):
        read_dataset("mnist3")


def test_the_package_carries_file_and_attribution() -> None:
    folder = Path(datasets.__file__).parent / "embedded"
    assert 1_000_000 < (folder / "mnist3d.npz").stat().st_size < 4_000_000
    text = (folder / "ATTRIBUTION.txt").read_text()
    assert "LeCun" in text
    assert "Attribution-ShareAlike 3.0" in " ".join(text.split())

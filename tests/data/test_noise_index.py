from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.noise_index import (
    draw_noise_index,
    partners,
    read_noise_index,
    true_pairs,
    write_noise_index,
)
from consilience.errors import InputError

CAPTIONS, IMAGES = 145_000, 29_000


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "reference_noise" / "pc2_f30k_noise_index.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize(("name", "moved", "ratio"), [("f30k_02", 28_999, 0.2), ("f30k_06", 86_996, 0.6)])
def test_the_published_files_are_what_the_sheet_says(
    published: dict[str, np.ndarray], tmp_path: Path, name: str, moved: int, ratio: float,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "f30k_precomp_0.2"
    write_noise_index(path, published[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["f30k_precomp_0.2"], "no .npy is appended"
    with caplog.at_level(logging.WARNING):
        index = read_noise_index(path, CAPTIONS, IMAGES, 5)
    assert not caplog.messages
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, published[name])
    assert int((~true_pairs(index, 5)).sum()) == moved <= ratio * CAPTIONS
    assert (np.bincount(index, minlength=IMAGES) == 5).all()
    # our own draw: the same law. A chosen caption keeps its image when it meets one of the five equal numbers.
    own = draw_noise_index(CAPTIONS, 5, ratio, seed=0)
    assert abs(int((~true_pairs(own, 5)).sum()) - moved) <= 15
    assert (np.bincount(own, minlength=IMAGES) == 5).all()


@given(st.integers(0, 40), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_draw_is_a_reordering_and_repeatable(images: int, per_image: int, ratio: float, seed: int) -> None:
    n = images * per_image
    index = draw_noise_index(n, per_image, ratio, seed)
    clean = np.arange(n) // per_image
    np.testing.assert_array_equal(np.sort(index), clean)
    assert (index != clean).sum() <= np.floor(ratio * n + 1e-9)
    np.testing.assert_array_equal(index, draw_noise_index(n, per_image, ratio, seed))
    slow = np.array([index[j] == j // per_image for j in range(n)], dtype=bool)
    np.testing.assert_array_equal(true_pairs(index, per_image), slow)


def test_exactly_the_floor_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []
    real = np.random.default_rng

    class Spy:
        def __init__(self, seed: int) -> None:
            self.rng = real(seed)

        def permutation(self, values: int | np.ndarray) -> np.ndarray:
            if not isinstance(values, int):
                touched.append(len(values))
            return self.rng.permutation(values)

    monkeypatch.setattr(np.random, "default_rng", Spy)
    for n, ratio, expected in ((10, 0.7, 7), (10, 0.29, 2), (145_000, 0.2, 29_000), (7, 1.0, 7), (7, 0.0, 0)):
        draw_noise_index(n, 1, ratio, 0)
        assert touched.pop() == expected


def test_bad_draws() -> None:
    with pytest.raises(InputError, match=r"ratio 1\.5"):
        draw_noise_index(10, 5, 1.5, 0)
    with pytest.raises(InputError, match="12 captions are no multiple of 5"):
        draw_noise_index(12, 5, 0.2, 0)


def test_bad_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "noise.npy"
    with pytest.raises(InputError, match="does not exist; give the full name"):
        read_noise_index(path, 4, 2, 2)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="is no readable"):
        read_noise_index(path, 4, 2, 2)
    np.save(path, np.zeros((4, 1), np.int64))
    with pytest.raises(InputError, match="not one vector of whole numbers"):
        read_noise_index(path, 4, 2, 2)
    np.save(path, np.zeros(4))
    with pytest.raises(InputError, match="not one vector of whole numbers"):
        read_noise_index(path, 4, 2, 2)
    write_noise_index(path, np.array([0, 0, 1]))
    with pytest.raises(InputError, match="3 entries for 4 captions"):
        read_noise_index(path, 4, 2, 2)
    for wrong in (2, -1):
        write_noise_index(path, np.array([0, 0, wrong, 1]))
        with pytest.raises(InputError, match=f"entry 2 is image {wrong}, but there are 2 images"):
            read_noise_index(path, 4, 2, 2)
    write_noise_index(path, np.array([0, 0, 0, 1]))
    with caplog.at_level(logging.WARNING):
        assert read_noise_index(path, 4, 2, 2).tolist() == [0, 0, 0, 1]
    assert "does not keep 2 captions for every image" in caplog.text


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_partners_are_rows_of_the_named_image(images: int, per_image: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = images * per_image
    groups = np.arange(n) // per_image
    rows = rng.permutation(3 * n)[:n]
    index = draw_noise_index(n, per_image, 0.6, seed)
    found = partners(index, groups, rows)
    for j in range(n):
        first = next(k for k in range(n) if groups[k] == index[j])
        assert found[j] == (rows[j] if groups[j] == index[j] else rows[first])
    np.testing.assert_array_equal(found == rows, true_pairs(index, per_image))


def test_partners_that_cannot_be() -> None:
    rows = np.arange(3)
    with pytest.raises(InputError, match="entry 1 is image 7, which no row shows"):
        partners(np.array([0, 7, 2]), rows, rows)
    with pytest.raises(InputError, match="2 noise entries"):
        partners(np.array([0, 1]), rows, rows)
    assert partners(rows[:0], rows[:0], rows[:0]).tolist() == []

"""Masks of fixed counts, patches and their normalised targets, against loops."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.masking import hidden_count, normalised, patchify, random_masks, take, unpatchify


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_masks_split_all_places(total: int, share: float, seed: int) -> None:
    index = torch.arange(6) * 7
    count = hidden_count(total, share)
    if not 0 < count < total:
        with pytest.raises(InputError, match="at least one"):
            random_masks(total, share, KeyedRandom.of(index, seed))
        return
    visible, hidden = random_masks(total, share, KeyedRandom.of(index, seed))
    assert hidden.shape == (6, count)
    for row in range(6):
        assert sorted([*visible[row].tolist(), *hidden[row].tolist()]) == list(range(total))
        assert visible[row].tolist() == sorted(visible[row].tolist())
        assert hidden[row].tolist() == sorted(hidden[row].tolist())


def test_a_mask_belongs_to_its_sample_not_to_its_batch() -> None:
    index = torch.tensor([5, 9, 2, 40])
    whole = random_masks(16, 0.6, KeyedRandom.of(index, 3, 1))
    part = random_masks(16, 0.6, KeyedRandom.of(index[[3, 1]], 3, 1))
    assert torch.equal(whole[0][[3, 1]], part[0])
    assert torch.equal(whole[1][[3, 1]], part[1])
    other = random_masks(16, 0.6, KeyedRandom.of(index, 3, 2))
    assert not torch.equal(whole[0], other[0])


def test_every_choice_is_equally_likely() -> None:
    visible, _ = random_masks(5, 0.4, KeyedRandom.of(torch.arange(20_000), 0))
    seen = Counter(map(tuple, visible.tolist()))
    assert len(seen) == 10
    for times in seen.values():  # binomial with mean 2000 and standard deviation 42
        assert abs(times - 2000) < 5 * 43


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_patches_against_loops(channels: int, rows: int, columns: int, side: int, seed: int) -> None:
    images = torch.rand(2, channels, rows * side, columns * side, generator=torch.Generator().manual_seed(seed))
    patches = patchify(images, side)
    assert patches.shape == (2, rows * columns, side * side * channels)
    for r in range(rows):
        for c in range(columns):
            square = images[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
            for y in range(side):
                for x in range(side):
                    place = (y * side + x) * channels
                    found = patches[:, r * columns + c, place : place + channels]
                    assert torch.equal(found, square[:, :, y, x])
    assert torch.equal(unpatchify(patches, side, rows * side, columns * side), images)


def test_patches_need_a_divisor() -> None:
    with pytest.raises(InputError, match="divisor"):
        patchify(torch.zeros(1, 1, 28, 28), 5)


def test_targets_are_normalised_patch_by_patch() -> None:
    torch.manual_seed(0)
    patches = torch.rand(2, 3, 7) * 4 - 1
    patches[1, 2] = 0.25
    found = normalised(patches)
    for row in range(2):
        for place in range(3):
            values = [float(v) for v in patches[row, place].double()]
            mean = sum(values) / 7
            variance = sum((v - mean) ** 2 for v in values) / 6
            expected = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
            assert found[row, place].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[1, 2].abs().max() == 0


def test_taking_places_is_indexing() -> None:
    rows = torch.randn(3, 5, 2, requires_grad=True)
    places = torch.tensor([[0, 4], [1, 1], [3, 2]])
    out = take(rows, places)
    for i in range(3):
        for j in range(2):
            assert torch.equal(out[i, j], rows[i, places[i, j]])
    out.sum().backward()
    assert rows.grad is not None
    assert rows.grad[1, 1].tolist() == [2, 2]

"""Packed codes against loops written from their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.heads.codes import distances, pack, unpack


def slow_pack(row: list[float]) -> list[int]:
    out = [0] * (len(row) // 8)
    for k, value in enumerate(row):
        if value >= 0:
            out[k // 8] |= 1 << (k % 8)
    return out


def slow_distance(a: list[int], b: list[int]) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 17), st.integers(0, 1000))
def test_codes_against_loops_in_torch_and_numpy(n: int, m: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, v = (rng.integers(-2, 3, (rows, 8 * width)).astype(np.float32) for rows in (n, m))
    a, b = pack(u), pack(v)
    assert a.dtype == np.uint8
    assert a.tolist() == [slow_pack(row) for row in u.tolist()]
    np.testing.assert_array_equal(unpack(a), np.where(u >= 0, 1.0, -1.0))
    expected = [[slow_distance(x, y) for y in b.tolist()] for x in a.tolist()]
    found = distances(a, b)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    ta, tb = pack(torch.from_numpy(u)), pack(torch.from_numpy(v))
    assert ta.dtype == torch.uint8
    assert ta.numpy().tolist() == a.tolist()
    assert torch.equal(unpack(ta), torch.from_numpy(unpack(a)))
    assert distances(ta, tb).dtype == torch.int32
    assert distances(ta, tb).tolist() == expected


def test_zero_is_plus_one_and_bit_zero_is_first() -> None:
    u = torch.tensor([[0.0, -0.0, -1, -1, -1, -1, -1, 2.0, -1, 1, -1, -1, -1, -1, -1, -1]])
    assert pack(u).tolist() == [[0b10000011, 0b00000010]]
    assert pack(u.numpy()).tolist() == [[0b10000011, 0b00000010]]


def test_rows_that_are_not_contiguous_are_read_right() -> None:
    packed = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    assert distances(packed[::2], packed).tolist() == distances(packed[::2].copy(), packed).tolist()
    assert distances(packed[:, :4], packed[:, 4:]).tolist() == [
        [slow_distance(x, y) for y in packed[:, 4:].tolist()] for x in packed[:, :4].tolist()
    ]


def test_bad_codes_are_refused() -> None:
    for shape in ((3, 12), (3, 0), (8,)):
        with pytest.raises(InputError, match="multiple of 8"):
            pack(np.zeros(shape, dtype=np.float32))
    a, b = np.zeros((2, 2), dtype=np.uint8), np.zeros((2, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="one length"):
        distances(a, b)
    with pytest.raises(InputError, match="both kinds"):
        distances(a, torch.zeros(2, 2, dtype=torch.uint8))

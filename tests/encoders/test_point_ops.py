"""Farthest points, neighbours and groups against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.encoders.point_ops import farthest_points, group, groups_of, nearest_points
from consilience.errors import InputError


def clouds(seed: int, batch: int, n: int) -> torch.Tensor:
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_farthest(cloud: list[list[float]], count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        gaps = [min(sum((a - b) ** 2 for a, b in zip(p, cloud[c], strict=True)) for c in chosen) for p in cloud]
        chosen.append(gaps.index(max(gaps)))
    return chosen


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(0, 5))
def test_farthest_points_against_a_loop(seed: int, count: int, more: int) -> None:
    points = clouds(seed, 3, count + more)
    assert farthest_points(points, count).tolist() == [slow_farthest(cloud, count) for cloud in points.tolist()]


@given(st.integers(0, 1000), st.integers(1, 8))
def test_nearest_points_against_a_loop(seed: int, count: int) -> None:
    points, centres = clouds(seed, 2, 8), clouds(seed + 1, 2, 3)
    found = nearest_points(centres, points, count).tolist()
    for b in range(2):
        for g in range(3):
            gaps = [float((points[b, i] - centres[b, g]).square().sum()) for i in range(8)]
            assert found[b][g] == sorted(range(8), key=lambda i, gaps=gaps: gaps[i])[:count]


def test_groups_are_relative_and_start_with_their_centre() -> None:
    points = clouds(0, 4, 30)
    patches, centres = group(points, *groups_of(points, 5, 6))
    rows, near = farthest_points(points, 5), nearest_points(centres, points, 6)
    for b in range(4):
        for g in range(5):
            assert torch.equal(centres[b, g], points[b, rows[b, g]])
            for s in range(6):
                assert torch.equal(patches[b, g, s], points[b, near[b, g, s]] - centres[b, g])
    assert patches[:, :, 0].abs().max() == 0


def test_equal_points_do_no_harm() -> None:
    same = torch.ones(2, 8, 3)
    patches, centres = group(same, *groups_of(same, 4, 3))
    assert patches.abs().max() == 0
    assert (centres == 1).all()


def test_too_few_points_are_refused() -> None:
    with pytest.raises(InputError, match="9 groups asked of clouds of 8 points"):
        farthest_points(torch.zeros(1, 8, 3), 9)
    with pytest.raises(InputError, match="groups of 9 asked"):
        groups_of(torch.zeros(1, 8, 3), 2, 9)

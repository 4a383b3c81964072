"""Farthest point sampling and local groups of point clouds, batched, in plain torch, on any device.

C. R. Qi, L. Yi, H. Su, L. J. Guibas, "PointNet++", NeurIPS 2017 (sampling and grouping). Both depend on distances
only: rotation, translation and one scale for all axes leave the chosen indices as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from consilience.errors import InputError


@torch.no_grad()
def farthest_points(points: Float[Tensor, "b n 3"], count: int) -> Int64[Tensor, "b {count}"]:
    """Rows of ``count`` points of each cloud: row 0, then again and again the point farthest from all chosen ones.

    Among equally far points the first counts. Distances in float32 or wider. O(count n) a cloud.
    Raises :class:`InputError` when a cloud has fewer than ``count`` points.
    """
    clouds, n, _ = points.shape
    if not 1 <= count <= n:
        raise InputError(f"{count} groups asked of clouds of {n} points; use 1 to {n} groups or more points")
    x, y, z = (points if points.dtype == torch.float64 else points.float()).unbind(2)
    chosen = torch.zeros(clouds, count, dtype=torch.int64, device=points.device)
    nearest = torch.full_like(x, torch.inf)
    last = chosen[:, :1]
    for place in range(1, count):
        gap = (x - x.gather(1, last)).square_()
        gap += (y - y.gather(1, last)).square_()
        gap += (z - z.gather(1, last)).square_()
        nearest = torch.minimum(nearest, gap)
        last = nearest.argmax(1, keepdim=True)
        chosen[:, place : place + 1] = last
    return chosen


@torch.no_grad()
def nearest_points(
    centres: Float[Tensor, "b g 3"], points: Float[Tensor, "b n 3"], count: int
) -> Int64[Tensor, "b g {count}"]:
    """Rows of the ``count`` points nearest to each centre (Euclidean, exact), nearest first.

    Raises :class:`InputError` when a cloud has fewer than ``count`` points.
    """
    n = points.shape[1]
    if not 1 <= count <= n:
        raise InputError(f"groups of {count} asked of clouds of {n} points; use 1 to {n} points a group or more points")
    kind = torch.float64 if points.dtype == torch.float64 else torch.float32
    gaps = torch.cdist(centres.to(kind), points.to(kind), compute_mode="donot_use_mm_for_euclid_dist")
    return gaps.topk(count, dim=2, largest=False, sorted=True).indices


def groups_of(
    points: Float[Tensor, "b n 3"], groups: int, size: int
) -> tuple[Int64[Tensor, "b {groups}"], Int64[Tensor, "b {groups} {size}"]]:
    """(centres, members): rows of ``groups`` farthest points and of the ``size`` points nearest to each of them."""
    own = torch.arange(points.shape[0], device=points.device)[:, None]
    centres = farthest_points(points, groups)
    return centres, nearest_points(points[own, centres], points, size)


def group(
    points: Float[Tensor, "b n 3"], centres: Int64[Tensor, "b g"], members: Int64[Tensor, "b g s"]
) -> tuple[Float[Tensor, "b g s 3"], Float[Tensor, "b g 3"]]:
    """(patches, centres): the points of each group relative to its centre, and where the centres are.

    The centre itself, the zero vector, is the first of its patch. Under autocast coordinates stay as they are.
    """
    own = torch.arange(points.shape[0], device=points.device)[:, None]
    middle = points[own, centres]
    return points[own[:, :, None], members] - middle[:, :, None], middle

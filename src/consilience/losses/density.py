"""Losses of density maps against points: the Bayesian loss, and squared error to a map of the points.

Z. Ma, X. Wei, X. Hong, Y. Gong, "Bayesian Loss for Crowd Count Estimation with Point Supervision", ICCV 2019; the
second form of the background is that of H. Lin et al., "Boosting Crowd Counting via Multifaceted Attention", CVPR 2022.
Both releases hold a matrix of points times cells for every picture and loop over the pictures. A Gaussian of a distance
in the plane is a product of one along x and one along y, so the sums over points and over cells are matrix products: no
such matrix is kept, a batch is one computation, and nothing is cut off.

Everywhere: ``density`` float [b, 1, h, w], a cell standing for ``stride`` pixels along a side; ``points`` float
[b, m, 2], (x, y) in pixels of the picture, rows of NaN beyond a picture's own.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Background = Literal["ratio", "gap", "none"]
"""Squared distance of the background from a cell: (beta s)^2 / (d^2 + 1e-5) (BL), (beta s - d)^2 (MAN), or no
background; d is the distance to the nearest point, s the shorter side of the picture."""
_CHUNK = 1 << 20  # distances held at a time: 4 MiB, which stay in the cache
_NOTHING = 1e-250  # a posterior's denominator below this has lost its digits
_REACH = 4.0  # standard deviations at which Gaussians of maps end


def bayesian_loss(
    density: Float[Tensor, "b 1 h w"],
    points: Float[Tensor, "b m 2"],
    stride: float,
    sigma: float,
    side: Float[Tensor, " b"],
    background: Background = "ratio",
    beta: float = 1.0,
) -> Float[Tensor, " b"]:
    """sum_n |1 - sum_j P(n|j) D_j| + |sum_j P(bg|j) D_j|, one value a picture (BL, equations 5 to 10).

    ``sigma`` in pixels; ``side``: s, shorter side of each picture before it was cropped, in the pixels of ``points``.
    A picture without points costs the sum of its density.
    """
    counts, empty = expected_counts(density, points, stride, sigma, side, background, beta)
    missed = (1 - counts).abs().masked_fill(points.isnan().any(2), 0.0)
    return missed.sum(1) + empty.abs()


def expected_counts(
    density: Float[Tensor, "b 1 h w"],
    points: Float[Tensor, "b m 2"],
    stride: float,
    sigma: float,
    side: Float[Tensor, " b"],
    background: Background = "ratio",
    beta: float = 1.0,
) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
    """What the density assigns to each point, sum_j P(n|j) D_j (0 for padding), and to the background. Together they
    are the sum of the density. Computed in float64; where all Gaussians are 0 the nearest takes the cell, which is
    their limit."""
    with torch.no_grad():
        there = ~points.isnan().any(2)
        dx, dy = _exponents(points, density.shape[2:], stride, sigma)
        nearest = _nearest(dx, dy.masked_fill(~there[:, :, None], math.inf))[0]
        gx, gy = torch.exp(-dx) * there[:, :, None], torch.exp(-dy)
        mass = torch.bmm(gy.transpose(1, 2), gx)
        if background == "none":
            empty = torch.zeros_like(mass)
            is_empty = torch.zeros_like(nearest, dtype=torch.bool)
        else:
            reach, twice = (beta * side.double())[:, None, None], 2 * sigma**2
            if background == "ratio":
                away = reach**2 / (nearest * twice + 1e-5) / twice
            else:
                away = (reach - (nearest * twice).sqrt()) ** 2 / twice
            empty, is_empty = torch.exp(-away), away <= nearest
        is_empty = is_empty | ~there.any(1)[:, None, None]
        total = mass + empty
        far = total < _NOTHING
    cells = density[:, 0].double()
    shares = (cells / total.masked_fill(far, 1.0)).masked_fill(far, 0.0)
    counts = (gy * torch.bmm(gx, shares.transpose(1, 2))).sum(2)
    none = (shares * empty).sum((1, 2))
    if bool(far.any()):
        lost = cells.masked_fill(~far, 0.0)
        none = none + lost.masked_fill(~is_empty, 0.0).sum((1, 2))
        who = _nearest(dx, dy.masked_fill(~there[:, :, None], math.inf), True)[1]
        counts = counts.scatter_add(1, who.flatten(1), lost.masked_fill(is_empty, 0.0).flatten(1))
    return counts.float(), none.float()


def density_maps(
    points: Float[Tensor, "b m 2"], height: int, width: int, stride: float, sigma: float
) -> Float[Tensor, "b 1 h w"]:
    """The mass of a Gaussian round every point in every cell, float32. Gaussians end at four standard deviations and
    have mass 1 up to there, so that a point whose window lies inside the picture adds exactly 1. Never clipped."""
    there = ~points.isnan().any(2)
    x, y = (_cell_masses(points[:, :, axis], count, stride, sigma) for axis, count in enumerate((width, height)))
    return torch.bmm(y.transpose(1, 2), x * there[:, :, None]).float()[:, None]


def map_loss(
    density: Float[Tensor, "b 1 h w"], points: Float[Tensor, "b m 2"], stride: float, sigma: float
) -> Float[Tensor, " b"]:
    """Squared error to :func:`density_maps`, summed over cells, and a tenth of the error of the count, one value a
    picture."""
    target = density_maps(points, density.shape[2], density.shape[3], stride, sigma)
    error = density.float() - target
    count = density.float().sum((1, 2, 3)) - (~points.isnan().any(2)).sum(1)
    return error.square().sum((1, 2, 3)) + 0.1 * count.abs()


def _exponents(
    points: Float[Tensor, "b m 2"], size: torch.Size, stride: float, sigma: float
) -> tuple[Float[Tensor, "b m w"], Float[Tensor, "b m h"]]:
    """(c - y)^2 / (2 sigma^2) along each axis, float64; padding lies at 0."""
    known = torch.nan_to_num(points.double(), nan=0.0)
    height, width = size

    def along(axis: int, count: int) -> Tensor:
        centres = (torch.arange(count, device=points.device, dtype=torch.float64) + 0.5) * stride
        return (centres - known[:, :, axis, None]) ** 2 / (2 * sigma**2)

    return along(0, width), along(1, height)


def _nearest(
    dx: Float[Tensor, "b m w"], dy: Float[Tensor, "b m h"], whose: bool = False
) -> tuple[Float[Tensor, "b h w"], Int64[Tensor, "b h w"]]:
    """The least exponent over a picture's points (float64, of float32 sums; infinity without points), and, if asked
    for, whose it is, else 0. A chunk of points is looked at a time."""
    batch, count, width = dx.shape
    height = dy.shape[2]
    least = torch.full((batch, height, width), math.inf, device=dx.device)
    who = torch.zeros_like(least, dtype=torch.int64)
    step = max(1, _CHUNK // max(1, batch * height * width))
    across, down = dx.float(), dy.float()
    for start in range(0, count, step):
        part = slice(start, start + step)
        away = down[:, part, :, None] + across[:, part, None, :]
        if whose:
            found, place = away.min(1)
            who = torch.where(found < least, place + start, who)
        else:
            found = away.amin(1)
        least = torch.minimum(least, found)
    return least.double(), who


def _cell_masses(place: Float[Tensor, "b m"], count: int, stride: float, sigma: float) -> Float[Tensor, "b m c"]:
    """float64 [b, m, count]: the mass of a Gaussian round each place in each cell of one axis."""
    edges = torch.arange(count + 1, device=place.device, dtype=torch.float64) * stride
    away = ((edges - torch.nan_to_num(place.double(), nan=0.0)[:, :, None]) / sigma).clamp(-_REACH, _REACH)
    below = torch.erf(away / math.sqrt(2))
    return (below[:, :, 1:] - below[:, :, :-1]) / (2 * math.erf(_REACH / math.sqrt(2)))

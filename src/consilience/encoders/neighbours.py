"""Nearest neighbours, and batch norm + maximum over them without storing the edges."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from consilience.encoders.norm import BatchNorm2d
from consilience.errors import InputError


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns of the k largest scores of each row, ties by column; ``scores`` [R, N] on the CPU.

    torch.topk looks at each value through a pair (value, index), which is slow; here a vectorised bound goes
    first: the k-th largest of the maxima of G > k groups is at most the k-th largest score, and few scores
    reach it.
    """
    rows, n = scores.shape
    groups = max(32, 3 * k)
    if n < 4 * groups:
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    size = n // groups
    maxima = scores[:, : size * groups].reshape(rows, size, groups).amax(1)
    bound = maxima.topk(k, sorted=False).values.amin(1, keepdim=True)
    row, column = (scores >= bound).nonzero().unbind(1)
    counts = torch.bincount(row, minlength=rows)
    wide = max(k, int(counts.max()))
    place = torch.arange(len(row)) + row * wide - (counts.cumsum(0) - counts)[row]
    candidates = scores.new_full((rows * wide,), -torch.inf)
    candidates[place] = scores[row, column]
    columns = torch.zeros(rows * wide, dtype=torch.int64)
    columns[place] = column
    order = candidates.view(rows, wide).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns.view(rows, wide).gather(1, order)


@torch.no_grad()
def knn(x: Float[Tensor, "b n c"], k: int) -> Int64[Tensor, "b n k"]:
    """The ``k`` nearest rows of each row within its cloud (Euclidean, exact), nearest first, itself included.

    On the CPU equal scores go to the lower row number. Distances are taken in float32 or wider.
    Raises :class:`InputError` when a cloud has fewer than ``k`` rows.
    """
    clouds, n, _ = x.shape
    if not 1 <= k <= n:
        raise InputError(f"{k} neighbours asked of clouds of {n} points; use 1 to {n} neighbours or more points")
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        x = x - x.mean(1, keepdim=True)  # smaller norms, so less cancellation below
        norms = x.square().sum(2)
        scores = torch.baddbmm(norms[:, None, :], x, x.transpose(1, 2), beta=-1, alpha=2)
    scores.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # rounding must not push a row out of its own list
    if x.device.type == "cpu":
        return _best(scores.view(clouds * n, n), k).view(clouds, n, k)
    return scores.topk(k).indices


class _NeighbourExtreme(torch.autograd.Function):
    """a[j*] for j* = argmax over j in rows[i] of sign * a[j], channel by channel.

    A float32 fills only 24 of the 53 mantissa bits of a double: the row number goes into the spare low bits,
    so one vectorised maximum finds value and place. Exact for float32 up to 2^29 rows, ties settled by row
    number alone; for float64 values differing by less than 2^-(52 - bits) count as equal.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, sign: Tensor, rows: Tensor) -> Tensor:
        n, channels = a.shape
        low = (1 << max(1, (n - 1).bit_length())) - 1
        table = (a * sign).double().view(torch.int64)
        table = table.bitwise_and_(~low).bitwise_or_(torch.arange(n, device=a.device)[:, None])
        table = table.view(torch.float64)
        best = table.new_empty((rows.shape[0], channels))
        # Chunks that stay in the cache (CPU) or in a bounded piece of memory (GPU).
        step = max(1, (1 << (18 if a.device.type == "cpu" else 25)) // (rows.shape[1] * channels))
        for start in range(0, rows.shape[0], step):
            part = rows[start : start + step]
            edges = table.index_select(0, part.reshape(-1)).view(*part.shape, channels)
            torch.amax(edges, 1, out=best[start : start + step])
        packed = best.view(torch.int64)
        winner = packed.bitwise_and(low).clamp_(max=n - 1).int()  # the bits of a NaN can be anything
        value = packed.bitwise_and_(~low).view(torch.float64).to(a.dtype) * sign
        ctx.save_for_backward(winner)
        ctx.rows_in = n
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (winner,) = ctx.saved_tensors
        out = grad.new_zeros((ctx.rows_in, grad.shape[1]))
        return out.scatter_add_(0, winner.long(), grad), None, None


class _EdgeMoments(torch.autograd.Function):
    """Mean and sum of squared deviations, a channel, of e_ij = a_j + c_i over all i and j in rows[i]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        m, k = rows.shape
        counts = torch.bincount(rows.view(-1), minlength=a.shape[0]).to(a.dtype)
        mean_a, mean_c = (counts @ a) / (m * k), c.mean(0)
        a, c = a - mean_a, c - mean_c
        sums = F.embedding_bag(rows, a, mode="sum")
        squares = counts @ a.square() + k * c.square().sum(0) + 2 * (c * sums).sum(0)
        ctx.save_for_backward(a, c, rows, counts, sums)
        return mean_a + mean_c, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_squares: Tensor) -> tuple[Tensor, Tensor, None]:
        a, c, rows, counts, sums = ctx.saved_tensors
        m, k = rows.shape
        even, twice = grad_mean / (m * k), 2 * grad_squares
        back = torch.zeros_like(a)
        for slot in rows.t().contiguous():
            back.index_add_(0, slot, c)
        grad_a = torch.addcmul(even, a, twice).mul_(counts[:, None]).addcmul_(back, twice)
        grad_c = torch.addcmul(k * even, c, k * twice).addcmul_(sums, twice)
        return grad_a, grad_c, None


def neighbour_max_norm(
    a: Float[Tensor, "b n c"],
    c: Float[Tensor, "b n c"],
    neighbours: Int64[Tensor, "b n k"],
    norm: BatchNorm2d,
) -> Float[Tensor, "b n c"]:
    """max over j in neighbours(i) of BN(a_j + c_i), where BN takes the B n k edges as its batch.

    Equal to ``norm`` on the edges [B, C, n, k] followed by ``amax`` over k, running moments included, with
    nothing of that size stored for the backward pass. ``norm`` must be affine. The gradient of a tie goes to
    one neighbour. Computes and returns float32 (float64 for float64 input), under autocast too.
    """
    clouds, n, k = neighbours.shape
    first = torch.arange(clouds, device=a.device) * n
    rows = (neighbours + first[:, None, None]).view(clouds * n, k)
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, c = a.flatten(0, 1).to(wide), c.flatten(0, 1).to(wide)
    sign = torch.where(norm.weight < 0, -1.0, 1.0).to(wide)
    with torch.autocast(a.device.type, enabled=False):  # neighbour counts above 256 do not fit bfloat16
        extreme: Tensor = _NeighbourExtreme.apply(a, sign, rows)  # type: ignore[no-untyped-call]
        if norm.uses_batch:
            mean, squares = _EdgeMoments.apply(a, c, rows)  # type: ignore[no-untyped-call]
            mean, variance = norm.settle(mean, squares, rows.numel())
        else:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, variance = norm.running_mean, norm.running_var
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        return torch.addcmul(shift, extreme + c, scale).view(clouds, n, -1)

"""The two collectives that losses, banks and batch norms need, exact under autograd, identities in one process.

Convention. With W ranks the objective that is differentiated is the *sum* of the ranks' losses; DDP then
averages parameter gradients over ranks. When every rank computes the same loss from gathered tensors this
gives the gradient of one process on the joined batch (tested in ``tests/test_distributed.py``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together (1 when ``torch.distributed`` is not running)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's position among them (0 when alone)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of ``x`` over all ranks, differentiable; ``x`` itself when there is one process."""
    if world_size() == 1:
        return x
    out: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return out


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, float[sum_r n_r, ...], differentiable; ranks may hold different counts.

    ``x``: [n_r, ...] on each rank. Returns ``x`` itself when there is one process.
    """
    if world_size() == 1:
        return x
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = x.shape[0]
    dist.all_reduce(counts)
    sizes = [int(n) for n in counts]
    start = sum(sizes[: rank()])
    joined = x.new_zeros((sum(sizes), *x.shape[1:]))
    joined[start : start + x.shape[0]] = x
    if x.dtype == torch.bool:
        return sum_over_ranks(joined.to(torch.int8)).bool()
    return sum_over_ranks(joined)


def from_first(x: Tensor) -> Tensor:
    """Rank 0's values of ``x`` on every rank (``x`` itself when there is one process): decisions are taken once."""
    if world_size() == 1:
        return x
    out = x.contiguous().clone()
    dist.broadcast(out, src=0)
    return out

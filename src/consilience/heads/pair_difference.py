"""The inner product of SGRAF's cost: a linear layer on squared differences of every word and its picture context.

For a batch of 128 pairs the differences are a tensor of 128 x 128 x words x 1024 numbers. It is never held: forward and
backward make it in tiles that stay in the cache, and backward makes it again instead of keeping it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_TILE, TILE = 1 << 20, 1 << 28
"""Bytes of a tile of differences: a core's cache, or what keeps an accelerator busy."""


def _step(words: Tensor) -> int:
    """Images a tile."""
    row = words.shape[1] * words.shape[2] * words.element_size()
    return max(1, (CPU_TILE if words.device.type == "cpu" else TILE) // max(1, row))


def _tile(mix: Tensor, regions: Tensor, words: Tensor, start: int, stop: int) -> Tensor:
    own = words if words.shape[0] == 1 else words[start:stop]
    return torch.baddbmm(own, mix[start:stop], regions[start:stop], beta=-1)


class _SquaredDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mix: Tensor, regions: Tensor, words: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(mix, regions, words, weight)
        out = mix.new_empty(*mix.shape[:2], weight.shape[0])
        step = _step(words)
        for start in range(0, len(mix), step):
            squares = _tile(mix, regions, words, start, start + step).square_()
            torch.addmm(bias, squares.flatten(0, 1), weight.t(), out=out[start : start + step].view(-1, len(weight)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        mix, regions, words, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_mix, to_regions = torch.empty_like(mix), torch.empty_like(regions)
        to_words, to_weight = torch.zeros_like(words), torch.zeros_like(weight)
        twice, step = 2 * weight, _step(words)
        for start in range(0, len(mix), step):
            stop = min(start + step, len(mix))
            difference = _tile(mix, regions, words, start, stop)
            rows = grad[start:stop].flatten(0, 1)
            down = (rows @ twice).view_as(difference).mul_(difference)
            to_weight.addmm_(rows.t(), difference.square_().flatten(0, 1))
            torch.bmm(down, regions[start:stop].transpose(1, 2), out=to_mix[start:stop])
            torch.bmm(mix[start:stop].transpose(1, 2), down, out=to_regions[start:stop])
            if len(words) == 1:
                to_words -= down.sum(0)
            else:
                to_words[start:stop] = -down
        return to_mix, to_regions, to_words, to_weight, grad.sum((0, 1))


def squared_difference(
    mix: Float[Tensor, "k m r"],
    regions: Float[Tensor, "k r e"],
    words: Float[Tensor, "g m e"],
    weight: Float[Tensor, "s e"],
    bias: Float[Tensor, " s"],
) -> Float[Tensor, "k m s"]:
    """weight (mix regions - words)^2 + bias for every image k and word m; differentiable once.

    ``words`` are shared by all images (g = 1) or each image's own (g = k).
    """
    out: Tensor = _SquaredDifference.apply(mix, regions, words, weight, bias)  # type: ignore[no-untyped-call]
    return out

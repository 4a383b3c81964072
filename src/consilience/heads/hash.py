"""Hash heads: from encoded tokens to vectors whose signs are a code.

``tanh`` pushes the vectors towards -1 and +1 (continuation, Z. Cao et al., "HashNet", ICCV 2017; DJSRH, S. Su et al.,
ICCV 2019, raises its slope epoch by epoch). ``ste`` rounds in training and hands the gradient through the rounding, as
ConMH does (Y. Wang et al., AAAI 2023). Zero belongs to +1 here and everywhere (:mod:`consilience.heads.codes`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.distributed import gather_rows

Alpha = Literal["constant", "sqrt"]
Kind = Literal["tanh", "ste"]
Norm = Literal["batch", "layer", "none"]
Pool = Literal["feature", "code_mean"]


def slope(schedule: Alpha, epoch: int) -> float:
    """alpha of tanh(alpha h): 1, or sqrt(1 + epoch) as in DJSRH."""
    return 1.0 if schedule == "constant" else math.sqrt(1 + epoch)


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.where(h >= 0, 1.0, -1.0).to(h.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        h: Tensor = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        return grads[0] * (h.abs() < 1)


def straight_through(h: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """Exactly -1 or +1 (h >= 0); the gradient passes where |h| < 1 and stops elsewhere (hard sigmoid, rounded)."""
    out: Tensor = _Signs.apply(h)  # type: ignore[no-untyped-call]
    return out


def prefixes(bits: int, nested: bool) -> list[int]:
    """Code lengths that a nested (matryoshka) head serves: 16, 32, ... below ``bits``, and ``bits``; else it alone."""
    shorter = [1 << power for power in range(4, 20) if 1 << power < bits]
    return [*(shorter if nested else []), bits]


class BitNorm(nn.Module):
    """Batch norm of K numbers without a shift: every bit is centred on the batch of all processes, so that it is as
    often set as not, and one learned gain a bit remains. The running moments follow the calls that ask for it alone:
    a head that reads full and masked inputs is used on full ones."""

    mean: Tensor
    variance: Tensor

    def __init__(self, bits: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.gain = nn.Parameter(torch.ones(bits))
        self.register_buffer("mean", torch.zeros(bits))
        self.register_buffer("variance", torch.ones(bits))

    def forward(self, h: Float[Tensor, "*n k"], follow: bool = True) -> Float[Tensor, "*n k"]:
        """float32, the same shape. In evaluation mode by the running moments: no row depends on another."""
        h, mean, variance = h.float(), self.mean, self.variance
        if self.training:
            rows = gather_rows(h.flatten(0, -2))
            variance, mean = torch.var_mean(rows, 0, correction=0)
            if follow:
                with torch.no_grad():
                    self.mean.lerp_(mean, self.momentum)
                    self.variance.lerp_(variance * (len(rows) / max(1, len(rows) - 1)), self.momentum)
        return (h - mean) * torch.rsqrt(variance + self.epsilon) * self.gain


class HashHead(nn.Module):
    """[CLS, tokens] of width d to vectors of K numbers.

    pool = feature: one vector from CLS beside the maximum over the tokens, 2d -> d -> K. pool = code_mean (ConMH):
    every token through d -> d -> K to its own code, then their mean. ``norm`` of the K numbers: over the batch
    (:class:`BitNorm`), over the numbers of one sample (ConMH), or none.
    """

    alpha: Tensor

    def __init__(
        self, width: int, bits: int, kind: Kind = "tanh", norm: Norm = "batch", pool: Pool = "feature"
    ) -> None:
        super().__init__()
        self.kind, self.pool = kind, pool
        inputs = 2 * width if pool == "feature" else width
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, bits))
        self.norm: nn.Module = {"batch": BitNorm, "layer": nn.LayerNorm, "none": nn.Identity}[norm](bits)
        self.register_buffer("alpha", torch.ones(()))

    def _numbers(self, tokens: Float[Tensor, "b l d"], follow: bool) -> Float[Tensor, "b ..."]:
        """h: [B, K], or [B, l - 1, K] under code_mean; float32."""
        each = self.pool == "code_mean"
        h = self.layers(tokens[:, 1:] if each else torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], 1))
        normed: Tensor = self.norm(h, follow) if isinstance(self.norm, BitNorm) else self.norm(h.float())
        return normed

    def forward(self, tokens: Float[Tensor, "b l d"], follow: bool = True) -> Float[Tensor, "b k"]:
        """u for the losses, float32: in (-1, 1), or exactly -1 and +1 (their mean over tokens under code_mean).
        ``follow``: whether :class:`BitNorm` takes these inputs into its running moments."""
        h = self._numbers(tokens, follow)
        u = torch.tanh(self.alpha * h) if self.kind == "tanh" else straight_through(h)
        return u.mean(1) if self.pool == "code_mean" else u

    def real(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b k"]:
        """u for ranking: as :meth:`forward`, but a rounded code's numbers before the rounding, clipped to [-1, 1], so
        that a query keeps more than its signs. The signs are the same."""
        if self.kind == "tanh" or self.pool == "code_mean":
            return self.forward(tokens, False)
        return self._numbers(tokens, False).clamp(-1, 1)

"""Random numbers that belong to a sample, not to a process.

Every draw is a hash of (seed, epoch, sample index, slot). A sample therefore gets the same view whatever the
batch, the rank or the moment of resumption: one process and many, an uninterrupted and a resumed run, agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK = (1 << 64) - 1
_SLOT = 1_000_003  # counters between slots


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on int64 tensors; arithmetic wraps modulo 2^64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        logical = (x >> shift) & ((1 << (64 - shift)) - 1)
        x = (x ^ logical) * _signed(factor)
    return x


@dataclass(frozen=True)
class KeyedRandom:
    """Draws for the samples ``index`` under one ``key`` (build the key with :meth:`of`)."""

    key: int
    index: Int64[Tensor, " b"]

    @classmethod
    def of(cls, index: Int64[Tensor, " b"], *parts: int) -> KeyedRandom:
        """Draws for ``index`` under the integers ``parts`` (seed, phase, epoch, view, ...)."""
        key = 0
        for part in parts:
            key = int(_mix(torch.tensor(_signed(key * 0x9E3779B97F4A7C15 + part + 1))))
        return cls(key, index)

    def uniform(self, slot: int, low: float, high: float, size: int = 1) -> Float[Tensor, "b size"]:
        """Uniform float32 numbers in [low, high), ``size`` a sample; another ``slot`` gives independent ones."""
        bits = self._bits(torch.arange(size, device=self.index.device) + slot * _SLOT)
        return bits * ((high - low) / (1 << 24)) + low

    def units(self, slots: Sequence[int]) -> Float[Tensor, "b n"]:
        """Many draws in one pass: column i holds ``uniform(slots[i], 0, 1)``."""
        return self._bits(torch.tensor([slot * _SLOT for slot in slots], device=self.index.device)) * (1 / (1 << 24))

    def _bits(self, counters: Int64[Tensor, " n"]) -> Float[Tensor, "b n"]:
        """Whole numbers below 2^24: every one is exact in float32."""
        counter = self.index[:, None] * _signed(0x9E3779B97F4A7C15) + _mix(counters + _signed(self.key))[None]
        return ((_mix(counter) >> 40) & ((1 << 24) - 1)).to(torch.float32)

    def normal(self, slot: int, size: int = 1) -> Float[Tensor, "b size"]:
        """Standard normal float32 numbers (Box-Muller), ``size`` a sample."""
        u = 1.0 - self.uniform(slot, 0.0, 1.0, size)
        angle = self.uniform(slot + 500_009, 0.0, 2 * math.pi, size)
        return torch.sqrt(-2.0 * torch.log(u)) * torch.cos(angle)

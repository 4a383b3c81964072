"""What every encoder is: a module with a width that turns a batch of one modality into feature vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A module whose ``forward`` maps a batch of one ``Kind`` to float [B, width]."""

    width: int
    """Number of columns of the output, before any projection head."""

    @abstractmethod
    def forward(self, x: Tensor) -> Float[Tensor, "b width"]:
        """Features of a batch laid out as ``consilience.data.schema.Kind`` says, images scaled to [0, 1]."""


class SlotEncoder(Encoder):
    """An encoder that also gives one vector for every part of a sample: words, regions, patches."""

    slot_width: int
    """Number of columns of a slot; equal to ``width`` unless the class says otherwise."""

    @abstractmethod
    def slots(self, x: Tensor) -> tuple[Float[Tensor, "b l slot_width"], Bool[Tensor, "b l"]]:
        """Vectors of the parts and the mask of those that exist; the others are zeros. ``l`` depends on the shape of
        ``x`` only, never on its contents, so that slots of several processes can be joined."""

    def forward(self, x: Tensor) -> Float[Tensor, "b width"]:
        """The mean of the slots that exist, zeros where there is none."""
        return mean_of_slots(*self.slots(x))


class MapEncoder(Encoder):
    """An encoder of pictures that also gives the feature maps of its stages; its features are the mean of the last."""

    channels: tuple[int, ...]
    """Channels of each stage's map."""
    strides: tuple[int, ...]
    """Pixels of the input, along a side, that one place of each stage's map stands for."""

    @abstractmethod
    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Maps float [B, channels, h, w] of all stages after their non-linearity, the deepest last, of pictures in
        [0, 1]."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        """The mean of the deepest map over its places."""
        return self.maps(x)[-1].mean((2, 3))


def mean_of_slots(slots: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """Mean over the slots in ``mask``, zeros for a row without any."""
    keep = mask.unsqueeze(-1).to(slots.dtype)
    return (slots * keep).sum(1) / keep.sum(1).clamp_min(1)


def unit(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """x / (|x| + 1e-8) along the last axis, as SCAN and SGRAF normalise; zeros stay zeros."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / (length + 1e-8)


def pad_slots(
    slots: Float[Tensor, "b k d"], mask: Bool[Tensor, "b l"]
) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Slots computed for the first k of l places, extended by zeros, and zeros wherever ``mask`` is false."""
    kept = slots * mask[:, : slots.shape[1], None]
    return F.pad(kept, (0, 0, 0, mask.shape[1] - slots.shape[1])), mask

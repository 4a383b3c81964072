"""Classifiers over pairs without class labels: one head for both modalities of a pair."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.heads.projection import classifier


def fixed_slots(slots: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"], count: int) -> Float[Tensor, "b {count} e"]:
    """Any number of slots brought to ``count``: fewer are centred among zeros, (count - n) // 2 of them in front; more
    are interpolated linearly along the slots. Each sample by its own number of slots, so that its result does not
    depend on the longest caption of its batch (PC2's release depends on it)."""
    lengths = mask.sum(1).clamp(min=1)
    place = torch.arange(count, device=slots.device)[None].expand(len(slots), count)
    short = lengths[:, None] <= count
    front = (count - lengths[:, None]) // 2
    # align_corners=False, as torch's own linear interpolation places the samples
    scaled = ((place + 0.5) * (lengths[:, None] / count) - 0.5).clamp(min=0)
    position = torch.where(short, (place - front).to(scaled.dtype), scaled)
    inside = (position >= 0) & (position <= lengths[:, None] - 1) | ~short
    low = position.floor().clamp(min=0).long().clamp(max=slots.shape[1] - 1)
    high = torch.minimum(low + 1, lengths[:, None] - 1)
    share = (position - low).clamp(0, 1)[:, :, None].to(slots.dtype)

    def pick(index: Tensor) -> Tensor:
        return slots.gather(1, index[:, :, None].expand(-1, -1, slots.shape[2]))

    return torch.lerp(pick(low), pick(high), share) * inside[:, :, None]


class PseudoClassifier(nn.Module):
    """Linear, ReLU, Linear on a vector, or on ``slots`` slots one after the other (PC2, section on the classifier)."""

    def __init__(self, width: int, classes: int, slots: int, hidden: int = 256) -> None:
        super().__init__()
        self.slots = slots
        self.head = classifier(width * slots, hidden, classes)

    def forward(self, slots: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b k"]:
        """Logits; ``slots`` hold zeros where ``mask`` is false."""
        fixed = slots if slots.shape[1] == self.slots else fixed_slots(slots, mask, self.slots)
        logits: Tensor = self.head(fixed.flatten(1))
        return logits

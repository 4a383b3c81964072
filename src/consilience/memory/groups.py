"""Groups of clouds, found once a sample.

Farthest points and nearest neighbours depend on distances only, so a cloud's groups are those of every view that turns
it, moves it or scales all its axes alike. Of views that also jitter or stretch it they are nearly so.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.encoders.point_ops import groups_of


class GroupMemory(nn.Module):
    """The groups of ``samples`` clouds, found where they are first asked for. A pure function of the clouds, so it is
    no part of a checkpoint. 2 or 4 bytes a member: 4 kB a sample for 64 groups of 32 of up to 32767 points."""

    centres: Tensor
    members: Tensor
    known: Tensor

    def __init__(self, samples: int, groups: int, size: int, points: int) -> None:
        super().__init__()
        kind = torch.int16 if points < 2**15 else torch.int32
        self.groups, self.size = groups, size
        self.register_buffer("centres", torch.zeros(samples, groups, dtype=kind), persistent=False)
        self.register_buffer("members", torch.zeros(samples, groups, size, dtype=kind), persistent=False)
        self.register_buffer("known", torch.zeros(samples, dtype=torch.bool), persistent=False)

    def of(
        self, points: Float[Tensor, "b n 3"], index: Int64[Tensor, " b"]
    ) -> tuple[Int64[Tensor, "b g"], Int64[Tensor, "b g s"]]:
        """Groups of the unmoved clouds of samples ``index``, as ``groups_of`` finds them."""
        new = ~self.known[index]
        if bool(new.any()):
            centres, members = groups_of(points[new], self.groups, self.size)
            self.centres[index[new]] = centres.to(self.centres.dtype)
            self.members[index[new]] = members.to(self.members.dtype)
            self.known[index[new]] = True
        return self.centres[index].long(), self.members[index].long()

"""First-in-first-out memories of unit vectors, one ring a partition: negatives beyond the batch.

MoCo's dictionary (K. He et al., CVPR 2020) is the case of one partition; a queue for each weather, class or domain
(multi-queue contrast, arXiv 2408.05956) gives every partition the same number of places whatever its frequency.

Rules that keep gradients and processes right. A step reads the queue, and what it adds is pushed after the backward
pass (:meth:`~consilience.methods.base.Method.after_batch`): keys are never their own negatives, and autograd never
meets a changed buffer, so nothing need be cloned. What is pushed are the rows of all processes, so all hold the same
queue. Buffers are persistent: a resumed run goes on with the same negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from consilience.errors import InputError

NOBODY = -1
"""Id of an empty place."""


class Queue(nn.Module):
    """``partitions`` rings of ``places`` unit vectors float32 [P, K, D] with the ids of the samples they came from."""

    keys: Tensor
    ids: Tensor
    pushed: Tensor

    def __init__(self, places: int, width: int, partitions: int = 1) -> None:
        super().__init__()
        if places < 1 or width < 1 or partitions < 1:
            raise InputError(f"a queue of {partitions} x {places} vectors of {width} numbers; all must be at least 1")
        self.register_buffer("keys", torch.zeros(partitions, places, width))
        self.register_buffer("ids", torch.full((partitions, places), NOBODY, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros(partitions, dtype=torch.int64))

    @property
    def places(self) -> int:
        """K, places of a ring."""
        return self.keys.shape[1]

    @property
    def fill(self) -> Int64[Tensor, " p"]:
        """Places of each ring that hold a vector."""
        return self.pushed.clamp(max=self.places)

    def filled(self) -> Bool[Tensor, "p k"]:
        """Which places hold a vector."""
        return torch.arange(self.places, device=self.keys.device) < self.fill[:, None]

    def flat(self) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """The vectors of all rings that there are, with their ids and partitions."""
        there = self.filled()
        number = torch.arange(len(self.keys), device=self.keys.device)[:, None].expand_as(there)
        return self.keys[there], self.ids[there], number[there]

    def ring(self, number: int) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
        """The vectors of one ring that there are, in stored order, with their ids."""
        count = int(self.fill[number])
        return self.keys[number, :count], self.ids[number, :count]

    @torch.no_grad()
    def push(
        self, vectors: Float[Tensor, "b d"], ids: Int64[Tensor, " b"], partition: Int64[Tensor, " b"] | None = None
    ) -> None:
        """Add vectors (normalised here), the oldest of their ring making room. More than a ring holds: the last stay.

        ``partition``: ring of every vector, 0 by default; a negative one means that its vector is not kept.
        """
        rings = torch.zeros_like(ids) if partition is None else partition
        if len(rings) and int(rings.max()) >= len(self.keys):
            raise InputError(f"partition {int(rings.max())} of a queue with {len(self.keys)}; they count from 0")
        unit = F.normalize(vectors.float(), dim=1)
        for ring in range(len(self.keys)):
            mine = (rings == ring).nonzero().view(-1)
            count = len(mine)
            kept = mine[-self.places :]
            first = int(self.pushed[ring]) + count - len(kept)
            at = (first + torch.arange(len(kept), device=mine.device)) % self.places
            self.keys[ring, at] = unit[kept]
            self.ids[ring, at] = ids[kept]
            self.pushed[ring] += count

"""What every encoder is: a module with a width that turns a batch of one modality into feature vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A module whose ``forward`` maps a batch of one ``Kind`` to float [B, width]."""

    width: int
    """Number of columns of the output, before any projection head."""

    @abstractmethod
    def forward(self, x: Tensor) -> Float[Tensor, "b width"]:
        """Features of a batch laid out as ``consilience.data.schema.Kind`` says, images scaled to [0, 1]."""

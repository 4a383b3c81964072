"""Features of picture regions (Faster R-CNN, bottom-up attention) as slots in the joint space."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.encoders.base import SlotEncoder, unit


class LinearRegions(SlotEncoder):
    """SGRAF's image encoder (Diao et al., AAAI 2021): one linear layer, Xavier-uniform, bias 0, unit length a region.

    Regions of zeros are padding and stay zeros. ``forward`` is the mean of the unit vectors.
    """

    def __init__(self, inputs: int, width: int = 1024) -> None:
        super().__init__()
        self.width = self.slot_width = width
        self.layer = nn.Linear(inputs, width)
        nn.init.xavier_uniform_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def slots(self, x: Float[Tensor, "b r d"]) -> tuple[Float[Tensor, "b r slot_width"], Bool[Tensor, "b r"]]:
        """One unit vector a region, and which regions are there."""
        mask = (x != 0).any(-1)
        return unit(self.layer(x)) * mask.unsqueeze(-1), mask

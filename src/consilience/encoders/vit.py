"""A small vision transformer trained from scratch (Dosovitskiy et al., ICLR 2021, with mean pooling)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.encoders.base import SlotEncoder
from consilience.encoders.transformer import Transformer
from consilience.errors import InputError


class SmallViT(SlotEncoder):
    """Square patches, one linear layer, positions, pre-norm blocks; the slots are the patches, row by row."""

    def __init__(self, channels_in: int, image_size: int = 28, patch: int = 7, width: int = 128, layers: int = 3):
        super().__init__()
        if patch < 1 or image_size % patch:
            raise InputError(
                f"image_size={image_size} is not a multiple of patch={patch}; choose a patch that divides it"
            )
        self.width = self.slot_width = width
        self.channels_in, self.image_size, self.patch = channels_in, image_size, patch
        self.embed = nn.Conv2d(channels_in, width, patch, stride=patch)
        self.transformer = Transformer(width, layers, (image_size // patch) ** 2)

    def slots(self, x: Float[Tensor, "b c s s"]) -> tuple[Float[Tensor, "b l slot_width"], Bool[Tensor, "b l"]]:
        """One vector a patch of images in [0, 1]; raises :class:`InputError` on other channels or sizes."""
        if x.shape[1:] != (self.channels_in, self.image_size, self.image_size):
            raise InputError(
                f"images have shape {list(x.shape[1:])}, the encoder was built for {self.channels_in} channels of "
                f"{self.image_size} pixels; use the kind and image_size it was built for"
            )
        patches = self.transformer(self.embed(2 * x - 1).flatten(2).transpose(1, 2))
        return patches, torch.ones(patches.shape[:2], dtype=torch.bool, device=x.device)

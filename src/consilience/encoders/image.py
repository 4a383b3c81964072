"""Image encoders: a small network for small images, ResNets, and any vision model of transformers.

Input of all: float [B, C, S, S] in [0, 1], C = 1 (grey) or 3 (red, green, blue); each normalises by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.encoders.base import MapEncoder, SlotEncoder
from consilience.encoders.hub import HuggingFace, image_settings, load_model
from consilience.encoders.norm import BatchNorm1d, BatchNorm2d, synchronise
from consilience.errors import InputError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
"""Their means, for encoders that read one channel."""
RESNETS: dict[int, tuple[str, list[int], list[int]]] = {
    18: ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    34: ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    50: ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    101: ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
    152: ("bottleneck", [3, 8, 36, 3], [256, 512, 1024, 2048]),
}


class Normalise(nn.Module):
    """(x - mean) / std a channel; a grey image is shown as three equal channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std  # broadcasting repeats a single channel


class SmallCNN(SlotEncoder):
    """Three 3x3 convolutions of stride 2 with BN and ReLU, a 4x4 average map with its layout kept, one layer.

    For images of 28 to 64 pixels; the 4x4 map keeps where things are, which one global mean would lose.
    """

    def __init__(self, channels_in: int, width: int = 128, channels: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        self.width, self.slot_width = width, channels[-1]
        self.channels_in = channels_in
        sizes = [channels_in, *channels]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(16 * channels[-1], width, bias=False), BatchNorm1d(width), nn.ReLU())

    def _map(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels_in:
            raise InputError(
                f"images have {x.shape[1]} channels, the encoder was built for {self.channels_in}; "
                "use the kind (rgb or grey) it was built for"
            )
        out: Tensor = self.features(2 * x - 1)
        return out

    def slots(self, x: Float[Tensor, "b c s s"]) -> tuple[Float[Tensor, "b l slot_width"], Bool[Tensor, "b l"]]:
        """The last feature map, one slot a place, row by row."""
        places = self._map(x).flatten(2).transpose(1, 2)
        return places, torch.ones(places.shape[:2], dtype=torch.bool, device=x.device)

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b width"]:
        """Features of images in [0, 1]; raises :class:`InputError` on another number of channels."""
        out: Tensor = self.head(F.adaptive_avg_pool2d(self._map(x), 4).flatten(1))
        return out


class ResNet(MapEncoder):
    """ResNet-18, -34, -50, -101 or -152 (He et al., CVPR 2016) from random weights: pooled 512 or 2048 features.

    ``channels_in`` 1: a first layer for grey pictures; 3 shows them as three equal channels.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, depth: int = 18, channels_in: int = 3) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        if depth not in RESNETS:
            raise unknown("ResNet depth", str(depth), map(str, RESNETS))
        kind, depths, sizes = RESNETS[depth]
        config = ResNetConfig(
            num_channels=channels_in, layer_type=kind, depths=depths, hidden_sizes=sizes, embedding_size=64
        )
        self.width, self.channels = sizes[-1], tuple(sizes)
        grey = channels_in == 1
        self.normalise = Normalise(GREY_MEAN if grey else IMAGENET_MEAN, GREY_STD if grey else IMAGENET_STD)
        self.model = synchronise(ResNetModel(config))

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Maps after each of the four stages, of pictures of any size of 32 pixels or more."""
        states: tuple[Tensor, ...] = self.model(pixel_values=self.normalise(x), output_hidden_states=True).hidden_states
        return states[1:]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        """Features of images in [0, 1] of any size of 32 pixels or more."""
        out: Tensor = self.model(pixel_values=self.normalise(x)).pooler_output.flatten(1)
        return out


def resnet18() -> ResNet:
    """ResNet-18 from random weights, 512 features."""
    return ResNet(18)


class HuggingFaceImage(HuggingFace):
    """A vision model of transformers from a folder or hub id: ViT, DINOv2, ResNet, ConvNeXt, CLIP, SigLIP.

    Features are the model's pooled output (for two-tower models the projected image embedding), or its first
    token where the checkpoint has no trained pooler. Slots are the last hidden states of the patches, without the
    tokens before them, or the places of the last feature map. Mean, std and size come from the checkpoint; images
    are resized to the model's size (bilinear, antialiased). Raises :class:`InputError` when there is no such
    model, or it does not read images.
    """

    def __init__(self, path_or_id: str, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        model = load_model(path_or_id, "vision")
        if hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0  # masked autoencoders drop patches at random, in evaluation too
        self.projection = getattr(model, "visual_projection", None)
        # Of a two-tower model only the image tower stays: the rest would cost memory and never get gradients.
        model = getattr(model, "vision_model", model)
        if getattr(model, "main_input_name", "") != "pixel_values":
            raise InputError(f"{path_or_id} does not read images; choose a vision model such as ViT or CLIP")
        self.model = synchronise(model)
        settings = image_settings(path_or_id)
        self.normalise = Normalise(
            settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
        )
        size = getattr(model.config, "image_size", None) or settings.get("crop_size") or settings.get("size")
        self.image_size = _height_and_width(size)
        training = self.training
        self.eval()
        with torch.no_grad():
            out = self._states(torch.zeros(1, 3, *self.image_size))
            self.width, self.slot_width = self._pooled(out).shape[1], self._places(out).shape[2]
        self.train(training)

    def _states(self, x: Tensor) -> Any:
        if x.shape[2:] != self.image_size:
            x = F.interpolate(x, self.image_size, mode="bilinear", antialias=True, align_corners=False)
            x = x.clamp(0, 1)
        with self.gradients():
            return self.model(pixel_values=self.normalise(x))

    def _pooled(self, out: Any) -> Tensor:
        pooled: Tensor | None = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden: Tensor = out.last_hidden_state
            pooled = hidden[:, 0] if hidden.dim() == 3 else hidden.mean((2, 3))
        pooled = pooled.flatten(1)
        with self.gradients():
            return pooled if self.projection is None else self.projection(pooled)

    def _places(self, out: Any) -> Tensor:
        hidden: Tensor = out.last_hidden_state
        if hidden.dim() == 4:
            return hidden.flatten(2).transpose(1, 2)
        patch = _height_and_width(getattr(self.model.config, "patch_size", None) or self.image_size)
        patches = (self.image_size[0] // patch[0]) * (self.image_size[1] // patch[1])
        return hidden[:, -patches:]

    def slots(self, x: Float[Tensor, "b c s s"]) -> tuple[Float[Tensor, "b l slot_width"], Bool[Tensor, "b l"]]:
        """One vector a patch of images in [0, 1] of any size, before any projection."""
        places = self._places(self._states(x))
        return places, torch.ones(places.shape[:2], dtype=torch.bool, device=x.device)

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b width"]:
        """Features of images in [0, 1] of any size."""
        return self._pooled(self._states(x))


def _height_and_width(size: Any) -> tuple[int, int]:
    """Pixels from the spellings in checkpoints: 224, [224, 224], {"height": ...}, {"shortest_edge": ...}."""
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    sides: list[Any] = list(size) if isinstance(size, (list, tuple)) else [size or 224]
    return int(sides[0]), int(sides[-1])

"""Encoders of pictures that keep their maps: for scores, densities and whatever else is read off place by place."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from consilience.data.schema import Kind
from consilience.encoders.base import MapEncoder
from consilience.encoders.image import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, RESNETS, Normalise, ResNet
from consilience.encoders.norm import BatchNorm2d
from consilience.encoders.weights import assign, load_resnet, load_weights, read_weights
from consilience.errors import InputError, unknown

_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Channels of the convolutions between the pools (Simonyan and Zisserman, ICLR 2015, configuration E)."""


class ConvMaps(MapEncoder):
    """A stage is one 3x3 convolution with BN and ReLU; for pictures of 28 to 128 pixels.

    ``steps``: stride of each stage. Reads pictures of ``channels_in`` channels; raises :class:`InputError` on others.
    """

    def __init__(
        self, channels_in: int, channels: tuple[int, ...] = (16, 32, 64, 64), steps: tuple[int, ...] = (1, 2, 2, 2)
    ) -> None:
        super().__init__()
        if len(channels) != len(steps) or not channels:
            raise InputError(f"{len(channels)} widths and {len(steps)} strides; give one of each for every stage")
        self.channels_in, self.width, self.channels = channels_in, channels[-1], channels
        strides, stride = [], 1
        for step in steps:
            stride *= step
            strides.append(stride)
        self.strides = tuple(strides)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=step, padding=1, bias=False), BatchNorm2d(o), nn.ReLU())
            for (i, o), step in zip(pairwise((channels_in, *channels)), steps, strict=True)
        )

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Maps of pictures of any size."""
        if x.shape[1] != self.channels_in:
            raise InputError(
                f"pictures have {x.shape[1]} channels, the encoder was built for {self.channels_in}; "
                "use the kind (rgb or grey) it was built for"
            )
        found, x = [], 2 * x - 1
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)


class VGG19(MapEncoder):
    """The convolutions of VGG-19 (configuration E) from random weights, with torchvision's names (``features.N``).

    ``pools`` of its five pools are kept: 4 gives maps of stride 16 (Bayesian loss, Ma et al., ICCV 2019), 5 of 32.
    A stage ends after the last ReLU before a pool.
    """

    def __init__(self, pools: int = 4, channels_in: int = 3) -> None:
        super().__init__()
        if not 0 <= pools <= 5:
            raise InputError(f"{pools} pools of VGG-19; it has 0 to 5")
        grey = channels_in == 1
        self.normalise = Normalise(GREY_MEAN if grey else IMAGENET_MEAN, GREY_STD if grey else IMAGENET_STD)
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        width = channels_in
        for number, block in enumerate(_VGG19):
            for channels in block:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.ends.append(len(layers) - 1)
            if number < pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.width, self.channels = width, tuple(block[-1] for block in _VGG19)
        self.strides = tuple(2 ** min(stage, pools) for stage in range(len(_VGG19)))
        self.last_pool = pools == len(_VGG19)
        if self.last_pool:
            self.strides = (*self.strides[:-1], 2 ** len(_VGG19))

    def maps(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        """Maps of pictures of 32 pixels or more; with all five pools the last map is taken after its pool."""
        found, x = [], self.normalise(x)
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.ends:
                found.append(x)
        return (*found[:-1], x) if self.last_pool else tuple(found)


def map_encoder(name: str, kind: Kind, weights: str | None = None) -> MapEncoder:
    """A new encoder for pictures of ``kind``, batch norms over all ranks; random weights unless a file is given.

    Names: small (:class:`ConvMaps`), resnet18, -34, -50, -101, -152, vgg19. Grey pictures get a first layer of one
    channel; with weights for three they are shown as three equal ones. InputError for other names.
    """
    channels = 1 if kind is Kind.GREY and weights is None else 3
    if name == "small":
        small = ConvMaps(1 if kind is Kind.GREY else 3)
        if weights is not None:
            load_weights(small, weights)
        return small
    if name == "vgg19":
        vgg = VGG19(channels_in=channels)
        if weights is not None:
            load_vgg(vgg, weights)
        return vgg
    depth = name.removeprefix("resnet")
    if not depth.isdecimal() or int(depth) not in RESNETS:
        raise unknown("picture encoder", name, ["small", "vgg19", *(f"resnet{d}" for d in RESNETS)])
    resnet = ResNet(int(depth), channels)
    if weights is not None:
        load_resnet(resnet, weights)
    return resnet


def load_vgg(encoder: VGG19, path: str) -> None:
    """torchvision's VGG-19 (its classifier left out), or our own names; ``InputError`` unless every layer fits."""
    state = read_weights(path)
    assign(encoder, {name: value for name, value in state.items() if not name.startswith("classifier.")}, path)

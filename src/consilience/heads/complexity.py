"""Heads that read complexity off feature maps, and one that lends it to other tasks.

ICNet's head: T. Feng et al., "IC9600: A Benchmark Dataset for Automatic Image Complexity Assessment", TPAMI 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from consilience.encoders.base import MapEncoder
from consilience.encoders.norm import BatchNorm2d
from consilience.errors import InputError


class SLAM(nn.Module):
    """Spatial layout attention: a channel is multiplied by a number in (0, 1) read off its whole ``side`` x ``side``
    map (resized to that, bilinear, where it is not): side^2 -> hidden -> ReLU -> 1 -> sigmoid, shared by the channels.
    """

    def __init__(self, side: int = 32, hidden: int = 512) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(nn.Linear(side * side, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The maps, each weighed as a whole."""
        small = x
        if x.shape[2:] != (self.side, self.side):
            small = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        out: Tensor = x * self.layers(small.flatten(2))[..., None]
        return out


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, BatchNorm2d(outputs), nn.ReLU())


class ICNetHead(nn.Module):
    """From an encoder's last map to a score and a map of complexity, both in (0, 1).

    The map is resized to ``side`` x ``side`` places (1/8 of the picture in ICNet), reduced to ``width`` channels and
    goes two ways, each 3x3 convolution and :class:`SLAM`: one to a map, the other pooled to a score.
    """

    def __init__(self, inputs: int, width: int = 512, side: int = 64, slam: int = 32, hidden: int = 512) -> None:
        super().__init__()
        self.side = side
        self.reduce = _block(inputs, width, 1)
        self.of_map = nn.Sequential(_block(width, width, 3), SLAM(slam, hidden), nn.Conv2d(width, 1, 1), nn.Sigmoid())
        self.of_score = nn.Sequential(_block(width, width, 3), SLAM(slam, hidden))
        self.regress = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 1 s s"]]:
        """Scores and maps."""
        x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=True)
        x = self.reduce(x)
        return self.regress(self.of_score(x).mean((2, 3)))[:, 0], self.of_map(x)


class ComplexityPrior(nn.Module):
    """What a frozen encoder of complexity knows of a picture, added to the feature levels of another task's network.

    For detection: on the inputs of a feature pyramid; for segmentation: before the decoder's head; for classification:
    on the last map. ``widths``: channels of the levels. ``fuse`` gate: F' = F (1 + tanh(gate) sigmoid(g')) with one
    gate a level that begins at 0; concat: a 1x1 convolution of [F, g'] that begins as the identity on F. Either way the
    network is exactly itself until its training opens the way. g' is a 1x1 convolution of the encoder's last map,
    resized to the level. The encoder stays in evaluation mode and gets no gradient. The wiring is ours: the paper names
    complexity as an auxiliary prior and its text was not at hand.
    """

    def __init__(self, encoder: MapEncoder, widths: Sequence[int], fuse: Literal["gate", "concat"] = "gate") -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise InputError(f"widths {list(widths)}: give the channels of each feature level")
        self.encoder, self.fuse = encoder.eval().requires_grad_(False), fuse
        self.reduce = nn.ModuleList(nn.Conv2d(encoder.channels[-1], width, 1) for width in widths)
        self.gates = nn.Parameter(torch.zeros(len(widths))) if fuse == "gate" else None
        self.join = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths if fuse == "concat")
        for layer in self.join:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.dirac_(layer.weight)  # the first half of the inputs, F, passes as it is
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> ComplexityPrior:
        """As usual, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pictures: Float[Tensor, "b c h w"], levels: Sequence[Tensor]) -> list[Tensor]:
        """The levels [b, width, h', w'] with the prior in them. ``pictures``: those they were made from, in [0, 1]."""
        if len(levels) != len(self.reduce):
            raise InputError(f"{len(levels)} feature levels; the prior was built for {len(self.reduce)}")
        with torch.no_grad():
            known = self.encoder.maps(pictures)[-1]
        out = []
        for number, level in enumerate(levels):
            prior = F.interpolate(self.reduce[number](known), level.shape[2:], mode="bilinear", align_corners=False)
            if self.gates is not None:
                out.append(level * (1 + torch.tanh(self.gates[number]) * torch.sigmoid(prior)))
            else:
                out.append(self.join[number](torch.cat([level, prior], 1)))
        return out

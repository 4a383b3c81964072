"""Clouds, images and feature vectors as sequences of tokens, and the transformer that reads all or the visible ones.

Clouds: groups of neighbours through a small PointNet (Y. Pang et al., "Masked Autoencoders for Point Cloud
Self-supervised Learning", ECCV 2022, section 3.1). Images: square patches through one linear layer with fixed positions
(A. Dosovitskiy et al., ICLR 2021; K. He et al., CVPR 2022). A tokeniser also names what is to be reconstructed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Kind
from consilience.encoders.norm import BatchNorm1d
from consilience.encoders.point_ops import group, groups_of
from consilience.encoders.transformer import Block
from consilience.errors import InputError, need_positive, need_share
from consilience.views.keyed import KeyedRandom
from consilience.views.masking import normalised, patchify, take

_SLOT = 60
Groups = tuple[Tensor, Tensor]
"""Rows of the centres int64 [b, g] and of the members int64 [b, g, s] of a cloud's groups."""


@dataclass(frozen=True)
class Tokens:
    """One modality of a batch, cut into parts."""

    content: Float[Tensor, "b t d"]
    """What each part looks like; knows nothing of where it is."""
    place: Float[Tensor, "b t d"]
    """Position codes."""
    targets: Float[Tensor, "b t p"]
    """What a decoder is to predict of each part."""


class Tokeniser(nn.Module, ABC):
    """A module that cuts decoded samples of one kind into tokens."""

    count: int
    """Number of tokens, T."""
    outputs: int
    """Numbers to predict for each of them, p."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tokens:
        """Tokens of a batch laid out as :class:`consilience.data.schema.Kind` says, images scaled to [0, 1]."""


def sine_cosine(side: int, width: int) -> Float[Tensor, "t {width}"]:
    """Fixed position codes of a ``side`` x ``side`` grid, row by row: sines and cosines of the row number in the first
    half of the width, of the column number in the second, at wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al.,
    2017; two-dimensional as in MAE). ``width`` is a multiple of 4; raises :class:`InputError` otherwise."""
    if width % 4:
        raise InputError(f"position codes of width {width}: expected a multiple of 4")
    quarter = width // 4
    rates = torch.exp(torch.arange(quarter, dtype=torch.float64) * (-math.log(10_000) / quarter))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    one = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat([rows, columns], 2).reshape(side * side, width).float()


class ImageTokens(Tokeniser):
    """Square patches of images float [B, C, S, S] in [0, 1], one linear layer, fixed positions.

    Targets are the patches' own values, normalised patch by patch. Raises :class:`InputError` when ``patch`` does not
    divide ``size``.
    """

    place: Tensor

    def __init__(self, channels: int, size: int, patch: int, width: int) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise InputError(f"image_size={size} is not a multiple of image_patch={patch}; choose one that divides it")
        self.channels, self.size, self.patch = channels, size, patch
        self.count, self.outputs = (size // patch) ** 2, patch * patch * channels
        self.embed = nn.Linear(self.outputs, width)
        self.register_buffer("place", sine_cosine(size // patch, width), persistent=False)

    def forward(self, x: Float[Tensor, "b c s s"]) -> Tokens:
        """Raises :class:`InputError` on other channels or sizes than it was built for."""
        if x.shape[1:] != (self.channels, self.size, self.size):
            raise InputError(
                f"images have shape {list(x.shape[1:])}, the encoder was built for {self.channels} channels of "
                f"{self.size} pixels; use the kind and image_size it was built for"
            )
        patches = patchify(x, self.patch)
        return Tokens(self.embed(2 * patches - 1), self.place.expand(len(x), -1, -1), normalised(patches))


class _Norm(nn.Module):
    """Layer norm, or batch norm over all rows (of all processes), on the last axis."""

    def __init__(self, width: int, kind: Literal["layer", "batch"]) -> None:
        super().__init__()
        self.inner: nn.Module = nn.LayerNorm(width) if kind == "layer" else BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        if isinstance(self.inner, nn.LayerNorm):
            normed: Tensor = self.inner(x)
            return normed
        return self.inner(x.flatten(0, -2)).view(x.shape)  # type: ignore[no-any-return]


class GroupNet(nn.Module):
    """The small PointNet of Point-MAE: groups of relative points [B, G, S, 3] to vectors [B, G, width].

    3 -> w -> 2w point by point (norm, ReLU between), the group's maximum beside every point, 4w -> 4w -> width (norm,
    ReLU between), maximum; Point-MAE: w = 128, batch norm. The layer on [maximum, point] is two products, one a group
    and one a point, which is the same sum.
    """

    def __init__(self, width: int, first: int, norm: Literal["layer", "batch"]) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(3, first), _Norm(first, norm), nn.ReLU(), nn.Linear(first, 2 * first))
        self.of_group = nn.Linear(2 * first, 4 * first)
        self.of_point = nn.Linear(2 * first, 4 * first, bias=False)
        self.last = nn.Sequential(_Norm(4 * first, norm), nn.ReLU(), nn.Linear(4 * first, width))

    def forward(self, patches: Float[Tensor, "b g s 3"]) -> Float[Tensor, "b g d"]:
        """Invariant to the order of the points of a group."""
        points = self.lift(patches)
        joint = self.of_point(points) + self.of_group(points.amax(2))[:, :, None]
        out: Tensor = self.last(joint).amax(2)
        return out


class PointTokens(Tokeniser):
    """Groups of clouds float [B, P, 3]: farthest points, their nearest neighbours, :class:`GroupNet`.

    Position codes are a small network of the centres; targets are the groups' points relative to their centres,
    [B, G, 3 S]. Groups are found anew for every view (0.06 ms a cloud at 128 points), unless they are given.
    """

    def __init__(self, groups: int, size: int, width: int, first: int, norm: Literal["layer", "batch"]) -> None:
        super().__init__()
        self.groups, self.size = groups, size
        self.count, self.outputs = groups, 3 * size
        self.net = GroupNet(width, first, norm)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Float[Tensor, "b p 3"], members: Groups | None = None) -> Tokens:
        """``members``: the groups, as :func:`~consilience.encoders.point_ops.groups_of` finds them. Raises
        :class:`InputError` for clouds of fewer points than groups, or than points of a group."""
        patches, centres = group(x, *(members or groups_of(x, self.groups, self.size)))
        return Tokens(self.net(patches), self.position(centres), patches.flatten(2))


class FeatureTokens(Tokeniser):
    """Feature vectors float [B, F] of a frozen encoder, cut into parts of equal length, a linear layer and a learned
    position for each: what stands in the tokenisers' place when features are given instead of samples.

    Targets are the parts' own values, normalised part by part; the last part is filled up with zeros.
    """

    def __init__(self, features: int, parts: int, width: int) -> None:
        super().__init__()
        if not 2 <= parts <= features:
            raise InputError(f"feature_parts={parts} of vectors of {features} numbers; expected 2 to {features}")
        self.features, self.count = features, parts
        self.outputs = -(-features // parts)
        self.weight = nn.Parameter(torch.randn(parts, self.outputs, width) / math.sqrt(self.outputs))
        self.place = nn.Parameter(torch.randn(parts, width) * 0.02)

    def forward(self, x: Float[Tensor, "b f"]) -> Tokens:
        """Raises :class:`InputError` for vectors of another length."""
        if x.shape[1] != self.features:
            raise InputError(f"vectors of {x.shape[1]} numbers, the encoder was built for {self.features}")
        filled = F.pad(x.float(), (0, self.count * self.outputs - self.features))
        parts = filled.view(len(x), self.count, self.outputs)
        content = torch.einsum("btp,tpd->btd", parts, self.weight)
        return Tokens(content, self.place.expand(len(x), -1, -1), normalised(parts))


class TokenTransformer(nn.Module):
    """Pre-norm blocks on [CLS, tokens] and a last layer norm; reads the visible tokens alone when asked to.

    ``place_every_block``: position codes are added before every block (Point-MAE) instead of once. ``drop_path``: the
    last block's probability of skipping a branch for a sample, rising linearly from 0 at the first; needs a source of
    keyed draws and acts only where one is given.
    """

    def __init__(self, width: int, depth: int, heads: int, drop_path: float = 0.0, place_every_block: bool = False):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.place_every_block = place_every_block
        self.drops = [drop_path * i / max(1, depth - 1) for i in range(depth)]

    def forward(
        self, tokens: Tokens, visible: Int64[Tensor, "b k"] | None = None, random: KeyedRandom | None = None
    ) -> Float[Tensor, "b l d"]:
        """[B, 1 + k, d] for k visible tokens (all of them by default), CLS first; a hidden token changes nothing."""
        content, place = tokens.content, tokens.place
        if visible is not None:
            content, place = take(content, visible), take(place, visible)
        place = torch.cat([torch.zeros_like(place[:, :1]), place], 1)  # CLS is nowhere
        x = torch.cat([self.cls.to(content.dtype).expand(len(content), 1, -1), content], 1)
        for i, (block, drop) in enumerate(zip(self.blocks, self.drops, strict=True)):
            if i == 0 or self.place_every_block:
                x = x + place
            x = block(x, None, None if random is None or drop == 0 else survive(drop, random, _SLOT + i))
        out: Tensor = self.norm(x)
        return out


def survive(drop: float, random: KeyedRandom, slot: int) -> Float[Tensor, "b 2"]:
    """Factors of a block's two branches: 0 with probability ``drop``, else 1 / (1 - drop); one draw a sample each."""
    return (random.uniform(slot, 0.0, 1.0, 2) >= drop).float() / (1 - drop)


@dataclass(frozen=True)
class TokenConfig:
    """Sizes of tokenisers and token transformers; a method's configuration extends it."""

    width: int = 64
    """d, width of the tokens (Point-MAE: 384)."""
    depth: int = 2
    """Blocks of each encoder (Point-MAE: 12)."""
    attention_heads: int = 4
    """Heads of every attention (Point-MAE: 6)."""
    drop_path: float = 0.0
    """Probability of skipping a branch of the last block, rising from 0 at the first (Point-MAE: 0.1)."""
    pos_every_block: bool = False
    """Add position codes before every encoder block (Point-MAE: on) instead of once."""
    image_size: int = 28
    """Side of the images in pixels (ViT: 224)."""
    image_patch: int = 7
    """Side of the patches in pixels (ViT: 16)."""
    n_points: int = 128
    """Points drawn from a cloud (Point-MAE: 1024)."""
    groups: int = 16
    """G, groups of points, each a token (Point-MAE: 64)."""
    group_size: int = 16
    """S, points of a group (Point-MAE: 32)."""
    group_width: int = 16
    """First layer of the small PointNet that reads a group (Point-MAE: 128)."""
    regroup: Literal["view", "cloud"] = "view"
    """Groups are found in every view, or once in the unmoved cloud: the same
    where views turn, move and scale evenly."""
    vector_width: int = 0
    """Numbers of a feature vector given in a sample's place. 0: as the Table says."""
    feature_parts: int = 16
    """Parts it is cut into, each a token."""
    norm: Literal["layer", "batch"] = "layer"
    """Norm inside it (Point-MAE: batch)."""

    def __post_init__(self) -> None:
        if self.width % self.attention_heads or self.width % 4:
            raise InputError(f"--method.width {self.width}: expected a multiple of attention_heads and of 4")
        need_positive(self, "depth")
        need_share(self, "drop_path", whole=False)

    @property
    def decode(self) -> DecodeConfig:
        """The sizes samples are decoded to."""
        vector = self.vector_width or DecodeConfig().vector_width
        return DecodeConfig(image_size=self.image_size, n_points=self.n_points, vector_width=vector)

    def tokeniser(self, kind: Kind) -> Tokeniser:
        """A new tokeniser for pictures, clouds or feature vectors."""
        if kind is Kind.POINTS:
            return PointTokens(self.groups, self.group_size, self.width, self.group_width, self.norm)
        if kind is Kind.VECTOR:
            return FeatureTokens(self.decode.vector_width, self.feature_parts, self.width)
        return ImageTokens(3 if kind is Kind.RGB else 1, self.image_size, self.image_patch, self.width)

    def encoder(self) -> TokenTransformer:
        """A new transformer over such tokens."""
        return TokenTransformer(self.width, self.depth, self.attention_heads, self.drop_path, self.pos_every_block)

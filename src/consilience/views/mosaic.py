"""Random Crop and Mix: a picture's own crops, put together anew (CLIC, arXiv 2408.03230; geometry of its first code).

Two ways. *Published*: crops of 1/c, 1/(2c) and 1/(4c) of the short edge; two of them and a moved copy of each tile a
mosaic of 2 x 2, which is then resized, so that it shows the picture's texture magnified by about s c / 2. *Preserve*
(ours): crops tile the picture's own size, so that a pixel stays a pixel; layout and objects are destroyed, the local
density of detail is not. Everything acts on a batch of tensors and is drawn by sample; no files are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import PictureViewConfig, picture_view

C = 3
"""c, parameter of the published crops."""
SCALES = (1, 2, 4)
"""s of the published crops: large, middle, small."""
LEAST = 32
"""Pixels a published mosaic must have along a side."""
GRIDS = (2, 4)
"""Tiles along a side of a mosaic that keeps the zoom."""
CHOICE, PLACE, ORDER, TURN = (400 + 50 * i for i in range(4))  # slots of the draws
COPY = PictureViewConfig(
    crop_low=1.0, ratio=1.0, flip=0.5, flip_vertical=0.5, rotate=20.0, rotate_probability=0.5, brightness=0.2,
    contrast=0.2, saturation=0.2, hue=0.2, colour_probability=0.5, grey=0.0, blur=0.0,
)  # fmt: skip
"""How a crop's copy is moved and recoloured."""


@dataclass(frozen=True)
class Crops:
    """Published crops of one scale."""

    scale: int
    """s."""
    side: int
    """Of a crop, pixels; a mosaic's is twice that."""
    mosaics: int
    """That a picture gives: half as many as there are crops, s c."""


def published_crops(height: int, width: int, least: int = LEAST) -> list[Crops]:
    """The scales at which a picture of this size gives mosaics of ``least`` pixels or more along a side. The side of
    crops is floor(short edge / (s c)); s c crops are paired, an odd one is left over: 1 + 3 + 6 mosaics for c = 3."""
    found = [Crops(s, min(height, width) // (s * C), s * C // 2) for s in SCALES]
    return [crops for crops in found if 2 * crops.side >= least]


def published_mosaic(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, side: int
) -> Float[Tensor, "b c {2*side} {2*side}"]:
    """One mosaic of 2 x 2 tiles of ``side`` pixels for every picture: two crops at random places and a moved and
    recoloured copy of each (:data:`COPY`), in random order."""
    tiles = []
    for number in range(2):
        crop = _cut(images, random.uniform(PLACE + number, 0, 1, 2), side)
        drawn = KeyedRandom.of(random.index, random.key, TURN + number)
        tiles += [crop, picture_view(crop, drawn, COPY)]
    order = random.uniform(ORDER, 0, 1, 4).argsort(1)
    stacked = torch.stack(tiles, 1)
    mixed = stacked.gather(1, order[:, :, None, None, None].expand_as(stacked))
    rows = [torch.cat([mixed[:, 2 * row], mixed[:, 2 * row + 1]], 3) for row in range(2)]
    return torch.cat(rows, 2)


def _cut(images: Float[Tensor, "b c h w"], place: Float[Tensor, "b 2"], side: int) -> Tensor:
    """Squares [b, c, side, side] of the pictures; ``place`` in [0, 1): where between the ends they begin."""
    height, width = images.shape[2:]
    most = torch.tensor([height - side, width - side], device=place.device)
    first = (place * (most + 1)).long().minimum(most)
    along = torch.arange(side, device=place.device)
    y, x = first[:, :1] + along, first[:, 1:] + along
    source = (y[:, :, None] * width + x[:, None]).flatten(1)
    flat = images.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1))
    return flat.view(len(images), images.shape[1], side, side)


def published_mix(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, least: int = LEAST
) -> Float[Tensor, "b c h w"]:
    """A published mosaic of a random scale for every picture, resized to the picture's size (bilinear).

    Raises :class:`InputError` for pictures too small to give one of ``least`` pixels.
    """
    height, width = images.shape[2:]
    known = published_crops(height, width, least)
    if not known:
        raise InputError(
            f"pictures of {width} x {height} pixels give no published mosaic of {least} pixels; raise "
            "--method.image_size, or use --method.rcm_zoom preserve"
        )
    chosen = (random.uniform(CHOICE, 0, 1)[:, 0] * len(known)).long().clamp(max=len(known) - 1)
    out = torch.empty_like(images)
    for number, crops in enumerate(known):
        mine = (chosen == number).nonzero().view(-1)
        if len(mine):
            made = published_mosaic(images[mine], KeyedRandom(random.key, random.index[mine]), crops.side)
            out[mine] = F.interpolate(made, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return out.clamp(0, 1)


def preserve_mix(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, flip: bool = True, grids: Sequence[int] = GRIDS
) -> Float[Tensor, "b c h w"]:
    """A mosaic of each picture at its own zoom: n x n tiles, n drawn from ``grids``, each a crop of the tile's size
    from anywhere in the picture, mirrored left to right and upside down with probability 1/2 each if ``flip``.

    Only whole pixels move: every pixel of the result is one of the picture's. A picture of one colour stays as it is.
    """
    height, width = images.shape[2:]
    chosen = (random.uniform(CHOICE, 0, 1)[:, 0] * len(grids)).long().clamp(max=len(grids) - 1)
    source = torch.empty(len(images), height, width, dtype=torch.int64, device=images.device)
    for number, n in enumerate(grids):
        mine = (chosen == number).nonzero().view(-1)
        if not len(mine):
            continue
        draws = KeyedRandom(random.key, random.index[mine])
        y, of_row = _taken(draws, PLACE, n, height, flip)
        x, of_column = _taken(draws, PLACE + 10, n, width, flip)
        source[mine] = y[:, :, of_column] * width + x[:, :, of_row].transpose(1, 2)
    flat = source.view(len(images), 1, -1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view_as(images)


def _taken(
    random: KeyedRandom, slot: int, n: int, size: int, flip: bool
) -> tuple[Int64[Tensor, "b s n"], Int64[Tensor, " s"]]:
    """For every pixel along one side, and every tile across, the coordinate it is taken from; and its own tile."""
    if size < n:
        raise InputError(f"pictures of {size} pixels along a side are too small for {n} tiles; raise the image size")
    at = torch.arange(size, device=random.index.device)
    edges = -(-torch.arange(n + 1, device=at.device) * size // n)
    tile = torch.bucketize(at, edges, right=True) - 1
    local, length = (at - edges[tile])[:, None], (edges[1:] - edges[:-1])[tile][:, None]
    first = random.uniform(slot, 0, 1, n * n).view(-1, n, n)[:, tile]
    offset = (first * (size - length + 1)).long().minimum(size - length)
    if not flip:
        return offset + local, tile
    mirrored = random.uniform(slot + 1, 0, 1, n * n).view(-1, n, n)[:, tile] < 0.5
    return offset + torch.where(mirrored, length - 1 - local, local), tile

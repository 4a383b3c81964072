"""Training views: one configuration and one entry for all kinds, and the random geometry of images and clouds,
in batches, on the device of the tensors. Captions and features have theirs in :mod:`consilience.views.tokens`.

A shift is in fractions of the half width (images span -1..1, clouds are normalised to the unit ball), angles
are in degrees. Draws are keyed by sample (:mod:`consilience.views.keyed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.tokens import regions_view, tokens_view, vector_view


@dataclass(frozen=True)
class ViewConfig:
    """How strongly training views are moved. Zero everywhere gives the sample itself."""

    rotate: float = 20.0
    """Largest in-plane rotation (images; clouds about z), degrees."""
    turn: float = 0.0
    """Largest rotation of clouds and meshes about the vertical axis y, degrees."""
    scale: float = 0.2
    """Each axis is scaled by U[1 - scale, 1 + scale]."""
    shear: float = 0.3
    """Horizontal shear, U[-shear, shear]."""
    shift: float = 0.15
    """Translation a axis, U[-shift, shift] of the half width."""
    flip: bool = False
    """Mirror half of the images left-right. Never for digits or letters."""
    contrast: float = 0.0
    """Image intensities are scaled by U[1 - contrast, 1 + contrast] about their mean."""
    jitter: float = 0.01
    """Standard deviation of the normal noise on every coordinate of clouds and mesh centres."""
    mask: float = 0.1
    """Share of tokens, regions or vector entries hidden."""

    def __post_init__(self) -> None:
        for name in ("rotate", "turn", "scale", "shear", "shift", "contrast", "jitter", "mask"):
            limit = 360 if name in ("rotate", "turn") else 1
            if not 0 <= getattr(self, name) < limit:
                raise InputError(f"views.{name}={getattr(self, name)} is out of range; give 0 to below {limit}")


def _planar(random: KeyedRandom, slot: int, config: ViewConfig) -> Float[Tensor, "b 2 2"]:
    """Rotation times (scale, shear), one 2x2 matrix a sample."""
    angle = random.uniform(slot, -config.rotate, config.rotate)[:, 0] * (math.pi / 180)
    size = random.uniform(slot + 1, 1 - config.scale, 1 + config.scale, 2)
    shear = random.uniform(slot + 2, -config.shear, config.shear)[:, 0]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turned = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    stretched = torch.stack([torch.stack([size[:, 0], shear], 1), torch.stack([zero, size[:, 1]], 1)], 1)
    return turned @ stretched


def image_view(images: Float[Tensor, "b c h w"], random: KeyedRandom, config: ViewConfig) -> Float[Tensor, "b c h w"]:
    """A moved copy of float images in [0, 1]: affine warp (bilinear, border repeated), flip, contrast."""
    matrix = _planar(random, 0, config)
    if config.flip:
        side = torch.where(random.uniform(10, -1, 1) < 0, -1.0, 1.0)
        matrix = matrix * torch.cat([side, torch.ones_like(side)], 1)[:, None]
    move = random.uniform(11, -config.shift, config.shift, 2)
    theta = torch.cat([matrix, move[:, :, None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
    if config.contrast:
        factor = random.uniform(12, 1 - config.contrast, 1 + config.contrast)[:, :, None, None]
        mean = out.mean((1, 2, 3), keepdim=True)
        out = ((out - mean) * factor + mean).clamp(0, 1)
    return out


def _spatial(random: KeyedRandom, config: ViewConfig) -> Float[Tensor, "b 3 3"]:
    planar = _planar(random, 20, config)
    depth = random.uniform(24, 1 - config.scale, 1 + config.scale)[:, 0]
    matrix = torch.zeros(len(depth), 3, 3, device=depth.device)
    matrix[:, :2, :2] = planar
    matrix[:, 2, 2] = depth
    if config.turn:
        angle = random.uniform(25, -config.turn, config.turn)[:, 0] * (math.pi / 180)
        about = torch.zeros_like(matrix)
        about[:, 0, 0], about[:, 0, 2] = angle.cos(), angle.sin()
        about[:, 2, 0], about[:, 2, 2] = -angle.sin(), angle.cos()
        about[:, 1, 1] = 1
        matrix = matrix @ about
    return matrix


def points_view(points: Float[Tensor, "b p 3"], random: KeyedRandom, config: ViewConfig) -> Float[Tensor, "b p 3"]:
    """A moved copy of point clouds: linear map, translation, independent jitter of every coordinate."""
    move = random.uniform(26, -config.shift, config.shift, 3)
    noise = random.normal(27, points.shape[1] * 3).view_as(points) * config.jitter
    return points @ _spatial(random, config).transpose(1, 2) + move[:, None] + noise


def mesh_view(faces: Float[Tensor, "b f 18"], random: KeyedRandom, config: ViewConfig) -> Float[Tensor, "b f 18"]:
    """A moved copy of meshes: one rotation about the vertical axis and a scale for centres, corners and normals;
    jitter on the centres. Shear and unequal scales would bend the normals, so meshes get neither."""
    angle = random.uniform(30, -config.turn, config.turn)[:, 0] * (math.pi / 180)
    size = random.uniform(31, 1 - config.scale, 1 + config.scale)[:, 0]
    about = torch.zeros(len(angle), 3, 3, device=faces.device)
    about[:, 0, 0], about[:, 0, 2] = angle.cos(), angle.sin()
    about[:, 2, 0], about[:, 2, 2] = -angle.sin(), angle.cos()
    about[:, 1, 1] = 1
    noise = random.normal(32, faces.shape[1] * 3).view(*faces.shape[:2], 3) * config.jitter
    vectors = faces[..., :15].reshape(*faces.shape[:2], 5, 3) @ about.transpose(1, 2)[:, None]
    vectors = torch.cat([vectors[:, :, :4] * size[:, None, None, None], vectors[:, :, 4:]], 2).flatten(2)
    return torch.cat([vectors[..., :3] + noise, vectors[..., 3:], faces[..., 15:]], -1)


def plain(value: Tensor, kind: Kind) -> Tensor:
    """The tensor an encoder expects, unmoved: images become float32 in [0, 1], the rest stays."""
    return value.to(torch.float32) / 255 if kind.is_image and value.dtype == torch.uint8 else value


def view(value: Tensor, kind: Kind, index: Int64[Tensor, " b"], key: tuple[int, ...], config: ViewConfig) -> Tensor:
    """A training view of decoded tensors of ``kind``, drawn under ``key`` for the samples ``index``."""
    random = KeyedRandom.of(index, *key)
    value = plain(value, kind)
    if kind.is_image:
        return image_view(value, random, config)
    if kind is Kind.POINTS:
        return points_view(value, random, config)
    if kind is Kind.TEXT:
        return tokens_view(value, random, config.mask)
    if kind is Kind.REGIONS:
        return regions_view(value, random, config.mask)
    if kind is Kind.VECTOR:
        return vector_view(value, random, config.mask)
    return mesh_view(value, random, config)

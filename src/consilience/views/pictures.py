"""Augmentation of pictures for momentum contrast and its kin: crops, colour, blur, noise, speckle; a whole batch at a
time, on the device of the tensors, drawn by sample (:mod:`consilience.views.keyed`).

Operations act in the order crop, flips, rotation, colour, grey, blur, noise, speckle. Colours are moved in a fixed
order (brightness, contrast, saturation, hue) instead of a random one; hue turns the chroma plane of YIQ, which needs
no branches and keeps luma. One-channel pictures get no colour operations but brightness and contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom

_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
CROP, FLIP, ROTATE, COLOUR, GREY, BLUR, NOISE, SPECKLE = (100 + 20 * i for i in range(8))  # slots of the draws


@dataclass(frozen=True)
class PictureViewConfig:
    """How pictures are moved and recoloured; probabilities are per sample. Zeros and crops of 1 to 1 change nothing."""

    crop_low: float = 0.2
    """Smallest share of the area that a random crop keeps (MoCo v2: 0.2)."""
    crop_high: float = 1.0
    """Largest such share."""
    ratio: float = 4 / 3
    """The crop's sides differ by at most this factor."""
    flip: float = 0.5
    """Probability of a left-right mirror image."""
    flip_vertical: float = 0.0
    """Probability of an upside-down one."""
    rotate: float = 0.0
    """Largest rotation, degrees."""
    rotate_probability: float = 0.0
    """Probability of a rotation."""
    brightness: float = 0.4
    """Factor U[1 - x, 1 + x]."""
    contrast: float = 0.4
    """Factor U[1 - x, 1 + x] about the mean luma."""
    saturation: float = 0.4
    """Factor U[1 - x, 1 + x] about the luma."""
    hue: float = 0.1
    """Turn of the colours, U[-x, x] of a full circle."""
    colour_probability: float = 0.8
    """Probability of the four above."""
    grey: float = 0.2
    """Probability of a picture without colour (MoCo v2: 0.2)."""
    blur: float = 0.5
    """Probability of a Gaussian blur (MoCo v2: 0.5)."""
    blur_sigma: float = 0.6
    """Largest standard deviation of the blur in pixels, U[0.1, x] (MoCo v2: 2 at 224 pixels, so 0.6 at 64)."""
    noise: float = 0.0
    """Standard deviation of additive noise, one plane for all channels."""
    noise_probability: float = 0.0
    """Probability of it."""
    speckle: float = 0.0
    """Looks L of multiplicative gamma noise of mean 1 and variance 1 / L (SAR); 0: none."""
    speckle_probability: float = 0.0
    """Probability of it."""

    def __post_init__(self) -> None:
        for name in ("flip", "flip_vertical", "rotate_probability", "colour_probability", "grey", "blur",
                     "noise_probability", "speckle_probability"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"views.{name}={getattr(self, name)}: expected a probability from 0 to 1")
        if not 0 < self.crop_low <= self.crop_high <= 1:
            raise InputError(
                f"views.crop_low={self.crop_low}, crop_high={self.crop_high}: expected 0 < low <= high <= 1"
            )
        if self.ratio < 1:
            raise InputError(f"views.ratio={self.ratio}: expected 1 or more")
        for name in ("rotate", "brightness", "contrast", "saturation", "hue", "blur_sigma", "noise", "speckle"):
            if getattr(self, name) < 0:
                raise InputError(f"views.{name}={getattr(self, name)}: expected 0 or more")


def picture_view(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig, size: int | None = None
) -> Float[Tensor, "b c s t"]:
    """A moved and recoloured copy of pictures in [0, 1], of ``size`` x ``size`` pixels (default: as they are)."""
    x = warp(images, random, config, size)
    x = recolour(x, random, config)
    if config.blur and config.blur_sigma:
        soft = blur(x, random.uniform(BLUR + 1, 0.1, config.blur_sigma), config.blur_sigma).clamp(0, 1)
        x = torch.where(_chance(random, BLUR, config.blur), soft, x)
    if config.noise and config.noise_probability:
        plane = random.normal(NOISE + 1, x.shape[2] * x.shape[3]).view(-1, 1, *x.shape[2:]) * config.noise
        x = torch.where(_chance(random, NOISE, config.noise_probability), (x + plane).clamp(0, 1), x)
    if config.speckle and config.speckle_probability:
        spots = speckle(random, config.speckle, x.shape[2], x.shape[3])
        x = torch.where(_chance(random, SPECKLE, config.speckle_probability), (x * spots).clamp(0, 1), x)
    return x


def warp(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig, size: int | None = None
) -> Float[Tensor, "b c s t"]:
    """Crop, mirror and rotation as one bilinear sampling; what lies outside repeats the border."""
    height, width = (size, size) if size else images.shape[2:]
    area = random.uniform(CROP, config.crop_low, config.crop_high)[:, 0]
    shape = torch.exp(random.uniform(CROP + 1, -1, 1)[:, 0] * math.log(config.ratio) / 2)
    wide, high = (area.sqrt() * shape).clamp(max=1), (area.sqrt() / shape).clamp(max=1)
    place = random.uniform(CROP + 2, -1, 1, 2)
    move = torch.stack([place[:, 0] * (1 - wide), place[:, 1] * (1 - high)], 1)
    side = torch.where(random.uniform(FLIP, 0, 1)[:, 0] < config.flip, -1.0, 1.0)
    up = torch.where(random.uniform(FLIP + 1, 0, 1)[:, 0] < config.flip_vertical, -1.0, 1.0)
    turns = random.uniform(ROTATE, 0, 1)[:, 0] < config.rotate_probability
    angle = torch.where(turns, random.uniform(ROTATE + 1, -config.rotate, config.rotate)[:, 0] * math.pi / 180, 0.0)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([wide * side * cos, -wide * side * sin, move[:, 0]], 1),
            torch.stack([high * up * sin, high * up * cos, move[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [len(images), images.shape[1], height, width], align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def recolour(x: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig) -> Float[Tensor, "b c h w"]:
    """Brightness, contrast, saturation and hue, each sample with probability ``colour_probability``; then grey."""
    chosen = _chance(random, COLOUR, config.colour_probability)

    def factor(slot: int, reach: float) -> Tensor:
        value = random.uniform(COLOUR + slot, max(0.0, 1 - reach), 1 + reach)[:, :, None, None]
        return torch.where(chosen, value, 1.0)

    if config.brightness:
        x = (x * factor(1, config.brightness)).clamp(0, 1)
    if config.contrast:
        mean = luma(x).mean((2, 3), keepdim=True)
        x = (mean + (x - mean) * factor(2, config.contrast)).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    if config.saturation:
        grey = luma(x)
        x = (grey + (x - grey) * factor(3, config.saturation)).clamp(0, 1)
    if config.hue:
        angle = random.uniform(COLOUR + 4, -config.hue, config.hue)[:, 0] * 2 * math.pi
        x = _turn_hue(x, torch.where(chosen[:, 0, 0, 0], angle, 0.0))
    if config.grey:
        x = torch.where(_chance(random, GREY, config.grey), luma(x).expand_as(x), x)
    return x


def luma(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Brightness as the eye weighs it; of a one-channel picture itself."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blur(x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b 1"], most: float) -> Float[Tensor, "b c h w"]:
    """Gaussian blur with a standard deviation in pixels for each sample; the border is reflected. The kernel reaches
    three times ``most`` pixels for every sample, so that none depends on its batch."""
    radius = min(max(1, math.ceil(3 * most)), min(x.shape[2:]) - 1)
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.clamp_min(1e-3).to(x.dtype)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)[:, None]
    flat = F.pad(x.reshape(1, -1, *x.shape[2:]), [radius] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=flat.shape[1])
    return F.conv2d(flat, kernel[:, :, None, :], groups=flat.shape[1]).view_as(x)


def speckle(random: KeyedRandom, looks: float, height: int, width: int) -> Float[Tensor, "b 1 h w"]:
    """Multiplicative gamma noise of mean 1 and variance 1 / looks, by Wilson and Hilferty's cube-root normal
    approximation (Proc. Natl. Acad. Sci. 17, 1931): no rejection, so it can be keyed."""
    normal = random.normal(SPECKLE + 1, height * width).view(-1, 1, height, width)
    cube = 1 - 1 / (9 * looks) + normal * math.sqrt(1 / (9 * looks))
    return cube.clamp_min(0) ** 3


def _turn_hue(x: Float[Tensor, "b 3 h w"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    to = torch.tensor(_TO_YIQ, dtype=x.dtype, device=x.device)
    turn = torch.zeros(len(angle), 3, 3, dtype=x.dtype, device=x.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos().to(x.dtype)
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin().to(x.dtype), angle.sin().to(x.dtype)
    matrix = torch.linalg.inv(to) @ turn @ to
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp(0, 1)


def _chance(random: KeyedRandom, slot: int, probability: float) -> Tensor:
    """bool [b, 1, 1, 1]: which samples an operation befalls."""
    return (random.uniform(slot, 0, 1) < probability)[:, :, None, None]

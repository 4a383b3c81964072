"""Augmentation of pictures for momentum contrast and its kin: crops, colour, blur, noise, speckle; a whole batch at a
time, on the device of the tensors, drawn by sample (:mod:`consilience.views.keyed`).

Operations act in the order crop, flips, rotation, colour, grey, blur, noise, speckle. Colours are moved in a fixed
order (brightness, contrast, saturation, hue) instead of a random one, as one affine map that is clipped once; hue turns
the chroma plane of YIQ, which needs no branches and keeps luma. One-channel pictures get no colour operations but
brightness and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom

_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
CROP, FLIP, ROTATE, COLOUR, GREY, BLUR, NOISE, SPECKLE = (100 + 20 * i for i in range(8))  # slots of the draws
_SLOTS = (CROP, CROP + 1, FLIP, FLIP + 1, ROTATE, ROTATE + 1, *range(COLOUR, COLOUR + 5), GREY, BLUR, BLUR + 1, NOISE,
          SPECKLE)  # fmt: skip
_COLUMN = {slot: column for column, slot in enumerate(_SLOTS)}
_PART = 1 << 22  # numbers of a part of a batch


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


@dataclass(frozen=True)
class _Draws:
    """All numbers of a batch's views, drawn in one pass; noise and speckle are drawn where they fall."""

    random: KeyedRandom
    units: Float[Tensor, "b n"]
    place: Float[Tensor, "b 2"]

    @classmethod
    def of(cls, random: KeyedRandom) -> _Draws:
        return cls(random, random.units(_SLOTS), random.uniform(CROP + 2, -1, 1, 2))

    def uniform(self, slot: int, low: float, high: float) -> Float[Tensor, " b"]:
        return self.units[:, _COLUMN[slot]] * (high - low) + low

    def chance(self, slot: int, probability: float) -> Bool[Tensor, " b"]:
        """Which pictures an operation befalls."""
        return self.units[:, _COLUMN[slot]] < probability

    def of_rows(self, rows: slice | Tensor) -> _Draws:
        return _Draws(KeyedRandom(self.random.key, self.random.index[rows]), self.units[rows], self.place[rows])


def picture_view(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig, size: int | None = None
) -> Float[Tensor, "b c s t"]:
    """A moved and recoloured copy of pictures in [0, 1], of ``size`` x ``size`` pixels (default: as they are)."""
    height, width = (size, size) if size else images.shape[2:]
    draws, step = _Draws.of(random), len(images)
    if images.device.type == "cpu":  # parts bound the memory; no view depends on its batch
        step = max(1, _PART // max(1, images.shape[1] * height * width))
    if len(images) <= step:
        return _view(images, draws, config, height, width)
    parts = [slice(start, start + step) for start in range(0, len(images), step)]
    return torch.cat([_view(images[part], draws.of_rows(part), config, height, width) for part in parts])


def _view(images: Tensor, draws: _Draws, config: PictureViewConfig, height: int, width: int) -> Tensor:
    x = _recolour(_warp(images, draws, config, height, width), draws, config)
    if config.blur and config.blur_sigma:
        chosen = draws.chance(BLUR, config.blur)
        sigma = draws.uniform(BLUR + 1, 0.1, config.blur_sigma)[chosen, None]
        x = _on(x, chosen, lambda part: blur(part, sigma, config.blur_sigma).clamp_(0, 1))
    if config.noise and config.noise_probability:
        chosen = draws.chance(NOISE, config.noise_probability)
        few = draws.of_rows(chosen).random
        x = _on(x, chosen, lambda part: part.add_(_noise(few, part) * config.noise).clamp_(0, 1))
    if config.speckle and config.speckle_probability:
        chosen = draws.chance(SPECKLE, config.speckle_probability)
        some = draws.of_rows(chosen).random
        x = _on(x, chosen, lambda part: part.mul_(speckle(some, config.speckle, height, width)).clamp_(0, 1))
    return x


def warp(
    images: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig, size: int | None = None
) -> Float[Tensor, "b c s t"]:
    """Crop, mirror and rotation as one bilinear sampling; what lies outside repeats the border."""
    height, width = (size, size) if size else images.shape[2:]
    return _warp(images, _Draws.of(random), config, height, width)


def _warp(images: Tensor, draws: _Draws, config: PictureViewConfig, height: int, width: int) -> Tensor:
    area = draws.uniform(CROP, config.crop_low, config.crop_high)
    shape = torch.exp(draws.uniform(CROP + 1, -1, 1) * math.log(config.ratio) / 2)
    wide, high = (area.sqrt() * shape).clamp(max=1), (area.sqrt() / shape).clamp(max=1)
    side = torch.where(draws.chance(FLIP, config.flip), -1.0, 1.0)
    up = torch.where(draws.chance(FLIP + 1, config.flip_vertical), -1.0, 1.0)
    across = (2 * torch.arange(width, device=area.device, dtype=area.dtype) + 1) / width - 1
    down = ((2 * torch.arange(height, device=area.device, dtype=area.dtype) + 1) / height - 1)[:, None]
    x, y = _each(wide * side) * across, _each(high * up) * down
    if config.rotate and config.rotate_probability:
        turns = draws.chance(ROTATE, config.rotate_probability)
        degrees = draws.uniform(ROTATE + 1, -config.rotate, config.rotate)
        angle = torch.where(turns, degrees * math.pi / 180, 0.0)
        cos, sin = angle.cos(), angle.sin()
        x = _each(cos) * x - _each(wide * side * sin) * down
        y = _each(high * up * sin) * across + _each(cos) * y
    x = x + _each(draws.place[:, 0] * (1 - wide))
    y = y + _each(draws.place[:, 1] * (1 - high))
    grid = torch.view_as_real(torch.complex(x, y))  # pairs, written in one pass
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def recolour(x: Float[Tensor, "b c h w"], random: KeyedRandom, config: PictureViewConfig) -> Float[Tensor, "b c h w"]:
    """Brightness, contrast, saturation and hue, each sample with probability ``colour_probability``; then grey."""
    return _recolour(x.clone(), _Draws.of(random), config)


def _recolour(x: Tensor, draws: _Draws, config: PictureViewConfig) -> Tensor:
    """The same in place."""
    if config.brightness or config.contrast or config.saturation or config.hue:
        chosen = draws.chance(COLOUR, config.colour_probability)
        some = draws.of_rows(chosen)
        x = _on(x, chosen, lambda part: _recoloured(part, some, config))
    if x.shape[1] == 3 and config.grey:
        x = _on(x, draws.chance(GREY, config.grey), lambda part: luma(part).expand_as(part))
    return x


def _recoloured(x: Tensor, draws: _Draws, config: PictureViewConfig) -> Tensor:
    """The four colour operations on every picture of ``x``: one affine map of its colours, clipped at the end."""

    def factor(slot: int, reach: float) -> Tensor:
        return _each(draws.uniform(COLOUR + slot, max(0.0, 1 - reach), 1 + reach)).to(x.dtype)

    brightness, contrast = factor(1, config.brightness), factor(2, config.contrast)
    middle = luma(x.mean((2, 3), keepdim=True))[:, 0] * brightness
    scale, shift = brightness * contrast, middle * (1 - contrast)
    if x.shape[1] != 3:
        return x.mul_(scale[:, None]).add_(shift[:, None]).clamp_(0, 1)
    saturation = factor(3, config.saturation)
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device)
    matrix = saturation * torch.eye(3, dtype=x.dtype, device=x.device) + (1 - saturation) * weights  # greys stay
    if config.hue:
        matrix = _hue(draws.uniform(COLOUR + 4, -config.hue, config.hue) * 2 * math.pi, x) @ matrix
    return torch.baddbmm(shift, scale * matrix, x.flatten(2)).view_as(x).clamp_(0, 1)


def luma(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Brightness as the eye weighs it; of a one-channel picture itself."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = _LUMA
    return torch.add(x[:, :1] * red, x[:, 1:2], alpha=green).add_(x[:, 2:], alpha=blue)


def blur(x: Float[Tensor, "b c h w"], sigma: Float[Tensor, "b 1"], most: float) -> Float[Tensor, "b c h w"]:
    """Gaussian blur with a standard deviation in pixels for each sample; the border is reflected. The kernel reaches
    three times ``most`` pixels for every sample, so that none depends on its batch."""
    radius = min(max(1, math.ceil(3 * most)), min(x.shape[2:]) - 1)
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.clamp_min(1e-3).to(x.dtype)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, radius:, None, None, None]
    out = F.pad(x, [radius] * 4, mode="reflect")
    for axis in (2, 3):  # sums of shifted copies: two of them share a weight
        padded, length = out, x.shape[axis]
        out = padded.narrow(axis, radius, length) * kernel[:, 0]
        for k in range(1, radius + 1):
            both = padded.narrow(axis, radius - k, length) + padded.narrow(axis, radius + k, length)
            out.addcmul_(both, kernel[:, k])
    return out


def speckle(random: KeyedRandom, looks: float, height: int, width: int) -> Float[Tensor, "b 1 h w"]:
    """Multiplicative gamma noise of mean 1 and variance 1 / looks, by Wilson and Hilferty's cube-root normal
    approximation (Proc. Natl. Acad. Sci. 17, 1931): no rejection, so it can be keyed."""
    normal = random.normal(SPECKLE + 1, height * width).view(-1, 1, height, width)
    cube = 1 - 1 / (9 * looks) + normal * math.sqrt(1 / (9 * looks))
    return cube.clamp_min(0) ** 3


def _noise(random: KeyedRandom, like: Tensor) -> Tensor:
    """Standard normal numbers [b, 1, h, w], one plane for all channels."""
    return random.normal(NOISE + 1, like.shape[2] * like.shape[3]).view(-1, 1, *like.shape[2:])


def _hue(angle: Float[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 3 3"]:
    """The maps of colours that turn the chroma plane of YIQ by ``angle`` (radians); greys and luma stay."""
    to = torch.tensor(_TO_YIQ, dtype=like.dtype, device=like.device)
    turn = torch.zeros(len(angle), 3, 3, dtype=like.dtype, device=like.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos().to(like.dtype)
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin().to(like.dtype), angle.sin().to(like.dtype)
    maps: Tensor = torch.linalg.inv(to) @ turn @ to
    return maps


def _each(value: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1"]:
    return value[:, None, None]


def _on(x: Tensor, chosen: Bool[Tensor, " b"], change: Callable[[Tensor], Tensor]) -> Tensor:
    """``x`` with ``change`` made to the chosen pictures, which it gets as a copy that it may overwrite."""
    rows = chosen.nonzero()[:, 0]
    return x.index_copy_(0, rows, change(x.index_select(0, rows))) if len(rows) else x

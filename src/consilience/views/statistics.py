"""What can be said of a picture's complexity without learning: entropy, edges, compressed size, regions.

The usual baselines of image complexity (SAVOIAS, Saraee et al. 2018; IC9600, Feng et al. 2022); CLIC holds activations
against the first. All of them grow with complexity. Entropy and edges are batched tensor functions and may be used on
training views; compressed sizes and regions are found picture by picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from consilience.views.pictures import luma

LEVELS = 256
MOST_ENTROPY = math.log(LEVELS)
"""Of an 8-bit picture, nats."""
EDGE = 0.05
"""Change of luma from a pixel to the next, on the scale 0 to 1, from which on the pixel lies on an edge."""
QUALITY = 75
"""Of JPEG."""
SHADES = 8
"""Shades of grey between which regions are told apart."""


def entropy(images: Float[Tensor, "b c h w"], bins: int = LEVELS) -> Float[Tensor, " b"]:
    """GE(x) = -sum_v p_v ln p_v of the histogram of the grey picture (CLIC): nats, 0 to ln ``bins``, float32.

    Grey is the mean of the channels; values are expected in [0, 1] (what lies outside counts as the nearest end), so
    pictures are given before any normalisation. No gradient passes. One ``bincount`` for the whole batch.
    """
    grey = images.detach().float().mean(1).flatten(1)
    place = (grey * bins).long().clamp(0, bins - 1)
    place = place + torch.arange(len(images), device=images.device)[:, None] * bins
    counts = torch.bincount(place.flatten(), minlength=len(images) * bins).view(len(images), bins)
    share = counts.double() / grey.shape[1]
    found: Tensor = torch.special.entr(share).sum(1)
    return found.float()


def gradient(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Length of the gradient of luma by Sobel's masks, in luma a pixel; the border is repeated."""
    mask = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 8
    grey = F.pad(luma(images.float()), (1, 1, 1, 1), mode="replicate")
    both = F.conv2d(grey, torch.stack([mask, mask.T])[:, None])
    return both.square().sum(1).sqrt()


def edge_density(images: Float[Tensor, "b c h w"], threshold: float = EDGE) -> Float[Tensor, " b"]:
    """Share of the pixels at which luma changes by more than ``threshold`` a pixel, float32."""
    return (gradient(images.detach()) > threshold).float().mean((1, 2))


def compressed(picture: UInt8[np.ndarray, "c h w"], form: str) -> float:
    """Bits a pixel of the picture as PNG or JPEG (quality 75), without the about 600 bytes of headers and tables that a
    JPEG of any picture has: of a picture of one colour the size is taken as 0."""
    size = _size(picture, form) - _least(picture.shape, form)
    return float(8 * max(0, size) / (picture.shape[1] * picture.shape[2]))


@lru_cache
def _least(shape: tuple[int, ...], form: str) -> int:
    return _size(np.zeros(shape, dtype=np.uint8), form)


def _size(picture: UInt8[np.ndarray, "c h w"], form: str) -> int:
    stream = io.BytesIO()
    pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, form, quality=QUALITY)
    return stream.getbuffer().nbytes


def regions(picture: UInt8[np.ndarray, "c h w"]) -> float:
    """ln(1 + number of connected regions of one shade), after a median over 3 x 3 pixels and rounding to 8 shades."""
    grey = ndimage.median_filter(picture.astype(np.float32).mean(0), 3, mode="nearest")
    shade = np.minimum(grey * SHADES / 256, SHADES - 1).astype(np.int64)
    return math.log1p(sum(ndimage.label(shade == value)[1] for value in np.unique(shade)))


def _each(measure: Callable[[np.ndarray], float]) -> Callable[[Tensor], np.ndarray]:
    return lambda images: np.array([measure(picture) for picture in images.numpy()], dtype=np.float64)


PRIORS: dict[str, Callable[[Tensor], np.ndarray]] = {
    "entropy": lambda images: entropy(images.float() / 255).numpy().astype(np.float64),
    "edge_density": lambda images: edge_density(images.float() / 255).numpy().astype(np.float64),
    "jpeg": _each(lambda picture: compressed(picture, "JPEG")),
    "png": _each(lambda picture: compressed(picture, "PNG")),
    "regions": _each(regions),
}
"""Statistics of decoded pictures uint8 [n, c, h, w] on the CPU: name to a function that gives float64 [n]."""


def priors(
    images: UInt8[Tensor, "n c h w"], names: Iterable[str] = tuple(PRIORS)
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The statistics ``names`` of :data:`PRIORS` (all of them) for decoded pictures."""
    on_cpu = images.cpu()
    return {name: PRIORS[name](on_cpu) for name in names}

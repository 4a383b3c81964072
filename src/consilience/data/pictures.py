"""Pictures: raw bytes to pixels of one size, and where a pixel of the file lands."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from consilience.data.schema import Kind
from consilience.errors import InputError

IMAGE_FORMATS = ("png", "jpeg", "gif", "bmp", "webp", "tiff")
MAX_PIXELS = 80_000_000
Fit = Literal["cut", "whole", "centre"]


@dataclass(frozen=True)
class Placement:
    """How a picture of some size is put onto a square: scaled to ``width`` x ``height``, its corner at (``left``,
    ``top``), which is negative where it is cut."""

    width: int
    height: int
    left: int
    top: int
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, width: int, height: int, size: int, fit: Fit) -> Placement:
        """The placement of a ``width`` x ``height`` picture on ``size`` x ``size`` pixels."""
        scale = {"cut": size / min(width, height), "whole": size / max(width, height), "centre": 1.0}[fit]
        least = size if fit == "cut" else 1
        wide, high = max(least, round(width * scale)), max(least, round(height * scale))
        left, top = -((wide - size) // 2), -((high - size) // 2)
        return cls(wide, high, left, top, wide / width, high / height)

    def place(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Positions (x, y) in pixels of the file as pixels of the square (they may lie outside of it)."""
        return np.asarray(points * [self.scale_x, self.scale_y] + [self.left, self.top], dtype=np.float32)


def decode_image(data: bytes, kind: Kind, size: int, fit: Fit = "cut") -> UInt8[np.ndarray, "c {size} {size}"]:
    """A picture as uint8 [3 or 1, size, size], put there as ``fit`` says (bilinear, with anti-aliasing).

    Transparency is composited on white; EXIF rotation is applied; 16-bit greys keep their upper byte; of an animation
    the first frame counts. Raises :class:`InputError` for broken data, other files and too many pixels.
    """
    picture = open_image(data)
    mode = "RGB" if kind is Kind.RGB else "L"
    try:
        place = Placement.of(*_upright(picture), size, fit)
        if picture.format == "JPEG" and fit != "centre":
            picture.draft(mode, (2 * size, 2 * size))
        picture = _flatten(ImageOps.exif_transpose(picture), mode)
    except Exception as error:
        raise InputError(f"broken image ({reason(error)}); repair or remove it") from error
    if picture.size != (place.width, place.height):
        picture = picture.resize((place.width, place.height), Image.Resampling.BILINEAR)
    if picture.size != (size, size):
        picture = picture.crop((-place.left, -place.top, size - place.left, size - place.top))
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[None] if kind is Kind.GREY else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_whole(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as it is, upright, uint8 [h, w, 3]; transparency and depth as in :func:`decode_image`."""
    try:
        return np.array(_flatten(ImageOps.exif_transpose(open_image(data)), "RGB"), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"broken image ({reason(error)}); repair or remove it") from error


def placement(data: bytes, size: int, fit: Fit) -> Placement:
    """Where :func:`decode_image` puts a picture's pixels; reads the header only."""
    try:
        return Placement.of(*_upright(open_image(data)), size, fit)
    except OSError as error:
        raise InputError(f"broken image ({reason(error)}); repair or remove it") from error


def _upright(picture: Image.Image) -> tuple[int, int]:
    """Width and height once the picture is turned as its EXIF orientation says."""
    turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return picture.size[::-1] if turned else picture.size


def image_channels(data: bytes) -> int:
    """1 for a picture that is stored in grey without transparency, else 3 (read from the header)."""
    return 1 if open_image(data).mode in ("1", "L", "I;16", "I;16B", "I;16L", "I") else 3


def open_image(data: bytes) -> Image.Image:
    """The picture with its pixels still packed; InputError when it is none, or too large."""
    try:
        picture = Image.open(io.BytesIO(data), formats=[name.upper() for name in IMAGE_FORMATS])
    except Exception as error:
        what = "empty file" if not data else "not a readable image"
        raise InputError(f"{what}; expected one of {', '.join(IMAGE_FORMATS)}") from error
    if picture.width * picture.height > MAX_PIXELS:
        raise InputError(f"image of {picture.width} x {picture.height} pixels; the limit is {MAX_PIXELS}")
    return picture


def _flatten(picture: Image.Image, mode: str) -> Image.Image:
    """Decode fully, put transparency on white, convert to ``mode``."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert(mode)
    if picture.mode == "F":
        raise ValueError("floating-point pixels; store 8 or 16 bits")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        colours = picture.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, colours).convert("RGB")
    return picture.convert(mode)


def reason(error: BaseException) -> str:
    """An exception as a short remark."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:160]

"""One sample as something small to look at: a PNG, or its words."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from consilience.data.decode import decode_mesh, decode_points
from consilience.data.features import decode_vector, shape_of
from consilience.data.pictures import decode_image
from consilience.data.reading import png_bytes
from consilience.data.schema import Kind
from consilience.data.text import as_text
from consilience.errors import InputError

SIDE = 72
_POINTS, _FACES, _LETTERS = 512, 512, 160


def thumbnail(data: bytes | None, kind: Kind, origin: str) -> bytes | str:
    """PNG bytes of a picture, of a cloud or a mesh seen from the front (near points darker), of features as bars; the
    words of a caption; a remark for what is absent or cannot be read."""
    if data is None:
        return "(absent)"
    try:
        if kind.is_image:
            pixels = decode_image(data, kind, SIDE)
            return png_bytes(pixels[0] if kind is Kind.GREY else pixels.transpose(1, 2, 0))
        if kind is Kind.TEXT:
            words = as_text(data)
            return words if len(words) <= _LETTERS else words[: _LETTERS - 1] + "…"
        if kind is Kind.POINTS:
            return png_bytes(_front(decode_points(data, origin, _POINTS)))
        if kind is Kind.MESH:
            corners = decode_mesh(data, origin, _FACES)
            centres = corners[:, :3] - corners[:, :3].mean(0)
            return png_bytes(_front(centres / max(float(np.abs(centres).max()), 1e-9)))
        shape = shape_of(data)
        return png_bytes(_bars(decode_vector(data, shape[0]))) if kind is Kind.VECTOR else f"{shape[0]} regions"
    except InputError as error:
        return f"(unreadable: {error})"


def _front(points: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "s s"]:
    """Points in [-1, 1] from the front as dots of 2 x 2 pixels on white."""
    picture = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    place = ((points[:, :2] * np.array([1, -1]) * 0.94 + 1) / 2 * (SIDE - 2)).astype(np.int64).clip(0, SIDE - 2)
    depth = points[:, 2]
    span = max(float(depth.max() - depth.min()), 1e-9)
    shade = (150 - 130 * (depth - depth.min()) / span).astype(np.uint8)
    for dot in np.argsort(depth):
        x, y = place[dot]
        picture[y : y + 2, x : x + 2] = shade[dot]
    return picture


def _bars(values: Float[np.ndarray, " d"]) -> UInt8[np.ndarray, "s s"]:
    """Up to one bar a pixel, from the bottom, the largest as high as the picture."""
    values = np.abs(values[:SIDE])
    heights = (values / max(float(values.max(initial=0)), 1e-9) * (SIDE - 1)).astype(np.int64)
    bars = np.repeat(heights, max(1, SIDE // max(1, len(heights))))[:SIDE]
    picture = np.full((SIDE, SIDE), 255, dtype=np.uint8)
    for x, height in enumerate(bars):
        picture[SIDE - 1 - height :, x] = 70
    return picture

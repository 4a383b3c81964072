"""Maps laid over the pictures they belong to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from consilience.data.pictures import Placement

_OPAQUE = 0.6


def onto(map: Float[np.ndarray, "h w"], place: Placement, size: int, width: int, height: int) -> np.ndarray:
    """A map of the decoded ``size`` x ``size`` square as float32 [height, width] of the picture it was made from.

    Bilinear; what the square does not show of the picture (``cut``, ``centre``) takes the nearest value.
    """
    scale_y, scale_x = map.shape[0] / size, map.shape[1] / size
    # a pixel's middle in the picture, as a place in the map
    x = ((np.arange(width) + 0.5) * place.scale_x + place.left) * scale_x - 0.5
    y = ((np.arange(height) + 0.5) * place.scale_y + place.top) * scale_y - 0.5
    x, y = np.clip(x, 0, map.shape[1] - 1), np.clip(y, 0, map.shape[0] - 1)
    left, up = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = np.minimum(left + 1, map.shape[1] - 1), np.minimum(up + 1, map.shape[0] - 1)
    rows = map[:, left] * (1 - (x - left)) + map[:, right] * (x - left)
    share = (y - up)[:, None]
    return np.asarray(rows[up] * (1 - share) + rows[down] * share, dtype=np.float32)


def overlay(
    original: UInt8[np.ndarray, "h w 3"],
    map: Float[np.ndarray, "a b"],
    place: Placement,
    size: int,
    low: float | None = None,
    high: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in grey under a map of its decoded ``size`` x ``size`` square in colours (viridis): dark blue for
    ``low``, yellow for ``high`` (by default the map's least and largest value; all equal is shown as low)."""
    import matplotlib

    height, width = original.shape[:2]
    spread = onto(map, place, size, width, height)
    low = float(map.min()) if low is None else low
    high = float(map.max()) if high is None else high
    share = np.clip((spread - low) / (high - low), 0, 1) if high > low else np.zeros_like(spread)
    colours = matplotlib.colormaps["viridis"](share)[..., :3] * 255
    grey = np.asarray(Image.fromarray(original).convert("L"), dtype=np.float32)[..., None]
    return np.asarray(np.round(_OPAQUE * colours + (1 - _OPAQUE) * grey), dtype=np.uint8)

"""The generator of the public "3D MNIST" set: a digit's lit pixels as boxes, points on their outer faces.

Source: the notebook published with the data set (Kaggle, daavoo/3d-mnist), after its description; the
digits are the first 5000 training and 1000 test images of MNIST.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

HALF_WIDTH, HALF_HEIGHT = 0.5, 3.0
_ACROSS, _ALONG = 5, 30


def digit_points(
    image: UInt8[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Points and unit normals, float64 [n, 3] each, of a digit (any pixel above 0 is lit).

    A lit pixel is a box, 1 x 1 wide and 6 deep. Its front and back carry 5 x 5 points; each of its four
    sides carries 5 x 30, if the pixel across it is not lit: n = 50 (lit pixels) + 150 (exposed sides). The
    cloud is scaled by its largest range to 1, centred at its mean, and turned upright: axes are depth,
    right, up.

    Raises ValueError for an image without lit pixels.
    """
    lit = np.pad(np.asarray(image) > 0, 1)
    if not lit.any():
        raise ValueError("the image has no lit pixel")
    across = np.linspace(-HALF_WIDTH, HALF_WIDTH, _ACROSS)
    along = np.linspace(-HALF_HEIGHT, HALF_HEIGHT, _ALONG)
    points, normals = [], []

    def add(pixels: np.ndarray, face: np.ndarray, normal: tuple[int, int, int]) -> None:
        centres = np.concatenate([pixels, np.zeros((len(pixels), 1))], axis=1)
        points.append((centres[:, None] + face).reshape(-1, 3))
        normals.append(np.broadcast_to(np.array(normal, dtype=np.float64), (len(pixels) * len(face), 3)))

    for end in (-1, 1):
        add(np.argwhere(lit), _grid(across, across, np.array([end * HALF_HEIGHT])), (0, 0, end))
        for axis in (0, 1):
            exposed = lit & ~np.roll(lit, -end, axis)
            rim = np.array([end * HALF_WIDTH])
            face = _grid(rim, across, along) if axis == 0 else _grid(across, rim, along)
            add(np.argwhere(exposed), face, (end, 0, 0) if axis == 0 else (0, end, 0))
    cloud = np.concatenate(points)
    low, ranges = cloud.min(0), np.ptp(cloud, axis=0)
    widest = int(ranges.argmax())
    cloud = (cloud - low[widest]) / ranges[widest]
    return _upright(cloud - cloud.mean(0)), _upright(np.concatenate(normals))


def _grid(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)


def _upright(vectors: np.ndarray) -> np.ndarray:
    """(x, y, z) -> (z, y, -x)."""
    return np.stack([vectors[:, 2], vectors[:, 1], -vectors[:, 0]], axis=1)

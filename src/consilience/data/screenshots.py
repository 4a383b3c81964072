"""Web pages to pairs: the description in the HTML, and the regions of a screenshot.

What the authors of Noise of Web did with a browser and a trained detector of interface elements, with any
detector put in; :func:`grid_detector` needs no weights and serves tests and dry runs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
from PIL import Image

from consilience.errors import InputError

Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""uint8 [H, W, 3] to boxes [n, 4] (left, top, right, bottom in pixels), scores [n] and features [n, d]."""
SCREEN = (720, 1280)
"""Width and height of a page in pixels."""
OVERLAP = 0.7
"""Of two boxes whose intersection over union is above it, the one with the lower score is left out."""
_DESCRIPTIONS = (("name", "description"), ("property", "og:description"))
_SCALES = ((4, 6), (2, 4), (1, 8))
_COLOURS, _DIRECTIONS = 4, 8


def description(html: str) -> str | None:
    """The page's description: the first ``meta name=description``, else the first ``meta
    property=og:description``, with entities resolved, NFC-normalised, white space collapsed; ``None`` when
    there is none or it is empty. Names are compared without case."""
    parser = _Metas()
    parser.feed(html)
    parser.close()
    for key in _DESCRIPTIONS:
        text = " ".join(unicodedata.normalize("NFC", parser.found.get(key, "")).split())
        if text:
            return text
    return None


def letterbox(picture: np.ndarray) -> np.ndarray:
    """A screenshot uint8 [H, W, 3] as uint8 [1280, 720, 3]: scaled to fit, centred on white.

    Raises :class:`InputError` for another shape or type.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise InputError(f"screenshot is {picture.dtype} {picture.shape}; expected uint8 [height, width, 3]")
    width, height = SCREEN
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    screen = Image.new("RGB", SCREEN, (255, 255, 255))
    screen.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(screen)


def best_regions(boxes: np.ndarray, scores: np.ndarray, features: np.ndarray, most: int) -> np.ndarray:
    """Features [r, d] of the ``most`` best boxes after non-maximum suppression, best first; of equal scores the
    upper one, then the left one. Raises :class:`InputError` for shapes that do not fit and values that are
    not finite."""
    n = len(scores)
    if boxes.shape != (n, 4) or scores.shape != (n,) or features.ndim != 2 or len(features) != n:
        raise InputError(
            f"detector gave boxes {boxes.shape}, scores {scores.shape}, features {features.shape}; "
            "expected [n, 4], [n] and [n, d]"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(features).all()):
        raise InputError("detector gave NaN or infinite values; correct it or leave the page out")
    boxes = boxes.astype(np.float64)
    left = np.lexsort((boxes[:, 0], boxes[:, 1], -scores))
    kept: list[int] = []
    while left.size and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[_overlap(boxes[best], boxes[left]) <= OVERLAP]
    return features[np.array(kept, dtype=np.int64)]


def grid_detector(width: int = 768) -> Detector:
    """A detector without weights: the cells of three grids, scored by their mean gradient; features are colour and
    gradient histograms, projected by a fixed random matrix to ``width`` values. The same picture always gives
    the same result. It knows nothing of interfaces."""
    bins = _COLOURS**3 + _DIRECTIONS
    projection = np.random.default_rng(0).normal(size=(bins, width)) / np.sqrt(bins)

    def detect(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grey = picture.astype(np.float64).mean(2)
        down, right = np.gradient(grey)
        strength = np.hypot(down, right)
        direction = np.floor((np.arctan2(down, right) / (2 * np.pi) % 1) * _DIRECTIONS).astype(np.int64) % _DIRECTIONS
        colour = (picture.astype(np.int64) * _COLOURS // 256) @ np.array([_COLOURS**2, _COLOURS, 1])
        boxes, scores, features = [], [], []
        for columns, rows in _SCALES:
            xs = np.linspace(0, picture.shape[1], columns + 1).astype(int)
            ys = np.linspace(0, picture.shape[0], rows + 1).astype(int)
            for top, bottom in pairwise(ys):
                for start, end in pairwise(xs):
                    cell = np.s_[top:bottom, start:end]
                    area = max(1, strength[cell].size)
                    colours = np.bincount(colour[cell].ravel(), minlength=_COLOURS**3) / area
                    edges = np.bincount(direction[cell].ravel(), strength[cell].ravel(), _DIRECTIONS) / (255 * area)
                    boxes.append((start, top, end, bottom))
                    scores.append(float(strength[cell].mean()) if strength[cell].size else 0.0)
                    features.append(np.concatenate([colours, edges]) @ projection)
        return np.array(boxes, dtype=np.float64), np.array(scores), np.array(features)

    return detect


class _Metas(HTMLParser):
    """Collects the first filled content of every kind of description."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[tuple[str, str], str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            return
        values = {name: value or "" for name, value in reversed(attrs)}  # of doubled attributes the first counts
        for key in _DESCRIPTIONS:
            if values.get(key[0], "").strip().lower() == key[1] and values.get("content", "").strip():
                self.found.setdefault(key, values["content"])


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    area = float(np.prod(box[2:] - box[:2])) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    ratio: np.ndarray = both / np.maximum(area, 1e-12)
    return ratio

"""How many things a picture shows, where, and what that looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import matplotlib
import numpy as np

from consilience.data.density import covered
from consilience.data.pictures import Placement
from consilience.data.schema import Batch
from consilience.errors import InputError
from consilience.methods.base import Method
from consilience.prediction.base import Prediction, Predictor
from consilience.prediction.pictures import onto, overlay
from consilience.training.api import Run


class Counter:
    """Counts with density maps; build it with :func:`predictor`."""

    column = "count_estimate"

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        """The count of every picture, its density map in colours, and the same over the picture, as large as the
        picture. ``densest``: the pixel of the picture where things lie closest."""
        size = self.method.decode.image_size
        density = cast(Any, self.method).density(batch).cpu()
        density = (density * covered(places, size, *density.shape[2:]))[:, 0].numpy()
        return [
            self._one(density[i], original, place, size)
            for i, (original, place) in enumerate(zip(originals, places, strict=True))
        ]

    def _one(self, density: np.ndarray, original: np.ndarray, place: Placement, size: int) -> Prediction:
        spread = onto(density, place, size, original.shape[1], original.shape[0])
        share = spread / max(float(spread.max()), 1e-12)
        colours = np.round(matplotlib.colormaps["viridis"](share)[..., :3] * 255).astype(np.uint8)
        y, x = np.unravel_index(int(spread.argmax()), spread.shape)
        pictures = {"density": colours, "overlay": overlay(original, density, place, size, low=0.0)}
        return Prediction(float(density.sum()), {"densest": [int(x), int(y)]}, pictures)


def predictor(run: Run, readout: str | None) -> Predictor:
    """Counting needs no read-out; InputError when one is named."""
    if readout is not None:
        raise InputError(f"{run.path} counts by itself; leave out --readout {readout}")
    return Counter(run.method)

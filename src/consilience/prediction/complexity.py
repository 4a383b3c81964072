"""Scores of complexity with a map of where it lies.

A network with a head of its own gives both. On frozen features the read-out gives the score, and the map follows from
it exactly: features are the mean of the last feature map over its places and the read-out is affine, so that the same
read-out of every place gives numbers whose mean is the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from consilience.data.pictures import Placement
from consilience.data.schema import Batch
from consilience.errors import InputError
from consilience.evaluation.complexity import SCORE, UNSUPERVISED, Scorer, label_free
from consilience.prediction.base import Prediction, Predictor
from consilience.prediction.pictures import overlay
from consilience.training.api import Run
from consilience.training.readouts import Readout, fitted


@runtime_checkable
class Mapped(Protocol):
    """A method whose vectors are the mean of a map."""

    def last_map(self, batch: Batch) -> Tensor:
        """The map [b, d, h, w]."""


@dataclass
class ComplexityPredictor:
    """Scores and maps of a run: by its own head, or by ``readout`` of its frozen features."""

    run: Run
    readout: Readout | None
    name: str
    """Of the read-out."""
    column: str = "complexity"

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        """One score a picture, with ``low`` and ``high`` of its map, and the map over the picture."""
        scores, maps = self._answers(batch)
        size, found = self.run.method.decode.image_size, []
        for score, place, original, where in zip(scores, maps, originals, places, strict=True):
            shown = overlay(original, place, where, size)
            extra = {"readout": self.name, "low": float(place.min()), "high": float(place.max())}
            found.append(Prediction(float(score), extra, {"complexity": shown}))
        return found

    def _answers(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Scores [b] and maps [b, h, w]."""
        method = self.run.method
        if self.readout is None:
            assert isinstance(method, Scorer)
            scores, maps = method.judge(batch)
            return scores.cpu().numpy(), maps[:, 0].cpu().numpy()
        assert isinstance(method, Mapped)
        features = method.last_map(batch).permute(0, 2, 3, 1).float().cpu().numpy()
        each = self.readout.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:3])
        return each.mean((1, 2)), each


def predictor(run: Run, readout: str | None) -> Predictor:
    """What answers for ``run``. ``readout``: name of a fitted one; by default ``score`` where ``evaluate`` has fitted
    it on scored pictures, else ``unsupervised``, which is fitted now if it is not there.

    Raises :class:`InputError` for a read-out that was not fitted, one of a network with its own head, and where one
    must be chosen because the scores are of several categories.
    """
    if isinstance(run.method, Scorer):
        if readout is not None:
            raise InputError(f"{run.path} gives scores by its own head; leave out --readout {readout}")
        return ComplexityPredictor(run, None, "own head")
    known = fitted(run.path)
    if readout is None:
        by_category = [name for name in known if name.startswith(f"{SCORE}-")]
        if by_category:
            raise InputError(f"scores of {run.path} are of several categories; choose --readout {by_category[0]}")
        readout = SCORE if SCORE in known else UNSUPERVISED
    if readout == UNSUPERVISED and readout not in known:
        return ComplexityPredictor(run, label_free(run)[0], readout)
    return ComplexityPredictor(run, Readout.load(run.path, readout), readout)

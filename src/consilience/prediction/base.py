"""What a prediction is, and what makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from consilience.data.pictures import Placement
from consilience.data.schema import Batch


@dataclass(frozen=True)
class Prediction:
    """Of one picture."""

    value: float | str
    """The answer: a score, a count, the name of a class."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is said, plain values."""
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name to a picture uint8 [h, w, 3] that shows it."""


class Predictor(Protocol):
    """Answers for a batch of pictures."""

    column: str
    """The Table's column that takes the values."""

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        """One answer a picture. ``batch``: decoded as the method does, on its device; ``originals``: the pictures
        themselves, upright, uint8 [h, w, 3]; ``places``: where these lie in the decoded squares."""

"""The checker behind the annotations of the rooms that ``conftest.py`` names."""

from __future__ import annotations

from typing import Any

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,
        # the way mypy wants an array of any shape and type to be written, which beartype does not know
        hint_overrides=FrozenDict({np.ndarray[Any, Any]: np.ndarray}),
    )
)
"""beartype that takes an int where a float is declared, as mypy does."""

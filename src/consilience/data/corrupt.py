"""Seeded mismatches with the truth kept: which row another row's partner is taken from.

Each function takes the row offsets of a split and returns offsets of the same length, ready for
``Loader(partners={modality: ...})``, and a mask that is true where the pair is still the true one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from consilience.errors import InputError


def shuffle_pairs(
    index: Int64[np.ndarray, " n"], ratio: float, seed: int
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Mismatch round(ratio * n) randomly chosen rows: their partners move along one random cycle, so none
    of them keeps its own. Fewer than two rows cannot be mismatched and stay as they are.

    Returns (partners, mask of true pairs). Raises :class:`InputError` for a ratio outside 0..1.
    """
    rng = np.random.default_rng(seed)
    index = np.asarray(index, dtype=np.int64)
    chosen = rng.permutation(len(index))[: _count(ratio, len(index))]
    partners = index.copy()
    if len(chosen) > 1:
        partners[chosen] = index[np.roll(chosen, 1)]
    return partners, partners == index


def shuffle_partners_within_class(
    index: Int64[np.ndarray, " n"], classes: Int64[np.ndarray, " n"], seed: int, ratio: float = 1.0
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Permute the partners of round(ratio * n_c) random rows of every class c at random, within the class.

    This rebuilds the leak of the released RoMo lists: "pairs" that are two random instances of one class.
    ``classes`` are codes, one a row. Returns (partners, mask of true pairs); a row may meet its own partner
    by chance. Raises :class:`InputError` for a ratio outside 0..1 and lengths that differ.
    """
    index, classes = np.asarray(index, dtype=np.int64), np.asarray(classes)
    if index.shape != classes.shape:
        raise InputError(f"{len(index)} rows but {len(classes)} class codes; give one for each row")
    rng = np.random.default_rng(seed)
    partners = index.copy()
    for code in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == code))
        chosen = members[: _count(ratio, len(members))]
        partners[chosen] = index[rng.permutation(chosen)]
    return partners, partners == index


def _count(ratio: float, n: int) -> int:
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio} of mismatched pairs; give a number from 0 to 1")
    return round(ratio * n)

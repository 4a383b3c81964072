"""Agreement of predicted with true scores: correlations, errors, and their intervals.

PCC is Pearson's correlation, SRCC Spearman's with average ranks for ties; RMSE is the root of the mean squared error,
RMAE the root of the mean absolute error, as IC9600 defines it. A correlation with a constant is taken as 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import rankdata

from consilience.errors import InputError
from consilience.evaluation.stats import percentile

NAMES = ("srcc", "pcc", "rmse", "rmae")
RESAMPLES = 1000
_CHUNK = 1 << 20


def pcc(predicted: Float[np.ndarray, "*r n"], true: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Pearson's correlation along the last axis; 0 where either side is constant."""
    a = predicted - predicted.mean(-1, keepdims=True)
    b = true - true.mean(-1, keepdims=True)
    # what is constant up to round-off counts as constant
    flat = [np.abs(x).max(-1) <= 1e-12 * np.abs(y).max(-1) for x, y in ((a, predicted), (b, true))]
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found = (a * b).sum(-1) / np.where(scale > 0, scale, 1)
    return np.asarray(np.where(flat[0] | flat[1] | (scale == 0), 0.0, found))


def srcc(predicted: Float[np.ndarray, "*r n"], true: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Spearman's correlation along the last axis: Pearson's of the ranks, equal values sharing their mean rank."""
    return pcc(rankdata(predicted, axis=-1), rankdata(true, axis=-1))


def rmse(predicted: Float[np.ndarray, "*r n"], true: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Root of the mean squared error along the last axis."""
    return np.asarray(np.sqrt(((predicted - true) ** 2).mean(-1)))


def rmae(predicted: Float[np.ndarray, "*r n"], true: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Root of the mean absolute error along the last axis (IC9600's definition)."""
    return np.asarray(np.sqrt(np.abs(predicted - true).mean(-1)))


_FIGURES = {"srcc": srcc, "pcc": pcc, "rmse": rmse, "rmae": rmae}


def agreement(
    predicted: Float[np.ndarray, " n"],
    true: Float[np.ndarray, " n"],
    groups: Sequence[Int64[np.ndarray, " m"]] | None = None,
    *,
    names: Sequence[str] = NAMES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float | dict[str, list[float]]]:
    """The figures ``names`` with 95% percentile bootstrap intervals over samples, under ``ci95``.

    ``groups``: positions of the samples of each category; a figure is then the plain mean over categories, draws are
    made within each. Warns when predictions are constant. Raises :class:`InputError` for fewer than three samples in a
    category, and values that are not finite.
    """
    parts = [np.arange(len(true))] if groups is None else list(groups)
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        raise InputError("scores that are not finite cannot be judged; leave these rows out with --where")
    if not parts or min(len(part) for part in parts) < 3:
        raise InputError("a correlation needs three scored rows or more (of each category); widen --where")
    if any(np.ptp(predicted[part]) == 0 for part in parts):
        warnings.warn("all predictions are equal; their correlations count as 0", stacklevel=2)
    point = _mean(parts, names, predicted, true)
    draws: dict[str, np.ndarray] = dict.fromkeys(names, np.zeros(resamples))
    rng = np.random.default_rng(seed)
    for part in parts:
        for name, values in _drawn(rng, names, predicted[part], true[part], resamples).items():
            draws[name] = draws[name] + values / len(parts)
    return {**point, "ci95": {name: list(percentile(draws[name])) for name in names}}


def _mean(
    parts: Sequence[np.ndarray], names: Sequence[str], predicted: np.ndarray, true: np.ndarray
) -> dict[str, float]:
    return {name: float(np.mean([_FIGURES[name](predicted[p], true[p]) for p in parts])) for name in names}


def _drawn(
    rng: np.random.Generator, names: Sequence[str], predicted: np.ndarray, true: np.ndarray, resamples: int
) -> Mapping[str, np.ndarray]:
    n, rows = len(true), max(1, _CHUNK // len(true))
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))
        for name in names:
            found[name].append(_FIGURES[name](predicted[drawn], true[drawn]))
    return {name: np.concatenate(values) for name, values in found.items()}

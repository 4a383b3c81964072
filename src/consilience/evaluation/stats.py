"""Intervals and paired tests: no number without its spread.

Over many queries: percentile bootstrap. Over a few seeds: Student's t and an exact sign-flip test. Too few
values for an interval give (nan, nan), never a made-up one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

from consilience.errors import InputError

Values = Float[Tensor, " n"] | npt.NDArray[np.floating] | list[float] | tuple[float, ...]
"""One number per query or per seed [n]."""
EXACT_PAIRS = 12
"""Up to this many pairs all sign flips are enumerated."""
SAMPLED_FLIPS = 20_000
_CHUNK = 1 << 21  # random draws held at a time: 16 MiB


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; ``low`` and ``high`` are nan where one value allows none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over pairs with its t interval; two-sided sign-flip p-value, nan for one pair."""

    interval: Interval
    p_value: float


def bootstrap_mean(values: Values, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean over ``values`` [n], such as one AP per query.

    Memory is bounded: resamples are drawn in chunks. Raises :class:`InputError` for empty or non-finite
    values, a confidence outside (0, 1) or no resamples.
    """
    x = _vector("values", values)
    _check_confidence(confidence)
    if resamples < 1:
        raise InputError(f"resamples is {resamples}: expected at least 1, better 1000 or more")
    n = len(x)
    if n == 1:
        return Interval(float(x[0]), math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = x[rng.integers(n, size=(stop - start, n))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high))


def t_interval(values: Values, *, confidence: float = 0.95) -> Interval:
    """Student t interval of the mean over a few independent ``values`` [n], such as one mAP per seed.

    One value has no interval: (nan, nan). Raises :class:`InputError` for empty or non-finite values or a
    confidence outside (0, 1).
    """
    x = _vector("values", values)
    _check_confidence(confidence)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(student_t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def paired_difference(a: Values, b: Values, *, confidence: float = 0.95, seed: int = 0) -> PairedDifference:
    """Difference a - b of two methods on the same seeds (or queries): t interval and sign-flip test.

    The two-sided p-value is the share of sign patterns of the differences with a mean at least as far from 0.
    All 2^n patterns up to :data:`EXACT_PAIRS` pairs, so n seeds cannot give less than 2^(1-n); beyond that,
    :data:`SAMPLED_FLIPS` random patterns and the observed one, drawn from ``seed``.
    Raises :class:`InputError` for empty, unequal or non-finite values or a confidence outside (0, 1).
    """
    x, y = _vector("a", a), _vector("b", b)
    if len(x) != len(y):
        raise InputError(f"a has {len(x)} values, b {len(y)}: expected the same seeds in the same order")
    difference = x - y
    interval = t_interval(difference, confidence=confidence)
    n = len(difference)
    if n == 1:
        return PairedDifference(interval, math.nan)
    # Flips that give the same sum up to round-off count as equally far.
    bound = abs(float(difference.sum())) - 1e-12 * float(np.abs(difference).sum())
    if n <= EXACT_PAIRS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return PairedDifference(interval, float((np.abs((1.0 - 2 * bits) @ difference) >= bound).mean()))
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    far = 0
    for start in range(0, SAMPLED_FLIPS, rows):
        signs = 1.0 - 2 * rng.integers(2, size=(min(rows, SAMPLED_FLIPS - start), n))
        far += int((np.abs(signs @ difference) >= bound).sum())
    return PairedDifference(interval, (far + 1) / (SAMPLED_FLIPS + 1))


def _vector(name: str, values: Values) -> npt.NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "fiu":
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}: expected numbers [n], at least one")
    result = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(result))
    if len(bad):
        raise InputError(f"{name} row {bad[0]} is {result[bad[0]]}: expected finite numbers; leave failed runs out")
    return result


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: expected a share between 0 and 1, such as 0.95")

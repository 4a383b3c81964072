"""Intervals and paired tests: no number without its spread.

Over many queries: percentile bootstrap. Over a few seeds: Student's t and an exact sign-flip test. Several comparisons
at once: Holm's correction. Too few values for an interval give (nan, nan), never a made-up one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Mean of a - b over pairs with its interval and a two-sided p-value, as the function that made it says."""

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
    return Interval(float(x.mean()), *percentile(means, confidence))


def percentile(draws: npt.NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The bounds that leave out equal shares of ``draws`` [r] on both sides."""
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_ratios(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    *,
    resamples: int = 2000,
    seed: int | Sequence[int] = 0,
) -> npt.NDArray[np.float64]:
    """Means of grouped values under draws of whole groups: float64 [resamples, c].

    ``sums`` and ``counts`` [n, c]: of each group (an image, say) the sum of its values (hits of its captions) and their
    number, for c figures. A draw takes n groups with replacement and divides the summed sums by the summed counts.
    Equal n and seeds draw the same groups. Memory is bounded: draws are made in chunks.
    Raises :class:`InputError` for shapes that differ, no groups, no resamples and counts that are not positive.
    """
    if sums.ndim != 2 or sums.shape != counts.shape or not len(sums) or not bool((counts > 0).all()):
        raise InputError(f"sums {sums.shape} and counts {counts.shape}: expected one shape [n, c], counts above 0")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}: expected at least 1, better 1000 or more")
    n, rng = len(sums), np.random.default_rng(seed)
    out = np.empty((resamples, sums.shape[1]))
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        many = min(rows, resamples - start)
        drawn = rng.integers(n, size=(many, n)) + n * np.arange(many)[:, None]
        times = np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n).astype(np.float64)
        out[start : start + many] = (times @ sums) / (times @ counts)
    return out


def holm(p_values: Values) -> npt.NDArray[np.float64]:
    """Adjusted p-values [n] of n tests by Holm's step-down rule: the family-wise error stays below what they are held
    against. The smallest is multiplied by n, the next by n - 1, ...; none falls below a smaller one's, none exceeds 1.

    Raises :class:`InputError` for values outside [0, 1].
    """
    p = _vector("p_values", p_values)
    if p.min() < 0 or p.max() > 1:
        raise InputError(f"p_values reach from {p.min()} to {p.max()}: expected probabilities from 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def standard_error(share: float, n: int) -> float:
    """Standard error of a share seen in ``n`` independent trials, sqrt(p (1 - p) / n): 0.16 of 1,000 gives 0.0116.

    Raises :class:`InputError` for a share outside [0, 1] and n below 1.
    """
    if not 0 <= share <= 1 or n < 1:
        raise InputError(f"a share of {share} of {n}: expected 0 to 1 of at least one")
    return math.sqrt(share * (1 - share) / n)


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

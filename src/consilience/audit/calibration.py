"""From scores to probabilities without labels: an empirical null and a mixture with the null's weight unknown.

Scores of pairs that were mismatched on purpose say how wrong pairs score: their distribution is known, not assumed.
What is given is a mixture, f = pi0 f0 + (1 - pi0) f1 (B. Efron, "Large-Scale Inference", 2010, chapters 2 and 5).
Every score is put on the null's own scale, z = the standard normal quantile of the share of null scores below it, so
that f0 is the standard normal; f1 is a mixture of normals to the right of it on a fixed grid, whose weights EM finds
together with pi0 (M. Stephens, "False discovery rates: a new deal", Biostatistics 2017, uses such a grid). The
probability that a pair is right is then 1 - pi0 f0(z) / f(z), made monotone in the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from consilience.errors import InputError

# Normals of right pairs. Of mean 1 only that of spread 1: a narrow or a wide one there would take part of the null.
_GRID = [(1.0, 1.0), *((mean, spread) for mean in np.arange(1.5, 8.01, 0.5) for spread in (0.5, 1.0, 1.5, 2.0))]
_TAIL, _TAIL_FROM = np.array([0.98, 0.999]), 5000
_ROUNDS, _ENOUGH = 400, 1e-7
_BINS = 200  # EM runs on counts of this many bins of z, so that its cost does not grow with the data
LEAST = 30
"""Fewer scores than this are not calibrated."""


@dataclass(frozen=True)
class Calibration:
    """A fitted mixture."""

    noise_ratio: float
    """pi0, the share of wrong pairs."""
    interval: tuple[float, float]
    """95% percentile bootstrap interval of it over the pairs (nan, nan without resamples)."""
    steps: tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]
    """z and the probability of a right pair there, rising."""
    weights: Float[np.ndarray, " g"]
    """Of the standard normal and of the grid."""

    def probability(self, z: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Probability that a pair at z is right; NaN stays NaN."""
        return np.asarray(np.interp(z, *self.steps))

    def density(self, z: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Fitted densities at z: of the wrong pairs, weighted by their share, and of all pairs."""
        parts = _components(z)
        return self.weights[0] * parts[:, 0], parts @ self.weights

    def separation(self) -> float:
        """Chance that a right pair fits better than a wrong one, by the fitted mixture (1/2: nothing is told apart)."""
        z = np.linspace(-6, 12, 1801)
        wrong, everything = self.density(z)
        right = np.maximum(everything - wrong, 0)
        return float((right * norm.cdf(z)).sum() / max(float(right.sum()), 1e-12))


def on_null(scores: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """z of scores: standard normal quantile of the share of ``null`` scores below each, half of the equal ones counted;
    beyond the highest thousandth of at least 5,000, z goes on with the slope it has between 0.98 and there, so that the
    best pairs still differ. NaN among ``null`` is left out, NaN among ``scores`` stays."""
    null = np.sort(null[~np.isnan(null)])
    low, high = np.searchsorted(null, scores, "left"), np.searchsorted(null, scores, "right")
    share = ((low + high) / 2 + 0.5) / (len(null) + 1)
    z = norm.ppf(share)
    if len(null) >= _TAIL_FROM:
        start, end = np.quantile(null, _TAIL)
        low_z, high_z = norm.ppf(_TAIL)
        if end > start:
            z = np.where(scores > end, high_z + (scores - end) * (high_z - low_z) / (end - start), z)
    return np.asarray(np.where(np.isnan(scores), np.nan, z))


def calibrate(z: Float[np.ndarray, " n"], *, seed: int = 0, resamples: int = 60) -> Calibration:
    """Fit the mixture to pairs on the null's scale (:func:`on_null`). NaN is left out.

    Raises :class:`InputError` when fewer than 30 pairs remain.
    """
    z = z[~np.isnan(z)]
    if len(z) < LEAST:
        raise InputError(f"{len(z)} pairs to judge; calibration needs at least {LEAST}")
    edges = np.linspace(min(z.min(), -4), max(z.max(), 4) + 1e-9, _BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    parts = _components(centres)
    place = np.clip(np.digitize(z, edges) - 1, 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS).astype(float)
    weights = _em(parts, counts)
    interval = (np.nan, np.nan)
    if resamples:
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(z), counts / counts.sum(), size=resamples)
        found = [_em(parts, draw.astype(float), weights)[0] for draw in draws]
        interval = (float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975)))
    right = 1 - weights[0] * parts[:, 0] / (parts @ weights)
    used = counts > 0
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(centres[used], right[used], counts[used])
    return Calibration(float(weights[0]), interval, (centres, fit.predict(centres)), weights)


def _components(z: np.ndarray) -> np.ndarray:
    return np.stack([norm.pdf(z, mean, spread) for mean, spread in [(0.0, 1.0), *_GRID]], 1) + 1e-300


def _em(parts: np.ndarray, counts: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    width = parts.shape[1]
    weights = np.full(width, 0.5 / (width - 1)) if start is None else 0.9 * start + 0.1 / width
    if start is None:
        weights[0] = 0.5
    share = counts / counts.sum()
    for _ in range(_ROUNDS):
        joint = parts * weights
        new = np.asarray(share @ (joint / joint.sum(1, keepdims=True)))
        if float(np.abs(new - weights).max()) < _ENOUGH:
            break
        weights = new
    return weights


def average_precision(score: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> float:
    """Average precision of finding the wrong ones among the lowest scores; ties count as one step."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(wrong, -score)) if wrong.any() else float("nan")


def auroc(score: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> float:
    """Chance that a right one scores above a wrong one, ties counted half; NaN when all are of one kind."""
    from scipy.stats import rankdata

    count = int(wrong.sum())
    if count in (0, len(wrong)):
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[~wrong].mean() - (len(wrong) - count + 1) / 2) / count)


def calibration_error(
    probability: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = 15
) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error over equal-width bins (Naeini et al., AAAI 2015; Guo et al., ICML 2017), and of each
    bin that is not empty: mean probability, share of right ones, number."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    points = []
    for bin_ in range(bins):
        chosen = place == bin_
        if chosen.any():
            points.append((float(probability[chosen].mean()), float(right[chosen].mean()), int(chosen.sum())))
    error = sum(count * abs(mean - share) for mean, share, count in points) / max(1, len(probability))
    return error, points

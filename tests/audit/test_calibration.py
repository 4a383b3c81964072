"""Probabilities without labels, on mixtures whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from consilience.audit.calibration import auroc, calibrate, calibration_error, on_null
from consilience.errors import InputError

RATIOS = (0.05, 0.1, 0.2, 0.4, 0.6)


def mixture(ratio: float, mean: float, spread: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of pairs, of mismatched ones, and which pairs are right; on a scale that is not normal."""
    rng = np.random.default_rng(seed)
    right = np.arange(n) >= round(ratio * n)
    scores = np.where(right, rng.normal(mean, spread, n), rng.normal(0, 1, n))
    return np.exp(scores / 2), np.exp(rng.normal(0, 1, 40 * n) / 2), right


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("mean", "spread"), [(2.5, 0.8), (3, 1), (4, 0.5), (5, 1.5)])
def test_share_of_wrong_pairs_within_five_points(ratio: float, mean: float, spread: float) -> None:
    scores, null, _ = mixture(ratio, mean, spread, 3000, 1)
    assert calibrate(on_null(scores, null), resamples=0).noise_ratio == pytest.approx(ratio, abs=0.05)


@pytest.mark.parametrize("ratio", RATIOS)
def test_probabilities_are_the_posterior(ratio: float) -> None:
    scores, null, right = mixture(ratio, 3, 1, 12_000, 2)
    z = on_null(scores, null)
    fit = calibrate(z, resamples=0)
    found = fit.probability(z)
    exact = (1 - ratio) * norm.pdf(z, 3, 1)
    exact = exact / (exact + ratio * norm.pdf(z))
    assert np.abs(found - exact).mean() < 0.03
    assert calibration_error(found, right)[0] < 0.03
    assert (np.diff(fit.probability(np.sort(z))) >= 0).all()


def test_interval_and_separation() -> None:
    scores, null, right = mixture(0.4, 3, 1, 3000, 3)
    z = on_null(scores, null)
    fit = calibrate(z)
    assert fit.interval[0] < 0.4 < fit.interval[1]
    assert fit.interval[1] - fit.interval[0] < 0.1
    assert fit.separation() == pytest.approx(auroc(z, ~right), abs=0.02)
    assert calibrate(z).noise_ratio == fit.noise_ratio


def test_nothing_but_noise_and_nothing_but_right_pairs() -> None:
    rng = np.random.default_rng(4)
    null = rng.normal(0, 1, 80_000)
    assert calibrate(on_null(rng.normal(0, 1, 2000), null), resamples=0).noise_ratio > 0.9
    assert calibrate(on_null(rng.normal(5, 1, 2000), null), resamples=0).noise_ratio < 0.01


def test_null_scale() -> None:
    null = np.array([3.0, 1.0, 2.0, np.nan])
    found = on_null(np.array([0.0, 2.0, 9.0, np.nan]), null)
    np.testing.assert_allclose(found[:3], norm.ppf(np.array([0.5, 2.0, 3.5]) / 4))
    assert np.isnan(found[3])


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="29 pairs"):
        calibrate(np.r_[np.zeros(29), np.nan])


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_ordered_couples(rows: list[tuple[int, bool]]) -> None:
    score, wrong = np.array([float(s) for s, _ in rows]), np.array([w for _, w in rows])
    couples = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in np.flatnonzero(~wrong)
        for j in np.flatnonzero(wrong)
    ]
    found = auroc(score, wrong)
    if couples:
        assert found == pytest.approx(np.mean(couples))
    else:
        assert np.isnan(found)


def test_calibration_error_by_hand() -> None:
    error, points = calibration_error(np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True]), bins=2)
    assert points == [(pytest.approx(0.1), 0.5, 2), (pytest.approx(0.95), 1.0, 2)]
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.05)

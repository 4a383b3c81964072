"""Intervals and paired tests against known values, enumeration and coverage."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from consilience.errors import InputError
from consilience.evaluation import stats as module
from consilience.evaluation.stats import bootstrap_mean, paired_difference, t_interval


def test_t_interval_known_value() -> None:
    # Mean 2, standard deviation 1, n = 3: half width 4.302653 / sqrt(3).
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high == pytest.approx(2 + 4.302652729911275 / math.sqrt(3))
    assert interval.low == pytest.approx(2 - 4.302652729911275 / math.sqrt(3))


@pytest.mark.parametrize("interval_of", [t_interval, bootstrap_mean])
def test_one_value_has_no_interval(interval_of: Any) -> None:
    interval = interval_of([0.7])
    assert interval.mean == 0.7
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_t_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [t_interval(rng.normal(3, 2, size=4), confidence=0.9) for _ in range(1000)]
    assert np.mean([i.low <= 3 <= i.high for i in found]) == pytest.approx(0.9, abs=0.03)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(rng.beta(2, 1, size=150), confidence=0.9, resamples=400) for _ in range(400)]
    assert np.mean([i.low <= 2 / 3 <= i.high for i in found]) == pytest.approx(0.9, abs=0.05)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).beta(2, 1, size=300)
    ours = bootstrap_mean(torch.from_numpy(values), resamples=5000)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.002)


def test_bootstrap_is_seeded_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(50)
    whole = bootstrap_mean(values, seed=3)
    assert whole == bootstrap_mean(values, seed=3)
    assert whole != bootstrap_mean(values, seed=4)
    monkeypatch.setattr(module, "_CHUNK", 170)
    assert bootstrap_mean(values, seed=3) == whole


def test_constant_values_have_an_interval_of_no_width() -> None:
    interval = bootstrap_mean(np.full(20, 0.25))
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_sign_flips_equal_enumeration() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        a, b = rng.normal(0.3, 1, size=n), rng.normal(size=n)
        d = a - b
        flips = [abs(sum(s * x for s, x in zip(signs, d))) for signs in product((1, -1), repeat=n)]
        share = np.mean([flip >= abs(d.sum()) - 1e-12 for flip in flips])
        result = paired_difference(a, b)
        assert result.p_value == pytest.approx(share)
        assert result.interval == t_interval(d)


def test_smallest_exact_p_value() -> None:
    assert paired_difference([1.0, 2, 3], [0.9, 1.8, 2.7]).p_value == 0.25
    assert paired_difference([1.0, 2, 3], [1.0, 2, 3]).p_value == 1


def test_one_pair_has_no_p_value() -> None:
    result = paired_difference([0.7], [0.6])
    assert result.interval.mean == pytest.approx(0.1)
    assert math.isnan(result.interval.low)
    assert math.isnan(result.p_value)


def test_sampled_flips_approach_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, size=12), rng.normal(size=12)
    exact = paired_difference(a, b).p_value
    monkeypatch.setattr(module, "EXACT_PAIRS", 3)
    sampled = paired_difference(a, b).p_value
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=0.015)


def test_p_values_are_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(0)
    p = [paired_difference(rng.normal(size=8), rng.normal(size=8)).p_value for _ in range(800)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], torch.zeros(0), ["a"], [True, False]])
@pytest.mark.parametrize("interval_of", [t_interval, bootstrap_mean])
def test_bad_values_are_named(interval_of: Any, values: Any) -> None:
    with pytest.raises(InputError, match="values is"):
        interval_of(values)


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="values row 1 is nan"):
        t_interval([1.0, math.nan])
    with pytest.raises(InputError, match="confidence is 95"):
        t_interval([1.0, 2.0], confidence=95)
    with pytest.raises(InputError, match="resamples is 0"):
        bootstrap_mean([1.0, 2.0], resamples=0)
    with pytest.raises(InputError, match="a has 2 values, b 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])

"""Mixtures on per-pair losses, oscillation and rectification: sheet values, recovery on known mixtures, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.noise.mixture import low_posterior, split
from consilience.noise.oscillation import divergence, moving_mean, rectified
from consilience.noise.pair_beliefs import PairBeliefs


def losses(seed: int, n: int = 2000, wrong: float = 0.4) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < wrong
    return torch.from_numpy(np.where(truth, rng.normal(2.0, 0.4, n), rng.normal(0.5, 0.3, n))).float(), truth


@pytest.mark.parametrize("kind", ["gmm", "bmm"])
def test_posterior_recovers_a_known_mixture(kind):
    values, wrong = losses(0)
    w = low_posterior(values, kind)
    assert w.min() >= 0
    assert w.max() <= 1
    assert ((w < 0.5).numpy() == wrong).mean() > 0.97
    assert float((w < 0.5).float().mean()) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("kind", ["gmm", "bmm"])
def test_posterior_does_not_depend_on_scale_order_or_repetition(kind):
    values, _ = losses(1, 500)
    w = low_posterior(values, kind)
    torch.testing.assert_close(low_posterior(values * 7 + 3, kind), w, atol=1e-3, rtol=0)
    assert torch.equal(low_posterior(values, kind), w)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low_posterior(values[order], kind), w[order], atol=1e-2, rtol=0)


@given(st.integers(0, 1000))
def test_beta_posterior_never_rises_with_the_loss(seed):
    values, _ = losses(seed, 60)
    w = low_posterior(values, "bmm")[values.argsort(stable=True)]
    assert bool((w[1:] <= w[:-1]).all())


@pytest.mark.parametrize("kind", ["gmm", "bmm"])
def test_equal_and_infinite_losses_do_not_crash(kind):
    assert torch.equal(low_posterior(torch.full((10,), 0.3), kind), torch.ones(10))
    values, _ = losses(2, 50)
    values[3] = math.inf
    values[4] = math.nan
    found = low_posterior(values, kind)
    assert torch.isfinite(found).all()
    assert found[3] < 0.5


def test_a_hundredth_is_called_wrong_when_nothing_is():
    w = torch.linspace(0.6, 1.0, 300)
    right = split(w)
    assert int((~right).sum()) == 4  # those of ranks 0 to 300 // 100
    assert bool(right[4:].all())
    assert split(torch.tensor([0.2, 0.9]), 0.5).tolist() == [False, True]
    assert int((~split(torch.ones(250))).sum()) == 3  # equal posteriors: no more than the hundredth


def test_divergence_of_the_sheet():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    assert float(divergence(p, q)) == pytest.approx(0.14384, abs=1e-5)
    assert float(divergence(p, p)) == 0
    assert math.isfinite(float(divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))))


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_rectified_trust_stays_between_w_and_1(w, v):
    y = float(rectified(torch.tensor([w]), torch.tensor([v])))
    assert w - 1e-6 <= y <= 1
    if v <= 0.5:
        assert y == pytest.approx(w)


def test_moving_mean():
    first, second = torch.tensor([1.0]), torch.tensor([0.0])
    mean = moving_mean(torch.zeros(1), first, 0.5, True)
    assert float(mean) == 1
    assert float(moving_mean(mean, second, 0.75, False)) == pytest.approx(0.75)


def test_beliefs_keep_the_mean_of_looks_and_serve_the_peer():
    beliefs = PairBeliefs(2, 400)
    a, wrong = losses(3, 400)
    b, _ = losses(4, 400)
    beliefs.renew(torch.stack([a, b]), "gmm", 0, 0.5, 0.5)
    torch.testing.assert_close(beliefs.losses, torch.stack([a, b]))
    w, right = beliefs.of_peer(1, torch.arange(400))
    torch.testing.assert_close(w, low_posterior(a))
    assert (right.numpy() == ~wrong).mean() > 0.95
    beliefs.renew(torch.stack([a + 1, b]), "gmm", 0, 0.5, 0.5)
    torch.testing.assert_close(beliefs.losses[0], a + 0.5)
    alone = PairBeliefs(1, 400)
    alone.renew(a[None], "gmm", 0, 0.5, 0.0)
    assert torch.equal(alone.of_peer(0, torch.arange(3))[0], alone.clean[0, :3])

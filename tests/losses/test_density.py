"""Density losses against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from consilience.losses.density import bayesian_loss, density_maps, expected_counts, map_loss
from consilience.losses.multi_queue import multi_queue_nce, to_normal_nce

NAN = float("nan")


def slow_loss(
    density: np.ndarray, places: np.ndarray, stride: float, sigma: float, side: float, background: str, beta: float
) -> float:
    """One picture, cell by cell, with logarithms of Gaussians."""
    height, width = density.shape
    counts, empty = np.zeros(len(places)), 0.0
    if not len(places):
        return float(density.sum())
    for i in range(height):
        for j in range(width):
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            square = [(x - a) ** 2 + (y - b) ** 2 for a, b in places]
            least = min(square)
            if background == "ratio":
                square.append((beta * side) ** 2 / (least + 1e-5))
            elif background == "gap":
                square.append((beta * side - math.sqrt(least)) ** 2)
            logits = -np.array(square) / (2 * sigma**2)
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            counts += shares[: len(places)] * density[i, j]
            empty += shares[len(places) :].sum() * density[i, j]
    return float(np.abs(1 - counts).sum() + abs(empty))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    number=st.integers(0, 6),
    background=st.sampled_from(["none", "ratio", "gap"]),
    stride=st.sampled_from([1, 4, 8]),
    sigma=st.floats(0.8, 12),
    beta=st.sampled_from([0.15, 1.0]),
)
def test_bayesian_loss_is_the_slow_one(
    seed: int, number: int, background: str, stride: int, sigma: float, beta: float
) -> None:
    rng = np.random.default_rng(seed)
    height, width = 7, 9
    density = rng.random((height, width))
    places = rng.random((number, 2)) * [width * stride, height * stride]
    padded = np.full((8, 2), NAN)
    padded[rng.permutation(8)[:number]] = places
    found = bayesian_loss(
        torch.tensor(density, dtype=torch.float32)[None, None],
        torch.tensor(padded, dtype=torch.float32)[None],
        stride,
        sigma,
        torch.tensor([50.0]),
        background,  # type: ignore[arg-type]
        beta,
    ).item()
    places32 = padded[~np.isnan(padded[:, 0])].astype(np.float32).astype(np.float64)
    slow = slow_loss(density.astype(np.float32).astype(float), places32, stride, sigma, 50.0, background, beta)
    assert found == pytest.approx(slow, rel=2e-5, abs=2e-5)


def test_a_batch_is_its_pictures_one_by_one_and_padding_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(3, 1, 6, 5, generator=generator)
    places = 20 * torch.rand(3, 4, 2, generator=generator)
    places[1, 2:] = NAN
    places[2] = NAN
    side = torch.tensor([20.0, 30.0, 40.0])
    whole = bayesian_loss(density, places, 4, 3.0, side)
    for i, number in enumerate((4, 2, 0)):
        alone = bayesian_loss(density[i : i + 1], places[i : i + 1, : max(1, number)], 4, 3.0, side[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i])


def test_the_gradient_is_that_of_the_definition() -> None:
    density = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    places = torch.tensor([[[6.0, 7.0], [14.0, 3.0]]])
    bayesian_loss(density, places, 4, 3.0, torch.tensor([20.0])).sum().backward()
    assert density.grad is not None
    base = density.detach()
    for i, j in ((0, 0), (1, 3), (4, 2)):
        step = torch.zeros_like(base)
        step[0, 0, i, j] = 1e-3
        up, down = (bayesian_loss(base + s, places, 4, 3.0, torch.tensor([20.0])).item() for s in (step, -step))
        assert density.grad[0, 0, i, j].item() == pytest.approx((up - down) / 2e-3, abs=2e-3)


def test_a_cell_out_of_everybodys_reach_goes_to_the_nearest() -> None:
    density = torch.zeros(1, 1, 1, 500)
    density[..., -1] = 1.0
    places = torch.tensor([[[2.0, 2.0], [40.0, 2.0]]])
    counts, empty = expected_counts(density, places, 4, 1.0, torch.tensor([4.0]), "none")
    assert counts[0].tolist() == [0, 1]
    assert empty.item() == 0


def test_many_points_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    density, places = torch.rand(2, 1, 8, 8, generator=generator), 32 * torch.rand(2, 37, 2, generator=generator)
    whole = bayesian_loss(density, places, 4, 2.0, torch.tensor([32.0, 32.0]))
    monkeypatch.setattr("consilience.losses.density._CHUNK", 64 * 2 * 5)
    torch.testing.assert_close(bayesian_loss(density, places, 4, 2.0, torch.tensor([32.0, 32.0])), whole)


def test_density_maps_are_integrals_of_gaussians() -> None:
    places = [(5.3, 8.1), (0.4, 11.0)]
    found = density_maps(torch.tensor([places], dtype=torch.float64).float(), 4, 3, 4, 1.7)[0, 0].numpy()
    slow = np.zeros((4, 3))
    mass = 2 * norm.cdf(4) - 1
    for x, y in places:
        for i in range(4):
            for j in range(3):
                share = 1.0
                for centre, low in ((x, 4 * j), (y, 4 * i)):
                    a, b = np.clip([(low - centre) / 1.7, (low + 4 - centre) / 1.7], -4, 4)
                    share *= (norm.cdf(b) - norm.cdf(a)) / mass
                slow[i, j] += share
    np.testing.assert_allclose(found, slow, atol=1e-6)


def test_map_loss_is_zero_at_its_target_and_counts() -> None:
    places = torch.tensor([[[20.0, 20.0], [40.0, 30.0], [NAN, NAN]]])
    target = density_maps(places, 16, 16, 4, 3.0)
    assert map_loss(target, places, 4, 3.0).item() == pytest.approx(0, abs=1e-6)
    more = target + 0.01
    expected = 256 * 1e-4 + 0.1 * 2.56
    assert map_loss(more, places, 4, 3.0).item() == pytest.approx(expected, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), fills=st.lists(st.integers(0, 5), min_size=3, max_size=3), own=st.booleans())
def test_contrast_is_the_slow_one(seed: int, fills: list[int], own: bool) -> None:
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> np.ndarray:
        x = rng.normal(size=shape)
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    z, own_key, keys = unit(4, 6), unit(4, 6), unit(3, 5, 6)
    filled = np.arange(5)[None] < np.array(fills)[:, None]
    domain, tau = np.array([0, 1, 2, -1]), 0.3
    out = rng.random((4, 3, 5)) < 0.2
    slow, normal = [], []
    for i in range(4):
        near = math.exp(z[i] @ own_key[i] / tau)
        total, mine, means = near, [math.log(near)], []
        for w in range(3):
            there = [z[i] @ keys[w, j] / tau for j in range(5) if filled[w, j] and not out[i, w, j]]
            if fills[w]:
                total += 5 / fills[w] * sum(math.exp(s) for s in there)
                means.append((w, np.mean([math.exp(z[i] @ keys[w, j] / tau) for j in range(5) if filled[w, j]])))
            if w == domain[i] and not own:
                mine += there
        slow.append(math.log(total) - float(np.mean(mine)))
        good = [m for w, m in means if w == 1]
        normal.append(-math.log(good[0] / sum(m for _, m in means)) if good else 0.0)
    t = lambda x: torch.tensor(x, dtype=torch.float32)  # noqa: E731
    found = multi_queue_nce(
        t(z), t(own_key), t(keys), torch.tensor(filled), torch.tensor(domain), tau, "own" if own else "queue",
        torch.tensor(out),
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), slow, rtol=2e-4, atol=2e-5)
    refined = to_normal_nce(t(z), t(keys), torch.tensor(filled), 1, tau)
    np.testing.assert_allclose(refined.numpy(), normal, rtol=2e-4, atol=2e-5)

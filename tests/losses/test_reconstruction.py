"""Reconstruction, ranking and hashing losses, and the debiased contrast, against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consilience.losses.contrastive import cross_modal_nce, debiased_pair_nce, pair_nce
from consilience.losses.hashing import correlation, imbalance, quantisation
from consilience.losses.ranking import affinity_regression, joint_affinity, margin_ranking
from consilience.losses.reconstruction import chamfer, patch_error


def gap(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().sum())


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_chamfer_against_loops(seed: int, m: int, s: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(2, 3, n, 3, generator=generator, dtype=torch.float64) for n in (m, s))
    found = chamfer(x, y)
    for b in range(2):
        for g in range(3):
            forth = sum(min(gap(p, q) for q in y[b, g]) for p in x[b, g]) / m
            back = sum(min(gap(p, q) for p in x[b, g]) for q in y[b, g]) / s
            assert float(found[b, g]) == pytest.approx(forth + back, abs=1e-12)


def test_chamfer_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 6, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(chamfer(x, y).sum(), x)
    gaps = (x[:, :, None] - y[:, None]).square().sum(3)
    (expected,) = torch.autograd.grad((gaps.amin(2).mean(1) + gaps.amin(1).mean(1)).sum(), x)
    torch.testing.assert_close(found, expected)


def test_patch_error_is_a_mean_of_squares() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = patch_error(a, b)
    for i in range(2):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(gap(a[i, j], b[i, j]) / 4, abs=1e-6)


def slow_scores(a: Tensor, b: Tensor) -> list[list[float]]:
    return [[float(x @ y / (x.norm() * y.norm())) for y in b] for x in a]


def slow_debiased(scores: list[list[float]], tau: float, share: float) -> list[float]:
    n, out = len(scores), []
    for i in range(n):
        total = 0.0
        for row in (scores[i], [scores[j][i] for j in range(n)]):
            positive = math.exp(row[i] / tau)
            negative = sum(math.exp(row[j] / tau) for j in range(n) if j != i)
            corrected = (negative - share * (n - 1) * positive) / (1 - share)
            corrected = max(corrected, (n - 1) * math.exp(-1 / tau))
            total -= math.log(positive / (positive + corrected))
        out.append(total / 2)
    return out


@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([0.05, 0.1, 0.4]))
def test_debiased_contrast_against_a_loop(seed: int, n: int, tau: float, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 4, generator=generator) for _ in range(2))
    scores = slow_scores(a.double(), b.double())
    expected = slow_debiased(scores, tau, share)
    found = debiased_pair_nce(torch.tensor(scores), tau, share)
    assert found.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-6)
    weights = torch.rand(n, generator=generator)
    mean = sum(w * e for w, e in zip(weights.tolist(), expected, strict=True)) / float(weights.sum())
    assert float(cross_modal_nce(a, b, tau, weights, share)) == pytest.approx(mean, rel=2e-4, abs=1e-6)


def test_a_little_debiasing_is_nearly_none() -> None:
    torch.manual_seed(0)
    scores = torch.rand(8, 8) * 2 - 1
    torch.testing.assert_close(debiased_pair_nce(scores, 0.2, 1e-7), pair_nce(scores, 0.2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tau", [1e-3, 0.01, 1.0])
def test_debiased_contrast_is_finite_with_finite_gradients(tau: float) -> None:
    scores = torch.eye(4) * 2 - 1
    scores[0, 0], scores[0, 1] = -1, 1
    scores.requires_grad_()
    debiased_pair_nce(scores, tau, 0.1).sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([0.2, 1.0]))
def test_margin_ranking_against_a_loop(seed: int, n: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 3, generator=generator) for _ in range(2))
    weights = torch.rand(n, generator=generator) + 0.1
    s, total = slow_scores(a.double(), b.double()), 0.0
    for i in range(n):
        for row in (s[i], [s[j][i] for j in range(n)]):
            kept = [x - (0.7 if x < s[i][i] - 0.2 else 0.0) for x in row]
            each = 0.2 - s[i][i] + tau * math.log(sum(math.exp(x / tau) for x in kept))
            total += float(weights[i]) * each / 2
    found = margin_ranking(a, b, 0.2, 0.7, tau, weights)
    assert float(found) == pytest.approx(total / float(weights.sum()), rel=1e-4, abs=1e-5)


def test_joint_affinity_and_its_regression_against_loops() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 4)
    inner, outer = slow_scores(a, a), slow_scores(b, b)
    joint = [[0.3 * inner[i][j] + 0.7 * outer[i][j] for j in range(5)] for i in range(5)]
    expected = [
        [1.5 * (0.6 * joint[i][j] + 0.4 * sum(joint[i][k] * joint[j][k] for k in range(5)) / 5) for j in range(5)]
        for i in range(5)
    ]
    targets = joint_affinity(a, b, share=0.3)
    torch.testing.assert_close(targets, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    u, v = torch.randn(5, 8), torch.randn(5, 8)
    total = 0.0
    for x, y in ((u, v), (u, u), (v, v)):
        s = slow_scores(x, y)
        total += sum((s[i][j] - min(1.0, expected[i][j])) ** 2 for i in range(5) for j in range(5)) / 25
    assert float(affinity_regression(u, v, targets)) == pytest.approx(total / 3, rel=1e-4)


def test_code_health_against_loops() -> None:
    torch.manual_seed(0)
    u = torch.tanh(torch.randn(6, 4))
    rows = u.tolist()
    assert float(quantisation(u)) == pytest.approx(sum((abs(x) - 1) ** 2 for r in rows for x in r) / 24, rel=1e-5)
    means = [sum(r[k] for r in rows) / 6 for k in range(4)]
    assert float(imbalance(u)) == pytest.approx(sum(m * m for m in means) / 4, rel=1e-5)
    total = sum((sum(r[i] * r[j] for r in rows) / 6) ** 2 for i in range(4) for j in range(4) if i != j)
    assert float(correlation(u)) == pytest.approx(total / 12, rel=1e-5)
    codes = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(quantisation(codes)) == float(imbalance(codes)) == float(correlation(codes)) == 0
    assert float(correlation(torch.ones(3, 2))) == 1
    assert float(correlation(torch.ones(3, 1))) == 0

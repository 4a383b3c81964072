"""The numeric facts of RoMo: closed forms, limits and invariances that any faithful implementation meets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.losses import robust
from consilience.losses.contrastive import nt_xent
from consilience.memory.bank import Bank
from consilience.methods.romo import mlm


def logits_for(p: float, classes: int = 2) -> torch.Tensor:
    """float64 logits [1, classes] whose softmax gives p to class 0 and spreads the rest evenly."""
    rest = (1 - p) / (classes - 1)
    return torch.tensor([[math.log(p)] + [math.log(rest)] * (classes - 1)], dtype=torch.float64)


ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("p", "alpha", "expected"),
    [(0.5, 0.25, 0.456222), (0.1, 0.25, 1.108655), (0.9, 0.25, 0.056973), (0.5, 0.65, 0.394009)],
)
def test_rcll_values(p, alpha, expected):
    assert robust.rcll(logits_for(p), ZERO, alpha).item() == pytest.approx(expected, abs=1e-5)


@given(st.floats(0.001, 0.99))
@settings(deadline=None, max_examples=30)
def test_rcll_limits_are_mae_and_focal(p):
    assert robust.rcll(logits_for(p), ZERO, 0.0).item() == pytest.approx(1 - p, abs=1e-5)
    assert robust.rcll(logits_for(p), ZERO, 1.0).item() == pytest.approx(-(1 - p) * math.log(p), rel=1e-4)


@given(st.floats(0.001, 0.98), st.floats(0.001, 0.01))
@settings(deadline=None, max_examples=30)
def test_rcll_decreases_in_p(p, step):
    assert robust.rcll(logits_for(p), ZERO).item() > robust.rcll(logits_for(p + step), ZERO).item()


@pytest.mark.parametrize(
    ("p", "rcll", "ce"), [(0.5, 0.3104, 0.5), (0.1, 0.2192, 0.9), (0.9, 0.0648, 0.1), (1e-4, 0.0475, 0.9999)]
)
def test_gradient_of_the_own_logit(p, rcll, ce):
    for loss, expected in ((robust.rcll, rcll), (robust.cross_entropy, ce)):
        logits = logits_for(p).float().requires_grad_()
        loss(logits, ZERO).sum().backward()
        assert -logits.grad[0, 0].item() == pytest.approx(expected, abs=1e-4)


def test_gradient_peaks_in_the_middle():
    probabilities = torch.linspace(0.01, 0.99, 99)
    gradients = []
    for p in probabilities.tolist():
        logits = logits_for(p).float().requires_grad_()
        robust.rcll(logits, ZERO).sum().backward()
        gradients.append(-logits.grad[0, 0].item())
    best = int(torch.tensor(gradients).argmax())
    assert probabilities[best].item() == pytest.approx(0.366, abs=0.01)
    assert gradients[best] == pytest.approx(0.332, abs=1e-3)


def test_floor_silences_samples_at_or_below_chance():
    for p, silent in ((0.05, True), (0.0999, True), (0.2, False), (0.9, False)):
        logits = logits_for(p, 10).float().requires_grad_()
        robust.rcll(logits, ZERO, floor=0.1).sum().backward()
        assert (logits.grad.abs().sum() == 0).item() is silent


def test_clipped_loss_is_nearly_symmetric():
    """Summed over all labels the clipped loss is almost constant: the condition for noise tolerance."""
    labels = torch.arange(10)

    def total(p: torch.Tensor) -> float:
        logits = p.clamp(min=1e-30).log().float().expand(10, 10)
        return robust.rcll(logits, labels, floor=0.1).sum().item()

    one_hot, two = torch.zeros(10), torch.zeros(10)
    one_hot[0], two[:2] = 1, 0.5
    assert total(one_hot) == pytest.approx(9.9779, abs=0.02)
    assert total(torch.full((10,), 0.1)) == pytest.approx(11.0866, abs=1e-3)
    assert total(two) == pytest.approx(9.7817, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        p = torch.softmax(torch.randn(10, generator=generator) * 4, 0)
        assert 9.78 <= total(p) <= 11.09


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_finite_at_the_extremes(dtype):
    for size in (0.0, 40.0, 120.0, 1e4):
        for label in (0, 1):
            logits = torch.tensor([[size, -size, 0.0]], dtype=dtype, requires_grad=True)
            for loss in (robust.rcll, robust.cross_entropy, robust.generalised_cross_entropy):
                value = loss(logits, torch.tensor([label])).sum()
                (gradient,) = torch.autograd.grad(value, logits)
                assert torch.isfinite(value)
                assert torch.isfinite(gradient).all()


def test_losses_follow_a_permutation_of_the_classes():
    logits, labels, order = torch.randn(8, 5), torch.randint(5, (8,)), torch.randperm(5)
    inverse = order.argsort()
    for loss in (
        robust.rcll,
        robust.cross_entropy,
        robust.mean_absolute_error,
        robust.generalised_cross_entropy,
    ):
        torch.testing.assert_close(loss(logits, labels), loss(logits[:, order], inverse[labels]))


def test_the_released_clip_is_another_loss_than_the_papers():
    """The release weighs row i by the number of classes above 1/B: uncertain rows more. The intent clips at 1/K."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    p = logits.softmax(1)
    counted = torch.tensor([sum(bool(p[i, k] > 1 / 6) for k in range(10)) for i in range(6)])
    plain = robust.rcll(logits, labels)
    constant = (1 - 1 / 6) * (-math.log(1 / 6)) ** 0.25
    expected = (plain * counted).sum() / counted.sum() + constant
    released = robust.rcll_released(logits, labels).mean()
    assert released.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(released.item() - robust.rcll(logits, labels, floor=0.1).mean().item()) > 0.1


@pytest.mark.parametrize(("batch", "expected"), [(4, 3.89182), (50, 9.19024)])
def test_mlm_of_equal_embeddings(batch, expected):
    z, both = torch.ones(batch, 8), torch.ones(batch, dtype=torch.bool)
    assert mlm([z, z], [both, both], 0.15).item() == pytest.approx(expected, abs=1e-4)
    assert 2 * math.log(2 * batch - 1) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("batch", "expected"), [(4, 0.0152136), (50, 0.235065)])
def test_mlm_of_aligned_orthonormal_embeddings(batch, expected):
    z, both = torch.eye(batch, 64), torch.ones(batch, dtype=torch.bool)
    assert mlm([z, z], [both, both], 0.15).item() == pytest.approx(expected, rel=1e-4)


def test_mlm_invariances_and_twice_nt_xent():
    torch.manual_seed(1)
    a, b, both = torch.randn(6, 5), torch.randn(6, 5), torch.ones(6, dtype=torch.bool)
    value = mlm([a, b], [both, both], 0.15)
    torch.testing.assert_close(value, 2 * nt_xent([a, b], 0.15))
    torch.testing.assert_close(value, mlm([b, a], [both, both], 0.15))
    torch.testing.assert_close(value, mlm([a * torch.rand(6, 1).add(0.1), b * 7], [both, both], 0.15))
    assert torch.isfinite(mlm([a, a], [both, both], 0.01))


def test_bank_update():
    torch.manual_seed(0)
    bank = Bank(6, 4)
    bank.fill(torch.randn(6, 4))
    before, z = bank.rows.clone(), torch.randn(2, 4)
    bank.update(torch.tensor([1, 4]), z, 1.0)
    assert torch.equal(bank.rows, before)
    bank.update(torch.tensor([1, 4]), z, 0.9)
    expected = torch.nn.functional.normalize(0.9 * before[[1, 4]] + 0.1 * z, dim=1)
    torch.testing.assert_close(bank.rows[[1, 4]], expected)
    untouched = [0, 2, 3, 5]
    assert torch.equal(bank.rows[untouched], before[untouched])
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(6))
    bank.update(torch.tensor([1, 4]), z, 0.0)
    torch.testing.assert_close(bank.rows[[1, 4]], torch.nn.functional.normalize(z, dim=1))


def test_bank_moves_a_repeated_sample_once_towards_the_mean():
    bank = Bank(2, 2)
    bank.fill(torch.eye(2))
    bank.update(torch.tensor([0, 0]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), 0.0)
    torch.testing.assert_close(bank.rows, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))

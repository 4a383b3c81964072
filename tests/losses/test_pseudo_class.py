"""Losses of pseudo-classification: the sheet's values, and what each form rewards."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from consilience.losses.pseudo_class import prediction_entropy, pseudo_classification, soft_cross_entropy


def test_the_two_entropies_differ_as_the_sheet_says():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert float(prediction_entropy(logits, "sample")) == pytest.approx(0.82045, abs=1e-5)
    assert float(prediction_entropy(logits, "batch")) == pytest.approx(1.00620, abs=1e-5)


def test_target_is_the_captions_class_and_gets_no_gradient():
    image, caption = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = pseudo_classification(image, caption)
    expected = -sum(float(image.detach().log_softmax(1)[i, int(caption[i].argmax())]) for i in range(5)) / 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert image.grad is not None
    assert caption.grad is None


def test_a_constant_prediction_minimises_the_released_objective():
    """Why it collapses (sheet 5.2): with K = 128 and lambda = 10 one class at p = 0.0517 beats confident agreement."""
    k, weight = 128, 10.0

    def objective(p: float) -> float:
        rest = (1 - p) / (k - 1)
        entropy = -p * math.log(p) - (1 - p) * math.log(rest)
        return -math.log(p) - weight * entropy

    best = min((objective(p / 10_000), p / 10_000) for p in range(80, 9999))
    assert best[1] == pytest.approx(0.0517, abs=2e-4)
    constant = torch.full((64, k), (1 - best[1]) / (k - 1)).scatter(1, torch.zeros(64, 1, dtype=torch.int64), best[1])
    found = pseudo_classification(constant.log(), constant.log()) - weight * prediction_entropy(constant.log(), "batch")
    assert float(found) == pytest.approx(best[0], rel=1e-4)
    right = torch.eye(k)[torch.arange(64)] * 20  # all classes used, confident, in agreement
    apart = pseudo_classification(right, right) - weight * prediction_entropy(right, "batch")
    assert float(apart) > float(found)


def test_soft_cross_entropy_is_cross_entropy_on_one_hot_targets():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    found = soft_cross_entropy(logits, F.one_hot(labels, 3).float())
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"))

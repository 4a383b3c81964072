"""Hinge losses against loops written from their definitions, and the sheet's closed-form values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.losses.triplet import predicted_correspondence, soft_margin, triplet

S = torch.tensor([[0.9, 0.5, 0.2], [0.6, 0.7, 0.65], [0.1, 0.3, 0.4]])


def slow(s: torch.Tensor, margins: list[float], reduction: str, allowed: torch.Tensor | None = None) -> list[float]:
    """Definition, pair by pair: both directions use the margin of the pair."""
    n, out = len(s), []
    for i in range(n):
        captions, images = [0.0] * n, [0.0] * n
        for j in range(n):
            if i == j or (allowed is not None and not bool(allowed[i, j])):
                continue
            captions[j] = max(0.0, margins[i] - float(s[i, i]) + float(s[i, j]))
            images[j] = max(0.0, margins[i] - float(s[i, i]) + float(s[j, i]))
        join = max if reduction == "hard" else (lambda values: sum(values) / n)
        out.append(join(captions) + join(images))
    return out


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("exponential", (0.0, 0.0865, 0.2403, 0.5137, 1.0)),
        ("sine", (0.0, 0.1464, 0.5, 0.8536, 1.0)),
        ("linear", (0.0, 0.25, 0.5, 0.75, 1.0)),
    ],
)
def test_soft_margins_of_the_sheet(curve, expected):
    found = soft_margin(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), 0.2, curve)
    torch.testing.assert_close(found, torch.tensor(expected) * 0.2, atol=2e-5, rtol=0)


def test_values_of_the_sheet():
    assert float(triplet(S, 0.2, "hard").sum()) == pytest.approx(0.7, abs=1e-6)
    mean = triplet(S, 0.2, "mean")
    torch.testing.assert_close(mean, torch.tensor([0.0, 0.08333, 0.18333]), atol=1e-5, rtol=0)
    assert float(mean.sum()) == pytest.approx(0.26667, abs=1e-5)


def test_margin_of_a_pair_serves_both_directions():
    """The release of PC2 gives 0.25000 or 0.39805 here, depending on the shape of its labels."""
    margins = soft_margin(torch.tensor([1.0, 0.0, 0.5]), 0.2)
    assert float(triplet(S, margins, "hard").sum()) == pytest.approx(0.29805, abs=1e-5)


@given(
    st.integers(1, 7),
    st.integers(0, 10_000),
    st.sampled_from(["hard", "mean"]),
    st.booleans(),
)
def test_equals_the_loop(n, seed, reduction, masked):
    random = torch.Generator().manual_seed(seed)
    s, margins = torch.rand(n, n, generator=random), torch.rand(n, generator=random) * 0.4
    allowed = torch.rand(n, n, generator=random) > 0.4 if masked else None
    expected = slow(s, margins.tolist(), reduction, allowed)
    torch.testing.assert_close(triplet(s, margins, reduction, allowed), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_equals_its_mirror_image():
    """Swapping images and captions changes nothing: both directions count alike."""
    margins = torch.tensor([0.1, 0.2, 0.05])
    for reduction in ("hard", "mean"):
        torch.testing.assert_close(triplet(S, margins, reduction), triplet(S.T.contiguous(), margins, reduction))


def test_predicted_correspondence_follows_its_definition():
    margin, n = 0.2, 23
    s = torch.rand(n, n, generator=torch.Generator().manual_seed(5))
    s = s * 0.2 + torch.eye(n) * torch.linspace(-0.1, 0.3, n)
    mean = slow(s, [margin] * n, "mean")
    gaps = [min(max(margin - value / 2, 0.0), margin) for value in mean]
    best = sorted(gaps)[-(n // 10 + 1) :]
    expected = [min(1.0, gap / (sum(best) / len(best))) for gap in gaps]
    torch.testing.assert_close(predicted_correspondence(s, margin), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_predicted_correspondence_survives_a_batch_without_a_right_pair():
    s = 1 - torch.eye(4)
    assert torch.equal(predicted_correspondence(s, 0.2), torch.zeros(4))
    assert math.isfinite(float(predicted_correspondence(torch.eye(1), 0.2)))

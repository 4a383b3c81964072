"""InfoNCE against its definition, written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.losses.contrastive import info_nce, nt_xent, pairwise_nt_xent, weighted_pair_nce


def slow_nt_xent(views, temperature, groups=None):
    z = [torch.nn.functional.normalize(v, dim=1) for v in views]
    anchors = [(v, i) for v in range(len(views)) for i in range(len(views[0]))]
    total = 0.0
    for v, i in anchors:
        above, below = 0.0, 0.0
        for u, j in anchors:
            if (u, j) == (v, i):
                continue
            s = math.exp(float(z[v][i] @ z[u][j]) / temperature)
            if i == j:
                above += s
            if i == j or groups is None or groups[i] < 0 or groups[i] != groups[j]:
                below += s
        total -= math.log(above / below)
    return total / len(anchors)


@given(st.integers(2, 5), st.integers(2, 3), st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_nt_xent_is_its_definition(batch, count, seed):
    torch.manual_seed(seed)
    views = [torch.randn(batch, 4) for _ in range(count)]
    groups = torch.randint(-1, 2, (batch,))
    assert nt_xent(views, 0.3).item() == pytest.approx(slow_nt_xent(views, 0.3), rel=1e-4)
    assert nt_xent(views, 0.3, groups).item() == pytest.approx(slow_nt_xent(views, 0.3, groups.tolist()), rel=1e-4)


def test_rows_without_a_positive_cost_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    positives = torch.zeros(3, 4, dtype=torch.bool)
    positives[0, 1] = True
    value = info_nce(logits, positives)
    value.sum().backward()
    assert value[1:].tolist() == [0, 0]
    assert logits.grad[1:].abs().sum() == 0
    assert logits.grad[0].abs().sum() > 0


def test_pairs_are_summed_over_samples_that_have_both():
    torch.manual_seed(0)
    a, b, c = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)
    everyone = torch.ones(5, dtype=torch.bool)
    some = torch.tensor([True, True, False, True, False])
    value = pairwise_nt_xent([a, b, c], [everyone, some, everyone], 0.2)
    expected = nt_xent([a[some], b[some]], 0.2) + nt_xent([a, c], 0.2) + nt_xent([b[some], c[some]], 0.2)
    torch.testing.assert_close(value, expected)


def test_pair_nce_equals_its_loop():
    s, w, tau = torch.randn(5, 5), torch.tensor([1.0, 0.0, 0.5, 0.25, 1.0]), 0.3
    total = 0.0
    for i in range(5):
        row = sum(math.exp(float(s[i, j]) / tau) for j in range(5))
        column = sum(math.exp(float(s[j, i]) / tau) for j in range(5))
        own = math.exp(float(s[i, i]) / tau)
        total += float(w[i]) * (-math.log(own / row) - math.log(own / column))
    assert float(weighted_pair_nce(s, w, tau)) == pytest.approx(total / (2 * float(w.sum())), rel=1e-5)
    assert float(weighted_pair_nce(s, torch.zeros(5), tau)) == 0

"""Clustering scores: best matching over all permutations, invariances, bad input."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.evaluation.clustering import ari, clustering_accuracy, nmi, used_clusters, view_agreement


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_accuracy_is_the_best_of_all_matchings(pairs: list[tuple[int, int]]) -> None:
    predicted, truth = np.array(pairs).T
    best = max(np.mean(np.array(order)[predicted] == truth) for order in permutations(range(4)))
    assert clustering_accuracy(predicted, truth) == pytest.approx(best)


@pytest.mark.parametrize("score", [clustering_accuracy, nmi, ari])
def test_relabelling_changes_nothing(score: Any) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(7, size=200))
    names = np.array([40, -3, 7, 1000, 0, 12, 5])
    assert score(names[predicted], truth) == pytest.approx(score(predicted, truth))
    assert score(predicted, names[truth]) == pytest.approx(score(predicted, truth))
    assert score(names[truth], truth) == pytest.approx(1)


def test_random_labels_of_ten_equal_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(10), 200)
    predicted = rng.permutation(truth)
    assert 0.1 <= clustering_accuracy(predicted, truth) <= 0.15
    assert abs(ari(predicted, truth)) < 0.01
    assert 0 <= nmi(predicted, truth) < 0.02


def test_more_clusters_than_classes_stay_unmatched() -> None:
    assert clustering_accuracy(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])) == pytest.approx(2 / 6)


def test_agreement_and_used_clusters() -> None:
    a, b = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 2])
    assert view_agreement(a, b) == 0.75
    assert used_clusters(a) == 3
    assert used_clusters(torch.zeros(5, dtype=torch.int64)) == 1


@pytest.mark.parametrize("score", [clustering_accuracy, nmi, ari, view_agreement])
def test_bad_pairs_are_named(score: Any) -> None:
    with pytest.raises(InputError, match="has 3 samples"):
        score(torch.arange(3), torch.arange(4))
    with pytest.raises(InputError, match="whole numbers"):
        score(torch.arange(0), torch.arange(0))
    with pytest.raises(InputError, match="whole numbers"):
        score(torch.ones(3), torch.arange(3))


def test_bad_ids_are_named() -> None:
    with pytest.raises(InputError, match="predicted"):
        used_clusters(torch.zeros(2, 2, dtype=torch.int64))

"""Clustering, balanced assignment and agreement."""

import math

import pytest
import torch

from consilience.errors import ConsilienceError, InputError
from consilience.noise.clustering import kmeans, mutual_information, neighbour_mean, sinkhorn


def blobs(per: int = 20) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.eye(3).repeat_interleave(per, 0) + 0.01 * torch.randn(3 * per, 3)


def test_kmeans_finds_blobs_and_repeats_its_bits():
    centres, labels = kmeans(blobs(), 3, seed=1)
    assert all(len(set(labels[i * 20 : (i + 1) * 20].tolist())) == 1 for i in range(3))
    again, _ = kmeans(blobs(), 3, seed=1)
    assert torch.equal(centres, again)


def test_kmeans_from_given_centres_keeps_their_order():
    start = torch.eye(3)[[2, 0, 1]]
    _, labels = kmeans(blobs(), 3, seed=5, start=start)
    assert labels[::20].tolist() == [1, 2, 0]


def test_duplicated_data_gives_the_same_centres():
    once, _ = kmeans(blobs(), 3, seed=1, start=torch.eye(3))
    twice, _ = kmeans(torch.cat([blobs(), blobs()]), 3, seed=1, start=torch.eye(3))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=0)


def test_kmeans_names_the_remedy():
    with pytest.raises(InputError, match=r"2 samples cannot form 3 clusters.*--method.clusters"):
        kmeans(torch.randn(2, 4), 3, seed=0)
    with pytest.warns(Warning), pytest.raises(ConsilienceError, match=r"only 1 of 3 clusters"):
        kmeans(torch.zeros(9, 4), 3, seed=0)


def test_sinkhorn_balances_what_argmax_would_collapse():
    torch.manual_seed(0)
    scores = torch.randn(90, 3) * 0.05 + torch.tensor([1.0, 0.8, 0.8])
    assert scores.argmax(1).bincount(minlength=3)[0] > 80
    plan = sinkhorn(scores, rounds=50)
    torch.testing.assert_close(plan.sum(1), torch.ones(90))
    torch.testing.assert_close(plan.sum(0), torch.full((3,), 30.0), atol=0.5, rtol=0)


def test_sinkhorn_follows_a_permutation_of_the_samples():
    torch.manual_seed(0)
    scores, order = torch.randn(12, 3), torch.randperm(12)
    torch.testing.assert_close(sinkhorn(scores)[order], sinkhorn(scores[order]))


def test_neighbour_mean_is_its_definition_for_any_block():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(30, 5), dim=1)
    slow = []
    for row in unit:
        near = sorted(range(30), key=lambda j: -float(row @ unit[j]))[:4]
        slow.append(torch.nn.functional.normalize(unit[near].mean(0), dim=0))
    for block in (7, 1024):
        torch.testing.assert_close(neighbour_mean(unit, 4, block), torch.stack(slow))
    assert neighbour_mean(unit, 1) is unit


def test_mutual_information_bounds():
    hard = torch.eye(4).repeat(5, 1)
    assert mutual_information(hard, hard) == pytest.approx(math.log(4), abs=1e-6)
    uniform = torch.full((20, 4), 0.25)
    assert mutual_information(uniform, uniform) == pytest.approx(0, abs=1e-9)
    collapsed = torch.eye(4)[[0]].repeat(20, 1)
    assert mutual_information(collapsed, collapsed) == pytest.approx(0, abs=1e-6)
    assert mutual_information(hard, hard.roll(1, 0)) < math.log(4)

"""Clustering, balanced assignment and agreement."""

import math

import pytest
import torch

from consilience.errors import ConsilienceError, InputError
from consilience.noise.agreement import fuse, mean_reciprocal_rank, mutual_information, unanimous
from consilience.noise.clustering import class_centres, kmeans, neighbour_mean, sinkhorn


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
    with pytest.warns(UserWarning, match="distinct"), pytest.raises(ConsilienceError, match=r"only 1 of 3"):
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


def test_unanimous_lets_an_absent_modality_abstain():
    labels = torch.tensor([[0, 1, 2, 3], [0, 2, 2, 3], [0, 1, 0, 1]])
    everyone = [torch.ones(4, dtype=torch.bool)] * 3
    assert unanimous(labels, everyone).tolist() == [True, False, False, False]
    third = torch.tensor([True, True, False, False])
    assert unanimous(labels, [everyone[0], everyone[1], third]).tolist() == [True, False, True, True]
    nobody = [torch.zeros(4, dtype=torch.bool)] * 3
    assert unanimous(labels, nobody).all()


def test_fuse_is_the_unit_mean_of_what_is_there():
    vectors = {"a": torch.tensor([[3.0, 0.0], [2.0, 0.0]]), "b": torch.tensor([[0.0, 5.0], [0.0, 1.0]])}
    present = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}
    torch.testing.assert_close(fuse(vectors, present), torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_mean_reciprocal_rank_is_its_definition():
    torch.manual_seed(0)
    u, v = torch.randn(7, 3), torch.randn(7, 3)
    s = torch.nn.functional.cosine_similarity(u[:, None], v[None], dim=2)
    slow = 0.0
    for i in range(7):
        slow += 1 / sum(bool(s[i, j] >= s[i, i]) for j in range(7)) / 14
        slow += 1 / sum(bool(s[j, i] >= s[i, i]) for j in range(7)) / 14
    assert mean_reciprocal_rank(u, v) == pytest.approx(slow)
    assert mean_reciprocal_rank(u, u) == pytest.approx(1)


def test_class_centres_of_a_label_without_members_stay():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    otherwise = torch.full((3, 2), 7.0)
    expected = torch.tensor([[1.0, 0.0], [7.0, 7.0], [0.0, 1.0]])
    torch.testing.assert_close(class_centres(vectors, torch.tensor([0, 2, 2]), otherwise), expected)

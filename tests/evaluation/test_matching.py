"""Pair retrieval against its definition: all orders of ties enumerated, facts, invariances, intervals, bad input."""

from __future__ import annotations

import math
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consilience.errors import InputError
from consilience.evaluation.matching import MatchingResult, ceiling, folds, matching, matching_difference
from consilience.evaluation.retrieval import retrieval_of_scores
from consilience.evaluation.stats import holm, standard_error

FORTH, BACK = "image->text", "text->image"
CUTS = (1, 2, 5, 10)


def orders(scores: list[float]) -> list[list[int]]:
    """Every ranking that the scores allow."""
    groups = [[i for i, s in enumerate(scores) if s == value] for value in sorted(set(scores), reverse=True)]
    return [[i for group in order for i in group] for order in product(*(list(permutations(g)) for g in groups))]


def slow(scores: np.ndarray, relevant: np.ndarray, pessimistic: bool) -> list[tuple[float, dict[int, float]]]:
    """Rank and hits of each row, straight from the definition."""
    out = []
    for row, good in zip(scores, relevant, strict=True):
        ranks = [next(r for r, i in enumerate(order, 1) if good[i]) for order in orders(row.tolist())]
        ranks = [max(ranks)] if pessimistic else ranks
        out.append((float(np.mean(ranks)), {k: float(np.mean([r <= k for r in ranks])) for k in CUTS}))
    return out


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores with many ties, the image of each caption, and sometimes repeated texts."""
    n = draw(st.integers(1, 4))
    own = draw(st.permutations([*range(n), *draw(st.lists(st.integers(0, n - 1), max_size=6 - n))]))
    m = len(own)
    scores = draw(st.lists(st.lists(st.integers(0, 3), min_size=m, max_size=m), min_size=n, max_size=n))
    copies = draw(st.none() | st.lists(st.integers(0, 2), min_size=m, max_size=m))
    return np.array(scores, np.float32), np.array(own), None if copies is None else np.array(copies)


def solve(scores: np.ndarray, own: np.ndarray, **options: Any) -> MatchingResult:
    return matching(torch.from_numpy(scores), torch.from_numpy(own), k=CUTS, **options)


@given(problems(), st.booleans(), st.sampled_from([4, 40, 10**6]))
@settings(max_examples=150)
def test_both_directions_agree_with_every_order_of_ties(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray | None], pessimistic: bool, block: int
) -> None:
    scores, own, copies = problem
    relevant = own == np.arange(len(scores))[:, None]
    if copies is not None:
        same = copies[:, None] == copies
        relevant = (relevant.astype(int) @ same.astype(int)) > 0
    found = solve(
        scores,
        own,
        ties="pessimistic" if pessimistic else "expected",
        copies=None if copies is None else torch.from_numpy(copies),
        block_bytes=block,
    )
    for ranks, expected in (
        (found.image_to_text, slow(scores, relevant, pessimistic)),
        (found.text_to_image, slow(scores.T, relevant.T, pessimistic)),
    ):
        assert ranks.rank.tolist() == pytest.approx([rank for rank, _ in expected], abs=1e-9)
        for k in CUTS:
            assert ranks.hits[k].tolist() == pytest.approx([hits[k] for _, hits in expected], abs=1e-9)


def some(n: int = 40, each: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores that know a little, rounded so that there are ties, and own images."""
    g = torch.Generator().manual_seed(seed)
    own = torch.arange(n * each) // each
    right = (own == torch.arange(n)[:, None]).float()
    return ((torch.randn(n, n * each, generator=g) + 1.5 * right) * 8).round() / 8, own


def test_hits_are_those_of_full_retrieval() -> None:
    scores, own = some()
    relevant = own == torch.arange(len(scores))[:, None]
    found = matching(scores, own)
    for ranks, theirs in (
        (found.image_to_text, retrieval_of_scores(scores, relevant)),
        (found.text_to_image, retrieval_of_scores(scores.T.contiguous(), relevant.T.contiguous())),
    ):
        for k in (1, 5, 10):
            torch.testing.assert_close(ranks.hits[k], theirs.recall_at_k[k], atol=1e-10, rtol=0)


def test_equal_scores_get_what_chance_deserves() -> None:
    for n in (7, 1000):
        found = matching(torch.zeros(n, n), torch.arange(n))
        for name in (FORTH, BACK):
            assert found.recall[name][1] == pytest.approx(100 / n)
            assert found.recall[name][5] == pytest.approx(500 / n)
            assert found.median_rank[name] == found.mean_rank[name] == (n + 1) / 2
    assert matching(torch.zeros(9, 9), torch.arange(9), ties="pessimistic").rsum == pytest.approx(200)
    five = matching(torch.zeros(10, 50), torch.arange(50) // 5)
    assert five.recall[FORTH][1] == pytest.approx(10)
    assert five.mean_rank[FORTH] == pytest.approx(51 / 6)
    assert five.mean_rank[BACK] == pytest.approx(5.5)


def test_a_known_case() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.8, 0.2, 0.5, 0.6]])
    found = matching(scores, torch.tensor([0, 0, 1, 1]))
    assert found.image_to_text.rank.tolist() == [1, 2]
    assert found.text_to_image.rank.tolist() == [1, 2, 1, 1]
    assert found.recall == {FORTH: {1: 50, 5: 100, 10: 100}, BACK: {1: 75, 5: 100, 10: 100}}
    assert found.rsum == 525
    assert found.median_rank == {FORTH: 1.5, BACK: 1.0}
    assert found.mean_rank == {FORTH: 1.5, BACK: 1.25}


def test_only_order_and_pairing_count() -> None:
    scores, own = some()
    before = matching(scores, own)
    order, mixed = torch.randperm(40), torch.randperm(200)
    place = torch.argsort(order)
    after = matching(scores[order][:, mixed], place[own[mixed]])
    assert after.values() == pytest.approx(before.values())
    assert torch.equal(after.image_to_text.rank, before.image_to_text.rank[order])
    assert torch.equal(after.text_to_image.rank, before.text_to_image.rank[mixed])
    for changed in ((scores.double() * 3 - 7).exp(), -1e30 / (scores.double() + 100), (scores * 8).long()):
        assert matching(changed, own).values() == before.values()


def test_infinite_scores_are_ordered_and_tied_like_others() -> None:
    scores = torch.tensor([[math.inf, -math.inf], [math.inf, -math.inf]])
    found = matching(scores, torch.tensor([0, 1]))
    assert found.image_to_text.rank.tolist() == [1, 2]
    assert found.text_to_image.rank.tolist() == [1.5, 1.5]


def test_folds_average_parts_that_are_judged_alone() -> None:
    scores, own = some()
    whole = folds(scores, own, folds=4)
    parts = []
    for start in range(0, 40, 10):
        columns = slice(start * 5, start * 5 + 50)
        parts.append(matching(scores[start : start + 10, columns].contiguous(), own[columns] - start))
    for name, value in whole.values().items():
        assert value == pytest.approx(np.mean([part.values()[name] for part in parts]))
    for name in (FORTH, BACK):
        assert whole.median_rank[name] == pytest.approx(np.mean([part.median_rank[name] for part in parts]))
        assert whole.mean_rank[name] == pytest.approx(np.mean([part.mean_rank[name] for part in parts]))
    assert whole.rsum > matching(scores, own).rsum
    assert folds(scores, own, folds=1).values() == matching(scores, own).values()
    uneven = folds(scores[:7, :35], own[:35], folds=2)
    assert torch.bincount(uneven.fold).tolist() == [4, 3]
    mixed = torch.randperm(200)
    assert folds(scores[:, mixed], own[mixed], folds=4).values() == pytest.approx(whole.values())


def test_intervals_are_those_of_a_loop_over_draws() -> None:
    scores, _ = some(12, 3)
    own = torch.cat([torch.arange(12), torch.arange(24) // 4])  # one to five captions an image
    found = matching(scores, own)
    drawn = found.resampled(300, seed=3)
    rng = np.random.default_rng((3, 0))
    first, second = found.image_to_text.hits, found.text_to_image.hits
    for row, images in zip(drawn, rng.integers(12, size=(300, 12)), strict=True):
        captions = np.concatenate([np.flatnonzero(own.numpy() == i) for i in images])
        expected = [100 * float(first[k][images].mean()) for k in (1, 5, 10)]
        expected += [100 * float(second[k][captions].mean()) for k in (1, 5, 10)]
        assert row.tolist() == pytest.approx([*expected, sum(expected)])
    interval = found.intervals(resamples=300, seed=3)["rsum"]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn[:, -1], [0.025, 0.975])))
    assert interval.mean == found.rsum
    assert interval.low < interval.mean < interval.high


def test_one_image_has_no_interval() -> None:
    found = matching(torch.ones(1, 1), torch.tensor([0]))
    assert math.isnan(found.intervals()["rsum"].low)
    assert math.isnan(matching_difference(found, found)["rsum"].interval.high)


def test_differences_are_paired() -> None:
    scores, own = some(100, 1)
    a, b = matching(scores, own), matching(scores + 0.5 * torch.eye(100), own)
    found = matching_difference(b, a)
    assert found["rsum"].interval.mean == pytest.approx(b.rsum - a.rsum)
    assert 0 < found["rsum"].interval.low < found["rsum"].interval.high
    assert found["rsum"].p_value == pytest.approx(2 / 2001)
    alone = b.intervals()["rsum"]
    paired = found["rsum"].interval
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    same = matching_difference(a, a)["rsum"]
    assert (same.interval.mean, same.interval.low, same.p_value) == (0, 0, 1)
    with pytest.raises(InputError, match="expected the same in both"):
        matching_difference(a, folds(scores, own, folds=2))


def test_p_values_of_equal_methods_are_rarely_small() -> None:
    rng, small = np.random.default_rng(0), 0
    for _ in range(60):
        noise = torch.from_numpy(rng.normal(size=(2, 80, 80)))
        a, b = (matching(x + 1.5 * torch.eye(80), torch.arange(80)) for x in noise)
        small += matching_difference(a, b, resamples=400)["rsum"].p_value < 0.1
    assert small <= 14  # 6 expected; a chance of 0.1% at the nominal level


def test_ceilings_of_repeated_captions() -> None:
    copies = torch.from_numpy(np.repeat(np.arange(4), (3, 1, 1, 1)))
    assert ceiling(copies) == pytest.approx({1: 200 / 3, 5: 100, 10: 100})
    # a scorer that knows everything, and cannot tell copies from each other, reaches it
    perfect = (copies[:, None] == copies).float()
    found = matching(perfect, torch.arange(6))
    assert found.recall[FORTH][1] == found.recall[BACK][1] == pytest.approx(200 / 3)
    grouped = matching(perfect, torch.arange(6), copies=copies, ties="pessimistic")
    assert grouped.rsum == 600
    assert ceiling(torch.arange(5), (1,)) == {1: 100}


def test_standard_error_and_holm() -> None:
    assert 100 * standard_error(0.16, 1000) == pytest.approx(1.159, abs=5e-4)
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]).tolist() == [1, 1]
    for wrong in ([1.1], [-0.1]):
        with pytest.raises(InputError, match="expected probabilities"):
            holm(wrong)
    with pytest.raises(InputError, match="a share of 2"):
        standard_error(2, 10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_procedure_does(p: list[float]) -> None:
    adjusted, alpha = holm(p), 0.05
    rejected = set()
    for place, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - place) > alpha:
            break
        rejected.add(int(i))
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": torch.tensor([0, 1, 2])}, "expected int64 \\[4\\]"),
        ({"own": torch.tensor([0.0, 1, 2, 2])}, "own is torch.float32"),
        ({"own": torch.tensor([0, 1, 2, 3])}, "own names image 3: expected 0 to 2"),
        ({"own": torch.tensor([0, 0, 2, 2])}, "image 1 has no caption"),
        ({"scores": torch.zeros(3)}, "expected numbers \\[images, captions\\]"),
        ({"scores": torch.zeros(3, 4, dtype=torch.bool)}, "scores are torch.bool"),
        ({"scores": torch.full((3, 4), math.nan)}, "the score of image 0 and caption 0 is NaN"),
        ({"ties": "optimistic"}, "unknown tie rule 'optimistic'"),
        ({"k": [0]}, "expected whole numbers >= 1"),
        ({"folds": 4}, "4 folds of 3 images"),
        ({"copies": torch.tensor([1, 2])}, "copies is torch.int64 \\[2\\]"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"scores": torch.zeros(3, 4), "own": torch.tensor([0, 1, 2, 2]), "folds": 1} | change
    with pytest.raises(InputError, match=message):
        folds(**call)


def test_figures_carry_the_names_of_the_modalities() -> None:
    scores, own = some()
    found = matching(scores, own)
    figures = found.figures(("photo", "title"))
    assert set(figures) == {"photo->title", "title->photo", "rsum", "ci95"}
    assert figures["title->photo"]["r5"] == found.recall[BACK][5]
    assert set(figures["photo->title"]) == {"r1", "r5", "r10", "median_rank", "mean_rank", "ci95"}
    low, high = figures["ci95"]
    assert low < figures["rsum"] == found.rsum < high

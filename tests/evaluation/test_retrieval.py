"""Retrieval metrics against their definitions: facts, slow loops, all orders of ties, invariances, limits."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consilience.errors import InputError
from consilience.evaluation import retrieval as module
from consilience.evaluation.retrieval import RetrievalResult, retrieval, retrieval_of_scores

CUTS = (1, 2, 3, 5, 9)


def by_definition(ranked: Sequence[int], cuts: Sequence[int] = CUTS) -> dict[Any, Fraction]:
    """Every metric of one ranking (1 = relevant), in exact arithmetic, straight from the definitions."""
    total = sum(ranked)

    def gains(end: int) -> Fraction:
        ranks = [j for j in range(min(end, len(ranked))) if ranked[j]]
        return sum((Fraction(sum(ranked[: j + 1]), j + 1) for j in ranks), Fraction(0))

    out: dict[Any, Fraction] = {
        "ap": gains(len(ranked)) / max(total, 1),
        "ap_at_r": gains(total) / max(total, 1),
    }
    for k in cuts:
        hits = sum(ranked[:k])
        out["ap_at_k", k] = gains(k) / max(min(total, k), 1)
        out["ap_at_k_retrieved", k] = gains(k) / max(hits, 1)
        out["precision_at_k", k] = Fraction(hits, k)
        out["recall_at_k", k] = Fraction(int(hits > 0))
    return out


def tie_orders(scores: Sequence[float]) -> list[list[int]]:
    """All rankings (lists of gallery rows) that the scores allow."""
    groups = [[i for i, s in enumerate(scores) if s == value] for value in sorted(set(scores), reverse=True)]
    return [[i for group in order for i in group] for order in product(*(list(permutations(g)) for g in groups))]


def expected(scores: Sequence[float], relevant: Sequence[int], partner: int | None = None) -> dict[Any, float]:
    """Mean of every metric over all orders of ties."""
    sums: dict[Any, Fraction] = {}
    orders = tie_orders(scores)
    for order in orders:
        values = by_definition([relevant[i] for i in order])
        if partner is not None:
            rank = order.index(partner) + 1
            values["partner_rank"] = Fraction(rank)
            values |= {("partner_recall_at_k", k): Fraction(int(rank <= k)) for k in CUTS}
        for name, value in values.items():
            sums[name] = sums.get(name, Fraction(0)) + value
    return {name: float(value / len(orders)) for name, value in sums.items()}


def value_of(result: RetrievalResult, name: Any, query: int = 0) -> float:
    values = getattr(result, name) if isinstance(name, str) else getattr(result, name[0])[name[1]]
    return float(values[query])


def check(result: RetrievalResult, wanted: dict[Any, float], query: int = 0) -> None:
    got = {name: value_of(result, name, query) for name in wanted}
    assert got == pytest.approx(wanted, abs=1e-12)


def of_scores(scores: Any, relevant: Any, **options: Any) -> RetrievalResult:
    return retrieval_of_scores(torch.as_tensor(scores), torch.as_tensor(relevant).bool(), **({"k": CUTS} | options))


def clustered(
    n: int, classes: int = 4, d: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, d, generator=g, dtype=torch.float64)
    a, b = (centres[labels] + torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), b.to(dtype), labels


# Facts


def test_facts_of_the_sheet() -> None:
    assert of_scores([[0.9, 0.8, 0.7]], [[1, 0, 1]]).map == pytest.approx(5 / 6, abs=1e-15)
    assert of_scores([[0.9, 0.8, 0.7]], [[0, 0, 0]]).map == 0
    assert of_scores([[0.9, 0.8, 0.7]], [[1, 1, 1]]).map == 1


def test_named_conventions_differ() -> None:
    result = of_scores([[0.9, 0.8, 0.7, 0.6, 0.5]], [[0, 1, 0, 1, 1]], k=[2])
    assert int(result.relevant[0]) == 3
    assert result.map == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert result.map_at_r == pytest.approx((1 / 2) / 3)
    assert result.map_at_k == {2: pytest.approx((1 / 2) / 2)}
    assert result.map_at_k_retrieved == {2: pytest.approx(1 / 2)}
    assert result.mean_precision_at_k == {2: 0.5}
    assert result.mean_recall_at_k == {2: 1.0}
    assert result.mean_partner_recall_at_k is None
    assert result.mean_partner_rank is None


def test_random_ranking_of_balanced_classes_is_near_one_over_k() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 10
    result = retrieval(torch.randn(100, 16, generator=g), torch.randn(2000, 16, generator=g), labels[:100], labels)
    assert result.map == pytest.approx(0.1, abs=0.01)


def test_all_scores_tied_is_the_mean_over_random_orders() -> None:
    relevant = [1, 1, 0, 0, 0, 1]
    check(of_scores([[0.0] * 6], [relevant]), expected([0] * 6, relevant))


# Slow loops


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_loop_over_ranks(metric: Any, dtype: torch.dtype) -> None:
    a, b, labels = clustered(150, dtype=dtype)
    a, b = 3 * a, 3 * b
    result = retrieval(a[:40], b, labels[:40], labels, k=CUTS, metric=metric)
    x, y = a[:40].double().numpy(), b.double().numpy()
    if metric == "cosine":
        scores = x @ y.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
    elif metric == "dot":
        scores = x @ y.T
    else:
        scores = -np.linalg.norm(x[:, None] - y[None], axis=2)
    for i in range(40):
        ranked = (labels[i] == labels).int().numpy()[np.argsort(-scores[i])]
        wanted = {name: float(value) for name, value in by_definition(ranked.tolist()).items()}
        got = {name: value_of(result, name, i) for name in wanted}
        assert got == pytest.approx(wanted, abs=1e-9)


def test_equals_sklearn_without_ties() -> None:
    a, b, labels = clustered(300)
    result = retrieval(a, b, labels, labels)
    scores = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    wanted = [average_precision_score(labels == labels[i], scores[i]) for i in range(300)]
    np.testing.assert_allclose(result.ap.numpy(), wanted, atol=1e-9)


# Ties


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_equal_all_orders_enumerated(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    relevant = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    partner = data.draw(st.integers(0, n - 1))
    kind = data.draw(st.sampled_from([torch.int8, torch.int64, torch.float32, torch.float64]))
    cuts = data.draw(st.sampled_from([CUTS, (1,), (2,), (1, 3)]))
    result = of_scores(torch.tensor([scores], dtype=kind), [relevant], partner=torch.tensor([partner]), k=cuts)
    wanted = expected(scores, relevant, partner)
    check(result, {name: v for name, v in wanted.items() if isinstance(name, str) or name[1] in cuts})


def test_every_tie_pattern_of_five_items() -> None:
    rows = list(product(product((0, 1, 2), repeat=5), product((0, 1), repeat=5)))[::7]
    result = of_scores([list(s) for s, _ in rows], [list(r) for _, r in rows])
    for i, (scores, relevant) in enumerate(rows):
        check(result, expected(scores, relevant), i)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5))
def test_ties_equal_a_sum_over_ranks(seed: int, n: int, levels: int) -> None:
    """Larger groups: harmonic numbers against the sum over one rank at a time."""
    rng = np.random.default_rng(seed)
    scores, relevant = rng.integers(levels, size=n), rng.integers(2, size=n)
    result = of_scores(scores[None], relevant[None])
    gains, ap_at_r, above, before = 0.0, 0.0, 0, 0
    for value in sorted(set(scores.tolist()), reverse=True):
        s, r = int((scores == value).sum()), int(relevant[scores == value].sum())
        for t in range(1, s + 1):
            others = (t - 1) * (r - 1) / (s - 1) if s > 1 else 0.0
            gain = r / s * (before + 1 + others) / (above + t)
            gains += gain
            ap_at_r += gain if above + t <= relevant.sum() else 0.0
        above, before = above + s, before + r
    assert float(result.ap[0]) == pytest.approx(gains / max(relevant.sum(), 1), abs=1e-12)
    assert float(result.ap_at_r[0]) == pytest.approx(ap_at_r / max(relevant.sum(), 1), abs=1e-12)


def test_large_tie_matches_random_orders() -> None:
    rng = np.random.default_rng(0)
    scores, relevant = rng.integers(3, size=60), rng.integers(5, size=60) == 0
    cuts = (1, 7, 30)
    result = of_scores(scores[None], relevant[None], k=cuts)
    sampled: dict[Any, list[float]] = {}
    for _ in range(1500):
        order = np.lexsort((rng.random(60), -scores))
        for name, value in by_definition(relevant[order].astype(int).tolist(), cuts).items():
            sampled.setdefault(name, []).append(float(value))
    for name, values in sampled.items():
        error = np.std(values) / np.sqrt(len(values))
        assert abs(value_of(result, name) - np.mean(values)) <= 4.5 * error + 1e-9, name


def test_zero_and_minus_zero_are_tied() -> None:
    relevant = [1, 0, 1]
    check(of_scores([[0.0, -0.0, -1.0]], [relevant]), expected([0, 0, -1], relevant))


def test_a_query_is_not_tied_with_the_query_before() -> None:
    result = of_scores([[1.0, 1, 1], [1, 1, 0]], [[0, 0, 0], [1, 1, 0]])
    check(result, expected([1, 1, 0], [1, 1, 0]), 1)


def test_neighbouring_floats_are_not_tied() -> None:
    for dtype in (torch.float32, torch.float64):
        for value in (0.7, -0.7, 5.0, -5.0, 1e-40):
            x = torch.tensor(value, dtype=dtype)
            scores = torch.stack([x, torch.nextafter(x, torch.tensor(torch.inf, dtype=dtype))])[None]
            assert float(of_scores(scores, [[1, 0]]).ap[0]) == 0.5
            assert float(of_scores(scores, [[0, 1]]).ap[0]) == 1.0


# Invariances


SCORES = torch.linspace(-1, 1, 41, dtype=torch.float64)[
    torch.randint(41, (6, 50), generator=torch.Generator().manual_seed(1))
]
RELEVANT = torch.rand(6, 50, generator=torch.Generator().manual_seed(2)) < 0.3


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s - 5,
        lambda s: s + 5,
        lambda s: s.exp(),
        lambda s: s**3 * 1e-30,
        lambda s: s * 1e300,
        lambda s: torch.where(s == s.max(), torch.inf, s),
        lambda s: s.float(),
        lambda s: (s * 1e30).float(),
        lambda s: (s * 20).round().to(torch.int8),
        lambda s: (s * 20).round().long() * 2**40,
        lambda s: (s * 20).round().long() * 2**58,
        lambda s: (s * 20).round().bfloat16(),
    ],
)
def test_a_strictly_monotone_map_changes_nothing(change: Any) -> None:
    before, after = of_scores(SCORES, RELEVANT), of_scores(change(SCORES), RELEVANT)
    for name in ("ap", "ap_at_r"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)
    for name in ("ap_at_k", "ap_at_k_retrieved", "precision_at_k", "recall_at_k"):
        for k in CUTS:
            torch.testing.assert_close(getattr(after, name)[k], getattr(before, name)[k], rtol=0, atol=0)


def test_negative_scores_are_retrieved() -> None:
    check(of_scores([[-0.1, -0.2, -0.3]], [[0, 1, 1]]), expected([3, 2, 1], [0, 1, 1]))


def test_order_of_the_gallery_changes_nothing() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    before, after = of_scores(SCORES, RELEVANT), of_scores(SCORES[:, order], RELEVANT[:, order])
    torch.testing.assert_close(after.ap, before.ap, rtol=0, atol=1e-14)


def test_inputs_are_left_alone() -> None:
    scores, relevant = SCORES.clone(), RELEVANT.clone()
    of_scores(scores, relevant, exclude=torch.arange(6))
    assert torch.equal(scores, SCORES)
    assert torch.equal(relevant, RELEVANT)


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_block_size_changes_nothing(block: int) -> None:
    # Small whole numbers: products are exact, ties are many, and rounding cannot depend on the block.
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-2, 3, (60, 5), generator=g).float() for _ in range(2))
    labels = torch.arange(60) % 4
    rows = torch.randperm(60, generator=g)
    options: dict[str, Any] = {"metric": "dot", "partner": rows, "exclude": (rows + 1) % 60}
    whole, blocks = (retrieval(a, b, labels, labels, block=size, **options) for size in (None, block))
    assert torch.equal(whole.ap, blocks.ap)
    assert torch.equal(whole.ap_at_k_retrieved[5], blocks.ap_at_k_retrieved[5])
    assert whole.partner_rank is not None
    assert blocks.partner_rank is not None
    assert torch.equal(whole.partner_rank, blocks.partner_rank)


def test_half_precision_is_scored_in_float32() -> None:
    a, b, labels = clustered(80, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = retrieval(a, b, labels, labels)
    assert torch.equal(half.ap, retrieval(a.float(), b.float(), labels, labels).ap)


def test_zero_vectors_tie_with_everything() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1])
    result = retrieval(torch.zeros(1, 3), torch.randn(5, 3), labels[:1], labels, k=CUTS)
    check(result, expected([0] * 5, [1, 0, 0, 1, 0]))


# Partner and exclusion


def test_excluding_self_equals_leaving_the_item_out() -> None:
    a, _, labels = clustered(60)
    rows = torch.arange(60)
    result = retrieval(a, a, labels, labels, exclude=rows, k=CUTS, partner=(rows + 1) % 60)
    for i in range(60):
        rest = rows[rows != i]
        partner = (rest == (i + 1) % 60).nonzero()[0]
        alone = retrieval(a[i : i + 1], a[rest], labels[i : i + 1], labels[rest], k=CUTS, partner=partner)
        names = [
            "ap",
            "ap_at_r",
            "relevant",
            "partner_rank",
            *((n, k) for n in ("ap_at_k", "recall_at_k") for k in CUTS),
        ]
        check(result, {name: value_of(alone, name) for name in names}, i)


def test_excluded_item_is_out_of_large_ties() -> None:
    check(of_scores([[1, 1, 1, 0]], [[1, 1, 0, 0]], exclude=torch.tensor([0])), expected([1, 1, 0], [1, 0, 0]))


def test_partner_rank_and_recall() -> None:
    result = of_scores([[4.0, 3, 2, 1], [1, 1, 1, 0]], [[0] * 4] * 2, partner=torch.tensor([2, 1]), k=[1, 2, 3])
    assert result.partner_rank is not None
    assert result.partner_rank.tolist() == [3, 2]
    assert result.mean_partner_rank == 2.5
    assert result.mean_partner_recall_at_k == {
        1: pytest.approx(1 / 6),
        2: pytest.approx(1 / 3),
        3: pytest.approx(1.0),
    }


# Streaming


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_largest_tensor_is_one_block_whatever_the_number_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 20)
    sizes = []
    for n in (500, 2000):
        a, b, labels = clustered(2000, dtype=torch.float32)
        with Largest() as largest:
            retrieval(a[:n], b, labels[:n], labels)
        sizes.append(largest.elements)
    assert sizes[0] == sizes[1]
    assert sizes[0] * 4 < 1 << 20


def test_join_of_blocks() -> None:
    whole = of_scores(SCORES, RELEVANT, partner=torch.arange(6))
    parts = [of_scores(SCORES[i : i + 2], RELEVANT[i : i + 2], partner=torch.arange(i, i + 2)) for i in (0, 2, 4)]
    joined = RetrievalResult.join(parts)
    assert torch.equal(joined.ap, whole.ap)
    assert joined.mean_partner_recall_at_k == whole.mean_partner_recall_at_k
    with pytest.raises(InputError, match="no results"):
        RetrievalResult.join([])


# Bad input


def vectors(**changes: Any) -> dict[str, Any]:
    good = {
        "queries": torch.ones(3, 2),
        "gallery": torch.ones(4, 2),
        "query_labels": torch.zeros(3, dtype=torch.int64),
        "gallery_labels": torch.zeros(4, dtype=torch.int64),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": torch.ones(3)}, "queries are"),
        ({"queries": torch.ones(3, 2, dtype=torch.int64)}, "queries are"),
        ({"gallery": torch.ones(0, 2), "gallery_labels": torch.zeros(0, dtype=torch.int64)}, "gallery are"),
        ({"gallery": torch.ones(4, 5)}, "shared space"),
        ({"query_labels": torch.zeros(4, dtype=torch.int64)}, "queries have 3 rows"),
        ({"gallery_labels": torch.zeros(4)}, "gallery have 4 rows"),
        ({"gallery": torch.tensor([[1.0, 1], [1, torch.nan], [1, 1], [1, 1]])}, "gallery row 1"),
        ({"queries": torch.full((3, 2), torch.inf)}, "queries row 0"),
        (
            {
                "queries": torch.full((3, 2), 1e38),
                "gallery": torch.tensor([[1e38, -1e38]] * 4),
                "metric": "dot",
            },
            "not a number",
        ),
        ({"k": []}, "k is"),
        ({"k": [0, 1]}, "k is"),
        ({"k": [1.5]}, "k is"),
        ({"block": 0}, "block is 0"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"partner": torch.tensor([0, 1])}, "one row per query"),
        ({"partner": torch.tensor([0, 1, 4])}, "partner of query 2 is 4"),
        ({"exclude": torch.tensor([-1, 0, 0])}, "exclude of query 0 is -1"),
        ({"exclude": torch.tensor([0.0, 0, 0])}, "expected int64"),
        ({"exclude": torch.tensor([0, 1, 2]), "partner": torch.tensor([3, 1, 0])}, "also excluded"),
        ({"gallery_labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "different devices"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrieval(**vectors(**changes))


def test_bad_score_blocks_are_named() -> None:
    with pytest.raises(InputError, match="one non-empty shape"):
        retrieval_of_scores(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="bool"):
        retrieval_of_scores(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="not a number"):
        retrieval_of_scores(torch.full((2, 3), torch.nan), torch.ones(2, 3, dtype=torch.bool))

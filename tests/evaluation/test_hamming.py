"""Hamming ranking: expected values over tie orders, checked against all orders and against sorting loops."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.evaluation.hamming import asymmetric_retrieval, hamming_retrieval, stored_order_ap
from consilience.evaluation.retrieval import retrieval_of_scores
from consilience.heads.codes import distances, pack, unpack


def codes(rng: np.random.Generator, n: int, bits: int = 8, spread: int = 3) -> torch.Tensor:
    """Packed codes that differ in the first ``spread`` bits only, so that there are many ties."""
    u = np.ones((n, bits), dtype=np.float32)
    u[:, :spread] = rng.choice([-1.0, 1.0], size=(n, spread))
    return torch.from_numpy(pack(u))


def one_ap(order: list[int], relevant: list[bool], cut: int | None = None) -> float:
    """AP@cut of one order, from the definition."""
    hits, total = 0, 0.0
    for rank, item in enumerate(order[:cut], 1):
        if relevant[item]:
            hits += 1
            total += hits / rank
    return total / min(sum(relevant), cut or len(order))


def over_all_orders(distance: list[int], relevant: list[bool], cut: int | None = None) -> tuple[float, float]:
    """Mean AP@cut and hits@cut over every order that sorts the distances."""
    aps, hits = [], []
    for order in permutations(range(len(distance))):
        if all(distance[a] <= distance[b] for a, b in pairwise(order)):
            aps.append(one_ap(list(order), relevant, cut))
            hits.append(sum(relevant[item] for item in order[:cut]))
    return float(np.mean(aps)), float(np.mean(hits))


@pytest.mark.parametrize(
    ("relevant", "items", "expected"), [(1, 2, 0.75), (1, 4, 0.5208333), (2, 4, 0.6805556), (3, 4, 0.8402778)]
)
def test_facts_all_tied(relevant: int, items: int, expected: float) -> None:
    """Sheet 6.3, fact 7."""
    labels = torch.tensor([0] * relevant + [1] * (items - relevant))
    same = torch.zeros(items, 1, dtype=torch.uint8)
    assert hamming_retrieval(same[:1], same, torch.tensor([0]), labels).map == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_is_the_mean_over_all_orders(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    database, query = codes(rng, size), codes(rng, 1)
    labels = torch.from_numpy(rng.integers(0, 2, size))
    labels[0] = 0
    found = hamming_retrieval(query, database, torch.tensor([0]), labels, k=(1, 2, 4))
    distance, relevant = distances(query, database)[0].tolist(), (labels == 0).tolist()
    assert found.map == pytest.approx(over_all_orders(distance, relevant)[0], abs=1e-12)
    for cut in (1, 2, 4):
        ap, hits = over_all_orders(distance, relevant, cut)
        assert float(found.ap_at_k[cut][0]) == pytest.approx(ap, abs=1e-12)
        assert float(found.precision_at_k[cut][0]) == pytest.approx(hits / cut, abs=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_equals_the_sorting_evaluator_in_any_blocks_and_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    database, queries = codes(rng, 70, 16, 9), codes(rng, 11, 16, 9)
    labels, asked = torch.from_numpy(rng.integers(0, 4, 70)), torch.from_numpy(rng.integers(0, 4, 11))
    found = hamming_retrieval(queries, database, asked, labels, k=(5, 30), block=4)
    sorting = retrieval_of_scores(-distances(queries, database), asked[:, None] == labels, k=(5, 30))
    torch.testing.assert_close(found.ap, sorting.ap)
    for cut in (5, 30):
        torch.testing.assert_close(found.ap_at_k[cut], sorting.ap_at_k[cut])
        torch.testing.assert_close(found.precision_at_k[cut], sorting.precision_at_k[cut])
    shuffled = torch.from_numpy(rng.permutation(70))
    other = hamming_retrieval(queries, database[shuffled], asked, labels[shuffled], k=(5, 30))
    torch.testing.assert_close(found.ap, other.ap)


def test_radius_curves_by_counting() -> None:
    rng = np.random.default_rng(1)
    database, queries = codes(rng, 40, 8, 6), codes(rng, 5, 8, 6)
    labels, asked = torch.from_numpy(rng.integers(0, 2, 40)), torch.from_numpy(rng.integers(0, 2, 5))
    found = hamming_retrieval(queries, database, asked, labels)
    d = distances(queries, database)
    for radius in range(9):
        precision, recall, number = [], [], []
        for q in range(5):
            inside = [i for i in range(40) if d[q, i] <= radius]
            right = sum(bool(labels[i] == asked[q]) for i in inside)
            precision.append(right / len(inside) if inside else 0.0)
            recall.append(right / int((labels == asked[q]).sum()))
            number.append(len(inside))
        assert float(found.precision_within[radius]) == pytest.approx(np.mean(precision), abs=1e-12)
        assert float(found.recall_within[radius]) == pytest.approx(np.mean(recall), abs=1e-12)
        assert float(found.found_within[radius]) == pytest.approx(np.mean(number), abs=1e-12)


def test_queries_without_relevant_items_are_counted_not_averaged() -> None:
    same = torch.zeros(3, 1, dtype=torch.uint8)
    found = hamming_retrieval(same, same, torch.tensor([0, 7, -1]), torch.tensor([0, 0, -1]))
    assert found.skipped == 2
    assert found.asked.tolist() == [True, False, False]
    assert len(found.ap) == 1
    with pytest.raises(InputError, match="no query has a relevant item"):
        hamming_retrieval(same, same, torch.tensor([5, 5, 5]), torch.tensor([0, 0, 0]))


def test_stored_order_moves_with_the_storage_and_expectation_does_not() -> None:
    """The sheet's warning: random 16-bit codes sorted by class; queries of one class."""
    rng = np.random.default_rng(0)
    database = torch.from_numpy(pack(rng.normal(size=(2000, 16)).astype(np.float32)))
    queries = torch.from_numpy(pack(rng.normal(size=(50, 16)).astype(np.float32)))
    labels, asked = torch.arange(10).repeat_interleave(200), torch.zeros(50, dtype=torch.int64)
    values = {}
    for name, order in (("first", torch.arange(2000)), ("last", torch.arange(1999, -1, -1))):
        d, relevant = distances(queries, database[order]), asked[:, None] == labels[order]
        values[name] = float(stored_order_ap(d, relevant).mean())
        values[f"{name} expected"] = hamming_retrieval(queries, database[order], asked, labels[order]).map
    assert values["first"] > values["last"] + 0.03
    assert values["first expected"] == pytest.approx(values["last expected"], abs=1e-12)
    assert values["last"] < values["first expected"] < values["first"]


def test_stored_order_from_the_definition() -> None:
    rng = np.random.default_rng(5)
    distance, relevant = torch.from_numpy(rng.integers(0, 4, (3, 12))), torch.from_numpy(rng.random((3, 12)) < 0.4)
    relevant[:, 0] = True
    for q in range(3):
        order = sorted(range(12), key=lambda i: (int(distance[q, i]), i))
        assert float(stored_order_ap(distance, relevant)[q]) == pytest.approx(one_ap(order, relevant[q].tolist()))


def test_asymmetric_ranks_by_inner_product() -> None:
    rng = np.random.default_rng(3)
    u = torch.from_numpy(rng.normal(size=(6, 16)).astype(np.float32))
    database = codes(rng, 30, 16, 12)
    labels, asked = torch.from_numpy(rng.integers(0, 3, 30)), torch.from_numpy(rng.integers(0, 3, 6))
    found = asymmetric_retrieval(u, database, asked, labels, k=(4,))
    expected = retrieval_of_scores(u @ unpack(database).T, asked[:, None] == labels, k=(4,))
    torch.testing.assert_close(found.ap, expected.ap)
    assert not math.isclose(
        found.map, hamming_retrieval(torch.from_numpy(pack(u.numpy())), database, asked, labels).map
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, d, a, b: (q.float(), d, a, b), "queries are torch.float32"),
        (lambda q, d, a, b: (q, d[:, :1], a, b), "queries have 16 bits, the database 8"),
        (lambda q, d, a, b: (q, d, a[:1], b), "queries have 2 rows but labels"),
        (lambda q, d, a, b: (q, d[:0], a, b[:0]), "database are"),
    ],
)
def test_refusals(change: object, words: str) -> None:
    q, d = torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(InputError, match=words):
        hamming_retrieval(*change(q, d, torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)))  # type: ignore[operator]
    with pytest.raises(InputError, match="k is"):
        hamming_retrieval(q, d, torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), k=(0,))

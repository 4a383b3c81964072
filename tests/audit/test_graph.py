"""The neighbour graph against loops written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from consilience.audit.fit import null_pairs, pair_fit
from consilience.audit.graph import Direction, Graph
from consilience.errors import InputError


def made(n: int = 23, seed: int = 0, ceiling: int = 1 << 12) -> Graph:
    """Vectors of few values, so that scores tie; two absent samples, some rows in one group."""
    generator = torch.Generator().manual_seed(seed)
    vectors = {
        name: F.normalize(torch.randint(-1, 2, (n, 4), generator=generator).float() + 0.1, dim=1) for name in "ab"
    }
    present = {name: torch.ones(n, dtype=torch.bool) for name in "ab"}
    present["a"][3] = present["b"][5] = False
    groups = np.arange(n)
    groups[[7, 8]] = 100
    return Graph(vectors, present, groups=groups, near=4, ceiling=ceiling)


def slow(graph: Graph, a: str, b: str, row: int) -> dict[str, float]:
    s = [float(graph.vectors[a][row] @ graph.vectors[b][j]) for j in range(graph.rows)]
    rest = [j for j in range(graph.rows) if graph.groups[j] != graph.groups[row] and bool(graph.present[b][j])]
    everyone = sorted((s[j] for j in [row, *rest]), reverse=True)
    close = [abs(s[j] - s[row]) < 1e-6 for j in rest]
    return {
        "own": s[row],
        "rank": 1 + sum(s[j] > s[row] + 1e-6 for j in rest) + sum(close) / 2,
        "candidates": 1 + len(rest),
        "log_sum": math.log(sum(math.exp(x / graph.temperature) for x in everyone)),
        "hubness": float(np.mean(everyone[: graph.near])),
        "best": max(s[j] for j in rest),
    }


@pytest.mark.parametrize("ceiling", [1, 1 << 12, 1 << 28])
def test_directions_are_what_a_loop_says(ceiling: int) -> None:
    graph = made(ceiling=ceiling)
    # rounding of blocked products breaks exact ties; compare ranks on rounded scores
    for name in graph.vectors:
        graph.vectors[name] = (graph.vectors[name] * 64).round() / 64
    for a, b in (("a", "b"), ("b", "a")):
        found = graph.across(a, b)
        for row in range(graph.rows):
            if row in (3, 5):
                assert np.isnan(found.own[row])
                continue
            wanted = slow(graph, a, b, row)
            assert found.nearest.score[row, 0] == pytest.approx(wanted.pop("best"), abs=1e-6)
            for name, value in wanted.items():
                assert getattr(found, name)[row] == pytest.approx(value, abs=1e-4), (name, row)


def test_blocks_do_not_matter_and_the_ceiling_is_kept() -> None:
    one, many = made(ceiling=1 << 28).across("a", "b"), made(ceiling=1).across("a", "b")
    assert isinstance(one, Direction)
    np.testing.assert_allclose(one.log_sum, many.log_sum, rtol=1e-6)
    assert made(ceiling=1).block() == 1
    big = Graph({"a": torch.zeros(20_000, 1)}, {"a": torch.ones(20_000, dtype=torch.bool)})
    assert big.block() * 20_000 * 16 <= big.ceiling


def test_neighbours_within_a_modality() -> None:
    graph = made()
    found = graph.within("a")
    assert found is graph.within("a")
    for row in range(graph.rows):
        if row == 3:
            assert (found.index[row] == -1).all()
            continue
        assert row not in found.index[row]
        assert 3 not in found.index[row]
        assert graph.groups[row] not in graph.groups[found.index[row]]
        assert (np.diff(found.score[row]) <= 0).all()
    assert 8 not in found.index[7]


@pytest.mark.parametrize("fit", ["cosine", "softmax", "csls"])
def test_fit_of_a_pair_is_its_formula(fit: str) -> None:
    graph = made()
    rows, others = np.array([0, 1, 2, 9]), np.array([0, 4, 2, 10])
    found = pair_fit(graph, "a", "b", rows, others, fit)  # type: ignore[arg-type]
    for value, i, j in zip(found, rows, others, strict=True):
        s = float(graph.vectors["a"][i] @ graph.vectors["b"][j])
        forth, back = slow(graph, "a", "b", i), slow(graph, "b", "a", j)
        wanted = {
            "cosine": s,
            "softmax": 2 * s / graph.temperature - forth["log_sum"] - back["log_sum"],
            "csls": 2 * s - forth["hubness"] - back["hubness"],
        }[fit]
        assert value == pytest.approx(wanted, abs=1e-4)
    assert np.isnan(pair_fit(graph, "a", "b", np.array([3]), np.array([1]))[0])


def test_null_pairs_are_never_of_one_group() -> None:
    graph = made()
    rows, others = null_pairs(graph, "a", "b", 0)
    assert not (graph.groups.numpy()[rows] == graph.groups.numpy()[others]).any()
    assert not {3, 5} & (set(rows.tolist()) | set(others.tolist()))
    again = null_pairs(graph, "a", "b", 0)
    np.testing.assert_array_equal(rows, again[0])
    assert not np.array_equal(others, null_pairs(graph, "a", "b", 1)[1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="give the same rows"):
        Graph({"a": torch.zeros(3, 2)}, {"a": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(InputError, match="one for each row"):
        Graph({"a": torch.zeros(3, 2)}, {"a": torch.ones(3, dtype=torch.bool)}, groups=np.zeros(2, np.int64))
    with pytest.raises(InputError, match="did you mean 'a'"):
        made().within("a1")

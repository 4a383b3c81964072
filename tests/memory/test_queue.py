"""Queues: rings of equal length, in order, never torn by a batch that does not divide them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import InputError
from consilience.memory.queue import NOBODY, Queue


def unit(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("batches", [[11], [3, 3, 3, 2], [1] * 11, [8, 3]])
def test_fact_after_k_plus_three_keys_the_last_k_stay(batches: list[int]) -> None:
    """CLIC's sheet 6a: after keys 1..K+3 a queue of K holds 4..K+3, in ring order, for any batch sizes."""
    queue, keys = Queue(8, 4), unit(11)
    start = 0
    for size in batches:
        queue.push(keys[start : start + size], torch.arange(start, start + size))
        start += size
    assert queue.ids[0].tolist() == [8, 9, 10, 3, 4, 5, 6, 7]
    torch.testing.assert_close(queue.keys[0], keys[queue.ids[0]])


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 5)), max_size=12), st.integers(1, 6))
def test_is_a_list_of_the_last_places_of_each_partition(pushes: list[tuple[int, int]], places: int) -> None:
    queue, expected, number = Queue(places, 4, 3), {0: [], 1: [], 2: []}, 0  # type: ignore[var-annotated]
    keys = unit(80)
    for ring, size in pushes:
        ids = torch.arange(number, number + size)
        queue.push(keys[ids], ids, torch.full((size,), ring))
        if ring >= 0:
            expected[ring] += ids.tolist()
        number += size
    vectors, ids, rings = queue.flat()
    assert queue.fill.tolist() == [min(places, len(expected[ring])) for ring in range(3)]
    for ring in range(3):
        assert sorted(ids[rings == ring].tolist()) == expected[ring][-places:]
    torch.testing.assert_close(vectors, keys[ids])
    assert (queue.ids[~queue.filled()] == NOBODY).all()


def test_frequency_does_not_change_sizes_and_an_unseen_class_stays_empty() -> None:
    queue = Queue(5, 4, 3)
    for step in range(30):
        queue.push(unit(4, seed=step), torch.arange(4), torch.tensor([0, 0, 0, 1 if step % 10 == 0 else 0]))
    assert queue.fill.tolist() == [5, 3, 0]


def test_is_part_of_a_checkpoint() -> None:
    queue, other = Queue(4, 4, 2), Queue(4, 4, 2)
    queue.push(unit(6), torch.arange(6), torch.tensor([0, 1, 0, 1, 1, 1]))
    other.load_state_dict(queue.state_dict())
    for found, expected in zip(other.flat(), queue.flat(), strict=True):
        assert torch.equal(found, expected)


def test_pushing_after_backward_leaves_the_gradient() -> None:
    queue, z = Queue(8, 4), unit(3).requires_grad_()
    queue.push(unit(8, seed=1), torch.arange(8))
    loss = torch.logsumexp(z @ queue.keys[0].T, 1).sum()
    loss.backward()
    before = z.grad.clone() if z.grad is not None else None
    queue.push(unit(3, seed=2), torch.arange(3))
    again = unit(3).requires_grad_()
    old = unit(8, seed=1)
    torch.logsumexp(again @ old.T, 1).sum().backward()
    assert before is not None
    torch.testing.assert_close(before, again.grad)


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Queue(0, 4)
    with pytest.raises(InputError, match="partition 2 of a queue with 2"):
        Queue(4, 4, 2).push(unit(1), torch.arange(1), torch.tensor([2]))

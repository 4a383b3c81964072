"""Batches of queries: the same vectors as one by one, in as few calls as can be, and bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from consilience.data.decode import decode
from consilience.errors import InputError
from consilience.search.query import Query
from consilience.serve.batching import Batcher
from consilience.serve.limits import Refusal
from tests.cli import tiny
from tests.serve.conftest import Served


class Encoder:
    """Counts its calls; a vector is (value, length of the modality's name); negative values are refused."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.threads: set[int] = set()
        self.seconds = seconds

    def __call__(self, modality: str, values: Sequence[Any]) -> np.ndarray:
        self.calls.append((modality, list(values)))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if any(value < 0 for value in values):
            raise InputError("below zero")
        return np.array([[value, len(modality)] for value in values], np.float32)


def run(encoder: Any, jobs: Any, *, batch: int = 8, window: float = 0.02, queue: int = 100) -> list[Any]:
    """What ``jobs(batcher)`` gathers, exceptions included."""

    async def go() -> list[Any]:
        batcher = Batcher(encoder, batch=batch, window=window, queue=queue)
        batcher.start()
        try:
            return list(await asyncio.gather(*jobs(batcher), return_exceptions=True))
        finally:
            await batcher.close()

    return asyncio.run(go())


def test_queries_that_arrive_together_share_a_batch() -> None:
    encoder = Encoder()
    found = run(encoder, lambda b: [b.encode("image", i) for i in range(6)])
    assert [vector[0] for vector in found] == [0, 1, 2, 3, 4, 5]
    assert encoder.calls == [("image", [0, 1, 2, 3, 4, 5])]


def test_a_batch_has_one_modality_and_a_largest_size() -> None:
    encoder = Encoder()
    found = run(encoder, lambda b: [b.encode("image" if i % 2 else "text", i) for i in range(20)], batch=4)
    assert [(v[0], v[1]) for v in found] == [(i, 5 if i % 2 else 4) for i in range(20)]
    assert all(len(values) <= 4 and len({v % 2 for v in values}) == 1 for _, values in encoder.calls)
    assert len(encoder.calls) == 6
    assert len(encoder.threads) == 1


def test_no_query_waits_for_ever_behind_others() -> None:
    """Modalities take turns by the longest waiting query."""
    encoder = Encoder(0.005)
    run(encoder, lambda b: [b.encode("text" if i == 3 else "image", i) for i in range(40)], batch=4)
    assert "text" in [modality for modality, _ in encoder.calls[:3]]


def test_a_bad_query_fails_alone() -> None:
    found = run(Encoder(), lambda b: [b.encode("image", value) for value in (1, -2, 3)])
    assert (found[0][0], found[2][0]) == (1, 3)
    assert isinstance(found[1], InputError)
    (alone,) = run(Encoder(), lambda b: [b.encode("image", -1)])
    assert isinstance(alone, InputError)


def test_too_many_waiting_are_turned_down() -> None:
    found = run(Encoder(0.05), lambda b: [b.encode("image", i) for i in range(10)], batch=1, queue=4)
    turned = [entry for entry in found if isinstance(entry, Refusal)]
    assert len(turned) == 6
    assert {(refusal.status, refusal.retry_after) for refusal in turned} == {(503, 1)}


def test_a_query_whose_request_has_gone_is_not_encoded() -> None:
    encoder = Encoder(0.1)

    async def go() -> None:
        batcher = Batcher(encoder, batch=1, window=0.0, queue=10)
        batcher.start()
        first, second = (asyncio.ensure_future(batcher.encode("image", value)) for value in (1, 2))
        await asyncio.sleep(0.03)
        second.cancel()
        await first
        await batcher.close()

    asyncio.run(go())
    assert encoder.calls == [("image", [1])]


@pytest.mark.parametrize("before", [0.0, 0.03, 0.1], ids=["waiting", "about to begin", "being encoded"])
def test_closing_answers_what_was_asked(before: float) -> None:
    async def go() -> np.ndarray:
        batcher = Batcher(Encoder(0.1), batch=4, window=0.03, queue=10)
        batcher.start()
        waiting = asyncio.ensure_future(batcher.encode("image", 7))
        await asyncio.sleep(before)
        await batcher.close()
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(go())[0] == 7


@pytest.mark.parametrize("modality", ["image", "points"])
def test_a_batch_gives_the_vectors_of_single_queries(served: Served, modality: str) -> None:
    searcher = served.searcher()
    kind = searcher.run.method.modalities[modality]
    files = [tiny.png(i) if modality == "image" else tiny.shape_file(i, "npy") for i in range(9)]
    values = [decode(data, kind, "x.npy" if modality == "points" else "", searcher.run.method.decode) for data in files]
    calls = []

    def encode(name: str, arrays: Sequence[Any]) -> np.ndarray:
        calls.append(len(arrays))
        return searcher.encode([Query(name, array) for array in arrays])

    together = run(encode, lambda b: [b.encode(modality, value) for value in values], batch=16)
    assert calls == [9]
    alone = np.stack([searcher.encode([Query(modality, data)])[0] for data in files])
    np.testing.assert_allclose(np.stack(together), alone, atol=1e-6)

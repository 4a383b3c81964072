"""Queries that arrive within a few milliseconds of each other are encoded as one batch, in one worker thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float32

from consilience.serve.limits import Refusal

Encode = Callable[[str, Sequence[Any]], Float32[np.ndarray, "b d"]]
"""From a modality and its decoded samples to unit vectors."""
Watch = Callable[[str, int, float], None]
"""Told of every batch: modality, size, seconds."""


class Batcher:
    """Collects queries by modality. Belongs to one event loop: :meth:`start` and :meth:`close` are called in it.

    A batch begins with the query that waited longest and takes those of its modality that arrive within ``window``
    seconds, up to ``batch``. Rows of a batch do not influence each other, so a vector is what encoding its query alone
    gives, up to the order of sums. When a batch fails its queries are encoded one by one, so that one bad query fails
    alone.
    """

    def __init__(
        self, encode: Encode, *, batch: int, window: float, queue: int, watch: Watch = lambda name, size, took: None
    ) -> None:
        self._encode, self._watch = encode, watch
        self._batch, self._window, self._most = batch, window, queue
        self._waiting: deque[tuple[str, Any, asyncio.Future[np.ndarray]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "encode")
        self._task: asyncio.Task[None] | None = None
        self._busy = False  # a batch has been taken and not been answered yet

    @property
    def depth(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to encode."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="batcher")

    async def close(self) -> None:
        """Encode what waits, answer it, then stop."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=True)

    async def encode(self, modality: str, value: Any) -> Float32[np.ndarray, " d"]:
        """The unit vector of one query. Raises :class:`Refusal` 503 when too many wait; what the encoder raises."""
        if len(self._waiting) >= self._most:
            raise Refusal(
                503, f"{self._most} queries wait already; try again in a second", cause="queue", retry_after=1
            )
        done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((modality, value, done))
        self._arrived.set()
        return await done

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                modality = self._waiting[0][0]
                if self._count(modality) < self._batch:
                    await asyncio.sleep(self._window)
                self._busy = True
                try:
                    await self._one_batch(modality)
                finally:
                    self._busy = False

    def _count(self, modality: str) -> int:
        return sum(name == modality for name, _, _ in self._waiting)

    async def _one_batch(self, modality: str) -> None:
        taken: list[tuple[Any, asyncio.Future[np.ndarray]]] = []
        left: list[tuple[str, Any, asyncio.Future[np.ndarray]]] = []
        while self._waiting:
            name, value, done = self._waiting.popleft()
            if done.done():
                continue  # its request has gone
            if name == modality and len(taken) < self._batch:
                taken.append((value, done))
            else:
                left.append((name, value, done))
        self._waiting.extend(left)
        if not taken:
            return
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            vectors = await loop.run_in_executor(self._thread, self._encode, modality, [value for value, _ in taken])
        except Exception as error:
            await self._alone(modality, taken, error)
        else:
            self._watch(modality, len(taken), loop.time() - begun)
            for (_, done), vector in zip(taken, vectors):
                if not done.done():
                    done.set_result(vector)

    async def _alone(
        self, modality: str, taken: list[tuple[Any, asyncio.Future[np.ndarray]]], error: Exception
    ) -> None:
        loop = asyncio.get_running_loop()
        for value, done in taken:
            if done.done():
                continue
            if len(taken) == 1:
                done.set_exception(error)
                continue
            try:
                vector = (await loop.run_in_executor(self._thread, self._encode, modality, [value]))[0]
            except Exception as reason:
                if not done.done():
                    done.set_exception(reason)
            else:
                if not done.done():
                    done.set_result(vector)

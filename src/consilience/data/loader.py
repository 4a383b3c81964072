"""Batches of decoded rows: the epoch's order is a pure function of (seed, epoch), the state is (epoch, step).

The *global* batch is fixed first and every rank takes its contiguous part of it, so any number of ranks
sees the same global batches, and a resumed run sees exactly the rows an uninterrupted one would have seen.
Columns that are read: ``id``, the bytes of the modalities and their origins, and what a method declares as targets.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from consilience.data.decode import DecodeConfig, decode_batch
from consilience.data.schema import Batch, Kind, Target
from consilience.data.table import Table
from consilience.data.targets import TargetReader
from consilience.errors import InputError, unknown

CACHE_BYTES = 1 << 30
Partners = Mapping[str, np.ndarray]


class Loader:
    """Training batches of the rows ``rows`` of a Table, without labels.

    ``rows``: int64 offsets as :meth:`Table.select` gives them. ``Batch.index`` is the position in ``rows``
    (0..len(rows)-1), the address in memory banks. ``batch_size`` counts the global batch, over all ranks.

    ``partners`` maps a modality to int64 offsets, one for each of ``rows``, from which that modality is read
    instead of from the row itself: mismatched pairs for experiments, see :mod:`consilience.data.corrupt`.

    ``weights``: float [n], 0 or more; how many times a row takes part in an epoch, in expectation (0.3: in that share
    of the epochs). Every epoch then has the same number of rows, the sum of the weights. A row's several visits are
    spread evenly over the epoch.

    The last batch of an epoch may be short. It is dropped when ``drop_last`` is set and whenever it holds
    fewer than two rows for each rank, because batch normalisation is undefined on one row.

    ``workers`` = 0 decodes one batch ahead in a thread; more start that many processes (by spawn, since
    Lance does not survive a fork; the calling script needs the usual ``__main__`` guard). Batches are the
    same for any number. ``cache`` keeps decoded rows in memory so that later epochs skip the decoding; by
    default when all of them take less than 1 GiB.

    ``sharing``: a loader of the same rows, decoded alike, whose decoded rows serve this one too. ``targets``: columns
    that the method has declared, see :class:`~consilience.data.schema.Target`.

    Raises :class:`InputError` for unknown modalities, sizes that make no batch, and unreadable samples.
    """

    def __init__(
        self,
        table: Table,
        rows: np.ndarray,
        decode: DecodeConfig,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
        cache: bool | None = None,
        partners: Partners | None = None,
        modalities: tuple[str, ...] | None = None,
        weights: np.ndarray | None = None,
        sharing: Loader | None = None,
        targets: Mapping[str, Target] | None = None,
    ) -> None:
        self._reader: _Reader = (
            sharing._reader if sharing else _Reader(table, rows, decode, modalities, partners or {}, targets or {})
        )
        count = len(self._reader.rows)
        self._weights = weights
        if weights is not None:
            if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0:
                raise InputError(f"weights are not {count} numbers of 0 or more; give one for each row")
            count = int(np.floor(weights.sum() + 1e-9))
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} of {world}; ranks count from 0 to {world - 1}")
        if batch_size < 2 * world:
            raise InputError(f"batch_size {batch_size} for {world} ranks; give at least {2 * world}, two a rank")
        if seed < 0:
            raise InputError(f"seed {seed} is negative; give 0 or more")
        full, rest = divmod(count, batch_size)
        self.steps = full + (1 if rest >= 2 * world and not drop_last else 0)
        """Batches an epoch."""
        if not self.steps:
            raise InputError(f"{count} rows make no batch of {batch_size} on {world} ranks; give more rows")
        self.batch_size = batch_size
        self._seed, self._shuffle, self._rank, self._world = seed, shuffle, rank, world
        if cache is None:
            cache = self._reader.bytes_per_row * len(self) < CACHE_BYTES
        self._cache: _Cache | None = sharing._cache if sharing else _Cache(self._reader, len(self)) if cache else None
        self._schedule: list[np.ndarray] = []
        self._processes: DataLoader[Batch] | None = None
        if workers > 0:
            self._processes = DataLoader(
                self._reader,
                batch_size=None,
                sampler=_Schedule(self._schedule),
                num_workers=workers,
                multiprocessing_context="spawn",
                persistent_workers=True,
                prefetch_factor=2,
            )

    def __len__(self) -> int:
        """Number of rows the batches are drawn from."""
        return len(self._reader.rows)

    def order(self, epoch: int) -> np.ndarray:
        """int64: positions in ``rows`` as epoch ``epoch`` visits them, the same on every rank; all of them, or those
        that systematic sampling by weight draws."""
        positions = np.arange(len(self), dtype=np.int64)
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64)))
        if self._shuffle:
            positions = rng.permutation(positions)
        if self._weights is not None:
            # evenly spaced marks on the weights laid end to end hit a row of weight w in w of the epochs, or w times
            ends = np.cumsum(self._weights[positions])
            marks = np.arange(int(np.floor(self._weights.sum() + 1e-9))) + rng.random()
            positions = positions[np.minimum(np.searchsorted(ends, marks, side="right"), len(ends) - 1)]
            if self._weights.max() > 1:
                positions = _spread(positions, rng)
        return positions

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from step ``start_step`` on."""
        if not 0 <= start_step <= self.steps:
            raise InputError(f"start_step {start_step}; an epoch has {self.steps} steps")
        order = self.order(epoch)
        parts = [
            np.array_split(order[step * self.batch_size : (step + 1) * self.batch_size], self._world)[self._rank]
            for step in range(start_step, self.steps)
        ]
        if self._processes is not None and not (self._cache and self._cache.holds(parts)):
            yield from self._from_processes(self._processes, parts)
            return
        yield from self.visit(parts)

    def visit(self, parts: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each array of positions in ``rows``, in their order: passes without training."""
        source = self._cache or self._reader
        with closing(_ahead(source[positions] for positions in parts)) as batches:
            yield from batches

    def _from_processes(self, processes: DataLoader[Batch], parts: list[np.ndarray]) -> Iterator[Batch]:
        self._schedule[:] = parts
        for batch in processes:
            if self._cache:
                self._cache.store(batch)
            yield batch


def read(
    table: Table,
    rows: np.ndarray,
    decode: DecodeConfig,
    batch_size: int,
    *,
    modalities: tuple[str, ...] | None = None,
    partners: Partners | None = None,
    targets: Mapping[str, Target] | None = None,
) -> Iterator[Batch]:
    """All ``rows`` once, in their order, for evaluation and embedding; ``Batch.index`` = position in
    ``rows``."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}; give at least 1")
    reader = _Reader(table, rows, decode, modalities, partners or {}, targets or {})
    starts = range(0, len(reader.rows), batch_size)
    positions = np.arange(len(reader.rows), dtype=np.int64)
    with closing(_ahead(reader[positions[start : start + batch_size]] for start in starts)) as batches:
        yield from batches


class _Reader(Dataset[Batch]):
    """Positions in ``rows`` to a decoded batch; picklable, so that a worker process can hold it."""

    def __init__(
        self,
        table: Table,
        rows: np.ndarray,
        decode: DecodeConfig,
        modalities: tuple[str, ...] | None,
        partners: Partners,
        targets: Mapping[str, Target],
    ) -> None:
        known = table.modalities
        for name in (*(modalities or ()), *partners):
            if name not in known:
                raise unknown(f"modality of {table.path}", name, known)
        self.table, self.decode = table, decode
        self.rows = np.asarray(rows, dtype=np.int64)
        self.kinds: dict[str, Kind] = {name: known[name] for name in modalities or known}
        self.partners = {name: np.asarray(offsets, dtype=np.int64) for name, offsets in partners.items()}
        self.targets = TargetReader.of(table, targets, decode)
        for name, offsets in self.partners.items():
            if offsets.shape != self.rows.shape:
                raise InputError(f"partners[{name!r}] has {len(offsets)} rows; give one for each of {len(rows)}")

    @property
    def bytes_per_row(self) -> int:
        return sum(int(np.prod(self.decode.shape(kind))) * kind.dtype.itemsize for kind in self.kinds.values())

    def __getitem__(self, positions: np.ndarray) -> Batch:
        values: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        own = {name: kind for name, kind in self.kinds.items() if name not in self.partners}
        groups = [(own, self.rows)] if own else []
        groups += [({name: self.kinds[name]}, self.partners[name]) for name in self.kinds if name in self.partners]
        for kinds, offsets in groups:
            columns = ["id", *kinds, *(f"origin_{name}" for name in kinds)]
            decoded = decode_batch(self.table.take(offsets[positions], columns), kinds, self.decode)
            values |= decoded[0]
            present |= decoded[1]
        names, told = list(self.kinds), self.targets.columns()
        return Batch(
            torch.from_numpy(np.ascontiguousarray(positions)),
            {name: values[name] for name in names},
            {name: present[name] for name in names},
            self.targets.read(self.table.take(self.rows[positions], told)) if told else {},
        )


class _Cache:
    """Decoded rows in memory, filled as they are first asked for."""

    def __init__(self, reader: _Reader, count: int) -> None:
        self._reader = reader
        self._filled = np.zeros(count, dtype=bool)
        self._values = {
            name: torch.zeros((count, *reader.decode.shape(kind)), dtype=kind.dtype)
            for name, kind in reader.kinds.items()
        }
        self._present = {name: torch.zeros(count, dtype=torch.bool) for name in reader.kinds}
        told = reader.targets
        self._targets = {name: torch.zeros((count, *told.shape(name)), dtype=told.dtype(name)) for name in told.kinds}

    def holds(self, parts: list[np.ndarray]) -> bool:
        return all(bool(self._filled[positions].all()) for positions in parts)

    def store(self, batch: Batch) -> None:
        for name, value in batch.values.items():
            self._values[name][batch.index] = value
            self._present[name][batch.index] = batch.present[name]
        for name, value in batch.targets.items():
            self._targets[name][batch.index] = value
        self._filled[batch.index.numpy()] = True

    def __getitem__(self, positions: np.ndarray) -> Batch:
        missing = positions[~self._filled[positions]]
        if missing.size:
            self.store(self._reader[missing])
        index = torch.from_numpy(np.ascontiguousarray(positions))
        return Batch(
            index,
            {name: value[index] for name, value in self._values.items()},
            {name: mask[index] for name, mask in self._present.items()},
            {name: value[index] for name, value in self._targets.items()},
        )


def _spread(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same positions in a random order in which the n visits of one are 1 / n of the whole apart."""
    row, first, times = np.unique(positions, return_index=True, return_counts=True)
    start, place = np.searchsorted(row, positions), np.arange(len(positions))
    visit = place - first[start]  # marks hit a row's visits one after the other
    return positions[np.argsort((visit + rng.random(len(row))[start]) / times[start], kind="stable")]


class _Schedule:
    """The sampler of the worker processes: whatever the list holds when an epoch begins."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(list(self._parts))

    def __len__(self) -> int:
        return len(self._parts)


def _ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches, the next one being made in a thread while the caller uses this one."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="consilience-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()

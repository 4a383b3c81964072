"""Passes over rows without training: vectors of all of them, or whatever a method measures, shared by the processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from consilience.data.loader import Loader, Partners, read
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.distributed import gather_rows, rank, world_size
from consilience.methods.base import Encoded, Measure, Method

_BATCH = 500


def encode_rows(
    method: Method,
    table: Table,
    rows: np.ndarray,
    device: torch.device,
    batch_size: int = _BATCH,
    *,
    partners: Partners | None = None,
    represent: bool = False,
) -> Encoded:
    """Vectors of the given rows in evaluation mode, float32, on ``device``; every rank encodes a part and gets all.

    ``partners``: as the loader takes them. ``represent``: what the method's own scorer compares instead of vectors.
    """
    mine = np.array_split(np.arange(len(rows)), world_size())[rank()]
    others = {name: offsets[mine] for name, offsets in (partners or {}).items()}
    names = tuple(method.modalities)
    batches = read(table, rows[mine], method.decode, batch_size, modalities=names, partners=others)
    return _encode(method, batches, device, represent)


@torch.no_grad()
def _encode(method: Method, batches: Iterable[Batch], device: torch.device, represent: bool) -> Encoded:
    was_training = method.training
    method.eval()
    vectors: dict[str, list[Tensor]] = {name: [] for name in method.modalities}
    present: dict[str, list[Tensor]] = {name: [] for name in method.modalities}
    verb = method.represent if represent else method.encode
    for batch in batches:
        moved = batch.to(device)
        for name in method.modalities:
            z = verb(moved, name).float()
            vectors[name].append(z * moved.present[name][:, None])
            present[name].append(moved.present[name])
    joined = {name: gather_rows(torch.cat(parts)) for name, parts in vectors.items()}
    masks = {name: gather_rows(torch.cat(parts)) for name, parts in present.items()}
    method.train(was_training)
    return Encoded(joined, masks)


class TrainingSet:
    """The training rows as a method may look at them between epochs (:class:`consilience.methods.base.EncodeAll`).

    ``loader``: of the training rows; rows it has decoded are not decoded again.
    """

    def __init__(self, method: Method, loader: Loader, device: torch.device, seed: int) -> None:
        self._method, self._loader, self._device, self._seed = method, loader, device, seed

    def __call__(self) -> Encoded:
        mine = np.array_split(np.arange(len(self._loader)), world_size())[rank()]
        parts = np.split(mine, range(_BATCH, len(mine), _BATCH))
        return _encode(self._method, self._loader.visit(parts), self._device, False)

    @torch.no_grad()
    def scan(self, measure: Measure, batch_size: int) -> dict[str, Tensor]:
        count = len(self._loader)
        key = np.array([self._seed, 0x5CA9], dtype=np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        parts = np.array_split(order, -(-count // max(2, batch_size)))
        mine = parts[rank() :: world_size()]
        idle = not mine  # more ranks than batches: measure one, to know the names, and keep nothing of it
        was_training = self._method.training
        self._method.eval()
        places: list[Tensor] = []
        found: dict[str, list[Tensor]] = {}
        for batch in self._loader.visit(parts[:1] if idle else mine):
            moved = batch.to(self._device)
            keep = 0 if idle else len(batch)
            places.append(moved.index[:keep])
            for name, values in measure(moved).items():
                found.setdefault(name, []).append(values[:keep])
        self._method.train(was_training)
        index = gather_rows(torch.cat(places))
        return {name: _in_order(torch.cat(values), index) for name, values in found.items()}


def _in_order(values: Tensor, index: Tensor) -> Tensor:
    joined = gather_rows(values)
    ordered = torch.zeros_like(joined)
    ordered[index] = joined
    return ordered

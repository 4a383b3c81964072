"""Score matrices of a method, or of several, in blocks under a ceiling of memory.

A pairwise scorer such as SGRAF compares parts: an image is 36 vectors of 1,024 numbers, 5,000 images are 0.7 GB, the
words of 25,000 captions more. Held at a time are one block of either side, so that memory does not grow with the data:

    rows held (two blocks)  +  what the method scores one block with  +  the result, 4 bytes a pair

The first is ``block_bytes``; the second is SGRAF's own ``block_bytes`` (256 MiB). Rows of the second side are encoded
again for every block of the first, which costs little beside scoring them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from consilience.data.loader import read
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.base import Method

BLOCK_BYTES = 1 << 30
"""Ceiling of the rows held while scoring, in bytes."""
_BATCH = 100


class Rows(Protocol):
    """What :meth:`Method.score` compares, one row a sample: a tensor [n, r], or :class:`Represented`."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice, /) -> Tensor: ...


class Represented:
    """Rows of a Table as ``method`` represents one modality, made when they are asked for and not kept.

    ``rows``: row offsets, all of which have the modality. A slice gives float32 [n, r] on the method's device.
    """

    def __init__(self, method: Method, table: Table, rows: np.ndarray, name: str) -> None:
        self._method, self._table, self._rows, self._name = method, table, rows, name

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def __getitem__(self, chosen: slice) -> Tensor:
        rows, method = self._rows[chosen], self._method
        device = next(method.parameters()).device
        out, at, was_training = torch.empty(0), 0, method.training
        method.eval()
        for batch in read(self._table, rows, method.decode, min(_BATCH, max(1, len(rows))), modalities=(self._name,)):
            part = method.represent(batch.to(device), self._name).float()
            if not at:  # filled in place: joining the parts at the end would hold them twice
                out = part.new_empty(len(rows), part.shape[1])
            out[at : at + len(part)] = part
            at += len(part)
        method.train(was_training)
        return out


def score_matrix(
    method: Method, a: Rows, b: Rows, names: tuple[str, str], *, block_bytes: int = BLOCK_BYTES
) -> Float32[Tensor, "n m"]:
    """Scores of every row of ``a`` (modality ``names[0]``) with every row of ``b`` (``names[1]``), on ``a``'s device.

    Of either side a block of at most ``block_bytes`` / 4 is held (a row at least), and once more where the method takes
    a copy: together ``block_bytes``. See the module for the rest. Raises :class:`InputError` for sides without rows.
    """
    return ensemble([method], [(a, b)], names, block_bytes=block_bytes)


@torch.no_grad()
def ensemble(
    methods: Sequence[Method],
    sides: Sequence[tuple[Rows, Rows]],
    names: tuple[str, str],
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Float32[Tensor, "n m"]:
    """Mean of the score matrices of several methods, one matrix in memory; ``sides``: the rows as each represents them.

    Raises :class:`InputError` for no methods, and for sides of other lengths or without rows.
    """
    sizes = {(len(a), len(b)) for a, b in sides}
    if not methods or len(methods) != len(sides) or len(sizes) != 1 or 0 in next(iter(sizes)):
        raise InputError(f"{len(methods)} methods with rows {sorted(sizes)}: expected the same rows, some, for each")
    n, m = next(iter(sizes))
    total: Tensor | None = None
    for method, (a, b) in zip(methods, sides, strict=True):
        was_training = method.training
        method.eval()
        high, wide = (_rows_in(side, block_bytes // 4) for side in (a, b))
        for i in range(0, n, high):
            left = a[i : i + high]
            for j in range(0, m, wide):
                right = b[j : j + wide]
                if total is None:
                    total = torch.zeros(n, m, device=left.device)
                total[i : i + high, j : j + wide] += method.score(left, right, names).float() / len(methods)
                del right  # before the next one is made
            del left
        method.train(was_training)
    assert total is not None
    return total


def _rows_in(side: Rows, limit: int) -> int:
    one = side[0:1]
    return max(1, limit // max(1, one.numel() * one.element_size()))


@dataclass(frozen=True)
class PairedItems:
    """The distinct samples behind rows that have two modalities: an image with five captions is one image.

    ``first`` is the side of which an item may have several partners (images), ``second`` the other (captions).
    """

    names: tuple[str, str]
    """Modalities: first, second."""
    first: np.ndarray
    """Positions among the rows that stand for the items of the first side, in the order they occur."""
    second: np.ndarray
    """The same for the second side."""
    own: Int64[Tensor, " m"]
    """Which of ``first`` each of ``second`` belongs to."""
    copies: Int64[Tensor, " m"]
    """A number for each of ``second``, equal for equal bytes."""


def paired_items(table: Table, rows: np.ndarray, names: tuple[str, str]) -> PairedItems:
    """Unique items among ``rows``, all of which have both modalities ``names``.

    Rows of one ``group`` (a column of the Table) that hold the same bytes in a modality show the same item of it. The
    side whose items occur in more rows comes first. Without that column every row is a pair of its own.
    """
    items, texts = zip(*(_items(table, rows, name) for name in names), strict=True)
    shared = int(items[1].max()) < int(items[0].max())  # the second modality repeats more: it takes the images' part
    a, b = (1, 0) if shared else (0, 1)
    joint = _numbered(items[b] * (int(items[a].max()) + 1) + items[a])  # one owner for each item of the second side
    first, second = (np.unique(numbers, return_index=True)[1] for numbers in (items[a], joint))
    return PairedItems(
        names=(names[a], names[b]),
        first=first,
        second=second,
        own=torch.from_numpy(items[a][second]),
        copies=torch.from_numpy(texts[b][second]),
    )


def _items(table: Table, rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of its item, and of its bytes: int64 [n], from 0 in the order they occur."""
    content = np.empty(len(rows), dtype="S32")
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        values = table.take(rows[part], [name])[name].to_pylist()
        content[part] = [hashlib.blake2b(value, digest_size=16).hexdigest().encode() for value in values]
    copies = _numbered(content)
    if "group" not in table.columns:
        return np.arange(len(rows)), copies
    listed = table.take(rows, ["group"])["group"].to_pylist()
    groups = _numbered(np.array([f"row {row}" if g is None else f"group {g}" for row, g in enumerate(listed)]))
    return _numbered(groups * (int(copies.max()) + 1) + copies), copies


def _numbered(values: np.ndarray) -> np.ndarray:
    """Each distinct value's number, in the order of first occurrence: int64 [n]."""
    _, first, number = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number]

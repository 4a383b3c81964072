"""Samples that are the same: to the byte, or to the eye.

Pictures are compared by a perceptual hash (64 signs of low cosine frequencies, C. Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010) as the sieve and by the correlation of small grey versions as
the proof; both ignore format, size and brightness. The sieve is exact: two hashes that differ in at most three bits
agree in at least one quarter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.fft import dctn

from consilience.data.decode import prove
from consilience.data.pictures import decode_image
from consilience.data.schema import Kind, Modalities
from consilience.data.table import Table
from consilience.errors import InputError

SIDE = 32
"""Pixels of the small versions."""
MOST_BITS = 3
"""Hashes that differ in more bits are not compared further."""
LEAST_CORRELATION = 0.99
"""Of small versions that count as the same picture."""
_BATCH = 256
_CROWD = 200  # more rows under one quarter hash are flat pictures; only their neighbours in the list are compared


@dataclass(frozen=True)
class Copy:
    """Row ``row`` holds in ``modality`` what the earlier row ``of`` holds in ``of_modality``."""

    row: int
    of: int
    modality: str
    of_modality: str
    exact: bool


@dataclass(frozen=True)
class Copies:
    """Copies of single samples, and for every modality a digest of its bytes (``None`` where it is absent)."""

    found: list[Copy]
    digests: dict[str, list[bytes | None]]

    def whole(self) -> dict[int, int]:
        """Rows that repeat an earlier row to the byte in all modalities, by that row."""
        first: dict[tuple[bytes | None, ...], int] = {}
        out = {}
        for row, key in enumerate(zip(*self.digests.values(), strict=True)):
            if any(part is not None for part in key) and first.setdefault(key, row) != row:
                out[row] = first[key]
        return out


def find_copies(
    table: Table,
    rows: Int64[np.ndarray, " n"],
    modalities: Modalities,
    groups: Int64[np.ndarray, " n"],
    bad: MutableMapping[tuple[int, str], str],
) -> Copies:
    """Read every sample once. Rows of one group share samples by design and are no copies of each other.

    Samples that cannot be decoded go into ``bad`` with the reason.
    """
    digests: dict[str, list[bytes | None]] = {name: [None] * len(rows) for name in modalities}
    small: list[tuple[int, str, np.ndarray]] = []
    seen: dict[tuple[str, bytes], list[tuple[int, str]]] = {}
    spec = str(table.sizes.get("tokenizer", "bytes"))
    found: list[Copy] = []
    for row, name, data, origin in _samples(table, rows, list(modalities)):
        kind = modalities[name]
        try:
            prove(data, kind, origin, spec)
            if kind.is_image:
                small.append((row, name, decode_image(data, Kind.GREY, SIDE)[0].astype(np.float32)))
        except InputError as error:
            bad[row, name] = str(error)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        digests[name][row] = digest
        # a caption may be another's word for word without being its copy
        if kind is Kind.TEXT:
            continue
        same = seen.setdefault(("image" if kind.is_image else kind.value, digest), [])
        earlier = next(((r, m) for r, m in same if groups[r] != groups[row]), None)
        if earlier is not None and earlier[0] != row:
            found.append(Copy(row, earlier[0], name, earlier[1], True))
        same.append((row, name))
    known = {(copy.row, copy.modality) for copy in found}
    found += [copy for copy in _alike(small, groups) if (copy.row, copy.modality) not in known]
    return Copies(sorted(found, key=lambda copy: (copy.row, copy.modality)), digests)


def perceptual_hash(pictures: Float[np.ndarray, "n s s"]) -> Bool[np.ndarray, "n 64"]:
    """Signs of the 8 x 8 lowest frequencies (the constant left out) against their median."""
    low = dctn(pictures, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(pictures), 64)
    return np.asarray(low > np.median(low[:, 1:], axis=1, keepdims=True))


def _samples(table: Table, rows: np.ndarray, names: list[str]) -> Iterator[tuple[int, str, bytes, str]]:
    columns = [*names, *(f"origin_{name}" for name in names)]
    for start in range(0, len(rows), _BATCH):
        for place, entry in enumerate(table.take(rows[start : start + _BATCH], columns).to_pylist(), start):
            for name in names:
                if entry[name] is not None:
                    yield place, name, entry[name], entry[f"origin_{name}"] or ""


def _alike(small: list[tuple[int, str, np.ndarray]], groups: np.ndarray) -> list[Copy]:
    """For every picture the earliest other row whose picture looks the same."""
    if not small:
        return []
    pictures = np.stack([picture for _, _, picture in small])
    bits = perceptual_hash(pictures)
    flat = pictures.reshape(len(pictures), -1)
    unit = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / np.maximum(length, 1e-6)
    plain = length[:, 0] < 1  # one even tone says nothing
    first: dict[int, int] = {}
    for left, right in _candidates(bits):
        if plain[left] or plain[right] or groups[small[left][0]] == groups[small[right][0]]:
            continue
        if small[left][0] == small[right][0] or float(unit[left] @ unit[right]) < LEAST_CORRELATION:
            continue
        early, late = (left, right) if small[left][0] < small[right][0] else (right, left)
        first[late] = min(first.get(late, early), early)
    return [
        Copy(small[late][0], small[early][0], small[late][1], small[early][1], False) for late, early in first.items()
    ]


def _candidates(bits: Bool[np.ndarray, "n 64"]) -> Iterator[tuple[int, int]]:
    packed = np.packbits(bits, axis=1)
    quarters = packed.view(np.uint16)
    for quarter in range(4):
        order = np.argsort(quarters[:, quarter], kind="stable")
        ends = np.flatnonzero(np.diff(quarters[order, quarter])) + 1
        for bucket in np.split(order, ends):
            for place, left in enumerate(bucket[:-1]):
                rest = bucket[place + 1 : place + 1 + _CROWD]
                apart = np.bitwise_count(packed[rest] ^ packed[left]).sum(1)
                yield from ((int(left), int(right)) for right in rest[apart <= MOST_BITS])

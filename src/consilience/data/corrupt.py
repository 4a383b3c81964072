"""Seeded mismatches and wrong labels with the truth kept.

:func:`shuffle_pairs` and :func:`shuffle_partners_within_class` take the row offsets of a split and return
offsets of the same length, ready for ``Loader(partners={modality: ...})``, and a mask that is true where the
pair is still the true one. :func:`corrupt_table` and :func:`corrupt_labels` write a whole Table like that,
for experiments in which everything after the import must meet the corruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from consilience.data.sizes import packed
from consilience.data.table import Row, Table
from consilience.errors import InputError, unknown

_BATCH = 256


def shuffle_pairs(
    index: Int64[np.ndarray, " n"], ratio: float, seed: int
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Mismatch round(ratio * n) randomly chosen rows: their partners move along one random cycle, so none
    of them keeps its own. Fewer than two rows cannot be mismatched and stay as they are.

    Returns (partners, mask of true pairs). Raises :class:`InputError` for a ratio outside 0..1.
    """
    rng = np.random.default_rng(seed)
    index = np.asarray(index, dtype=np.int64)
    chosen = rng.permutation(len(index))[: _count(ratio, len(index))]
    partners = index.copy()
    if len(chosen) > 1:
        partners[chosen] = index[np.roll(chosen, 1)]
    return partners, partners == index


def shuffle_partners_within_class(
    index: Int64[np.ndarray, " n"], classes: Int64[np.ndarray, " n"], seed: int, ratio: float = 1.0
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Permute the partners of round(ratio * n_c) random rows of every class c at random, within the class.

    This rebuilds the leak of the released RoMo lists: "pairs" that are two random instances of one class.
    ``classes`` are codes, one a row. Returns (partners, mask of true pairs); a row may meet its own partner
    by chance. Raises :class:`InputError` for a ratio outside 0..1 and lengths that differ.
    """
    index, classes = np.asarray(index, dtype=np.int64), np.asarray(classes)
    if index.shape != classes.shape:
        raise InputError(f"{len(index)} rows but {len(classes)} class codes; give one for each row")
    rng = np.random.default_rng(seed)
    partners = index.copy()
    for code in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == code))
        chosen = members[: _count(ratio, len(members))]
        partners[chosen] = index[rng.permutation(chosen)]
    return partners, partners == index


def flip_labels(
    codes: Int64[np.ndarray, " n"], classes: int, ratio: float, seed: int
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Give round(ratio * n) randomly chosen codes another class, each of the other classes equally likely.

    ``codes``: class numbers below ``classes``; -1 (no label) is left out of the draw and of n. Returns (codes,
    mask of right ones). Raises :class:`InputError` for a ratio outside 0..1, codes outside -1..classes - 1,
    and a flip among fewer than two classes.
    """
    codes = np.asarray(codes, dtype=np.int64)
    if codes.size and not -1 <= int(codes.min()) <= int(codes.max()) < classes:
        raise InputError(f"class codes {int(codes.min())} to {int(codes.max())}; expected -1 to {classes - 1}")
    rng = np.random.default_rng(seed)
    labelled = np.flatnonzero(codes >= 0)
    chosen = rng.permutation(labelled)[: _count(ratio, len(labelled), "wrong labels")]
    if len(chosen) and classes < 2:
        raise InputError(f"{classes} class has no other to flip to; give labels of at least two classes")
    flipped = codes.copy()
    if len(chosen):
        flipped[chosen] = (codes[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return flipped, flipped == codes


def corrupt_table(table: Table, destination: str | Path, *, ratio: float, modality: str, seed: int) -> Table:
    """A copy of ``table`` in which ``modality`` (bytes and origin) of round(ratio * n) training rows comes from
    another training row, as :func:`shuffle_pairs` draws; n counts the training rows that have the modality.

    Two columns keep the truth, which training never reads: ``true_pair`` (bool), and ``partner`` (int64), the
    ``index`` of the row that the modality here really belongs to. A modality that came from a row of the same
    ``group`` (another caption of the same picture) still makes a true pair. Imported columns and sizes are
    kept, derived columns are not: they were computed from other samples.

    Raises :class:`InputError` for an unknown modality, a ratio outside 0..1, a table that was corrupted like
    that before, and a destination that is taken.
    """
    if modality not in table.modalities:
        raise unknown(f"modality of {table.path}", modality, table.modalities)
    offsets = table.select()
    train = np.flatnonzero(np.isin(offsets, table.select(f"split = 'train' and {modality} is not null")))
    source = np.arange(len(offsets), dtype=np.int64)
    source[train] = shuffle_pairs(train, ratio, seed)[0]
    own = np.arange(len(offsets))
    group = table.column("group") if "group" in _scalars(table) else own
    true = (source == own) | (group[source] == group)
    return _rewrite(
        table,
        destination,
        f"modality {modality} of {ratio:g} of the training rows moved, seed {seed}",
        {"true_pair": true, "partner": source},
        swap=(modality, offsets[source]),
    )


def corrupt_labels(table: Table, destination: str | Path, *, ratio: float, seed: int) -> Table:
    """A copy of ``table`` in which round(ratio * n) labelled training rows carry another class, as
    :func:`flip_labels` draws among all classes of the table.

    The columns ``true_label`` (text, empty where there was no label) and ``label_is_true`` (bool) keep the
    truth. Columns and sizes are kept as in :func:`corrupt_table`. Raises :class:`InputError` for a table
    without labels or corrupted like that before, a ratio outside 0..1 and a destination that is taken.
    """
    codes, names = table.labels()
    train = np.isin(table.select(), table.select("split = 'train'"))
    flipped = codes.copy()
    flipped[train] = flip_labels(codes[train], len(names), ratio, seed)[0]

    def named(values: np.ndarray) -> np.ndarray:
        return np.array([None if code < 0 else names[code] for code in values.tolist()], dtype=object)

    return _rewrite(
        table,
        destination,
        f"{ratio:g} of the training labels flipped, seed {seed}",
        {"true_label": named(codes), "label_is_true": flipped == codes},
        labels=named(flipped),
    )


def _scalars(table: Table) -> dict[str, pa.DataType]:
    """Imported columns beside modalities, id, split and label."""
    own = {"id", "index", "split", "label"}
    own |= {column for name in table.modalities for column in (name, f"origin_{name}")}
    names = [name for name in table.columns if name not in own and table.provenance(name) is None]
    return {name: table.schema.field(name).type for name in names}


def _rewrite(
    table: Table,
    destination: str | Path,
    what: str,
    truth: Mapping[str, np.ndarray],
    *,
    swap: tuple[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> Table:
    """Copy a Table row by row with the columns ``truth`` added (in order of ``index``), ``swap``: a modality and
    the offsets its samples are read from, ``labels``: other labels."""
    scalars = _scalars(table)
    if taken := [name for name in truth if name in scalars]:
        raise InputError(f"{table.path} has a column {taken[0]!r}: it was corrupted before; start from its original")
    known = {name: values.tolist() for name, values in truth.items()}
    by_type = {np.dtype(bool): pa.bool_(), np.dtype(np.int64): pa.int64(), np.dtype(object): pa.string()}
    types = {name: by_type[values.dtype] for name, values in truth.items()}
    offsets = table.select()
    names = list(table.modalities)
    columns = ["id", "split", "label", *names, *(f"origin_{name}" for name in names), *scalars]

    def rows() -> Iterator[Row]:
        for start in range(0, len(offsets), _BATCH):
            part = slice(start, start + _BATCH)
            entries: list[dict[str, Any]] = table.take(offsets[part], columns).to_pylist()
            if swap is not None:
                moved = table.take(swap[1][part], [swap[0], f"origin_{swap[0]}"]).to_pylist()
                entries = [entry | other for entry, other in zip(entries, moved, strict=True)]
            for place, entry in enumerate(entries, start):
                yield Row(
                    id=entry["id"],
                    split=entry["split"],
                    label=entry["label"] if labels is None else labels[place],
                    values={name: entry[name] for name in names},
                    origins={name: origin for name in names if (origin := entry[f"origin_{name}"]) is not None},
                    scalars={name: entry[name] for name in scalars}
                    | {name: values[place] for name, values in known.items()},
                )

    sizes = table.sizes
    files: dict[str, str] = {}
    if "tokenizer" in sizes:
        sizes["tokenizer"], files = packed(sizes["tokenizer"])
    return Table.create(
        destination,
        rows(),
        table.modalities,
        f"{table.source} ({what})",
        scalars=scalars | types,
        sizes=sizes,
        files=files,
    )


def _count(ratio: float, n: int, what: str = "mismatched pairs") -> int:
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio} of {what}; give a number from 0 to 1")
    return round(ratio * n)

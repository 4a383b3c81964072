"""Which rows a run learns from, with whom they are paired, and how much each is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.corrupt import shuffle_partners_within_class
from consilience.data.loader import Partners
from consilience.data.noise_index import partners, read_noise_index, shuffle_groups
from consilience.data.review import COLUMN, PARTNER
from consilience.data.schema import Kind, Modalities
from consilience.data.table import Table
from consilience.errors import InputError, unknown
from consilience.training.config import TrainConfig


@dataclass(frozen=True)
class Selection:
    """Row offsets of one run."""

    rows: np.ndarray
    """Trained on; position here is the index of a sample."""
    held_out: np.ndarray
    """For the label-free choice of an epoch."""
    partners: Partners
    """Modality to the rows it is read from instead, one for each of ``rows``; empty without injected noise."""
    held_out_partners: Partners
    """The same for ``held_out``."""
    weights: np.ndarray | None
    """For each of ``rows``, how many times it takes part in an epoch: its trust in [0, 1], or what balances classes."""
    noise_index: np.ndarray | None
    """Injected noise in the published format: image number by training row, all rows of split train."""


def chosen_modalities(table: Table, config: TrainConfig) -> dict[str, Kind]:
    """The modalities the run uses, in the order of ``--train.modalities``; all of the Table's without it."""
    known = table.modalities
    if not config.modalities:
        return known
    names = [name.strip() for name in config.modalities.split(",")]
    for name in names:
        if name not in known:
            raise unknown(f"--train.modalities: modality of {table.path}", name, known)
    if len(set(names)) < len(names):
        raise InputError(f"--train.modalities {config.modalities} names one twice")
    return {name: known[name] for name in names}


def select_rows(
    table: Table, config: TrainConfig, modalities: Modalities, complete: bool, balance: str | None = None
) -> Selection:
    """Training rows, rows held out, injected mismatches and trust. Labels are read only for ``pairs``.

    Rows of split ``train`` are used (all rows when no row has that split). Rows of ``validation`` or ``val`` are held
    out when there are any, else a seeded share ``config.validation`` of the training rows, noise included.
    ``complete``: only rows that have all ``modalities``. ``config.where`` applies to all of them. ``balance``: column
    whose classes are balanced (:func:`balanced`), trust included.
    """
    has_all = " and ".join(f"{name} is not null" for name in modalities) if complete else "true"
    if config.where:
        has_all += f" and ({config.where})"
    everything = table.select(f"split = 'train' and {has_all}")
    if not len(everything):
        everything = table.select(f"split not in ('test', 'testall', 'validation', 'val') and {has_all}")
    if not len(everything):
        why = f" that have {' and '.join(modalities)}" if complete else ""
        why += f" and pass {config.where!r}" if config.where else ""
        raise InputError(f"{table.path} has no training rows{why}; its split column must say 'train' somewhere")
    decided = _decisions(table, everything) if config.review else None
    if decided is not None:
        everything, decided = everything[decided != "drop"], decided[decided != "drop"]
    mates, index = _mates(table, config, modalities, everything)
    trust = _trust(table, config, everything)
    if trust is not None and decided is not None:
        trust[decided != ""] = 1.0
    used = np.arange(len(everything))
    if trust is not None and config.trust_as == "exclude":
        used, trust = np.flatnonzero(trust >= config.trust_threshold), None
        if len(used) < 2:
            raise InputError(
                f"column {config.trust} trusts {len(used)} training rows at --train.trust_threshold "
                f"{config.trust_threshold}; lower it"
            )
    held_out = table.select(f"split in ('validation', 'val') and {has_all}")
    mates_held: Partners = {}
    if not len(held_out) and config.validation:
        order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(used))
        count = int(len(used) * config.validation)
        aside, used = used[np.sort(order[:count])], used[np.sort(order[count:])]
        held_out = everything[aside]
        mates_held = {name: offsets[aside] for name, offsets in mates.items()}
    weights = None if trust is None else trust[used]
    if balance is not None:
        weights = balanced(table.take(everything[used], [balance])[balance].to_pylist(), weights)
    return Selection(
        rows=everything[used],
        held_out=held_out,
        partners={name: offsets[used] for name, offsets in mates.items()},
        held_out_partners=mates_held,
        weights=weights,
        noise_index=index,
    )


def balanced(classes: Sequence[Any], trust: np.ndarray | None = None) -> np.ndarray:
    """Visits of every row to an epoch, float64 [n]: the commonest class takes half of it, the others share the other
    half equally, and within a class rows count by ``trust`` (equally by default). An epoch has as many visits as there
    is trust. Rows without a class count as one more."""
    names = [repr(value) for value in classes]
    _, code, count = np.unique(names, return_inverse=True, return_counts=True)
    trust = np.ones(len(names)) if trust is None else trust
    mass = np.bincount(code, trust)
    if len(count) == 1:
        return trust
    share = np.full(len(count), 0.5 / (len(count) - 1))
    share[np.argmax(count)] = 0.5
    share = np.where(mass > 0, share, 0.0)
    return np.asarray(trust * (share / share.sum() * trust.sum() / np.maximum(mass, 1e-12))[code])


def _mates(
    table: Table, config: TrainConfig, modalities: Modalities, rows: np.ndarray
) -> tuple[Mapping[str, np.ndarray], np.ndarray | None]:
    """Where each row takes one modality from instead of from itself, and the noise in the published format."""
    names = list(modalities)
    if config.pairs == "class-shuffled":
        codes = class_codes(table)[rows]
        return {names[1]: shuffle_partners_within_class(rows, codes, config.seed)[0]}, None
    if config.review:
        return {names[1]: _reviewed_partners(table, rows)}, None
    if config.noise_index is None and not config.corrupt:
        return {}, None
    groups = image_numbers(table, rows)
    if config.noise_index is not None:
        images = int(groups.max()) + 1
        index = read_noise_index(Path(config.noise_index), len(rows), images, max(1, len(rows) // images))
    else:
        index = shuffle_groups(groups, config.corrupt, config.seed)
    return {names[0]: partners(index, groups, rows)}, index


def _decisions(table: Table, rows: np.ndarray) -> np.ndarray:
    """object [n]: what a review decided about each row, "" for nothing."""
    if COLUMN not in table.columns:
        raise InputError(
            f"{table.path} has no column {COLUMN}; decide about pairs first: consilience serve {table.path}"
        )
    found = table.take(rows, [COLUMN])[COLUMN].to_pylist()
    return np.array([decision or "" for decision in found], dtype=object)


def _reviewed_partners(table: Table, rows: np.ndarray) -> np.ndarray:
    """Offsets [n] of the rows that give each row its second modality."""
    keys = table.take(rows, [PARTNER])[PARTNER].to_numpy(zero_copy_only=False).astype(np.float64)
    out, moved = rows.copy(), ~np.isnan(keys)
    out[moved] = table.offsets_of(keys[moved].astype(np.int64))
    return out


def image_numbers(table: Table, rows: np.ndarray) -> np.ndarray:
    """int64 [n]: number from 0 of the picture each row shows, by the column ``group``; one a row without it."""
    if "group" not in table.columns:
        return np.arange(len(rows), dtype=np.int64)
    values = table.take(rows, ["group"])["group"].to_numpy()
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _trust(table: Table, config: TrainConfig, rows: np.ndarray) -> np.ndarray | None:
    if config.trust is None:
        return None
    column = table.take(rows, [config.trust])[config.trust]
    if column.null_count:
        raise InputError(
            f"column {config.trust} is empty in {column.null_count} training rows; audit the whole training split"
        )
    values = np.asarray(column.to_numpy())
    if values.dtype.kind not in "biuf" or values.min() < 0 or values.max() > 1:
        raise InputError(f"column {config.trust} holds {values.dtype} values; trust is a number from 0 to 1 a row")
    return values.astype(np.float64)


def class_codes(table: Table) -> np.ndarray:
    """Class codes int64 by row offset. Only called for runs that ask for labels by name (``given``, ``pairs``)."""
    codes = np.empty(len(table), dtype=np.int64)
    codes[table.select()] = table.labels()[0]
    return codes

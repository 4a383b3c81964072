"""Everything a Table or a source holds, read once: counts, sizes, unreadable samples, missing partners,
copies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consilience.data.datasets import is_dataset, read_dataset
from consilience.data.decode import format_of, measure, prove
from consilience.data.importers import open_source
from consilience.data.pictures import image_channels
from consilience.data.reading import Bad
from consilience.data.schema import Kind
from consilience.data.table import Row, Table, is_table
from consilience.errors import InputError

_BATCH = 256


@dataclass(frozen=True)
class ModalityReport:
    """One modality of a :class:`CheckReport`."""

    kind: str
    """As the Table says; for a source, as an import would settle it."""
    present: dict[str, int]
    """Split to number of rows that have it."""
    missing: int
    unreadable: int
    formats: dict[str, int]
    smallest: list[int]
    """Componentwise smallest size: [height, width], [points], [faces], [characters] of captions, [regions, width]
    or [width] of features."""
    largest: list[int]
    bytes: int


@dataclass(frozen=True)
class Copies:
    """Rows whose bytes of one modality are the same. Rows of one ``group`` (several captions of one picture)
    share samples by design, so of each group in a split only the first row counts."""

    modality: str
    ids: list[str]
    splits: list[str]
    """The different splits they are in; more than one is a leak."""


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found."""

    source: str
    rows: int
    splits: dict[str, int]
    labels: dict[str, int]
    unlabelled: int
    modalities: dict[str, ModalityReport]
    incomplete: list[str]
    """Ids of rows that lack a modality."""
    unreadable: list[Bad]
    copies_within: list[Copies]
    """Exact copies inside one split."""
    copies_across: list[Copies]
    """Exact copies in several splits."""

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries and lists, for ``json.dumps``."""
        return asdict(self)

    @property
    def problems(self) -> list[str]:
        """One line for every kind of thing found, most serious first; empty when all is well."""
        across, within = _extra(self.copies_across), _extra(self.copies_within)
        found = [
            (len(self.unreadable), "unreadable samples"),
            (across, "exact copies of a sample in another split"),
            (len(self.incomplete), "rows without one of their modalities"),
            (within, "exact copies inside a split"),
        ]
        return [f"{count} {what}" for count, what in found if count]


class _Tally:
    """Counts of one modality while the rows go by."""

    def __init__(self) -> None:
        self.present: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.missing = self.unreadable = self.bytes = 0
        self.colour = False
        self.smallest: list[int] = []
        self.largest: list[int] = []
        self.copies: dict[bytes, dict[object, tuple[str, str]]] = {}

    def size(self, size: tuple[int, ...]) -> None:
        self.smallest = [min(pair) for pair in zip(self.smallest or size, size, strict=True)]
        self.largest = [max(pair) for pair in zip(self.largest or size, size, strict=True)]


def check(source: Table | str | Path) -> CheckReport:
    """Read every sample of a Table, or of anything :func:`import_table` understands, without writing
    anything.

    Raises :class:`InputError` when the source itself is not understood; broken samples are in the report.
    """
    name, kinds, spec, rows = _open(source)
    tallies = {modality: _Tally() for modality in kinds}
    splits: Counter[str] = Counter()
    labels: Counter[str | None] = Counter()
    incomplete: list[str] = []
    unreadable: list[Bad] = []
    for row in rows:
        if isinstance(row, Bad):
            unreadable.append(row)
            if row.modality in tallies:
                tallies[row.modality].unreadable += 1
            continue
        splits[row.split] += 1
        labels[row.label] += 1
        if any(row.values.get(modality) is None for modality in kinds):
            incomplete.append(row.id)
        for modality, kind in kinds.items():
            bad = _sample(row, modality, kind, spec, tallies[modality])
            if bad is not None:
                unreadable.append(bad)
    groups = [
        Copies(modality, [name for name, _ in same.values()], sorted({split for _, split in same.values()}))
        for modality, tally in tallies.items()
        for same in tally.copies.values()
        if len(same) > 1
    ]
    unlabelled = labels.pop(None, 0)
    return CheckReport(
        source=name,
        rows=sum(splits.values()),
        splits=dict(splits),
        labels={label: count for label, count in sorted(labels.items(), key=str) if label is not None},
        unlabelled=unlabelled,
        modalities={modality: _report(kinds[modality], tally) for modality, tally in tallies.items()},
        incomplete=incomplete,
        unreadable=unreadable,
        copies_within=[group for group in groups if len(group.splits) == 1],
        copies_across=[group for group in groups if len(group.splits) > 1],
    )


def _sample(row: Row, modality: str, kind: Kind | None, spec: str, tally: _Tally) -> Bad | None:
    """Decode one sample into ``tally``; what is wrong with it, if anything."""
    data, origin = row.values.get(modality), row.origins.get(modality, "")
    if data is None:
        tally.missing += 1
        return None
    tally.present[row.split] += 1
    tally.bytes += len(data)
    tally.formats[format_of(data, origin, kind) or "unknown"] += 1
    try:
        prove(data, kind or Kind.RGB, origin, spec)
        tally.size(measure(data, kind or Kind.RGB, origin))
        tally.colour |= kind is None and image_channels(data) == 3
    except InputError as error:
        tally.unreadable += 1
        return Bad(row.id, modality, origin, str(error))
    group = row.scalars.get("group")
    key = row.id if group is None else (group, row.split)
    tally.copies.setdefault(hashlib.blake2b(data, digest_size=16).digest(), {}).setdefault(key, (row.id, row.split))
    return None


def _report(kind: Kind | None, tally: _Tally) -> ModalityReport:
    return ModalityReport(
        kind=(kind or (Kind.RGB if tally.colour else Kind.GREY)).value,
        present=dict(tally.present),
        missing=tally.missing,
        unreadable=tally.unreadable,
        formats=dict(tally.formats),
        smallest=tally.smallest,
        largest=tally.largest,
        bytes=tally.bytes,
    )


def _open(source: Table | str | Path) -> tuple[str, dict[str, Kind | None], str, Iterator[Row | Bad]]:
    """Name, kinds, tokenizer of the captions, rows."""
    embedded = isinstance(source, str) and is_dataset(source)
    if not isinstance(source, Table) and not embedded and is_table(source):
        source = Table.open(source)
    if isinstance(source, Table):
        spec = str(source.sizes.get("tokenizer", "bytes"))
        return str(source.path), dict(source.modalities), spec, _rows(source)
    reading = read_dataset(str(source)) if embedded else open_source(source)
    return reading.source, dict(reading.kinds), str(reading.sizes.get("tokenizer", "bytes")), reading.rows


def _rows(table: Table) -> Iterator[Row]:
    names = list(table.modalities)
    columns = ["id", "split", "label", *names, *(f"origin_{name}" for name in names)]
    columns += ["group"] if "group" in table.columns else []
    offsets = table.select()
    for start in range(0, len(offsets), _BATCH):
        for entry in table.take(offsets[start : start + _BATCH], columns).to_pylist():
            yield Row(
                id=entry["id"],
                split=entry["split"],
                label=entry["label"],
                values={name: entry[name] for name in names},
                origins={name: entry[f"origin_{name}"] or "" for name in names},
                scalars={"group": entry.get("group")},
            )


def _extra(groups: list[Copies]) -> int:
    return sum(len(group.ids) - 1 for group in groups)

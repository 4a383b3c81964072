"""Small pictures of every sample as columns of the Table, for pages that show many of them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from tqdm import tqdm

from consilience.audit.thumbnails import SIDE, thumbnail
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError, unknown

_ROWS = 256


def thumb_column(modality: str, into: str = "thumb") -> str:
    """The Table's column with the thumbnails of a modality."""
    return f"{into}_{modality}"


def pictured(table: Table) -> list[str]:
    """The modalities that have thumbnails: all but texts, which are shown as their words, and sets of regions."""
    return [name for name, kind in table.modalities.items() if kind not in (Kind.TEXT, Kind.REGIONS)]


def thumbnail_columns(
    table: Table, *, modalities: Sequence[str] | None = None, into: str = "thumb", quiet: bool = True
) -> dict[str, str]:
    """Write PNGs of 72 pixels a side into binary columns ``into_<modality>``; returns modality to column.

    Rows that have one already keep it, so that new rows cost only themselves; a sample that is absent or cannot be
    drawn stays null. Raises InputError for modalities that are not there or have no picture.
    """
    for name in modalities or ():
        if name not in table.modalities:
            raise unknown(f"modality of {table.path}", name, table.modalities)
        if name not in pictured(table):
            raise InputError(f"{name} is {table.modalities[name]}, which has no picture; leave it out")
    columns = {name: thumb_column(name, into) for name in modalities or pictured(table)}
    for modality, column in columns.items():
        _fill(Table.open(table.path), modality, column, quiet)
    return columns


def _fill(table: Table, modality: str, column: str, quiet: bool) -> None:
    kind, there = table.modalities[modality], f"origin_{modality} is not null"
    held = pa.table({"index": pa.array([], pa.int64()), column: pa.array([], pa.binary())})
    rows = table.select(there)
    if column in table.columns:
        if table.provenance(column) is None:
            raise InputError(f"{column} of {table.path} was imported and is never overwritten; choose another --into")
        held = table.take(table.select(f"{column} is not null"), ["index", column])
        rows = table.select(f"{there} and {column} is null")
    keys, pictures = held["index"].to_pylist(), held[column].to_pylist()
    for start in tqdm(range(0, len(rows), _ROWS), desc=column, disable=quiet, mininterval=1.0):
        part = table.take(rows[start : start + _ROWS], ["index", modality, f"origin_{modality}"])
        for entry in part.to_pylist():
            drawn = thumbnail(entry[modality], kind, entry[f"origin_{modality}"] or "")
            if isinstance(drawn, bytes):
                keys.append(entry["index"])
                pictures.append(drawn)
    if len(rows):
        provenance = {"side": SIDE, "of": modality}
        table.write_columns(
            pa.array(keys, pa.int64()).to_numpy(), {column: pa.array(pictures, pa.binary())}, provenance
        )

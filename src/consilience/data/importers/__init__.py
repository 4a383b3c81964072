"""Import: from files, lists and archives to one Table. One format a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.importers.folders import read_folders
from consilience.data.importers.kaggle3d import FILES, read_kaggle3d
from consilience.data.importers.manifest import SUFFIXES, read_manifest
from consilience.data.importers.npz3d import KENNEY, MNIST, read_npz3d
from consilience.data.importers.romo_lists import LIST_NAME, read_romo_lists
from consilience.data.reading import OnBadSample, Reading, write_reading
from consilience.data.table import Table, is_table
from consilience.errors import InputError, unknown
from consilience.files import new_folder


def import_table(
    source: str | Path,
    destination: str | Path,
    *,
    kinds: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_sample: OnBadSample = "stop",
) -> Table:
    """Make a Table at ``destination`` from ``source``; nothing is left there when it fails.

    ``source``: the name of an embedded data set, a Table's folder (copied, derived columns included), a
    manifest (CSV, TSV, Parquet, JSON lines), a folder of modality folders, RoMo's lists, or one of the
    archives of :mod:`~consilience.data.importers.kaggle3d` and :mod:`~consilience.data.importers.npz3d`.
    ``kinds``: modality to ``rgb``, ``grey``, ``points`` or ``mesh``, where the inferred kind is not meant.
    ``columns``: modality to column, for manifests. ``on_bad_sample``: every sample is decoded once; one
    that cannot be stops the import, or its row is left out and listed in ``quarantine.jsonl``.

    Raises :class:`InputError` for a source that is not understood, a taken destination and bad samples.
    """
    destination = Path(destination)
    if isinstance(source, str) and source in DATASETS:
        reading = read_dataset(source)
    elif is_table(source):
        if kinds or columns:
            raise InputError(f"{source} is a table already; kinds and columns apply to other sources")
        return _copy(Table.open(source), destination)
    else:
        reading = open_source(source, columns)
        columns = None
    if columns:
        raise InputError(f"columns apply to manifests; {source} is an embedded data set")
    return write_reading(reading, destination, kinds, on_bad_sample)


def open_source(source: str | Path, columns: Mapping[str, str] | None = None) -> Reading:
    """The importer that understands the file or folder ``source``, opened on it."""
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and os.sep not in source and not path.suffix:
            raise unknown("data set or path", source, DATASETS)
        raise InputError(f"{path} does not exist; give a file, a folder, a table or one of {', '.join(DATASETS)}")
    if path.is_file() and path.suffix in SUFFIXES:
        return read_manifest(path, columns)
    if path.is_dir() and (manifests := [p for p in sorted(path.iterdir()) if p.suffix in SUFFIXES]):
        if len(manifests) > 1:
            raise InputError(f"{path} has {len(manifests)} manifests; give one of them, such as {manifests[0]}")
        return read_manifest(manifests[0], columns)
    if columns:
        raise InputError(f"columns apply to manifests ({', '.join(SUFFIXES)}); {path} is none")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_file(path: Path) -> Reading:
    if LIST_NAME.fullmatch(path.name):
        return read_romo_lists(path.parent)
    if path.suffix in (".h5", ".hdf5"):
        return read_kaggle3d(path)
    if path.suffix == ".npz":
        return read_npz3d(path)
    known = ", ".join((*SUFFIXES, ".h5", ".npz"))
    raise InputError(f"{path}: no importer for {path.suffix or 'a file without suffix'}; expected one of {known}")


def _open_folder(path: Path) -> Reading:
    names = {entry.name for entry in path.iterdir()}
    if any(LIST_NAME.fullmatch(name) for name in names):
        return read_romo_lists(path)
    if names & {KENNEY, MNIST[0]}:
        return read_npz3d(path)
    if names & set(FILES):
        return read_kaggle3d(path)
    return read_folders(path)


def _copy(table: Table, destination: Path) -> Table:
    if destination.exists():
        raise InputError(f"{destination} already exists; remove it or choose another place for the table")
    with new_folder(destination) as folder:
        shutil.copytree(table.path, folder, dirs_exist_ok=True)
    return Table.open(destination)

"""Import: from files, lists and archives to one Table. One format a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from consilience.data.datasets import dataset_names, is_dataset, read_dataset
from consilience.data.importers.crowds import is_crowds, is_points_table, read_crowds, read_points_table
from consilience.data.importers.folders import read_folders
from consilience.data.importers.huggingface import is_huggingface, read_huggingface
from consilience.data.importers.ic9600 import is_ic9600, read_ic9600
from consilience.data.importers.kaggle3d import FILES, read_kaggle3d
from consilience.data.importers.manifest import SUFFIXES, read_manifest
from consilience.data.importers.mstar import is_mstar, read_mstar
from consilience.data.importers.npz3d import KENNEY, MNIST, read_npz3d
from consilience.data.importers.opensarship import is_opensarship, read_opensarship
from consilience.data.importers.precomp import is_precomp, read_precomp
from consilience.data.importers.romo_lists import LIST_NAME, read_romo_lists
from consilience.data.importers.savoias import PAINTINGS, is_savoias, read_paintings, read_savoias
from consilience.data.importers.webdataset import SHARD, is_pattern, is_webdataset, read_webdataset
from consilience.data.importers.wikipedia import WIKIPEDIA, read_wikipedia
from consilience.data.reading import OnBadSample, Reading, write_reading
from consilience.data.table import Table, is_table
from consilience.data.text import split_spec
from consilience.data.weather import with_weather
from consilience.errors import InputError, unknown
from consilience.files import new_folder

FORMATS = (
    f"manifests ({', '.join(SUFFIXES)})",
    "folders with one sub-folder per modality",
    "feature folders (*_ims.npy)",
    f"WebDataset shards ({SHARD})",
    "folders of Hugging Face datasets (save_to_disk, or Parquet shards)",
    "RoMo's lists",
    "3D MNIST (.h5)",
    "MSTAR (Phoenix files, or train/CLASS and test/CLASS)",
    "scenes of OpenSARShip",
    "pictures with points (ShanghaiTech, UCF-QNRF, JHU-Crowd++, NWPU-Crowd, Parquet with points)",
    "SAVOIAS and IC9600",
    f"the archives {KENNEY}, {MNIST[0]} and {WIKIPEDIA}",
)
"""What :func:`open_source` understands, in words for error messages."""


def import_table(
    source: str | Path,
    destination: str | Path,
    *,
    kinds: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    captions: str | None = None,
    on_bad_sample: OnBadSample = "stop",
    weather: Mapping[str, float] | None = None,
    weather_seed: int = 0,
) -> Table:
    """Make a Table at ``destination`` from ``source``; nothing is left there when it fails.

    ``source``: the name of an embedded data set, a Table's folder (copied, derived columns included), or a
    file or folder that one of the importers in :mod:`consilience.data.importers` understands: manifests,
    folders of modality folders, precomputed features with captions, WebDataset shards, Hugging Face folders,
    RoMo's lists and four published archives. ``kinds``: modality to kind, where the inferred one is not
    meant. ``columns``: modality to column, for manifests and Hugging Face folders. ``tokenizer``: how
    captions become tokens, see :func:`~consilience.data.reading.write_reading`. ``captions``: which caption
    files of Noise of Web to read (``bpe``, ``bert``, ``jieba``). ``on_bad_sample``: every sample is decoded
    once; one that cannot be stops the import, or its row is left out and listed in ``quarantine.jsonl``.
    ``weather``: haze, rain and snow to the share of the pictures that are put into it, drawn by ``weather_seed``, see
    :func:`~consilience.data.weather.with_weather`.

    Raises :class:`InputError` for a source that is not understood, a taken destination and bad samples.
    """
    destination = Path(destination)
    if isinstance(source, str) and is_dataset(source):
        if columns or captions:
            raise InputError(
                f"columns apply to manifests and captions to feature folders; {source} is an embedded data set"
            )
        reading = read_dataset(source)
    elif is_table(source):
        if kinds or columns or tokenizer or captions or weather:
            raise InputError(
                f"{source} is a table already; kinds, columns, tokenizer, captions, weather apply to other sources"
            )
        return _copy(Table.open(source), destination)
    else:
        scheme, place = split_spec(tokenizer) if tokenizer and not tokenizer.startswith("fit-") else ("", "")
        vocabulary = Path(place) if scheme in ("ids", "words") else None
        reading = open_source(source, columns, captions=captions, vocabulary=vocabulary)
    if weather:
        reading = with_weather(reading, weather, weather_seed)
    return write_reading(reading, destination, kinds, on_bad_sample, tokenizer=tokenizer)


def open_source(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    captions: str | None = None,
    vocabulary: Path | None = None,
) -> Reading:
    """The importer that understands the file or folder ``source``, opened on it. ``captions`` and
    ``vocabulary``: see :func:`~consilience.data.importers.precomp.read_precomp`."""
    path = Path(source)
    if is_pattern(path):
        _no_options(path, columns, captions)
        return read_webdataset(path)
    if not path.exists():
        if isinstance(source, str) and os.sep not in source and not path.suffix:
            raise unknown("data set or path", source, dataset_names())
        raise InputError(
            f"{path} does not exist; give a file, a folder, a table or one of {', '.join(dataset_names())}"
        )
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if is_mstar(path, names):
        _no_options(path, columns, captions)
        return read_mstar(path)
    if is_crowds(path, names):
        _no_options(path, columns, captions)
        return read_crowds(path)
    if is_precomp(names):
        _no_options(path, columns, None)
        return read_precomp(path, vocabulary=vocabulary, captions=captions)
    if is_huggingface(path, names):
        _no_options(path, None, captions)
        return read_huggingface(path, columns)
    if PAINTINGS in {path.name, *names}:
        _no_options(path, columns, captions)
        return read_paintings(path)
    manifests = [path] if path.suffix in SUFFIXES and path.is_file() else []
    manifests += [path / name for name in sorted(names) if Path(name).suffix in SUFFIXES]
    if len(manifests) > 1:
        raise InputError(f"{path} has {len(manifests)} manifests; give one of them, such as {manifests[0]}")
    if manifests and not columns and is_points_table(manifests[0]):
        _no_options(path, None, captions)
        return read_points_table(manifests[0])
    if manifests:
        _no_options(path, None, captions)
        return read_manifest(manifests[0], columns)
    _no_options(path, columns, captions)
    return _open_folder(path, names) if path.is_dir() else _open_file(path)


def _no_options(path: Path, columns: Mapping[str, str] | None, captions: str | None) -> None:
    if columns:
        raise InputError(f"columns apply to manifests ({', '.join(SUFFIXES)}) and Hugging Face folders; {path} is none")
    if captions:
        raise InputError(f"captions apply to folders with token ids (*_caps_{captions}.txt); {path} is none")


def _open_file(path: Path) -> Reading:
    if LIST_NAME.fullmatch(path.name):
        return read_romo_lists(path.parent)
    if path.suffix == SHARD:
        return read_webdataset(path)
    if path.name == WIKIPEDIA:
        return read_wikipedia(path)
    if path.suffix in (".h5", ".hdf5"):
        return read_kaggle3d(path)
    if path.suffix == ".npz":
        return read_npz3d(path)
    raise InputError(
        f"{path}: no importer for {path.suffix or 'a file without suffix'}; known are {'; '.join(FORMATS)}"
    )


def _open_folder(path: Path, names: set[str]) -> Reading:
    if any(LIST_NAME.fullmatch(name) for name in names):
        return read_romo_lists(path)
    if names & {KENNEY, MNIST[0]}:
        return read_npz3d(path)
    if names & set(FILES):
        return read_kaggle3d(path)
    if WIKIPEDIA in names:
        return read_wikipedia(path)
    if is_webdataset(names):
        return read_webdataset(path)
    if is_opensarship(path, names):
        return read_opensarship(path)
    if is_savoias(path, names):
        return read_savoias(path)
    if is_ic9600(path, names):
        return read_ic9600(path)
    return read_folders(path)


def _copy(table: Table, destination: Path) -> Table:
    if destination.exists():
        raise InputError(f"{destination} already exists; remove it or choose another place for the table")
    with new_folder(destination) as folder:
        shutil.copytree(table.path, folder, dirs_exist_ok=True)
    return Table.open(destination)

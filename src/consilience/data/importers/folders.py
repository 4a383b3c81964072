"""Folders: one sub-folder per modality, files with equal stems are one sample.

``ROOT/image/a.png`` and ``ROOT/points/a.npy`` are a pair. A folder called train, test or val may stand
above or below the modality's; folders further down are the class (``ROOT/train/image/cat/a.png``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from consilience.data.decode import format_of
from consilience.data.importers.manifest import kind_of_format
from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
_LAYOUT = "expected one sub-folder per modality, such as image/a.png and points/a.npy"


def read_folders(root: Path) -> Reading:
    """Open a tree of folders. The id is split, class and stem joined by ``/``; files of other kinds are
    ignored.

    Raises :class:`InputError` when there are no samples below sub-folders, when two files of one modality
    share a stem, and when several sub-folders have no stem in common (classes taken for modalities).
    """
    samples: dict[tuple[str, str, str], dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if any(part.startswith(".") for part in place.parts) or not path.is_file():
            continue
        if not format_of(b"", path.name):
            continue
        split, modality, label = _roles(place, root)
        key = (split, label, path.stem)
        other = samples.setdefault(key, {}).setdefault(modality, path)
        if other != path:
            raise InputError(f"{other} and {path} have one stem; keep one file per sample and modality")
    if not samples:
        raise InputError(f"{root} holds no pictures, clouds or meshes; {_LAYOUT}")
    names = sorted({name for files in samples.values() for name in files})
    if len(names) > 1 and not any(len(files) > 1 for files in samples.values()):
        raise InputError(f"{root}: no stem occurs in two of {', '.join(names[:5])}; {_LAYOUT}, with equal stems")
    kinds: dict[str, Kind | None] = {}
    for name in names:
        first = next(files[name] for files in samples.values() if name in files)
        kinds[name] = kind_of_format(name, format_of(b"", first.name))
    return Reading(str(root), kinds, _rows(root, samples, names))


def _roles(place: Path, root: Path) -> tuple[str, str, str]:
    """Split, modality and class of a file by the folders above it."""
    parts = list(place.parts[:-1])
    split = ""
    if parts and parts[0].lower() in SPLITS:
        split = parts.pop(0)
    elif len(parts) > 1 and parts[1].lower() in SPLITS:
        split = parts.pop(1)
    if not parts:
        raise InputError(f"{root / place} is in no modality's folder; {_LAYOUT}")
    return split, parts[0], "/".join(parts[1:])


def _rows(root: Path, samples: dict[tuple[str, str, str], dict[str, Path]], names: list[str]) -> Iterator[Row | Bad]:
    for (split, label, stem), files in sorted(samples.items()):
        name = "/".join(part for part in (split, label, stem) if part)
        values: dict[str, bytes | None] = {}
        origins: dict[str, str] = {}
        bad: Bad | None = None
        for modality in names:
            path = files.get(modality)
            if path is None:
                continue
            origins[modality] = path.relative_to(root).as_posix()
            try:
                values[modality] = path.read_bytes()
            except OSError as error:
                bad = Bad(name, modality, origins[modality], error.strerror or "unreadable")
        yield bad or Row(name, split.lower() or "train", values, origins, label or None)

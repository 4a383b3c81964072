"""Folders: one sub-folder per modality, files with equal stems are one sample; or pictures alone, by class or not.

``ROOT/image/a.png`` and ``ROOT/points/a.npy`` are a pair. A folder called train, test or val may stand
above or below the modality's; folders further down are the class (``ROOT/train/image/cat/a.png``).

A tree of pictures alone, none of whose stems occurs in two sub-folders, is one modality ``image``, the folders below
the split the class (``ROOT/train/cat/a.png``), none for pictures that lie in no folder (``ROOT/a.jpg``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from consilience.data.decode import format_of
from consilience.data.importers.manifest import kind_of_format
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
_LAYOUT = "expected one sub-folder per modality, such as image/a.png and points/a.npy"


def read_folders(root: Path) -> Reading:
    """Open a tree of folders. The id is split, class and stem joined by ``/``; files of other kinds are
    ignored.

    Raises :class:`InputError` when there are no samples, when two files of one modality share a stem, and when
    several sub-folders of different formats have no stem in common.
    """
    samples: dict[tuple[str, str, str], dict[str, Path]] = {}
    paths = [path for path in sorted(root.rglob("*")) if _counts(path, root)]
    classes = _are_classes(paths, root)
    for path in paths:
        split, parts = _split_off(path.relative_to(root))
        if not parts and not classes:
            raise InputError(f"{path} is in no modality's folder; {_LAYOUT}")
        modality, label = ("image", "/".join(parts)) if classes else (parts[0], "/".join(parts[1:]))
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


def _counts(path: Path, root: Path) -> bool:
    """Whether it is a file of a known format, in no hidden folder."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.is_file() and bool(format_of(b"", path.name))


def _are_classes(paths: list[Path], root: Path) -> bool:
    """Whether the sub-folders of a tree of pictures are classes: there are several, or none, and no stem is in two."""
    if not all(format_of(b"", path.name) in IMAGE_FORMATS for path in paths):
        return False
    folders: dict[tuple[str, str], set[str]] = {}
    names = set()
    for path in paths:
        split, parts = _split_off(path.relative_to(root))
        folders.setdefault((split, path.stem), set()).add(parts[0] if parts else "")
        names.add(parts[0] if parts else "")
    return (len(names) > 1 or names == {""}) and all(len(found) == 1 for found in folders.values())


def _split_off(place: Path) -> tuple[str, list[str]]:
    """The split that a file's folders name ("" for none), and the other folders above it."""
    parts = list(place.parts[:-1])
    if parts and parts[0].lower() in SPLITS:
        return parts.pop(0), parts
    if len(parts) > 1 and parts[1].lower() in SPLITS:
        return parts.pop(1), parts
    return "", parts


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

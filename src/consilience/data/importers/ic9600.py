"""IC9600: 9,600 pictures with scores of complexity from 0 to 1 (Feng et al., TPAMI 2023), as its authors hand it out.

A folder with ``images/`` and two lists, ``train.txt`` and ``test.txt``: a picture's name, two spaces, its score, one a
line. Names may hold single spaces. The semantic category is read off the name's beginning (letters before the first
digit or underscore) into the column ``theme``; it is not called ``category``, because the scores of all themes share
one scale and the published protocol judges the whole test split at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

IMAGES = "images"
LISTS = {"train": "train.txt", "test": "test.txt"}
_LINE = re.compile(r"(.+?)  +(\S+)\s*")


def is_ic9600(path: Path, names: set[str]) -> bool:
    """Whether a folder with entries ``names`` is the data set: by its folder and lists, and the first line's form."""
    if not {IMAGES, *LISTS.values()} <= names:
        return False
    with (path / LISTS["train"]).open(errors="replace") as file:
        return _LINE.fullmatch(file.readline(1000).rstrip("\n")) is not None


def read_ic9600(path: Path) -> Reading:
    """Open the folder: modality ``image``, columns ``score`` and ``theme``, the published split. A listed picture that
    is not there is a bad sample.

    Raises :class:`InputError` for lines of another form, scores outside of 0 to 1, and names listed twice.
    """
    listed = {split: _read(path / name) for split, name in LISTS.items()}
    names = [name for entries in listed.values() for name, _ in entries]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InputError(f"{path}: {twice} is listed twice; keep one line of it")
    return Reading(str(path), {"image": Kind.RGB}, _rows(path, listed), {"score": pa.float64(), "theme": pa.string()})


def _read(file: Path) -> list[tuple[str, float]]:
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line)
        try:
            score = float(parts[2]) if parts else -1.0
        except ValueError:
            score = -1.0
        if parts is None or not 0 <= score <= 1:
            raise InputError(f"{file} line {number}: {line[:80]!r}; expected NAME, two spaces, a score from 0 to 1")
        found.append((parts[1].strip(), score))
    return found


def _rows(path: Path, listed: dict[str, list[tuple[str, float]]]) -> Iterator[Row | Bad]:
    for split, entries in listed.items():
        for name, score in entries:
            origin = f"{IMAGES}/{name}"
            try:
                data = (path / IMAGES / name).read_bytes()
            except OSError as error:
                yield Bad(name, "image", origin, f"{error.strerror or 'unreadable'} ({LISTS[split]})")
                continue
            theme = re.match(r"[^\W\d_]+", name)
            yield Row(name, split, {"image": data}, {"image": origin}, scalars={
                "score": score, "theme": theme[0].lower() if theme else None,
            })  # fmt: skip

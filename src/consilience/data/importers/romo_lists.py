"""The text lists of RoMo (Li et al., IEEE TIP 2024): ``path label`` a line, one list per modality and split.

The released lists are paired by line, but their point-cloud lines are in another order than the picture
lines, so line i of both is a random pair of one class. Here pairs are made by the six-digit id in the file
name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError
from consilience.files import write_text

LIST_NAME = re.compile(r"mnist3d_(RGBImgs|GrayImgs|PointCloud)_(train|test)_list\.txt")
_MODALITIES = {"RGBImgs": "rgb", "GrayImgs": "grey", "PointCloud": "points"}
_KINDS = {"rgb": Kind.RGB, "grey": Kind.GREY, "points": Kind.POINTS}
_ID = re.compile(r"_(\d{6})\.\w+$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    file: Path
    number: int
    path: str
    label: str | None
    id: str

    def __str__(self) -> str:
        return f"{self.file.name} line {self.number}"


def read_romo_lists(folder: Path) -> Reading:
    """Open a folder with RoMo's lists; rows are ordered by split and id, pairs made by id.

    Files are looked for from the folder of the lists upwards. A warning is logged for every pair of lists
    whose line order disagrees with the ids. Raises :class:`InputError` naming the lines when a line has no
    id, an id occurs twice or lacks its partner, or labels of one id differ.
    """
    lists: dict[str, dict[str, list[_Line]]] = {}
    for path in sorted(folder.iterdir()):
        if match := LIST_NAME.fullmatch(path.name):
            lists.setdefault(match[2], {})[_MODALITIES[match[1]]] = _lines(path)
    if not lists:
        raise InputError(f"{folder} has no list such as mnist3d_RGBImgs_train_list.txt; give the lists' folder")
    names = [name for name in _KINDS if any(name in by_name for by_name in lists.values())]
    for split, by_name in lists.items():
        if missing := [name for name in names if name not in by_name]:
            raise InputError(f"{folder}: the {split} list of {missing[0]} is missing; every split needs all lists")
        _check_pairs(by_name)
    return Reading(str(folder), {name: _KINDS[name] for name in names}, _rows(folder, lists))


def _lines(path: Path) -> list[_Line]:
    found: dict[str, _Line] = {}
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        if not text.strip():
            continue
        name, _, label = text.strip().partition(" ")
        match = _ID.search(name)
        if match is None:
            raise InputError(f"{path} line {number}: {name!r} has no six-digit id; pairs are made by it")
        line = _Line(path, number, name, label.strip() or None, match[1])
        if match[1] in found:
            raise InputError(f"{path}: id {match[1]} in lines {found[match[1]].number} and {number}; keep one")
        found[match[1]] = line
    return list(found.values())


def _check_pairs(by_name: dict[str, list[_Line]]) -> None:
    (first_name, first), *others = by_name.items()
    ids = {line.id: line for line in first}
    for name, lines in others:
        for line in lines:
            partner = ids.get(line.id)
            if partner is None:
                raise InputError(f"{line}: id {line.id} is not in the {first_name} list; make both list one set")
            if None not in (line.label, partner.label) and line.label != partner.label:
                raise InputError(f"{partner} and {line}: one id, labels {partner.label} and {line.label}")
        if len(lines) < len(first):
            lonely = next(line for line in first if line.id not in {other.id for other in lines})
            raise InputError(f"{lonely}: id {lonely.id} is not in the {name} list; make both list one set")
        off = sum(a.id != b.id for a, b in zip(first, lines, strict=True))
        if off:
            _log.warning(
                "%s and %s disagree in %d of %d lines; pairs are made by the id in the file name",
                first[0].file.name,
                lines[0].file.name,
                off,
                len(lines),
            )


def _rows(folder: Path, lists: dict[str, dict[str, list[_Line]]]) -> Iterator[Row | Bad]:
    some = next(iter(next(iter(lists.values())).values()))[0]
    bases = [folder, *folder.resolve().parents[:3]]
    base = next((base for base in bases if (base / some.path).is_file()), None)
    if base is None:
        raise InputError(f"{some}: {some.path} is not found from {folder} upwards; put the files beside the lists")
    for split, by_name in sorted(lists.items(), reverse=True):
        by_id = {name: {line.id: line for line in lines} for name, lines in by_name.items()}
        for key in sorted(next(iter(by_id.values()))):
            lines = {name: entries[key] for name, entries in by_id.items()}
            values: dict[str, bytes | None] = {}
            bad: Bad | None = None
            for name, line in lines.items():
                try:
                    values[name] = (base / line.path).read_bytes()
                except OSError as error:
                    bad = Bad(f"{split}-{key}", name, line.path, f"{error.strerror} ({line})")
            label = next((line.label for line in lines.values() if line.label is not None), None)
            origins = {name: line.path for name, line in lines.items()}
            yield bad or Row(f"{split}-{key}", split, values, origins, label)


def string_order(n: int) -> np.ndarray:
    """int64 [n]: the numbers 0..n-1 sorted as text. RoMo's id i is MNIST picture ``string_order(n)[i]``,
    with n = 5000 for the training and 1000 for the test list (the keys of an HDF5 file come in text
    order)."""
    return np.array(sorted(range(n), key=str), dtype=np.int64)


@dataclass(frozen=True)
class PseudoLabels:
    """The contents of a pseudo-label file."""

    paths: tuple[str, ...]
    pseudo: np.ndarray
    """int64 [n] cluster numbers."""
    true: np.ndarray
    """int64 [n] class numbers, -1 where unknown."""


def read_pseudo_labels(path: Path) -> PseudoLabels:
    """Read the authors' ``path pseudo true`` lines; :class:`InputError` naming the line that is not like
    that."""
    paths: list[str] = []
    numbers: list[tuple[int, int]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.rsplit(maxsplit=2)
        try:
            name, pseudo, true = fields
            numbers.append((int(pseudo), int(true)))
        except ValueError:
            raise InputError(f"{path} line {number}: {line!r}; expected: path pseudo-label true-label") from None
        paths.append(name)
    table = np.array(numbers, dtype=np.int64).reshape(-1, 2)
    return PseudoLabels(tuple(paths), table[:, 0], table[:, 1])


def write_pseudo_labels(path: Path, paths: Sequence[str], pseudo: np.ndarray, true: np.ndarray | None = None) -> None:
    """Write the authors' ``path pseudo true`` lines, with -1 for an unknown true label."""
    if true is None:
        true = np.full(len(paths), -1)
    if not len(paths) == len(pseudo) == len(true):
        raise InputError(f"{len(paths)} paths, {len(pseudo)} pseudo-labels, {len(true)} labels; give equally many")
    rows = zip(paths, pseudo.tolist(), true.tolist(), strict=True)
    write_text(path, "".join(f"{name} {int(guess)} {int(truth)}\n" for name, guess, truth in rows))

"""SAVOIAS: 1,420 pictures of seven categories with crowd-sourced scores of visual complexity (Saraee, Jalal, Betke,
arXiv 1810.01771), as its repository lays it out.

``Images/<Category>/<i>.jpg`` (or .png) and ``Ground truth/xlsx/global_ranking_<code>.xlsx``, whose column ``gt`` holds
the score of picture i in its row i + 2. A ``global_ranking_<code>.csv`` beside or instead of it is read too: one score
a row in the order of the pictures, or columns with the picture's number or name and its score. The authors' .npy files
hold pickled objects, which may run any program when they are read; they are never opened.

Scores are numbers from 0 to 100 that mean something within a category only, so they come with a column ``category``.
There is no official split; all rows are ``train``, and evaluation divides them into folds.

``savoias_suprematism.parquet``: the 98 Suprematist paintings in the public domain, with a split, in one file.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from consilience.data.decode import format_of
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

IMAGES, TRUTH = "Images", "Ground truth"
PAINTINGS = "savoias_suprematism.parquet"
_COLUMNS = {"score": pa.float64(), "category": pa.string(), "file": pa.string()}
_TOLD = {"title": pa.string(), "artist": pa.string()}
CATEGORIES = {
    "Scenes": "scenes",
    "Advertisement": "ad",
    "Visualizations": "vis",
    "Objects": "objects",
    "Interior Design": "interior_design",
    "Art": "art",
    "Suprematism": "sup",
}
"""Folder of a category to its code in the names of files with scores."""
_SHEET = "xl/worksheets/sheet1.xml"
_STRINGS = "xl/sharedStrings.xml"
_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LARGEST = 1 << 24


def is_savoias(path: Path, names: set[str]) -> bool:
    """Whether a folder with entries ``names`` is the data set, whole or some of its categories."""
    return {IMAGES, TRUTH} <= names and any((path / IMAGES / category).is_dir() for category in CATEGORIES)


def read_savoias(path: Path) -> Reading:
    """Open the folder: modality ``image``, columns ``score`` (0 to 100) and ``category``. Pictures are matched with
    scores by the number that is their name, whatever their ending.

    Raises :class:`InputError` for a category without a file of scores, pictures without a score, and files that are no
    spreadsheets or hold no numbers.
    """
    categories = [name for name in CATEGORIES if (path / IMAGES / name).is_dir()]
    scores = {name: _scores(path / TRUTH, CATEGORIES[name]) for name in categories}
    return Reading(
        str(path),
        {"image": Kind.RGB},
        _rows(path, scores),
        _COLUMNS,
    )


def read_paintings(path: Path) -> Reading:
    """Open the file of paintings, or a folder that holds it: modality ``image``, columns ``score``, ``category``,
    ``file``, ``title`` and ``artist``, and its split. :class:`InputError` for another file of that name."""
    path = path / PAINTINGS if path.is_dir() else path
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file; download it again") from error
    wanted = {*_COLUMNS, *_TOLD, "image_jpg", "split"}
    if missing := sorted(wanted - set(table.column_names)):
        raise InputError(f"{path} lacks columns {', '.join(missing)}; it is another file than the paintings of SAVOIAS")
    return Reading(str(path), {"image": Kind.RGB}, _paintings(path, table), _COLUMNS | _TOLD)


def _paintings(path: Path, table: pa.Table) -> Iterator[Row]:
    for number, entry in enumerate(table.to_pylist()):
        yield Row(
            id=f"sup-{int(Path(entry['file']).stem):03d}",
            split=entry["split"],
            values={"image": entry["image_jpg"]},
            origins={"image": f"{path.name}::image_jpg[{number}]"},
            scalars={name: entry[name] for name in (*_COLUMNS, *_TOLD)},
        )


def _rows(path: Path, scores: dict[str, dict[int, float]]) -> Iterator[Row | Bad]:
    for category, known in scores.items():
        code, seen = CATEGORIES[category], set()
        for picture in _pictures(path / IMAGES / category):
            number = int(picture.stem)
            if number in seen:
                raise InputError(f"{picture.parent} has two pictures {number}; keep one")
            if number not in known:
                raise InputError(f"{picture} has no score in {path / TRUTH} ({code}); remove it or restore the file")
            seen.add(number)
            origin = picture.relative_to(path).as_posix()
            yield Row(
                id=f"{code}-{number:03d}",
                split="train",
                values={"image": picture.read_bytes()},
                origins={"image": origin},
                scalars={"score": known[number], "category": category, "file": picture.name},
            )


def _pictures(folder: Path) -> list[Path]:
    found = [one for one in folder.iterdir() if one.stem.isdecimal() and format_of(b"", one.name) in IMAGE_FORMATS]
    return sorted(found, key=lambda one: int(one.stem))


def _scores(folder: Path, code: str) -> dict[int, float]:
    """Number of a picture to its score."""
    name = f"global_ranking_{code}"
    for file in (folder / "csv" / f"{name}.csv", folder / f"{name}.csv"):
        if file.is_file():
            return _numbered(file, list(csv.reader(file.read_text().splitlines())))
    file = folder / "xlsx" / f"{name}.xlsx"
    if not file.is_file():
        raise InputError(
            f"{folder} has no scores {name} (.xlsx or .csv); restore them (the .npy files are pickles and are not read)"
        )
    return _numbered(file, sheet(file))


def _numbered(file: Path, rows: list[list[str]]) -> dict[int, float]:
    """Scores by number: of rows with one cell by their place, else by the digits of their first cell; a header and
    empty rows are left out."""
    found: dict[int, float] = {}
    for row in rows:
        cells = [cell.strip() for cell in row if cell.strip()]
        if not cells or not re.fullmatch(r"-?\d+(\.\d+)?([eE]-?\d+)?", cells[-1]):
            continue
        if len(cells) == 1:
            found[len(found)] = float(cells[0])
        elif digits := re.match(r"(\d+)(\.\w+)?$", cells[0]):
            found[int(digits[1])] = float(cells[-1])
    if not found:
        raise InputError(f"{file} holds no scores; expected one number a row, or a picture's number and its score")
    return found


def sheet(file: Path) -> list[list[str]]:
    """The cells of the first sheet of an .xlsx file as text, row by row, without any office library.

    Raises :class:`InputError` for files that are none, are larger than 16 MiB unpacked, or declare XML entities.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            parts = [name for name in (_SHEET, _STRINGS) if name in sizes]
            if _SHEET not in parts or max(sizes[name] for name in parts) > _LARGEST:
                raise InputError(f"{file} is no small spreadsheet (.xlsx with one sheet); save it as .csv instead")
            content = {name: archive.read(name) for name in parts}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is not a readable .xlsx file; download it again or save it as .csv") from error
    if any(b"<!DOCTYPE" in text or b"<!ENTITY" in text for text in content.values()):
        raise InputError(f"{file} declares XML entities, which no spreadsheet needs; save it as .csv")
    try:
        trees = {name: ElementTree.parse(io.BytesIO(text)).getroot() for name, text in content.items()}
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is a broken .xlsx file; download it again or save it as .csv") from error
    strings = trees.get(_STRINGS)
    words = [] if strings is None else ["".join(one.itertext()) for one in strings.iter(f"{_SPACE}si")]
    rows = []
    for row in trees[_SHEET].iter(f"{_SPACE}row"):
        cells = []
        for cell in row.iter(f"{_SPACE}c"):
            value = cell.findtext(f"{_SPACE}v") or "".join(cell.itertext())
            cells.append(words[int(value)] if cell.get("t") == "s" and value.isdecimal() else value)
        rows.append(cells)
    return rows

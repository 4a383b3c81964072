"""Pictures with a point for everything that is to be counted, in the formats in which such sets are published.

    ShanghaiTech    part_A, part_B (or one of them): {train,test}_data/{images/IMG_1.jpg, ground_truth/GT_IMG_1.mat}
    UCF-QNRF        {Train,Test}/{img_0001.jpg, img_0001_ann.mat}
    JHU-Crowd++     {train,val,test}/{images/0001.jpg, gt/0001.txt, image_labels.txt}
    NWPU-Crowd      images/0001.jpg, jsons/0001.json and train.txt, val.txt, test.txt
    collated        {train,val,test}/{images/1.jpg, jsons/1.json}, the layout of multi-queue MoCo's data sets
    points tables   a Parquet file with pictures (image_png or image_jpg) and points ([[x, y], ...])

All become one modality, ``image``, and the columns ``places`` (positions (x, y) in pixels of the file), ``count`` (how
many) and ``weather``, which is ``normal`` where the source does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import loadmat

from consilience.data.reading import Bad, Reading
from consilience.data.table import Row
from consilience.data.weather import NORMAL
from consilience.errors import InputError

SPLITS = ("train", "val", "test")
JHU_WEATHER = ("normal", "haze", "rain", "snow")
"""By the code in column 3 of JHU-Crowd++'s image_labels.txt."""
COLLATED_WEATHER = ("normal", "haze", "rain", "snow")
"""By the number under ``weather``."""
HIDDEN = "hidden"
"""Split of NWPU's test pictures, whose points were never published."""
_PLACES = pa.list_(pa.list_(pa.float64()))
_SCALARS = {"places": _PLACES, "count": pa.int64(), "weather": pa.string()}
_POINTS = ("points", "points_rbc")
_PICTURES = ("image_png", "image_jpg")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def is_crowds(path: Path, names: set[str]) -> bool:
    """Whether folder ``path`` with entries ``names`` has one of these layouts."""
    return _layout(path, names) is not None


def is_points_table(path: Path) -> bool:
    """Whether a Parquet file has pictures and points."""
    if path.suffix != ".parquet":
        return False
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return any(name in names for name in _POINTS) and any(name in names for name in _PICTURES)


def read_crowds(path: Path) -> Reading:
    """Open such a folder. The split ``val`` keeps its name. A picture without its file of points is a bad sample; a
    file of points that says something else than expected raises :class:`InputError` naming file and line."""
    layout = _layout(path, {entry.name for entry in path.iterdir()})
    readers = {"shanghaitech": _shanghaitech, "qnrf": _qnrf, "jhu": _jhu, "nwpu": _nwpu, "collated": _collated}
    if layout is None:
        raise InputError(f"{path} is laid out as no known set of pictures with points; see docs/multi-queue-moco.md")
    return Reading(str(path), {"image": None}, readers[layout](path), dict(_SCALARS))


def read_points_table(path: Path) -> Reading:
    """Open a Parquet table with a picture and points a row; ``split``, and ``image_id`` or ``name`` as id, if it has
    them. Where there is no split ``test``, ``val`` is it. Of blood pictures the red cells are counted."""
    names = pq.read_schema(path).names
    picture = next(name for name in _PICTURES if name in names)
    points = next(name for name in _POINTS if name in names)
    own = next((name for name in ("image_id", "name", "id") if name in names), None)
    splits = set(pq.read_table(path, columns=["split"])["split"].to_pylist()) if "split" in names else set()

    def rows() -> Iterator[Row | Bad]:
        number = 0
        columns = [name for name in (picture, points, own, "split" if splits else None) if name]
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=columns):
            for entry in batch.to_pylist():
                split = str(entry["split"]) if splits else "train"
                split = "test" if split == "val" and "test" not in splits else split
                places = _checked(entry[points] or [], f"{path} row {number + 1}")
                name = str(entry[own]) if own else f"{number:06d}"
                yield _row(name, split, entry[picture], f"{path.name}::{picture}[{number}]", places, NORMAL)
                number += 1

    return Reading(str(path), {"image": None}, rows(), dict(_SCALARS))


def _layout(path: Path, names: set[str]) -> str | None:
    if "train_data" in names or any((path / name / "train_data").is_dir() for name in names if name.startswith("part")):
        return "shanghaitech"
    if {"images", "jsons"} <= names:
        return "nwpu"
    for split in SPLITS:
        if split not in names:
            continue
        inner = path / split
        if (inner / "gt").is_dir() and (inner / "images").is_dir():
            return "jhu"
        if (inner / "jsons").is_dir() and (inner / "images").is_dir():
            return "collated"
    if any(name in names and any((path / name).glob("*_ann.mat")) for name in ("Train", "Test", "train", "test")):
        return "qnrf"
    return None


def _shanghaitech(path: Path) -> Iterator[Row | Bad]:
    parts = [path] if (path / "train_data").is_dir() else sorted(p for p in path.glob("part*") if p.is_dir())
    for part in parts:
        for split in ("train", "test"):
            folder = part / f"{split}_data"
            truths = next((folder / n for n in ("ground_truth", "ground-truth") if (folder / n).is_dir()), None)
            for image in _pictures(folder / "images"):
                name = f"{part.name}/{split}/{image.stem}"
                if truths is None:
                    raise InputError(f"{folder} has no folder ground_truth; copy it beside images")
                yield _from_mat(path, name, split, image, truths / f"GT_{image.stem}.mat", "image_info")


def _qnrf(path: Path) -> Iterator[Row | Bad]:
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        split = folder.name.lower()
        if split in SPLITS:
            for image in _pictures(folder):
                truth = image.with_name(f"{image.stem}_ann.mat")
                yield _from_mat(path, f"{split}/{image.stem}", split, image, truth, "annPoints")


def _from_mat(path: Path, name: str, split: str, image: Path, truth: Path, key: str) -> Row | Bad:
    """``key`` annPoints holds the points, image_info a cell with a structure whose field ``location`` does."""
    if not truth.is_file():
        return _missing(path, name, image, truth)
    try:
        found = loadmat(truth, simplify_cells=True)
    except Exception as error:  # scipy raises whatever a damaged file makes it stumble over
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{truth} is no readable .mat file ({reason}); copy it again") from error
    value = found.get(key)
    if key == "image_info":
        value = value.get("location") if isinstance(value, dict) else None
    if value is None:
        wanted = "image_info with a location" if key == "image_info" else key
        raise InputError(f"{truth} has no {wanted}; copy it again")
    return _file_row(path, name, split, image, _checked(value, str(truth)), NORMAL)


def _jhu(path: Path) -> Iterator[Row | Bad]:
    for split in SPLITS:
        folder = path / split
        if not folder.is_dir():
            continue
        weather = _jhu_weather(folder / "image_labels.txt")
        for image in _pictures(folder / "images"):
            truth, name = folder / "gt" / f"{image.stem}.txt", f"{split}/{image.stem}"
            if not truth.is_file():
                yield _missing(path, name, image, truth)
                continue
            if image.stem not in weather:
                raise InputError(f"{folder / 'image_labels.txt'} has no line for {image.stem}; copy the file again")
            places = []
            for number, line in enumerate(truth.read_text().splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    x, y = (float(word) for word in line.split()[:2])
                except ValueError as error:
                    raise InputError(f"{truth} line {number}: {line[:40]!r}; expected x y w h o b") from error
                places.append([x, y])
            yield _file_row(path, name, split, image, _checked(places, str(truth)), weather[image.stem])


def _jhu_weather(file: Path) -> dict[str, str]:
    """Picture to weather, from lines ``id,count,scene,weather,distractor``."""
    if not file.is_file():
        raise InputError(f"{file} is missing; it says which picture was taken in which weather")
    found = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 4 or not fields[3].isdecimal() or int(fields[3]) >= len(JHU_WEATHER):
            raise InputError(f"{file} line {number}: {line[:60]!r}; expected id,count,scene,weather 0 to 3,distractor")
        found[fields[0]] = JHU_WEATHER[int(fields[3])]
    return found


def _nwpu(path: Path) -> Iterator[Row | Bad]:
    lists = {split: path / f"{split}.txt" for split in SPLITS}
    missing = [str(file) for split, file in lists.items() if split != "test" and not file.is_file()]
    if missing:
        raise InputError(f"{', '.join(missing)} not found; NWPU-Crowd's lists say which picture is in which split")
    pictures = {image.stem: image for image in _pictures(path / "images")}
    for split, file in lists.items():
        if not file.is_file():
            continue
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            stem = line.split()[0].split(".")[0]
            if stem not in pictures:
                raise InputError(f"{file} line {number}: no picture {stem} in {path / 'images'}; copy it there")
            truth, name = path / "jsons" / f"{stem}.json", f"{split}/{stem}"
            if truth.is_file():
                yield _file_row(path, name, split, pictures[stem], _json(truth)[0], NORMAL)
            elif split == "test":
                yield _file_row(path, name, HIDDEN, pictures[stem], None, NORMAL)
            else:
                yield _missing(path, name, pictures[stem], truth)


def _collated(path: Path) -> Iterator[Row | Bad]:
    for split in SPLITS:
        folder = path / split
        for image in _pictures(folder / "images") if folder.is_dir() else []:
            truth, name = folder / "jsons" / f"{image.stem}.json", f"{split}/{image.stem}"
            if not truth.is_file():
                yield _missing(path, name, image, truth)
                continue
            places, weather = _json(truth)
            if not isinstance(weather, int) or not 0 <= weather < len(COLLATED_WEATHER):
                raise InputError(f"{truth}: weather {weather!r}; expected 0 to {len(COLLATED_WEATHER) - 1}")
            yield _file_row(path, name, split, image, places, COLLATED_WEATHER[weather])


def _json(file: Path) -> tuple[list[list[float]], Any]:
    """Points, and what is said of the weather (0 by default). The number of heads must be that of the points."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({' '.join(str(error).split())[:100]}); copy it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("points"), list):
        raise InputError(f"{file} has no list of points; expected an object with human_num and points")
    places, told = _checked(content["points"], str(file)), content.get("human_num")
    if told is not None and told != len(places):
        raise InputError(f"{file}: human_num is {told}, there are {len(places)} points; copy it again")
    return places, content.get("weather", 0)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; pictures are expected there")
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in _SUFFIXES)


def _checked(points: Iterable[Any], where: str) -> list[list[float]]:
    """Finite positions [[x, y], ...]; further columns are left out."""
    try:
        array = np.asarray(points, dtype=np.float64)
        array = array.reshape(-1, 2) if array.ndim < 2 else array
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the points are no list of x, y; write them as numbers") from error
    if not array.size:
        return []
    if array.ndim != 2 or array.shape[1] < 2 or not np.isfinite(array).all():
        raise InputError(f"{where}: points of shape {array.shape}; expected finite numbers [n, 2]")
    return [[float(x), float(y)] for x, y in array[:, :2]]


def _missing(path: Path, name: str, image: Path, truth: Path) -> Bad:
    return Bad(name, "image", str(image.relative_to(path)), f"{truth} with its points does not exist")


def _file_row(path: Path, name: str, split: str, image: Path, places: list[list[float]] | None, weather: str) -> Row:
    return _row(name, split, image.read_bytes(), str(image.relative_to(path)), places, weather)


def _row(name: str, split: str, data: bytes, origin: str, places: list[list[float]] | None, weather: str) -> Row:
    scalars = {"places": places, "count": None if places is None else len(places), "weather": weather}
    return Row(id=name, split=split, values={"image": data}, origins={"image": origin}, scalars=scalars)

"""Precomputed region features with captions: the layout that SCAN began and that NCR, PC2 and others keep.

A folder such as ``f30k_precomp``, ``coco_precomp``, ``cc152k_precomp`` or ``now100k_precomp`` holds, per split,

    {split}_ims.npy                       [images, regions, width]
    {split}_caps.txt                      one caption a line; five an image, or one
    {split}_caps.tsv                      image id, tab, caption; one an image
    {split}_caps_{bpe,bert,jieba}.txt     token ids, comma separated; one an image (Noise of Web)
    {split}_ids.txt, {split}_mask.npy     optional: ids in the source; 0 where a region is padding

and beside it ``vocab/FOLDER_vocab.json`` (Noise of Web: one for each way of splitting into tokens). Features are
never copied: a row of the Table refers to a row of the .npy file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consilience.data.features import NpyFile, npy_file, reference
from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError, unknown

FEATURES = "_ims.npy"
CODES = ("bpe", "bert", "jieba")
"""Ways in which the captions of Noise of Web were split into tokens."""
_ORDER = ("train", "dev", "test", "testall")
_NAMES = {"dev": "validation"}
_ALIASES = {"now100k_precomp": "h5100k_precomp", "h5100k_precomp": "now100k_precomp"}
_PER_IMAGE = 5
_DEV_IMAGES = 1000
_SAMPLE = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Split:
    name: str
    features: NpyFile
    captions: Path
    per_image: int
    used: int
    """Captions that become rows."""
    ids: Path | None
    ids_per_image: int
    mask: Path | None
    offset: int
    """Number of the first image, so that images of different splits have different numbers."""


def is_precomp(names: set[str]) -> bool:
    """Whether a folder with entries ``names`` is laid out like this."""
    return any(name.endswith(FEATURES) for name in names)


def read_precomp(path: Path, *, vocabulary: Path | None = None, captions: str | None = None) -> Reading:
    """Open such a folder: one row a *caption*, modalities ``image`` (regions) and ``text``.

    Scalars: ``group``, int64, is the image's number within its split plus the number of images in the splits
    before (train, dev, test, testall), so a noise file's numbers are groups of the training split;
    ``source_id``, text, where the folder has ids. ``dev`` becomes the split ``validation``, cut to its first
    1,000 images as the authors cut it, except for captions of ids.

    ``vocabulary``: the JSON file with ``word2idx``, otherwise looked for beside the folder and in it.
    ``captions``: which of ``bpe`` (default), ``bert`` and ``jieba`` to read, for captions of ids.

    Checked at opening: shapes, numbers of rows, and that the values are finite in a seeded sample of 256
    images a split; every value and token id is checked when the row is read. An empty caption stays a row, with
    a warning, because leaving it out would shift its neighbours: among ids it is the two markers, among words
    the row has no text. Raises :class:`InputError` naming file and line.
    """
    found = {entry.name.removesuffix(FEATURES) for entry in path.iterdir() if entry.name.endswith(FEATURES)}
    if not found:
        raise InputError(f"{path} has no file such as train{FEATURES}; give the folder with the feature files")
    order = [name for name in _ORDER if name in found] + sorted(found - set(_ORDER))
    suffix = _caption_suffix(path, order[0], captions)
    coded = suffix.startswith("_caps_")
    file = vocabulary or _vocabulary(path, suffix)
    if coded and file is None:
        raise InputError(
            f"{path}: no vocabulary {_vocabulary_names(path, suffix)[0]} in {path.parent / 'vocab'}; "
            "put it there or name it with --tokenizer ids:FILE"
        )
    splits: list[_Split] = []
    offset = 0
    for name in order:
        features = _features(path / f"{name}{FEATURES}", splits[0].features if splits else None)
        lines = path / f"{name}{suffix}"
        count, blank = _count(lines)
        per_image, count = _per_image(lines, features, count, blank)
        used = count if coded or name != "dev" else min(count, _DEV_IMAGES * per_image)
        ids, ids_per_image = _ids(path / f"{name}_ids.txt", len(features), count)
        mask = _mask(path / f"{name}_mask.npy", features)
        splits.append(_Split(name, features, lines, per_image, used, ids, ids_per_image, mask, offset))
        offset += len(features)
    sizes: dict[str, Any] = {"regions": features.shape[1], "region_width": features.shape[2]}
    if file is not None:
        sizes["tokenizer"] = f"{'ids' if coded else 'words'}:{file.absolute()}"
    named = suffix.endswith(".tsv") or any(split.ids is not None for split in splits)
    return Reading(
        str(path),
        {"image": Kind.REGIONS, "text": Kind.TEXT},
        (row for split in splits for row in _rows(split, named, coded)),
        {"group": pa.int64()} | ({"source_id": pa.string()} if named else {}),
        sizes=sizes,
    )


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file (UTF-8), ended by a line feed alone: captions may hold the other characters
    that Python takes for line ends. A last line needs no line feed. Raises :class:`InputError` naming the
    line that is no UTF-8."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path} line {number} is not UTF-8; convert the file") from error
                yield text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); every split needs its caption file") from error


def _rows(split: _Split, named: bool, coded: bool) -> Iterator[Row | Bad]:
    name = _NAMES.get(split.name, split.name)
    file = Path(split.features.path)
    tabbed = split.captions.suffix == ".tsv"
    ids = None if split.ids is None else lines_of(split.ids)
    source: str | None = None
    data = b""
    for number, text in zip(range(split.used), lines_of(split.captions)):
        image, place = divmod(number, split.per_image)
        if place == 0:
            data = reference(file, image, split.mask)
        if ids is not None and (place == 0 or split.ids_per_image > 1):
            source = next(ids).strip()
        if tabbed:
            own, text = _fields(text, split.captions, number)
            source = own if ids is None else source
        yield Row(
            id=f"{name}-{number:06d}",
            split=name,
            values={"image": data, "text": text.encode() if coded or text.strip() else None},
            origins={"image": f"{file.name}::row {image}", "text": f"{split.captions.name}::line {number + 1}"},
            scalars={"group": split.offset + image} | ({"source_id": source} if named else {}),
        )


def _caption_suffix(path: Path, split: str, captions: str | None) -> str:
    coded = [code for code in CODES if (path / f"{split}_caps_{code}.txt").is_file()]
    if coded:
        code = captions or (CODES[0] if CODES[0] in coded else coded[0])
        if code not in coded:
            raise unknown(f"kind of captions in {path}", code, coded)
        return f"_caps_{code}.txt"
    if captions is not None:
        raise InputError(f"{path} has one kind of captions; leave out the choice of {captions!r}")
    for suffix in ("_caps.txt", "_caps.tsv"):
        if (path / f"{split}{suffix}").is_file():
            return suffix
    raise InputError(f"{path} has {split}{FEATURES} but no {split}_caps.txt, .tsv or {split}_caps_bpe.txt beside it")


def _vocabulary_names(path: Path, suffix: str) -> list[str]:
    name = path.absolute().name
    tail = f"_vocab_{suffix.removeprefix('_caps_').removesuffix('.txt')}" if suffix.startswith("_caps_") else "_vocab"
    return [f"{known}{tail}.json" for known in (name, _ALIASES.get(name, name))]


def _vocabulary(path: Path, suffix: str) -> Path | None:
    folders = (path.absolute().parent / "vocab", path / "vocab")
    places = [folder / name for folder in folders for name in _vocabulary_names(path, suffix)]
    return next((place for place in places if place.is_file()), None)


def _features(path: Path, first: NpyFile | None) -> NpyFile:
    file = npy_file(path)
    if len(file.shape) != 3:
        raise InputError(f"{path} has shape {file.shape}; expected [images, regions, width]")
    if first is not None and file.shape[1:] != first.shape[1:]:
        raise InputError(f"{path} has {file.shape[1:]} an image but {first.path} {first.shape[1:]}; they must agree")
    chosen = np.random.default_rng(0).permutation(len(file))[:_SAMPLE]
    for row in np.sort(chosen).tolist():
        if not np.isfinite(file.row(row)).all():
            raise InputError(f"{path} row {row}: NaN or infinite feature values; download or compute it again")
    _log.info("%s: %d of %d images checked for finite values", path.name, len(chosen), len(file))
    return file


def _count(path: Path) -> tuple[int, int]:
    """Lines of ``path``, and how many of the last ones are empty."""
    count = blank = empty = 0
    for text in lines_of(path):
        filled = bool(text.strip())
        count += 1
        blank = 0 if filled else blank + 1
        empty += not filled
    if empty > blank:
        _log.warning("%s has %d empty lines; their rows are kept, without a caption", path, empty - blank)
    return count, blank


def _per_image(path: Path, features: NpyFile, count: int, blank: int) -> tuple[int, int]:
    """Captions an image, one or five, and how many lines are captions: empty lines too many at the end are
    none."""
    images = len(features)
    for captions in range(count, count - blank - 1, -1):
        for per_image in (1, _PER_IMAGE):
            if captions == per_image * images:
                return per_image, captions
    raise InputError(
        f"{path} has {count} captions but {features.path} {images} images; expected one or {_PER_IMAGE} an image"
    )


def _ids(path: Path, images: int, captions: int) -> tuple[Path | None, int]:
    if not path.is_file():
        return None, 1
    count, blank = _count(path)
    if count - blank not in (images, captions):
        raise InputError(f"{path} has {count - blank} ids for {images} images; write one a line")
    return path, captions // images if count - blank == captions else 1


def _mask(path: Path, features: NpyFile) -> Path | None:
    if not path.is_file():
        return None
    mask = npy_file(path)
    if mask.shape != features.shape[:2]:
        raise InputError(f"{path} has shape {mask.shape}; expected {features.shape[:2]}, one value a region")
    return path


def _fields(text: str, path: Path, number: int) -> tuple[str, str]:
    fields = text.split("\t")
    if len(fields) < 2:
        raise InputError(f"{path} line {number + 1} has no tab; expected image id, tab, caption")
    caption = fields[1]
    # a caption in quotation marks that were added by a CSV writer, which doubles those inside
    if len(caption) > 1 and caption[0] == caption[-1] == '"' and '"' not in caption[1:-1].replace('""', ""):
        caption = caption[1:-1].replace('""', '"')
    return fields[0], caption

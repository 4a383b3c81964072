"""Noise of Web (Duan et al., ACM MM 2024): the layout of its folder, written and checked.

100,000 web pages: features of 36 elements of a screenshot, and the page's meta-description as token ids in
three ways. The data themselves are not part of this library; :func:`check_now` looks at a copy,
:func:`write_split` writes others in the same layout (see :mod:`consilience.data.web_noise` and
:mod:`consilience.data.now_builder`). The reader is :mod:`consilience.data.importers.precomp`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.features import npy_file
from consilience.data.importers.precomp import CODES, FEATURES, lines_of, read_precomp
from consilience.data.text import tokenizer
from consilience.errors import InputError
from consilience.files import write_json

FOLDER = "now100k_precomp"
PUBLISHED = {"train": 98_000, "dev": 1_000, "test": 1_000}
"""Pairs of each split."""
SHAPE = (36, 768)
"""Elements of a page, width of their features."""
VOCABULARY = {"bpe": 10_000, "bert": 32_702, "jieba": 56_271}
"""Tokens of each way of splitting captions."""
CHECKSUMS = "checksums.json"
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Captions:
    """Statistics of the captions of one split under one way of splitting them; markers are not counted."""

    captions: int
    distinct: int
    shared: int
    """Captions that some other caption repeats word for word."""
    largest: list[int]
    """Sizes of the five largest groups of equal captions."""
    ceilings: dict[int, float]
    """Highest possible recall at K in percent, see :func:`recall_ceilings`."""
    rsum_ceiling: float
    """Of the sum over both directions."""
    median: float
    mean: float
    p90: float
    longest: int
    longer: dict[int, float]
    """Share in percent of captions longer than 36, 64 and 128 tokens."""
    short: int
    """Captions of at most five tokens."""


@dataclass(frozen=True)
class NowReport:
    """What :func:`check_now` found."""

    images: dict[str, int]
    shape: tuple[int, int]
    dtype: str
    vocabulary: dict[str, int]
    captions: dict[str, dict[str, Captions]]
    """Way of splitting, then split."""
    differences: list[str]
    """Where this is not the published release, one line each."""
    checksums: str
    """"match", "absent", or which files differ."""


def recall_ceilings(captions: Iterable[Hashable], ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """Highest recall at K, in percent, that any model can expect when captions repeat.

    m equal captions rank all pictures alike, so of their m pictures at most min(K, m) are found in expectation:
    the ceiling is the mean over captions of min(1, K / m).
    """
    counts = np.array(list(Counter(captions).values()), dtype=np.float64)
    if not counts.size:
        raise InputError("no captions, so recall has no ceiling; give at least one")
    return {k: float(100 * (counts * np.minimum(1, k / counts)).sum() / counts.sum()) for k in ranks}


def check_now(folder: Path) -> NowReport:
    """Compare a folder in the layout of Noise of Web with the published release, and describe its captions.

    Everything that the reader checks is an error here too; that counts differ from the release is listed in
    ``differences``. Every caption is read once for each way of splitting, features only by header and sample.
    There are no published checksums: ``checksums`` compares with what :func:`write_checksums` wrote.
    """
    folder = Path(folder)
    codes = [code for code in CODES if (folder / f"train_caps_{code}.txt").is_file()]
    if not codes:
        raise InputError(f"{folder} has no train_caps_bpe.txt, _bert or _jieba; give the folder {FOLDER}")
    files = {split: npy_file(folder / f"{split}{FEATURES}") for split in PUBLISHED}
    images = {split: len(file) for split, file in files.items()}
    shape = (files["train"].shape[1], files["train"].shape[2])
    differences = [f"{name}: {n} pages, published are {PUBLISHED[name]}" for name, n in images.items()]
    differences = [line for line, n in zip(differences, images.items()) if n[1] != PUBLISHED[n[0]]]
    if shape != SHAPE:
        differences.append(f"features are {shape} a page, published are {SHAPE}")
    differences += [f"no captions of {code}" for code in CODES if code not in codes]
    vocabulary: dict[str, int] = {}
    captions: dict[str, dict[str, Captions]] = {}
    for code in codes:
        coder = tokenizer(str(read_precomp(folder, captions=code).sizes["tokenizer"]))
        vocabulary[code] = coder.size
        if coder.size != VOCABULARY[code]:
            differences.append(f"{code} has {coder.size} tokens, published are {VOCABULARY[code]}")
        captions[code] = {}
        for split in PUBLISHED:
            path = folder / f"{split}_caps_{code}.txt"
            coded = []
            for number, text in zip(range(images[split]), lines_of(path)):
                try:
                    coded.append(tuple(coder.encode(text)[1:-1]))
                except InputError as error:
                    raise InputError(f"{path} line {number + 1}: {error}") from error
            captions[code][split] = describe_captions(coded)
    different = verify_checksums(folder)
    state = "absent" if different is None else ", ".join(different) or "match"
    return NowReport(images, shape, str(files["train"].dtype), vocabulary, captions, differences, state)


def describe_captions(captions: Sequence[Sequence[int]]) -> Captions:
    """Statistics of captions given as token ids without markers; :class:`InputError` when there are none."""
    texts = [tuple(caption) for caption in captions]
    ceilings = recall_ceilings(texts)
    counts = sorted(Counter(texts).values(), reverse=True)
    lengths = np.array([len(text) for text in texts])
    return Captions(
        captions=len(texts),
        distinct=len(counts),
        shared=sum(count for count in counts if count > 1),
        largest=[count for count in counts[:5] if count > 1],
        ceilings=ceilings,
        rsum_ceiling=2 * sum(ceilings.values()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        p90=float(np.quantile(lengths, 0.9)),
        longest=int(lengths.max()),
        longer={limit: float(100 * (lengths > limit).mean()) for limit in (36, 64, 128)},
        short=int((lengths <= 5).sum()),
    )


def checksums(folder: Path) -> dict[str, str]:
    """Name to sha256 of every file in ``folder``, read in pieces; the file of checksums is left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != CHECKSUMS and not path.name.startswith("."):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_checksums(folder: Path) -> dict[str, str]:
    """Record the present files in ``checksums.json`` beside them (atomically), so that later damage shows."""
    found = checksums(folder)
    write_json(folder / CHECKSUMS, found)
    return found


def verify_checksums(folder: Path) -> list[str] | None:
    """What differs from ``checksums.json``: "NAME changed", "NAME missing" or "NAME new"; ``None`` without that
    file. Raises :class:`InputError` when it cannot be read."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no list of checksums; remove it or write it again") from error
    present = checksums(folder)
    changed = [f"{name} changed" for name in known if name in present and present[name] != known[name]]
    missing = [f"{name} missing" for name in known if name not in present]
    return changed + missing + [f"{name} new" for name in present if name not in known]


@dataclass(frozen=True)
class Page:
    """One pair on its way into the layout."""

    features: np.ndarray
    """[r, width] with at most as many regions as the layout has."""
    captions: Mapping[str, Sequence[int]]
    """Way of splitting to token ids without markers."""
    pool_id: str


def write_split(
    folder: Path, split: str, count: int, shape: tuple[int, int], codes: Sequence[str], pages: Iterable[Page],
    dtype: type[np.floating[Any]] = np.float16,
) -> None:  # fmt: skip
    """Write one split, streaming: ``{split}_ims.npy`` [count, *shape] of ``dtype``, ``{split}_mask.npy`` uint8
    (0: padding), ``{split}_caps_{code}.txt`` and ``{split}_ids.txt``. Not atomic: write into a new folder.

    Raises :class:`InputError` when there are not ``count`` pages or one has too many regions or another width.
    """
    regions, width = shape
    number = 0
    with ExitStack() as stack:
        arrays = stack.enter_context((folder / f"{split}{FEATURES}").open("wb"))
        masks = stack.enter_context((folder / f"{split}_mask.npy").open("wb"))
        ids = stack.enter_context((folder / f"{split}_ids.txt").open("w", encoding="utf-8"))
        texts = {code: stack.enter_context((folder / f"{split}_caps_{code}.txt").open("w")) for code in codes}
        _header(arrays, (count, *shape), np.dtype(dtype))
        _header(masks, (count, regions), np.dtype(np.uint8))
        for number, page in enumerate(pages, start=1):  # noqa: B007
            present = len(page.features)
            if page.features.ndim != 2 or page.features.shape[1] != width or present > regions:
                raise InputError(f"page {page.pool_id}: features {page.features.shape}, expected at most {shape}")
            if not page.pool_id.isprintable():
                raise InputError(f"page id {page.pool_id!r} does not fit on a line; give printable ids")
            padded = np.zeros(shape, dtype)
            padded[:present] = page.features
            arrays.write(padded.tobytes())
            masks.write((np.arange(regions) < present).astype(np.uint8).tobytes())
            ids.write(f"{page.pool_id}\n")
            for code, file in texts.items():
                file.write(",".join(str(token) for token in page.captions[code]) + "\n")
    if number != count:
        raise InputError(f"split {split} has {number} pages, {count} were announced; give that many")


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)

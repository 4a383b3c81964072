"""A data set in the layout of Noise of Web from crawled pages of your own.

Pages go through a detector in shards, each written once, so an interrupted run goes on where it stopped. Then
tokenizers are fitted on the training captions and the layout is written as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from consilience.data.now import FOLDER, Page, checksums, write_split
from consilience.data.reading import npy_bytes
from consilience.data.screenshots import Detector, best_regions, description, letterbox
from consilience.data.text import MARKERS, fit_bpe, fit_words, words
from consilience.errors import InputError, unknown
from consilience.files import make_folder, new_folder, write_bytes, write_json, write_text

_SPLITS = ("train", "dev", "test")
_SECOND_LEVEL = ("co", "com", "net", "org", "gov", "edu", "ac", "go", "ne", "or")


@dataclass(frozen=True)
class Record:
    """A crawled page."""

    id: str
    """Unique; goes into ``{split}_ids.txt``."""
    html: str | Path
    screenshot: np.ndarray | Path
    """uint8 [H, W, 3], or a picture file."""
    url: str | None = None
    """Pages of one registered domain never sit in different splits; a page without url counts as its own."""


@dataclass(frozen=True)
class Fitted:
    """A way of splitting captions into tokens, fitted on training captions."""

    vocabulary: Mapping[str, Any]
    """``{word2idx, idx2word, idx}`` with the markers as ids 0..3."""
    encode: Callable[[str], list[int]]
    """Ids without markers."""


Fit = Callable[[Iterable[str]], Fitted]


@dataclass(frozen=True)
class Manifest:
    """What was built; also ``manifest.json``."""

    pairs: dict[str, int]
    shape: tuple[int, int]
    dtype: str
    seed: int
    rejected: dict[str, int]
    """Reason to number of pages left out."""
    vocabulary: dict[str, int]
    version: str
    sha256: dict[str, str]


def word_tokens(minimum: int = 4) -> Fit:
    """Words seen at least ``minimum`` times in training captions; others are unknown."""

    def fit(texts: Iterable[str]) -> Fitted:
        vocabulary = fit_words(texts, minimum)
        codes: dict[str, int] = vocabulary["word2idx"]
        return Fitted(vocabulary, lambda text: [codes.get(word, codes["<unk>"]) for word in words(text)])

    return fit


def byte_pairs(size: int = 10_000) -> Fit:
    """Byte-pair encoding with at most ``size`` tokens (Noise of Web: 10,000)."""

    def fit(texts: Iterable[str]) -> Fitted:
        from tokenizers import Tokenizer

        library = Tokenizer.from_str(fit_bpe(texts, size))
        library.encode_special_tokens = True
        codes = library.get_vocab()
        content = {"word2idx": codes, "idx2word": {str(i): w for w, i in codes.items()}, "idx": len(codes)}
        return Fitted(content, lambda text: list(library.encode(text, add_special_tokens=False).ids))

    return fit


def build_pairs(
    records: Iterable[Record],
    detector: Detector,
    tokenizers: Mapping[str, Fit],
    out: Path,
    *,
    regions: int = 36,
    held_out: float = 0.01,
    copies: int | None = None,
    shard: int = 500,
    seed: int = 0,
) -> Manifest:
    """Write ``out/now100k_precomp`` and ``out/vocab`` from ``records``; features are float16 [n, regions, d].

    ``tokenizers``: ``bpe``, ``bert`` or ``jieba`` (the names that readers of the layout know) to what is fitted,
    such as :func:`byte_pairs`. ``held_out``: expected share of domains for each of dev and test; the seeded
    choice depends on the domain's name alone. ``copies``: most pages kept of one caption. ``shard``: pages
    between two points from which an interrupted run goes on; give the same records in the same order again.
    The captions' text is kept beside the work in progress and removed at the end: the result holds ids only.

    Pages without description or readable screenshot are left out and counted in ``manifest.json``. Raises
    :class:`InputError` for an ``out`` that holds something already, doubled ids, a detector that changes its
    width, and no page in the training split.
    """
    out = Path(out)
    for name in tokenizers:
        if name not in ("bpe", "bert", "jieba"):
            raise unknown("kind of captions", name, ("bpe", "bert", "jieba"))
    if not tokenizers or not 0 <= held_out < 0.5 or shard < 1 or regions < 1:
        raise InputError("give at least one tokenizer, held_out from 0 to 0.5, and shard and regions of at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; remove it or choose another place")
    work = make_folder(out.with_name(f".{out.name}.work"))
    shards = _shards(records, detector, work, regions, shard)
    split_of, rejected = _plan(shards, held_out, copies, seed)
    counts = Counter(split_of.values())
    if not counts["train"]:
        raise InputError("no page with a description is in the training split; give more pages")
    width = _width(shards)

    def texts() -> Iterator[str]:
        return (text for name, text, _ in _pages(shards) if split_of.get(name) == "train")

    fitted = {code: fit(texts()) for code, fit in tokenizers.items()}
    with new_folder(out) as root:
        folder = root / FOLDER
        folder.mkdir()
        (root / "vocab").mkdir()
        for code, found in fitted.items():
            if any(found.vocabulary["word2idx"].get(name) != i for i, name in enumerate(MARKERS)):
                raise InputError(f"tokenizer {code}: ids 0..3 are not {' '.join(MARKERS)}; fit it with these first")
            write_json(root / "vocab" / f"{FOLDER}_vocab_{code}.json", found.vocabulary)
        for split in _SPLITS:
            if counts[split]:
                pages = (
                    Page(values, {code: found.encode(text) for code, found in fitted.items()}, name)
                    for name, text, values in _pages(shards)
                    if split_of.get(name) == split
                )
                write_split(folder, split, counts[split], (regions, width), tuple(fitted), pages)
        manifest = Manifest(
            {split: counts[split] for split in _SPLITS},
            (regions, width),
            "float16",
            seed,
            dict(rejected),
            {code: int(found.vocabulary["idx"]) for code, found in fitted.items()},
            version("consilience"),
            checksums(folder),
        )
        write_json(root / "manifest.json", asdict(manifest))
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def domain(url: str) -> str:
    """The registered domain of an address, by a rule of thumb: the last two parts of the host, or three when the
    last but one is a general one such as ``co`` in ``example.co.uk`` (no list of public suffixes is used)."""
    host = (urlsplit(url if "//" in url else f"//{url}").hostname or url).lower().rstrip(".")
    parts = host.split(".")
    if host.replace(".", "").isdigit() or ":" in host:
        return host
    count = 3 if len(parts) > 2 and parts[-2] in _SECOND_LEVEL and len(parts[-1]) == 2 else 2
    return ".".join(parts[-count:])


def _shards(records: Iterable[Record], detector: Detector, work: Path, regions: int, shard: int) -> list[Path]:
    """Detect every page, a shard at a time; shards that are there for the same records are kept."""
    found: list[Path] = []
    stream = iter(records)
    ids: set[str] = set()
    while chunk := list(islice(stream, shard)):
        for record in chunk:
            if record.id in ids:
                raise InputError(f"record {record.id!r} occurs twice; ids must be unique")
            ids.add(record.id)
        path = work / f"shard-{len(found):05d}.jsonl"
        key = hashlib.sha256(json.dumps([[r.id, r.url] for r in chunk] + [regions]).encode()).hexdigest()
        found.append(path)
        if path.is_file() and path.with_suffix(".npy").is_file() and path.read_text("utf-8").partition("\n")[0] == key:
            continue
        lines, values = [key], []
        for record in chunk:
            entry, features = _page(record, detector, regions)
            lines.append(json.dumps(entry, ensure_ascii=False))
            if features is not None:
                values.append(features)
        if len({features.shape[1] for features in values}) > 1:
            raise InputError("the detector gave features of different widths; it must keep to one")
        joined = np.concatenate(values) if values else np.zeros((0, 0), np.float16)
        write_bytes(path.with_suffix(".npy"), npy_bytes(joined))
        write_text(path, "\n".join(lines))  # last, so that its presence means the shard is whole
    return found


def _page(record: Record, detector: Detector, regions: int) -> tuple[dict[str, Any], np.ndarray | None]:
    entry: dict[str, Any] = {"id": record.id, "domain": domain(record.url) if record.url else f"\0{record.id}"}
    try:
        html = (
            record.html if isinstance(record.html, str) else record.html.read_text(encoding="utf-8", errors="replace")
        )
    except OSError:
        return entry | {"rejected": "unreadable HTML"}, None
    text = description(html)
    if text is None:
        return entry | {"rejected": "no description"}, None
    try:
        if isinstance(record.screenshot, Path):
            with Image.open(record.screenshot) as picture:
                screen = letterbox(np.asarray(picture.convert("RGB")))
        else:
            screen = letterbox(record.screenshot)
    except (OSError, InputError, Image.DecompressionBombError):
        return entry | {"rejected": "unreadable screenshot"}, None
    values = best_regions(*detector(screen), regions).astype(np.float16)
    if not len(values) or not np.isfinite(values).all():
        return entry | {"rejected": "no regions, or values beyond float16"}, None
    return entry | {"text": text, "regions": len(values)}, values


def _plan(shards: list[Path], held_out: float, copies: int | None, seed: int) -> tuple[dict[str, str], Counter[str]]:
    """Split of every page that is used, and why others are not."""
    split_of: dict[str, str] = {}
    rejected: Counter[str] = Counter()
    captions: Counter[bytes] = Counter()
    for entry in _entries(shards):
        if "rejected" in entry:
            rejected[entry["rejected"]] += 1
            continue
        digest = hashlib.blake2b(entry["text"].encode(), digest_size=16).digest()
        captions[digest] += 1
        if copies is not None and captions[digest] > copies:
            rejected["caption repeated too often"] += 1
            continue
        draw = hashlib.blake2b(f"{seed}\0{entry['domain']}".encode(), digest_size=8).digest()
        place = int.from_bytes(draw, "big") / 2**64
        split_of[entry["id"]] = "test" if place < held_out else "dev" if place < 2 * held_out else "train"
    return split_of, rejected


def _entries(shards: list[Path]) -> Iterator[dict[str, Any]]:
    for path in shards:
        for line in path.read_text(encoding="utf-8").split("\n")[1:]:
            yield json.loads(line)


def _pages(shards: list[Path]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Id, caption and features of every page that was not rejected."""
    for path in shards:
        values = np.load(path.with_suffix(".npy"))
        start = 0
        for entry in _entries([path]):
            if "text" in entry:
                yield entry["id"], entry["text"], values[start : start + entry["regions"]]
                start += entry["regions"]


def _width(shards: list[Path]) -> int:
    widths = {np.load(path.with_suffix(".npy"), mmap_mode="r").shape[1] for path in shards} - {0}
    if len(widths) != 1:
        raise InputError(f"the detector gave features of widths {sorted(widths)}; it must keep to one")
    return int(widths.pop())

"""Captions to token ids: tokenizers behind one spec string, and the fitting of new ones.

========================  ====================================================================================
spec                      what it is
========================  ====================================================================================
``bytes``                 UTF-8 bytes after NFC normalisation; needs no file and reads every language
``words:FILE.json``       words of a vocabulary file ``{word2idx, idx2word, idx}``, as VSE++, SCAN and NCR use
``ids:FILE.json``         the caption is a list of ids already; the vocabulary file gives size and markers
``bpe:FILE.json``         a file of the ``tokenizers`` library
``hf:FOLDER_OR_ID``       a tokenizer of ``transformers``, with its own special tokens
========================  ====================================================================================

Our own vocabularies begin with ``<pad> <start> <end> <unk>`` = 0, 1, 2, 3. A decoded caption is padded with
-1, which is no token of any vocabulary.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64

from consilience.errors import InputError, unknown

MARKERS = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)
SCHEMES = ("bytes", "words", "ids", "bpe", "hf")
FILE_SCHEMES = ("words", "ids", "bpe")
PADDING = -1
BYTES_SIZE = 256 + len(MARKERS)
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao; Burmese; Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)


class Tokenizer(Protocol):
    """What a spec stands for. Get one with :func:`tokenizer`; send the spec, not the object, to processes."""

    @property
    def size(self) -> int:
        """Rows an embedding needs: all ids are below it."""

    @property
    def end(self) -> int | None:
        """Id of the end marker, ``None`` where the vocabulary has none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` with start and end markers."""


def split_spec(spec: str) -> tuple[str, str]:
    """Scheme and file (or id) of a spec; :class:`InputError` when it is none. Reads no files."""
    scheme, colon, place = spec.partition(":")
    if scheme not in SCHEMES:
        raise unknown("tokenizer", scheme, SCHEMES)
    if bool(place) == (scheme == "bytes") or (scheme == "bytes" and colon):
        form = scheme if scheme == "bytes" else f"{scheme}:{'FOLDER_OR_ID' if scheme == 'hf' else 'FILE.json'}"
        raise InputError(f"tokenizer {spec!r} is incomplete or has too much; write it as {form}")
    return scheme, place


def resolve_spec(spec: str, folder: Path) -> str:
    """The spec with a relative file name counted from ``folder``; others stay as they are."""
    scheme, place = split_spec(spec)
    return f"{scheme}:{folder.absolute() / place}" if scheme in FILE_SCHEMES else spec


def tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of ``spec``, loaded once per process and again when its file was replaced.

    Raises :class:`InputError` for an unknown scheme, a missing file and a file of another content.
    """
    scheme, place = split_spec(spec)
    if scheme not in FILE_SCHEMES:
        return _load(scheme, place, (0, 0))
    try:
        stat = Path(place).stat()
    except OSError as error:
        raise InputError(
            f"tokenizer file {place} cannot be read ({error.strerror}); give {scheme}:FILE.json"
        ) from error
    return _load(scheme, place, (stat.st_mtime_ns, stat.st_size))


def decode_text(data: bytes, spec: str, max_tokens: int) -> Int64[np.ndarray, " {max_tokens}"]:
    """A caption (UTF-8 bytes) as int64 ids [max_tokens], then -1. A longer one is cut and keeps its end marker.

    Raises :class:`InputError` for bytes that are not UTF-8, captions without text (``ids:`` allows them: the
    markers alone) and ids outside the vocabulary.
    """
    coder = tokenizer(spec)
    ids = encode(data, spec, coder)
    if len(ids) > max_tokens:
        ids = [*ids[: max_tokens - 1], ids[-1] if ids[-1] == coder.end else ids[max_tokens - 1]]
    out = np.full(max_tokens, PADDING, dtype=np.int64)
    out[: len(ids)] = ids
    return out


def encode(data: bytes, spec: str, coder: Tokenizer) -> list[int]:
    """All ids of a caption, uncut; raises like :func:`decode_text`."""
    text = as_text(data)
    if not text.strip() and not spec.startswith("ids:"):
        raise InputError("nothing to read: the caption is empty; leave the cell out where there is none")
    ids = coder.encode(text)
    if not ids:
        raise InputError(f"the caption {text[:40]!r} has no tokens under {spec}; change the caption or the tokenizer")
    return ids


def as_text(data: bytes) -> str:
    """UTF-8 bytes as text; :class:`InputError` naming the first wrong byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise InputError(f"the caption is not UTF-8 ({what}); save it in that encoding") from error


def words(text: str) -> list[str]:
    """Lower-case words, numbers and punctuation marks of ``text``, in order, by rules of our own.

    English contractions are split before ``n't`` and ``'s 'm 'd 're 've 'll``; other inner apostrophes,
    hyphens and full stops stay inside a word (``l'eau``, ``well-known``, ``u.s``); numbers keep their
    separators; runs of full stops or hyphens are one mark, every other mark is its own. In scripts written
    without spaces (Han, kana, Thai, Lao, Burmese, Khmer) every character with its marks is a word. Published
    vocabularies were made with NLTK's Treebank rules, which differ in details such as quotation marks
    (```` and ''), ``cannot`` and ``gonna``; such words come out as unknown.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    return _pattern(text.isascii()).findall(text)


def fit_words(texts: Iterable[str], minimum: int = 4) -> dict[str, Any]:
    """A vocabulary of the words seen at least ``minimum`` times, as the content of a ``words:`` file.

    Ids 0..3 are the markers; the words follow by falling frequency, then in code point order. Raises
    :class:`InputError` for a minimum below 1 and when no word is that frequent.
    """
    if minimum < 1:
        raise InputError(f"minimum {minimum} for words of a vocabulary; give at least 1")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    kept = sorted((word for word, count in counts.items() if count >= minimum), key=lambda word: (-counts[word], word))
    if not kept:
        raise InputError(f"no word occurs {minimum} times in the captions; use tokenizer bytes, or more captions")
    names = [*MARKERS, *kept]
    return {
        "word2idx": {name: code for code, name in enumerate(names)},
        "idx2word": {str(code): name for code, name in enumerate(names)},
        "idx": len(names),
    }


def fit_bpe(texts: Iterable[str], size: int) -> str:
    """Byte-level byte-pair encoding with at most ``size`` tokens, as the content of a ``bpe:`` file.

    Ids 0..3 are the markers and the 256 bytes are always there, so no text is unknown. The same texts give
    the same content. Raises :class:`InputError` for a size below 260.
    """
    if size < BYTES_SIZE:
        raise InputError(f"a byte-pair vocabulary of {size} tokens; give at least {BYTES_SIZE} (256 bytes, 4 markers)")
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    library = Library(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(iter(texts), trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    return str(library.to_str())


class _Bytes:
    size = BYTES_SIZE
    end = END

    def encode(self, text: str) -> list[int]:
        return [START, *(byte + 4 for byte in unicodedata.normalize("NFC", text).encode()), END]


class _Words:
    def __init__(self, path: str) -> None:
        self._codes, _ = _vocabulary(path)
        self.size = max(len(self._codes), 1 + max(self._codes.values()))
        self._start, self.end, self._unknown = (_marker(self._codes, name, path) for name in MARKERS[1:])

    def encode(self, text: str) -> list[int]:
        known, other = self._codes, self._unknown
        return [self._start, *(known.get(word, other) for word in words(text)), self.end]


class _Ids:
    """Lines of ids: blank fields are skipped, and markers that older files carry are not added twice."""

    def __init__(self, path: str) -> None:
        codes, size = _vocabulary(path)
        if size is None:
            raise InputError(f"{path} has no field idx, the number of tokens; write it into the vocabulary file")
        self.size = size
        self._path = path
        self._start, self.end = (_marker(codes, name, path) for name in ("<start>", "<end>"))
        self._own = {name: name in codes for name in ("<start>", "<end>")}

    def encode(self, text: str) -> list[int]:
        line = text.strip()
        bracketed = line.startswith("[") and line.endswith("]")
        fields = [field.strip() for field in (line[1:-1] if bracketed else line).split(",")]
        try:
            ids = [int(field) for field in fields if field]
        except ValueError:
            raise InputError(f"caption {line[:60]!r} is no list of ids; expected whole numbers, such as 5,7") from None
        wrong = next((code for code in ids if not 0 <= code < self.size), None)
        if wrong is not None:
            raise InputError(f"token id {wrong} is outside the vocabulary {self._path}, which has {self.size} tokens")
        if not (ids and ids[0] == self._start and (bracketed or self._own["<start>"])):
            ids = [self._start, *ids]
        if not (len(ids) > 1 and ids[-1] == self.end and (bracketed or self._own["<end>"])):
            ids = [*ids, self.end]
        return ids


class _Bpe:
    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_file(path)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path} is no file of the tokenizers library ({reason}); fit or save one") from error
        # A caption is data: text that looks like a marker must not become one, and we cut and pad ourselves.
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        self.size = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        self._start, self.end = (self._library.token_to_id(name) for name in ("<start>", "<end>"))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text).ids
        if self._start is not None and ids[:1] != [self._start]:
            ids = [self._start, *ids]
        if self.end is not None and ids[-1:] != [self.end]:
            ids = [*ids, self.end]
        return ids


class _Transformers:
    def __init__(self, place: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._library: Any = AutoTokenizer.from_pretrained(place)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"no transformers tokenizer at {place!r} ({reason}); give a folder that holds one"
            ) from error
        self.size = 1 + max(self._library.get_vocab().values(), default=-1)
        last = self._library("x", verbose=False)["input_ids"][-1:]
        self.end: int | None = last[0] if last and last[0] in self._library.all_special_ids else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library(text, truncation=False, verbose=False)["input_ids"]
        return ids


@lru_cache(maxsize=16)
def _load(scheme: str, place: str, state: tuple[int, int]) -> Tokenizer:
    """``state``: time and size of the file, so that a replaced file is another entry of the cache."""
    if scheme == "bytes":
        return _Bytes()
    if scheme == "hf":
        return _Transformers(place)
    return _Words(place) if scheme == "words" else _Ids(place) if scheme == "ids" else _Bpe(place)


def _vocabulary(path: str) -> tuple[dict[str, int], int | None]:
    """``word2idx`` and ``idx`` of a vocabulary file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not readable JSON ({' '.join(str(error).split())[:120]}); download it again"
        ) from error
    codes = content.get("word2idx") if isinstance(content, dict) else None
    size = content.get("idx") if isinstance(content, dict) else None
    if not isinstance(codes, dict) or not codes:
        raise InputError(f"{path} has no word2idx; expected a vocabulary with word2idx, idx2word and idx")
    wrong = next((word for word, code in codes.items() if type(code) is not int or code < 0), None)
    if wrong is not None or not (size is None or (type(size) is int and size > 0)):
        what = f"word2idx[{wrong!r}]" if wrong is not None else "idx"
        raise InputError(f"{path}: {what} is no whole number from 0 on; write the vocabulary again")
    return codes, size


def _marker(codes: Mapping[str, int], name: str, path: str) -> int:
    """Id of a marker; one that is missing counts as ``<unk>``."""
    code = codes.get(name, codes.get("<unk>"))
    if code is None:
        raise InputError(f"{path} has neither {name} nor <unk> in word2idx; write the vocabulary again")
    return code


@lru_cache(maxsize=2)
def _pattern(ascii_only: bool) -> re.Pattern[str]:
    """The rules of :func:`words`. Those for ASCII find the same in it, in a fraction of the time."""
    # re has no class for combining marks, which belong to the letters before them (all Indic vowel signs).
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
    inner = r"\w" if ascii_only else rf"(?:[^\W{_SPACELESS}]|[{marks}])"
    no_n = r"[^\Wn]" if ascii_only else rf"[^\Wn{_SPACELESS}]|[{marks}]"
    clitic, negation = rf"'(?:s|m|d|re|ve|ll)(?!{inner})", rf"n't(?!{inner})"
    part = rf"(?:{no_n}|n(?!'t(?!{inner})))+"
    return re.compile(
        ("" if ascii_only else rf"[{_SPACELESS}][{marks}]*|") + rf"\d+(?:[.,:/]\d+)+(?!{inner})"
        rf"|{negation}|{clitic}"
        rf"|{part}(?:[-.]{part}|(?!{clitic})'{part})*"
        rf"|\.{{2,}}|-{{2,}}|\S"
    )

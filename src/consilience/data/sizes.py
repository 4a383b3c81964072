"""The sizes that decoded tensors of a source need, measured while its rows go by, and its tokenizer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from consilience.data.decode import prove
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.data.text import (
    BYTES_SIZE,
    FILE_SCHEMES,
    SCHEMES,
    as_text,
    encode,
    fit_bpe,
    fit_words,
    split_spec,
    tokenizer,
)
from consilience.errors import InputError, unknown

TOKENIZER_FILE = "tokenizer.json"
MOST_TOKENS = 128
_MEMORY = 1 << 24


class Sizes:
    """Collects :class:`consilience.data.decode.DecodeConfig` fields for one import.

    ``known``: what the source says itself, which is never measured. ``request``: a tokenizer's spec, or
    ``fit-words`` or ``fit-bpe:SIZE`` to fit one on the captions of split train. Captions wait for the fit in
    a temporary file, so that memory does not grow with the source.

    Raises :class:`InputError` for requests that are none of these and for a request without captions.
    """

    def __init__(self, kinds: Mapping[str, Kind | None], known: Mapping[str, Any], request: str | None) -> None:
        self._kinds = kinds
        self._known = dict(known)
        self._found: dict[str, int] = {}
        has_text = Kind.TEXT in kinds.values()
        if request is not None and not has_text:
            raise InputError(f"tokenizer {request!r} has no captions to read; name the text column, or leave it out")
        request = request or str(self._known.get("tokenizer", "bytes"))
        self._fit = request if request.startswith("fit-") else None
        if self._fit is not None:
            _fit_size(self._fit)
        elif has_text:
            tokenizer(request)  # a wrong file stops the import before its first row
        self.spec = "bytes" if self._fit is not None else request
        """The tokenizer under which captions are proved; ``bytes`` while another one is being fitted."""
        self._last: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._captions = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (closed by finish)
            max_size=_MEMORY, mode="w+", encoding="utf-8", newline="\n"
        )

    def prove(self, row: Row) -> dict[str, tuple[int, ...]]:
        """Decode every sample of ``row``; size of each. :class:`SampleError` naming the modality if one cannot."""
        sizes: dict[str, tuple[int, ...]] = {}
        for name, data in row.values.items():
            if data is None:
                continue
            last = self._last.get(name)
            if last is not None and last[0] == data:  # the captions of one picture follow one another
                sizes[name] = last[1]
                continue
            try:
                sizes[name] = prove(data, self._kinds[name] or Kind.RGB, row.origins.get(name, ""), self.spec)
            except InputError as error:
                raise SampleError(name, str(error)) from error
            self._last[name] = (data, sizes[name])
        return sizes

    def add(self, row: Row, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Count a row that is kept, with its sizes from :meth:`prove`."""
        for name, size in sizes.items():
            kind = self._kinds[name]
            if kind is Kind.TEXT:
                self._grow("max_tokens", size[0])
                if self._fit is not None:
                    line = json.dumps([row.split == "train", as_text(row.values[name] or b"")])
                    self._captions.write(f"{line}\n")
            elif kind is Kind.REGIONS:
                self._grow("regions", size[0])
                self._grow("region_width", size[1])
            elif kind is Kind.VECTOR:
                self._grow("vector_width", size[0])

    def finish(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Sizes for the Table, and files that belong into its folder (the tokenizer's, named relative)."""
        found: dict[str, Any] = dict(self._found)
        files: dict[str, str] = {}
        known = {name: value for name, value in self._known.items() if name != "tokenizer"}
        with self._captions:
            if Kind.TEXT in self._kinds.values():
                spec = self.spec
                if self._fit is not None:
                    spec, files[TOKENIZER_FILE], found["max_tokens"] = self._fitted()
                else:
                    spec, files = packed(spec)
                found["tokenizer"] = spec
            if "max_tokens" in found:
                found["max_tokens"] = max(2, min(found["max_tokens"], MOST_TOKENS))
        return found | known, files

    def _grow(self, name: str, size: int) -> None:
        self._found[name] = max(self._found.get(name, 0), size)

    def _texts(self, train_only: bool) -> Iterator[str]:
        self._captions.seek(0)
        for line in self._captions:
            train, text = json.loads(line)
            if train or not train_only:
                yield text

    def _fitted(self) -> tuple[str, str, int]:
        """Spec, content of the file, and tokens of the longest caption."""
        if next(self._texts(train_only=True), None) is None:
            raise InputError(f"{self._fit}: no caption is in split train; give a tokenizer, such as bytes")
        size = _fit_size(str(self._fit))
        if size is None:
            content = json.dumps(fit_words(self._texts(train_only=True)), ensure_ascii=False)
        else:
            content = fit_bpe(self._texts(train_only=True), size)
        scheme = "words" if size is None else "bpe"
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / TOKENIZER_FILE
            place.write_text(content, encoding="utf-8")
            spec = f"{scheme}:{place}"
            coder = tokenizer(spec)
            longest = max(len(encode(text.encode(), spec, coder)) for text in self._texts(train_only=False))
        return f"{scheme}:{TOKENIZER_FILE}", content, longest


def packed(spec: str) -> tuple[str, dict[str, str]]:
    """A tokenizer as a Table keeps it: the spec, with its file (if it has one) to be put into the folder."""
    scheme, place = split_spec(spec)
    if scheme in FILE_SCHEMES:
        return f"{scheme}:{TOKENIZER_FILE}", {TOKENIZER_FILE: Path(place).read_text(encoding="utf-8")}
    if scheme == "hf" and Path(place).is_dir():
        spec = f"hf:{Path(place).absolute()}"
    return spec, {}


class SampleError(InputError):
    """A sample that cannot be read, with the modality it belongs to."""

    def __init__(self, modality: str, reason: str) -> None:
        super().__init__(reason)
        self.modality = modality


def _fit_size(request: str) -> int | None:
    """Tokens of ``fit-bpe:SIZE``; ``None`` for ``fit-words``."""
    what, _, size = request.partition(":")
    if what not in ("fit-words", "fit-bpe"):
        raise unknown("tokenizer", request, (*SCHEMES, "fit-words", "fit-bpe"))
    if what == "fit-words" and not size and request == what:
        return None
    if what == "fit-words" or not size.isdecimal() or int(size) < BYTES_SIZE:
        raise InputError(f"tokenizer {request!r}; expected fit-words, or fit-bpe:SIZE with at least {BYTES_SIZE}")
    return int(size)

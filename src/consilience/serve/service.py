"""What the service does, without HTTP: search, embed, similar rows, shapes, the map."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.embedding.job import column_of
from consilience.embedding.layout import map_columns, missing_maps
from consilience.errors import InputError
from consilience.search.hits import Hit
from consilience.search.query import Query, fuse
from consilience.search.searcher import Options, Searcher
from consilience.serve.batching import Batcher
from consilience.serve.decoding import Decoder
from consilience.serve.items import SHOWN_KINDS, Catalogue, packed_shape, shown_origin, where_of
from consilience.serve.limits import Limits, Refusal
from consilience.serve.metrics import Metrics
from consilience.serve.requests import Asked, SearchBody, Upload
from consilience.serve.reviewing import Reviewing
from consilience.serve.uploads import fitting, identify

log = logging.getLogger("consilience.serve")

THREADS = 4
RERANK = 50
"""Candidates that may be re-ranked, as multiples of the largest k."""
REFRESH = 2.0
"""Seconds between two looks for a newer version of the Table."""


class Service:
    """Everything behind the routes. Built in any thread, started and closed in the event loop."""

    def __init__(self, searcher: Searcher, limits: Limits) -> None:
        self.searcher, self.limits, self.name = searcher, limits, searcher.name
        self.metrics = Metrics()
        self.catalogue = Catalogue(searcher.table)
        self.kinds = dict(searcher.run.method.modalities)
        self.encoder = searcher.fingerprint
        self.decoder = Decoder(limits, searcher.run.method.decode)
        self.batcher = Batcher(
            self._encode, batch=limits.batch, window=limits.window, queue=limits.queue, watch=self._encoded
        )
        self.ready = False
        self.map_state, self.map_error = "idle", ""
        self.review = Reviewing(searcher.table)
        self._pool = ThreadPoolExecutor(THREADS, "serve")
        self._decoding = ThreadPoolExecutor(limits.decoders, "decode")
        self._tasks: set[asyncio.Task[None]] = set()
        self._note_table()

    async def start(self) -> None:
        """Begin to encode and to watch the Table. The decoders start meanwhile: an upload waits for them, and the
        service is ready when they are there."""
        self.batcher.start()
        self._background(self._warm_up())
        self._background(self._watch_table())

    async def close(self) -> None:
        """Let what runs finish, settle the review's decisions, end threads and processes."""
        self.ready = False
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.batcher.close()
        self._pool.shutdown(wait=True)
        self._decoding.shutdown(wait=True)
        self.decoder.close()
        self.review.settle()
        self.searcher.close()

    async def work(self, call: Callable[..., Any], *values: Any) -> Any:
        """``call`` in a worker thread; bad input becomes a :class:`Refusal` 422."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call, *values)
        except InputError as error:
            raise Refusal(422, self.told(error), cause="input") from error

    def told(self, error: InputError) -> str:
        """An error's message without the folders of this machine."""
        text = str(error)
        for path in (self.searcher.table.path, self.searcher.run.path):
            for form in {str(path.resolve()), str(path)}:
                text = text.replace(form, path.name)
        return text[:500]

    # search

    async def search(self, asked: Asked) -> dict[str, Any]:
        """Answers of one request; see :class:`~consilience.serve.requests.SearchBody`."""
        body = asked.body
        self._check(body)
        try:
            self.searcher.check(self._options(body))
        except InputError as error:
            raise Refusal(422, self.told(error), cause="input") from error
        begun = time.perf_counter()
        vectors, weights, queries = await self.vectors(asked)
        if not queries:
            raise Refusal(422, "nothing to search with; send a file, text, or like", cause="parameters")
        encoded = time.perf_counter()
        hits = await self.work(self._search, np.stack(vectors), weights, body)
        done = time.perf_counter()
        self.metrics.stages.labels("search").observe(done - encoded)
        return {
            "queries": queries,
            "hits": hits,
            "by": body.by,
            "milliseconds": {"encode": round(1000 * (encoded - begun), 1), "search": round(1000 * (done - encoded), 1)},
            "version": self.catalogue.table.version,
        }

    async def vectors(self, asked: Asked) -> tuple[list[np.ndarray], list[float], list[dict[str, Any]]]:
        """Vectors, weights and descriptions of a request's queries, encoded together with those of other requests."""
        body = asked.body
        count = len(asked.uploads) + len(body.like) + (body.text is not None)
        if count > self.limits.files:
            raise Refusal(422, f"{count} queries; this server takes up to {self.limits.files}", cause="parameters")
        jobs: list[Callable[[], Awaitable[np.ndarray]]] = []  # begun when all of the request has been understood
        weights, queries = [], []
        for upload in asked.uploads:
            modality, form = self.modality_of(upload)
            jobs.append(partial(self._of_upload, upload, modality, form))
            weights.append(upload.weight)
            queries.append({"kind": "file", "modality": modality, "format": form, "weight": upload.weight})
        if body.text is not None:
            modality = self._text_modality(body.text)
            jobs.append(partial(self.batcher.encode, modality, body.text))
            weights.append(body.text_weight)
            queries.append({"kind": "text", "modality": modality, "weight": body.text_weight})
        for like in body.like:
            if like.modality not in self.searcher.modalities:
                raise Refusal(
                    422, self._unknown("modality", like.modality, self.searcher.modalities), cause="parameters"
                )
            jobs.append(partial(self.work, self.catalogue.vector, like.index, column_of(like.modality, self.name)))
            weights.append(like.weight)
            queries.append({"kind": "like", "modality": like.modality, "index": like.index, "weight": like.weight})
        try:
            return list(await asyncio.gather(*(job() for job in jobs))), weights, queries
        except InputError as error:
            raise Refusal(422, self.told(error), cause="input") from error

    async def similar(self, index: int, modality: str | None, body: SearchBody) -> dict[str, Any]:
        """Rows most like a stored one, which is left out."""
        self._check(body)
        catalogue = self.catalogue
        catalogue.offset(index)
        modality = modality or next(iter(self.searcher.modalities))
        if modality not in self.searcher.modalities:
            raise Refusal(422, self._unknown("modality", modality, self.searcher.modalities), cause="parameters")

        def find() -> list[dict[str, Any]]:
            catalogue.vector(index, column_of(modality, self.name))
            where = where_of(body.split, body.label)
            hits = self.searcher.similar(
                index, modality, into=body.into or None, k=body.k, where=where, standardise=body.standardise
            )
            return self._shown(hits, catalogue)

        return {"index": index, "modality": modality, "hits": await self.work(find), "version": catalogue.table.version}

    async def decoded_shape(self, upload: Upload) -> bytes:
        """What a viewer draws of an uploaded cloud or mesh."""
        form = identify(upload.data, upload.declared, upload.name)
        kinds = {name: kind for name, kind in self.kinds.items() if kind in SHOWN_KINDS}
        names = [upload.modality] if upload.modality in kinds else fitting(form, kinds)
        if not names:
            raise Refusal(415, f"{form} is no shape that this Table's run knows", cause="modality")
        kind = kinds[names[0]]
        shape = await asyncio.get_running_loop().run_in_executor(
            self._decoding, self.decoder.shape, upload.data, form, kind
        )
        return packed_shape(shape)

    def modality_of(self, upload: Upload) -> tuple[str, str]:
        """The modality that a file is a query of, and its format. Raises :class:`Refusal` 415 and 422."""
        if upload.modality is not None and upload.modality not in self.kinds:
            raise Refusal(422, self._unknown("modality", upload.modality, self.kinds), cause="parameters")
        if upload.modality is not None and self.kinds[upload.modality] is Kind.TEXT:
            raise Refusal(415, "a text query is words, not a file; send it as 'text'", cause="modality")
        form = identify(upload.data, upload.declared, upload.name)
        names = fitting(form, self.kinds)
        if upload.modality is not None:
            if upload.modality not in names:
                kind = self.kinds[upload.modality].value
                raise Refusal(415, f"{upload.modality} is {kind}, the bytes are {form}", cause="modality")
            return upload.modality, form
        if not names:
            raise Refusal(415, f"{form} files are of no modality of this Table's run", cause="modality")
        if len(names) > 1:
            raise Refusal(422, f"{form} fits {' and '.join(names)}; say which with 'modality'", cause="parameters")
        return names[0], form

    # the map

    def map(self, modality: str | None, limit: int) -> dict[str, Any]:
        """Places on the map, or how far making it has come; starts making it when it is missing."""
        names = [m for m in self.catalogue.table.modalities if column_of(m, self.name) in self.catalogue.table.columns]
        modality = modality or next(iter(names), None)
        if modality not in names:
            raise Refusal(404, self._unknown("modality with vectors", str(modality), names), cause="absent")
        found = self.catalogue.positions(modality, limit)
        if found is not None:
            return {"state": "ready", "modalities": names, **found}
        if self.map_state != "failed":
            return {"state": "making", "modalities": names, "modality": modality}
        return {"state": "failed", "modalities": names, "modality": modality, "error": self.map_error}

    def make_map(self) -> None:
        """Compute the map in the background, once."""
        if self.map_state == "idle":
            self.map_state = "making"
            self._background(self._make_map())

    # what the page needs to know first

    def facets(self) -> dict[str, Any]:
        """What can be asked with, what can be searched, and the values to filter by."""
        table, searchable = self.catalogue.table, self.searcher.modalities
        coded = self.searcher.coded
        return {
            "table": table.path.resolve().name if table.path.name != "table" else table.path.resolve().parent.name,
            "rows": len(self.catalogue),
            "version": table.version,
            "method": self.searcher.run.folder.config()["method"],
            "encoder": self.encoder,
            "modalities": {
                name: {"kind": kind.value, "searchable": name in searchable, "coded": name in coded}
                for name, kind in table.modalities.items()
            },
            "queries": {name: kind.value for name, kind in self.kinds.items()},
            "by": ["vector", *(["code"] if coded else [])],
            **self.catalogue.facets(),
            "review": self.review.counts(),
            "limits": {
                "upload_bytes": self.limits.upload_bytes,
                "k": self.limits.k,
                "characters": self.limits.characters,
            },
        }

    # inside

    def _check(self, body: SearchBody) -> None:
        if body.k > self.limits.k:
            raise Refusal(422, f"k {body.k}: this server gives up to {self.limits.k} results", cause="k")
        if body.rerank > RERANK * self.limits.k:
            raise Refusal(422, f"rerank {body.rerank}: up to {RERANK * self.limits.k} on this server", cause="k")
        for name in body.into:
            if name not in self.searcher.modalities:
                raise Refusal(422, self._unknown("modality", name, self.searcher.modalities), cause="parameters")

    def _text_modality(self, text: str) -> str:
        name = next((name for name, kind in self.kinds.items() if kind is Kind.TEXT), None)
        if name is None:
            raise Refusal(422, "this Table's run knows no text; send a file", cause="modality")
        if not text.strip():
            raise Refusal(422, "the text is empty; write some words", cause="parameters")
        if len(text) > self.limits.characters:
            reason = f"{len(text)} letters of text; this server takes up to {self.limits.characters}"
            raise Refusal(422, reason, cause="characters")
        return name

    async def _of_upload(self, upload: Upload, modality: str, form: str) -> np.ndarray:
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        kind = self.kinds[modality]
        array = await loop.run_in_executor(self._decoding, self.decoder.query, upload.data, form, kind)
        self.metrics.stages.labels("decode").observe(time.perf_counter() - begun)
        return await self.batcher.encode(modality, array)

    def _encode(self, modality: str, values: Sequence[Any]) -> np.ndarray:
        return self.searcher.encode([Query(modality, value) for value in values])

    def _encoded(self, modality: str, size: int, seconds: float) -> None:
        self.metrics.batches.labels(modality).observe(size)
        self.metrics.stages.labels("encode").observe(seconds)

    def _search(self, vectors: np.ndarray, weights: list[float], body: SearchBody) -> list[dict[str, Any]]:
        vector = vectors[0] if len(vectors) == 1 else fuse(vectors, weights)
        options = self._options(body)
        names = self.searcher.check(options)
        targets = [[name] for name in names] if body.each else [names]
        found = [self.searcher.answer(vector[None], replace(options, into=into))[0] for into in targets]
        return self._shown([hit for hits in found for hit in hits], self.catalogue)

    def _options(self, body: SearchBody) -> Options:
        where = where_of(body.split, body.label)
        return Options(body.into or None, body.k, where, body.by, body.rerank, body.asymmetric, body.standardise)

    def _shown(self, hits: Sequence[Hit], catalogue: Catalogue) -> list[dict[str, Any]]:
        texts = [name for name, kind in catalogue.table.modalities.items() if kind is Kind.TEXT]
        captions = {
            name: catalogue.captions([hit.index for hit in hits if hit.modality == name], name) for name in texts
        }
        shown = []
        for hit in hits:
            entry = {**asdict(hit), "origin": shown_origin(hit.origin or ""), "score": float(hit.score)}
            if hit.modality in captions:
                entry["text"] = captions[hit.modality].get(hit.index)
            shown.append(entry)
        return shown

    def _unknown(self, what: str, name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
        return f"no {what} {name[:40]!r}; there are {', '.join(known) or 'none'}"

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make_map(self) -> None:
        def make() -> None:
            table = Table.open(self.searcher.table.path)
            if missing_maps(table, name=self.name):
                map_columns(table, name=self.name)

        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, make)
            await asyncio.get_running_loop().run_in_executor(self._pool, self.refresh)
            self.map_state = "idle"
        except Exception as error:
            log.exception("the map could not be made")
            self.map_state, self.map_error = "failed", type(error).__name__

    async def _warm_up(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._decoding, self.decoder.start)
        except Refusal as error:
            log.error("%s", error)
        self.ready = True

    async def _watch_table(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await asyncio.get_running_loop().run_in_executor(self._pool, self.refresh)
            except Exception:  # the Table may be in the middle of a replacement; the version at hand goes on serving
                log.exception("the Table's newest version could not be read")

    def refresh(self) -> None:
        """Serve the newest version of the Table."""
        self.searcher.refresh()
        table = self.searcher.table
        if table.version == self.catalogue.table.version:
            return
        self.catalogue = Catalogue(table)
        self.review.reopen(table)
        self._note_table()

    def _note_table(self) -> None:
        self.metrics.rows.set(len(self.catalogue))
        self.metrics.version.set(self.catalogue.table.version)

"""The HTTP side: routes, their documentation, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from consilience.search.searcher import Searcher
from consilience.serve.guard import Guard, refusal_body
from consilience.serve.limits import Limits, Refusal
from consilience.serve.requests import DecisionBody, SearchBody, first_fault, read_json, read_search
from consilience.serve.service import Service

PAGE_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_SANDBOX = "default-src 'none'; sandbox"
_KEPT = {"cache-control": "private, max-age=60"}


@dataclass(frozen=True)
class Options:
    """How a server is set up."""

    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    """Asked of the API and the metrics; None: not asked."""
    hosts: frozenset[str] | None = frozenset({"127.0.0.1", "localhost", "::1"})
    """Names that the Host header may have; None: any."""


def create_app(searcher: Searcher, options: Options | None = None) -> FastAPI:
    """The application over a searcher: the API below ``/api``, health, metrics, and the page.

    It owns threads and decoder processes from its start-up to its shut-down (the ASGI lifespan).
    """
    options = options or Options()
    service = Service(searcher, options.limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="Consilience",
        summary="Search a Table across modalities",
        description='Errors are JSON: {"error": one line that says why, "status": the status}.',
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Guard, limits=options.limits, metrics=service.metrics, key=options.api_key, hosts=options.hosts)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    _search_routes(app, service)
    _item_routes(app, service)
    _review_routes(app, service)
    _state_routes(app, service, options)
    _page_routes(app)
    return app


def _search_routes(app: FastAPI, service: Service) -> None:
    @app.post("/api/search", openapi_extra=_body(SearchBody, files=True), tags=["search"])
    async def search(request: Request) -> dict[str, Any]:
        """Rows most like the queries: files, words and stored rows, fused when there are several."""
        return await service.search(await read_search(request, service.limits))

    @app.post("/api/embed", openapi_extra=_body(SearchBody, files=True), tags=["search"])
    async def embed(request: Request) -> dict[str, Any]:
        """The unit vectors of the queries, in the common space of all modalities."""
        vectors, _, queries = await service.vectors(await read_search(request, service.limits))
        if not queries:
            raise Refusal(422, "nothing to embed; send a file or text", cause="parameters")
        return {
            "encoder": service.encoder,
            "vectors": [{**query, "vector": vector.tolist()} for query, vector in zip(queries, vectors)],
        }

    @app.post("/api/geometry", openapi_extra=_body(SearchBody, files=True), tags=["search"])
    async def geometry_of_upload(request: Request) -> Response:
        """An uploaded cloud or mesh as the viewer draws it: PNTS or TRIS, a count (uint32), float32 numbers."""
        asked = await read_search(request, service.limits)
        if len(asked.uploads) != 1:
            raise Refusal(422, "send one file", cause="parameters")
        return Response(await service.decoded_shape(asked.uploads[0]), media_type="application/octet-stream")


def _item_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/items", tags=["items"])
    async def items(
        k: Annotated[int, Query(ge=1, le=200)] = 24,
        split: Annotated[list[str], Query()] = [],  # noqa: B006
        label: Annotated[list[str], Query()] = [],  # noqa: B006
        modality: str | None = None,
    ) -> dict[str, Any]:
        """A few rows that pass the filters, evenly chosen over the Table."""
        return {"items": await service.work(service.catalogue.some, k, split, label, modality)}

    @app.get("/api/items/{index}", tags=["items"])
    async def item(index: int) -> dict[str, Any]:
        """What is known of a row: id, split, label, modalities and where they came from, plain columns."""
        facts: dict[str, Any] = await service.work(service.catalogue.facts, index)
        return facts

    @app.get("/api/items/{index}/similar", tags=["items"])
    async def similar(
        index: int,
        modality: str | None = None,
        into: Annotated[list[str], Query()] = [],  # noqa: B006  (FastAPI copies it)
        k: Annotated[int, Query(ge=1)] = 24,
        split: Annotated[list[str], Query()] = [],  # noqa: B006
        label: Annotated[list[str], Query()] = [],  # noqa: B006
        standardise: bool = False,
    ) -> dict[str, Any]:
        """Rows most like a stored one."""
        body = SearchBody(into=into, k=k, split=split, label=label, standardise=standardise)
        return await service.similar(index, modality, body)

    @app.get("/api/items/{index}/{modality}", tags=["items"])
    async def raw(index: int, modality: str) -> Response:
        """The stored bytes of a sample."""
        found = await service.work(service.catalogue.raw, index, modality)
        place = "inline" if found.inline else "attachment"
        headers = {"content-disposition": f'{place}; filename="{found.name}"', "content-security-policy": _SANDBOX}
        return Response(found.content, media_type=found.media, headers={**headers, **_KEPT})

    @app.get("/api/items/{index}/{modality}/thumbnail", tags=["items"])
    async def thumbnail(index: int, modality: str) -> Response:
        """A small PNG of a sample."""
        content = await service.work(service.catalogue.thumbnail, index, modality)
        return Response(content, media_type="image/png", headers={"content-security-policy": _SANDBOX, **_KEPT})

    @app.get("/api/items/{index}/{modality}/text", tags=["items"])
    async def text(index: int, modality: str) -> dict[str, Any]:
        """The beginning of a caption."""
        return {"text": await service.work(service.catalogue.words, index, modality)}

    @app.get("/api/geometry/{index}/{modality}", tags=["items"])
    async def geometry(index: int, modality: str) -> Response:
        """A stored cloud or mesh as the viewer draws it: PNTS or TRIS, a count (uint32), float32 numbers."""
        content = await service.work(service.catalogue.shape, index, modality)
        return Response(content, media_type="application/octet-stream", headers=_KEPT)

    @app.get("/api/facets", tags=["items"])
    async def facets() -> dict[str, Any]:
        """What can be asked with, what can be searched, and the values to filter by."""
        found: dict[str, Any] = await service.work(service.facets)
        return found

    @app.get("/api/map", tags=["items"])
    async def places(modality: str | None = None, limit: Annotated[int, Query(ge=1)] = 5000) -> dict[str, Any]:
        """The 2-D map of the Table; state "making" while it is computed for the first time."""
        found: dict[str, Any] = await service.work(service.map, modality, limit)
        if found["state"] == "making":
            service.make_map()
        return found


def _review_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/review", tags=["review"])
    async def queue(
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
        open_only: bool = False,
    ) -> dict[str, Any]:
        """Suspicious pairs, the least trusted first."""
        found: dict[str, Any] = await service.work(service.review.queue, limit, offset, open_only)
        return found

    @app.get("/api/review/counts", tags=["review"])
    async def counts() -> dict[str, int]:
        """Decisions by kind, suspects in all and those still open."""
        found: dict[str, int] = await service.work(service.review.counts)
        return found

    @app.post("/api/review", openapi_extra=_body(DecisionBody), tags=["review"])
    async def decide(request: Request) -> dict[str, Any]:
        """Keep, drop or re-pair a row. The decision is on the disk when the answer arrives."""
        body: DecisionBody = await read_json(request, DecisionBody)
        service.catalogue.offset(body.index)
        found: dict[str, Any] = await service.work(service.review.decide, body.index, body.decision, body.partner)
        return found

    @app.post("/api/review/undo", tags=["review"])
    async def undo() -> dict[str, Any]:
        """Take the last decision back."""
        found: dict[str, Any] = await service.work(service.review.undo)
        return found


def _state_routes(app: FastAPI, service: Service, options: Options) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> dict[str, Any]:
        """Whether searches are answered; 503 before and after. ``key``: whether the API asks for one."""
        if not service.ready:
            raise Refusal(503, "not ready", cause="not_ready", retry_after=1)
        return {"status": "ready", "version": service.catalogue.table.version, "key": options.api_key is not None}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        service.metrics.queue.set(service.batcher.depth)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page_routes(app: FastAPI) -> None:
    folder = files("consilience.serve") / "page"
    page = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in PAGE_TYPES}

    def give(name: str) -> Response:
        if name not in page:
            raise Refusal(404, "there is nothing here", cause="absent")
        return Response(
            page[name], media_type=PAGE_TYPES[name.rpartition(".")[2]], headers={"cache-control": "no-cache"}
        )

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return give("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return give(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return give("icon.svg")


def _body(model: type[Any], files: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a body that is read by hand."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    inner = schema.pop("$defs", {})
    plain = _inlined(schema, inner)
    content: dict[str, Any] = {"application/json": {"schema": plain}}
    if files:
        properties = {**plain["properties"], "like": {"type": "array", "items": {"type": "string"}}}
        properties |= {
            "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "modality": {"type": "array", "items": {"type": "string"}},
            "weight": {"type": "array", "items": {"type": "number"}},
        }
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": properties}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references replaced by what they name."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {name: _inlined(value, definitions) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(value, definitions) for value in schema]
    return schema


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: "there is nothing here", 405: "this address takes another method"}.get(
        error.status_code, str(error.detail)
    )
    body, headers = refusal_body(Refusal(error.status_code, reason))
    return Response(body, error.status_code, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"error": first_fault(list(error.errors())), "status": 422}, 422)

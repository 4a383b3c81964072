"""From a request's body to queries and options: multipart with files, or JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from consilience.serve.limits import Limits, Refusal

_LISTS = ("into", "split", "label", "like")


class Like(BaseModel):
    """A stored sample as a query."""

    model_config = ConfigDict(extra="forbid")
    index: int
    modality: str
    weight: float = Field(default=1.0, gt=0, le=1000)


class SearchBody(BaseModel):
    """What to search for, and where. In a multipart request the same names are fields, ``like`` is written
    INDEX:MODALITY or INDEX:MODALITY:WEIGHT, and ``file`` (with ``modality`` and ``weight`` beside it, in the same
    order, both optional) adds files."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = Field(default=None, description="Words, for a Table whose run knows text")
    text_weight: float = Field(default=1.0, gt=0, le=1000)
    like: list[Like] = Field(default=[], description="Stored samples to search with")
    into: list[str] = Field(default=[], description="Modalities to search; all by default")
    k: int = Field(default=24, ge=1, description="Number of results")
    each: bool = Field(default=False, description="k results of each modality, instead of the k best of all of them")
    split: list[str] = Field(default=[], description="Splits that rows may be of")
    label: list[str] = Field(default=[], description="Labels that rows may have")
    by: Literal["vector", "code"] = Field(default="vector", description="Compare vectors, or binary codes")
    rerank: int = Field(default=0, ge=0, description="With codes: how many of the nearest to order by their vectors")
    asymmetric: bool = Field(default=False, description="With codes: do not round the query to a code")
    standardise: bool = Field(
        default=False, description="Scores as distances from a modality's mean, to compare modalities in one list"
    )


class DecisionBody(BaseModel):
    """What a person decided about a suspicious pair."""

    model_config = ConfigDict(extra="forbid")
    index: int
    decision: Literal["keep", "drop", "re-pair"]
    partner: int | None = Field(default=None, description="For re-pair: the row whose second modality fits")


@dataclass(frozen=True)
class Upload:
    """A file of a request."""

    data: bytes
    declared: str
    name: str
    modality: str | None
    weight: float


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    body: SearchBody
    uploads: list[Upload] = field(default_factory=list)


async def read_search(request: Request, limits: Limits) -> Asked:
    """The queries and options of a request. Raises :class:`Refusal` 415 for other media types, 422 with the reason."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json":
        return Asked(await read_json(request, SearchBody))
    if media not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Refusal(415, "send multipart/form-data or application/json", cause="media_type")
    async with request.form(
        max_files=limits.files, max_fields=200, max_part_size=max(4 * limits.characters, 4096)
    ) as form:
        uploads = await _uploads(form, limits)
        return Asked(_valid(SearchBody, _fields(form)), uploads)


async def read_json(request: Request, model: type[Any]) -> Any:
    """The body as an instance of ``model``. Raises :class:`Refusal` 415 and 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send application/json", cause="media_type")
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "the body is not JSON", cause="broken") from error
    if not isinstance(content, dict):
        raise Refusal(422, "the body is not a JSON object", cause="broken")
    return _valid(model, content)


def first_fault(errors: list[Any]) -> str:
    """One line of pydantic's findings: where and what."""
    place = ".".join(str(part) for part in errors[0]["loc"] if part not in ("query", "path", "body"))
    return f"{place}: {errors[0]['msg']}"[:300]


def _valid(model: type[Any], content: dict[str, Any]) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise Refusal(422, first_fault(error.errors()), cause="parameters") from error


def _fields(form: FormData) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name in form:
        if name in ("file", "modality", "weight"):
            continue
        values = form.getlist(name)
        if not all(isinstance(value, str) for value in values):
            raise Refusal(422, f"{name[:40]} is no file; send files as 'file' and words as 'text'", cause="parameters")
        if name in _LISTS:
            content[name] = [value for value in values if value != ""]
        elif len(values) > 1:
            raise Refusal(422, f"{name[:40]} is given {len(values)} times; give it once", cause="parameters")
        elif values[0] != "":
            content[name] = values[0]
    content["like"] = [_like(str(word)) for word in content.get("like", [])]
    return content


def _like(word: str) -> dict[str, Any]:
    index, _, rest = word.partition(":")
    modality, _, weight = rest.partition(":")
    return {"index": index, "modality": modality, **({"weight": weight} if weight else {})}


async def _uploads(form: FormData, limits: Limits) -> list[Upload]:
    files = form.getlist("file")
    modalities = _beside(form, "modality", len(files))
    weights = _beside(form, "weight", len(files))
    found = []
    for file, modality, weight in zip(files, modalities, weights, strict=True):
        if not isinstance(file, UploadFile):
            raise Refusal(422, "file is no file; send it with a file name, or words as 'text'", cause="parameters")
        try:
            share = float(weight or 1)
        except ValueError:
            share = float("nan")
        if not 0 < share <= 1000:
            raise Refusal(422, f"weight {weight[:20]!r}: give a number above 0, up to 1000", cause="parameters")
        data = await file.read(limits.upload_bytes + 1)
        found.append(Upload(data, file.content_type or "", file.filename or "", modality or None, share))
    return found


def _beside(form: FormData, name: str, count: int) -> list[str]:
    values = [value for value in form.getlist(name) if isinstance(value, str)]
    if values and len(values) != count:
        raise Refusal(422, f"{len(values)} of {name} for {count} files; give one for each, or none", cause="parameters")
    return values or [""] * count

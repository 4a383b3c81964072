"""Queries: what a user asks with, as unit vectors in the common space of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from consilience.data.decode import GEOMETRY_FORMATS, decode, format_of
from consilience.data.features import is_reference
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.schema import Batch, Kind
from consilience.errors import InputError, unknown
from consilience.training.api import Run

BATCH = 256  # queries encoded at once


@dataclass(frozen=True)
class Query:
    """One thing to ask with."""

    modality: str
    """A modality of the run."""
    value: str | Path | bytes | np.ndarray
    """The words of a text modality (``str``); a file (``Path``, and ``str`` where the modality is no text); the bytes
    of a file; or a decoded array, as :class:`~consilience.data.schema.Kind` says."""
    weight: float = 1.0
    """Its share when several queries are fused; above 0."""


def query_vector(run: Run, modality: str, query: str | Path | bytes | np.ndarray) -> np.ndarray:
    """The unit vector float32 [d] of a file, bytes, words, or a decoded array (as ``Kind`` says) of ``modality``."""
    vector: np.ndarray = encode(run, [Query(modality, query)])[0]
    return vector


def encode(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Unit vectors float32 [q, d] in the order of ``queries``, encoded in one batch a modality.

    Raises InputError naming the query for an unknown modality, a file that is missing or unreadable, and an array of
    another shape.
    """
    values = [_decoded(run, query) for query in queries]
    device = next(run.method.parameters()).device
    found: dict[int, np.ndarray] = {}
    for modality in dict.fromkeys(query.modality for query in queries):
        mine = [place for place, query in enumerate(queries) if query.modality == modality]
        for start in range(0, len(mine), BATCH):
            places = mine[start : start + BATCH]
            stacked = torch.from_numpy(np.stack([values[place] for place in places])).to(device)
            count = len(places)
            batch = Batch(
                torch.zeros(count, dtype=torch.int64),
                {modality: stacked},
                {modality: torch.ones(count, dtype=torch.bool)},
            )
            with torch.no_grad():
                z = F.normalize(run.method.encode(batch.to(device), modality).float(), dim=1)
            found |= dict(zip(places, z.cpu().numpy(), strict=True))
    return np.stack([found[place] for place in range(len(queries))])


def fuse(vectors: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The unit vector float32 [d] that ranks by the weighted mean of the cosines to ``vectors`` [q, d].

    Raises InputError when there is none, for weights that are not positive, and for vectors that cancel out.
    """
    shares = np.asarray(weights, dtype=np.float32)
    if not len(vectors):
        raise InputError("nothing to search with; give at least one query")
    if not (np.isfinite(shares) & (shares > 0)).all():
        raise InputError(
            f"weights {', '.join(f'{w:g}' for w in weights)}: each must be above 0; leave a query out instead"
        )
    if len(vectors) == 1:
        return np.asarray(vectors[0], dtype=np.float32)
    joined: np.ndarray = (shares / shares.sum()) @ vectors.astype(np.float32)
    length = float(np.linalg.norm(joined))
    if length < 1e-6:
        raise InputError("the queries point in opposite directions and cancel out; change their weights")
    return joined / np.float32(length)


def modality_of(run: Run, query: Path) -> str:
    """The run's modality that a query file belongs to, by its format; InputError when it fits none or several."""
    if not query.is_file():
        raise InputError(f"query {query} does not exist; give a file")
    form = format_of(query.read_bytes()[:512], str(query))
    kinds = run.method.modalities
    texts = [name for name, kind in kinds.items() if kind is Kind.TEXT]
    if form in IMAGE_FORMATS:
        fitting = [name for name, kind in kinds.items() if kind.is_image]
    elif not form and texts:
        fitting = texts
    else:
        shapes = (Kind.POINTS, Kind.MESH) if form in GEOMETRY_FORMATS else set(Kind) - {Kind.TEXT}
        fitting = [name for name, kind in kinds.items() if kind in shapes and not kind.is_image]
    if len(fitting) != 1:
        raise InputError(
            f"{query} fits {' and '.join(fitting) or 'no modality'} of this run; name one with --modality "
            f"({', '.join(run.method.modalities)})"
        )
    return fitting[0]


def _decoded(run: Run, query: Query) -> np.ndarray:
    modality, value = query.modality, query.value
    if modality not in run.method.modalities:
        raise unknown("modality of the run", modality, run.method.modalities)
    kind = run.method.modalities[modality]
    if not isinstance(value, np.ndarray):
        data, origin = _bytes_of(value, kind)
        if is_reference(data):  # a Table's own row may point into another file; a stranger's query may not
            raise InputError(f"query {origin or 'bytes'} refers to another file; give the features themselves")
        try:
            value = decode(data, kind, origin, run.method.decode)
        except InputError as error:
            raise InputError(f"query {origin or 'bytes'}: {error}") from error
    expected = run.method.decode.shape(kind)
    if value.shape != expected:
        raise InputError(f"query has shape {value.shape}; {modality} of this run is {expected}")
    return np.ascontiguousarray(value)


def _bytes_of(value: str | Path | bytes, kind: Kind) -> tuple[bytes, str]:
    """Contents and origin: the words of a text, the contents of a file, or the bytes themselves."""
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, str) and kind is Kind.TEXT:
        return value.encode(), repr(value[:40])
    if not Path(value).is_file():
        raise InputError(f"query {value} does not exist; give a file")
    return Path(value).read_bytes(), str(value)

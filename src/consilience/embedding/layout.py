"""A Table as a plane: two numbers a sample, near where vectors are near, for a person to wander in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from consilience.data.table import Table
from consilience.embedding.job import column_of
from consilience.errors import InputError, unknown

SAMPLE = 2000
"""Vectors that t-SNE is fitted on; the others are placed among them."""
LARGEST = 200_000
"""Vectors above which the plane is that of the two principal components: placing each would take too long."""
NEAREST = 5
_BLOCK = 2048


def map_column(modality: str, into: str = "map") -> str:
    """The Table's column with the places of a modality: float32 [2]."""
    return f"{into}_{modality}"


def layout(
    vectors: Float[np.ndarray, "n d"], *, sample: int = SAMPLE, largest: int = LARGEST, seed: int = 0
) -> Float32[np.ndarray, "n 2"]:
    """Places in [-1, 1]^2 of unit vectors, the same for the same input.

    Up to ``largest`` vectors: t-SNE (van der Maaten and Hinton, 2008) of an evenly chosen ``sample``; every other
    vector goes to the mean place of its :data:`NEAREST` neighbours there, weighted by a softmax of their
    cosines. More: the two principal components. Raises InputError for values that are not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise InputError("vectors with NaN or infinite values have no place on a map; embed them again")
    if len(vectors) < 5 or len(vectors) > largest:
        return _fit_box(_principal(vectors))
    chosen = np.unique(np.linspace(0, len(vectors) - 1, min(sample, len(vectors))).astype(np.int64))
    places = np.empty((len(vectors), 2), dtype=np.float32)
    anchors = _neighbour_embedding(vectors[chosen], seed)
    places[chosen] = anchors
    others = np.setdiff1d(np.arange(len(vectors)), chosen)
    k = min(NEAREST, len(chosen))
    for start in range(0, len(others), _BLOCK):
        block = others[start : start + _BLOCK]
        cosine = vectors[block] @ vectors[chosen].T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        height = np.take_along_axis(cosine, near, axis=1)
        weight = np.exp((height - height.max(1, keepdims=True)) * 20)
        places[block] = (anchors[near] * (weight / weight.sum(1, keepdims=True))[:, :, None]).sum(1)
    return _fit_box(places)


def map_columns(
    table: Table,
    *,
    modalities: Sequence[str] | None = None,
    name: str = "vector",
    into: str = "map",
    seed: int = 0,
) -> dict[str, str]:
    """Write places of the vectors ``name_<modality>`` into columns ``into_<modality>``; modality to column.

    All modalities share one plane, so that an image and the shape that belongs to it can be seen to lie together.
    Raises InputError where there are no vectors.
    """
    filled = [m for m in table.modalities if column_of(m, name) in table.columns]
    for modality in modalities or ():
        if modality not in filled:
            raise unknown("modality with vectors", modality, filled)
    chosen = list(modalities or filled)
    if not chosen:
        raise InputError(f"{table.path} holds no vectors; fill it: consilience index {table.path} --run RUN")
    keys, parts = {}, []
    for modality in chosen:
        column = column_of(modality, name)
        rows = table.take(table.select(f"{column} is not null"), ["index", column])
        keys[modality] = rows["index"].to_numpy()
        parts.append(rows[column].combine_chunks().flatten().to_numpy().reshape(len(rows), -1))
    places = layout(np.concatenate(parts), seed=seed)
    start = 0
    for modality in chosen:
        owner = table.provenance(column_of(modality, name)) or {}
        count = len(keys[modality])
        provenance = {"fingerprint": owner.get("fingerprint"), "of": column_of(modality, name), "seed": seed}
        column = map_column(modality, into)
        Table.open(table.path).write_columns(keys[modality], {column: places[start : start + count]}, provenance)
        start += count
    return {modality: map_column(modality, into) for modality in chosen}


def missing_maps(table: Table, *, name: str = "vector", into: str = "map") -> list[str]:
    """Modalities with vectors whose map is absent, was made of other vectors, or lacks rows."""
    found = []
    for modality in table.modalities:
        vectors, column = column_of(modality, name), map_column(modality, into)
        if vectors not in table.columns:
            continue
        owner = table.provenance(column) if column in table.columns else None
        made_of = (table.provenance(vectors) or {}).get("fingerprint")
        stale = owner is None or owner.get("fingerprint") != made_of
        if stale or len(table.select(f"{vectors} is not null and {column} is null")):
            found.append(modality)
    return found


def _neighbour_embedding(vectors: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    start = _principal(vectors)
    start = start / max(float(start.std()), 1e-9) * 1e-4
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    fit = TSNE(2, perplexity=perplexity, init=start, random_state=seed, learning_rate="auto", n_jobs=1, max_iter=600)
    return np.asarray(fit.fit_transform(vectors), dtype=np.float32)


def _principal(vectors: np.ndarray) -> np.ndarray:
    """The two principal components, signs fixed so that the same vectors always give the same plane."""
    if not len(vectors):
        return np.zeros((0, 2), dtype=np.float32)
    middle = vectors.mean(0, dtype=np.float64)
    spread = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] - middle
        spread += block.T @ block
    axes = np.linalg.eigh(spread)[1][:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
    places = ((vectors - middle) @ axes).astype(np.float32)
    return np.asarray(np.pad(places, ((0, 0), (0, 2 - places.shape[1]))))


def _fit_box(places: np.ndarray) -> np.ndarray:
    """Centred and scaled, both axes alike, so that the farthest place touches the edge of [-1, 1]^2."""
    if not len(places):
        return places.astype(np.float32)
    low, high = places.min(0), places.max(0)
    return np.asarray((places - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9), dtype=np.float32)

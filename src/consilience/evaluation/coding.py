"""Judge a run by its binary codes: queries of one split against the codes of another, ranked by Hamming distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from consilience.evaluation.hamming import HammingResult, asymmetric_retrieval, hamming_retrieval, stored_order_ap
from consilience.evaluation.ordering import same_label
from consilience.evaluation.retrieval import retrieval
from consilience.evaluation.stats import bootstrap_mean
from consilience.heads.codes import distances, pack
from consilience.methods.base import Encoded
from consilience.training.api import Run
from consilience.training.hashing import Hasher, Way, fit_hasher, identity_hasher
from consilience.training.passes import encode_rows

NEAR = 2
"""Radius of "precision within radius", the customary one of hash look-ups."""


@dataclass(frozen=True)
class CodeOptions:
    """How vectors become codes, and what is searched."""

    bits: int | None = None
    """Length; None: the codes that the method has learnt itself, none of a method without."""
    by: Way = "itq"
    """How vectors are hashed into ``bits`` (see :mod:`consilience.training.hashing`)."""
    database: str = "split = 'train'"
    """SQL filter of the rows that are searched; a hasher is fitted on them, without labels."""


def code_figures(run: Run, queries: Encoded, labels: Tensor, options: CodeOptions, seed: int = 0) -> dict[str, Any]:
    """Retrieval by class through codes, every direction between two modalities of the ``queries`` and the database.

    ``labels``: int64 [n] of the queries, negative where there is none. ``map``: expected value over tie orders.
    ``asymmetric_map``: real queries against stored codes. ``real_map``: cosine of the vectors themselves, on the same
    rows. ``stored_order_map``: with ties in database order, as published programs report.
    """
    table = run.table
    rows = table.select(options.database)
    device = next(run.method.parameters()).device
    database = encode_rows(run.method, table, rows, device)
    held = torch.from_numpy(table.labels(options.database)[0])
    full = torch.stack([database.present[name] for name in database.vectors]).all(0).cpu().numpy()
    hasher = _hasher(run, {name: _unit(z)[full] for name, z in database.vectors.items()}, options, seed)
    found: dict[str, Any] = {
        "bits": hasher.bits,
        "by": hasher.by if options.bits is not None else "the method",
        "database": options.database,
        "database_rows": len(rows),
        "directions": {},
    }
    asked = {name: hasher.project(_unit(z)) for name, z in queries.vectors.items()}
    stored = {name: hasher.project(_unit(z)) for name, z in database.vectors.items()}
    there = {name: mask.cpu() for name, mask in database.present.items()}
    for a in queries.vectors:
        for b in database.vectors:
            if a == b:
                continue
            ask, keep = queries.present[a].cpu() & (labels >= 0), there[b] & (held >= 0)
            real = torch.from_numpy(asked[a])[ask]
            own, other = pack(real), pack(torch.from_numpy(stored[b])[keep])
            result = hamming_retrieval(own, other, labels[ask], held[keep])
            asymmetric = asymmetric_retrieval(real, other, labels[ask], held[keep])
            cosine = retrieval(queries.vectors[a].cpu()[ask], database.vectors[b].cpu()[keep], labels[ask], held[keep])
            found["directions"][f"{a}->{b}"] = {
                **_direction(result),
                "asymmetric_map": asymmetric.map,
                "real_map": cosine.map,
                "stored_order_map": _stored_order_map(own, other, labels[ask], held[keep]),
            }
    ways = found["directions"].values()
    for name in ("map", "asymmetric_map", "real_map"):
        found[f"mean_{name}"] = float(np.mean([way[name] for way in ways]))
    signs = [np.where(real[there[name].numpy()] >= 0, 1.0, -1.0) for name, real in stored.items()]
    found["bit_bias"] = float(np.mean([np.abs(one.mean(0)).mean() for one in signs]))
    return found


def _hasher(run: Run, vectors: dict[str, np.ndarray], options: CodeOptions, seed: int) -> Hasher:
    if options.bits is None:
        return identity_hasher(next(iter(vectors.values())).shape[1])
    return fit_hasher(vectors, options.bits, options.by, seed)


def _stored_order_map(queries: Tensor, database: Tensor, labels: Tensor, held: Tensor) -> float:
    """Mean of :func:`stored_order_ap` over the queries that have a relevant item, some at a time."""
    values = [
        stored_order_ap(distances(queries[part], database), same_label(labels[part], held))
        for part in (slice(start, start + 256) for start in range(0, len(queries), 256))
    ]
    return float(torch.cat(values).nanmean())


def _unit(z: Tensor) -> np.ndarray:
    out: np.ndarray = F.normalize(z.float(), dim=1).cpu().numpy()
    return out


def _direction(result: HammingResult) -> dict[str, Any]:
    interval = bootstrap_mean(result.ap)
    return {
        "map": result.map,
        "ci95": [interval.low, interval.high],
        "map_at_k": {str(cut): float(value.mean()) for cut, value in result.ap_at_k.items()},
        "precision_at_k": {str(cut): float(value.mean()) for cut, value in result.precision_at_k.items()},
        "precision_within": {str(NEAR): float(result.precision_within[NEAR])},
        "curve": {
            "radius": list(range(result.bits + 1)),
            "precision": result.precision_within.tolist(),
            "recall": result.recall_within.tolist(),
            "found": result.found_within.tolist(),
        },
        "skipped": result.skipped,
    }

"""Retrieval by Hamming distance, exact under ties, from counts instead of sorted lists.

Codes of K bits have K + 1 distances, so ties dominate a ranking. All figures are expected values over uniformly random
orders of tied items (McSherry & Najork, ECIR 2008); they follow from two histograms a query, how many items and how
many relevant ones lie at each distance. Where n items are tied, r of them relevant, with N items and R0 relevant ones
nearer,

    E[sum of prec * rel] = (r / n) sum_{j=1..n} [R0 + 1 + (j - 1) (r - 1) / (n - 1)] / (N + j),

which harmonic numbers sum in closed form. The cost is O(queries x (database + K)), without a sort.

Names. R relevant items; AP divides by R, AP@k by min(R, k) (some published programs divide by the hits in the top k, or
by k itself, which gives other numbers). A query without a relevant item is left out and counted in ``skipped``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from consilience.errors import InputError
from consilience.evaluation.ordering import expected_gain, harmonic_numbers, same_label
from consilience.evaluation.retrieval import RetrievalResult, retrieval_of_scores
from consilience.heads.codes import distances, unpack

BLOCK_BYTES = 64 << 20
"""Ceiling of the working memory of one block of queries, about, in bytes."""
_PER_ITEM = 24  # bytes of distance, relevance and counting keys an item of a block


@dataclass(frozen=True)
class HammingResult:
    """Metrics of each query that has a relevant item, float64 [q]."""

    bits: int
    """K."""
    skipped: int
    """Queries without a relevant item."""
    asked: Bool[Tensor, " all"]
    """Which queries are counted below."""
    ap: Float64[Tensor, " q"]
    """Expected AP over the whole database."""
    ap_at_k: dict[int, Float64[Tensor, " q"]]
    """Expected AP@k, denominator min(R, k)."""
    precision_at_k: dict[int, Float64[Tensor, " q"]]
    """Expected share of relevant items among the first k."""
    precision_within: Float64[Tensor, " radii"]
    """Mean precision of all items within radius 0..K (a query that finds nothing counts as 0)."""
    recall_within: Float64[Tensor, " radii"]
    """Mean recall within radius 0..K: with ``precision_within`` the precision-recall curve."""
    found_within: Float64[Tensor, " radii"]
    """Mean number of items within radius 0..K."""

    @property
    def map(self) -> float:
        """Mean of the expected AP."""
        return float(self.ap.mean())


@torch.no_grad()
def hamming_retrieval(
    queries: UInt8[Tensor, "q b"],
    database: UInt8[Tensor, "n b"],
    query_labels: Int64[Tensor, " q"],
    database_labels: Int64[Tensor, " n"],
    *,
    k: Sequence[int] = (50, 100),
    block: int | None = None,
) -> HammingResult:
    """Rank the packed codes of the ``database`` for every query; an item is relevant when its label is the query's.

    Negative labels are relevant to nothing. ``block``: queries at a time; by default as many as
    :data:`BLOCK_BYTES` holds. Raises InputError for shapes that do not fit, cut-offs below 1, and when no query has a
    relevant item.
    """
    _check(queries, database, query_labels, database_labels, k)
    bits, size = 8 * queries.shape[1], len(database)
    block = block or max(1, BLOCK_BYTES // (size * _PER_ITEM))
    items, hits = [], []
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        relevant = same_label(query_labels[part], database_labels) & (query_labels[part] >= 0)[:, None]
        counted = _histograms(distances(queries[part], database), relevant, bits)
        items.append(counted[0])
        hits.append(counted[1])
    n, r = torch.cat(items), torch.cat(hits)
    asked = r.sum(1) > 0
    if not bool(asked.any()):
        raise InputError("no query has a relevant item in the database; check the labels and the two splits")
    n, r = n[asked], r[asked]
    total = r.sum(1).double()
    nearer, before = n.cumsum(1) - n, r.cumsum(1) - r
    harmonic = harmonic_numbers(size, queries.device)
    filled = n.clamp_min(1)

    def gain(cut: int) -> Tensor:
        slots = torch.minimum((cut - nearer).clamp_min(0), n)
        return expected_gain(nearer, filled, r, before, slots, harmonic).sum(1)

    def hits_to(cut: int) -> Tensor:
        slots = torch.minimum((cut - nearer).clamp_min(0), n)
        return (r.double() * slots / filled).sum(1)

    within, right = n.cumsum(1).double(), r.cumsum(1).double()
    return HammingResult(
        bits,
        int((~asked).sum()),
        asked,
        gain(size) / total,
        {cut: gain(cut) / total.clamp_max(cut) for cut in k},
        {cut: hits_to(cut) / cut for cut in k},
        (right / within.clamp_min(1)).mean(0),
        (right / total[:, None]).mean(0),
        within.mean(0),
    )


@torch.no_grad()
def asymmetric_retrieval(
    queries: Float[Tensor, "q k"],
    database: UInt8[Tensor, "n b"],
    query_labels: Int64[Tensor, " q"],
    database_labels: Int64[Tensor, " n"],
    *,
    k: Sequence[int] = (50, 100),
) -> RetrievalResult:
    """Real queries against packed codes by inner product u . b: no more storage than Hamming ranking, hardly a tie.

    Every query counts, those without a relevant item with AP 0. Errors as of :func:`hamming_retrieval`.
    """
    if queries.shape[1] != 8 * database.shape[1]:
        raise InputError(f"queries of {queries.shape[1]} numbers against codes of {8 * database.shape[1]} bits")
    _check(database[:0].new_zeros(len(queries), database.shape[1]), database, query_labels, database_labels, k)
    signs = unpack(database).T
    block = max(1, BLOCK_BYTES // (len(database) * _PER_ITEM))
    parts = []
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        relevant = same_label(query_labels[part], database_labels) & (query_labels[part] >= 0)[:, None]
        parts.append(retrieval_of_scores(queries[part].float() @ signs, relevant, k=k))
    return RetrievalResult.join(parts)


def stored_order_ap(distance: Shaped[Tensor, "q n"], relevant: Bool[Tensor, "q n"]) -> Float64[Tensor, " q"]:
    """AP when ties are broken by the place in the database, as programs with a stable sort report it; for comparison
    with published figures only: sorting the database by class moves it by several points. R = 0 gives NaN."""
    order = torch.argsort(distance, dim=1, stable=True)
    rel = relevant.gather(1, order).double()
    rank = torch.arange(1, rel.shape[1] + 1, device=rel.device, dtype=torch.float64)
    return (rel * rel.cumsum(1) / rank).sum(1) / rel.sum(1)


def _histograms(distance: Tensor, relevant: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Items and relevant items at distance 0..bits of each query, int64 [b, bits + 1]."""
    rows = len(distance)
    keys = distance.long() + torch.arange(rows, device=distance.device)[:, None] * (bits + 1)
    cells = rows * (bits + 1)
    n = torch.bincount(keys.flatten(), minlength=cells)
    r = torch.bincount(keys[relevant], minlength=cells)
    return n.view(rows, -1), r.view(rows, -1)


def _check(queries: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor, k: Sequence[int]) -> None:
    for name, codes, labels in (("queries", queries, query_labels), ("database", database, database_labels)):
        if codes.ndim != 2 or 0 in codes.shape or codes.dtype != torch.uint8:
            raise InputError(
                f"{name} are {codes.dtype} {list(codes.shape)}: expected packed codes, uint8 [n, bits / 8]"
            )
        if labels.shape != codes.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"{name} have {len(codes)} rows but labels {labels.dtype} {list(labels.shape)}: "
                "expected one whole number a row"
            )
    if queries.shape[1] != database.shape[1]:
        raise InputError(f"queries have {8 * queries.shape[1]} bits, the database {8 * database.shape[1]}")
    if not k or min(k) < 1:
        raise InputError(f"k is {list(k)}: expected whole numbers of at least 1")

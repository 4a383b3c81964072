"""Full-gallery retrieval metrics, exact under tied scores, streamed over blocks of queries.

Every metric is kept per query, depends only on the order of the scores, and is the exact mean over all
equally likely orders of tied gallery items (the idea of McSherry & Najork, "Computing Information Retrieval
Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008, carried on to cut-offs, hit rate
and partner rank). Scores that the matrix product rounds apart are not tied.

Names. R relevant gallery items, rel_j in {0, 1} at rank j, P@j the share of relevant items in the top j:

* AP          sum_{j <= G} rel_j P@j / R          (R = 0 counts as 0; RoMo, IEEE TIP 2024, uses its mean)
* AP@R        sum_{j <= R} rel_j P@j / R
* AP@k        sum_{j <= k} rel_j P@j / min(R, k)
* AP@k, retrieved convention: the same sum / number of relevant items in the top k (usual in hashing)
* P@k         relevant items in the top k / k, also where the gallery is smaller than k
* recall@k    hit rate: 1 when the top k hold any relevant item
* partner recall@k: 1 when the top k hold the query's own counterpart

How it is fast: :mod:`consilience.evaluation.ordering` turns a block of scores into sorted integers that carry
relevance along; the sums run over relevant items only, and mixed ties are corrected by closed forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from consilience.errors import InputError
from consilience.evaluation.ordering import (
    Ties,
    first_at_least,
    harmonic_numbers,
    pack,
    relevant_positions,
    same_label,
    sort_rows,
)

Metric = Literal["cosine", "dot", "euclidean"]
METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclidean")
BLOCK_BYTES = 32 << 20
"""Ceiling of the working memory of one block of queries, in bytes."""
IN_CACHE = 2 << 20
"""Bytes of given scores that are ranked at a time."""


@dataclass(frozen=True)
class RetrievalResult:
    """Metrics of each query, float64 [q], defined in the module's docstring; properties hold their means."""

    relevant: Int64[Tensor, " q"]
    """R: relevant gallery items of each query, without the excluded one."""
    ap: Float64[Tensor, " q"]
    """AP over the whole gallery."""
    ap_at_r: Float64[Tensor, " q"]
    """AP@R."""
    ap_at_k: dict[int, Float64[Tensor, " q"]]
    """AP@k with denominator min(R, k)."""
    ap_at_k_retrieved: dict[int, Float64[Tensor, " q"]]
    """AP@k with the number of relevant items in the top k as denominator (0 when there is none)."""
    precision_at_k: dict[int, Float64[Tensor, " q"]]
    """P@k."""
    recall_at_k: dict[int, Float64[Tensor, " q"]]
    """Hit rate: probability that the top k hold a relevant item."""
    partner_recall_at_k: dict[int, Float64[Tensor, " q"]] | None = None
    """Probability that the top k hold the partner; None when no partners were given."""
    partner_rank: Float64[Tensor, " q"] | None = None
    """Expected rank of the partner, best = 1; None when no partners were given."""

    @property
    def map(self) -> float:
        """Mean of AP over the whole gallery."""
        return float(self.ap.mean())

    @property
    def map_at_r(self) -> float:
        """Mean of AP@R."""
        return float(self.ap_at_r.mean())

    @property
    def map_at_k(self) -> dict[int, float]:
        """Mean of AP@k, denominator min(R, k)."""
        return _means(self.ap_at_k)

    @property
    def map_at_k_retrieved(self) -> dict[int, float]:
        """Mean of AP@k, denominator = relevant items retrieved."""
        return _means(self.ap_at_k_retrieved)

    @property
    def mean_precision_at_k(self) -> dict[int, float]:
        """Mean of P@k."""
        return _means(self.precision_at_k)

    @property
    def mean_recall_at_k(self) -> dict[int, float]:
        """Mean hit rate."""
        return _means(self.recall_at_k)

    @property
    def mean_partner_recall_at_k(self) -> dict[int, float] | None:
        """Mean of partner recall@k, or None."""
        return None if self.partner_recall_at_k is None else _means(self.partner_recall_at_k)

    @property
    def mean_partner_rank(self) -> float | None:
        """Mean of the partner's expected rank, or None."""
        return None if self.partner_rank is None else float(self.partner_rank.mean())

    @staticmethod
    def join(parts: Sequence[RetrievalResult]) -> RetrievalResult:
        """Results of consecutive blocks of queries as one result."""
        if not parts:
            raise InputError("no results to join: expected at least one block of queries")

        def joined(name: str) -> Tensor | dict[int, Tensor] | None:
            values = [getattr(part, name) for part in parts]
            if values[0] is None:
                return None
            if isinstance(values[0], dict):
                return {k: torch.cat([value[k] for value in values]) for k in values[0]}
            return torch.cat(values)

        return RetrievalResult(*(joined(field.name) for field in fields(RetrievalResult)))  # type: ignore[arg-type]


@torch.no_grad()
def retrieval(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "g d"],
    query_labels: Int64[Tensor, " q"],
    gallery_labels: Int64[Tensor, " g"],
    *,
    k: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    block: int | None = None,
    partner: Int64[Tensor, " q"] | None = None,
    exclude: Int64[Tensor, " q"] | None = None,
) -> RetrievalResult:
    """Rank the whole gallery for every query; an item is relevant when its label equals the query's.

    ``queries`` [q, d] and ``gallery`` [g, d] share a device; half precision is scored in float32, float64 in
    float64. ``metric``: cosine (a zero vector scores 0 with everything), dot product, or Euclidean distance
    (computed from one matrix product as 2 q.g - |g|^2: centre data whose mean is far from 0).
    ``partner`` [q]: gallery row of each query's counterpart. ``exclude`` [q]: gallery row that is left out of
    each query's ranking, such as the query itself. ``block``: queries scored at a time; by default as many as
    fit :data:`BLOCK_BYTES`, so memory grows with the gallery, not with queries x gallery.

    Raises :class:`InputError` for shapes, dtypes, devices, rows or cut-offs that do not fit, and for vectors
    that are not finite.
    """
    cuts = _check_cuts(k)
    _check_vectors(queries, gallery, query_labels, gallery_labels)
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}: expected one of {', '.join(METRICS)}")
    if block is not None and block < 1:
        raise InputError(f"block is {block}: expected at least one query, or None")
    n, size = len(queries), len(gallery)
    _check_rows(n, size, partner, exclude)

    dtype = torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)
    queries, gallery = queries.to(dtype), gallery.to(dtype)
    if metric == "cosine":
        queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    if block is None:
        largest = int(torch.unique(gallery_labels, return_counts=True)[1].max())
        key_bytes = 4 if metric == "cosine" and dtype == torch.float32 else 8
        block = _block_rows(size, largest, cuts[-1], key_bytes)
    block = min(block, n)
    harmonic = harmonic_numbers(size, queries.device)
    scores = queries.new_empty(block, size)
    offset = gallery.square().sum(1).neg() if metric == "euclidean" else None
    parts = []
    for start in range(0, n, block):
        rows = slice(start, start + block)
        out = scores[: min(block, n - start)]
        # Products written to out= are exempt from autocast, which would merge scores that differ.
        if offset is None:
            torch.mm(queries[rows], gallery.T, out=out)
        else:
            torch.addmm(offset, queries[rows], gallery.T, alpha=2, out=out)
        parts.append(
            _measure(
                out,
                same_label(query_labels[rows], gallery_labels),
                cuts,
                None if partner is None else partner[rows],
                None if exclude is None else exclude[rows],
                harmonic,
            )
        )
    return RetrievalResult.join(parts)


@torch.no_grad()
def retrieval_of_scores(
    scores: Shaped[Tensor, "b g"],
    relevant: Bool[Tensor, "b g"],
    *,
    k: Sequence[int] = (1, 5, 10),
    partner: Int64[Tensor, " b"] | None = None,
    exclude: Int64[Tensor, " b"] | None = None,
) -> RetrievalResult:
    """The metrics of one block of scores [b, g], float or integer, higher = nearer (negate distances).

    ``relevant`` [b, g] may come from any rule, e.g. a shared tag. Blocks of queries are joined with
    :meth:`RetrievalResult.join`. Other arguments and errors as in :func:`retrieval`.
    """
    cuts = _check_cuts(k)
    if scores.ndim != 2 or scores.shape != relevant.shape or 0 in scores.shape:
        raise InputError(
            f"scores {list(scores.shape)} and relevant {list(relevant.shape)}: "
            "expected one non-empty shape [queries, gallery] for both"
        )
    if relevant.dtype != torch.bool or scores.dtype == torch.bool or scores.is_complex():
        raise InputError(f"scores are {scores.dtype}, relevant is {relevant.dtype}: expected real numbers and bool")
    n, size = scores.shape
    _check_rows(n, size, partner, exclude)
    harmonic = harmonic_numbers(size, scores.device)
    rows = max(1, IN_CACHE // (size * scores.element_size()))  # sorting is fastest on what the caches hold

    def part(start: int) -> RetrievalResult:
        chosen = slice(start, start + rows)
        own = None if partner is None else partner[chosen]
        left_out = None if exclude is None else exclude[chosen]
        return _measure(scores[chosen], relevant[chosen], cuts, own, left_out, harmonic)

    return RetrievalResult.join([part(start) for start in range(0, n, rows)])


def _measure(
    scores: Tensor,
    relevant: Tensor,
    cuts: Sequence[int],
    partner: Tensor | None,
    exclude: Tensor | None,
    harmonic: Tensor,
) -> RetrievalResult:
    """Metrics of a score block [b, g] given its relevance block; ``harmonic`` holds H_0 .. H_g."""
    b, size = scores.shape
    every = torch.arange(b, device=scores.device)
    packed = pack(scores, relevant)
    partner_key = None if partner is None else packed[every, partner] & -2
    if exclude is not None:
        packed[every, exclude] = torch.iinfo(packed.dtype).max - 1  # behind every score, not relevant
    flat = sort_rows(packed).view(-1)

    # The relevant items in rank order. Within a tie they come after the others, which the ties below correct.
    where = relevant_positions(flat)
    end = torch.searchsorted(where, (every + 1) * size)
    found = end.diff(prepend=end.new_zeros(1))
    row = torch.repeat_interleave(found, output_size=len(where))
    rank = where - row * size + 1
    before = torch.arange(len(where), device=where.device) - (end - found).index_select(0, row)
    gain = (before + 1).double() / rank.double()  # rel_j P@j
    ties = Ties.among(flat, size, where, row, rank, before)

    def per_query(rows: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(b, dtype=torch.float64, device=values.device).index_add_(0, rows, values)

    def whole(cut: int | Tensor, gains: Tensor) -> Tensor:
        sums = torch.segment_reduce(gains, "sum", lengths=found)
        return (sums + per_query(ties.row, ties.excess_gain(cut, harmonic))) / found.clamp_min(1)

    ap = whole(size, gain)
    ap_at_r = whole(found[ties.row], gain * (rank <= found.index_select(0, row)))

    ap_at_k, retrieved, precision, hit = {}, {}, {}, {}
    width = min(cuts[-1], size)
    top = (flat.view(b, size)[:, :width] & 1).double()
    hits_to = top.cumsum(1)
    gains_to = top.mul_(hits_to).div_(torch.arange(1, width + 1, device=top.device)).cumsum(1)
    ties = ties.above_rank(width)
    for cut in cuts:
        gains, hits = gains_to[:, min(cut, width) - 1], hits_to[:, min(cut, width) - 1]
        hit[cut] = (hits > 0).double()
        if len(ties.row):
            gains = gains + per_query(ties.row, ties.excess_gain(cut, harmonic))
            hits = hits + per_query(ties.row, ties.excess_hits(cut))
        ap_at_k[cut] = gains / found.clamp(1, cut)
        retrieved[cut] = gains / torch.where(hits > 0, hits, 1.0)
        precision[cut] = hits / cut
        if len(ties.row):
            rows, chances = ties.chance_of_hit(cut)
            hit[cut][rows] = chances
            rows, means = ties.gain_per_hit(cut, gains, harmonic)
            retrieved[cut][rows] = means

    partner_recall, partner_rank = None, None
    if partner_key is not None:
        above = first_at_least(flat, size, every, partner_key)
        tied = first_at_least(flat, size, every, partner_key + 2) - above
        partner_rank = above + (tied.double() + 1) / 2
        partner_recall = {cut: ((cut - above).double() / tied).clamp(0, 1) for cut in cuts}
    return RetrievalResult(
        found,
        ap,
        ap_at_r,
        ap_at_k,
        retrieved,
        precision,
        hit,
        partner_recall,
        partner_rank,
    )


def _block_rows(size: int, largest_class: int, largest_cut: int, key_bytes: int) -> int:
    """Queries whose working memory stays below :data:`BLOCK_BYTES` (about; at least one query)."""
    per_score, per_relevant, per_cut = 5 * key_bytes + 4, 120, 32
    row = size * per_score + largest_class * per_relevant + min(largest_cut, size) * per_cut
    return max(1, BLOCK_BYTES // row)


def _means(values: dict[int, Tensor]) -> dict[int, float]:
    return {k: float(value.mean()) for k, value in values.items()}


def _check_cuts(k: Sequence[int]) -> list[int]:
    cuts = sorted(set(k))
    if not cuts or not all(isinstance(cut, int) and cut >= 1 for cut in cuts):
        raise InputError(f"k is {list(k)}: expected one or more whole numbers >= 1")
    return cuts


def _check_vectors(queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> None:
    for name, vectors, labels in (("queries", queries, query_labels), ("gallery", gallery, gallery_labels)):
        if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point():
            raise InputError(f"{name} are {vectors.dtype} {list(vectors.shape)}: expected floats [rows, features]")
        if labels.shape != vectors.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"{name} have {len(vectors)} rows but labels {labels.dtype} {list(labels.shape)}: "
                "expected one whole number per row"
            )
        # A finite sum proves finite terms at a fraction of the cost.
        if not bool(vectors.sum(1).isfinite().all()) and not bool(vectors.isfinite().all()):
            bad = (~vectors.isfinite().all(dim=1)).nonzero()
            raise InputError(f"{name} row {int(bad[0])} holds NaN or infinity: drop or repair that row")
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} features, gallery {gallery.shape[1]}: expected one shared space"
        )
    if len({x.device for x in (queries, gallery, query_labels, gallery_labels)}) > 1:
        raise InputError("queries, gallery and labels are on different devices: move them to one")


def _check_rows(n: int, size: int, partner: Tensor | None, exclude: Tensor | None) -> None:
    for name, rows in (("partner", partner), ("exclude", exclude)):
        if rows is None:
            continue
        if rows.shape != (n,) or rows.dtype != torch.int64:
            raise InputError(f"{name} is {rows.dtype} {list(rows.shape)}: expected int64 [{n}], one row per query")
        bad = ((rows < 0) | (rows >= size)).nonzero()
        if len(bad):
            query = int(bad[0])
            raise InputError(
                f"{name} of query {query} is {int(rows[query])}: expected a gallery row from 0 to {size - 1}"
            )
    if partner is not None and exclude is not None and bool((partner == exclude).any()):
        raise InputError("a query's partner is also excluded: expected different gallery rows")

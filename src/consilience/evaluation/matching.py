"""Retrieval of pairs from a score matrix: does an image find its caption, and a caption its image.

Rank, of a query: 1 + the items that score above its best relevant item, which is what counts where several are
relevant (five captions an image). Items tied with it can be read in two ways: ``expected`` takes the mean over all
orders of the tied items, which for t of them, r relevant, is the rank above + (t + 1) / (r + 1) and a hit among the
first k with the exact probability; ``pessimistic`` puts the relevant ones last. An optimistic reading is not offered.

* R@k: percent of the queries with a hit among the first k; rsum: R@1 + R@5 + R@10 in both directions, 600 at best.
* Median and mean rank: of the ranks above, counted from 1; the median of an even number is the mean of the middle two.
  (Codes from VSE++ on print floor(median of ranks from 0) + 1, the same where ranks are whole and the number is odd.)
* Folds: the images are cut into consecutive equal parts, each judged by itself with its captions, and every figure is
  the mean over the parts. COCO's "1K" is five folds of 1,000 images, its "5K" all at once.
* ``copies``: captions with the same text. With them every image one of whose captions has the query's text is relevant,
  and every copy of an image's captions (the group protocol for data such as Noise of Web, whose captions repeat).

Intervals come from a bootstrap that draws images, each with its captions, from a fixed gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from consilience.errors import InputError, unknown
from consilience.evaluation.ordering import Ties
from consilience.evaluation.retrieval import IN_CACHE
from consilience.evaluation.stats import Interval, PairedDifference, bootstrap_ratios, percentile

TieRule = Literal["expected", "pessimistic"]
CUTS = (1, 5, 10)
"""The cut-offs of rsum."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Ranks:
    """One direction: a value for each query."""

    hits: dict[int, Float64[Tensor, " q"]]
    """Probability that the first k hold a relevant item, by k."""
    rank: Float64[Tensor, " q"]
    """Rank of the best relevant item, from 1."""


@dataclass(frozen=True)
class MatchingResult:
    """Both directions, query by query, and the figures made of them (percent for recalls)."""

    image_to_text: Ranks
    text_to_image: Ranks
    own: Int64[Tensor, " m"]
    """Image of each caption."""
    fold: Int64[Tensor, " n"]
    """Fold of each image."""

    @property
    def recall(self) -> dict[str, dict[int, float]]:
        """R@k in percent for ``image->text`` and ``text->image``."""
        return {
            name: {k: 100 * self._mean(hits, side) for k, hits in ranks.hits.items()}
            for name, ranks, side in self._sides()
        }

    @property
    def rsum(self) -> float:
        """Sum of R@1, R@5 and R@10 in both directions, at most 600."""
        return sum(values[k] for values in self.recall.values() for k in CUTS)

    @property
    def median_rank(self) -> dict[str, float]:
        """Median rank for each direction, from 1; with folds the mean of their medians."""
        return {
            name: float(np.mean([np.median(part) for part in self._parts(ranks.rank, side)]))
            for name, ranks, side in self._sides()
        }

    @property
    def mean_rank(self) -> dict[str, float]:
        """Mean rank for each direction, from 1."""
        return {name: self._mean(ranks.rank, side) for name, ranks, side in self._sides()}

    def values(self) -> dict[str, float]:
        """Recalls and rsum under flat names: ``image->text r1`` ... ``rsum``."""
        flat = {f"{name} r{k}": value for name, found in self.recall.items() for k, value in found.items()}
        return flat | {"rsum": self.rsum}

    def resampled(self, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
        """:meth:`values` of ``resamples`` draws of images with their captions, float64 [resamples, figures].

        Images are drawn within each fold. Equal seeds draw the same images, so that two results can be compared.
        """
        own = self.own.cpu().numpy()
        owned = np.bincount(own, minlength=len(self.fold)).astype(np.float64)
        per_caption = list(self.text_to_image.hits.values())
        sums = [hits.cpu().numpy() for hits in self.image_to_text.hits.values()]
        sums += [np.bincount(own, weights=hits.cpu().numpy(), minlength=len(owned)) for hits in per_caption]
        queries = [np.ones_like(owned)] * len(per_caption) + [owned] * len(per_caption)
        hits, asked, fold = np.stack(sums, 1), np.stack(queries, 1), self.fold.cpu().numpy()
        found = [
            bootstrap_ratios(hits[fold == part], asked[fold == part], resamples=resamples, seed=(seed, int(part)))
            for part in np.unique(fold)
        ]
        recalls: np.ndarray = 100 * np.mean(found, 0)
        counted = [k in CUTS for k in self.image_to_text.hits] * 2
        return np.column_stack([recalls, recalls[:, counted].sum(1)])

    def intervals(self, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
        """Bootstrap interval of each of :meth:`values`; (nan, nan) where a fold has one image."""
        drawn = self.resampled(resamples, seed)
        alone = int(torch.bincount(self.fold).min()) == 1
        return {
            name: Interval(value, *((np.nan, np.nan) if alone else percentile(column, confidence)))
            for (name, value), column in zip(self.values().items(), drawn.T, strict=True)
        }

    def figures(self, names: tuple[str, str] = ("image", "text"), seed: int = 0) -> dict[str, Any]:
        """Plain nested figures under the modalities' names, with 95% intervals beside them (``ci95``)."""
        intervals = self.intervals(seed=seed)
        ends = {"image->text": "->".join(names), "text->image": "->".join(reversed(names))}
        out: dict[str, Any] = {}
        for name, recalls in self.recall.items():
            bounds = {f"r{k}": intervals[f"{name} r{k}"] for k in recalls}
            out[ends[name]] = {
                **{f"r{k}": value for k, value in recalls.items()},
                "median_rank": self.median_rank[name],
                "mean_rank": self.mean_rank[name],
                "ci95": {cut: [found.low, found.high] for cut, found in bounds.items()},
            }
        total = intervals["rsum"]
        return out | {"rsum": total.mean, "ci95": [total.low, total.high]}

    def _sides(self) -> tuple[tuple[str, Ranks, Tensor], ...]:
        """Name and values of each direction, and the fold of its queries."""
        captions = self.fold[self.own]
        return ("image->text", self.image_to_text, self.fold), ("text->image", self.text_to_image, captions)

    @staticmethod
    def _parts(values: Tensor, fold: Tensor) -> list[np.ndarray]:
        return [values[fold == part].cpu().numpy() for part in torch.unique(fold)]

    def _mean(self, values: Tensor, fold: Tensor) -> float:
        return float(np.mean([part.mean() for part in self._parts(values, fold)]))


def matching(
    scores: Shaped[Tensor, "n m"],
    own: Int64[Tensor, " m"],
    *,
    ties: TieRule = "expected",
    k: Sequence[int] = CUTS,
    copies: Int64[Tensor, " m"] | None = None,
    block_bytes: int = IN_CACHE,
) -> MatchingResult:
    """Both directions of retrieval from scores [images, captions], float or whole numbers, higher = nearer.

    ``own``: image of each caption; every image has one or more. ``k``: cut-offs wanted besides 1, 5, 10. ``copies``:
    a number for each caption, equal for equal texts, for the group protocol (see the module). ``block_bytes`` of scores
    are compared at a time (what caches hold is fastest); nothing of the matrix's size is allocated.
    Raises :class:`InputError` for shapes that do not fit, images without a caption, NaN scores and wrong options.
    """
    return folds(scores, own, folds=1, ties=ties, k=k, copies=copies, block_bytes=block_bytes)


@torch.no_grad()
def folds(
    scores: Shaped[Tensor, "n m"],
    own: Int64[Tensor, " m"],
    *,
    folds: int = 5,
    ties: TieRule = "expected",
    k: Sequence[int] = CUTS,
    copies: Int64[Tensor, " m"] | None = None,
    block_bytes: int = IN_CACHE,
) -> MatchingResult:
    """:func:`matching` within ``folds`` consecutive parts of the images, figures averaged (COCO 1K: 5 of 1,000).

    Where the images are no multiple of ``folds``, sizes differ by one. Raises like :func:`matching`, and for more folds
    than images.
    """
    _check(scores, own, folds, ties, copies, k)
    cuts = sorted({*k, *CUTS})
    n, device = len(scores), scores.device
    own = own.to(device)
    fold = torch.arange(n, device=device) * folds // n
    bounds = [0, *(torch.bincount(fold).cumsum(0).tolist())]
    image_rank, caption_rank = (torch.zeros(size, dtype=torch.float64, device=device) for size in (n, len(own)))
    sides = ({cut: torch.zeros_like(image_rank) for cut in cuts}, {cut: torch.zeros_like(caption_rank) for cut in cuts})
    for start, stop in pairwise(bounds):
        here = ((own >= start) & (own < stop)).nonzero().view(-1)
        part = scores[start:stop]
        if len(here) < len(own):
            part = part[:, here]
        pairs = _relevant(own[here] - start, None if copies is None else copies.to(device)[here])
        found = _both_ways(part, *pairs, block_bytes)
        for rank, hits, place, (above, tied, relevant) in zip(
            (image_rank, caption_rank), sides, (slice(start, stop), here), found, strict=True
        ):
            last = (above + tied - relevant + 1).double()
            rank[place] = last if ties == "pessimistic" else above + (tied + 1).double() / (relevant + 1)
            group = Ties(torch.arange(len(above), device=device), above, tied, relevant, torch.zeros_like(above))
            for cut, values in hits.items():
                values[place] = (last <= cut).double() if ties == "pessimistic" else group.chance_of_hit(cut)[1]
    return MatchingResult(Ranks(sides[0], image_rank), Ranks(sides[1], caption_rank), own, fold)


def matching_difference(
    a: MatchingResult, b: MatchingResult, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, PairedDifference]:
    """a - b for each of :meth:`MatchingResult.values` over the same images, drawn together.

    The two-sided p-value is twice the share of the draws on the rarer side of 0 (never below 2 / (resamples + 1)).
    Compare several methods with :func:`consilience.evaluation.stats.holm`. Raises :class:`InputError` for results of
    other captions, folds or cut-offs.
    """
    before, after = a.values(), b.values()
    if not (torch.equal(a.own, b.own) and torch.equal(a.fold, b.fold) and list(before) == list(after)):
        raise InputError("the two results judge other images, captions, folds or cut-offs: expected the same in both")
    drawn = a.resampled(resamples, seed) - b.resampled(resamples, seed)
    out = {}
    for name, column in zip(before, drawn.T, strict=True):
        low, high = (np.nan, np.nan) if int(torch.bincount(a.fold).min()) == 1 else percentile(column, confidence)
        rarer = min((column <= 0).sum(), (column >= 0).sum())
        p_value = min(1.0, 2 * (1 + float(rarer)) / (1 + resamples))
        out[name] = PairedDifference(Interval(before[name] - after[name], low, high), p_value)
    return out


def ceiling(copies: Int64[Tensor, " m"], k: Sequence[int] = CUTS) -> dict[int, float]:
    """The highest R@k in percent, in either direction, that a scorer can expect where captions repeat and only a
    query's own partner counts: mean over captions of min(1, k / m), m captions having that text.

    ``copies``: a number for each caption, equal for equal texts; one caption an image. Identical captions rank all
    images identically, so that of m queries (or of m partners) only k can be among the first k.
    """
    if copies.ndim != 1 or not len(copies):
        raise InputError(f"copies is {list(copies.shape)}: expected one number a caption, at least one")
    _, number, count = torch.unique(copies, return_inverse=True, return_counts=True)
    return {cut: 100 * float((cut / count[number].double()).clamp_max(1).mean()) for cut in k}


def _relevant(own: Tensor, copies: Tensor | None) -> tuple[Tensor, Tensor]:
    """Relevant (image, caption) pairs, int64 [p] each, sorted by image."""
    if copies is None:
        order = torch.argsort(own, stable=True)
        return own[order], order
    _, text = torch.unique(copies, return_inverse=True)
    said = torch.unique(torch.stack([own, text], 1), dim=0)  # every image and text once, sorted by image
    order = torch.argsort(text, stable=True)
    count = torch.bincount(text)
    each = count[said[:, 1]]
    first = (count.cumsum(0) - count)[said[:, 1]]
    within = torch.arange(int(each.sum()), device=own.device) - torch.repeat_interleave(each.cumsum(0) - each, each)
    return torch.repeat_interleave(said[:, 0], each), order[torch.repeat_interleave(first, each) + within]


Counts = tuple[Tensor, Tensor, Tensor]
"""Of each query, int64 [q]: items above its best relevant one, items tied with it, relevant ones among these."""


def _both_ways(scores: Tensor, images: Tensor, captions: Tensor, block_bytes: int) -> tuple[Counts, Counts]:
    """Counts for every image and every caption, from one walk over blocks of rows."""
    n, m = scores.shape
    value = scores[images, captions]
    best, own = zip(*(_best(value, side, size) for side, size in ((images, n), (captions, m))), strict=True)
    above, tied = ([torch.zeros(size, dtype=torch.int64, device=scores.device) for size in (n, m)] for _ in range(2))
    rows = max(1, block_bytes // (m * scores.element_size()))
    for start in range(0, n, rows):
        part, place = scores[start : start + rows], slice(start, start + rows)
        if scores.is_floating_point() and not bool(part.sum().isfinite()) and bool(part.isnan().any()):
            i, j = (int(x) for x in part.isnan().nonzero()[0])
            raise InputError(f"the score of image {start + i} and caption {j} is NaN: expected numbers")
        limit = best[0][place, None]
        above[0][place], tied[0][place] = (part > limit).sum(1), (part == limit).sum(1)
        above[1] += (part > best[1]).sum(0)
        tied[1] += (part == best[1]).sum(0)
    return (above[0], tied[0], own[0]), (above[1], tied[1], own[1])


def _best(value: Tensor, query: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The highest score of each query's relevant items, and how many of them have it."""
    best = torch.zeros(size, dtype=value.dtype, device=value.device)
    best.scatter_reduce_(0, query, value, "amax", include_self=False)
    return best, torch.bincount(query[value == best[query]], minlength=size)


def _check(scores: Tensor, own: Tensor, folds: int, ties: str, copies: Tensor | None, k: Sequence[int]) -> None:
    if ties not in get_args(TieRule):
        raise unknown("tie rule", ties, get_args(TieRule))
    if not all(isinstance(cut, int) and cut >= 1 for cut in k):
        raise InputError(f"k is {list(k)}: expected whole numbers >= 1")
    if scores.ndim != 2 or 0 in scores.shape or scores.dtype == torch.bool or scores.is_complex():
        raise InputError(f"scores are {scores.dtype} {list(scores.shape)}: expected numbers [images, captions]")
    n, m = scores.shape
    for name, vector in (("own", own), ("copies", copies)):
        if vector is not None and (vector.shape != (m,) or vector.dtype != torch.int64):
            raise InputError(f"{name} is {vector.dtype} {list(vector.shape)}: expected int64 [{m}], one a caption")
    if int(own.min()) < 0 or int(own.max()) >= n:
        raise InputError(f"own names image {int(own.min() if own.min() < 0 else own.max())}: expected 0 to {n - 1}")
    bare = (torch.bincount(own, minlength=n) == 0).nonzero()
    if len(bare):
        raise InputError(f"image {int(bare[0])} has no caption: leave it out, or add its captions")
    if not 1 <= folds <= n:
        raise InputError(f"{folds} folds of {n} images: expected 1 to {n}")

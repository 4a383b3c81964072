"""A search in two stages: inner products of whole samples first, then a pairwise scorer for the best of them.

SGRAF scores 25,000 captions against 5,000 images in core-hours; its own global vectors compare them in seconds. Scoring
the 128 best images of each caption instead of 5,000 leaves 1 pair of 39.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from consilience.errors import InputError
from consilience.heads.matching import Matcher, Peers, Seen
from consilience.heads.sgraf import Similarity
from consilience.heads.similarity import Images

PairScorer = Callable[[Int64[Tensor, " p"], Int64[Tensor, " p"]], Float[Tensor, " p"]]
"""Scores of the pairs (query i, item j)."""
_PAIRS = 1 << 14
_BYTES = 16 << 20  # of a block of pairs: beyond the caches larger ones are slower


@torch.no_grad()
def rerank(first: Float[Tensor, "n m"], scorer: PairScorer, top: int = 128) -> Float64[Tensor, "n m"]:
    """Put the ``top`` items of each query by the scores ``first`` in the order of ``scorer``.

    The result is a score matrix, queries in rows: re-ranked items carry the scorer's scores, all others follow below
    them in their first order. A query's list is in the scorer's exact order. Its rank equals the full scorer's when the
    list holds the relevant item and whatever the scorer puts above it; where that is missing from the list the rank is
    the two-stage search's own, which may be better or worse. ``scorer`` is called for a block of pairs at a time.
    Raises :class:`InputError` for ``top`` below 1.
    """
    if top < 1:
        raise InputError(f"top is {top}: expected at least one item a query to re-rank")
    n, m = first.shape
    chosen = first.topk(min(top, m), dim=1).indices
    found = torch.empty(chosen.shape, dtype=torch.float64, device=first.device)
    rows = max(1, _PAIRS // chosen.shape[1])
    for start in range(0, n, rows):
        part = chosen[start : start + rows]
        query = torch.arange(start, start + len(part), device=first.device).repeat_interleave(part.shape[1])
        found[start : start + rows] = scorer(query, part.flatten()).double().view(part.shape)
    # in float64 the shift keeps float32 scores apart
    below = first.double() - first.max().double() - 1 + found.min()
    return below.scatter_(1, chosen, found)


class SlotPairs:
    """Scores of single pairs by networks with SGRAF, the mean over the networks, and their global inner products.

    ``images`` and ``captions`` are represented rows (:meth:`Peers.represent`) of the networks' first and second
    modality; what depends on one sample only is computed once and held, with true words only. For large data give the
    captions in blocks. Raises :class:`InputError` for networks that compare by cosine: they need no second stage.
    """

    @torch.no_grad()
    def __init__(self, peers: Peers, images: Float[Tensor, "n r"], captions: Float[Tensor, "m s"]) -> None:
        if peers.net(0).towers is not None:
            raise InputError("these networks score by cosine: a first search is exact and needs no re-ranking")
        sides = zip(images.chunk(len(peers), 1), captions.chunk(len(peers), 1), strict=True)
        self._nets = [_Net(peers.net(k), left, right) for k, (left, right) in enumerate(sides)]

    def globals(self) -> Float[Tensor, "n m"]:
        """Scores of the first stage: mean inner product of the global vectors."""
        return torch.stack([net.globals() for net in self._nets]).mean(0)

    @torch.no_grad()
    def __call__(self, images: Int64[Tensor, " p"], captions: Int64[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Score of image ``images[k]`` with caption ``captions[k]``."""
        return torch.stack([net.scores(images, captions) for net in self._nets]).mean(0)


class _Net:
    """One network's view of both sides."""

    def __init__(self, net: Matcher, images: Tensor, captions: Tensor) -> None:
        left, right = Seen.unflat(images, net.width), Seen.unflat(captions, net.width)
        self._regions, self._mask = left.slots * left.mask[:, :, None], left.mask
        self._pairs = [part.pairs for part in net.sgraf.parts if isinstance(part, Similarity)]
        self._v = net.sgraf.globals_of_images(left.slots, left.mask)
        self._t = net.sgraf.globals_of_captions(right.slots, right.mask)
        self._gram = torch.bmm(self._regions, self._regions.transpose(1, 2))
        self._words, self._lengths = right.slots[right.mask], right.mask.sum(1)
        self._starts = self._lengths.cumsum(0) - self._lengths

    def globals(self) -> Tensor:
        return torch.stack([v @ t.T for v, t in zip(self._v, self._t, strict=True)]).mean(0)

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        out = self._regions.new_empty(len(images))
        lengths = self._lengths[captions]
        regions, width = self._regions.shape[1:]
        for length in torch.unique(lengths).tolist():
            same = (lengths == length).nonzero().view(-1)
            step = max(1, _BYTES // (self._regions.element_size() * width * (regions + 3 * (length + 1))))
            for place in torch.split(same, step):
                i, j = images[place], captions[place]
                words = self._words[self._starts[j][:, None] + torch.arange(length, device=j.device)]
                mask = None if bool(self._mask.all()) else self._mask[i]
                out[place] = torch.stack(
                    [
                        score(Images(self._regions[i], self._gram[i], v[i], mask), words[:, None], t[j][:, None])
                        for score, v, t in zip(self._pairs, self._v, self._t, strict=True)
                    ]
                ).mean(0)
        return out

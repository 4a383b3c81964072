"""SGRAF: how similar a picture (as regions) and a caption (as words) are, by reasoning over local similarities.

Diao, Zhang, Ma, Lu, "Similarity Reasoning and Filtration for Image-Text Matching", AAAI 2021; the cross attention is
SCAN's (Lee et al., ECCV 2018). Every image is scored with every caption. What differs from the authors' code, which
walks through the captions one by one:

* Captions of the same length are scored together, in blocks of bounded memory; there is no padding inside.
* Query and key layers of a reasoning step act as one matrix Wq^T Wk. A bias of the keys shifts all logits of a node
  alike, which softmax does not see, so there is none. The last step computes node 0 only, the one that is read.
* The length of a context comes from the inner products of its image's regions, and differences are not kept.
* The filtration's batch norm takes its moments over all nodes of all pairs, not of one caption after the other.
* A loss that looks at few of the scores can have the others without gradients (``few``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from consilience.errors import InputError, unknown
from consilience.heads.similarity import Filtration, Images, PairSimilarity, SlotAttention

Module = Literal["sgr", "saf"]
MODULES: dict[str, tuple[Module, ...]] = {"sgr": ("sgr",), "saf": ("saf",), "both": ("sgr", "saf")}
CPU_BLOCK = 16 << 20
"""Bytes of a block of pairs on a CPU, whatever the ceiling: beyond the caches larger blocks are slower."""


@dataclass(frozen=True)
class _Group:
    """Captions of one length, next to each other after sorting: ``start`` to ``stop``, their words from ``first``."""

    start: int
    stop: int
    length: int
    first: int


@dataclass(frozen=True)
class _Captions:
    """Captions sorted by length: true words only [sum of lengths, e], global vectors [c, e]."""

    words: Tensor
    whole: Tensor
    groups: tuple[_Group, ...]


def _sorted(words: Tensor, mask: Tensor, whole: Tensor) -> tuple[_Captions, Tensor]:
    """The captions, and the position of each one among the sorted."""
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    groups: list[_Group] = []
    at = first = 0
    for length, count in sorted(Counter(lengths.tolist()).items()):
        groups.append(_Group(at, at + count, length, first))
        at, first = at + count, first + count * length
    row, column = mask[order].nonzero(as_tuple=True)
    return _Captions(words[order[row], column], whole[order], tuple(groups)), order.argsort()


def _widths(images: Images, captions: _Captions, limit: int) -> tuple[int, list[tuple[int, int]]]:
    """How many images a block has, and for each stretch of captions their number and length: blocks of at most
    ``limit`` bytes (but one pair at least), as square as possible."""
    (count, regions, width), size = images.regions.shape, images.regions.element_size()

    def pairs(length: int) -> int:
        # attention over regions three times, similarity vectors (a quarter of the width) about eight times
        return max(1, limit // (size * (3 * regions * length + 2 * (length + 1) * width)))

    high = min(count, isqrt(pairs(max((group.length for group in captions.groups), default=1))))
    stretches = []
    for group in captions.groups:
        wide = max(1, pairs(group.length) // high)
        for start in range(group.start, group.stop, wide):
            stretches.append((min(wide, group.stop - start), group.length))
    return high, stretches


def _score_all(pairs: PairSimilarity, images: Images, captions: _Captions, limit: int) -> Float[Tensor, "k c"]:
    """Scores of all images with all sorted captions."""
    high, stretches = _widths(images, captions, limit)
    # split, not sliced: the gradient of a split is one concatenation, that of every slice a tensor full of zeros
    rows = images.split(high)
    words = torch.split(captions.words, [count * length for count, length in stretches])
    wholes = torch.split(captions.whole, [count for count, _ in stretches])
    blocks = [
        (part, said.view(1, count, length, said.shape[1]), whole[None])
        for said, whole, (count, length) in zip(words, wholes, stretches, strict=True)
        for part in rows
    ]
    judge = pairs.judge
    found: Iterator[Tensor]
    if isinstance(judge, Filtration) and judge.training:  # its moments cover all pairs
        vectors = [pairs.nodes(*block) for block in blocks]
        logits = [judge.logits(x) for x in vectors]
        normed = torch.split(judge.normed(torch.cat([x.flatten() for x in logits])), [x.numel() for x in logits])
        pooled = (judge.pooled(x, n.view_as(y)) for x, n, y in zip(vectors, normed, logits, strict=True))
        found = (pairs.judged(x) for x in pooled)
    else:
        found = (pairs(*block) for block in blocks)
    columns = [torch.cat([next(found).view(-1, count) for _ in rows]) for count, _ in stretches]
    return torch.cat(columns, 1)


class _Few(torch.autograd.Function):
    """Scores of all pairs without a graph; backward scores once more those whose gradient is not zero."""

    @staticmethod
    def forward(ctx: Any, pairs: PairSimilarity, images: Images, captions: _Captions, limit: int, *_: Tensor) -> Tensor:
        ctx.pairs, ctx.images, ctx.captions, ctx.limit = pairs, images, captions, limit
        return _score_all(pairs, images, captions, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pairs, images, captions, grad = ctx.pairs, ctx.images, ctx.captions, grads[0]
        parameters = list(pairs.parameters())
        leaves = [images.regions, images.gram, images.whole, captions.words, captions.whole, *parameters]
        sums = [torch.zeros_like(x) for x in leaves]
        for group in captions.groups:
            rows, columns = grad[:, group.start : group.stop].nonzero(as_tuple=True)
            places = group.first + columns[:, None] * group.length + torch.arange(group.length, device=grad.device)
            columns = columns + group.start
            width, size = captions.whole.shape[1], grad.element_size()
            step = max(1, ctx.limit // (size * width * (images.regions.shape[1] + 8 * (group.length + 1))))
            for i, j, w in zip(*(torch.split(x, step) for x in (rows, columns, places)), strict=True):
                if not len(i):
                    continue
                index = [i, i, i, w, j]
                inputs = [x.detach()[at].requires_grad_() for x, at in zip(leaves, index, strict=False)]
                mask = None if images.mask is None else images.mask[i]
                with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
                    score = pairs(Images(inputs[0], inputs[1], inputs[2], mask), inputs[3][:, None], inputs[4][:, None])
                found = torch.autograd.grad(score, [*inputs, *parameters], grad[i, j])
                for total, at, one in zip(sums, index, found, strict=False):
                    total.index_add_(0, at.flatten(), one.reshape(at.numel(), *one.shape[at.dim() :]))
                for total, one in zip(sums[len(index) :], found[len(index) :], strict=True):
                    total += one
        return (None, None, None, None, *sums)


class Similarity(nn.Module):
    """One of SGRAF's two modules, with its own global vectors."""

    def __init__(self, embed: int, sim: int, module: Module, steps: int, slots: int, batch_norm: bool) -> None:
        super().__init__()
        self.image = SlotAttention(embed, slots if batch_norm else None)
        self.text = SlotAttention(embed, None)
        self.pairs = PairSimilarity(embed, sim, module, steps)


def _chunked(attend: SlotAttention, slots: Tensor, mask: Tensor, limit: int) -> Float[Tensor, "b e"]:
    """Global vectors, in parts of about ``limit`` bytes where nothing joins the rows and nothing is kept."""
    if torch.is_grad_enabled() or attend.training:
        out: Tensor = attend(_cleared(slots, mask), mask)
        return out
    step = max(1, limit // max(1, 5 * slots[:1].numel() * slots.element_size()))
    parts = zip(torch.split(slots, step), torch.split(mask, step), strict=True)
    return torch.cat([attend(_cleared(x, m), m) for x, m in parts])


def _cleared(slots: Tensor, mask: Tensor) -> Tensor:
    return slots if bool(mask.all()) else slots.masked_fill(~mask.unsqueeze(-1), 0)


class SGRAF(nn.Module):
    """Scores in (0, 1) of every image with every caption.

    ``embed`` is the width of regions and words, which are unit vectors in the paper; ``sim`` of similarity vectors.
    ``module`` sgr (reasoning in ``steps``), saf (filtration), or both: the mean of two scorers with own weights.
    ``batch_norm``: the image's global vector passes a batch norm with a channel a region (the paper's), which takes
    exactly ``slots`` regions and sees their order. ``block_bytes`` bounds the working memory of scoring without
    gradients, beside inputs, global vectors and result.
    """

    def __init__(
        self,
        embed: int = 1024,
        sim: int = 256,
        module: str = "sgr",
        steps: int = 3,
        slots: int = 36,
        batch_norm: bool = True,
        block_bytes: int = 1 << 28,
    ) -> None:
        super().__init__()
        if module not in MODULES:
            raise unknown("similarity module", module, MODULES)
        self.embed, self.slots, self.batch_norm, self.block_bytes = embed, slots, batch_norm, block_bytes
        self.parts = nn.ModuleList(Similarity(embed, sim, name, steps, slots, batch_norm) for name in MODULES[module])

    def _inputs(self, slots: Tensor, what: str) -> Tensor:
        if slots.shape[2] != self.embed:
            raise InputError(f"{what} have {slots.shape[2]} columns, the scorer was built for embed={self.embed}")
        if what == "regions" and self.batch_norm and slots.shape[1] != self.slots:
            raise InputError(
                f"{slots.shape[1]} regions an image, but the batch norm of the scorer takes exactly {self.slots}; "
                "set slots to that number or batch_norm to false"
            )
        return slots.to(next(self.parameters()).dtype)

    def globals_of_images(
        self, regions: Float[Tensor, "b r e"], region_mask: Bool[Tensor, "b r"]
    ) -> list[Float[Tensor, "b e"]]:
        """The unit vector v of each image, one list entry a module."""
        with torch.autocast(regions.device.type, enabled=False):
            regions = self._inputs(regions, "regions")
            return [_chunked(part.image, regions, region_mask, self.block_bytes) for part in self._parts()]

    def globals_of_captions(
        self, words: Float[Tensor, "c l e"], word_mask: Bool[Tensor, "c l"]
    ) -> list[Float[Tensor, "c e"]]:
        """The unit vector t of each caption, one list entry a module."""
        with torch.autocast(words.device.type, enabled=False):
            words = self._inputs(words, "words")
            return [_chunked(part.text, words, word_mask, self.block_bytes) for part in self._parts()]

    def _parts(self) -> list[Similarity]:
        return [part for part in self.parts if isinstance(part, Similarity)]

    def globals(
        self,
        regions: Float[Tensor, "b r e"],
        region_mask: Bool[Tensor, "b r"],
        words: Float[Tensor, "c l e"],
        word_mask: Bool[Tensor, "c l"],
    ) -> tuple[Float[Tensor, "b w"], Float[Tensor, "c w"]]:
        """Unit vectors v and t for a first search by inner product; of both modules, side by side, when there are two
        (w = 2 e, the inner product is then the mean of theirs)."""
        images = self.globals_of_images(regions, region_mask)
        captions = self.globals_of_captions(words, word_mask)
        factor = len(images) ** -0.5
        return torch.cat(images, 1) * factor, torch.cat(captions, 1) * factor

    def forward(
        self,
        regions: Float[Tensor, "b r e"],
        region_mask: Bool[Tensor, "b r"],
        words: Float[Tensor, "c l e"],
        word_mask: Bool[Tensor, "c l"],
        few: bool = False,
    ) -> Float[Tensor, "b c"]:
        """Scores of all pairs, computed in the precision of the weights (no autocast).

        ``few``: the caller's loss reads few of the scores (the hardest negatives, say). Then nothing is kept for
        backward, which computes the pairs with a gradient once more. The gradients are the same; with most pairs
        concerned it takes longer. It has no effect on a filtration in training, whose batch norm ties all pairs.
        """
        used = int((word_mask.any(0) * torch.arange(1, word_mask.shape[1] + 1, device=words.device)).amax())
        words, word_mask = words[:, :used], word_mask[:, :used]
        seen = self.globals_of_images(regions, region_mask)
        said = self.globals_of_captions(words, word_mask)
        with torch.autocast(regions.device.type, enabled=False):
            regions, words = self._inputs(regions, "regions"), self._inputs(words, "words")
            found = [
                self._scores(part.pairs, v, t, regions, region_mask, words, word_mask, few)
                for part, v, t in zip(self._parts(), seen, said, strict=True)
            ]
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    def _scores(
        self,
        pairs: PairSimilarity,
        seen: Tensor,
        said: Tensor,
        regions: Tensor,
        region_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        few: bool,
    ) -> Tensor:
        limit = self.block_bytes // 4
        tied = isinstance(pairs.judge, Filtration) and pairs.training
        if torch.is_grad_enabled() or tied:
            return self._part(pairs, seen, said, regions, region_mask, words, word_mask, few and not tied)
        out = seen.new_empty(len(seen), len(said))
        high = max(1, limit // max(1, 2 * regions[:1].numel() * regions.element_size()))
        wide = max(1, limit // max(1, 2 * words[:1].numel() * words.element_size()))
        for j in range(0, len(said), wide):
            for i in range(0, len(seen), high):
                a, b = slice(i, i + high), slice(j, j + wide)
                out[a, b] = self._part(
                    pairs, seen[a], said[b], regions[a], region_mask[a], words[b], word_mask[b], False
                )
        return out

    def _part(
        self,
        pairs: PairSimilarity,
        seen: Tensor,
        said: Tensor,
        regions: Tensor,
        region_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        few: bool,
    ) -> Tensor:
        limit = self.block_bytes // 4
        if regions.device.type == "cpu":
            limit = min(limit, CPU_BLOCK)
        regions = _cleared(regions, region_mask)
        mask = None if bool(region_mask.all()) else region_mask
        images = Images(regions, torch.bmm(regions, regions.transpose(1, 2)), seen, mask)
        captions, back = _sorted(words, word_mask, said)
        if few and torch.is_grad_enabled():
            tensors = [images.regions, images.gram, images.whole, captions.words, captions.whole]
            few_of: Any = _Few.apply
            scores: Tensor = few_of(pairs, images, captions, limit, *tensors, *pairs.parameters())
        else:
            scores = _score_all(pairs, images, captions, limit)
        return scores[:, back]

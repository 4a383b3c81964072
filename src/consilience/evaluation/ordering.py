"""Rows of scores in rank order, and the closed forms of tied items: what ranking metrics are computed from.

A score becomes an integer of the same order with relevance in the lowest bit ("key"), so that one plain sort
of integers per row, without an argsort, gives relevance in rank order. Ties of relevant and other items show
as neighbouring keys that differ in this bit alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilience.errors import InputError


@dataclass(frozen=True)
class Ties:
    """Groups of equal scores that hold relevant and other items, int64 [t] each."""

    row: Tensor
    """Query."""
    above: Tensor
    """Items with a higher score."""
    size: Tensor
    """Items in the group."""
    relevant: Tensor
    """Relevant items in the group."""
    before: Tensor
    """Relevant items with a higher score."""

    @staticmethod
    def among(flat: Tensor, size: int, where: Tensor, row: Tensor, rank: Tensor, before: Tensor) -> Ties:
        """The mixed groups: a relevant key whose left neighbour is the same score with the bit unset.

        The neighbour of rank 1 is another query's last item; a group found through it holds relevant items
        only, whose corrections are 0.
        """
        key = flat.index_select(0, where)
        neighbour = flat.index_select(0, (where - 1).clamp_min(0))
        mixed = (neighbour == key - 1).nonzero().view(-1)
        key, row, others_end = key[mixed], row[mixed], rank[mixed] - 1
        above, end = first_at_least(flat, size, row.repeat(2), torch.cat([key - 1, key + 1])).chunk(2)
        return Ties(row, above, end - above, end - others_end, before[mixed])

    def above_rank(self, rank: int) -> Ties:
        """The groups that begin at or above ``rank``."""
        kept = (self.above < rank).nonzero().view(-1)
        return Ties(self.row[kept], self.above[kept], self.size[kept], self.relevant[kept], self.before[kept])

    def excess_gain(self, cut: int | Tensor, harmonic: Tensor) -> Tensor:
        """Expected sum of rel_j P@j over ranks <= cut, minus that of the order with relevant items last."""
        slots = torch.minimum((cut - self.above).clamp_min(0), self.size)
        others_end = self.above + self.size - self.relevant
        last = torch.minimum((cut - others_end).clamp_min(0), self.relevant)
        counted = last + (self.before - others_end) * (harmonic[others_end + last] - harmonic[others_end])
        return expected_gain(self.above, self.size, self.relevant, self.before, slots, harmonic) - counted

    def excess_hits(self, cut: int) -> Tensor:
        """Expected relevant items at ranks <= cut, minus those of the order with the relevant items last."""
        slots = torch.minimum((cut - self.above).clamp_min(0), self.size)
        counted = (slots - (self.size - self.relevant)).clamp_min(0)
        return self.relevant.double() * slots / self.size - counted

    def chance_of_hit(self, cut: int) -> tuple[Tensor, Tensor]:
        """Rows whose best relevant item is tied, and their chance of a relevant item in the top ``cut``."""
        best = self.before == 0
        size, relevant = self.size[best], self.relevant[best]
        slots = torch.minimum((cut - self.above[best]).clamp_min(0), size)
        others = size - relevant
        missed = torch.exp(_log_choose(others, slots) - _log_choose(size, slots))
        return self.row[best], torch.where(slots > others, 1.0, 1 - missed)

    def gain_per_hit(self, cut: int, gains: Tensor, harmonic: Tensor) -> tuple[Tensor, Tensor]:
        """Rows whose top ``cut`` ends inside a tie, and their expected AP@cut in the retrieved convention.

        The number h of relevant items among the m last slots is hypergeometric; given h, those slots are in
        random order and act as a tie of m items with h relevant. ``gains`` [b]: expected sums up to the cut.
        """
        split = (self.above < cut) & (cut < self.above + self.size)
        row, above, size = self.row[split], self.above[split], self.size[split]
        relevant, before = self.relevant[split], self.before[split]
        slots = cut - above
        sure = gains[row] - expected_gain(above, size, relevant, before, slots, harmonic)
        fewest = (slots - (size - relevant)).clamp_min(0)
        count = torch.minimum(relevant, slots) - fewest + 1
        case = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
        hits = torch.arange(len(case), device=row.device) - (count.cumsum(0) - count - fewest)[case]
        size, relevant, before, slots = size[case], relevant[case], before[case], slots[case]
        chance = torch.exp(
            _log_choose(relevant, hits) + _log_choose(size - relevant, slots - hits) - _log_choose(size, slots)
        )
        gain = sure[case] + expected_gain(above[case], slots, hits, before, slots, harmonic)
        share = chance * gain / (before + hits).clamp_min(1)
        return row, torch.zeros_like(sure).index_add_(0, case, share)


def expected_gain(
    above: Tensor, size: Tensor, relevant: Tensor, before: Tensor, slots: Tensor, harmonic: Tensor
) -> Tensor:
    """Expected sum of rel_j P@j over the first ``slots`` ranks of a tie in uniformly random order.

    Rank above + t holds a relevant item with probability r/s and then, on average, has
    before + 1 + (t-1) (r-1)/(s-1) relevant items up to it; the sum over t leaves harmonic numbers.
    """
    density = (relevant - 1).double() / (size - 1).clamp_min(1)
    sums = harmonic[above + slots] - harmonic[above]
    return relevant.double() / size * ((before + 1 - (above + 1) * density) * sums + slots * density)


def pack(scores: Tensor, relevant: Tensor) -> Tensor:
    """Integers [b, g]: ascending = best first, equal upper bits = equal score, lowest bit = relevance.

    A float's bits without the sign are in the order of its magnitude; below 2 the topmost of them is unset,
    which leaves room for relevance. So cosines in float32 fit 32 bits and nothing is rounded.
    """
    if not scores.is_floating_point():
        low, high = scores.aminmax()
        for kind, limit in ((torch.int32, 2**30 - 1), (torch.int64, 2**62 - 1)):
            if -limit < int(low) and int(high) < limit:
                return torch.add(relevant, scores.to(kind), alpha=-2)
        return _dense(scores) * 2 + relevant
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    wide = scores.dtype == torch.float64
    bits = scores.contiguous().view(torch.int64 if wide else torch.int32)
    sign = bits >> (63 if wide else 31)
    packed = bits & torch.iinfo(bits.dtype).max
    if int(packed.max()) >= (2**62 - 1 if wide else 2**30 - 1):
        if bool(scores.isnan().any()):
            raise InputError("a score is not a number: expected vectors whose scores do not overflow; rescale them")
        # Every float32 is exact in float64 after the shift by a power of two.
        return _dense(scores) * 2 + relevant if wide else pack(scores.double() * 2.0**-128, relevant)
    torch.sub(sign, packed.bitwise_xor_(sign), out=packed)
    return torch.add(relevant, packed, alpha=2, out=packed)


def _dense(scores: Tensor) -> Tensor:
    """Ranks of the distinct scores of each row, 0 = highest, int64: for scores that fit no shorter key."""
    ordered, index = torch.sort(scores, dim=1, descending=True)
    ranks = torch.zeros_like(index)
    ranks[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    return torch.empty_like(index).scatter_(1, index, ranks)


def same_label(queries: Tensor, gallery: Tensor) -> Tensor:
    """Relevance by equal label, bool [b, g] (NumPy compares several times faster than torch on a CPU)."""
    if queries.device.type != "cpu":
        return queries[:, None] == gallery
    return torch.from_numpy(queries.numpy()[:, None] == gallery.numpy())


def sort_rows(keys: Tensor) -> Tensor:
    """Rows in ascending order. NumPy's vectorised integer sort is some thirty times torch's on a CPU."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)
    return keys


def relevant_positions(flat: Tensor) -> Tensor:
    """Positions of the relevant keys, int64 (NumPy's search is four times torch's on a CPU)."""
    odd = (flat & 1).bool()
    return torch.from_numpy(np.flatnonzero(odd.numpy())) if flat.device.type == "cpu" else odd.nonzero().view(-1)


def first_at_least(flat: Tensor, size: int, row: Tensor, key: Tensor) -> Tensor:
    """For each (row, key), how many keys of that sorted row are smaller: a binary search, int64 [t]."""
    low = torch.zeros_like(row)
    high = torch.full_like(row, size)
    start = row * size
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        smaller = (middle < high) & (flat[start + middle.clamp_max(size - 1)] < key)
        low = torch.where(smaller, middle + 1, low)
        high = torch.where(smaller, high, middle)
    return low


def _log_choose(n: Tensor, m: Tensor) -> Tensor:
    """log of n over m in float64, for 0 <= m; -inf where m > n."""
    n, m = n.double(), m.double()
    value = torch.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma((n - m).clamp_min(0) + 1)
    return torch.where(m > n, -torch.inf, value)


def harmonic_numbers(size: int, device: torch.device) -> Tensor:
    """Harmonic numbers H_0 .. H_size, float64."""
    terms = torch.arange(size + 1, dtype=torch.float64, device=device).reciprocal()
    terms[0] = 0
    return terms.cumsum(0)

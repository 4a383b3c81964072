"""Who is near whom, and how well every pair fits: computed once, blockwise and exact, shared by all checks.

Vectors are unit rows by modality. Beside nearest neighbours within a modality and across two of them, a *direction*
(from rows of one modality to rows of another) holds what is needed to judge the pair of every row against all others:
its own score, the expected rank of its partner under ties, the log-sum-exp of its scores, and the mean of its highest
scores (the hubness term of CSLS: Conneau et al., "Word Translation Without Parallel Data", ICLR 2018).

Memory: besides vectors and results, one block of scores of at most :attr:`Graph.ceiling` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from consilience.errors import InputError, unknown

CEILING = 256 << 20
_MATRICES = 4  # of a block's size that live at once: scores, the exponential, and two masks of a byte an entry


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of every row, best first."""

    index: Int64[np.ndarray, "n k"]
    """Position of the neighbour; -1 where there is none."""
    score: Float[np.ndarray, "n k"]
    """Its cosine; -inf where there is none."""


@dataclass(frozen=True)
class Direction:
    """Every row of modality ``a`` against the rows of modality ``b``; NaN where the row lacks one of the two."""

    own: Float[np.ndarray, " n"]
    """Score of the row's own pair."""
    rank: Float[np.ndarray, " n"]
    """Expected rank of its partner among the rows of other groups, 1 = best: 1 + higher ones + half of the equal."""
    candidates: Float[np.ndarray, " n"]
    """Partners the rank counts, the own one included."""
    log_sum: Float[np.ndarray, " n"]
    """log of the sum of exp(score / temperature) over the same partners."""
    hubness: Float[np.ndarray, " n"]
    """Mean of the ``near`` highest scores among the same partners."""
    nearest: Neighbours
    """Best partners of other groups, the own pair left out."""


class Graph:
    """Neighbour graph of audited rows.

    ``vectors``: modality to unit rows float32 [n, d]; ``present``: which rows have it; ``groups``: int64 [n], rows of
    one group show the same thing (captions of one picture) and are never compared, the default being a group a row.
    Raises :class:`InputError` for lengths that differ and unknown modalities.
    """

    def __init__(
        self,
        vectors: Mapping[str, Float[Tensor, "n _"]],
        present: Mapping[str, Bool[Tensor, " n"]],
        *,
        groups: Int64[np.ndarray, " n"] | None = None,
        near: int = 10,
        temperature: float = 0.1,
        ceiling: int = CEILING,
    ) -> None:
        lengths = {len(value) for value in (*vectors.values(), *present.values())}
        if len(lengths) != 1:
            raise InputError(f"vectors and masks have {sorted(lengths)} rows; give the same rows for every modality")
        self.rows = lengths.pop()
        self.vectors = {name: value.float() for name, value in vectors.items()}
        self.present = dict(present)
        self.groups = torch.arange(self.rows) if groups is None else torch.from_numpy(np.asarray(groups, np.int64))
        if len(self.groups) != self.rows:
            raise InputError(f"{len(self.groups)} groups for {self.rows} rows; give one for each row")
        self.near, self.temperature, self.ceiling = near, temperature, ceiling
        self._within: dict[str, Neighbours] = {}
        self._across: dict[tuple[str, str], Direction] = {}

    def within(self, modality: str) -> Neighbours:
        """Nearest rows of the same modality, the row itself and its group left out; rows without it have none."""
        self._know(modality)
        if modality not in self._within:
            self._within[modality] = self._pass(modality, modality).nearest
        return self._within[modality]

    def across(self, a: str, b: str) -> Direction:
        """From every row's ``a`` to all rows' ``b``."""
        self._know(a, b)
        if (a, b) not in self._across:
            self._across[a, b] = self._pass(a, b)
        return self._across[a, b]

    def scores(self, a: str, rows: Int64[np.ndarray, " m"], b: str, others: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Scores float32 [m] of ``a`` of the given rows with ``b`` of the given others, one by one."""
        found = [
            (self.vectors[a][left] * self.vectors[b][right]).sum(1)
            for left, right in zip(
                torch.split(torch.from_numpy(rows), 1 << 16),
                torch.split(torch.from_numpy(others), 1 << 16),
                strict=True,
            )
        ]
        return torch.cat(found).numpy() if found else np.zeros(0, np.float32)

    def block(self) -> int:
        """Rows compared at once under the ceiling."""
        return max(1, min(self.rows, self.ceiling // (4 * _MATRICES * max(1, self.rows))))

    def _know(self, *names: str) -> None:
        for name in names:
            if name not in self.vectors:
                raise unknown("modality of the graph", name, self.vectors)

    @torch.no_grad()
    def _pass(self, a: str, b: str) -> Direction:
        n, k = self.rows, min(self.near, max(1, self.rows - 1))
        out = {name: torch.full((n,), float("nan")) for name in ("own", "rank", "candidates", "log_sum", "hubness")}
        index, score = torch.full((n, k), -1), torch.full((n, k), -torch.inf)
        left, right, there = self.vectors[a], self.vectors[b], self.present[b]
        for rows in torch.split(torch.arange(n), self.block()):
            s = left[rows] @ right.T
            own = s[torch.arange(len(rows)), rows]
            barred = (self.groups[rows][:, None] == self.groups[None]) | ~there[None]
            s.masked_fill_(barred, -torch.inf)
            best, place = s.topk(k, 1)
            found = (best > -torch.inf) & self.present[a][rows][:, None]
            index[rows], score[rows] = torch.where(found, place, -1), torch.where(found, best, -torch.inf)
            higher, equal = (s > own[:, None]).sum(1), (s == own[:, None]).sum(1)
            top = torch.cat([best, own[:, None]], 1).topk(k, 1).values
            some = top > -torch.inf
            values = {
                "own": own,
                "rank": 1 + higher + equal / 2,
                "candidates": 1 + (~barred).sum(1),
                "hubness": torch.where(some, top, 0).sum(1) / some.sum(1),
                "log_sum": torch.logaddexp(torch.logsumexp(s.div_(self.temperature), 1), own / self.temperature),
            }
            usable = self.present[a][rows] & there[rows]
            for name, value in values.items():
                out[name][rows] = torch.where(usable, value.float(), torch.nan)
        nearest = Neighbours(index.numpy(), score.numpy())
        return Direction(nearest=nearest, **{name: value.numpy() for name, value in out.items()})

"""What a check sees and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int64

from consilience.audit.copies import Copies, find_copies
from consilience.audit.graph import Graph
from consilience.data.schema import Modalities
from consilience.data.table import Table


class NotApplicable(Exception):
    """Raised by a check whose precondition fails; the message says which. The audit goes on without it."""


@dataclass(frozen=True)
class Judged:
    """Rows that the same networks score under the same circumstances, so that their scores are comparable."""

    positions: Int64[np.ndarray, " m"]
    """Of the rows among the audited ones."""
    graph: Graph
    """Of these rows alone, as the networks that judge them see them."""
    seen: bool
    """Whether these networks were trained on these very pairs, so may have memorised them."""
    sample: str
    """``train`` for rows that a method learns from, ``held out`` for others: noise is estimated for each apart."""


@dataclass(frozen=True)
class Views:
    """What networks make of the audited rows."""

    graph: Graph
    """Of all audited rows: unit vectors of all networks side by side."""
    judged: Sequence[Judged]
    """Every row that is a pair in exactly one of them."""
    belief: Float[np.ndarray, " n"]
    """What the method itself believes of its training pairs, NaN elsewhere."""


@dataclass
class Context:
    """Everything a check may look at. Row ``i`` below is the i-th audited row."""

    table: Table
    rows: Int64[np.ndarray, " n"]
    """Offsets, in the order of ``index``."""
    modalities: Modalities
    pairs: Sequence[tuple[str, str]]
    """Modalities whose match is audited."""
    views: Views | None = None
    """None: audited without a model."""
    seed: int = 0
    bad: dict[tuple[int, str], str] = field(default_factory=dict)
    """(row, modality) to the reason why its bytes cannot be read; filled with :attr:`copies`."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def index(self) -> Int64[np.ndarray, " n"]:
        """Stable keys."""
        return np.asarray(self.table.indices()[self.rows])

    @cached_property
    def ids(self) -> list[str]:
        return [str(name) for name in self.table.take(self.rows, ["id"])["id"].to_pylist()]

    @cached_property
    def splits(self) -> np.ndarray:
        """object [n]."""
        return np.array(self.table.take(self.rows, ["split"])["split"].to_pylist(), dtype=object)

    @cached_property
    def groups(self) -> Int64[np.ndarray, " n"]:
        """Rows of one number show the same thing by design; one a row where the Table has no column ``group``."""
        return groups_of(self.table, self.rows)

    @cached_property
    def copies(self) -> Copies:
        """Duplicates, shared by the checks that need them; reads every sample once."""
        return find_copies(self.table, self.rows, self.modalities, self.groups, self.bad)

    def need_views(self) -> Views:
        """The views; NotApplicable without a model."""
        if self.views is None:
            raise NotApplicable("needs a model; give --run RUN or --train")
        return self.views


@dataclass(frozen=True)
class Finding:
    """What one check says of the audited rows."""

    score: Float[np.ndarray, " n"]
    """From 0 (bad) to 1; NaN where the check does not apply."""
    flagged: Bool[np.ndarray, " n"]
    text: str
    """One line: what was found."""
    info: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Columns for the Table, one value a row."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Row to why it is flagged, where there is more to say than the score."""
    others: Mapping[int, int] = field(default_factory=dict)
    """Row to the row it must be seen beside (its copy)."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the report draws and the figures of a planted experiment are made from (arrays, fits)."""
    skipped: str | None = None
    """Why the check did not apply."""


def groups_of(table: Table, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Group numbers of rows: by the column ``group``, rows without one (or all, without the column) alone."""
    alone = np.arange(len(rows), dtype=np.int64)
    if "group" not in table.columns or not pa.types.is_integer(table.schema.field("group").type):
        return alone
    values = table.take(rows, ["group"])["group"].to_pylist()
    keys: dict[Any, int] = {}
    return np.array([keys.setdefault(("row", i) if v is None else v, len(keys)) for i, v in enumerate(values)])

"""What a supervised method is told about its samples: columns of the Table as tensors, if it declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from consilience.data.columns import in_order
from consilience.data.decode import DecodeConfig
from consilience.data.pictures import placement
from consilience.data.schema import Target
from consilience.data.table import Table
from consilience.errors import InputError


@dataclass(frozen=True)
class TargetReader:
    """Reads declared columns of a Table; picklable. Build it with :meth:`of`."""

    kinds: Mapping[str, Target]
    names: Mapping[str, list[str]]
    """Names of the classes, for columns of kind class."""
    most: Mapping[str, int]
    """Places of a sample at most, for columns of kind places."""
    picture: str | None
    """The modality whose pixels places are positions in."""
    decode: DecodeConfig

    @classmethod
    def of(cls, table: Table, kinds: Mapping[str, Target], decode: DecodeConfig) -> TargetReader:
        """Raises InputError for columns that the Table lacks, and places without exactly one picture a sample."""
        names: dict[str, list[str]] = {}
        most: dict[str, int] = {}
        for column, kind in kinds.items():
            if column not in table.columns:
                raise InputError(
                    f"{table.path} has no column {column!r}, which this method learns from; import it with the data"
                )
            if kind is Target.CLASS:
                names[column] = class_names(table, column)
            elif kind is Target.PLACES:
                lists = table.take(table.select(), [column])[column]
                most[column] = max(1, max((len(entry) for entry in lists.to_pylist() if entry is not None), default=1))
        pictures = [name for name, kind in table.modalities.items() if kind.is_image]
        if most and len(pictures) != 1:
            raise InputError(f"{table.path} has {len(pictures)} picture modalities; places need one to be positions in")
        return cls(dict(kinds), names, most, pictures[0] if most else None, decode)

    def columns(self) -> list[str]:
        """What :meth:`read` needs of a row."""
        return [*self.kinds, *([self.picture] if self.picture else [])]

    def read(self, rows: pa.Table) -> dict[str, Tensor]:
        """Tensors of ``rows`` as :class:`~consilience.data.schema.Target` says."""
        found: dict[str, Tensor] = {}
        for column, kind in self.kinds.items():
            values = rows[column].to_pylist()
            if kind is Target.CLASS:
                code = {name: place for place, name in enumerate(self.names[column])}
                found[column] = torch.tensor([-1 if v is None else code[str(v)] for v in values], dtype=torch.int64)
            elif kind is Target.NUMBER:
                numbers = [float("nan") if v is None else float(v) for v in values]
                found[column] = torch.tensor(numbers, dtype=torch.float32)
            else:
                found[column] = self._places(column, values, rows)
        return found

    def shape(self, column: str) -> tuple[int, ...]:
        """Of one sample's value."""
        return (self.most[column], 2) if self.kinds[column] is Target.PLACES else ()

    def dtype(self, column: str) -> torch.dtype:
        """Of the tensor."""
        return torch.int64 if self.kinds[column] is Target.CLASS else torch.float32

    def _places(self, column: str, values: list[Any], rows: pa.Table) -> Tensor:
        out = torch.full((len(values), self.most[column], 2), float("nan"))
        assert self.picture is not None
        pictures = rows[self.picture]
        for row, points in enumerate(values):
            data = pictures[row].as_py()
            if points is None or data is None:
                raise InputError(
                    f'a row has no {column} or no {self.picture}; leave it out: --train.where "{column} is not null"'
                )
            if not points:
                continue
            where = placement(data, self.decode.image_size, self.decode.image_fit)
            out[row, : len(points)] = torch.from_numpy(where.place(np.asarray(points, dtype=np.float64)))
        return out


def class_names(table: Table, column: str) -> list[str]:
    """The different values of a column as text, in order."""
    found = table.take(table.select(), [column])[column].unique().to_pylist()
    return in_order({str(value) for value in found if value is not None})

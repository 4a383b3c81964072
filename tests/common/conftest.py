"""Every registered method goes through the same suite: registering is being tested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from consilience.data.importers import import_table
from consilience.data.schema import Kind, Target
from consilience.data.table import Table
from consilience.methods.registry import find, methods
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.selection import chosen_modalities


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", list(methods()))


class Tiny:
    """A method's ``NAME-tiny`` recipe on a private copy of the tiny table, with made-up columns where the method has
    targets."""

    def __init__(self, name: str, table: Path) -> None:
        content = read_yaml(f"{name}-tiny", "")
        self.name, self.path = name, table
        self.config: Any = merge(find(name).cls.Config(), content["method_config"])
        self.train = merge(TrainConfig(), content["train"])
        told = {name: kind for name, kind in find(name).cls.targets.items() if name != "label"}  # that is there already
        if told:
            made_up(self.table, told)

    @property
    def table(self) -> Table:
        return Table.open(self.path)

    @property
    def modalities(self) -> dict[str, Kind]:
        return chosen_modalities(self.table, self.train)


def made_up(table: Table, targets: Mapping[str, Target]) -> None:
    """Columns that a method learns from: some class, a number, a few places a row, all by the row's key."""
    keys = table.indices()
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for name, kind in targets.items():
        if kind is Target.CLASS:
            columns[name] = pa.array([("fog", "none", "rain")[int(key) % 3] for key in keys])
        elif kind is Target.NUMBER:
            columns[name] = rng.random(len(keys))
        else:
            places = [(28 * rng.random((int(key) % 4, 2))).tolist() for key in keys]
            columns[name] = pa.array(places, pa.list_(pa.list_(pa.float64())))
    table.write_columns(keys, columns, {"made": "up"})


@pytest.fixture
def tiny(method: str, tiny_table: Table, tmp_path: Path) -> Tiny:
    return Tiny(method, import_table(tiny_table.path, tmp_path / "table").path)

"""Every registered method goes through the same suite: registering is being tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilience.data.importers import import_table
from consilience.data.table import Table
from consilience.methods.registry import find, methods
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", list(methods()))


class Tiny:
    """A method's ``NAME-tiny`` recipe on a private copy of the tiny table."""

    def __init__(self, name: str, table: Path) -> None:
        content = read_yaml(f"{name}-tiny", "")
        self.name, self.path = name, table
        self.config: Any = merge(find(name).cls.Config(), content["method_config"])
        self.train = merge(TrainConfig(), content["train"])

    @property
    def table(self) -> Table:
        return Table.open(self.path)


@pytest.fixture
def tiny(method: str, tiny_table: Table, tmp_path: Path) -> Tiny:
    return Tiny(method, import_table(tiny_table.path, tmp_path / "table").path)

"""What every test may use. Shapes and dtypes in annotations are checked while the tests run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.checking  # noqa: F401  (the hook looks it up by name)

if TYPE_CHECKING:
    from consilience.data.table import Table

ROOT = Path(__file__).parents[1]
CHECKED = ("views", "encoders", "heads", "losses", "memory", "noise", "methods")
"""Rooms of pure tensor functions. ``evaluation`` is not among them: it checks what it is given by itself, with messages
for users, and its tests pass it wrong shapes on purpose."""

# Before any of these rooms is imported, so that every call compares its arguments and result with the annotations.
install_import_hook([f"consilience.{room}" for room in CHECKED], "tests.checking.check")

# A busy machine is no failure of the code under test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Test processes share the machine; subprocesses inherit this. Nothing is downloaded, no window opened.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of small real data sets beside the repository; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CONSILIENCE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"{folder}/data is absent (set CONSILIENCE_SHARED)")
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """48 training and 12 test pairs of the embedded digits. A test that writes columns works on a copy of it:
    ``import_table(tiny_table.path, tmp_path / "table")``."""
    from consilience.data.datasets import DATASETS, read_dataset
    from consilience.data.table import Row, Table

    rows = [row for row in read_dataset("mnist3d").rows if isinstance(row, Row)]
    train = [row for row in rows if row.split == "train"]
    test = [row for row in rows if row.split == "test"]
    path = tmp_path_factory.mktemp("tiny") / "table"
    return Table.create(path, train[:48] + test[:12], DATASETS["mnist3d"].modalities, "the first digits of mnist3d")

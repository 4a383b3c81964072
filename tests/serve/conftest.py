"""Small Tables with runs behind them, and the application over them in this process."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from consilience.cli.main import main
from consilience.data.table import Table
from consilience.search.searcher import Searcher
from consilience.serve.app import Options, create_app
from consilience.serve.limits import Limits
from consilience.training.api import Run, load
from tests.cli import tiny

ADDRESS = "http://127.0.0.1:8765"
WORDS = {"ball": "a round ball", "plate": "a flat plate", "rod": "a tall thin rod"}


@dataclass(frozen=True)
class Served:
    """A run and the Table that its encoders have filled."""

    run: Run
    path: Path

    def searcher(self) -> Searcher:
        return Searcher(self.run, Table.open(self.path))


FAST = ("--method.epochs", "1", "--method.batch_size", "16", "--train.threads", "1", "--train.device", "cpu", "--quiet")


def make(place: Path, kinds: str, modalities: str, forms: tuple[str, ...] = tiny.SHAPES) -> Served:
    """The tiny samples with captions as a Table, and a run of one epoch on two of its modalities."""
    entries = [entry for entry in tiny.files(place / "source") if entry["points"].rpartition(".")[2] in forms]
    for entry in entries:
        entry["text"] = WORDS[entry["label"]]
    source = place / "source" / "data.jsonl"
    source.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table, run = place / "table", place / "run"
    words = ["import", str(source), "-o", str(table), "--columns", "image=image,points=points,text=text"]
    assert main([*words, "--kinds", kinds, "--tokenizer", "bytes", "--json"]) == 0
    words = ["train", "contrastive", "--data", str(table), "-o", str(run), "--train.modalities", modalities]
    assert main([*words, *FAST, "--json"]) == 0
    assert main(["index", str(table), "--run", str(run), "--quiet", "--json"]) == 0
    return Served(load(run), table)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Grey pictures and clouds, searchable, and captions, which are not; 60 rows of three classes. Read only."""
    return make(tmp_path_factory.mktemp("served"), "image=grey,points=points,text=text", "image,points")


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The same with pictures and captions searchable. Read only."""
    return make(tmp_path_factory.mktemp("captions"), "image=grey,points=points,text=text", "image,text")


@pytest.fixture(scope="session")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Colour pictures and meshes, of the rows whose shape is one. Read only."""
    forms = ("off", "obj", "stl", "glb")
    return make(tmp_path_factory.mktemp("meshes"), "image=rgb,points=mesh,text=text", "image,points", forms)


@pytest.fixture
def copied(served: Served, tmp_path: Path) -> Served:
    """A private copy of the Table, with six suspicious pairs (rows 3 to 8, row 3 the worst)."""
    path = shutil.copytree(served.path, tmp_path / "table")
    suspect(Table.open(path))
    return Served(served.run, path)


def suspect(table: Table) -> None:
    """Columns as the audit leaves them."""
    index = np.arange(60)
    doubted = (index >= 3) & (index < 9)
    columns = {
        "suspicion": pa.array(["pair_mismatch" if bad else "" for bad in doubted]),
        "pair_trust": np.where(doubted, 0.01 * index, 0.95),
        "better_points": np.where(index == 3, 6, -1),
    }
    table.write_columns(index, columns, {"audit": "made up"})


Start = Callable[..., TestClient]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start the application over a searcher: ``start(served, Limits(...), api_key=...)``; ended after the module."""
    with ExitStack() as stack:

        def begin(what: Served, limits: Limits | None = None, api_key: str | None = None) -> TestClient:
            app = create_app(what.searcher(), Options(limits or Limits(), api_key))
            client = stack.enter_context(TestClient(app, base_url=ADDRESS))
            while client.get("/ready").status_code == 503:
                time.sleep(0.02)
            return client

        yield begin


@pytest.fixture(scope="module")
def client(start: Start, served: Served) -> TestClient:
    return start(served)


def png() -> bytes:
    return tiny.png(0)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()

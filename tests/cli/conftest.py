from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consilience.cli.main import main
from tests.cli import tiny


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout, read strictly: a second object, text or NaN fails."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """``consilience`` in this process: exit code and what was written to stdout and stderr."""

    def call(*words: Any) -> Answer:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """A call that must end with exit code 2, nothing on stdout and one line on stderr, which is returned."""

    def call(*words: Any) -> str:
        answer = cli(*words)
        lines = answer.err.splitlines()
        assert (answer.code, answer.out, len(lines)) == (2, "", 1), answer
        assert lines[0].startswith("consilience: ")
        return lines[0]

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, table) of a tiny training without anything special. Read only."""
    place = tmp_path_factory.mktemp("made")
    table, run = place / "table", place / "run"
    assert main(["import", str(tiny.manifest(place / "source", "csv")), "-o", str(table), "--json"]) == 0
    assert main(["train", "romo", "--data", str(table), "-o", str(run), *tiny.FAST, "--json"]) == 0
    return run, table


@pytest.fixture
def table(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A private copy of the table that the session's run has learnt from, to train on or to write columns to."""
    return shutil.copytree(made[1], tmp_path / "table")

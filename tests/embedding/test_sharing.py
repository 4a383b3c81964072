"""Embedding by several processes gives the bits of one, and goes on after a kill where it stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import consilience.embedding.job as job
import consilience.embedding.processes as processes
from consilience.data.table import Table
from consilience.embedding.job import embed, finish, plan
from consilience.embedding.processes import shared
from consilience.errors import ConsilienceError
from consilience.training.api import load
from tests.cli.conftest import made, table

__all__ = ["made", "table"]

PARTS, ROWS = 8, 8  # of 60 rows
COLUMNS = ("vector_image", "vector_points")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PART", ROWS)


@pytest.fixture
def whole(made: tuple[Path, Path], tmp_path: Path, small_parts: None) -> dict[str, np.ndarray]:
    """What one process writes that nobody disturbs."""
    copy = Table.open(shutil.copytree(made[1], tmp_path / "whole"))
    embed(load(made[0]), copy, quiet=True)
    return {name: Table.open(copy.path).column(name) for name in COLUMNS}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that this process encodes."""
    names: list[str] = []
    true_write = job._write_part

    def write(*arguments: object) -> None:
        true_write(*arguments)  # type: ignore[arg-type]
        names.append(Path(str(arguments[-1])).name)

    monkeypatch.setattr(job, "_write_part", write)
    return names


def same_bits(path: Path, whole: dict[str, np.ndarray]) -> None:
    opened = Table.open(path)
    for name, vectors in whole.items():
        found = opened.column(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors)
    assert not list(path.glob(".embedding-*"))


SCRIPT = """
import sys, time
import consilience.embedding.job as job
from consilience.data.table import Table
from consilience.embedding.processes import shared
from consilience.training.api import load
run, table, pause, rows = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
job.PART = rows
true_write = job._write_part
def write(*arguments):
    time.sleep(pause)
    true_write(*arguments)
job._write_part = write
job.embed(load(run), Table.open(table), by=shared, quiet=True)
"""


def ranks(count: int, run: Path, path: Path, pause: float = 0.0) -> list[str]:
    port = random.Random(os.getpid() + count).randrange(20_000, 60_000)
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"]
    words = [*words, "--no-python", sys.executable] if count > 1 else [sys.executable]
    return [*words, "-c", SCRIPT, str(run), str(path), str(pause), str(ROWS)]


def finish_process(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def _cmdline(pid: int) -> bytes:
    """Empty for a process that is gone or has only to be waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    """Process ids of the children, their children and so on."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = place.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(place.parent.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def kill_after(words: list[str], path: Path, parts: int) -> int:
    """Start a job, kill it and its children when ``parts`` of it are done; how many are then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(path.glob(".embedding-*/*.npz"))) < parts and time.monotonic() < deadline:
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.02)
    family = [process.pid, *descendants(process.pid)]  # torchrun's ranks are in sessions of their own
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() and _cmdline(pid) for pid in family):
        time.sleep(0.02)
    assert not set(COLUMNS) & set(Table.open(path).columns)
    return len(list(path.glob(".embedding-*/*.npz")))


def test_a_plan_is_the_same_for_everybody(made: tuple[Path, Path], table: Path, small_parts: None) -> None:
    run = load(made[0])
    first, second = plan(run, Table.open(table)), plan(run, Table.open(table))
    assert len(first) == PARTS
    assert first.left() == list(range(PARTS))
    assert first.folder == second.folder
    job.encode_part(run, first, 3)
    job.encode_part(run, first, 7)
    assert second.left() == [0, 1, 2, 4, 5, 6]
    with np.load(second.file(7)) as part:
        assert part["image"].shape[0] == 60 - 7 * ROWS
    other = plan(run, Table.open(table), batch_size=7)
    assert other.folder != first.folder, "other batches give other bits"
    for number in second.left():
        job.encode_part(run, second, number)
    assert finish(second) == {"image": "vector_image", "points": "vector_points"}


def test_all_columns_appear_in_one_version(made: tuple[Path, Path], table: Path) -> None:
    before = Table.open(table).version
    embed(load(made[0]), Table.open(table), quiet=True)
    assert Table.open(table).version == before + 1
    assert set(COLUMNS) <= set(Table.open(table).columns)
    embed(load(made[0]), Table.open(table), where="split = 'test'", quiet=True)
    image = Table.open(table).column("vector_image")
    assert np.isnan(image).all(1).sum() == 48
    assert np.isfinite(image).all(1).sum() == 12


def test_alone_it_is_the_plain_job(made: tuple[Path, Path], table: Path, whole: dict[str, np.ndarray]) -> None:
    assert embed(load(made[0]), Table.open(table), by=shared, quiet=True) == {
        "image": "vector_image",
        "points": "vector_points",
    }
    same_bits(table, whole)


def test_two_ranks_write_the_bits_of_one(made: tuple[Path, Path], table: Path, whole: dict[str, np.ndarray]) -> None:
    finish_process(ranks(2, made[0], table))
    same_bits(table, whole)


def test_killed_ranks_are_resumed_by_another_number(
    made: tuple[Path, Path], table: Path, whole: dict[str, np.ndarray], counted: list[str]
) -> None:
    done = kill_after(ranks(2, made[0], table, pause=0.3), table, parts=3)
    assert 3 <= done < PARTS
    counted.clear()
    embed(load(made[0]), Table.open(table), quiet=True)
    assert len(counted) == PARTS - done
    same_bits(table, whole)


def test_one_killed_process_is_resumed_by_two(
    made: tuple[Path, Path], table: Path, whole: dict[str, np.ndarray]
) -> None:
    kill_after(ranks(1, made[0], table, pause=0.3), table, parts=2)
    (folder,) = table.glob(".embedding-*")
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix == ".npz"}
    shown = table / "kept"
    shown.mkdir()
    for name in written:  # hard links tell after the job which files it has written again
        os.link(folder / name, shown / name)
    finish_process(ranks(2, made[0], table))
    assert all((shown / name).stat().st_nlink == 1 for name in written)
    assert {file.name: file.stat().st_mtime_ns for file in shown.iterdir()} == written
    same_bits(table, whole)


def test_ranks_that_plan_different_jobs_are_told(
    made: tuple[Path, Path], table: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)

    def told(box: list[object]) -> None:
        box[0] = ("the folder of rank 0's job", [0])

    monkeypatch.setattr(processes.dist, "broadcast_object_list", told)
    with pytest.raises(ConsilienceError, match="rank 1 plans other rows"):
        embed(load(made[0]), Table.open(table), by=shared, quiet=True)
    assert not set(COLUMNS) & set(Table.open(table).columns)

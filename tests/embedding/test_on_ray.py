"""Embedding on Ray: two workers of this machine, a job that is killed, a worker that dies; and the queue alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import consilience.embedding.job as job
from consilience.data.table import Table
from consilience.errors import ConsilienceError, InputError
from consilience.training.api import load
from tests.embedding.test_sharing import PARTS, ROWS, counted, kill_after, made, same_bits, small_parts, table, whole

ray = pytest.importorskip("ray", reason="needs Ray")
import consilience.embedding.on_ray as on_ray  # noqa: E402

__all__ = ["counted", "made", "small_parts", "table", "whole"]

SCRIPT = """
import sys, time
import consilience.embedding.job as job
import consilience.embedding.on_ray as on_ray
from consilience.data.table import Table
from consilience.training.api import load
job.PART = int(sys.argv[3])
class Slow(on_ray.Encoder):
    def encode(self, number):
        time.sleep(0.4)
        return super().encode(number)
on_ray.Encoder = Slow
job.embed(load(sys.argv[1]), Table.open(sys.argv[2]), by=on_ray.on_ray(2), quiet=True)
"""


@pytest.mark.slow
def test_a_killed_job_is_resumed_and_a_dead_worker_replaced(
    made: tuple[Path, Path],
    table: Path,
    whole: dict[str, np.ndarray],
    counted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First the job is killed with its Ray and all workers; then two workers do what is left, and one of them dies."""
    done = kill_after([sys.executable, "-c", SCRIPT, str(made[0]), str(table), str(ROWS)], table, parts=2)
    assert 2 <= done < PARTS
    (folder,) = table.glob(".embedding-*")
    left = [number for number in range(PARTS) if not (folder / f"{number:06d}.npz").exists()]
    begun = tmp_path / "begun"
    begun.mkdir()

    class Fragile(on_ray.Encoder):
        def encode(self, number: int) -> int:
            first = not list(begun.glob(f"{number}-*"))
            (begun / f"{number}-{os.getpid()}").touch()
            if first and number == left[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(number)

    monkeypatch.setattr(on_ray, "Encoder", Fragile)
    counted.clear()
    columns = job.embed(load(made[0]), Table.open(table), by=on_ray.on_ray(2), quiet=True)
    assert columns == {"image": "vector_image", "points": "vector_points"}
    assert not ray.is_initialized(), "a Ray that the job has started is stopped"
    assert counted == [], "this process encodes nothing"
    tries = sorted(int(path.name.split("-")[0]) for path in begun.iterdir())
    assert tries == sorted([*left, left[1]])
    assert len({path.name.split("-")[1] for path in begun.iterdir()}) == 3
    same_bits(table, whole)


class InProcess:
    """Of Ray what the queue uses, in this process and one call after the other."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.started = 0

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_restarts": 0}

        def wrap(kind: type) -> Any:
            outer = self

            class Actor:
                @staticmethod
                def remote(*arguments: Any) -> Any:
                    outer.started += 1
                    worker = kind(*arguments)

                    class Method:
                        @staticmethod
                        def remote(number: int) -> Any:
                            return object.__new__(type("Call", (), {"of": (worker, number)}))

                    class Handle:
                        encode = Method

                    return Handle

            return Actor

        return wrap

    def wait(self, calls: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return calls[-1:], calls[:-1]

    def get(self, call: Any) -> int:
        worker, number = call.of
        return int(worker.encode(number))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    fake = InProcess()
    monkeypatch.setattr(on_ray, "ray", fake)
    return fake


def test_the_queue_gives_every_part_once(
    made: tuple[Path, Path], table: Path, whole: dict[str, np.ndarray], counted: list[str], in_process: InProcess
) -> None:
    counted.clear()
    job.embed(load(made[0]), Table.open(table), by=on_ray.on_ray(3), quiet=True)
    assert sorted(counted) == [f"{number:06d}.npz" for number in range(PARTS)]
    assert in_process.started == 3
    same_bits(table, whole)


def test_a_part_that_kills_its_workers_ends_the_job(
    made: tuple[Path, Path],
    table: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    in_process: InProcess,
) -> None:
    class Doomed(on_ray.Encoder):
        def encode(self, number: int) -> int:
            if number == 1:
                raise ray.exceptions.ActorDiedError()
            return super().encode(number)

    monkeypatch.setattr(on_ray, "Encoder", Doomed)
    with pytest.raises(
        ConsilienceError, match=r"part 1 \(.*000001.npz\): 3 workers died of it, the last with ActorDied"
    ):
        job.embed(load(made[0]), Table.open(table), by=on_ray.on_ray(2), quiet=True)
    assert in_process.started == 2 + on_ray.TRIES - 1
    assert "vector_image" not in Table.open(table).columns


def test_the_workers_own_error_arrives(
    made: tuple[Path, Path], table: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, in_process: InProcess
) -> None:
    class Refusing(on_ray.Encoder):
        def encode(self, number: int) -> int:
            raise ray.exceptions.RayTaskError("encode", "trace", InputError(f"row {number} cannot be read"))

    monkeypatch.setattr(on_ray, "Encoder", Refusing)
    with pytest.raises(InputError, match=r"row \d cannot be read"):
        job.embed(load(made[0]), Table.open(table), by=on_ray.on_ray(1), quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"workers": 0}, "--workers 0"), ({"address": "127.0.0.1:1"}, "--address 127.0.0.1:1: .*refused")],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str, made: tuple[Path, Path], table: Path) -> None:
    with pytest.raises(InputError, match=message):
        job.embed(load(made[0]), Table.open(table), by=on_ray.on_ray(**options), quiet=True)

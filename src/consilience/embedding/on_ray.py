"""Embedding on Ray: actors that hold the encoder, a queue of parts, results that are files beside the Table."""

from __future__ import annotations

import socket
import warnings
from typing import Any

import ray
from tqdm import tqdm

from consilience.embedding.job import Plan, Worker, encode_part, finish
from consilience.errors import ConsilienceError, InputError
from consilience.training.api import Run, load

TRIES = 3
"""How often a part is begun before the job gives up: more workers than that have died of it."""
_STORE_BYTES = 80 << 20  # nothing but part numbers goes through Ray's object store


class Encoder:
    """What a worker is: a run, loaded once, and the plan whose parts it encodes."""

    def __init__(self, run: str, job: Plan) -> None:
        import torch

        torch.set_num_threads(1)
        self.run, self.job = load(run), job

    def encode(self, number: int) -> int:
        """Encode a part; returns its number."""
        encode_part(self.run, self.job, number)
        return number


def on_ray(workers: int = 2, address: str | None = None) -> Worker:
    """A :data:`~consilience.embedding.job.Worker`: ``workers`` actors of one CPU each share the parts.

    ``address``: a running cluster (``auto``, ``HOST:PORT``, ``ray://...``), whose nodes see the run's and the Table's
    folders at the same place; by default Ray is started on this machine and stopped at the end. A part whose worker
    dies is given to a new worker; a job that was killed goes on with the parts that are left. This process commits.
    Raises InputError for fewer than one worker and, when it works, for a cluster that cannot be reached;
    ConsilienceError for a part that :data:`TRIES` workers have died of.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")

    def work(run: Run, job: Plan, quiet: bool) -> dict[str, str]:
        left = job.left()
        if left:
            started = _start(workers, address)
            try:
                _encode_all(str(run.path.resolve()), job, left, min(workers, len(left)), quiet)
            finally:
                if started:
                    ray.shutdown()
        return finish(job)

    return work


def _start(workers: int, address: str | None) -> bool:
    """Join the cluster, or start one here; returns whether it is ours to stop. One that this process has joined
    already is used as it is."""
    if ray.is_initialized():
        return False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        settings |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    else:
        _reach(address)
        settings["address"] = address
    try:
        with warnings.catch_warnings():
            # Ray forks only to start its own programs, which know nothing of Lance
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--address {address}: {reason}; give a running Ray cluster, or none") from error
    return True


def _reach(address: str) -> None:
    """InputError when nobody listens at ``HOST:PORT``: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and other words, which Ray resolves by itself
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"--address {address}: {error}; give a running Ray cluster, or none") from error


def _encode_all(run: str, job: Plan, left: list[int], workers: int, quiet: bool) -> None:
    """The queue: every idle worker gets the next part; a dead one is replaced and its part goes back."""
    shared = ray.put(job)
    actor = ray.remote(num_cpus=1, max_restarts=0)(Encoder)
    queue, tries = list(reversed(left)), dict.fromkeys(left, 0)
    busy: dict[Any, tuple[Any, int]] = {}

    def give(worker: Any) -> None:
        number = queue.pop()
        tries[number] += 1
        busy[worker.encode.remote(number)] = (worker, number)

    for _ in range(workers):
        give(actor.remote(run, shared))
    with tqdm(total=len(left), desc="embed", disable=quiet, mininterval=1.0) as bar:
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            worker, number = busy.pop(done)
            try:
                ray.get(done)
                bar.update()
            except ray.exceptions.RayTaskError as error:
                raise _plain(error) from error
            except ray.exceptions.RayError as error:
                if tries[number] >= TRIES:
                    raise ConsilienceError(
                        f"part {number} ({job.file(number)}): {TRIES} workers died of it, the last with "
                        f"{type(error).__name__}; less --workers need less memory"
                    ) from error
                queue.append(number)
                worker = actor.remote(run, shared)
            if queue:
                give(worker)


def _plain(error: Any) -> Exception:
    """The worker's own exception."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else ConsilienceError(str(error).splitlines()[-1])

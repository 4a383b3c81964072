"""Decoding of untrusted uploads in processes of their own, which may be killed: with limits on time and memory.

A decoder process takes one upload at a time: a line of JSON and the bytes. It answers with a line of JSON and the
bytes of an array. Nothing is pickled, so that a process that was taken over can answer with wrong numbers at worst.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilience.data.decode import DecodeConfig, decode, decode_mesh, decode_points, measure
from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.serve.limits import Limits, Refusal
from consilience.serve.uploads import examine

SHOWN_POINTS, SHOWN_FACES = 2048, 12_000
"""Points and triangles that a viewer is given at most."""
Task = Literal["query", "shape"]
_READY, _START_SECONDS = b"ready", 120


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection


class Decoder:
    """``limits.decoders`` processes. Thread-safe; :meth:`close` ends them."""

    def __init__(self, limits: Limits, config: DecodeConfig) -> None:
        self.limits, self.config = limits, config
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._free: queue.Queue[_Worker | None] = queue.Queue()
        self._all: set[BaseProcess] = set()
        self._lock = threading.Lock()
        for _ in range(limits.decoders):
            self._free.put(None)  # started when first needed

    def start(self) -> None:
        """Start the processes now instead of at their first upload."""
        taken = [self._free.get() for _ in range(self.limits.decoders)]
        for worker in taken:
            self._free.put(worker or self._start())

    def query(self, data: bytes, form: str, kind: Kind) -> np.ndarray:
        """The array that an encoder of ``kind`` takes, as :func:`consilience.data.decode.decode` gives it.

        Raises :class:`Refusal` 422 for files that are broken, beyond the limits, or take too long or too much memory.
        """
        return self._do("query", data, form, kind)

    def shape(self, data: bytes, form: str, kind: Kind) -> np.ndarray:
        """What a viewer draws: see :func:`shape_of_sample`. Raises :class:`Refusal` like :meth:`query`."""
        return self._do("shape", data, form, kind)

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            for process in self._all:
                process.kill()
                process.join()
            self._all.clear()

    def _do(self, task: Task, data: bytes, form: str, kind: Kind) -> np.ndarray:
        with self._worker() as worker:
            head = {"task": task, "form": form, "kind": kind.value}
            try:
                worker.pipe.send_bytes(json.dumps(head).encode())
                worker.pipe.send_bytes(data)
                if not worker.pipe.poll(self.limits.decode_seconds):
                    reason = f"decoding took longer than {self.limits.decode_seconds:g} s; send a smaller file"
                    raise Refusal(422, reason, cause="decode_time")
                answer = json.loads(worker.pipe.recv_bytes(1 << 16))
                if "error" in answer:
                    raise _Sound(Refusal(422, answer["error"], cause=answer["cause"]))
                shape = tuple(answer["shape"])
                array = np.frombuffer(worker.pipe.recv_bytes(), dtype=np.dtype(answer["dtype"])).reshape(shape)
            except (EOFError, OSError) as error:
                raise Refusal(
                    422, f"the {form} file could not be decoded; it broke the decoder", cause="crash"
                ) from error
        return array

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """A process that is free; it is ended where its state is unknown after an error, and started anew later."""
        worker: _Worker | None = self._free.get()
        try:
            if (
                worker is not None and not worker.process.is_alive()
            ):  # ended from outside, while nothing was asked of it
                self._stop(worker)
                worker = None
            worker = worker or self._start()
            yield worker
        except _Sound as answer:
            raise answer.refusal from None
        except BaseException:
            if worker is not None:
                self._stop(worker)
            worker = None
            raise
        finally:
            self._free.put(worker)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        options = json.dumps({"limits": asdict(self.limits), "config": asdict(self.config)})
        process = self._context.Process(target=_run, args=(theirs, options), daemon=True)
        process.start()
        theirs.close()
        with self._lock:
            self._all.add(process)
        worker = _Worker(process, ours)
        try:
            if ours.poll(_START_SECONDS) and ours.recv_bytes() == _READY:
                return worker
        except (EOFError, OSError):
            pass
        self._stop(worker)
        raise Refusal(503, "no decoder could be started; try again", cause="decoder", retry_after=5)

    def _stop(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        with self._lock:
            self._all.discard(worker.process)


class _Sound(Exception):
    """A refusal by a decoder that goes on working."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def shape_of_sample(data: bytes, form: str, kind: Kind) -> np.ndarray:
    """Float32 [p, 3] points of a cloud, or [f, 9] corners of triangles of a mesh, within the unit ball.

    Large clouds give a choice of :data:`SHOWN_POINTS`, large meshes their :data:`SHOWN_FACES` largest triangles.
    A file of triangles gives triangles whatever ``kind`` it is read as. Raises InputError for broken data.
    """
    name = f"x.{form}"
    flat = form == "npy" or (form == "npz" and kind is not Kind.MESH)
    faces = 0 if flat else measure(data, Kind.MESH, name)[0]
    if not faces:
        count = measure(data, Kind.POINTS, name)[0]
        return decode_points(data, name, min(max(count, 8), SHOWN_POINTS))
    wanted = faces if form == "npz" else min(faces, SHOWN_FACES)
    rows = decode_mesh(data, name, wanted)[:SHOWN_FACES]
    corners = rows[:, 3:12].reshape(-1, 3, 3) + rows[:, None, :3]
    middle = (corners.min((0, 1)) + corners.max((0, 1))) / 2
    corners = corners - middle
    radius = float(np.linalg.norm(corners, axis=2).max())
    return np.ascontiguousarray((corners / max(radius, 1e-9)).reshape(-1, 9), dtype=np.float32)


def _run(pipe: Connection, options: str) -> None:
    """The decoder process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which lets requests finish
    said = json.loads(options)
    limits, config = Limits(**said["limits"]), DecodeConfig(**said["config"])
    _confine(limits)
    pipe.send_bytes(_READY)
    while True:
        try:
            head = json.loads(pipe.recv_bytes())
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            examine(data, head["form"], limits)
            kind = Kind(head["kind"])
            if head["task"] == "query":
                array = decode(data, kind, f"x.{head['form']}", config)
            else:
                array = shape_of_sample(data, head["form"], kind)
        except (Refusal, InputError) as error:
            cause = error.cause if isinstance(error, Refusal) else "broken"
            _answer(pipe, {"error": str(error)[:500], "cause": cause})
        except MemoryError:
            _answer(pipe, {"error": "decoding took too much memory; send a smaller file", "cause": "memory"})
        except Exception as error:
            _answer(pipe, {"error": f"the file could not be decoded ({type(error).__name__})", "cause": "broken"})
        else:
            _answer(pipe, {"shape": list(array.shape), "dtype": array.dtype.str}, array)


def _answer(pipe: Connection, head: dict[str, Any], array: np.ndarray | None = None) -> None:
    pipe.send_bytes(json.dumps(head).encode())
    if array is not None:
        pipe.send_bytes(np.ascontiguousarray(array).tobytes())


def _confine(limits: Limits) -> None:
    """No core dumps, no writing of files, a bound on memory, one thread. What a platform lacks is left out."""
    import resource

    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(OSError, ValueError):
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + limits.decode_bytes,) * 2)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (0, 0))

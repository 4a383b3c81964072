"""Fill vector columns of a Table: resumable, in bounded memory, stamped with the encoder's fingerprint."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from tqdm import tqdm

from consilience.data.loader import read
from consilience.data.table import Table
from consilience.errors import InputError, unknown
from consilience.files import make_folder, write_bytes
from consilience.training.api import Run

PART = 4096  # rows encoded between two writes: what a kill can cost


def fingerprint(run: Run) -> str:
    """16 hex digits that identify the encoder: method, configuration and weights."""
    content = save({name: value.contiguous().cpu() for name, value in run.method.state_dict().items()})
    return hashlib.sha256(run.folder.config_file.read_bytes() + content).hexdigest()[:16]


def column_of(modality: str, name: str = "vector") -> str:
    """The Table's column that holds the vectors of a modality."""
    return f"{name}_{modality}"


def embed(
    run: Run,
    table: Table | None = None,
    *,
    where: str | None = None,
    modalities: Sequence[str] | None = None,
    name: str = "vector",
    batch_size: int = 500,
    quiet: bool = False,
) -> dict[str, str]:
    """Write unit vectors float32 [n, d] of the rows that pass the SQL filter ``where`` into columns ``name_modality``.

    Returns modality to column. Rows without a modality, and rows that the filter leaves out, stay null. Finished parts
    are kept beside the Table until the columns are written, so a killed job goes on where it stopped. Raises
    InputError for a modality that the run does not know or whose kind differs.
    """
    table = table or run.table
    chosen = list(modalities or [m for m in run.method.modalities if m in table.modalities])
    if not chosen:
        raise InputError(f"{table.path} has none of the run's modalities: {', '.join(run.method.modalities)}")
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
    for column in (column_of(modality, name) for modality in chosen):
        if not column.isidentifier() or (column in table.columns and table.provenance(column) is None):
            raise InputError(f"{column!r} cannot name a new column of {table.path}; choose another --name")
    mark, rows = fingerprint(run), table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; widen the filter")
    provenance = {
        "run": str(run.path.resolve()),
        "fingerprint": mark,
        "method": run.folder.config()["method"],
    }
    key = hashlib.sha256(rows.tobytes() + ",".join(chosen).encode() + table.fingerprint().encode()).hexdigest()[:8]
    place = make_folder(table.path / f".embedding-{name}-{mark}-{key}")
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    for number, part in enumerate(tqdm(parts, desc="embed", disable=quiet, mininterval=1.0)):
        file = place / f"{number:06d}.npz"
        if not file.exists():
            _write_part(run, table, part, chosen, batch_size, file)
    columns: dict[str, Any] = {}
    loaded = [dict(np.load(place / f"{number:06d}.npz")) for number in range(len(parts))]
    for modality in chosen:
        vectors = np.concatenate([part[modality] for part in loaded])
        present = np.concatenate([part[f"{modality}.present"] for part in loaded])
        columns[modality] = (table.indices()[rows][present], vectors[present])
    for modality, (keys, vectors) in columns.items():
        table.write_columns(keys, {column_of(modality, name): vectors}, provenance)
    shutil.rmtree(place)
    return {modality: column_of(modality, name) for modality in chosen}


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

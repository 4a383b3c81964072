"""Code columns: written with the vectors of a method that learns codes, kept up to date, refused when another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.data.growth import append
from consilience.data.table import Row, Table
from consilience.embedding.columns import merge_rows, read_column
from consilience.embedding.hashing import hash_columns, hasher_of
from consilience.embedding.job import embed
from consilience.errors import InputError
from consilience.heads.codes import pack
from consilience.search.search import Query, Searcher, build_index
from consilience.search.stores import memory
from consilience.search.stores.base import Space
from tests.cli import tiny
from tests.search import fakes


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return fakes.run_at(tmp_path / "run")


@pytest.fixture
def table(run: Any, tmp_path: Path) -> Table:
    return fakes.made(tmp_path / "table", run)


def new_rows(first: int, count: int) -> list[Row]:
    values = [{"image": tiny.png(100 + i), "text": f"new{i}".encode()} for i in range(first, first + count)]
    return [Row(f"n{i}", "train", v, dict.fromkeys(v, "new")) for i, v in enumerate(values, first)]


def test_a_method_that_learns_codes_writes_them_with_its_vectors(run: Any, table: Table) -> None:
    run.method.binary = True
    embed(run, table, modalities=["image", "text"], name="own", codes="bits", quiet=True)
    opened = Table.open(table.path)
    for modality in ("image", "text"):
        keys, vectors = read_column(opened, f"own_{modality}")
        coded, codes = read_column(opened, f"bits_{modality}")
        np.testing.assert_array_equal(keys, coded)
        np.testing.assert_array_equal(codes, pack(vectors))
        owner = opened.provenance(f"bits_{modality}")
        assert owner is not None
        assert (owner["hasher"], owner["bits"], owner["of"]) == ("sign", fakes.WIDTH, f"own_{modality}")
    searcher = Searcher(run, opened, name="own", codes="bits")
    assert list(searcher.coded) == ["image", "text"]
    query = searcher.encode([Query("text", "word3 red heart")])
    best = searcher.search(query, into=["text"], by="code", k=1)[0][0]
    assert best.score > 0.5


def test_back_fill_encodes_and_codes_new_rows_only(run: Any, table: Table) -> None:
    del run.method.modalities["points"]  # of which the Table has none
    build_index(run, table, quiet=True)  # fills what the fake left out
    hash_columns(run, Table.open(table.path), bits=8, by="itq")
    before = {name: read_column(Table.open(table.path), name)[1] for name in ("vector_image", "code_image")}
    append(Table.open(table.path), new_rows(0, 3))
    told = build_index(run, Table.open(table.path), quiet=True)
    assert sorted(told["embedded"]) == ["image", "text"]
    assert told["codes"] == ["code_image", "code_text"]
    opened = Table.open(table.path)
    for name, values in before.items():
        keys, after = read_column(opened, name)
        np.testing.assert_array_equal(after[:-3], values)
        assert keys[-3:].tolist() == [fakes.ROWS, fakes.ROWS + 1, fakes.ROWS + 2]
    vectors = read_column(opened, "vector_image")[1]
    hasher = hasher_of(opened, "code_image")
    np.testing.assert_array_equal(read_column(opened, "code_image")[1], hasher.code(vectors))
    assert build_index(run, opened, quiet=True)["embedded"] == []


def test_codes_of_other_vectors_are_refused(run: Any, table: Table, tmp_path: Path) -> None:
    other = fakes.run_at(tmp_path / "other", 3)
    embed(other, table, modalities=["image", "text"], quiet=True)
    searcher = Searcher(other, Table.open(table.path))
    query = searcher.encode([Query("text", "x")])
    assert len(searcher.search(query)[0]) == 10
    with pytest.raises(
        InputError, match=r"code_image .* was filled by another encoder .* refill it: consilience index hash"
    ):
        searcher.search(query, into=["image"], by="code")
    assert build_index(other, Table.open(table.path), quiet=True)["codes"] == []


def test_merging_keeps_what_is_not_named(run: Any, table: Table) -> None:
    keys, vectors = read_column(table, "vector_text")
    owner = table.provenance("vector_text")
    assert owner is not None
    merge_rows(table, "vector_text", np.array([9, 3]), vectors[:2], owner)
    merge_rows(table, "vector_text", np.array([4]), None, owner)
    after, now = read_column(Table.open(table.path), "vector_text")
    expected = {key: row for key, row in zip(keys.tolist(), vectors, strict=True) if key != 4}
    expected |= {9: vectors[0], 3: vectors[1]}
    assert after.tolist() == sorted(expected)
    np.testing.assert_array_equal(now, [expected[key] for key in after.tolist()])
    with pytest.raises(InputError, match="holds rows of 16, not of 4 numbers"):
        merge_rows(table, "vector_text", np.array([1]), vectors[:1, :4], owner)
    merge_rows(table, "fresh_text", np.array([5]), vectors[:1], owner)
    assert read_column(Table.open(table.path), "fresh_text")[0].tolist() == [5]


@pytest.mark.parametrize("queries", [1, 63, 130])
def test_queries_shared_by_threads_are_answered_alike(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.faiss, "omp_get_max_threads", lambda: 3)
    draw = np.random.default_rng(0)
    codes, asked = (draw.integers(0, 256, (n, 4), dtype=np.uint8) for n in (500, queries))
    places, far = memory.nearest(Space("c", "hamming", 32, "x"), asked, codes, 7)
    gaps = np.unpackbits(asked[:, None] ^ codes[None], axis=2).sum(2)
    assert (np.take_along_axis(gaps, places, 1) == far).all()
    assert (np.sort(far, 1) == np.sort(gaps, 1)[:, :7]).all()

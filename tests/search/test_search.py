"""Search across modalities: the ranking is that of all cosines, and what does not fit is refused with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import consilience.search.search as searching
import consilience.search.stores.approximate as approximate
from consilience.data.decode import decode
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.search import Searcher, build_index, modality_of, query_vector, search
from consilience.training.api import Run, load
from tests.cli import tiny
from tests.cli.conftest import Cli


@pytest.fixture(scope="session")
def indexed(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Table]:
    """The run and a searchable copy of its table. Read only."""
    place = shutil.copytree(made[1], tmp_path_factory.mktemp("indexed") / "table")
    run = load(made[0])
    build_index(run, Table.open(place), quiet=True)
    return run, Table.open(place)


@pytest.fixture
def query(tmp_path: Path) -> Callable[[str], Path]:
    """A new sample's file: a picture or a cloud, by its format."""

    def write(form: str) -> Path:
        path = tmp_path / f"query.{form}"
        path.write_bytes(tiny.png(101) if form == "png" else tiny.shape_file(101, form))
        return path

    return write


def slow_ranking(run: Run, table: Table, vector: np.ndarray, into: str, where: str | None) -> list[tuple[str, float]]:
    """Every row's cosine with the query, one by one; best first."""
    found = []
    rows = table.take(table.select(where), ["id", into, f"origin_{into}"]).to_pylist()
    for row in rows:
        other = query_vector(
            run, into, decode(row[into], run.method.modalities[into], row[f"origin_{into}"], run.method.decode)
        )
        found.append((row["id"], float(vector @ other)))
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize(("form", "into"), [("png", "points"), ("npy", "image"), ("obj", "image"), ("glb", "image")])
@pytest.mark.parametrize("where", [None, "split = 'test'", "label = 'rod' or id = 's3'"])
def test_ranking_is_that_of_all_cosines(
    form: str, into: str, where: str | None, indexed: tuple[Run, Table], query: Callable[[str], Path]
) -> None:
    run, table = indexed
    asked = "image" if form == "png" else "points"
    file = query(form)
    hits = search(run, file, into=into, table=table, k=9, where=where)
    expected = slow_ranking(run, table, query_vector(run, asked, file), into, where)
    assert [hit.rank for hit in hits] == list(range(1, 10))
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected[:9]], atol=1e-5)
    scores = dict(expected)
    rows = {
        row["id"]: row
        for row in table.take(table.select(), ["id", "index", "split", "label", f"origin_{into}"]).to_pylist()
    }
    assert len({hit.id for hit in hits}) == 9
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-5)
        row = rows[hit.id]
        assert (hit.index, hit.split, hit.label, hit.origin) == (
            row["index"], row["split"], row["label"], row[f"origin_{into}"],
        )  # fmt: skip
        assert hit.modality == into


def test_a_query_may_be_a_file_bytes_or_an_array(indexed: tuple[Run, Table], query: Callable[[str], Path]) -> None:
    run, table = indexed
    file = query("png")
    value = decode(file.read_bytes(), Kind.GREY, "", run.method.decode)
    by_file = search(run, file, into="points", table=table)
    assert search(run, str(file), into="points", table=table) == by_file
    assert search(run, file.read_bytes(), into="points", modality="image", table=table) == by_file
    assert search(run, value, into="points", modality="image", table=table) == by_file
    assert np.linalg.norm(query_vector(run, "image", file)) == pytest.approx(1, abs=1e-5)


def test_a_stored_sample_finds_itself(indexed: tuple[Run, Table], tmp_path: Path) -> None:
    run, table = indexed
    row = table.take(table.select("id = 's17'"), ["image"])["image"][0].as_py()
    (tmp_path / "s17.png").write_bytes(row)
    best = search(run, tmp_path / "s17.png", into="image", table=table, k=1)[0]
    assert best.id == "s17"
    assert best.score == pytest.approx(1, abs=1e-5)


def test_fewer_rows_than_asked_for(indexed: tuple[Run, Table], query: Callable[[str], Path]) -> None:
    run, table = indexed
    assert len(search(run, query("png"), into="points", table=table, k=100)) == 60
    assert search(run, query("png"), into="points", table=table, where="id = 'nobody'") == []


def test_rows_without_vectors_are_not_found(made: tuple[Path, Path], table: Path, query: Callable[[str], Path]) -> None:
    run = load(made[0])
    build_index(run, Table.open(table), where="split = 'test'", quiet=True)
    hits = search(run, query("png"), into="points", table=Table.open(table), k=60)
    assert len(hits) == 12
    assert {hit.split for hit in hits} == {"test"}


WRONG: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no such file": (lambda p: p / "gone.png", {}, "gone.png does not exist; give a file"),
    "a text file": (lambda p: p / "text.txt", {}, "text.txt: "),
    "a broken picture": (lambda p: p / "broken.png", {}, "broken.png: broken image"),
    "a broken cloud": (lambda p: p / "broken.npy", {"into": "image"}, "broken.npy: broken NumPy file"),
    "too few points": (lambda p: p / "few.npy", {"into": "image"}, "few.npy: 3 points; a cloud needs at least 8"),
    "no modality": (lambda p: b"bytes", {}, "a query without a file name needs its modality; pass modality="),
    "unknown modality": (lambda p: p / "good.png", {"modality": "imgae"}, "did you mean 'image'?"),
    "unknown target": (lambda p: p / "good.png", {"into": "point"}, "did you mean 'points'?"),
    "no results": (lambda p: p / "good.png", {"k": 0}, "-k 0: ask for at least 1 result"),
    "wrong shape": (lambda p: np.zeros((3, 28, 28)), {"modality": "image"}, "query has shape (3, 28, 28); image of"),
    "bad filter": (lambda p: p / "good.png", {"where": "splt = 'test'"}, "splt"),
    "no filter at all": (lambda p: p / "good.png", {"where": "split = "}, "filter 'split = ' does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(what: str, indexed: tuple[Run, Table], tmp_path: Path) -> None:
    run, table = indexed
    (tmp_path / "good.png").write_bytes(tiny.png(0))
    (tmp_path / "broken.png").write_bytes(tiny.png(0)[:70])
    (tmp_path / "broken.npy").write_bytes(tiny.shape_file(0, "npy")[:100])
    np.save(tmp_path / "few.npy", tiny.cloud(0)[:3])
    (tmp_path / "text.txt").write_text("hello")
    make, options, message = WRONG[what]
    with pytest.raises(InputError) as caught:
        search(run, make(tmp_path), table=table, **{"into": "points", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_that_fits_two_modalities_needs_a_name(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        method=SimpleNamespace(modalities={"image": Kind.RGB, "grey": Kind.GREY, "points": Kind.POINTS})
    )
    (tmp_path / "a.png").write_bytes(tiny.png(0))
    (tmp_path / "a.npy").write_bytes(tiny.shape_file(0, "npy"))
    assert modality_of(run, tmp_path / "a.npy") == "points"
    with pytest.raises(InputError, match=r"fits image and grey of this run; name one with --modality"):
        modality_of(run, tmp_path / "a.png")


def test_index_fills_gaps_and_keeps_what_is_there(made: tuple[Path, Path], table: Path) -> None:
    run = load(made[0])
    first = build_index(run, Table.open(table), where="split = 'test'", quiet=True)
    assert first["embedded"] == ["image", "points"]
    assert first["filled"] == {"vector_image": 12, "vector_points": 12}
    assert build_index(run, Table.open(table), where="split = 'test'", quiet=True)["embedded"] == []
    more = build_index(run, Table.open(table), where="label = 'rod'", quiet=True)
    assert more["embedded"] == ["image", "points"]
    assert more["filled"] == {"vector_image": 12 + 16, "vector_points": 12 + 16}
    assert build_index(run, Table.open(table), quiet=True)["filled"] == {"vector_image": 60, "vector_points": 60}
    assert build_index(run, Table.open(table), quiet=True)["embedded"] == []


def test_large_tables_get_an_inverted_file(
    made: tuple[Path, Path], table: Path, query: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "EXACT_BELOW", 50)
    monkeypatch.setattr(approximate, "_SMALLEST", 50)
    run = load(made[0])
    told = build_index(run, Table.open(table), quiet=True)
    assert told["columns"] == {"vector_image": "ivf", "vector_points": "ivf"}
    assert isinstance(Searcher(run, Table.open(table)).store("vector_points"), approximate.ApproximateStore)
    found = search(run, query("png"), into="points", table=Table.open(table), k=5)
    expected = slow_ranking(run, Table.open(table), query_vector(run, "image", query("png")), "points", None)
    assert [hit.score for hit in found] == pytest.approx([score for _, score in expected[:5]], abs=1e-5)
    with torch.no_grad():
        for parameter in run.method.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()).view_as(parameter)))
    assert build_index(run, Table.open(table), quiet=True)["embedded"] == ["image", "points"]
    found = search(run, query("png"), into="points", table=Table.open(table), k=5)
    expected = slow_ranking(run, Table.open(table), query_vector(run, "image", query("png")), "points", None)
    assert [hit.score for hit in found] == pytest.approx([score for _, score in expected[:5]], abs=1e-5)


def test_another_encoders_vectors_are_refused(
    cli: Cli,
    refused: Callable[..., str],
    made: tuple[Path, Path],
    table: Path,
    tmp_path: Path,
    query: Callable[[str], Path],
) -> None:
    file, other = query("png"), tmp_path / "other"
    before = refused("search", table, file)
    assert f"{table} holds no vectors; fill it: consilience index {table} --run RUN" in before
    assert f"holds no vectors of points; run: consilience index {table} --run {made[0]}" in refused(
        "search", table, file, "--run", made[0]
    )
    assert cli("index", table, "--run", made[0], "--quiet").code == 0
    assert cli("train", "romo", "--data", table, "-o", other, *tiny.FAST, "--train.seed", "5").code == 0
    line = refused("search", table, file, "--run", other)
    assert f"vector_points of {table} was filled by another encoder ({made[0]})" in line
    assert f"search with --run {made[0]} or refill it: consilience index {table} --run {other}" in line
    assert cli("search", table, file).code == 0
    assert cli("index", table, "--run", other, "--quiet", "--json").json["embedded"] == ["image", "points"]
    assert cli("search", table, file, "--run", other).code == 0
    assert "was filled by another encoder" in refused("search", table, file, "--run", made[0])
    shutil.rmtree(other)
    assert f"{other}, the run that filled {table}, is gone; say where it is with --run RUN" in refused(
        "search", table, file
    )


def test_a_configuration_changed_by_hand_is_another_encoder(
    cli: Cli,
    refused: Callable[..., str],
    made: tuple[Path, Path],
    table: Path,
    tmp_path: Path,
    query: Callable[[str], Path],
) -> None:
    """The weights fit, but the pictures would be decoded to another size."""
    assert cli("index", table, "--run", made[0], "--quiet").code == 0
    copy = shutil.copytree(made[0], tmp_path / "copy")
    content = yaml.safe_load((copy / "config.yaml").read_text())
    content["method_config"]["encoders"]["image_size"] = 24
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    assert "was filled by another encoder" in refused("search", table, query("png"), "--run", copy)


def test_search_verb(cli: Cli, indexed: tuple[Run, Table], query: Callable[[str], Path]) -> None:
    run, table = indexed
    for form, asked, into in (("png", "image", "points"), ("ply", "points", "image")):
        file = query(form)
        answer = cli("search", table.path, file, "-k", "3", "--where", "split = 'test'", "--json")
        assert (answer.code, answer.err) == (0, "")
        found = answer.json
        assert (found["query"], found["modality"], found["into"]) == (str(file), asked, into)
        hits = search(run, file, into=into, table=table, k=3, where="split = 'test'")
        assert [(hit["id"], hit["score"], hit["split"]) for hit in found["hits"]] == [
            (hit.id, hit.score, "test") for hit in hits
        ]
        lines = cli("search", table.path, file, "--k=3", "--where", "split = 'test'").out.splitlines()
        assert lines[0] == f"{asked} {file} -> {into}, by cosine similarity"
        assert len(lines) == 4
        assert lines[1].split()[:2] == ["1", f"{hits[0].score:.3f}"]
        assert hits[0].origin in lines[1]
        assert f"class {hits[0].label}" in lines[1]
    same = cli("search", table.path, query("png"), "--into", "image", "--json").json
    assert same["into"] == "image"
    assert len(same["hits"]) == 5
    nothing = cli("search", table.path, query("png"), "--where", "id = 'nobody'")
    assert nothing.code == 0
    assert "no row passes the filter" in nothing.out


def test_search_verb_names_a_bad_query(refused: Callable[..., str], indexed: tuple[Run, Table], tmp_path: Path) -> None:
    path = indexed[1].path
    (tmp_path / "x.txt").write_text("hello")
    assert f"query {tmp_path / 'gone.png'} does not exist; give a file" in refused(
        "search", path, tmp_path / "gone.png"
    )
    assert f"query {tmp_path / 'x.txt'}: " in refused("search", path, tmp_path / "x.txt")
    assert "did you mean 'points'?" in refused("search", path, tmp_path / "x.txt", "--into", "pionts")
    assert "did you mean 'image'?" in refused("search", path, tmp_path / "x.txt", "--modality", "imag")
    assert "-k 0: ask for at least 1 result" in refused("search", path, tmp_path / "x.txt", "-k", "0")

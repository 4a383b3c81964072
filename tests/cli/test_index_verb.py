"""``consilience index``: one action after the other on a Table that grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilience.search.stores.approximate as approximate
from consilience.cli.index_verb import ACTIONS
from consilience.data.table import Table
from consilience.search.searcher import Searcher
from consilience.search.stats import measure_recall
from consilience.search.stores.columns import space_of
from consilience.training.api import load
from tests.cli import tiny
from tests.cli.conftest import Cli
from tests.search import fakes


def more(root: Path, first: int, count: int, **changed: str) -> Path:
    """A manifest of samples ``first`` and later; ``changed``: id to the number of the picture it now has."""
    root.mkdir()
    entries = []
    for i in range(first, first + count):
        picture = changed.get(f"s{i}", i)
        (root / f"{i}.png").write_bytes(tiny.png(int(picture)))
        (root / f"{i}.npy").write_bytes(tiny.shape_file(i, "npy"))
        entries.append({"id": f"s{i}", "split": "train", "label": "rod", "image": f"{i}.png", "points": f"{i}.npy"})
    return tiny.write_manifest(root / "data.jsonl", entries)


def test_a_table_through_its_life(cli: Cli, made: tuple[Path, Path], table: Path, tmp_path: Path) -> None:
    run = str(made[0])
    first = cli("index", table, "--run", run, "--quiet", "--json").json
    assert (first["action"], first["embedded"], first["codes"]) == ("build", ["image", "points"], [])
    assert cli("index", "build", table, "--run", run, "--quiet", "--json").json["embedded"] == []
    hashed = cli("index", "hash", table, "--run", run, "--bits", "16", "--json").json
    assert (hashed["columns"], hashed["bits"], hashed["by"]) == (
        {"image": "code_image", "points": "code_points"}, 16, "itq",
    )  # fmt: skip
    source = more(tmp_path / "more", 60, 5)
    grown = cli("index", "append", table, source, "--quiet", "--json").json
    assert (grown["added"], grown["rows"]) == (5, 65)
    assert cli("index", "append", table, source, "--quiet", "--json").json["added"] == 0
    told = cli("index", "stats", table, "--json").json
    assert {name: (facts["filled"], facts["missing"]) for name, facts in told["columns"].items()} == dict.fromkeys(
        ("vector_image", "vector_points", "code_image", "code_points"), (60, 5)
    )
    assert told["columns"]["vector_image"]["run"] == run
    before = Table.open(table).column("vector_image", "index < 60")
    again = cli("index", table, "--run", run, "--quiet", "--json").json
    assert (again["embedded"], again["codes"]) == (["image", "points"], ["code_image", "code_points"])
    opened = Table.open(table)
    np.testing.assert_array_equal(opened.column("vector_image", "index < 60"), before)  # back-fill touches the rest not
    assert not np.isnan(opened.column("vector_image")).any()
    assert len(opened.select("code_image is not null")) == 65
    changed = cli("index", "upsert", table, more(tmp_path / "new", 60, 5, s61="17"), "--quiet", "--json").json
    assert (changed["replaced"], changed["rows"]) == (1, 65)
    assert cli("index", "stats", table, "--json").json["columns"]["vector_image"]["missing"] == 1
    assert cli("index", table, "--run", run, "--quiet", "--json").code == 0
    gone = cli("index", "delete", table, "--where", "split = 'test'", "--json").json
    assert (gone["deleted"], gone["rows"]) == (12, 53)
    small = cli("index", "optimise", table, "--json").json
    assert small["rows"] == 53
    listed = cli("index", "versions", table, "--json").json["versions"]
    assert listed[-1]["version"] == Table.open(table).version
    assert listed[-1]["rows"] == 53
    searcher = Searcher(load(run), Table.open(table))
    for by in ("vector", "code"):
        hits = searcher.search(searcher.encode([_query()]), k=200, by=by)[0]
        assert len(hits) == 106
        assert "test" not in {hit.split for hit in hits}


def _query() -> Any:
    from consilience.search.query import Query

    return Query("image", tiny.png(3))


def test_what_is_printed(cli: Cli, made: tuple[Path, Path], table: Path, tmp_path: Path) -> None:
    run = made[0]
    assert "no vectors; fill it: consilience index" in cli("index", "stats", table).out
    assert "codes:" not in cli("index", table, "--run", run, "--quiet").out
    assert "code_image, code_points (16 bits, sign)" in cli(
        "index", "hash", table, "--run", run, "--bits", 16, "--by", "sign"
    ).out  # fmt: skip
    stats = cli("index", "stats", table, "--recall").out
    assert "vector_image: 60 filled, 0 missing, 16 numbers, 64 B" in stats
    assert "code_points: 60 filled, 0 missing, 16 bits, 2 B" in stats
    assert "recall@10 code: 0." in stats
    assert f"romo {Searcher(load(run), Table.open(table)).fingerprint} of {run}; answered by exact" in stats
    out = cli("index", "append", table, more(tmp_path / "more", 60, 2), "--quiet").out
    assert "2 added, 0 replaced, 0 skipped, 0 bad; 62 rows" in out
    assert f"next    consilience index {table} --run RUN" in out
    assert "1 deleted; 61 rows" in cli("index", "delete", table, "--where", "id = 's60'").out
    assert "61 rows" in cli("index", "versions", table, "--last", 1).out
    assert "fragments [" in cli("index", "optimise", table).out
    assert "thumb_image, thumb_points" in cli("index", "thumbnails", table, "--quiet").out


def test_thumbnails_are_drawn_once(cli: Cli, table: Path, tmp_path: Path) -> None:
    import io

    assert cli("index", "thumbnails", table, "--quiet", "--json").json["columns"] == {
        "image": "thumb_image", "points": "thumb_points",
    }  # fmt: skip
    opened = Table.open(table)
    pictures = opened.column("thumb_image")
    assert all(Image.open(io.BytesIO(data)).size == (72, 72) for data in pictures)
    assert len({bytes(data) for data in opened.column("thumb_points")}) > 30
    version = opened.version
    assert cli("index", "thumbnails", table, "--quiet").code == 0
    assert Table.open(table).version == version
    cli("index", "append", table, more(tmp_path / "more", 60, 2), "--quiet")
    cli("index", "thumbnails", table, "--modalities", "image", "--quiet")
    after = Table.open(table)
    assert len(after.select("thumb_image is not null")) == 62
    assert len(after.select("thumb_points is not null")) == 60
    np.testing.assert_array_equal(after.column("thumb_image", "index < 60"), pictures)


def test_a_map_of_the_vectors(cli: Cli, made: tuple[Path, Path], table: Path) -> None:
    cli("index", table, "--run", made[0], "--quiet")
    assert cli("index", "map", table, "--json").json["columns"] == {"image": "map_image", "points": "map_points"}
    assert Table.open(table).column("map_image").shape == (60, 2)


def test_recall_is_that_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr(approximate, "_SMALLEST", 30)
    monkeypatch.setattr(approximate, "_SAMPLES", 10)
    run = fakes.run_at(tmp_path / "run")
    table = fakes.made(tmp_path / "table", run, ties=False)
    approximate.build_approximate(table, "vector_image", target=0.3)
    index = approximate.ApproximateStore(table, space_of(table, "vector_image"))
    rows = table.take(table.select("vector_image is not null"), ["index", "vector_image", "code_image"]).to_pylist()
    vectors = {row["index"]: np.float64(row["vector_image"]) for row in rows}
    bits = {row["index"]: np.unpackbits(np.uint8(row["code_image"])).astype(int) for row in rows}

    def best(of: int, score: Callable[[int], float], among: list[int], k: int) -> list[int]:
        return sorted((i for i in among if i != of), key=lambda i: (-score(i), i))[:k]

    found = {"ivf": 0.0, "code": 0.0, "code, 100 reranked": 0.0}
    for i, v in vectors.items():
        everyone = list(vectors)
        true = set(best(i, lambda j, v=v: vectors[j] @ v, everyone, 10))
        coded = best(i, lambda j, i=i: -int((bits[j] != bits[i]).sum()), everyone, 100)
        again = best(i, lambda j, v=v: vectors[j] @ v, coded, 10)
        keys = [key for key in index.search(np.float32(v)[None], 11)[0][0] if key != i][:10]
        for name, mine in (("ivf", keys), ("code", coded[:10]), ("code, 100 reranked", again)):
            found[name] += len(true & set(mine)) / 10 / len(vectors)
    measured = measure_recall(table, space_of(table, "vector_image"), queries=1000)
    measured |= measure_recall(table, space_of(table, "code_image"), queries=1000)
    assert (measured["queries"], measured["k"]) == (len(vectors), 10)
    assert measured["ivf"] == pytest.approx(found["ivf"], abs=1e-9)
    assert measured["code, 100 reranked"] == pytest.approx(found["code, 100 reranked"], abs=0.01)
    assert measured["code"] == pytest.approx(found["code"], abs=0.03)  # codes tie at the tenth place
    told = cli("index", "stats", table.path, "--recall", "--json").json["columns"]
    assert told["vector_image"]["engine"] == "ivf"
    assert told["vector_image"]["index"]["fresh"] is True
    assert 0.2 < told["vector_image"]["recall"]["ivf"] <= 1
    assert told["vector_text"]["recall"] == {}
    assert measure_recall(table, space_of(table, "vector_text")) == {}


def test_two_models_side_by_side(cli: Cli, made: tuple[Path, Path], table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert cli("train", "romo", "--data", table, "-o", other, *tiny.FAST, "--train.seed", "5").code == 0
    cli("index", table, "--run", made[0], "--quiet")
    cli("index", table, "--run", other, "--name", "second", "--quiet")
    told = cli("index", "stats", table, "--json").json["columns"]
    assert {name: facts["run"] for name, facts in told.items()} == {
        "vector_image": str(made[0]), "vector_points": str(made[0]),
        "second_image": str(other), "second_points": str(other),
    }  # fmt: skip
    assert told["vector_image"]["encoder"] != told["second_image"]["encoder"]
    (tmp_path / "q.png").write_bytes(tiny.png(101))
    one = cli("search", table, tmp_path / "q.png", "--json").json["hits"]
    two = cli("search", table, tmp_path / "q.png", "--name", "second", "--json").json["hits"]
    assert [h["score"] for h in one] != [h["score"] for h in two]
    assert len(one) == len(two) == 5


def test_wrong_requests_are_refused(refused: Callable[..., str], made: tuple[Path, Path], table: Path) -> None:
    for words, message in (
        (("index", table), "needs the encoders' run: --run RUN"),
        (("index", "hash", table), "needs the encoders' run: --run RUN"),
        (("index", "hash", table, "--run", made[0], "--bits", 16), "holds no vectors; fill it"),
        (("index", "delete", table), "needs the rows to remove: --where SQL"),
        (("index", "delete", table, "--where", "splt = 1"), "splt"),
        (("index", "append", table), "source"),
        (("index", "stats", table, "--recal"), "did you mean '--recall'?"),
        (("index", "stats", table, "--bits", 3), "unknown option '--bits'"),
        (("index", "thumbnails", table, "--modalities", "imge"), "did you mean 'image'?"),
        (("index", "map", table), "holds no vectors"),
        (("index", "push", table), "needs a place: --to"),
        (("index", "push", table, "--to", "ftp://there"), "ftp"),
        (("index", "stats", table / "gone"), "is not a table"),
        (("index", table, "--run", made[0], "--engine", "exat"), "--engine"),
    ):
        assert message in refused(*words), words


def test_every_action_has_help(cli: Cli) -> None:
    assert all(f"  {name} " in cli("index", "--help").out for name in ACTIONS)
    for name in ACTIONS:
        answer = cli("index", name, "--help")
        assert answer.code == 0
        assert answer.out.startswith(f"usage: consilience index {name} TABLE")


def test_push_and_search_there(cli: Cli, made: tuple[Path, Path], table: Path, tmp_path: Path) -> None:
    """Into an in-process Milvus and back out: the same rows as the Table's own answer."""
    pytest.importorskip("milvus_lite")
    assert cli("index", table, "--run", made[0], "--quiet").code == 0
    place = tmp_path / "there.db"
    told = cli("index", "push", table, "--to", place, "--columns", "vector_points", "--json", "--quiet").json
    assert told["columns"]["vector_points"]["written"] == told["columns"]["vector_points"]["held"] > 0
    again = cli("index", "push", table, "--to", place, "--columns", "vector_points", "--json", "--quiet").json
    assert (again["columns"]["vector_points"]["written"], again["columns"]["vector_points"]["unchanged"]) == (
        0,
        told["columns"]["vector_points"]["held"],
    )
    (tmp_path / "q.png").write_bytes(tiny.png(101))
    words = ("search", table, tmp_path / "q.png", "--into", "points", "--json")
    here, there = cli(*words).json["hits"], cli(*words, "--engine", place).json["hits"]
    assert [hit["index"] for hit in here] == [hit["index"] for hit in there]

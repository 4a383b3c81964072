"""What is asked: words, files, bytes and arrays, one or several at once, and rows of the Table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import consilience.cli.asking as asking
import consilience.training.api as api
from consilience.data.features import reference
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.search.query import Query, encode, fuse, modality_of
from consilience.search.searcher import Options, Searcher
from tests.cli import tiny
from tests.cli.conftest import Cli
from tests.search import fakes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fakes.run_at(tmp_path_factory.mktemp("fake") / "run")


@pytest.fixture(scope="module")
def table(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Read only."""
    return fakes.made(tmp_path_factory.mktemp("fake") / "table", run)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(tiny.png(1))
    (tmp_path / "b.png").write_bytes(tiny.png(2))
    (tmp_path / "c.npy").write_bytes(tiny.shape_file(1, "npy"))
    (tmp_path / "words.txt").write_text("red heart")
    return tmp_path


@pytest.fixture
def here(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line loads the fake run."""
    monkeypatch.setattr(api, "load", lambda place, device="cpu": run)


def test_encoding_together_is_encoding_alone(run: Any, files: Path) -> None:
    asked = [
        Query("text", "red heart"),
        Query("image", files / "a.png"),
        Query("text", "blue star"),
        Query("image", str(files / "b.png")),
        Query("image", tiny.png(2)),
        Query("text", files / "words.txt"),
        Query("points", files / "c.npy"),
    ]
    together = encode(run, asked)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for query, vector in zip(asked, together, strict=True):
        # the fake divides by the batch's own spread, so that alone means in a batch of its own kind
        alone = encode(run, [q for q in asked if q.modality == query.modality])
        place = [q for q in asked if q.modality == query.modality].index(query)
        np.testing.assert_allclose(alone[place], vector, atol=1e-6)
    np.testing.assert_allclose(together[3], together[4], atol=1e-6)
    np.testing.assert_allclose(together[0], together[5], atol=1e-6)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 100))
def test_fusing_ranks_by_the_weighted_mean_of_cosines(weights: list[float], seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors, stored = fakes.unit(draw.standard_normal((len(weights), 8))), fakes.unit(draw.standard_normal((50, 8)))
    mean = sum(w * (stored @ v) for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    fused = fuse(vectors, weights)
    assert np.linalg.norm(fused) == pytest.approx(1, abs=1e-5)
    scores = stored @ fused
    np.testing.assert_allclose(scores / np.linalg.norm(scores), mean / np.linalg.norm(mean), atol=1e-4)


def test_what_cannot_be_fused_is_refused(run: Any, table: Table) -> None:
    one = fakes.unit(np.ones((1, 8)))
    for vectors, weights, message in (
        (one[:0], [], "nothing to search with"),
        (one, [0.0], "each must be above 0"),
        (one, [float("nan")], "each must be above 0"),
        (np.concatenate([one, -one]), [1, 1], "cancel out"),
    ):
        with pytest.raises(InputError, match=message):
            fuse(vectors, weights)
    with pytest.raises(InputError, match="nothing to search with"):
        Searcher(run, table).fuse([])


def test_the_format_tells_the_modality(files: Path) -> None:
    def of(file: str, *kinds: Kind) -> str:
        run: Any = SimpleNamespace(method=SimpleNamespace(modalities={kind.value: kind for kind in kinds}))
        return modality_of(run, files / file)

    assert of("words.txt", Kind.RGB, Kind.POINTS, Kind.TEXT) == "text"
    assert of("c.npy", Kind.RGB, Kind.POINTS, Kind.TEXT) == "points"
    assert of("a.png", Kind.RGB, Kind.POINTS, Kind.TEXT) == "rgb"
    with pytest.raises(InputError, match="fits points and vector of this run; name one with --modality"):
        of("c.npy", Kind.POINTS, Kind.VECTOR)
    with pytest.raises(InputError, match="fits no modality of this run"):
        of("a.png", Kind.POINTS, Kind.TEXT)


def test_a_query_cannot_point_into_other_files(tmp_path: Path) -> None:
    """Rows of a Table may refer to a row of a feature file; whoever may ask must not make us read files by that."""
    np.save(tmp_path / "secret.npy", np.zeros((3, 4), np.float32))
    run = fakes.run_at(tmp_path / "run")
    run.method.modalities["points"] = Kind.VECTOR
    pointer = reference(tmp_path / "secret.npy", 1)
    with pytest.raises(InputError, match="refers to another file; give the features themselves"):
        encode(run, [Query("points", pointer)])


def test_more_like_a_row(run: Any, table: Table) -> None:
    searcher = Searcher(run, table)
    vector = np.asarray(table.take(table.offsets_of(np.array([24])), ["vector_image"]).column(0)[0].as_py(), np.float32)
    everything = searcher.search(vector[None], k=300)[0]
    for into in (None, ["text"], ["image"]):
        hits = searcher.similar(24, "image", into=into, k=8)
        expected = [h for h in everything if h.index != 24 and (into is None or h.modality in into)][:8]
        assert [(h.id, h.modality) for h in hits] == [(h.id, h.modality) for h in expected]
        assert [h.rank for h in hits] == list(range(1, 9))
    assert searcher.similar(24, "image", into=["image"], k=1)[0].index == 34  # its twin
    assert {h.split for h in searcher.similar(24, "image", where="split = 'test'", k=5)} == {"test"}
    with pytest.raises(InputError, match=r"row 7 of .* has no image"):
        searcher.similar(7, "image")
    with pytest.raises(InputError, match="has no row with index 500"):
        searcher.similar(500, "image")


def test_words_on_the_command_line(cli: Cli, here: None, run: Any, table: Table, files: Path) -> None:
    searcher = Searcher(run, table)
    answer = cli("search", table.path, "--text", "red heart", "--into", "image", "-k", 3, "--json").json
    vector = encode(run, [Query("text", "red heart")])
    assert [h["id"] for h in answer["hits"]] == [h.id for h in searcher.search(vector, into=["image"], k=3)[0]]
    assert (answer["modality"], answer["into"], answer["query"]) == ("text", "image", "red heart")
    both = cli(
        "search", table.path, "--text", "red heart", "--image", files / "a.png", "--weights", "text=3", "--into",
        "text,image", "--json",
    ).json  # fmt: skip
    fused = searcher.fuse([Query("text", "red heart", 3), Query("image", files / "a.png")])
    assert [(h["id"], h["modality"]) for h in both["hits"]] == [
        (h.id, h.modality) for h in searcher.search(fused[None], into=["text", "image"], k=5)[0]
    ]
    assert (both["modality"], both["into"]) == ("text,image", "text,image")
    text = cli("search", "--into", "text,image", table.path, files / "a.png").out.splitlines()
    assert text[0] == f"image {files / 'a.png'} -> text,image, by cosine similarity"
    assert all(line.split()[3] in ("text", "image") for line in text[1:])
    named = cli("search", table.path, "--ask", f"image={files / 'a.png'}", "--json").json
    assert named["hits"] == cli("search", table.path, files / "a.png", "--json").json["hits"]
    assert named["into"] == "text"


def test_codes_on_the_command_line(cli: Cli, here: None, run: Any, table: Table) -> None:
    searcher = Searcher(run, table)
    vector = encode(run, [Query("text", "blue")])
    for words, options in (
        (("--by", "code"), {"by": "code"}),
        (("--by", "code", "--rerank", 40), {"by": "code", "rerank": 40}),
        (("--by", "code", "--asymmetric"), {"by": "code", "asymmetric": True}),
        (("--standardise", "--into", "image,text"), {"into": ["image", "text"], "standardise": True}),
        (("--engine", "lance"), {}),
    ):
        answer = cli("search", table.path, "--text", "blue", "-k", 4, *words, "--json")
        hits = searcher.search(vector, **{"into": ["image"], "k": 4, **options})[0]
        assert [h["id"] for h in answer.json["hits"]] == [h.id for h in hits], words
        assert answer.json["hits"][0]["score"] == pytest.approx(hits[0].score, abs=1e-5)


def test_like_on_the_command_line(cli: Cli, refused: Callable[..., str], here: None, run: Any, table: Table) -> None:
    hits = Searcher(run, table).similar(24, "image", into=["text"], k=5)
    for row in ("s24", "24"):
        answer = cli("search", table.path, "--like", row, "--json").json
        assert [h["id"] for h in answer["hits"]] == [h.id for h in hits]
    assert cli("search", table.path, "--like", "s7", "--json").json["modality"] == "text"
    assert "has no row with id or index 'nobody'" in refused("search", table.path, "--like", "nobody")
    assert "row s9 of" in refused("search", table.path, "--like", "s9")
    assert "leave out --by code" in refused("search", table.path, "--like", "s1", "--by", "code")


def test_batches_on_the_command_line(cli: Cli, here: None, run: Any, table: Table, files: Path) -> None:
    searcher = Searcher(run, table)
    lines = [
        {"text": "red heart"},
        {"image": "a.png", "text": "red heart", "weights": {"image": 2}},
        {"image": "b.png", "text": None},
    ]
    (files / "asked.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    out = files / "answers.jsonl"
    told = cli("search", table.path, "--batch", files / "asked.jsonl", "-o", out, "--json").json
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert answers == told["answers"]
    assert [a["into"] for a in answers] == ["image", "image,text", "text"]
    vectors = encode(run, [Query("text", "red heart")] * 2)
    pictures = encode(run, [Query("image", files / "a.png"), Query("image", files / "b.png")])
    expected = [vectors[0], fuse(np.stack([pictures[0], vectors[1]]), [2, 1]), pictures[1]]
    for answer, vector in zip(answers, expected, strict=True):
        hits = searcher.search(vector[None], into=answer["into"].split(","), k=5)[0]
        assert [h["id"] for h in answer["hits"]] == [h.id for h in hits]
    printed = cli("search", table.path, "--batch", files / "asked.jsonl").out.splitlines()
    assert [json.loads(line)["hits"] for line in printed] == [a["hits"] for a in answers]


def test_bad_questions_are_refused(
    refused: Callable[..., str], here: None, table: Table, files: Path, run: Any
) -> None:
    place, batch = table.path, files / "bad.jsonl"
    for words, message in (
        ((), "nothing to search with; give a FILE"),
        (("--text", "x", "--like", "s1"), "--like and a query do not go together; give one"),
        (("--text", ""), "the caption is empty"),
        (("--mesh", files / "c.npy"), "--mesh fits no modality of this run; name one with --ask NAME=VALUE"),
        (("--ask", "imge=a.png"), "did you mean 'image'?"),
        (("--ask", "nothing"), "write it as NAME=VALUE"),
        (("--text", "x", "--weights", "image=2"), "--weights weighs image, which is not asked with"),
        (("--text", "x", "--weights", "text=heavy"), "weights are numbers above 0"),
        (("--text", "x", "--weights", "text=-1"), "each must be above 0"),
        (("--text", "x", "--into", "imgae"), "did you mean 'image'?"),
        (("--text", "x", "--engine", "exat"), "did you mean 'exact'?"),
        (("--batch", files / "gone.jsonl"), "does not exist; give a JSONL file"),
        ((files / "a.png", files / "b.png"), "unexpected argument"),
    ):
        assert message in refused("search", place, *words), words
    for line, message in (
        ("", "holds no queries"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1: write an object such as"),
        ("{}", "line 1 asks with nothing"),
        ('{"imgae": "a.png"}', "line 1: unknown modality of the run 'imgae'; did you mean 'image'?"),
        ('{"image": 3}', "line 1: image is 3; give a file's name"),
        ('{"text": "x", "weights": {"image": 2}}', "line 1 weighs image, which is not asked with"),
        ('{"image": "gone.png"}', "gone.png does not exist"),
    ):
        batch.write_text(line + "\n")
        assert message in refused("search", place, "--batch", batch), line


def test_options_name_a_modality_by_its_kind(run: Any) -> None:
    assert asking._named(run, "image") == "image"
    other: Any = SimpleNamespace(method=SimpleNamespace(modalities={"photo": Kind.RGB, "caption": Kind.TEXT}))
    assert asking._named(other, "text") == "caption"
    assert asking._named(other, "image") == "photo"


def test_options_are_checked_before_anything_is_encoded(run: Any, table: Table) -> None:
    searcher = Searcher(run, table)
    assert searcher.check(Options()) == ["image", "text"]
    assert searcher.check(Options(["text", "text"])) == ["text"]
    with pytest.raises(InputError, match="-k 0"):
        searcher.check(Options(k=0))

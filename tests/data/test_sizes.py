"""What travels with a Table: the tokenizer and the sizes its samples ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from consilience.data import sizes
from consilience.data.check import check
from consilience.data.decode import DecodeConfig
from consilience.data.features import reference
from consilience.data.loader import Loader, read
from consilience.data.reading import Bad, Reading, write_reading
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.data.text import tokenizer
from consilience.errors import InputError

from .conftest import KINDS, make_rows, npy, png

TEXT = {"text": Kind.TEXT}
WORDS = ["a red dog", "a blue dog runs", "the red cat", "ein roter Hund", "a dog"]


def captions(texts: list[str | None], test: int = 0) -> Iterator[Row]:
    """One row a caption with a vector beside it, the last ``test`` in split test."""
    for i, text in enumerate(texts):
        yield Row(
            id=f"c{i}",
            split="test" if i >= len(texts) - test else "train",
            values={"text": None if text is None else text.encode(), "vector": npy(np.ones(3 + i % 2, np.float32))},
            origins={"text": f"list[{i}]", "vector": f"v[{i}]"},
        )


def reading(texts: list[str | None], sizes: dict[str, object] | None = None, test: int = 0) -> Reading:
    return Reading("made up", {"text": Kind.TEXT, "vector": Kind.VECTOR}, captions(texts, test), sizes=sizes or {})


def test_sizes_are_measured(tmp_path: Path) -> None:
    table = write_reading(reading([*WORDS, None]), tmp_path / "t", None, "stop")
    assert table.sizes == {"tokenizer": "bytes", "max_tokens": len("a blue dog runs") + 2, "vector_width": 4}
    assert Table.create(tmp_path / "plain", make_rows(4), KINDS, "s").sizes == {}
    batch = next(read(table, table.select(), DecodeConfig(**table.sizes), 6))
    assert batch.present["text"].tolist() == [True] * 5 + [False]
    assert (batch.values["text"][5] == -1).all()
    assert bytes((batch.values["text"][4] - 4)[1:6].tolist()) == b"a dog"
    assert batch.values["vector"][0].tolist() == [1, 1, 1, 0]


def test_what_the_source_says_is_not_measured(tmp_path: Path) -> None:
    table = write_reading(reading(WORDS, {"vector_width": 9, "max_tokens": 7}), tmp_path / "t", None, "stop")
    assert table.sizes == {"tokenizer": "bytes", "max_tokens": 7, "vector_width": 9}


def test_long_captions_count_as_128(tmp_path: Path) -> None:
    table = write_reading(reading(["x" * 500]), tmp_path / "t", None, "stop")
    assert table.sizes["max_tokens"] == 128


def test_regions_are_measured_in_bytes_and_in_references(tmp_path: Path) -> None:
    array = tmp_path / "ims.npy"
    np.save(array, np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32))
    values = [npy(np.ones((3, 6))), reference(array, 0), reference(array, 1)]
    rows = (Row(f"r{i}", "train", {"image": data}, {"image": f"{i}"}) for i, data in enumerate(values))
    table = write_reading(Reading("s", {"image": Kind.REGIONS}, rows), tmp_path / "t", None, "stop")
    assert table.sizes == {"regions": 5, "region_width": 6}
    batch = next(read(table, table.select(), DecodeConfig(**table.sizes), 3))
    np.testing.assert_array_equal(batch.values["image"][2].numpy(), np.load(array)[1])
    assert (batch.values["image"][0, 3:] == 0).all()
    report = check(table).modalities["image"]
    assert (report.kind, report.formats) == ("regions", {"npy": 1, "reference": 2})
    assert (report.smallest, report.largest) == ([3, 6], [5, 6])


def test_rows_that_repeat_a_picture_prove_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, proved = tmp_path / "ims.npy", []
    np.save(array, np.ones((2, 5, 6), np.float32))
    one = sizes.prove
    monkeypatch.setattr(sizes, "prove", lambda data, *more: proved.append(data) or one(data, *more))
    rows = (Row(f"r{i}", "train", {"image": reference(array, i // 5)}, {}) for i in range(10))
    table = write_reading(Reading("s", {"image": Kind.REGIONS}, rows), tmp_path / "t", None, "stop")
    assert proved == [reference(array, 0), reference(array, 1)]
    assert len(table) == 10
    assert table.sizes == {"regions": 5, "region_width": 6}


@pytest.mark.parametrize("request_", ["fit-words", "fit-bpe:280"])
def test_a_tokenizer_is_fitted_on_the_training_captions(tmp_path: Path, request_: str) -> None:
    texts = [*WORDS * 4, "zebra zebra zebra zebra zebra"]
    table = write_reading(reading(texts, test=1), tmp_path / "t", None, "stop", tokenizer=request_)
    coder = tokenizer(table.sizes["tokenizer"])
    longest = max(len(coder.encode(text)) for text in texts)
    assert table.sizes["max_tokens"] == longest
    content = json.loads((table.path / "tokenizer.json").read_text())
    if request_ == "fit-words":
        assert "zebra" not in content["word2idx"]
        assert coder.encode("a zebra") == [1, content["word2idx"]["a"], 3, 2]
    else:
        assert coder.size <= 280
        assert len(coder.encode("zebra")) == 5 + 2
    assert {path.name for path in table.path.iterdir()} == {"samples.lance", "tokenizer.json"}


def test_a_copied_table_finds_its_own_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_reading(reading(WORDS * 4), tmp_path / "t", None, "stop", tokenizer="fit-words")
    shutil.copytree(table.path, tmp_path / "copy")
    shutil.rmtree(table.path)
    monkeypatch.chdir(tmp_path)
    copied = Table.open("copy")
    assert copied.sizes["tokenizer"] == f"words:{tmp_path / 'copy' / 'tokenizer.json'}"
    assert tokenizer(copied.sizes["tokenizer"]).size > 4


def test_the_file_of_a_source_is_kept_with_the_table(tmp_path: Path) -> None:
    given = write_reading(reading(WORDS * 4), tmp_path / "a", None, "stop", tokenizer="fit-words")
    path = given.path / "tokenizer.json"
    table = write_reading(reading(WORDS, {"tokenizer": f"words:{path}"}), tmp_path / "b", None, "stop")
    assert table.sizes["tokenizer"] == f"words:{tmp_path / 'b' / 'tokenizer.json'}"
    assert (table.path / "tokenizer.json").read_bytes() == path.read_bytes()
    assert table.sizes["max_tokens"] == 6
    over = write_reading(
        reading(WORDS, {"tokenizer": f"words:{path}"}), tmp_path / "c", None, "stop", tokenizer="bytes"
    )
    assert over.sizes["tokenizer"] == "bytes"


def test_bad_samples_do_not_count_and_nothing_is_left_behind(tmp_path: Path) -> None:
    texts: list[str | None] = ["a dog", " ", "y" * 100]
    with pytest.raises(InputError, match=r"'c1', text from list\[1\]: nothing to read.*quarantine"):
        write_reading(reading(texts), tmp_path / "t", None, "stop")
    assert not (tmp_path / "t").exists()

    def rows() -> Iterator[Row | Bad]:
        yield from captions(texts[:2])
        yield Row("c2", "train", {"text": b"z" * 99, "vector": npy(np.array([np.nan]))}, {"vector": "v"})
        yield Row("c3", "train", {"text": b"\xff", "vector": None}, {"text": "t"})
        yield Row("c4", "train", {"text": b"t", "vector": npy(np.zeros((0,)))}, {})
        yield Row("c5", "train", {"text": None, "vector": None}, {"text": "here"})

    whole = Reading("s", {"text": Kind.TEXT, "vector": Kind.VECTOR}, rows())
    table = write_reading(whole, tmp_path / "t", None, "quarantine")
    assert table.sizes == {"tokenizer": "bytes", "max_tokens": 7, "vector_width": 3}
    lines = [json.loads(line) for line in (table.path / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line["modality"]) for line in lines] == [
        ("c1", "text"),
        ("c2", "vector"),
        ("c3", "text"),
        ("c4", "vector"),
        ("c5", "every modality"),
    ]
    for line, reason in zip(
        lines, ("nothing to read", "NaN", "not UTF-8", "no values", "nothing to read"), strict=True
    ):
        assert reason in line["reason"]


def test_empty_captions_are_fine_for_ids(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"word2idx": {"<start>": 1, "<end>": 2}, "idx": 9}))
    rows = (Row(f"{i}", "train", {"text": text.encode()}, {}) for i, text in enumerate(["", "5,7"]))
    table = write_reading(Reading("s", TEXT, rows, sizes={"tokenizer": f"ids:{path}"}), tmp_path / "t", None, "stop")
    batch = next(read(table, table.select(), DecodeConfig(**table.sizes), 2))
    assert batch.values["text"].tolist() == [[1, 2, -1, -1], [1, 5, 7, 2]]
    assert check(table).problems == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("fit-word", "did you mean 'fit-words'"),
        ("fit-bpe:100", "at least 260"),
        ("fit-bpe", "at least 260"),
        ("fit-words:9", "expected fit-words"),
        ("wrods:x", "unknown tokenizer 'wrods'"),
        ("words:/nowhere.json", "nowhere.json"),
    ],
)
def test_bad_requests(tmp_path: Path, request_: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_reading(reading(WORDS), tmp_path / "t", None, "stop", tokenizer=request_)
    assert not (tmp_path / "t").exists()


def test_requests_that_find_no_captions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'bytes' has no captions"):
        write_reading(Reading("s", KINDS, make_rows(3)), tmp_path / "t", None, "stop", tokenizer="bytes")
    with pytest.raises(InputError, match="no caption is in split train"):
        write_reading(reading(WORDS, test=5), tmp_path / "t", None, "stop", tokenizer="fit-words")
    assert list(tmp_path.iterdir()) == []


def test_kinds_chosen_by_name(tmp_path: Path) -> None:
    rows = [Row("a", "train", {"x": b"5"}, {}), Row("b", "train", {"x": b"hello"}, {})]
    table = write_reading(Reading("s", {"x": None}, iter(rows)), tmp_path / "t", {"x": "text"}, "stop")
    assert table.modalities == {"x": Kind.TEXT}
    arrays = [Row("a", "train", {"x": npy(np.ones((2, 3)))}, {})]
    named = write_reading(Reading("s", {"x": Kind.POINTS}, iter(arrays)), tmp_path / "r", {"x": "regions"}, "stop")
    assert named.sizes == {"regions": 2, "region_width": 3}
    with pytest.raises(InputError, match="did you mean 'vector'"):
        write_reading(Reading("s", {"x": None}, iter(rows)), tmp_path / "u", {"x": "vectr"}, "stop")


def test_the_loader_keeps_types_and_the_cache_agrees(tmp_path: Path) -> None:
    table = write_reading(reading([*WORDS, None]), tmp_path / "t", None, "stop")
    sizes = DecodeConfig(**table.sizes)
    plain, cached = (
        Loader(table, table.select(), sizes, 3, seed=0, shuffle=True, cache=cache) for cache in (False, True)
    )
    for _ in range(2):
        for left, right in zip(plain.epoch(1), cached.epoch(1), strict=True):
            assert left.values["text"].dtype == Kind.TEXT.dtype == right.values["text"].dtype
            for name in ("text", "vector"):
                assert left.values[name].equal(right.values[name])
                assert left.present[name].equal(right.present[name])


def test_copies_inside_a_group_are_no_copies(tmp_path: Path) -> None:
    picture = png(np.zeros((4, 4), np.uint8))
    rows = [
        Row(f"{g}#{i}", "train", {"image": picture, "text": f"{g} {i}".encode()}, {}, scalars={"group": g})
        for g in range(2)
        for i in range(3)
    ]
    import pyarrow as pa

    kinds = {"image": Kind.GREY, "text": Kind.TEXT}
    table = Table.create(tmp_path / "t", rows, kinds, "s", scalars={"group": pa.int64()})
    (copies,) = check(table).copies_within
    assert (copies.modality, copies.ids) == ("image", ["0#0", "1#0"])
    text = check(table).modalities["text"]
    assert (text.formats, text.smallest, text.largest) == ({"text": 6}, [3], [3])

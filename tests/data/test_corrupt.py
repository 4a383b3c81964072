from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.corrupt import (
    corrupt_labels,
    corrupt_table,
    flip_labels,
    shuffle_pairs,
    shuffle_partners_within_class,
)
from consilience.data.reading import Reading, write_reading
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError

from .conftest import png


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**31))
def test_exactly_the_asked_share_is_mismatched(n: int, ratio: float, seed: int) -> None:
    index = np.random.default_rng(n).permutation(1000)[:n]
    partners, true = shuffle_pairs(index, ratio, seed)
    wanted = round(ratio * n)
    assert (~true).sum() == (wanted if wanted > 1 else 0)
    assert sorted(partners) == sorted(index)
    assert (true == (partners == index)).all()
    again, _ = shuffle_pairs(index, ratio, seed)
    assert (again == partners).all()


@given(st.integers(1, 60), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_partners_stay_within_their_class(n: int, classes: int, ratio: float, seed: int) -> None:
    rng = np.random.default_rng(n)
    index, labels = rng.permutation(1000)[:n], rng.integers(0, classes, n)
    partners, true = shuffle_partners_within_class(index, labels, seed, ratio)
    label_of = dict(zip(index.tolist(), labels.tolist(), strict=True))
    assert [label_of[partner] for partner in partners.tolist()] == labels.tolist()
    assert sorted(partners) == sorted(index)
    most = sum(round(ratio * int((labels == code).sum())) for code in range(classes))
    assert (~true).sum() <= most


def test_seeds_differ_and_a_full_class_shuffle_leaves_few_pairs() -> None:
    """A random permutation has one fixed point on average, so 10 classes keep about 10 of 1000 pairs."""
    index, labels = np.arange(1000), np.arange(1000) % 10
    kept = [int(shuffle_partners_within_class(index, labels, seed)[1].sum()) for seed in range(20)]
    assert 5 < np.mean(kept) < 15
    assert (shuffle_pairs(index, 0.5, 0)[0] != shuffle_pairs(index, 0.5, 1)[0]).any()


def test_bad_ratios_and_lengths() -> None:
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="ratio"):
            shuffle_pairs(np.arange(4), ratio, 0)
    with pytest.raises(InputError, match="one for each"):
        shuffle_partners_within_class(np.arange(4), np.arange(3), 0)


# Labels


@given(st.integers(0, 60), st.integers(2, 6), st.floats(0, 1), st.integers(0, 2**31))
def test_exactly_the_asked_share_of_labels_is_wrong(n: int, classes: int, ratio: float, seed: int) -> None:
    codes = np.random.default_rng(n).integers(-1, classes, n)
    flipped, right = flip_labels(codes, classes, ratio, seed)
    assert (~right).sum() == round(ratio * int((codes >= 0).sum()))
    assert (right == (flipped == codes)).all()
    assert (flipped[codes < 0] == -1).all()
    assert ((flipped >= 0) & (flipped < classes))[codes >= 0].all()
    assert (flip_labels(codes, classes, ratio, seed)[0] == flipped).all()


def test_flips_are_uniform_over_the_other_classes() -> None:
    flipped, right = flip_labels(np.full(9000, 2), 4, 1.0, 0)
    assert not right.any()
    counts = np.bincount(flipped, minlength=4)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3]] - 3000).max() < 4 * np.sqrt(9000 * (1 / 3) * (2 / 3))


def test_bad_flips() -> None:
    with pytest.raises(InputError, match="ratio 2 of wrong labels"):
        flip_labels(np.arange(3), 3, 2, 0)
    with pytest.raises(InputError, match="class codes 0 to 3; expected -1 to 2"):
        flip_labels(np.arange(4), 3, 0.5, 0)
    with pytest.raises(InputError, match="1 class has no other"):
        flip_labels(np.zeros(4, np.int64), 1, 0.5, 0)
    assert flip_labels(np.zeros(4, np.int64), 1, 0.0, 0)[1].all()
    assert flip_labels(np.zeros(0, np.int64), 0, 0.5, 0)[0].shape == (0,)


# Tables


def captions(tmp_path: Path) -> Table:
    """20 training and 4 test rows; two captions a picture; training row 3 lacks its caption."""
    rows = (
        Row(
            id=f"r{i}",
            split="train" if i < 20 else "test",
            values={"image": png(np.full((3, 3), i // 2, np.uint8)), "text": None if i == 3 else f"text {i}".encode()},
            origins={"image": f"{i // 2}.png"} | ({} if i == 3 else {"text": f"list[{i}]"}),
            label="ab"[i % 2],
            scalars={"group": i // 2, "weight": i / 2},
        )
        for i in range(24)
    )
    kinds = {"image": Kind.GREY, "text": Kind.TEXT}
    scalars = {"group": pa.int64(), "weight": pa.float64()}
    reading = Reading("made up", kinds, rows, scalars)
    return write_reading(reading, tmp_path / "whole", None, "stop", tokenizer="fit-bpe:270")


def column(table: Table, name: str) -> list[object]:
    found: list[object] = table.take(table.select(), [name])[name].to_pylist()
    return found


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_a_corrupted_table_keeps_the_truth(tmp_path: Path, ratio: float) -> None:
    table = captions(tmp_path)
    table.write_columns(np.arange(24), {"derived": np.arange(24.0)}, {"by": "test"})
    noisy = corrupt_table(table, tmp_path / "noisy", ratio=ratio, modality="text", seed=3)
    partner, texts = np.array(column(noisy, "partner")), column(table, "text")
    assert (partner != np.arange(24)).sum() == round(ratio * 19)
    assert column(noisy, "text") == [texts[i] for i in partner]
    assert column(noisy, "origin_text") == [column(table, "origin_text")[i] for i in partner]
    assert (partner[20:] == np.arange(20, 24)).all()
    assert partner[3] == 3
    for i, true in enumerate(column(noisy, "true_pair")):
        assert true == (partner[i] // 2 == i // 2)
    for name in ("id", "split", "label", "image", "origin_image", "group", "weight"):
        assert column(noisy, name) == column(table, name)
    assert "derived" not in noisy.columns
    assert noisy.schema.field("weight").type == pa.float64()
    assert noisy.sizes["tokenizer"] == f"bpe:{tmp_path / 'noisy' / 'tokenizer.json'}"
    assert (noisy.path / "tokenizer.json").read_bytes() == (table.path / "tokenizer.json").read_bytes()
    assert noisy.sizes["max_tokens"] == table.sizes["max_tokens"]
    again = corrupt_table(table, tmp_path / "again", ratio=ratio, modality="text", seed=3)
    assert again.fingerprint() == noisy.fingerprint()
    assert (noisy.fingerprint() == table.fingerprint()) is False


def test_wrong_labels_in_a_table(tmp_path: Path) -> None:
    table = captions(tmp_path)
    noisy = corrupt_labels(table, tmp_path / "noisy", ratio=0.3, seed=1)
    labels, truth = column(noisy, "label"), column(noisy, "true_label")
    assert truth == column(table, "label")
    right = [left == other for left, other in zip(labels, truth, strict=True)]
    assert column(noisy, "label_is_true") == right
    assert right.count(False) == 6
    assert all(right[20:])
    assert column(noisy, "text") == column(table, "text")
    both = corrupt_table(noisy, tmp_path / "both", ratio=0.5, modality="image", seed=1)
    assert column(both, "true_label") == truth
    assert "(0.3 of the training labels flipped, seed 1)" in both.source
    unlabelled = Table.create(
        tmp_path / "some",
        [Row("a", "train", {"x": b"1"}, {}, "0"), Row("b", "train", {"x": b"2"}, {})],
        {"x": Kind.TEXT},
        "s",
    )
    some = corrupt_labels(unlabelled, tmp_path / "out", ratio=0.0, seed=0)
    assert column(some, "true_label") == ["0", None]
    assert column(some, "label_is_true") == [True, True]


def test_corrupting_what_cannot_be(tmp_path: Path) -> None:
    table = captions(tmp_path)
    with pytest.raises(InputError, match="did you mean 'text'"):
        corrupt_table(table, tmp_path / "a", ratio=0.1, modality="txt", seed=0)
    with pytest.raises(InputError, match=r"ratio 1\.1"):
        corrupt_table(table, tmp_path / "a", ratio=1.1, modality="text", seed=0)
    noisy = corrupt_table(table, tmp_path / "noisy", ratio=0.1, modality="text", seed=0)
    with pytest.raises(InputError, match="'true_pair': it was corrupted before"):
        corrupt_table(noisy, tmp_path / "a", ratio=0.1, modality="image", seed=0)
    with pytest.raises(InputError, match="already exists"):
        corrupt_table(table, tmp_path / "noisy", ratio=0.1, modality="text", seed=0)
    plain = Table.create(tmp_path / "plain", [Row("a", "train", {"x": b"1"}, {})], {"x": Kind.TEXT}, "s")
    with pytest.raises(InputError, match="no labels"):
        corrupt_labels(plain, tmp_path / "a", ratio=0.1, seed=0)
    assert not (tmp_path / "a").exists()

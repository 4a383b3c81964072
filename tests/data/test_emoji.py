from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from consilience.data import datasets
from consilience.data.check import check
from consilience.data.datasets import DATASETS, dataset_names, is_dataset, read_dataset
from consilience.data.decode import DecodeConfig
from consilience.data.emoji import LANGUAGES, build, caption, small_picture
from consilience.data.loader import read
from consilience.data.pictures import decode_image
from consilience.data.reading import write_reading
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError

from .conftest import png

EMBEDDED = Path(datasets.__file__).parent / "embedded"


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return write_reading(read_dataset("emoji"), tmp_path_factory.mktemp("emoji") / "t", None, "stop")


def rows_of(name: str) -> list[Row]:
    return [row for row in read_dataset(name).rows if isinstance(row, Row)]


def test_the_table(emoji: Table) -> None:
    info = DATASETS["emoji"]
    assert emoji.modalities == info.modalities == {"image": Kind.RGB, "fluent": Kind.RGB, "text": Kind.TEXT}
    for split, count in info.rows.items():
        assert len(emoji.select(f"split = '{split}'")) == count
    codes, names = emoji.labels()
    assert len(names) == info.classes
    assert np.bincount(codes)[names.index("people-body")] == 295
    assert len(emoji.select("fluent is null")) == 240
    assert emoji.sizes == {"tokenizer": f"words:{emoji.path / 'tokenizer.json'}", "max_tokens": 42}
    (row,) = emoji.select("hexcode = '1F436'")
    taken = emoji.take(np.array([row]), ["id", "name", "subgroup", "label", "text"]).to_pylist()[0]
    assert taken["id"] == "1F436"
    assert (taken["name"], taken["label"]) == ("dog face", "animals-nature")
    assert taken["text"].decode().startswith("dog face, ")
    batch = next(read(emoji, emoji.select()[:64], DecodeConfig(image_size=32, **emoji.sizes), 64))
    assert tuple(batch.values["image"].shape) == (64, 3, 32, 32)
    assert batch.values["image"][:, :, 0, 0].min() >= 250
    assert batch.present["text"].all()


def test_what_the_check_finds(emoji: Table) -> None:
    """Three pictures of families are drawn alike; everything else is whole."""
    report = check(emoji)
    assert report.unreadable == []
    assert len(report.copies_across) == 2
    assert len(report.copies_within) == 1
    assert len(report.incomplete) == 240


def test_languages() -> None:
    english, german = rows_of("emoji"), rows_of("emoji:de")
    assert [row.id for row in english] == [row.id for row in german]
    assert english[0].values["image"] == german[0].values["image"]
    assert (german[0].values["text"] or b"").decode().startswith("grinsendes Gesicht, ")
    assert german[0].scalars["name"] == english[0].scalars["name"] == "grinning face"
    assert rows_of("emoji:en") == english


def test_all_languages_share_a_group() -> None:
    everything = rows_of("emoji:all")
    assert len(everything) == 1319 * 12
    first = everything[:12]
    assert [row.scalars["language"] for row in first] == list(LANGUAGES)
    assert {row.scalars["group"] for row in first} == {0}
    assert everything[12].scalars["group"] == 1
    assert first[1].id == "1F600#de"
    assert len({row.values["image"] for row in first}) == 1
    assert len({row.values["text"] for row in first}) == 12


def test_names() -> None:
    assert {"mnist3d", "emoji", "emoji:th", "emoji:all"} <= set(dataset_names())
    assert is_dataset("emoji:ja")
    assert not is_dataset("mnist3d:ja")
    assert not is_dataset("emoji:")
    with pytest.raises(InputError, match="did you mean 'emoji:de'"):
        read_dataset("emoji:dee")


def test_captions() -> None:
    assert caption("dog", ["pet", "Dog", "dog face"]) == "dog, pet, dog face"
    assert caption("dog", []) == "dog"


def test_small_pictures_average_visible_colour_only() -> None:
    """Opaque red beside invisible green becomes half-visible red, not a brownish edge."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, ::2], pixels[:, 1::2] = (255, 0, 0, 255), (0, 255, 0, 0)
    pixels[2:] = (0, 0, 255, 255)
    small = Image.open(io.BytesIO(small_picture(png(pixels), side=2)))
    assert small.mode == "P"
    out = np.asarray(small.convert("RGBA")).tolist()
    assert out[0] == [[255, 0, 0, 128]] * 2
    assert out[1] == [[0, 0, 255, 255]] * 2
    odd = Image.open(io.BytesIO(small_picture(png(pixels), side=3)))
    assert odd.size == (3, 3)


def test_the_palette_changes_little(shared: Path) -> None:
    """Against the exact means of squares of 2 x 2, on white: 64 colours cost under 3 of 255 on average."""
    pictures = pq.read_table(shared / "emoji" / "emoji.parquet", columns=["noto_png"])["noto_png"].to_pylist()[::30]
    errors = []
    for raw in pictures:
        large = decode_image(raw, Kind.RGB, 72).astype(float).reshape(3, 36, 2, 36, 2).mean((2, 4))
        errors.append(np.abs(decode_image(small_picture(raw), Kind.RGB, 36) - large).mean())
    assert max(errors) < 10
    assert np.mean(errors) < 3


def test_the_recipe_rebuilds_the_file(shared: Path, tmp_path: Path) -> None:
    source = shared / "emoji" / "emoji.parquet"
    build(source, tmp_path / "emoji.parquet")
    ours, theirs = pq.read_table(EMBEDDED / "emoji.parquet"), pq.read_table(tmp_path / "emoji.parquet")
    assert ours.schema == theirs.schema
    for name in ours.column_names:
        if name not in ("image", "fluent"):
            assert ours[name].equals(theirs[name])
    for name in ("image", "fluent"):
        for left, right in zip(ours[name].to_pylist()[::20], theirs[name].to_pylist()[::20], strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(decode_image(left, Kind.RGB, 36), decode_image(right, Kind.RGB, 36))


def test_small_and_attributed() -> None:
    assert (EMBEDDED / "emoji.parquet").stat().st_size < 2_500_000
    text = " ".join((EMBEDDED / "ATTRIBUTION.txt").read_text().split())
    for owner in ("Google LLC", "Microsoft Corporation", "Miles Johnson", "Unicode, Inc."):
        assert owner in text

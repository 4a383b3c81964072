from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from consilience.data.features import decode_regions, reference
from consilience.data.importers import import_table, open_source
from consilience.data.importers.precomp import lines_of, read_precomp
from consilience.data.noise_index import draw_noise_index, partners
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError

MARKERS = ("<pad>", "<start>", "<end>", "<unk>")


def vocabulary(path: Path, words: Iterable[str], size: int | None = None) -> Path:
    names = [*MARKERS, *words]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "word2idx": {name: i for i, name in enumerate(names)},
        "idx2word": {str(i): name for i, name in enumerate(names)},
        "idx": size or len(names),
    }
    path.write_text(json.dumps(content))
    return path


def features(path: Path, n: int, shape: tuple[int, int] = (3, 4), seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float16)
    np.save(path, values)
    return values


@pytest.fixture
def f30k(tmp_path: Path) -> Path:
    """Four training, two dev and two test images with five captions each."""
    folder = tmp_path / "data" / "f30k_precomp"
    for seed, (split, n) in enumerate((("train", 4), ("dev", 2), ("test", 2))):
        features(folder / f"{split}_ims.npy", n, seed=seed)
        (folder / f"{split}_caps.txt").write_text("".join(f"a dog {split} {j}\n" for j in range(5 * n)))
    vocabulary(tmp_path / "data" / "vocab" / "f30k_precomp_vocab.json", ["a", "dog"])
    return folder


@pytest.fixture
def now(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "h5100k_precomp"
    for split in ("train", "dev", "test"):
        features(folder / f"{split}_ims.npy", 3)
        (folder / f"{split}_ids.txt").write_text("70\n80\n90\n")
        (folder / f"{split}_caps_bpe.txt").write_text("5,7\n[1, 5, 7, 2]\n5,,7,")
        (folder / f"{split}_caps_bert.txt").write_text("9\n\n8\n")
    for code in ("bpe", "bert"):
        vocabulary(tmp_path / "data" / "vocab" / f"now100k_precomp_vocab_{code}.json", "wxyz", size=10)
    return folder


def rows_of(folder: Path) -> list[Row]:
    return [row for row in read_precomp(folder).rows if isinstance(row, Row)]


def test_five_captions_an_image(f30k: Path, tmp_path: Path) -> None:
    table = import_table(f30k, tmp_path / "table")
    assert table.modalities == {"image": Kind.REGIONS, "text": Kind.TEXT}
    assert table.column("split").tolist() == ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    np.testing.assert_array_equal(table.column("group"), np.arange(40) // 5)
    assert table.sizes["regions"] == 3
    assert table.sizes["region_width"] == 4
    assert table.sizes["tokenizer"].startswith("words:")
    assert Path(table.sizes["tokenizer"].removeprefix("words:")).is_relative_to(table.path)
    values = np.load(f30k / "dev_ims.npy")
    rows = table.take(table.select("split = 'validation'"), ["id", "image", "text", "origin_image", "origin_text"])
    for j, row in enumerate(rows.to_pylist()):
        assert row["id"] == f"validation-{j:06d}"
        assert row["text"].decode() == f"a dog dev {j}"
        assert row["image"] == reference(f30k / "dev_ims.npy", j // 5)
        np.testing.assert_array_equal(decode_regions(row["image"], 3, 4), values[j // 5])
        assert row["origin_image"] == f"dev_ims.npy::row {j // 5}"
        assert row["origin_text"] == f"dev_caps.txt::line {j + 1}"
    assert "source_id" not in table.columns


def test_a_noise_file_finds_its_rows(f30k: Path, tmp_path: Path) -> None:
    table = import_table(f30k, tmp_path / "table")
    rows = table.select("split = 'train'")
    groups = table.take(rows, ["group"])["group"].to_numpy()
    index = draw_noise_index(20, 5, 0.8, seed=1)
    mates = partners(index, groups, rows)
    assert (mates != rows).any()
    values = np.load(f30k / "train_ims.npy")
    for j, row in enumerate(table.take(mates, ["image"]).to_pylist()):
        np.testing.assert_array_equal(decode_regions(row["image"], 3, 4), values[index[j]])


def test_dev_is_cut_to_a_thousand_images(tmp_path: Path) -> None:
    folder = tmp_path / "f30k_precomp"
    for split, n in (("train", 2), ("dev", 1014)):
        features(folder / f"{split}_ims.npy", n, (1, 1))
        (folder / f"{split}_caps.txt").write_text("word\n" * 5 * n)
    found = [row.split for row in rows_of(folder)]
    assert found.count("validation") == 5000
    # groups of the next split start behind all images, used or not
    features(folder / "test_ims.npy", 1, (1, 1))
    (folder / "test_caps.txt").write_text("word\n" * 5)
    assert rows_of(folder)[-1].scalars["group"] == 1016
    # one caption an image: 1000 rows; captions of ids are never cut
    (folder / "dev_caps.txt").write_text("word\n" * 1014)
    assert [row.split for row in rows_of(folder)].count("validation") == 1000


def test_noise_of_web(now: Path, tmp_path: Path) -> None:
    table = import_table(now, tmp_path / "table")
    assert len(table) == 9
    assert table.column("source_id").tolist() == ["70", "80", "90"] * 3
    assert table.sizes["max_tokens"] == 4
    assert table.column("text").tolist()[:3] == [b"5,7", b"[1, 5, 7, 2]", b"5,,7,"]
    bert = import_table(now, tmp_path / "bert", captions="bert")
    assert bert.column("text").tolist()[:3] == [b"9", b"", b"8"]
    with pytest.raises(InputError, match="did you mean 'bpe'"):
        import_table(now, tmp_path / "x", captions="bp")
    with pytest.raises(InputError, match="unknown kind of captions"):
        import_table(now, tmp_path / "x", captions="jieba")


def test_empty_captions_do_not_shift_rows(now: Path, f30k: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reading = read_precomp(now, captions="bert")
    assert "train_caps_bert.txt has 1 empty lines" in caplog.text
    texts = [row.values["text"] for row in reading.rows if isinstance(row, Row)]
    assert texts == [b"9", b"", b"8"] * 3
    path = f30k / "train_caps.txt"
    lines = path.read_text().splitlines()
    lines[7] = ""
    path.write_text("\n".join(lines))  # and no line feed at the end
    rows = rows_of(f30k)
    assert rows[7].values["text"] is None
    assert rows[8].values["text"] == b"a dog train 8"
    assert rows[19].values["text"] == b"a dog train 19"
    path.write_text("\n".join(lines) + "\n\n\n")
    assert len(rows_of(f30k)) == 40
    path.write_text("\n".join(lines[:-1]) + "\n\n")  # the last caption is empty: it counts
    assert rows_of(f30k)[19].values["text"] is None


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\x0bstill\u2028one\x85\r\ntwo\rtwo\n".encode())
    assert list(lines_of(path)) == ["one\x0bstill\u2028one\x85", "two\rtwo"]
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(InputError, match=r"x\.txt line 2 is not UTF-8"):
        list(lines_of(path))


def test_tab_separated_captions(tmp_path: Path) -> None:
    folder = tmp_path / "cc152k_precomp"
    features(folder / "train_ims.npy", 3)
    path = folder / "train_caps.tsv"
    path.write_text('77\ta cat\n78\t"say ""hi"" twice"\n79\t"a" and "b"\n')
    rows = rows_of(folder)
    assert [row.values["text"] for row in rows] == [b"a cat", b'say "hi" twice', b'"a" and "b"']
    assert [row.scalars["source_id"] for row in rows] == ["77", "78", "79"]
    path.write_text("77\ta cat\n78 a dog\n79\tx\n")
    with pytest.raises(InputError, match=r"train_caps\.tsv line 2 has no tab"):
        rows_of(folder)


def test_masks_and_ids(f30k: Path) -> None:
    mask = np.ones((4, 3), np.uint8)
    mask[1, 2] = 0
    np.save(f30k / "train_mask.npy", mask)
    (f30k / "test_ids.txt").write_text("\n".join(f"id{j}" for j in range(10)))
    rows = rows_of(f30k)
    data = rows[5].values["image"]
    assert data is not None
    out = decode_regions(data, 3, 4)
    assert not out[2].any()
    assert out[:2].all()
    assert [row.scalars["source_id"] for row in rows[-10:]] == [f"id{j}" for j in range(10)]
    assert rows[0].scalars["source_id"] is None
    (f30k / "test_ids.txt").write_text("a\nb\n")
    assert [row.scalars["source_id"] for row in rows_of(f30k)[-10:]] == ["a"] * 5 + ["b"] * 5
    (f30k / "test_ids.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match=r"test_ids\.txt has 3 ids for 2 images"):
        read_precomp(f30k)
    (f30k / "test_ids.txt").unlink()
    np.save(f30k / "train_mask.npy", mask[:3])
    with pytest.raises(InputError, match=r"train_mask\.npy has shape \(3, 3\); expected \(4, 3\)"):
        read_precomp(f30k)


def test_what_does_not_fit_is_named(f30k: Path, now: Path, tmp_path: Path) -> None:
    path = f30k / "train_caps.txt"
    whole = path.read_text()
    path.write_text("a\n" * 19)
    with pytest.raises(InputError, match=r"train_caps\.txt has 19 captions but .*train_ims\.npy 4 images"):
        open_source(f30k)
    path.write_text(whole)
    features(f30k / "test_ims.npy", 2, (3, 5))
    with pytest.raises(InputError, match=r"test_ims\.npy has \(3, 5\) an image but .*train_ims\.npy \(3, 4\)"):
        open_source(f30k)
    np.save(f30k / "test_ims.npy", np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"expected \[images, regions, width\]"):
        open_source(f30k)
    bad = features(f30k / "test_ims.npy", 2)
    bad[1, 2, 3] = np.nan
    np.save(f30k / "test_ims.npy", bad)
    with pytest.raises(InputError, match=r"test_ims\.npy row 1: NaN"):
        open_source(f30k)
    features(f30k / "test_ims.npy", 2)
    with pytest.raises(InputError, match="one kind of captions"):
        open_source(f30k, captions="bpe")
    with pytest.raises(InputError, match="columns apply to manifests"):
        open_source(f30k, {"image": "x"})
    (f30k / "test_caps.txt").unlink()
    with pytest.raises(InputError, match=r"test_caps\.txt cannot be read"):
        open_source(f30k)
    (now / "train_caps_bpe.txt").write_text("5\n10\n7\n")
    with pytest.raises(InputError, match=r"train_caps_bpe\.txt::line 2.*token id 10 is outside"):
        import_table(now, tmp_path / "t")
    (now / "train_caps_bpe.txt").write_text("5\n7\nx\n")
    with pytest.raises(InputError, match=r"line 3.*is no list of ids"):
        import_table(now, tmp_path / "t")
    given = vocabulary(tmp_path / "other.json", "abcdefgh")
    for file in (tmp_path / "data" / "vocab").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no vocabulary h5100k_precomp_vocab_bpe\.json .*--tokenizer ids:FILE"):
        import_table(now, tmp_path / "t")
    (now / "train_caps_bpe.txt").write_text("5\n7\n7\n")
    table = import_table(now, tmp_path / "t", tokenizer=f"ids:{given}")
    assert table.sizes["tokenizer"].startswith("ids:")


def test_without_a_vocabulary_words_are_left_to_the_user(f30k: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "vocab" / "f30k_precomp_vocab.json").unlink()
    assert "tokenizer" not in read_precomp(f30k).sizes
    table = import_table(f30k, tmp_path / "table", tokenizer="fit-words")
    assert table.sizes["tokenizer"].startswith("words:")
    assert Table.open(tmp_path / "table").sizes["max_tokens"] == 6


def test_a_folder_without_features(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no file such as train_ims"):
        read_precomp(tmp_path)
    features(tmp_path / "train_ims.npy", 2)
    with pytest.raises(InputError, match=r"no train_caps\.txt"):
        read_precomp(tmp_path)

"""The generator of noisy pages, the builder from crawled ones, and the check of the layout they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.decode import DecodeConfig
from consilience.data.features import decode_regions
from consilience.data.importers import import_table
from consilience.data.importers.precomp import read_precomp
from consilience.data.loader import Loader
from consilience.data.now import check_now, describe_captions, recall_ceilings, verify_checksums, write_checksums
from consilience.data.now_builder import Record, build_pairs, byte_pairs, domain, word_tokens
from consilience.data.screenshots import best_regions, description, grid_detector, letterbox
from consilience.data.table import Row, Table
from consilience.data.web_noise import (
    BOILERPLATE,
    JUNK,
    MATCHED,
    SWAPPED,
    TEMPLATES,
    make_templates,
    make_web_noise,
)
from consilience.errors import InputError


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def captions_of(folder: Path, split: str) -> list[list[int]]:
    lines = (folder / f"{split}_caps_bpe.txt").read_text().splitlines()
    return [[int(token) for token in line.split(",")] for line in lines]


# Ceilings and statistics


def test_ceilings_of_the_sheet() -> None:
    found = recall_ceilings("aaabcd")
    assert found[1] == pytest.approx(100 * (3 * (1 / 3) + 3) / 6)
    assert found[1] == pytest.approx(66.67, abs=5e-3)
    assert found[5] == 100
    assert recall_ceilings(range(9)) == {1: 100, 5: 100, 10: 100}
    with pytest.raises(InputError, match="no captions"):
        recall_ceilings([])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_ceilings_follow_their_definition(captions: list[int]) -> None:
    for k, value in recall_ceilings(captions).items():
        slow = [min(1.0, k / captions.count(caption)) for caption in captions]
        assert value == pytest.approx(100 * sum(slow) / len(slow))


def test_statistics_of_captions() -> None:
    found = describe_captions([[1], [1], [1], [2, 3], [2, 3], [4] * 40])
    assert (found.captions, found.distinct, found.shared, found.largest) == (6, 3, 5, [3, 2])
    assert (found.longest, found.short, found.longer[36], found.longer[64]) == (40, 5, pytest.approx(100 / 6), 0)
    assert found.rsum_ceiling == pytest.approx(2 * sum(found.ceilings.values()))


# Generator


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_web_noise(tmp_path_factory.mktemp("web") / "out", 2000, regions=6, width=8, seed=3)


def test_noise_has_the_counts_it_promises(noisy: Path) -> None:
    truth = np.load(noisy / "train_truth.npy")
    counts = np.bincount(truth, minlength=4)
    assert counts[MATCHED] == 2000 - 1400
    for kind, share in ((SWAPPED, 0.5), (BOILERPLATE, 0.35), (JUNK, 0.15)):
        assert abs(counts[kind] - 1400 * share) <= 3 * np.sqrt(1400 * share * (1 - share))
    assert (np.load(noisy / "dev_truth.npy") > 0).sum() == int(0.7 * TEMPLATES)
    assert not np.load(noisy / "test_truth.npy").any()


def test_the_truth_is_true(noisy: Path) -> None:
    """Words of a matched caption are the template's; swapped captions are a reordering in which none stays."""
    truth, template = np.load(noisy / "train_truth.npy"), np.load(noisy / "train_template.npy")
    captions = captions_of(noisy, "train")
    own: dict[int, set[int]] = {}
    for place in np.flatnonzero(truth == MATCHED).tolist():
        own.setdefault(int(template[place]), set()).update((token - 4) // 2 for token in captions[place])
        assert len(captions[place]) == 10
    assert max(len(attributes) for attributes in own.values()) == 4
    swapped = np.flatnonzero(truth == SWAPPED).tolist()
    fits = [{(t - 4) // 2 for t in captions[j]} <= own[int(template[j])] for j in swapped if int(template[j]) in own]
    assert np.mean(fits) < 0.05
    # the templates that the swapped captions belong to are the swapped pages' templates, in another order
    families = [frozenset((t - 4) // 2 for t in captions[j]) for j in swapped]
    full = {frozenset(attributes): name for name, attributes in own.items() if len(attributes) == 4}
    whose = sorted(full[family] for family in families if family in full)
    theirs = np.bincount(template[swapped], minlength=TEMPLATES)
    assert (np.bincount(whose, minlength=TEMPLATES) <= theirs).all()
    shared = [tuple(captions[j]) for j in np.flatnonzero(truth == BOILERPLATE).tolist()]
    assert len(set(shared)) <= 20
    first = max(shared.count(text) for text in set(shared)) / len(shared)
    assert 0.2 < first < 0.36, "Zipf over 20: the first has 1 / 3.6"


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_web_noise(tmp_path / name, 40, regions=3, width=4, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    with pytest.raises(InputError, match="already exists"):
        make_web_noise(tmp_path / "a", 40)


@pytest.mark.parametrize("ratio", [0.0, 0.29, 1.0])
def test_other_shares_and_noisy_tests(tmp_path: Path, ratio: float) -> None:
    folder = make_web_noise(tmp_path / "o", 100, ratio, (0, 0, 1), noisy=("train", "test"), regions=3, width=4)
    assert np.bincount(np.load(folder / "train_truth.npy"), minlength=4)[JUNK] == int(np.floor(ratio * 100 + 1e-9))
    assert (np.load(folder / "test_truth.npy") == JUNK).sum() == int(ratio * TEMPLATES + 1e-9)
    assert not np.load(folder / "dev_truth.npy").any()


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ratio 1\.1"):
        make_web_noise(tmp_path / "o", 10, 1.1)
    with pytest.raises(InputError, match="together 1"):
        make_web_noise(tmp_path / "o", 10, mix=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="unknown split 'valid'"):
        make_web_noise(tmp_path / "o", 10, noisy=("valid",))
    with pytest.raises(InputError, match="n is 0"):
        make_templates(tmp_path / "o", 0)
    assert not (tmp_path / "o").exists()


def test_templates_are_clean_and_learnable(tmp_path: Path) -> None:
    folder = make_templates(tmp_path / "out", 300)
    table = import_table(folder, tmp_path / "table")
    assert (table.sizes["regions"], table.sizes["region_width"], table.sizes["max_tokens"]) == (12, 32, 12)
    assert table.column("split").tolist() == ["train"] * 300 + ["validation"] * 200 + ["test"] * 200
    assert not np.load(folder / "train_truth.npy").any()
    # what is known of the attributes is enough to find the caption: mean region against mean prototype
    train, test = (np.load(folder / f"{split}_ims.npy").astype(np.float64) for split in ("train", "test"))
    templates = np.load(folder / "train_template.npy")
    words = np.array([np.bincount([(t - 4) // 2 for t in c], minlength=40) > 0 for c in captions_of(folder, "train")])
    prototypes = np.linalg.lstsq(words / words.sum(1, keepdims=True), train.mean(1), rcond=None)[0]
    words_test = np.array([np.bincount([(t - 4) // 2 for t in c], minlength=40) for c in captions_of(folder, "test")])
    bags = (words_test > 0) / (words_test > 0).sum(1, keepdims=True) @ prototypes
    scores = test.mean(1) @ bags.T - 0.5 * (bags**2).sum(1)
    ranks = (scores > np.diag(scores)[:, None]).sum(1)
    assert (ranks < 10).mean() > 0.5
    assert templates.max() < TEMPLATES


# Round trip, reader, check


def test_reading_gives_back_what_was_written(noisy: Path, tmp_path: Path) -> None:
    rows = [row for row in read_precomp(noisy).rows if isinstance(row, Row)]
    assert [row.split for row in rows] == ["train"] * 2000 + ["validation"] * 200 + ["test"] * 200
    arrays = {split: np.load(noisy / f"{split}_ims.npy") for split in ("train", "dev", "test")}
    masks = np.load(noisy / "train_mask.npy")
    assert masks.min() == 0, "some pages have fewer regions"
    pool = (noisy / "train_ids.txt").read_text().split()
    for j in (0, 7, 1999):
        data, text = rows[j].values["image"], rows[j].values["text"]
        assert data is not None
        assert text is not None
        np.testing.assert_array_equal(decode_regions(data, 6, 8), arrays["train"][j])
        assert not decode_regions(data, 6, 8)[masks[j] == 0].any()
        assert [int(token) for token in text.split(b",")] == captions_of(noisy, "train")[j]
        assert rows[j].scalars["source_id"] == pool[j]
    assert len(set(pool)) == 2000


def test_batches_do_not_depend_on_workers(noisy: Path, tmp_path: Path) -> None:
    table = import_table(noisy, tmp_path / "table")
    names = ("regions", "region_width", "max_tokens", "tokenizer")
    decode = DecodeConfig(**{name: table.sizes[name] for name in names})
    rows = table.select("split = 'train'")[:64]
    alone, helped = (
        list(Loader(table, rows, decode, 16, seed=5, shuffle=True, workers=workers, cache=False).epoch(0))
        for workers in (0, 2)
    )
    assert len(alone) == len(helped) == 4
    for left, right in zip(alone, helped, strict=True):
        assert left.index.tolist() == right.index.tolist()
        for name in ("image", "text"):
            assert left.values[name].equal(right.values[name])


def test_the_check_reports_what_differs(noisy: Path) -> None:
    report = check_now(noisy)
    assert report.images == {"train": 2000, "dev": 200, "test": 200}
    assert report.shape == (6, 8)
    assert report.dtype == "float16"
    assert "train: 2000 pages, published are 98000" in report.differences
    assert "features are (6, 8) a page, published are (36, 768)" in report.differences
    assert "no captions of bert" in report.differences
    assert "bpe has 104 tokens, published are 10000" in report.differences
    found = report.captions["bpe"]["train"]
    assert found.captions == 2000
    assert found.ceilings == recall_ceilings(tuple(c) for c in captions_of(noisy, "train"))
    assert found.ceilings[1] < 90
    json.dumps(report.captions["bpe"]["dev"].__dict__)


def test_checksums(tmp_path: Path) -> None:
    folder = make_templates(tmp_path / "out", 5, regions=1, width=2)
    assert verify_checksums(folder) is None
    assert check_now(folder).checksums == "absent"
    found = write_checksums(folder)
    assert found["train_ims.npy"] == hashlib.sha256((folder / "train_ims.npy").read_bytes()).hexdigest()
    assert check_now(folder).checksums == "match"
    (folder / "train_ids.txt").write_text("9\n" * 5)
    (folder / "dev_ids.txt").unlink()
    (folder / "more.txt").write_text("")
    assert verify_checksums(folder) == ["train_ids.txt changed", "dev_ids.txt missing", "more.txt new"]
    (folder / "checksums.json").write_text("[")
    with pytest.raises(InputError, match=r"checksums\.json is no list of checksums"):
        verify_checksums(folder)
    with pytest.raises(InputError, match="has no train_caps_bpe"):
        check_now(tmp_path)


# Builder


def test_descriptions() -> None:
    page = "<HTML><META Property='og:Description' content='second'><Meta NAME=Description CONTENT='{}'>"
    assert description(page.format("Caf&#101;&#x301;  &amp;\n tea")) == "Caf\u00e9 & tea"
    assert description(page.format(" &nbsp; ")) == "second"
    assert description("<meta name='keywords' content='x'><p>description</p>") is None
    assert description("<meta name=description content=a><meta name=description content=b>") == "a"
    assert description("<meta name=description") is None


def test_pictures_are_fitted_without_distortion() -> None:
    wide = letterbox(np.zeros((100, 720, 3), np.uint8))
    assert wide.shape == (1280, 720, 3)
    assert (wide[590:690] == 0).all()
    assert (wide[:589] == 255).all()
    tall = letterbox(np.zeros((2560, 720, 3), np.uint8))
    assert (tall[:, 180:540] == 0).all()
    assert (tall[:, :179] == 255).all()
    with pytest.raises(InputError, match="expected uint8"):
        letterbox(np.zeros((3, 3)))


def slow_regions(boxes: np.ndarray, scores: np.ndarray, most: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], boxes[i][1], boxes[i][0]))
    kept: list[int] = []
    for i in order:
        fits = True
        for j in kept:
            a, b = boxes[i], boxes[j]
            both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
            fits &= both / (areas - both) <= 0.7
        if fits and len(kept) < most:
            kept.append(i)
    return kept


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 8))
def test_suppression_follows_its_definition(seed: int, n: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 4, (n, 2)).astype(float)
    boxes = np.concatenate([corner, corner + rng.integers(1, 6, (n, 2))], axis=1)
    scores = rng.integers(0, 4, n).astype(float)
    marks = np.arange(n, dtype=float)[:, None]
    assert best_regions(boxes, scores, marks, most)[:, 0].tolist() == slow_regions(boxes, scores, most)


def test_bad_detectors() -> None:
    with pytest.raises(InputError, match=r"expected \[n, 4\], \[n\] and \[n, d\]"):
        best_regions(np.zeros((2, 4)), np.zeros(3), np.zeros((2, 5)), 3)
    with pytest.raises(InputError, match="NaN or infinite"):
        best_regions(np.zeros((1, 4)), np.array([np.nan]), np.zeros((1, 5)), 3)


def test_domains() -> None:
    assert domain("https://www.a.example.com/x?y") == "example.com"
    assert domain("shop.example.co.uk") == "example.co.uk"
    assert domain("http://10.0.0.1:80/") == "10.0.0.1"


def pages(n: int, seed: int = 0) -> Iterable[Record]:
    rng = np.random.default_rng(seed)
    for i in range(n):
        text = "the same words everywhere" if i % 4 == 0 else f"page {i % 9} about thing number {i}"
        html = "<p>nothing" if i % 10 == 7 else f"<meta name=description content='{text}'>"
        yield Record(f"p{i}", html, rng.integers(0, 256, (30, 20, 3), dtype=np.uint8), f"http://w.site{i % 12}.org/{i}")


def cheap(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five rows of the screen that do not overlap, with the sums of some pixels."""
    tops = np.arange(5) * 200.0
    boxes = np.stack([np.zeros(5), tops, np.full(5, 700.0), tops + 200], axis=1)
    pixels = picture[100::200, ::90].astype(np.float64).reshape(6, -1)[:5, :16] / 255
    return boxes, pixels.sum(1), pixels


def test_the_detector_without_weights() -> None:
    picture = letterbox(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    boxes, scores, features = grid_detector(16)(picture)
    assert boxes.shape == (40, 4)
    assert features.shape == (40, 16)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    for left, right in zip(grid_detector(16)(picture), (boxes, scores, features), strict=True):
        np.testing.assert_array_equal(left, right)
    # a cell of one colour: no gradient, and all pixels in one bin of the colour histogram
    flat = grid_detector(4)(np.full((1280, 720, 3), 255, np.uint8))
    assert not flat[1].any()
    row = np.random.default_rng(0).normal(size=(72, 4))[63] / np.sqrt(72)
    np.testing.assert_allclose(flat[2], np.tile(row, (40, 1)))


def test_built_pages_read_back(tmp_path: Path) -> None:
    detector = cheap
    made = build_pairs(
        pages(60), detector, {"jieba": word_tokens(1), "bpe": byte_pairs(300)}, tmp_path / "out",
        regions=4, held_out=0.2, copies=8, shard=25, seed=1,
    )  # fmt: skip
    assert made.rejected == {"no description": 6, "caption repeated too often": 7}
    assert sum(made.pairs.values()) == 60 - 13
    records = list(pages(60))
    assert min(made.pairs.values()) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "the work in progress is removed"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["sha256"] == made.sha256
    folder = tmp_path / "out" / "now100k_precomp"
    for code in ("jieba", "bpe"):
        table = import_table(folder, tmp_path / code, captions=code)
        assert len(table) == 47
        split_of_site: dict[str, set[str]] = {}
        for row in table.take(table.select(), ["source_id", "split", "image"]).to_pylist():
            number = int(row["source_id"][1:])
            split_of_site.setdefault(str(number % 12), set()).add(row["split"])
            record = records[number]
            assert isinstance(record.screenshot, np.ndarray)
            expected = best_regions(*detector(letterbox(record.screenshot)), 4)
            np.testing.assert_allclose(decode_regions(row["image"], 4, 16), expected, rtol=2e-3, atol=1e-4)
        assert all(len(splits) == 1 for splits in split_of_site.values())
    words = json.loads((tmp_path / "out" / "vocab" / "now100k_precomp_vocab_jieba.json").read_text())["word2idx"]
    ids = (folder / "train_caps_jieba.txt").read_text().splitlines()[0].split(",")
    first = int((folder / "train_ids.txt").read_text().split()[0][1:])
    text = "the same words everywhere" if first % 4 == 0 else f"page {first % 9} about thing number {first}"
    assert [int(i) for i in ids] == [words[word] for word in text.split()]


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    detector, calls = cheap, []

    def counted(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return detector(picture)

    fit = {"bpe": word_tokens(1)}
    with pytest.raises(KeyboardInterrupt):
        build_pairs(pages(30), counted, fit, tmp_path / "a", regions=3, shard=5)
    assert not (tmp_path / "a").exists()
    build_pairs(pages(30), counted, fit, tmp_path / "a", regions=3, shard=5)
    build_pairs(pages(30), detector, fit, tmp_path / "b", regions=3, shard=5)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert len(calls) == 27 + 5, "only the shard in work was done again"
    with pytest.raises(InputError, match="already exists"):
        build_pairs(pages(30), detector, fit, tmp_path / "a")


def test_builds_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'bpe'"):
        build_pairs(pages(3), cheap, {"bp": word_tokens(1)}, tmp_path / "a")
    with pytest.raises(InputError, match="'p0' occurs twice"):
        build_pairs([*pages(2), *pages(1)], cheap, {"bpe": word_tokens(1)}, tmp_path / "a")
    empty = [Record("x", "<p>", np.zeros((2, 2, 3), np.uint8))]
    with pytest.raises(InputError, match="no page with a description"):
        build_pairs(empty, cheap, {"bpe": word_tokens(1)}, tmp_path / "b")
    missing = [Record("x", tmp_path / "gone.html", np.zeros((2, 2, 3), np.uint8)), *pages(3)]
    made = build_pairs(missing, cheap, {"bpe": word_tokens(1)}, tmp_path / "c", held_out=0)
    assert made.rejected == {"unreadable HTML": 1}


def test_a_table_of_pages_opens_again(noisy: Path, tmp_path: Path) -> None:
    import_table(noisy, tmp_path / "table")
    again = Table.open(tmp_path / "table")
    assert Path(again.sizes["tokenizer"].removeprefix("ids:")).is_relative_to(again.path)

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.decode import DecodeConfig, decode
from consilience.data.schema import Kind
from consilience.data.text import (
    MARKERS,
    decode_text,
    fit_bpe,
    fit_words,
    resolve_spec,
    split_spec,
    tokenizer,
    words,
)
from consilience.errors import InputError

CAPTIONS = ["A dog runs.", "the dog's tail", "Ein Hund läuft", "दाँत दिखाता चेहरा", "笑顔、顔", "หน้ายิ้ม"]


def vocabulary(path: Path, *names: str, idx: object = None, markers: tuple[str, ...] = MARKERS) -> Path:
    codes = {name: code for code, name in enumerate([*markers, *names])}
    content: dict[str, object] = {"word2idx": codes, "idx2word": {str(c): n for n, c in codes.items()}}
    content["idx"] = len(codes) if idx is None else idx
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_bytes_are_shifted_by_the_four_markers() -> None:
    coder = tokenizer("bytes")
    assert (coder.size, coder.end) == (260, 2)
    assert coder.encode("aé") == [1, 97 + 4, 0xC3 + 4, 0xA9 + 4, 2]
    assert coder.encode("e\u0301") == coder.encode("\u00e9")
    assert coder.encode("") == [1, 2]


@given(st.text(max_size=40))
def test_bytes_go_back_to_the_text(text: str) -> None:
    ids = tokenizer("bytes").encode(text)
    assert bytes(code - 4 for code in ids[1:-1]).decode() == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, it's 3.50!", ["do", "n't", "stop", ",", "it", "'s", "3.50", "!"]),
        ("the dogs\u2019 well-known U.S. tail...", ["the", "dogs", "'", "well-known", "u.s", ".", "tail", "..."]),
        ("L'été, rock'n'roll; 1,000 2nd", ["l'été", ",", "rock'n'roll", ";", "1,000", "2nd"]),
        ("n't 's can't we'll", ["n't", "'s", "ca", "n't", "we", "'ll"]),
        ("दाँत दिखाता", ["दाँत", "दिखाता"]),
        ("笑顔 12:30", ["笑", "顔", "12:30"]),
        ("ยิ้ม ok", ["ยิ้", "ม", "ok"]),
        ("활짝 웃는 широко", ["활짝", "웃는", "широко"]),
        (" \t\n", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(max_size=60))
def test_words_lose_nothing_but_white_space(text: str) -> None:
    lowered = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    assert "".join(words(text)) == "".join(lowered.split())


@given(st.text(st.sampled_from("nt's.-,1 adDlLeEvVrRmM_!"), max_size=30))
def test_the_fast_rules_for_ascii_are_the_general_ones(text: str) -> None:
    """A Han character in front, which is a word of its own, forces the general rules."""
    assert words("\u7b11 " + text)[1:] == words(text)


def test_a_word_vocabulary(tmp_path: Path) -> None:
    path = vocabulary(tmp_path / "v.json", "dog", "a", "runs")
    coder = tokenizer(f"words:{path}")
    assert (coder.size, coder.end) == (7, 2)
    assert coder.encode("A dog sleeps") == [1, 5, 4, 3, 2]
    path.write_text(json.dumps({"word2idx": {"<unk>": 9, "dog": 2}}))
    replaced = tokenizer(f"words:{path}")
    assert (replaced.size, replaced.encode("dog cat")) == (10, [9, 2, 9, 9])


@pytest.mark.parametrize(
    ("line", "content"), [("5,7", [5, 7]), ("[1, 5, 7, 2]", [5, 7]), ("5,,7,", [5, 7]), ("", []), ("[]", [])]
)
def test_lines_of_ids(tmp_path: Path, line: str, content: list[int]) -> None:
    spec = f"ids:{vocabulary(tmp_path / 'v.json', idx=10)}"
    assert tokenizer(spec).size == 10
    assert tokenizer(spec).encode(line) == [1, *content, 2]
    assert decode_text(line.encode(), spec, 6).tolist() == [1, *content, 2, *[-1] * (4 - len(content))]


@given(st.lists(st.integers(4, 99), max_size=12), st.booleans())
def test_both_ways_of_writing_ids_agree(tmp_path_factory: pytest.TempPathFactory, ids: list[int], spaces: bool) -> None:
    spec = f"ids:{vocabulary(tmp_path_factory.getbasetemp() / 'ids.json', idx=100)}"
    comma = ", " if spaces else ","
    plain, bracketed = comma.join(map(str, ids)), f"[{comma.join(map(str, [1, *ids, 2]))}]"
    assert tokenizer(spec).encode(plain) == tokenizer(spec).encode(bracketed) == [1, *ids, 2]


def test_missing_markers_of_ids_fall_back_to_unknown(tmp_path: Path) -> None:
    spec = f"ids:{vocabulary(tmp_path / 'v.json', idx=10, markers=('<unk>',))}"
    assert tokenizer(spec).encode("0,5") == [0, 0, 5, 0]
    assert tokenizer(spec).encode("[0, 5, 0]") == [0, 5, 0]


def test_bad_ids_and_vocabularies(tmp_path: Path) -> None:
    path = vocabulary(tmp_path / "v.json", idx=10)
    for line, what in (("5,12", "token id 12 is outside"), ("-1", "token id -1"), ("5;7", "no list of ids")):
        with pytest.raises(InputError, match=what):
            decode_text(line.encode(), f"ids:{path}", 8)
    cases = {
        "{": "readable JSON",
        "[]": "has no word2idx",
        '{"word2idx": {}}': "has no word2idx",
        '{"word2idx": {"<unk>": "a"}}': r"word2idx\['<unk>'\]",
        '{"word2idx": {"<unk>": true}}': r"word2idx\['<unk>'\]",
        '{"word2idx": {"<unk>": 3}, "idx": "many"}': "idx is no whole number",
        '{"word2idx": {"a": 3}, "idx": 7}': "neither <start> nor <unk>",
        '{"word2idx": {"<unk>": 3}}': "has no field idx",
    }
    for content, what in cases.items():
        path.write_text(content)
        with pytest.raises(InputError, match=what) as caught:
            tokenizer(f"ids:{path}")
        assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="readable JSON"):
        tokenizer(f"words:{path}")
    for scheme in ("ids", "words", "bpe"):
        with pytest.raises(InputError, match=f"nowhere.json.*No such file.*{scheme}:FILE"):
            tokenizer(f"{scheme}:{tmp_path / 'nowhere.json'}")
    with pytest.raises(InputError, match="no file of the tokenizers library"):
        tokenizer(f"bpe:{vocabulary(tmp_path / 'v.json')}")
    with pytest.raises(InputError, match="no transformers tokenizer at"):
        tokenizer(f"hf:{tmp_path}")


def test_specs() -> None:
    assert split_spec("words:C:/a.json") == ("words", "C:/a.json")
    with pytest.raises(InputError, match="did you mean 'bytes'"):
        split_spec("byte")
    for spec, form in (("bytes:x", "bytes"), ("bytes:", "bytes"), ("ids", "ids:FILE.json"), ("hf:", "hf:FOLDER_OR_ID")):
        with pytest.raises(InputError, match=f"write it as {form}$"):
            split_spec(spec)
    assert resolve_spec("bpe:t.json", Path("/a/b")) == "bpe:/a/b/t.json"
    assert resolve_spec("bpe:/c/t.json", Path("/a/b")) == "bpe:/c/t.json"
    assert resolve_spec("hf:some/model", Path("/a/b")) == "hf:some/model"


def test_fitted_words(tmp_path: Path) -> None:
    content = fit_words(["b a", "a b", "c", "a"], minimum=2)
    assert content == {
        "word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 4, "b": 5},
        "idx2word": {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "4": "a", "5": "b"},
        "idx": 6,
    }
    path = tmp_path / "v.json"
    path.write_text(json.dumps(content))
    assert tokenizer(f"words:{path}").encode("A b c") == [1, 4, 5, 3, 2]
    with pytest.raises(InputError, match="no word occurs 4 times"):
        fit_words(["a a a"])
    with pytest.raises(InputError, match="minimum 0"):
        fit_words(["a"], 0)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bpe") / "t.json"
    path.write_text(fit_bpe(CAPTIONS * 20, 320), encoding="utf-8")
    return f"bpe:{path}"


def test_fitted_pairs(bpe: str) -> None:
    coder = tokenizer(bpe)
    assert 260 < coder.size <= 320
    library = json.loads(Path(bpe[4:]).read_text())
    assert [entry["content"] for entry in library["added_tokens"]] == list(MARKERS)
    assert [entry["id"] for entry in library["added_tokens"]] == [0, 1, 2, 3]
    assert coder.encode("") == [1, 2]
    assert fit_bpe(iter(CAPTIONS * 20), 320) == Path(bpe[4:]).read_text(encoding="utf-8")
    assert len(coder.encode("A dog runs.")) < len("A dog runs.")
    with pytest.raises(InputError, match="at least 260"):
        fit_bpe(CAPTIONS, 259)


@given(text=st.text(max_size=30))
@settings(deadline=None)
def test_pairs_read_every_text(bpe: str, text: str) -> None:
    """No id but the two markers is special, not even where the text spells a marker, and the text comes back."""
    from tokenizers import Tokenizer

    for written in (text, f"<end>{text}<pad>"):
        ids = tokenizer(bpe).encode(written)
        assert ids[0] == 1
        assert ids[-1] == 2
        assert all(4 <= code < tokenizer(bpe).size for code in ids[1:-1])
        assert Tokenizer.from_file(bpe[4:]).decode(ids[1:-1]) == unicodedata.normalize("NFC", written)


def test_files_of_the_library_with_other_habits(tmp_path: Path) -> None:
    """Markers are added where the file adds none; its padding and cutting are switched off."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"<unk>": 0, "<start>": 1, "<end>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_padding(length=9)
    library.enable_truncation(2)
    library.save(str(tmp_path / "t.json"))
    assert tokenizer(f"bpe:{tmp_path / 't.json'}").encode("a b c a") == [1, 3, 4, 0, 3, 2]
    bare = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.save(str(tmp_path / "bare.json"))
    coder = tokenizer(f"bpe:{tmp_path / 'bare.json'}")
    assert (coder.end, coder.size, coder.encode("a b")) == (None, 2, [1, 0])
    assert decode_text(b"b a b", f"bpe:{tmp_path / 'bare.json'}", 2).tolist() == [0, 1]


def test_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b"]
    library = Tokenizer(models.WordLevel({name: code for code, name in enumerate(names)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=library, model_max_length=3, **special)
    fast.save_pretrained(tmp_path)
    coder = tokenizer(f"hf:{tmp_path}")
    assert (coder.size, coder.end) == (6, 2)
    assert coder.encode("a b a c") == [1, 4, 5, 4, 3, 2]
    assert decode_text(b"a b a c", f"hf:{tmp_path}", 4).tolist() == [1, 4, 5, 2]


def test_long_captions_keep_the_end_marker_and_short_ones_are_padded() -> None:
    config = DecodeConfig(max_tokens=5)
    assert decode(b"ab", Kind.TEXT, "", config).tolist() == [1, 101, 102, 2, -1]
    out = decode(b"abcdef", Kind.TEXT, "", config)
    assert out.tolist() == [1, 101, 102, 103, 2]
    assert out.dtype == np.int64
    assert decode(b"abc", Kind.TEXT, "", config).tolist() == [1, 101, 102, 103, 2]


def test_captions_that_are_none() -> None:
    for empty in (b"", b" \n"):
        with pytest.raises(InputError, match="nothing to read"):
            decode_text(empty, "bytes", 8)
    with pytest.raises(InputError, match="not UTF-8 \\(byte 2 is 0xe9\\)"):
        decode_text("abé".encode("latin-1"), "bytes", 8)


def test_a_text_without_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "t.json"))
    with pytest.raises(InputError, match="'b' has no tokens under bpe:"):
        decode_text(b"b", f"bpe:{tmp_path / 't.json'}", 8)

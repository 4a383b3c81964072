"""What the verbs do and say after a training: import, check, train, evaluate, embed, index; their text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consilience.data.table import Table
from tests.cli import tiny
from tests.cli.conftest import Cli


def test_import_tells_what_it_wrote(cli: Cli, tmp_path: Path) -> None:
    source, out = tiny.manifest(tmp_path / "data", "jsonl", 14), tmp_path / "a table"
    answer = cli("import", source, "-o", out, "--kinds", "image=rgb", "--json")
    assert (answer.code, answer.err) == (0, "")
    table = Table.open(out)
    assert answer.json == {
        "table": str(out),
        "rows": 14,
        "modalities": {"image": "rgb", "points": "points"},
        "quarantined": 0,
        "data_version": table.fingerprint(),
    }
    assert len(table) == 14
    text = cli(
        "import", source, "-o", tmp_path / "second", "--columns", "photo=image,mesh=points", "--kinds", "mesh=points"
    )
    second = tmp_path / "second"
    assert text.out == f"{second}: 14 rows; photo (grey), mesh (points)\nnext    consilience check {second}\n"
    copied = cli("import", out, "-o", tmp_path / "third copy")
    assert copied.out.endswith(f"next    consilience check '{tmp_path / 'third copy'}'\n")


def test_check_of_sound_data(cli: Cli, made: tuple[Path, Path]) -> None:
    answer = cli("check", made[1])
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == f"{made[1]}: 60 rows (48 train, 12 test); 3 classes"
    assert lines[2].split() == ["modality", "kind", "train", "test", "missing", "unreadable", "size", "formats", "MB"]
    assert lines[3].split()[:9] == ["image", "grey", "48", "12", "0", "0", "12", "x", "12"]
    assert lines[4].split()[:8] == ["points", "points", "48", "12", "0", "0", "8", "to"]
    assert len({line.index(word) + len(word) for line, word in zip(lines[2:5], ("train", "48", "48"))}) == 1
    assert lines[6] == "no problems found"
    assert lines[7] == f"next    consilience train romo --data {made[1]} -o runs/romo"


def test_check_of_bad_data(cli: Cli, tmp_path: Path) -> None:
    path = tiny.manifest(tmp_path / "data", "csv", 30)
    root = tmp_path / "data"
    (root / "pictures/1.png").write_bytes(b"not a picture")
    (root / "shapes/2.ply").unlink()
    (root / "pictures/4.png").write_bytes((root / "pictures/0.png").read_bytes())
    (root / "pictures/6.png").write_bytes((root / "pictures/5.png").read_bytes())
    path.write_text(path.read_text().replace("pictures/8.png", ""))
    found = cli("check", path, "--json").json
    assert found["rows"] == 29
    assert [(bad["id"], bad["modality"]) for bad in found["unreadable"]] == [("s1", "image"), ("s2", "points")]
    assert found["incomplete"] == ["s8"]
    assert [(group["ids"], group["splits"]) for group in found["copies_across"]] == [(["s0", "s4"], ["test", "train"])]
    assert [group["ids"] for group in found["copies_within"]] == [["s5", "s6"]]
    assert found["problems"] == [
        "2 unreadable samples",
        "1 exact copies of a sample in another split",
        "1 rows without one of their modalities",
        "1 exact copies inside a split",
    ]
    answer = cli("check", path)
    assert answer.code == 0
    assert "unreadable:\n  s1, image from pictures/1.png: not a readable image" in answer.out
    assert "in several splits:\n  image of s0, s4 (test, train)\n" in answer.out
    assert "without one of their modalities:\n  s8\n" in answer.out
    assert "; ".join(found["problems"]) in answer.out
    assert "no problems found" not in answer.out
    assert answer.out.endswith("-o runs/romo --on-bad-sample quarantine\n")


def test_check_lists_ten_of_a_kind(cli: Cli, tmp_path: Path) -> None:
    path = tiny.manifest(tmp_path / "data", "csv", 20)
    for i in range(12):
        (tmp_path / f"data/pictures/{i}.png").write_bytes(b"")
    answer = cli("check", path)
    assert "12 unreadable samples" in answer.out
    assert "  s9, image from" in answer.out
    assert "  s10, image from" not in answer.out
    assert "  and 2 more (--json lists all)" in answer.out
    assert len(cli("check", path, "--json").json["unreadable"]) == 12


def test_quarantine_sets_aside_exactly_the_broken_ones(cli: Cli, tmp_path: Path) -> None:
    """The issue's folder with 3% corrupt files."""
    root, run = tiny.folder(tmp_path / "data", 100), tmp_path / "run"
    picture, cut, cloud = (
        root / "train/image/ball/30.png",
        root / "test/image/rod/44.png",
        root / "train/points/plate/61.npy",
    )
    picture.write_bytes(b"\x89PNG\r\n\x1a\nno picture follows")
    cut.write_bytes(cut.read_bytes()[:80])
    np.save(cloud, np.full((20, 3), np.nan))
    broken = {"train/ball/30": "image", "test/rod/44": "image", "train/plate/61": "points"}
    refused = cli("train", "romo", "--data", root, "-o", run, *tiny.FAST)
    assert refused.code == 2
    assert not run.exists() or list(run.iterdir()) == []
    words = ("train", "romo", "--data", root, "-o", run, "--on-bad-sample", "quarantine", *tiny.FAST)
    answer = cli(*words, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["quarantined"] == 3
    listed = [json.loads(line) for line in (run / "table/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["modality"] for entry in listed} == broken
    assert all(entry["reason"] and entry["origin"] for entry in listed)
    table = Table.open(run / "table")
    ids = set(table.take(table.select(), ["id"])["id"].to_pylist())
    everything = {f"{tiny.split(i)}/{tiny.label(i)}/{i}" for i in range(100)}
    assert everything - ids == set(broken)
    assert ids < everything
    report = (run / "report.html").read_text()
    assert "Set aside: 3 unreadable samples" in report
    assert [name in report for name in broken] == [True] * 3
    assert "train/ball/33" not in report
    text = cli("train", "--resume", run)
    assert "3 unreadable samples set aside, listed in quarantine.jsonl and the report" in text.out


def test_train_tells_where_things_are_and_what_comes_next(cli: Cli, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [word for word in tiny.FAST if word != "--quiet"]
    answer = cli("train", "romo", "--data", table, "-o", run, *words, "--train.log_every", "1")
    assert answer.code == 0
    for phase in ("warmup", "annotate", "robust"):
        assert phase in answer.err
        assert phase not in answer.out
    lines = answer.out.splitlines()
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    loss = [record["loss"] for record in records if "loss" in record][-1]
    assert lines[0].startswith(f"run     {run} (9 steps, last loss {loss:.3f}, modalities agree ")
    assert lines[1:] == [
        f"table   {table}",
        f"report  {run / 'report.html'}",
        f"next    consilience evaluate {run}",
        f"        consilience index {table} --run {run}",
    ]
    quiet = cli("train", "--resume", run, "--quiet", "--json")
    assert quiet.err == ""
    assert quiet.json["loss"] == loss
    assert quiet.json["agreement"] == [record["agreement"] for record in records if "agreement" in record][-1]


def test_tensorboard_writes_event_files(cli: Cli, table: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    options = ("--train.tensorboard", "true", "--train.log_every", "2")
    answer = cli("train", "romo", "--data", table, "-o", run, *tiny.FAST, *options, "--json")
    assert answer.code == 0, answer.err
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in logged if "loss" in record]
    assert np.allclose([event.value for event in events.Scalars("loss")], losses)


def test_evaluate(cli: Cli, made: tuple[Path, Path]) -> None:
    run, table = made
    answer = cli("evaluate", run, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert (found["run"], found["table"], found["rows"]) == (str(run), str(table), 12)
    assert set(found["directions"]) == {"image->points", "points->image"}
    for figures in found["directions"].values():
        low, high = figures["ci95"]
        assert 0 <= low <= figures["map"] <= high <= 1
    mean = np.mean([figures["map"] for figures in found["directions"].values()])
    assert found["mean_map"] == pytest.approx(mean)
    assert {"image", "points", "image alone", "points alone", "agreement"} == set(found["pseudo_labels"])
    assert found["pseudo_labels"]["image"]["rows"] == 44
    text = cli("evaluate", run).out
    assert f"image->points      mAP@all {found['directions']['image->points']['map']:.3f}" in text
    assert f"pseudo-labels of image: {found['pseudo_labels']['image']['accuracy']:.1%} right" in text
    assert text.endswith(f"next    consilience index {table} --run {run}\n")


def test_evaluate_other_rows(cli: Cli, made: tuple[Path, Path], tmp_path: Path) -> None:
    run = made[0]
    every = cli("evaluate", run, "--where", "true", "--json").json
    assert every["rows"] == 60
    one = cli("evaluate", run, "--where", "id = 's4'", "--json")
    assert one.code == 0
    assert one.json["directions"]["image->points"]["ci95"] == [None, None]
    assert cli("evaluate", run, "--where", "id = 's4'").code == 0
    for where, remedy in (("split = 'tset'", "name a split that exists"), ("splt = 'test'", "does not fit")):
        answer = cli("evaluate", run, "--where", where)
        assert (answer.code, len(answer.err.splitlines())) == (2, 1)
        assert remedy in answer.err
    other = tmp_path / "other"
    assert cli("import", tiny.manifest(tmp_path / "data", "csv", 20), "-o", other, "--kinds", "image=rgb").code == 0
    answer = cli("evaluate", run, "--data", other)
    assert answer.code == 2
    assert "trained on grey; import it with --kinds image=grey" in answer.err
    assert cli("import", tmp_path / "data/data.csv", "-o", tmp_path / "grey").code == 0
    again = cli("evaluate", run, "--data", tmp_path / "grey", "--json").json
    assert (again["rows"], again["table"]) == (4, str(tmp_path / "grey"))


def test_evaluate_without_labels_judges_pairs(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    source = tiny.romo_lists(tmp_path / "lists", labels=False, rows=20)
    assert cli("train", "romo", "--data", source, "-o", run, *tiny.FAST).code == 0
    found = cli("evaluate", run, "--json").json
    assert {"directions", "mean_map", "pseudo_labels", "noise"}.isdisjoint(found)
    assert found["rsum"] == found["pairs"]["rsum"]
    assert {"rsum", "ci95"} < set(found["pairs"])
    assert len([name for name in found["pairs"] if "->" in name]) == 2
    text = cli("evaluate", run).out
    assert f"rsum {found['rsum']:.1f}" in text


def test_evaluate_takes_several_runs_and_options(cli: Cli, made: tuple[Path, Path]) -> None:
    run = made[0]
    one = cli("evaluate", run, "--json").json
    two = cli("evaluate", "--ties", "pessimistic", run, run, "--folds", "3", "--json").json
    assert two["ensemble"] == [str(run), str(run)]
    assert two["rsum"] >= one["rsum"] - 1e-9
    assert two["mean_map"] == pytest.approx(one["mean_map"])
    assert f"ensemble of {run}, {run}\n" in cli("evaluate", run, run).out
    assert "Judged on 12 rows" in Path(one["report"]).read_text()
    for words, message in (
        (("--folds", "13"), "13 folds of 12 images"),
        (("--ties", "kind"), "--ties"),
        (("--relevance", "all"), "--relevance"),
    ):
        answer = cli("evaluate", run, *words)
        assert (answer.code, message in answer.err) == (2, True), answer.err


def test_a_run_is_the_same_by_every_path(
    cli: Cli, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained under a relative path, judged under an absolute one: the pseudo-labels are still its own."""
    monkeypatch.chdir(tmp_path)
    assert cli("import", made[1], "-o", "table").code == 0
    assert cli("train", "romo", "--data", "table", "-o", "run", *tiny.FAST).code == 0
    here = cli("evaluate", "run", "--json").json
    there = cli("evaluate", tmp_path / "run", "--json").json
    assert "image" in here["pseudo_labels"]
    assert there["pseudo_labels"] == here["pseudo_labels"]


def test_embed_and_index(cli: Cli, made: tuple[Path, Path], table: Path) -> None:
    run = made[0]
    answer = cli("embed", run, "--table", table, "--where", "split = 'test'", "--json", "--quiet")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["columns"] == {"image": "vector_image", "points": "vector_points"}
    vectors = Table.open(table).column("vector_image", "split = 'test'")
    assert vectors.shape == (12, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.isnan(Table.open(table).column("vector_image", "split = 'train'")).all()
    first = cli("index", table, "--run", run, "--where", "split = 'test'", "--json").json
    assert first["embedded"] == []
    assert first["filled"] == {"vector_image": 12, "vector_points": 12}
    text = cli("index", table, "--run", run)
    assert text.out == (
        f"{table}: 60 rows\n  vector_image: 60 vectors, exact scan\n  vector_points: 60 vectors, exact scan\n"
        f"embedded now: image, points\nnext    consilience search {table} FILE\n"
    )
    assert "nothing, the vectors were there" in cli("index", table, "--run", run).out


def test_embed_names_what_it_cannot(cli: Cli, made: tuple[Path, Path], table: Path) -> None:
    for words, message in (
        (("--modalities", "imgae"), "unknown modality of the run 'imgae'; did you mean 'image'?"),
        (("--where", "split = 'nope'"), "pass \"split = 'nope'\"; widen the filter"),
        (("--where", "nope = 1"), "filter 'nope = 1' does not fit"),
        (("--name", "my vectors"), "'my vectors_image' cannot name a new column"),
        (("--name", "origin"), "'origin_image' cannot name a new column"),
        (("--table", "/nowhere"), "/nowhere is not a table"),
    ):
        answer = cli("embed", made[0], "--table", table, *words)
        assert (answer.code, len(answer.err.splitlines())) == (2, 1), answer
        assert message in answer.err
    assert not [name for name in Table.open(table).columns if name.startswith("vector")]

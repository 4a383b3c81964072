"""How the command line is spoken to: names, options, types, help, and what it answers in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consilience.cli.main import VERBS
from tests.cli import tiny
from tests.cli.conftest import Cli

HEAVY = ("torch", "numpy", "lancedb", "lance", "pyarrow", "transformers", "accelerate", "matplotlib", "sklearn")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import consilience",
        "from consilience.cli.main import main; main(['--help'])",
        "from consilience.cli.main import main; main(['search', '--help'])",
        "from consilience.cli.main import main; main(['trian'])",
    ],
)
def test_starts_without_heavy_imports(code: str) -> None:
    done = python(f"{code}\nimport sys; print('loaded:', sorted(set({HEAVY}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded: []\n")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_help_of_a_verb_needs_no_torch(verb: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process torch is loaded already, so that modules of the package that load it are made unimportable."""
    for module in ("training.api", "training.loop", "evaluation.evaluate", "data.table", "methods.registry"):
        monkeypatch.setitem(sys.modules, f"consilience.{module}", None)
    answer = cli(verb, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"usage: consilience {verb}")
    assert "--json" in answer.out


def test_help_takes_less_than_a_second() -> None:
    """Of five starts the fastest, so that a busy machine does not decide."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "consilience", "--help"], capture_output=True, text=True)
        times.append(time.monotonic() - began)
        assert done.returncode == 0
        assert done.stderr == ""
        if times[-1] < 0.5:
            break
    assert min(times) < 1
    for verb, what in VERBS.items():
        assert f"  {verb:<10} {what}" in done.stdout


def test_train_help_lists_the_methods_own_options(cli: Cli) -> None:
    for words in (["train", "--help"], ["train", "romo", "-h"], ["train"]):
        answer = cli(*words)
        assert answer.code == 0
        own = "--method.warmup_epochs" if "romo" in words else "--method.optimiser.lr"
        for option in (own, "--train.seed", "--on_bad_sample", "--resume"):
            assert option in answer.out
        assert "--method CONFIG" not in answer.out


def test_no_verb_is_bad_usage(cli: Cli) -> None:
    answer = cli()
    assert (answer.code, answer.out) == (2, "")
    assert "usage: consilience VERB" in answer.err


def test_process_answers_with_exit_code_two_and_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "consilience", "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "consilience: unknown verb 'trian'; did you mean 'train'?\n"


WRONG = {
    "trian romo": "unknown verb 'trian'; did you mean 'train'?",
    "train romp --data mnist3d": "unknown method 'romp'; did you mean 'romo'?",
    "train romo --data mnist3": "unknown data set or path 'mnist3'; did you mean 'mnist3d'?",
    "check mnist3": "unknown data set or path 'mnist3'; did you mean 'mnist3d'?",
    "reproduce romp": "unknown method 'romp'; did you mean 'romo'?",
    "bench evalution": "unknown benchmark 'evalution'; did you mean 'evaluation'?",
    "train romo --method.warmup 3": "unknown option '--method.warmup'; did you mean '--method.warmup_epochs'?",
    "train romo --method.clustres=3": "unknown option '--method.clustres'; did you mean '--method.clusters'?",
    "train romo --train.see 3": "unknown option '--train.see'; did you mean '--train.seed'?",
    "train romo --dat mnist3d": "unknown option '--dat'; did you mean '--data'?",
    "train romo --method.encoders.imagesize 3": "did you mean '--method.encoders.image_size'?",
    "train romo --method.encoders x.yaml": "unknown option '--method.encoders'",
    "train romo --method x.yaml": "unknown option '--method'",
    "check mnist3d --jsn": "unknown option '--jsn'; did you mean '--json'?",
    "check mnist3d --zzz": "unknown option '--zzz'; see consilience check --help",
    "check mnist3d -v": "unknown option '-v'; see consilience check --help",
    "train romo mnist3d": "unexpected argument 'mnist3d'; see consilience train --help",
    "check mnist3d twice": "unexpected argument 'twice'",
    "search": "the following arguments are required: table;",
    "train --data mnist3d": "name the method first: consilience train METHOD ...; known: bidfc, clic, cmah",
    "train romo": "consilience train needs --data",
    "import mnist3d": "needs a place for the Table: -o FOLDER",
    "index somewhere": "needs the encoders' run: --run RUN",
    "train romo --data": "argument --data: expected one argument",
    "train romo --method.tau x": "--method.tau: expected float, got x",
    "train romo --method.clusters 2.5": "--method.clusters: expected int, got 2.5",
    "train romo --train.tensorboard maybe": "--train.tensorboard: expected bool, got maybe",
    "train romo --method.targets fusd": "--method.targets: expected one of ['per-view', 'fused'], got fusd",
    "train romo --method.annotate_optimiser.name sdg": "expected one of ['adam', 'adamw', 'sgd'], got sdg",
    "train romo --on-bad-sample skip": "--on_bad_sample: expected one of ['stop', 'quarantine'], got skip",
    "search t q -k many": "--k: expected int, got many",
    "train romo --method.clusters 1": "--method.clusters 1: ",
    "train romo --method.tau 0": "--method.tau 0.0: ",
    "train romo --method.batch_size 2": "--method.batch_size 2: ",
    "train romo --train.validation 1": "--train.validation 1.0: expected a share from 0 to below 1",
    "train romo --train.accumulate 0": "--train.accumulate 0: expected 1 or more",
    "reproduce romo --seeds 0": "--seeds 0: expected at least 1",
    "reproduce romo --set clusters": "--set 'clusters': write it as NAME=VALUE,NAME=VALUE",
    "train romo --data mnist3d --kinds image": "--kinds 'image': write it as NAME=VALUE,NAME=VALUE",
    "train romo --data mnist3d --kinds image=gray": "unknown kind 'gray'; did you mean 'grey'?",
    "train romo --config romo-papre": "unknown recipe (or YAML file) 'romo-papre'; did you mean 'romo-paper'?",
    "train --resume": "--resume needs a run folder: consilience train --resume RUN",
    "train --resume /nowhere": "/nowhere is not a run folder",
    "evaluate /nowhere": "/nowhere is not a run folder",
    "embed /nowhere": "/nowhere is not a run folder",
    "index /nowhere --run /nowhere": "/nowhere is not a run folder",
    "search /nowhere q.png": "/nowhere is not a table (does not exist)",
    "check /nowhere": "/nowhere does not exist",
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_usage_is_one_line_that_names_the_remedy(
    words: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert WRONG[words] in refused(*words.split())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_hyphens_and_underscores_are_one(refused: Callable[..., str]) -> None:
    for spelled in ("--on-bad-sample", "--on_bad_sample"):
        assert "stop" in refused("import", "mnist3d", spelled, "skip")
        assert "stop" in refused("import", "mnist3d", f"{spelled}=skip")
    assert "--method.warmup_epochs: expected int" in refused("train", "romo", "--method.warmup-epochs", "x")
    assert "got rcll-relased" in refused("train", "romo", "--method.robust-loss", "rcll-relased")


def test_values_may_look_like_options(refused: Callable[..., str]) -> None:
    assert "expected float, got a" in refused("train", "romo", "--method.views.rotate=-5", "--method.tau", "a")
    assert "expected float, got a" in refused("train", "romo", "--method.views.rotate", "-5", "--method.tau", "a")


@pytest.mark.parametrize(
    "words", ["trian", "train romo --method.tau x", "check /nowhere", "train --resume", "--verson"]
)
def test_json_of_an_error_is_one_object(words: str, cli: Cli) -> None:
    answer = cli(*words.split(), "--json")
    assert answer.code == 2
    assert set(answer.json) == {"error", "exit"}
    assert answer.json["exit"] == 2
    assert answer.err == f"consilience: {answer.json['error']}\n"


@pytest.mark.parametrize("verb", ["methods", "datasets"])
def test_lists(verb: str, cli: Cli) -> None:
    answer = cli(verb, "--json")
    assert answer.code == 0
    name = {"methods": "romo", "datasets": "mnist3d"}[verb]
    assert name in answer.json
    text = cli(verb)
    assert f"{name} " in text.out or f"{name}:" in text.out
    assert "next    consilience train " in text.out


def test_datasets_tell_what_is_in_them(cli: Cli) -> None:
    found = cli("datasets", "--json").json["mnist3d"]
    assert found["rows"] == {"train": 5000, "test": 1000}
    assert found["modalities"] == {"image": "grey", "points": "points"}
    assert found["classes"] == 10
    assert found["licence"]


def test_version(cli: Cli) -> None:
    from consilience import __version__

    assert cli("--version").out == f"{__version__}\n"


def test_unexpected_failure_is_exit_one_with_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: str) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr("consilience.data.check.check", broken)
    answer = cli("check", "mnist3d", "--json")
    assert answer.code == 1
    assert answer.json["exit"] == 1
    assert "ZeroDivisionError: of the test" in answer.json["error"]
    assert "Traceback" in answer.err


def test_an_unreadable_file_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: str) -> None:
        raise PermissionError(13, "Permission denied", "/data/locked")

    monkeypatch.setattr("consilience.data.check.check", broken)
    answer = cli("check", "mnist3d")
    assert (answer.code, answer.err) == (1, "consilience: /data/locked: Permission denied\n")


def test_json_has_null_for_nan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "consilience.cli.methods_verb.run", lambda: {"a": [float("nan"), 1.5], "b": {"c": float("inf")}}
    )
    assert cli("methods", "--json").json == {"a": [None, 1.5], "b": {"c": None}}


def test_a_reader_that_has_gone_is_no_error() -> None:
    words = [sys.executable, "-m", "consilience", "--help"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def recipe(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


BAD_RECIPES = {
    "method: rome\n": "is a recipe of rome, not of romo",
    "method_confg: {}\n": "unknown key in {path} 'method_confg'; did you mean 'method_config'?",
    "method_config: {tow: 3}\n": "unknown option '--method.tow'; did you mean '--method.",
    "method_config: {warmup: 3}\n": "did you mean '--method.warmup_epochs'?",
    "method_config: {tau: hot}\n": "--method.tau: expected float, got hot",
    "method_config: {encoders: small}\n": "--method.encoders: expected options below it (image, points",
    "method_config: small\n": "method_config holds 'small'; expected options",
    "train: {thread: 3}\n": "unknown option '--train.thread'; did you mean '--train.threads'?",
    "train: [1\n": "is not valid YAML",
    "- 3\n": "is no recipe; expected keys such as method",
}


@pytest.mark.parametrize("text", BAD_RECIPES)
def test_bad_recipes(text: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = recipe(tmp_path / "my.yaml", text)
    line = refused("train", "romo", "--data", "mnist3d", "-o", tmp_path / "run", "--config", path)
    assert BAD_RECIPES[text].format(path=path) in line
    assert not (tmp_path / "run").exists()


def test_options_go_over_the_recipe_and_both_are_recorded(cli: Cli, table: Path, tmp_path: Path) -> None:
    import yaml

    path = recipe(tmp_path / "my.yaml", "method: romo\nmethod_config: {tau: 0.3, width: 8}\ntrain: {seed: 7}\n")
    run = tmp_path / "run"
    answer = cli("train", "romo", "--data", table, "-o", run, f"--config={path}", *tiny.FAST, "--json")
    assert answer.code == 0, answer.err
    content = yaml.safe_load((run / "config.yaml").read_text())
    assert content["method_config"]["tau"] == 0.3
    assert content["method_config"]["width"] == 16
    assert content["train"]["seed"] == 7
    assert json.loads((run / "environment.json").read_text())["seed"] == 7

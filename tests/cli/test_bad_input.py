"""Every error of bad input: one line that names the thing and the remedy, exit 2, nothing half-written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.cli import tiny
from tests.cli.conftest import Cli

Refused = Callable[..., str]


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def left_behind(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()] if place.exists() else []


def with_nan() -> np.ndarray:
    values = tiny.cloud(0)
    values[3, 1] = np.nan
    return values


BROKEN = {
    "missing file": ("points", None, "No such file or directory (row 8 of data.csv)"),
    "corrupt image": ("image", tiny.png(7)[:60], "broken image"),
    "no image at all": ("image", b"hello", "not a readable image; expected one of png"),
    "empty file": ("image", b"", "empty file"),
    "NaN in a cloud": ("points", npy(with_nan()), "NaN, infinite or huge coordinates; remove those points"),
    "too few points": ("points", npy(tiny.cloud(0)[:7]), "7 points; a cloud needs at least 8"),
    "flat array": ("points", npy(tiny.cloud(0)[:, 0]), "shape (40,) float32; expected [points, 3] numbers"),
    "two columns": ("points", npy(tiny.cloud(0)[:, :2]), "shape (40, 2) float32; expected [points, 3] numbers"),
    "text": ("points", npy(np.array([["a", "b", "c"]] * 9)), "expected [points, 3] numbers"),
    "truncated array": ("points", npy(tiny.cloud(0))[:200], "broken NumPy file (truncated"),
    "one point only": ("points", npy(np.ones((20, 3))), "all points coincide"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("verb", ["import", "train"])
def test_a_broken_sample_stops(what: str, verb: str, refused: Refused, tmp_path: Path) -> None:
    modality, content, reason = BROKEN[what]
    path, out = tiny.manifest(tmp_path / "data", "csv", 12), tmp_path / "out" / "of"
    file = tmp_path / "data" / ("pictures/7.png" if modality == "image" else "shapes/7.npy")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    words = ("import", path) if verb == "import" else ("train", "romo", *tiny.FAST, "--data", path)
    line = refused(*words, "-o", out)
    assert f"sample 's7', {modality} from {file.relative_to(tmp_path / 'data')}: " in line
    assert reason in line
    assert line.endswith("; set such samples aside with --on-bad-sample quarantine")
    assert left_behind(tmp_path / "out") == []


def test_a_lonely_line_of_the_lists(refused: Refused, tmp_path: Path) -> None:
    source = tiny.romo_lists(tmp_path / "lists", labels=False, rows=10)
    path = source / "mnist3d_PointCloud_train_list.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "000006" not in line))
    line = refused("train", "romo", "--data", source, "-o", tmp_path / "run", *tiny.FAST)
    assert "mnist3d_GrayImgs_train_list.txt line 6: id 000006 is not in the points list; make both list one set" in line
    assert left_behind(tmp_path / "run") == []


def test_folders_without_a_common_stem(refused: Refused, tmp_path: Path) -> None:
    for name, content in (("cats/1.png", tiny.png(1)), ("clouds/2.npy", b"")):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(content)
    line = refused("train", "romo", "--data", tmp_path / "data", "-o", tmp_path / "run", *tiny.FAST)
    assert "no stem occurs in two of cats, clouds; expected one sub-folder per modality" in line
    assert left_behind(tmp_path / "run") == []


def test_one_modality_is_not_enough(refused: Refused, tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / "data/image").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/image/{i}.png").write_bytes(tiny.png(i))
    line = refused("train", "romo", "--data", tmp_path / "data", "-o", tmp_path / "run", *tiny.FAST)
    assert "RoMo aligns modalities and needs two or more; the data has image" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("data", ["mnist3d", "table"])
def test_unwritable_output(data: str, refused: Refused, made: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "run"
    source = made[1] if data == "table" else data
    line = refused("train", "romo", "--data", source, "-o", out, *tiny.FAST)
    assert f"cannot write to {tmp_path / 'file'}" in line
    assert "choose a writable folder" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_unwritable_table(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused("import", "mnist3d", "-o", tmp_path / "file" / "table")
    assert f"cannot write to {tmp_path / 'file'}" in line


def test_a_table_is_not_overwritten(refused: Refused, made: tuple[Path, Path]) -> None:
    assert "already exists; remove it or choose another place" in refused("import", "mnist3d", "-o", made[1])


def test_fewer_samples_than_clusters(refused: Refused, tmp_path: Path) -> None:
    path, run = tiny.manifest(tmp_path / "data", "csv", 10), tmp_path / "run"
    line = refused("train", "romo", "--data", path, "-o", run, *tiny.FAST, "--method.clusters", "9")
    assert "8 samples cannot form 9 clusters; lower --method.clusters or give more data" in line
    assert not (run / "config.yaml").exists()


def test_unknown_encoder(refused: Refused, tmp_path: Path) -> None:
    path, run = tiny.manifest(tmp_path / "data", "csv", 4), tmp_path / "run"
    line = refused("train", "romo", "--data", path, "-o", run, *tiny.FAST, "--method.encoders.image", "resnet19")
    assert "unknown image encoder 'resnet19'; did you mean 'resnet" in line
    assert not (run / "config.yaml").exists()


def test_a_run_is_not_overwritten(refused: Refused, made: tuple[Path, Path]) -> None:
    run, table = made
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    line = refused("train", "romo", "--data", table, "-o", run, *tiny.FAST)
    assert f"{run} holds a run already; resume it with --resume {run} or choose another -o" in line
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_resume_takes_a_run_only(refused: Refused, made: tuple[Path, Path], tmp_path: Path) -> None:
    assert f"{tmp_path} is not a run folder (no config.yaml)" in refused("train", "--resume", tmp_path)
    assert left_behind(tmp_path) == []
    line = refused("train", "romo", "--resume", made[0], "--method.tau", "0.3")
    assert f"--method.tau does not go with --resume: {made[0]} goes on with its own config.yaml; drop it" in line


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "copy")


def change(run: Path, **values: object) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["method_config"] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("verb", ["evaluate", "embed"])
def test_a_checkpoint_of_another_configuration(verb: str, refused: Refused, copy: Path) -> None:
    change(copy, width=24)
    line = refused(verb, copy)
    assert f"{copy / 'model.safetensors'} does not fit this configuration: " in line
    assert "use the config.yaml it was trained with" in line


def test_a_damaged_checkpoint(refused: Refused, copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert f"{weights} is not a readable safetensors file" in refused("evaluate", copy)


def test_a_run_without_weights(refused: Refused, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    shutil.rmtree(copy / "checkpoints")
    assert f"has no weights yet; go on with: consilience train --resume {copy}" in refused("evaluate", copy)


CONFIGURATIONS = {
    "unknown key": ({"widht": 3}, "unknown option '--method.widht'; did you mean '--method.width'?"),
    "wrong type": ({"width": "wide"}, "--method.width: expected int, got wide"),
    "out of range": ({"clusters": 1}, "--method.clusters 1: "),
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_bad_configuration(what: str, refused: Refused, copy: Path) -> None:
    values, message = CONFIGURATIONS[what]
    change(copy, **values)
    assert message in refused("evaluate", copy)


@pytest.mark.parametrize("text", ["", "method: [1\n", "[1, 2]\n", "method: romo\n"])
def test_a_torn_configuration(text: str, refused: Refused, copy: Path) -> None:
    (copy / "config.yaml").write_text(text)
    assert str(copy / "config.yaml") in refused("evaluate", copy)


def test_data_that_has_gone(refused: Refused, copy: Path) -> None:
    content = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(content | {"data": "/gone/table"}))
    assert "/gone/table, the table of " in refused("evaluate", copy)
    assert "/gone/table is not a table (does not exist)" in refused("train", "--resume", copy)


def test_a_missing_tensorboard_is_named(
    refused: Refused, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = tmp_path / "run"
    line = refused("train", "romo", "--data", made[1], "-o", run, *tiny.FAST, "--train.tensorboard", "true")
    assert "--train.tensorboard needs: pip install 'consilience[track]'" in line
    assert left_behind(run) == []


def test_given_labels_must_fit(refused: Refused, made: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("train", "romo", "--data", made[1], "-o", tmp_path / "run", *tiny.FAST)
    assert "did you mean 'label'?" in refused(*words, "--train.given", "labl")
    labels = tmp_path / "labels.txt"
    labels.write_text("a.png 0 -1\nb.png 1 -1\n")
    assert "labels 2 samples, the run trains on 44" in refused(
        *words, "--train.given", f"image={labels},points={labels}"
    )
    assert "names no file for points" in refused(
        *words, "--train.validation", "0.96", "--train.given", f"image={labels}", "--method.clusters", "2"
    )
    assert left_behind(tmp_path / "run") == []


def test_interrupting_leaves_a_run_that_can_go_on(
    cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the third step: exit 130, one line with the command, which then finishes the run."""
    import signal

    from consilience.training.loop import Trainer

    run, true_report, calls = tmp_path / "run", Trainer._report, []

    def report(self: Trainer, *rest: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        true_report(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_report", report)
    stopped = cli("train", "romo", "--data", table, "-o", run, *tiny.FAST, "--json")
    assert stopped.code == 130
    assert stopped.json == {
        "error": f"stopped at step 4; go on with: consilience train --resume {run}",
        "exit": 130,
    }
    assert not (run / "model.safetensors").exists()
    assert cli("evaluate", run).code == 0
    done = cli("train", "--resume", run, "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["steps"] == 9
    assert (run / "model.safetensors").exists()
    again = cli("train", f"--resume={run}", "--json")
    assert again.json["steps"] == 9

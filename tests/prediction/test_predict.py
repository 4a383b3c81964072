"""What is read, handed over, written and refused, with a stand-in that tells what it was given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import consilience.prediction.predict as predicting
from consilience.cli.main import main
from consilience.data.pictures import Placement
from consilience.data.schema import Batch
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.prediction.base import Prediction
from consilience.prediction.predict import predict_files, predict_rows
from consilience.training.api import Run


class Mean:
    """The mean of the original; a picture of the decoded one's first channel."""

    column = "brightness"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        self.sizes.append(len(batch))
        assert len(originals) == len(places) == len(batch)
        shown = batch.values["image"][:, 0].cpu().numpy()
        return [
            Prediction(float(picture.mean()), {"height": picture.shape[0]}, {"first": np.stack([one] * 3, 2)})
            for picture, one in zip(originals, shown, strict=True)
        ]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Mean:
    mean = Mean()
    monkeypatch.setattr(predicting, "predictor_of", lambda run, readout=None: mean)
    return mean


def test_files_in_order_with_pictures(judge: Run, pictures: Path, tmp_path: Path, stand_in: Mean) -> None:
    files = sorted(pictures.glob("train/*/*.png"))
    twin = tmp_path / "deep" / files[0].name
    twin.parent.mkdir()
    twin.write_bytes(files[0].read_bytes())
    answers = predict_files(judge, [*files, twin], out=tmp_path / "out")
    assert stand_in.sizes == [16, 5]
    assert [answer["file"] for answer in answers] == [str(file) for file in [*files, twin]]
    for answer in answers:
        pixels = np.array(Image.open(answer["file"]))
        assert answer["value"] == pytest.approx(pixels.mean())
        assert answer["height"] == 30
    assert len({answer["pictures"]["first"] for answer in answers}) == 21, "equal names do not overwrite each other"
    size = judge.method.decode.image_size
    assert np.array(Image.open(answers[0]["pictures"]["first"])).shape == (size, size, 3)


def test_rows_of_a_table_get_a_column(judge: Run, stand_in: Mean) -> None:
    table = judge.table
    found = predict_rows(judge, table, where="label = 'busy'")
    assert (found["column"], found["rows"]) == ("brightness", 10)
    again = Table.open(table.path)
    values, labels = again.column("brightness"), again.take(again.select(), ["label"])["label"].to_pylist()
    assert [np.isnan(value) for value in values] == [label == "calm" for label in labels]
    assert found["low"] <= found["mean"] <= found["high"]
    provenance = again.provenance("brightness")
    assert provenance is not None
    assert provenance["run"] == str(judge.path.resolve())


def test_the_verb(
    judge: Run, pictures: Path, tmp_path: Path, stand_in: Mean, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in sorted(pictures.glob("train/*/*.png"))[:2]]
    assert main(["predict", str(judge.path), *files, "-o", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in found["predictions"]] == files
    assert main(["predict", str(judge.path), files[0], "--quiet"]) == 0
    assert files[0] in capsys.readouterr().out
    assert main(["predict", str(judge.path), "--data", str(judge.table.path), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give picture files or --data TABLE"),
        (["nowhere.png"], "nowhere.png does not exist"),
        (["{text}"], "notes.txt is no picture"),
        (["{broken}"], "broken.png: broken image"),
        (["{good}", "--where", "true"], "--where chooses rows of a Table"),
        (["{good}", "--data", "{table}"], "not both"),
        (["--data", "{table}", "--where", "label = 'none'"], "no row of"),
    ],
)
def test_bad_input(
    judge: Run, pictures: Path, tmp_path: Path, stand_in: Mean, words: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = next(pictures.glob("train/busy/*.png"))
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:200])
    names = {"text": tmp_path / "notes.txt", "broken": tmp_path / "broken.png", "good": good, "table": judge.table.path}
    code = main(["predict", str(judge.path), *(word.format(**names) for word in words), "--quiet"])
    told = capsys.readouterr().err
    assert (code, len(told.splitlines())) == (2, 1)
    assert message in told


def test_a_run_for_retrieval_predicts_nothing(judge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from consilience.methods.base import Task

    monkeypatch.setattr(type(judge.method), "task", Task.RETRIEVAL)
    with pytest.raises(InputError, match="a run for retrieval; it has vectors to search with, no predictions"):
        predicting.predictor_of(judge)


def test_training_points_to_what_the_run_is_for(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "clic", "--data", str(pictures), "--config", "clic-tiny", "-o", str(tmp_path / "run"), "--quiet"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"consilience predict {tmp_path / 'run'} PICTURE" in told
    assert "consilience index" not in told
    words[1], words[7] = "multi-queue-moco", str(tmp_path / "other")
    words[5] = "multi-queue-moco-tiny"
    assert main(words) == 2
    assert "has no column 'weather', which multi-queue-moco learns from" in capsys.readouterr().err

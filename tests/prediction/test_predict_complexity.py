"""Predicted scores of complexity and the maps under them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.data.pictures import Placement
from consilience.data.schema import Batch
from consilience.errors import InputError
from consilience.methods.clic import CLIC
from consilience.methods.icnet import ICNet, ICNetConfig
from consilience.prediction.complexity import ComplexityPredictor, predictor
from consilience.prediction.predict import predict_files
from consilience.training.api import Run
from consilience.training.readouts import fit_ridge, fitted


def busy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28, 3)).astype(np.uint8)


def asked(run: Run, pictures: list[np.ndarray], readout: str | None = None) -> list[float]:
    size, name = run.method.decode.image_size, next(iter(run.method.modalities))
    values = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())
    batch = Batch(torch.arange(len(pictures)), {name: values}, {name: torch.ones(len(pictures), dtype=torch.bool)})
    places = [Placement.of(size, size, size, "cut")] * len(pictures)
    with torch.no_grad():
        return [float(one.value) for one in predictor(run, readout)(batch, pictures, places)]


def test_without_scores_the_label_free_read_out_answers(judge: Run, pictures: Path, tmp_path: Path) -> None:
    """Noise is judged busier than stripes; a file and a map each."""
    files = sorted(pictures.glob("train/*/*.png"))
    answers = predict_files(judge, files, out=tmp_path)
    assert "unsupervised" in fitted(judge.path)
    assert {answer["readout"] for answer in answers} == {"unsupervised"}
    means = {kind: np.mean([a["value"] for a in answers if f"/{kind}/" in a["file"]]) for kind in ("calm", "busy")}
    assert means["busy"] > means["calm"]
    for answer in answers:
        assert answer["low"] <= answer["value"] <= answer["high"]
        assert Image.open(answer["pictures"]["complexity"]).size == Image.open(answer["file"]).size


def test_fact_the_score_is_the_mean_of_its_map_and_the_read_out_of_the_features(judge: Run) -> None:
    assert isinstance(judge.method, CLIC)
    name = next(iter(judge.method.modalities))
    values = torch.from_numpy(np.stack([busy(1), busy(2)]).transpose(0, 3, 1, 2).copy())
    batch = Batch(torch.arange(2), {name: values}, {name: torch.ones(2, dtype=torch.bool)})
    rng = np.random.default_rng(0)
    readout = fit_ridge(rng.normal(size=(40, 64)).astype(np.float32), rng.normal(size=40))
    with torch.no_grad():
        scores, maps = ComplexityPredictor(judge, readout, "x")._answers(batch)
        direct = readout.predict(judge.method.encode(batch, name).numpy())
    np.testing.assert_allclose(scores, maps.mean((1, 2)))
    np.testing.assert_allclose(scores, direct, atol=1e-5)
    assert maps.std() > 0


def test_which_read_out_answers(judge: Run) -> None:
    names = [fit_ridge(np.eye(64, dtype=np.float32)[:30], np.full(30, float(n))) for n in (1, 2)]
    names[0].save(judge.path, "score-Art")
    with pytest.raises(InputError, match="several categories; choose --readout score-Art"):
        predictor(judge, None)
    assert asked(judge, [busy(3)], "score-Art") == pytest.approx([1.0], abs=1e-6)
    file = judge.path / "readouts" / "score-Art.safetensors"
    file.unlink()
    names[1].save(judge.path, "score")
    assert asked(judge, [busy(3)]) == pytest.approx([2.0], abs=1e-6)
    (judge.path / "readouts" / "score.safetensors").unlink()
    with pytest.raises(InputError, match="no read-out 'nothing'"):
        predictor(judge, "nothing")


def test_a_head_of_its_own_answers_for_itself(judge: Run) -> None:
    from dataclasses import replace

    config = ICNetConfig(image_size=28, width=8, side=4, slam=4, hidden=8, highest=10.0)
    run = replace(judge, method=ICNet(config, judge.method.modalities, 8).eval())
    (found,) = asked(run, [busy(4)])
    assert 0 < found < 10
    with pytest.raises(InputError, match="its own head; leave out --readout score"):
        predictor(run, "score")

"""CLIC and ICNet beyond their equations: views by use, memories, starting from a run, scores that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from consilience.data.scenes import MODALITIES, scene_rows
from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.memory.queue import NOBODY
from consilience.methods.base import Progress
from consilience.methods.clic import CLIC, CLICConfig
from consilience.methods.icnet import ICNet, ICNetConfig
from consilience.training.api import load, train
from consilience.training.config import TrainConfig
from consilience.views.pictures import PictureViewConfig

START = Progress(0, "train", 0, 0.0, 0)
TINY: dict[str, Any] = {"image_size": 48, "width": 8, "epochs": 1, "batch_size": 16}
HEAD: dict[str, Any] = {"image_size": 48, "width": 8, "side": 6, "slam": 4, "hidden": 8, "epochs": 2, "batch_size": 16}


def pictures(count: int = 8, size: int = 48, **targets: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(count), {"image": values}, {"image": torch.ones(count, dtype=torch.bool)}, targets)


def method(samples: int = 64, **options: Any) -> CLIC:
    torch.manual_seed(0)
    return CLIC(CLICConfig(**(TINY | options)), {"image": Kind.RGB}, samples)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = [*scene_rows(48, "train"), *scene_rows(24, "test", start=48)]
    scalars = {"score": pa.float64(), "shapes": pa.int64()}
    return Table.create(tmp_path_factory.mktemp("scenes") / "table", rows, MODALITIES, "scenes", scalars=scalars)


def test_each_use_of_mosaics_draws_what_it_says() -> None:
    batch, key = pictures(64), (0, 0, 0)
    plain, positive, expand, both = (
        method(rcm=use).views(batch, key) for use in ("none", "positive", "expand", "both")
    )
    assert torch.equal(plain[2], batch.index)
    assert torch.equal(positive[2], batch.index)
    assert torch.equal(both[2], batch.index)
    exchanged = expand[2] >= 64
    assert 20 < int(exchanged.sum()) < 44
    assert torch.equal(expand[2] % 64, batch.index)
    assert torch.equal(positive[0], plain[0]), "the query of a positive pair is of the picture itself"
    assert not torch.equal(positive[1], plain[1])
    same = (expand[0] == plain[0]).flatten(1).all(1)
    assert torch.equal(~same, exchanged), "pictures that were not exchanged are as without mosaics"
    assert torch.equal(both[0], expand[0])
    assert not torch.equal(both[1], expand[1])


def test_views_belong_to_the_sample_and_the_epoch() -> None:
    batch, model = pictures(), method()
    part = Batch(batch.index[3:5], {"image": batch.values["image"][3:5]}, {"image": batch.present["image"][3:5]})
    for whole, few in zip(model.views(batch, (0, 0, 1)), model.views(part, (0, 0, 1)), strict=True):
        torch.testing.assert_close(whole[3:5], few)
    assert not torch.equal(model.views(batch, (0, 0, 1))[0], model.views(batch, (0, 0, 2))[0])


def test_the_queue_is_capped_by_the_data_and_begins_with_nobodys_keys() -> None:
    assert method(64).queue.places == 16
    assert method(64, queue_share=0.0).queue.places == 256
    assert method(10_000).queue.places == 256
    fresh = method(64).queue
    assert (fresh.ids == NOBODY).all()
    torch.testing.assert_close(fresh.keys.norm(dim=2), torch.ones(1, 16))


def test_keys_enter_after_the_step_and_twins_follow() -> None:
    model, batch = method().train(), pictures()
    before = model.queue.keys.clone()
    terms = model.step(batch, START)
    assert torch.equal(model.queue.keys, before), "nothing is pushed before the backward pass"
    terms["contrast"].backward()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.5)
    first = next(model.key_encoder.network.parameters()).clone()
    model.after_batch(batch, START)
    assert model.queue.ids[0, :8].tolist() == list(range(8))
    assert (model.queue.ids[0, 8:] == NOBODY).all()
    torch.testing.assert_close(next(model.key_encoder.network.parameters()), first + 0.05 * 0.5)
    assert all(parameter.grad is None for parameter in model.key_encoder.parameters())


def test_features_are_the_mean_of_the_last_map() -> None:
    model, batch = method().eval(), pictures()
    torch.testing.assert_close(model.encode(batch, "image"), model.last_map(batch).mean((2, 3)))
    assert model.activation(batch).shape == (8,)
    last = method(cal_stages="last").eval()
    torch.testing.assert_close(last.activation(batch), last.last_map(batch).mean((1, 2, 3)))


def test_refusals_of_clic() -> None:
    for options, words in (
        ({"tau": 0.0}, "tau 0.0"),
        ({"expand_share": 1.5}, "expand_share 1.5"),
        ({"cal_weight": -1.0}, "cal_weight -1"),
    ):
        with pytest.raises(InputError, match=words):
            method(**options)
    with pytest.raises(InputError, match="one picture modality"):
        CLIC(CLICConfig(), {"image": Kind.RGB, "points": Kind.POINTS}, 10)
    with pytest.raises(InputError, match="no published mosaic"):
        method(rcm_zoom="published").views(pictures(size=30), (0,))


def head(**options: Any) -> ICNet:
    torch.manual_seed(0)
    return ICNet(ICNetConfig(**(HEAD | options)), {"image": Kind.RGB}, 8)


def test_missing_and_untold_scores_do_not_count() -> None:
    """The loss over known scores alone, by hand: batch norm in evaluation mode, views that change nothing."""
    scores = torch.tensor([0.1, float("nan"), 0.9, 0.4, float("nan"), 0.2, 0.5, 1.0])
    still = PictureViewConfig(crop_low=1.0, ratio=1.0, flip=0.0, colour_probability=0.0, grey=0.0, blur=0.0)
    model = head(frozen=False, views=still).eval()
    found = model.step(pictures(score=scores), START)
    read, place = model.judge(pictures())
    known = torch.isfinite(scores)
    errors = [(value[known] - scores[known]).square().mean() for value in (read, place.mean((1, 2, 3)))]
    torch.testing.assert_close(found["score"], 0.9 * errors[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["map"], 0.1 * errors[1], atol=1e-5, rtol=1e-4)
    none = head(frozen=False, label_fraction=0.0).step(pictures(score=scores), START)
    assert sum(value.item() for value in none.values()) == 0


def test_scores_have_a_scale() -> None:
    with pytest.raises(InputError, match="a score of 57 outside of 0 to 1"):
        head(frozen=False).step(pictures(2, score=torch.tensor([0.5, 57.0])), START)
    wide, unit = head(highest=100.0).eval(), head().eval()
    torch.testing.assert_close(wide.judge(pictures())[0], 100 * unit.judge(pictures())[0])
    with pytest.raises(InputError, match="highest 0"):
        head(highest=0.0)


def test_a_head_starts_from_a_run_strictly_and_says_so_otherwise(scenes: Table, tmp_path: Path) -> None:
    quick = TrainConfig(validation=0.0, select="last", threads=1)
    first = train("clic", scenes, tmp_path / "clic", config=CLICConfig(**TINY), train=quick, quiet=True)
    with pytest.raises(InputError, match="never trained; name a run"):
        train("icnet", scenes, tmp_path / "none", config=ICNetConfig(**HEAD), train=quick, quiet=True)
    start = TrainConfig(validation=0.0, select="last", threads=1, start=str(first.path))
    wrong = ICNetConfig(**(HEAD | {"encoder": "resnet18"}))
    with pytest.raises(InputError, match="safetensors"):
        train("icnet", scenes, tmp_path / "wrong", config=wrong, train=start, quiet=True)
    run = train("icnet", scenes, tmp_path / "icnet", config=ICNetConfig(**HEAD), train=start, quiet=True)
    taught, learnt = load_file(first.folder.model_file), load_file(run.folder.model_file)
    names = [name for name in taught if name.startswith("encoder.")]
    assert names
    assert all(torch.equal(taught[name], learnt[name]) for name in names), "the frozen encoder has not moved"
    assert bool(learnt["loaded"])
    (tmp_path / "clic" / "model.safetensors").unlink()  # a finished head needs its encoder's run no more
    batch = pictures()
    again = load(run.path).method
    assert isinstance(again, ICNet)
    assert isinstance(run.method, ICNet)
    for kept, now in zip(again.judge(batch), run.method.judge(batch), strict=True):
        assert np.array_equal(kept.detach().numpy(), now.detach().numpy())

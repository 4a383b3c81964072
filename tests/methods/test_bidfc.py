"""BIDFC as a method: what its options do, what it refuses, and one process against two."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.base import Progress
from consilience.methods.bidfc import BIDFC, BIDFCConfig
from consilience.training.api import load, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.loop import Watch


def batch(count: int = 8, size: int = 16, channels: int = 1) -> Batch:
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    return Batch(torch.arange(count), {"image": pixels}, {"image": torch.ones(count, dtype=torch.bool)})


def method(kind: Kind = Kind.GREY, **options: Any) -> BIDFC:
    torch.manual_seed(0)
    config = BIDFCConfig(image_size=16, shrink=2, n_views=3, batch_size=8, epochs=4)
    return BIDFC(replace(config, **options), {"image": kind}, 8)


def terms(of: BIDFC, epoch: int = 3, turn: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return of.step(batch(), Progress(0, "train", epoch, 0.5, 0, turn))


def test_terms_of_each_head() -> None:
    assert set(terms(method())) == {"instances", "variance"}
    assert set(terms(method(), epoch=0)) == {"instances"}
    assert set(terms(method(head="pairs", separation_weight=1.0))) == {"instances", "variance", "separation"}
    drawn = method(head="random")
    assert drawn.phases()[0].turns == 4
    assert [set(terms(drawn, turn=turn)) for turn in range(4)] == [{"instances"}] * 3 + [{"variance"}]
    assert terms(drawn, epoch=0, turn=3) == {}
    assert method(head="random", dwv_weight=0.0).phases()[0].turns == 3
    assert method().phases()[0].turns == 1


def test_grey_pictures_are_one_channel_and_colours_three() -> None:
    assert method().encoder.stages[0][0].weight.shape[1] == 1  # type: ignore[index,union-attr]
    colour = method(Kind.RGB)
    assert colour.encode(batch(channels=3), "image").shape == (8, colour.encoder.width)


def test_pictures_are_averaged_down() -> None:
    x = batch(2)
    seen = method(shrink=4)._pictures(x)
    expected = x.values["image"].float().unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5)) / 255
    torch.testing.assert_close(seen, expected)


def test_temperature_weakens_the_contrast() -> None:
    """The gradient on the features shrinks, the loss nears the logarithm of the batch."""
    cold, warm = terms(method(temperature=0.2))["instances"], terms(method(temperature=5.0))["instances"]
    assert warm.item() == pytest.approx(torch.tensor(8.0).log().item(), abs=0.05)
    assert abs(cold.item() - warm.item()) > 0.01


def test_the_nearest_are_spared() -> None:
    """Of 4 pictures, each is told from all but the nearest other one."""
    of = method(spared=0.5, temperature=1.0)
    angles = torch.tensor([0.0, 0.2, 1.5, 1.9])
    features = torch.stack([angles.cos(), angles.sin()], 1)[:, None].expand(4, 3, 2)
    found = of._joint_contrast(features)
    cosine = (angles[:, None] - angles).cos()
    expected = []
    for i, spared in enumerate((1, 0, 3, 2)):
        kept = [j for j in range(4) if j != spared]
        expected.append(torch.logsumexp(cosine[i, kept], 0) - cosine[i, i])
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_a_projection_stands_between_features_and_contrast() -> None:
    wide = method(head="pairs", projection=7)
    assert wide.head is not None
    assert list(wide.trained("train")) == [wide.encoder, wide.head]
    assert wide.encode(batch(), "image").shape == (8, wide.encoder.width)
    assert method(head="random", projection=7).drawn.weight.shape == (8, 7)  # type: ignore[union-attr]


def test_the_drawn_head_learns_in_training_only() -> None:
    drawn = method(head="random")
    terms(drawn)
    assert drawn.drawn is not None
    moved = drawn.drawn.bias.clone()
    assert torch.count_nonzero(moved)
    drawn.eval()
    terms(drawn)
    assert torch.equal(drawn.drawn.bias, moved)


def test_a_view_belongs_to_its_picture() -> None:
    """Features of a picture's views are the same in any batch (evaluation mode: no moments of the batch)."""
    of, x = method().eval(), batch()
    progress = Progress(0, "train", 2, 0.0, 5)
    whole = of._features(x, progress, range(3))
    chosen = torch.tensor([6, 1])
    part = Batch(x.index[chosen], {"image": x.values["image"][chosen]}, {"image": x.present["image"][chosen]})
    torch.testing.assert_close(of._features(part, progress, range(3)), whole[chosen], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of._features(x, progress, range(1, 2))[:, 0], whole[:, 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_views": 1}, "n_views 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"shrink": 3}, "divisor of image_size 64"),
        ({"dwv_start": 0.6}, "start <= full"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BIDFCConfig(**options)


def test_one_picture_is_needed(tiny_table: Table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bidfc takes rgb, grey; points .*--train.modalities"):
        train("bidfc", tiny_table, tmp_path / "run", quiet=True)


def fit(table: Table, out: Path, watch: Watch | None = None, **options: Any) -> Path:
    config = BIDFCConfig(image_size=28, shrink=4, n_views=3, batch_size=12, epochs=2)
    loop = TrainConfig(modalities="image", validation=0.0)
    train("bidfc", table, out, config=replace(config, **options), train=loop, watch=watch, quiet=True)
    return out


def test_the_average_is_what_a_run_gives(tiny_table: Table, tmp_path: Path) -> None:
    run = load(fit(tiny_table, tmp_path / "run", ema=0.9))
    assert isinstance(run.method, BIDFC)
    assert run.method.twin is not None
    state = load_file(run.folder.model_file)
    assert any(not torch.equal(state[f"encoder.{n}"], v) for n, v in run.method.twin.network.state_dict().items())
    x = batch(size=28)
    expected = run.method.twin.network(run.method._pictures(x))
    assert torch.equal(run.method.encode(x, "image"), expected)


@pytest.mark.parametrize("head", ["random", "imprint"])
def test_two_ranks_give_the_weights_of_one(tiny_table: Table, tmp_path: Path, head: str) -> None:
    """Batches of 12 over 44 rows: shares of 6, and of 4 in the last batch; turns that take no step among them."""
    content = read_yaml("bidfc-tiny", "")
    slow = {"name": "sgd", "lr": 0.01, "weight_decay": 0.0, "schedule": "constant"}
    content["method_config"] |= {"head": head, "dwv_start": 0.4, "epochs": 2, "optimiser": slow, "head_lr": 0.1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    states = []
    for ranks in (1, 2):
        out = tmp_path / f"run-{ranks}"
        words = [sys.executable, "-m"]
        if ranks > 1:
            port = random.Random(str(tmp_path)).randrange(20_000, 60_000)
            words += ["torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}", "-m"]
        words += ["consilience", "train", "bidfc", "--data", str(tiny_table.path), "-o", str(out)]
        words += ["--config", str(tmp_path / "recipe.yaml"), "--quiet"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(load_file(out / "model.safetensors"))
    one, two = states
    assert one.keys() == two.keys()
    torch.manual_seed(0)
    start = BIDFC(merge(BIDFCConfig(), content["method_config"]), {"image": Kind.GREY}, 44).state_dict()
    names = [name for name, value in start.items() if value.is_floating_point() and "running" not in name]
    travelled = sum(float((one[name] - start[name]).square().sum()) for name in names) ** 0.5
    apart = sum(float((one[name] - two[name]).square().sum()) for name in names) ** 0.5
    assert travelled > 0.1
    assert apart < 0.01 * travelled, (apart, travelled)

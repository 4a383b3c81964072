"""Multi-queue MoCo: what each option does to a step, balanced batches, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.base import Encoded, Measure, Progress
from consilience.methods.multi_queue_moco import MultiQueueConfig, MultiQueueMoCo
from consilience.training.api import load, resume, train
from consilience.training.config import TrainConfig
from consilience.views.crops import CropConfig
from tests.facts.dots import dots

CONFIG = MultiQueueConfig(
    image_size=48, crops=CropConfig(size=32), weathers="haze,normal,rain", places=6, dim=8, batch_size=12
)
LEARN, REFINE = Progress(0, "learn", 0, 0.25, 0), Progress(1, "refine", 0, 0.25, 0)


def made(config: MultiQueueConfig = CONFIG, kind: Kind = Kind.RGB) -> MultiQueueMoCo:
    torch.manual_seed(0)
    return MultiQueueMoCo(config, {"image": kind}, 40)


def batch(count: int = 6, channels: int = 3, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    pictures = torch.randint(0, 256, (count, channels, 48, 48), dtype=torch.uint8, generator=generator)
    places = 48 * torch.rand(count, 5, 2, generator=generator)
    places[::2, 3:] = torch.nan
    weather = torch.arange(count) % 3
    there = {"image": torch.ones(count, dtype=torch.bool)}
    return Batch(torch.arange(first, first + count), {"image": pictures}, there, {"places": places, "weather": weather})


def run(method: MultiQueueMoCo, progress: Progress = LEARN, steps: int = 3) -> dict[str, torch.Tensor]:
    losses: dict[str, torch.Tensor] = {}
    for number in range(steps):
        losses = method.train().step(batch(first=6 * number), replace(progress, fraction=number / steps))
        method.after_batch(batch(first=6 * number), progress)
    return losses


class NoLook:
    """A look at the training set that nobody takes."""

    def __call__(self) -> Encoded:
        raise AssertionError

    def scan(self, measure: Measure, batch_size: int) -> dict[str, torch.Tensor]:
        raise AssertionError


def test_keys_lie_in_the_queue_of_their_weather() -> None:
    method = made()
    run(method)
    assert method.queue.fill.tolist() == [6, 6, 6]
    ids = [sorted(ring.tolist()) for ring in method.queue.ids]
    assert ids == [[k for k in range(18) if k % 6 % 3 == w] for w in range(3)]
    norm = method.queue.keys.norm(dim=2)
    torch.testing.assert_close(norm, torch.ones_like(norm))


def test_one_queue_has_as_many_places_together() -> None:
    method = made(replace(CONFIG, queues="single"))
    assert method.queue.keys.shape == (1, 18, 8)
    run(method)
    assert method.queue.fill.tolist() == [18]


def test_nothing_is_pushed_before_the_step_is_over() -> None:
    method = made()
    method.step(batch(), LEARN)
    assert method.queue.fill.sum() == 0
    method.after_batch(batch(), LEARN)
    assert method.queue.fill.sum() == 6


def test_density_alone_has_one_term_and_leaves_projector_and_queue_alone() -> None:
    method = made(replace(CONFIG, contrast_weight=0.0))
    assert set(run(method)) == {"density"}
    assert method.queue.fill.sum() == 0
    assert method.projector not in method.trained("learn")
    assert set(run(made(), LEARN)) == {"density", "contrast"}
    assert set(run(made(), REFINE)) == {"density", "refine"}
    assert set(run(made(replace(CONFIG, refine_weight=0.0)), REFINE)) == {"density"}


def test_twins_follow_in_stage_one_only() -> None:
    method = made(replace(CONFIG, momentum=0.5))
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    before = [value.clone() for value in method.slow_encoder.network.parameters()]
    method.after_batch(batch(), REFINE)
    after = list(method.slow_encoder.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    method.after_batch(batch(), LEARN)
    for a, b, own in zip(before, after, method.encoder.parameters(), strict=True):
        torch.testing.assert_close(b, (a + own) / 2)


def test_the_same_picture_has_another_view_later_in_the_epoch() -> None:
    """Balanced batches show a picture of rare weather several times an epoch."""
    method = made(replace(CONFIG, contrast_weight=0.0)).eval()
    with torch.no_grad():
        losses = [method.step(batch(), replace(LEARN, fraction=f))["density"].item() for f in (0.25, 0.5, 0.25)]
    assert losses[0] == losses[2] != losses[1]


def test_made_up_weather_is_no_key_of_real_weather() -> None:
    method = made(replace(CONFIG, synthesis=1 / 3))
    pushed = 0
    for number in range(8):
        method.step(batch(first=6 * number), replace(LEARN, fraction=number / 8))
        (_, _, _, rings) = method.pushes[0]
        assert set(rings.tolist()) <= {-1, 0, 1, 2}
        assert [r for r, w in zip(rings.tolist(), [0, 1, 2] * 2, strict=True) if w != 1] == [0, 2, 0, 2]
        pushed += sum(r == -1 for r in rings.tolist())
    assert 0 < pushed < 16


def test_stage_two_begins_with_empty_banks() -> None:
    method = made()
    run(method, REFINE)
    assert method.banks.fill.sum() > 0
    method.prepare(replace(REFINE, epoch=1), NoLook())
    assert method.banks.fill.sum() > 0
    method.prepare(replace(REFINE, epoch=0), NoLook())
    assert method.banks.fill.sum() == 0


def test_density_in_tiles_has_the_size_of_the_whole() -> None:
    method, whole = made(replace(CONFIG, tile=24)).eval(), made().eval()
    with torch.no_grad():
        assert method.density(batch()).shape == whole.density(batch()).shape == (6, 1, 12, 12)


def test_grey_pictures() -> None:
    method = made(kind=Kind.GREY)
    assert set(method.step(batch(channels=1), LEARN)) == {"density", "contrast"}


@pytest.mark.parametrize("form", ["bayesian", "map"])
@pytest.mark.parametrize("background", ["ratio", "gap", "none"])
def test_losses_are_finite(form: Any, background: Any) -> None:
    method = made(replace(CONFIG, density_loss=form, background=background))
    total = torch.stack(list(run(method).values())).sum()
    assert torch.isfinite(total)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["queue", "own"]), st.booleans())
def test_positives_are_finite_whatever_is_in_the_queues(positives: Any, exclude: bool) -> None:
    method = made(replace(CONFIG, positives=positives, exclude_same=exclude))
    assert torch.isfinite(run(method, steps=5)["contrast"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 3}, "multiples of stride"),
        ({"stride": 16, "image_size": 48}, "maps of stride 8"),
        ({"normal": "sunny"}, "unknown --method.normal"),
        ({"synthesis": 0.5}, "share from 0 to 1/3"),
        ({"tau": 0.0}, "positive number"),
        ({"crops": CropConfig(size=64)}, "no larger than the picture"),
        ({"encoder": "resnet20"}, "unknown picture encoder"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(replace(CONFIG, **options))


def test_more_weathers_than_named(tmp_path: Path) -> None:
    method = made(replace(CONFIG, weathers="haze,normal"))
    with pytest.raises(InputError, match="the data has more names"):
        method.step(batch(), LEARN)


@pytest.fixture(scope="module")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return dots(tmp_path_factory.mktemp("dots") / "table", 40, 2, {"haze": 0.2})


def test_training_learns_the_names_and_balances(crowds: Table, tmp_path: Path) -> None:
    config = replace(CONFIG, weathers="", learn_epochs=2, refine_epochs=1)
    options = TrainConfig(threads=1, validation=0.0)
    done = train("multi-queue-moco", crowds, tmp_path / "run", config=config, train=options, quiet=True)
    assert load(done.path).method.config.weathers == "haze,normal"
    seen = done.method.queue.pushed.tolist()
    assert 2 / 3 < seen[0] / seen[1] < 3 / 2  # half of the visits, although a fifth of the pictures
    plain = replace(options, balance="none")
    other = train("multi-queue-moco", crowds, tmp_path / "plain", config=config, train=plain, quiet=True)
    assert other.method.queue.pushed.tolist()[1] > 2 * other.method.queue.pushed.tolist()[0]
    assert resume(done.path, quiet=True).method.config == done.method.config

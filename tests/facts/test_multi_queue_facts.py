"""Facts of the multi-queue MoCo sheet, section 6 (a): closed-form values, invariances, and what a stage may change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consilience.data.schema import Batch, Kind
from consilience.data.weather import NamedDraws, depth_ramp, haze, rain, scatter, snow
from consilience.evaluation.counting import errors
from consilience.heads.density import Refiner, in_tiles
from consilience.losses.contrastive import info_nce
from consilience.losses.density import bayesian_loss, density_maps, expected_counts
from consilience.losses.multi_queue import multi_queue_nce, to_normal_nce
from consilience.memory.queue import Queue
from consilience.methods.base import Progress
from consilience.methods.multi_queue_moco import MultiQueueConfig, MultiQueueMoCo
from consilience.views.crops import CropConfig

NAN = float("nan")
SIDE = torch.tensor([64.0])


def points(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows).view(1, -1, 2)


# Bayesian loss


def test_one_point_without_background_costs_one_minus_the_sum() -> None:
    density = torch.full((1, 1, 8, 8), 0.01)
    loss = bayesian_loss(density, points((20.0, 30.0)), 8, 8.0, SIDE, "none")
    assert loss.item() == pytest.approx(0.36, abs=1e-6)


@pytest.mark.parametrize("background", ["none", "ratio", "gap"])
def test_the_posterior_sums_to_one(background: str) -> None:
    """Whatever a cell holds goes to the points and the background as a whole, also 2,000 pixels from any point."""
    density = torch.rand(2, 1, 40, 250, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[[3.0, 5.0], [40.0, 20.0]], [[100.0, 300.0], [NAN, NAN]]])
    counts, empty = expected_counts(density, places, 8, 8.0, torch.tensor([320.0, 320.0]), background)  # type: ignore[arg-type]
    torch.testing.assert_close(counts.sum(1) + empty, density.sum((1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("background", ["none", "ratio", "gap"])
def test_a_picture_without_points_costs_its_sum(background: str) -> None:
    density = torch.rand(1, 1, 8, 8)
    loss = bayesian_loss(density, points((NAN, NAN)), 8, 8.0, SIDE, background)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(density.sum().item(), rel=1e-6)


@pytest.mark.parametrize("background", ["none", "ratio", "gap"])
def test_moving_points_and_map_by_whole_cells_changes_nothing(background: str) -> None:
    density = torch.zeros(1, 1, 12, 12)
    density[..., 2:7, 2:7] = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
    places = points((25.0, 30.0), (44.0, 20.0))
    before = bayesian_loss(density, places, 8, 8.0, SIDE, background)  # type: ignore[arg-type]
    moved = bayesian_loss(density.roll((3, 2), (2, 3)), places + torch.tensor([16.0, 24.0]), 8, 8.0, SIDE, background)  # type: ignore[arg-type]
    torch.testing.assert_close(before, moved)


# Density maps


def test_maps_sum_to_the_points_whose_window_lies_inside_and_are_never_clipped() -> None:
    inside = torch.tensor([[[20.0, 20.0], [31.3, 40.2], [NAN, NAN]]])
    assert density_maps(inside, 64, 64, 1, 4.0).sum().item() == pytest.approx(2, abs=1e-6)
    edge = density_maps(points((0.0, 32.0)), 64, 64, 1, 4.0)
    assert edge.sum().item() == pytest.approx(0.5, abs=1e-6)
    clump = points(*[(32.0, 32.0)] * 300)
    assert density_maps(clump, 64, 64, 1, 2.0).sum().item() == pytest.approx(300, rel=1e-6)
    assert density_maps(clump, 64, 64, 1, 2.0).max().item() > 9


def test_maps_of_larger_cells_hold_the_mass_of_the_small_ones() -> None:
    places = points((17.0, 9.0), (30.2, 41.9))
    fine, coarse = density_maps(places, 64, 64, 1, 4.0), density_maps(places, 8, 8, 8, 4.0)
    torch.testing.assert_close(8 * 8 * F.avg_pool2d(fine, 8), coarse, atol=1e-6, rtol=0)


# Contrast


def basis(rows: int, width: int = 8) -> torch.Tensor:
    return torch.eye(width)[torch.arange(rows) % width]


@pytest.mark.parametrize("weather", [0, 3])
def test_all_similarities_equal(weather: int) -> None:
    z = basis(1)
    keys = z[0].expand(4, 256, -1)
    filled = torch.ones(4, 256, dtype=torch.bool)
    for positives in ("queue", "own"):
        loss = multi_queue_nce(z, z, keys, filled, torch.tensor([weather]), 0.2, positives)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(math.log(1 + 4 * 256), rel=1e-6)


def test_own_keys_at_one_and_others_at_zero() -> None:
    keys = torch.stack([torch.eye(8)[w].expand(256, -1) for w in range(4)])
    filled = torch.ones(4, 256, dtype=torch.bool)
    z = torch.eye(8)[:4]
    loss = multi_queue_nce(z, z, keys, filled, torch.arange(4), 0.2)
    torch.testing.assert_close(loss, torch.full((4,), 5.569010), atol=1e-5, rtol=0)


def test_frequencies_do_not_change_queues_and_a_weather_never_seen_stays_empty() -> None:
    queue = Queue(16, 8, 4)
    rings = torch.tensor([0] * 90 + [1] * 7 + [2] * 20)
    vectors = torch.randn(117, 8, generator=torch.Generator().manual_seed(0))
    queue.push(vectors, torch.arange(117), rings)
    assert queue.fill.tolist() == [16, 7, 16, 0]
    assert queue.keys.shape == (4, 16, 8)
    z = F.normalize(vectors[:3], dim=1)
    loss = multi_queue_nce(z, z, queue.keys, queue.filled(), torch.tensor([0, 3, -1]), 0.2)
    assert torch.isfinite(loss).all()


def test_a_half_filled_queue_weighs_as_much_as_a_full_one() -> None:
    """Other weather's keys all alike: 2 of 4 places must count as 4."""
    full = torch.eye(8)[torch.tensor([0, 1])][:, None].expand(2, 4, 8)
    z = torch.eye(8)[:1]
    half = torch.tensor([[True] * 4, [True, True, False, False]])
    whole = torch.ones(2, 4, dtype=torch.bool)
    domain = torch.tensor([0])
    a, b = (multi_queue_nce(z, z, full, filled, domain, 0.2) for filled in (half, whole))
    torch.testing.assert_close(a, b)


def test_one_weather_with_own_positives_is_moco() -> None:
    generator = torch.Generator().manual_seed(0)
    z, own, bank = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (5, 5, 32))
    logits = torch.cat([(z * own).sum(1, keepdim=True), z @ bank.T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64), reduction="none")
    filled = torch.ones(1, 32, dtype=torch.bool)
    found = multi_queue_nce(z, own, bank[None], filled, torch.zeros(5, dtype=torch.int64), 0.2, "own")
    torch.testing.assert_close(found, expected)
    first = torch.zeros_like(logits, dtype=torch.bool)
    first[:, 0] = True
    torch.testing.assert_close(found, info_nce(logits, first))


def test_refining_towards_the_normal_bank() -> None:
    banks = torch.stack([torch.eye(8)[w].expand(16, -1) for w in range(4)])
    filled = torch.ones(4, 16, dtype=torch.bool)
    z = torch.eye(8)[:1]
    assert to_normal_nce(z, banks, filled, 0, 0.2).item() == pytest.approx(0.020012, abs=1e-6)
    alike = z[0].expand(4, 16, -1)
    assert to_normal_nce(z, alike, filled, 2, 0.2).item() == pytest.approx(math.log(4), rel=1e-6)


def test_duplicating_a_bank_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    banks = F.normalize(torch.randn(3, 8, 8, generator=generator), dim=2)
    z = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
    filled = torch.zeros(3, 8, dtype=torch.bool)
    filled[:, :4] = True
    twice = banks.clone()
    twice[1, 4:] = banks[1, :4]
    more = filled.clone()
    more[1] = True
    torch.testing.assert_close(to_normal_nce(z, banks, filled, 0, 0.2), to_normal_nce(z, twice, more, 0, 0.2))


# Stages


def small() -> tuple[MultiQueueMoCo, Batch]:
    torch.manual_seed(0)
    config = MultiQueueConfig(
        image_size=32, crops=CropConfig(size=24), weathers="haze,normal", places=8, dim=8, batch_size=8
    )
    method = MultiQueueMoCo(config, {"image": Kind.RGB}, 20)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    places = torch.full((8, 3, 2), NAN)
    places[:, :2] = 32 * torch.rand(8, 2, 2, generator=generator)
    weather = torch.tensor([0, 1] * 4)
    told = {"places": places, "weather": weather}
    return method, Batch(torch.arange(8), {"image": pictures}, {"image": torch.ones(8, dtype=torch.bool)}, told)


def test_an_untrained_refiner_gives_the_output_of_stage_one() -> None:
    method, batch = small()
    method.eval()
    with torch.no_grad():
        plain = method.decoder(method.features(batch.values["image"].float() / 255))
        assert torch.equal(method.density(batch), plain)


def test_stage_two_trains_refiner_and_decoder_and_leaves_the_encoder_bit_for_bit() -> None:
    method, batch = small()
    method.train()
    for number, _ in enumerate(range(3)):  # stage 1, so that batch norms and twins have moved
        progress = Progress(0, "learn", 0, number / 3, 0)
        torch.stack(list(method.step(batch, progress).values())).sum().backward()
        method.after_batch(batch, progress)
    for parameter in method.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    trained = [p for module in method.trained("refine") for p in module.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimiser = torch.optim.Adam(trained, 1e-2)
    for number in range(4):
        method.train()
        progress = Progress(1, "refine", 0, number / 4, 0)
        losses = method.step(batch, progress)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        method.after_batch(batch, progress)
    changed = {
        name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"refiner", "decoder", "banks"}


def test_the_refiner_costs_at_most_fifteen_per_cent() -> None:
    """Parameters and multiply-adds, of the small network and of VGG-19's sizes."""
    for encoder, size in (("small", 112), ("vgg19", 64)):
        config = MultiQueueConfig(encoder=encoder, image_size=size, crops=CropConfig(size=32), weathers="normal")
        method = MultiQueueMoCo(config, {"image": Kind.RGB}, 2)
        cost = {"refiner": 0, "encoder": 0, "decoder": 0}

        def count(name: str, layer: nn.Conv2d, out: torch.Tensor, cost: dict[str, int] = cost) -> None:
            cost[name.split(".")[0]] += layer.weight.numel() * out.shape[2] * out.shape[3]

        for name, layer in method.named_modules():
            if isinstance(layer, nn.Conv2d) and name.split(".")[0] in cost:
                layer.register_forward_hook(lambda module, _, out, name=name: count(name, module, out))
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        with torch.no_grad():
            method.eval().density(Batch(torch.arange(1), {"image": blank}, {"image": torch.ones(1, dtype=torch.bool)}))
        numbers = {name: sum(p.numel() for p in getattr(method, name).parameters()) for name in cost}
        for amounts in (cost, numbers):
            assert 0 < amounts["refiner"] <= 0.15 * (amounts["encoder"] + amounts["decoder"]), (encoder, amounts)


# Weather


def test_haze_without_thickness_is_the_picture_and_with_one_depth_a_veil() -> None:
    x = torch.rand(2, 3, 16, 16)
    light = torch.tensor([0.4, 0.8])
    assert torch.equal(scatter(x, depth_ramp(16, 16), torch.zeros(2), light), x)
    beta = torch.tensor([1.0, 2.0])
    t = torch.exp(-0.5 * beta).view(2, 1, 1, 1)
    expected = x * t + light.view(2, 1, 1, 1) * (1 - t)
    torch.testing.assert_close(scatter(x, torch.full((1, 1, 16, 16), 0.5), beta, light), expected)


@pytest.mark.parametrize("weather", [haze, rain, snow])
def test_weather_stays_in_range_and_is_a_function_of_seed_and_sample(weather) -> None:  # type: ignore[no-untyped-def]
    x = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    out, drawn = weather(x, NamedDraws(7, ["a", "b", "c"]))
    again, _ = weather(x[1:2], NamedDraws(7, ["b"]))
    torch.testing.assert_close(out[1:2], again)
    other, _ = weather(x, NamedDraws(8, ["a", "b", "c"]))
    assert not torch.equal(out, other)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert not torch.equal(out, x)
    assert all(value.shape == (3,) for value in drawn.values())


# Evaluation


def test_errors_of_three_and_minus_four() -> None:
    found = errors(torch.tensor([3.0, -4.0]).numpy(), torch.arange(2).numpy())
    assert found["mae"] == pytest.approx(3.5)
    assert found["rmse"] == pytest.approx(3.535534, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (50, 33), (20, 90)])
def test_tiles_give_the_map_of_the_whole_for_a_counter_of_one_pixel(height: int, width: int) -> None:
    torch.manual_seed(0)
    counter = nn.Conv2d(3, 1, 1)
    x = torch.rand(2, 3, height, width)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(counter, x, 20, 1), counter(x))


def test_the_refiner_begins_as_nothing() -> None:
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(Refiner(16)(x), x)

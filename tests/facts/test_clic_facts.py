"""CLIC's facts: contrast, twin, entropy, loss, mosaics, head and prior, as its specification states them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from consilience.data.schema import Batch, Kind
from consilience.encoders.maps import ConvMaps
from consilience.errors import InputError
from consilience.heads.complexity import SLAM, ComplexityPrior, ICNetHead
from consilience.losses.complexity import complexity_aware, feature_activation
from consilience.memory.momentum import Twin
from consilience.memory.queue import Queue
from consilience.methods.base import Progress
from consilience.methods.clic import CLIC, CLICConfig, contrast
from consilience.methods.icnet import ICNet, ICNetConfig
from consilience.views.keyed import KeyedRandom
from consilience.views.mosaic import GRIDS, preserve_mix, published_crops, published_mix, published_mosaic
from consilience.views.pictures import PictureViewConfig
from consilience.views.statistics import MOST_ENTROPY, entropy, gradient

STILL = PictureViewConfig(
    crop_low=1.0, ratio=1.0, flip=0.0, colour_probability=0.0, grey=0.0, blur=0.0
)  # changes nothing


def draws(count: int, *key: int) -> KeyedRandom:
    return KeyedRandom.of(torch.arange(count), *key)


def filled(places: int, width: int, vector: torch.Tensor | None = None, ids: int = -1) -> Queue:
    """A queue whose places all hold one vector (a random one each without it)."""
    queue = Queue(places, width)
    vectors = torch.randn(places, width) if vector is None else vector.expand(places, -1)
    queue.push(vectors, torch.full((places,), ids))
    return queue


def axis(width: int, place: int) -> torch.Tensor:
    return torch.eye(width)[place : place + 1]


@pytest.mark.parametrize(("tau", "expected"), [(0.2, 6.092617), (0.07, 0.040135)])
def test_fact_contrast_with_orthogonal_negatives(tau: float, expected: float) -> None:
    """ln(1 + K e^(-1/tau)) for K = 65536."""
    queue = filled(65536, 4, axis(4, 1))
    z = axis(4, 0)
    found = contrast(z, z, torch.tensor([5]), queue, tau)
    assert math.log1p(65536 * math.exp(-1 / tau)) == pytest.approx(expected, abs=1e-6)
    assert found.item() == pytest.approx(expected, abs=2e-5)


def test_fact_equal_logits_give_the_logarithm_of_their_number() -> None:
    z = axis(4, 0)
    assert contrast(z, z, torch.tensor([5]), filled(65536, 4, z), 0.2).item() == pytest.approx(11.090370, abs=1e-5)


def test_fact_keys_of_the_same_sample_are_no_negatives() -> None:
    z = torch.randn(3, 4)
    assert contrast(z, torch.randn(3, 4), torch.full((3,), 7), filled(16, 4, ids=7), 0.1).abs().item() == 0


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_contrast_is_the_slow_loop(seed: int, tau: float) -> None:
    torch.manual_seed(seed)
    queue, ids = Queue(6, 4), torch.tensor([0, 3, 9])
    queue.push(torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, -1]))
    z, keys = torch.randn(3, 4), torch.randn(3, 4)
    total = 0.0
    for i in range(3):
        unit = z[i] / z[i].norm()
        own = math.exp(float(unit @ keys[i] / keys[i].norm()) / tau)
        negatives = sum(math.exp(float(unit @ queue.keys[0, j]) / tau) for j in range(6) if queue.ids[0, j] != ids[i])
        total -= math.log(own / (own + negatives)) / 3
    assert contrast(z, keys, ids, queue, tau).item() == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_fact_a_twin_of_a_fixed_network_approaches_it_geometrically() -> None:
    network = torch.nn.Linear(3, 2)
    twin = Twin(network, 0.9)
    first = twin.network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(torch.randn(2, 3))
    for _ in range(5):
        twin.follow(network)
    torch.testing.assert_close(twin.network.weight, network.weight + 0.9**5 * (first - network.weight))


def test_fact_entropies_in_closed_form() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    halves = torch.cat([torch.zeros(1, 3, 16, 8), torch.ones(1, 3, 16, 8)], 3)
    levels = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    assert entropy(flat).item() == 0
    assert entropy(halves).item() == pytest.approx(math.log(2), abs=1e-6)
    assert entropy(levels).item() == pytest.approx(5.545177, abs=1e-6)
    assert pytest.approx(5.545177, abs=1e-6) == MOST_ENTROPY


@given(arrays(np.uint8, (2, 3, 6, 5)), st.integers(0, 1000))
def test_entropy_is_the_loop_and_knows_no_places(pixels: np.ndarray, seed: int) -> None:
    images = torch.from_numpy(pixels).float() / 255
    found = entropy(images)
    for image, value in zip(images, found, strict=True):
        grey = image.mean(0)
        counts = torch.zeros(256)
        for pixel in grey.flatten().tolist():
            counts[min(255, int(pixel * 256))] += 1
        share = (counts / 30)[counts > 0].double()
        assert value.item() == pytest.approx(float(-(share * share.log()).sum()), abs=1e-6)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(30))
    torch.testing.assert_close(entropy(images.flatten(2)[..., order].view_as(images)), found)


@given(st.integers(0, 1000))
def test_fact_entropy_is_unchanged_by_renaming_the_levels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (1, 1, 12, 12))
    renamed = rng.permutation(256)[levels]
    first, second = (entropy(torch.from_numpy(one).float() / 255) for one in (levels, renamed))
    torch.testing.assert_close(first, second)


def test_fact_activation_of_constant_maps_is_their_sum() -> None:
    maps = [torch.full((2, c, s, s), v) for c, s, v in ((3, 8, 0.5), (4, 4, 1.0), (5, 2, 0.25), (6, 1, 2.0))]
    assert feature_activation(maps).tolist() == [3.75, 3.75]


def test_fact_complexity_loss_is_the_mean_square_of_what_is_finite() -> None:
    activation = torch.tensor([1.0, 2.0, float("nan"), 4.0], requires_grad=True)
    loss = complexity_aware(activation, torch.tensor([0.0, 4.0, 1.0, float("inf")]))
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert activation.grad is not None
    assert activation.grad.tolist() == [1.0, -2.0, 0.0, 0.0]
    nothing = torch.full((2,), float("nan"))
    assert complexity_aware(nothing, nothing).item() == 0


def small(**options: object) -> CLIC:
    torch.manual_seed(0)
    config = CLICConfig(image_size=32, width=8, queue=32, queue_share=0, **options)  # type: ignore[arg-type]
    return CLIC(config, {"image": Kind.RGB}, 64)


def pictures(count: int, size: int = 32, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(count), {"image": values}, {"image": torch.ones(count, dtype=torch.bool)})


def gradients(method: CLIC) -> list[torch.Tensor]:
    method.train()
    terms = method.step(pictures(6), Progress(0, "train", 0, 0.0, 0))
    torch.stack(list(terms.values())).sum().backward()
    return [p.grad for module in method.trained("train") for p in module.parameters() if p.grad is not None]


def test_fact_without_weight_the_gradient_is_that_of_contrast_alone_to_the_bit() -> None:
    plain, off, on = gradients(small()), gradients(small(cal_weight=0.0)), gradients(small(cal_weight=0.25))
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, on, strict=True))


def test_fact_published_crops_of_a_427_by_640_picture() -> None:
    found = published_crops(427, 640)
    assert [crops.side for crops in found] == [142, 71, 35]
    assert [2 * crops.side for crops in found] == [284, 142, 70]
    assert [crops.mosaics for crops in found] == [1, 3, 6]
    assert sum(crops.mosaics for crops in found) == 10
    assert [crops.scale for crops in published_crops(48, 48)] == [1]
    assert published_crops(47, 60) == []


def occurs(tile: torch.Tensor, image: torch.Tensor) -> bool:
    side = tile.shape[1]
    windows = image.unfold(1, side, 1).unfold(2, side, 1)
    return bool((windows == tile[:, None, None]).all((0, 3, 4)).any())


def test_fact_a_published_mosaic_holds_two_crops_as_they_are() -> None:
    images = torch.rand(8, 3, 40, 33)
    mosaics = published_mosaic(images, draws(8, 3), 7)
    assert mosaics.shape == (8, 3, 14, 14)
    counts = []
    for image, mosaic in zip(images, mosaics, strict=True):
        tiles = [mosaic[:, y : y + 7, x : x + 7] for y in (0, 7) for x in (0, 7)]
        counts.append(sum(occurs(tile, image) for tile in tiles))
    # a copy that was neither moved nor recoloured is a crop too: 1/2 x 1/2 x 1/2 x 1/2 of the copies
    assert min(counts) == 2
    assert sum(count > 2 for count in counts) <= 3


def test_published_mosaics_keep_size_and_range_and_refuse_small_pictures() -> None:
    images = torch.rand(12, 3, 160, 150)
    mixed = published_mix(images, draws(12, 1))
    assert mixed.shape == images.shape
    assert mixed.min() >= 0 and mixed.max() <= 1  # noqa: PT018
    with pytest.raises(InputError, match="no published mosaic of 32 pixels"):
        published_mix(torch.rand(1, 3, 40, 40), draws(1, 1))


@given(st.integers(4, 33), st.integers(4, 33), st.integers(0, 1000))
def test_fact_a_preserving_mosaic_only_moves_pixels(height: int, width: int, seed: int) -> None:
    names = torch.arange(height * width).float().view(1, 1, height, width).expand(3, -1, -1, -1)
    mixed = preserve_mix(names, draws(3, seed))
    assert mixed.shape == names.shape
    assert torch.equal(mixed, mixed.round())
    assert mixed.min() >= 0 and mixed.max() <= height * width - 1  # noqa: PT018
    flat = torch.full((2, 3, height, width), 0.4)
    assert torch.equal(preserve_mix(flat, draws(2, seed)), flat)


@pytest.mark.parametrize("n", GRIDS)
@pytest.mark.parametrize("flip", [False, True])
def test_tiles_of_a_preserving_mosaic_are_crops_mirrored_or_not(n: int, flip: bool) -> None:
    images = torch.rand(6, 1, 18, 26)
    mixed = preserve_mix(images, draws(6, n), flip, (n,))
    edges = [[-(-place * size // n) for place in range(n + 1)] for size in (18, 26)]
    seen_mirrored = False
    for image, mosaic in zip(images, mixed, strict=True):
        for top, bottom in zip(edges[0], edges[0][1:]):
            for left, right in zip(edges[1], edges[1][1:]):
                tile = mosaic[:, top:bottom, left:right]
                windows = image.unfold(1, bottom - top, 1).unfold(2, right - left, 1)
                ways = [tile] if not flip else [tile, tile.flip(1), tile.flip(2), tile.flip(1, 2)]
                found = [bool((windows == way[:, None, None]).all((0, 3, 4)).any()) for way in ways]
                assert any(found)
                seen_mirrored |= not found[0]
    assert seen_mirrored is flip


def test_a_mosaic_does_not_depend_on_its_batch() -> None:
    images = torch.rand(5, 3, 52, 48)
    for mix in (preserve_mix, published_mix):
        whole, part = mix(images, draws(5, 4)), mix(images[2:4], KeyedRandom.of(torch.arange(2, 4), 4))
        assert torch.equal(whole[2:4], part)


def test_fact_a_texture_and_its_preserving_mosaic_have_the_same_statistics() -> None:
    """Independent pixels: expected histogram and gradient inside the tiles are the same; published zoom lowers both."""
    images = torch.rand(24, 1, 96, 96)
    kept, zoomed = preserve_mix(images, draws(24, 0), grids=(2,)), published_mix(images, draws(24, 0))
    inside = [slice(2, 46), slice(50, 94)]

    def steep(x: torch.Tensor) -> float:
        found = gradient(x)
        return float(torch.stack([found[:, a, b].mean() for a in inside for b in inside]).mean())

    assert steep(kept) == pytest.approx(steep(images), rel=0.02)
    assert entropy(kept).mean().item() == pytest.approx(entropy(images).mean().item(), rel=0.02)
    assert steep(zoomed) < 0.8 * steep(images)


def test_fact_slam_has_525313_parameters_and_weighs_channels() -> None:
    slam = SLAM(32)
    assert sum(p.numel() for p in slam.parameters()) == 525_313
    x = torch.rand(2, 3, 20, 24)
    ratio = slam(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert ratio.min() > 0 and ratio.max() < 1  # noqa: PT018


def test_fact_icnets_head_has_the_published_size_and_range() -> None:
    """6.30 M trainable over ResNet-18's 512 channels, 7.09 M over ResNet-50's 2048; a batch of one works."""
    for inputs, millions in ((512, 6.30), (2048, 7.09)):
        head = ICNetHead(inputs)
        assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    small_head = ICNetHead(16, width=8, side=6, slam=4, hidden=8).eval()
    score, place = small_head(torch.randn(1, 16, 3, 3))
    assert score.shape == (1,)
    assert place.shape == (1, 1, 6, 6)
    for found in (score, place):
        assert found.min() > 0 and found.max() < 1  # noqa: PT018


def test_fact_a_frozen_encoder_is_bit_identical_after_fine_tuning() -> None:
    method = ICNet(ICNetConfig(image_size=32, width=8, side=4, slam=4, hidden=8), {"image": Kind.RGB}, 12)
    method.loaded.fill_(True)
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    batch = pictures(12)
    batch = Batch(batch.index, batch.values, batch.present, {"score": torch.rand(12)})
    optimiser = torch.optim.SGD([p for module in method.trained("train") for p in module.parameters()], 0.1)
    head = {name: value.clone() for name, value in method.head.state_dict().items()}
    method.train()
    for epoch in range(3):
        optimiser.zero_grad()
        torch.stack(list(method.step(batch, Progress(0, "train", epoch, 0.0, 0)).values())).sum().backward()
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in method.encoder.state_dict().items())
    assert any(not torch.equal(value, head[name]) for name, value in method.head.state_dict().items())


@pytest.mark.parametrize("fuse", ["gate", "concat"])
def test_fact_a_closed_prior_changes_nothing(fuse: str) -> None:
    prior = ComplexityPrior(ConvMaps(3), (5, 7), fuse).train()  # type: ignore[arg-type]
    levels = [torch.randn(2, 5, 8, 8), torch.randn(2, 7, 4, 4)]
    images = torch.rand(2, 3, 32, 32)
    out = prior(images, levels)
    assert all(torch.equal(a, b) for a, b in zip(out, levels, strict=True))
    before = {name: value.clone() for name, value in prior.encoder.state_dict().items()}
    torch.stack([one.square().sum() for one in out]).sum().backward()
    trained = [p for p in prior.parameters() if p.requires_grad]
    torch.optim.SGD(trained, 1e-3).step()
    assert any(not torch.equal(a, b) for a, b in zip(prior(images, levels), levels, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in prior.encoder.state_dict().items())
    with pytest.raises(InputError, match="built for 2"):
        prior(images, levels[:1])


def test_still_views_are_the_picture() -> None:
    batch = pictures(4)
    query, key, ids = small(rcm="none", query_views=STILL, key_views=STILL).views(batch, (0,))
    torch.testing.assert_close(query, batch.values["image"].float() / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(query, key)
    assert torch.equal(ids, batch.index)
    assert torch.equal(F.relu(query), query)

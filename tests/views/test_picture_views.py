"""Views of pictures: each operation against its definition, drawn by sample, whatever the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import COLOUR, PictureViewConfig, blur, luma, picture_view, recolour, speckle, warp

STILL = PictureViewConfig(
    crop_low=1, crop_high=1, ratio=1, flip=0, brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0
)


def pictures(count: int = 4, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def draws(count: int = 4, key: int = 0) -> KeyedRandom:
    return KeyedRandom.of(torch.arange(count), key)


def test_still_changes_nothing() -> None:
    x = pictures()
    torch.testing.assert_close(picture_view(x, draws(), STILL), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_has_its_view_in_any_batch(channels: int) -> None:
    x = pictures(6, channels)
    config = PictureViewConfig(
        rotate=30, rotate_probability=0.5, noise=0.1, noise_probability=0.5, speckle=4, speckle_probability=0.5
    )
    whole = picture_view(x, draws(6), config)
    chosen = torch.tensor([4, 1])
    part = picture_view(x[chosen], KeyedRandom.of(chosen, 0), config)
    torch.testing.assert_close(part, whole[chosen])
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    assert not torch.equal(whole, picture_view(x, draws(6, 1), config))


def test_flips() -> None:
    x = pictures()
    torch.testing.assert_close(warp(x, draws(), replace(STILL, flip=1)), x.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(x, draws(), replace(STILL, flip_vertical=1)), x.flip(2), atol=1e-5, rtol=0)
    half = warp(pictures(400), draws(400), replace(STILL, flip=0.3))
    moved = (half - pictures(400)).abs().amax((1, 2, 3)) > 1e-3
    assert 0.2 < float(moved.float().mean()) < 0.4


def test_crops_stay_inside_and_keep_their_share() -> None:
    """A ramp from 0 to 1 across the picture: a crop's extremes say where it lay and how wide it was."""
    size = 64
    ramp = ((torch.arange(size) + 0.5) / size).expand(300, 1, size, size)
    both = torch.cat([ramp, ramp.transpose(2, 3)], 1)
    out = warp(both, draws(300), replace(STILL, crop_low=0.3, crop_high=0.5, ratio=4 / 3))
    step = (size - 1) / size
    wide = (out[:, 0, 0, -1] - out[:, 0, 0, 0]) / step
    high = (out[:, 1, -1, 0] - out[:, 1, 0, 0]) / step
    area, ratio = wide * high, wide / high
    assert 0.29 < float(area.min()) < 0.33
    assert 0.47 < float(area.max()) < 0.51
    assert float(ratio.max()) < 4 / 3 + 0.02
    assert float(ratio.min()) > 3 / 4 - 0.02
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_rotation_turns_about_the_centre() -> None:
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 26] = 1
    config = replace(STILL, rotate=90, rotate_probability=1)
    seen = [warp(x, KeyedRandom.of(torch.tensor([0]), key), config)[0, 0] for key in range(12)]
    for out in seen:
        rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
        centre = ((rows - 16) * out).sum() / out.sum(), ((columns - 16) * out).sum() / out.sum()
        assert math.hypot(*map(float, centre)) == pytest.approx(10, abs=0.5)


def test_colour_from_the_definition() -> None:
    x = pictures(3)
    config = replace(STILL, brightness=0.4, colour_probability=1)
    factor = draws(3).uniform(161, 0.6, 1.4)
    torch.testing.assert_close(recolour(x, draws(3), config), (x * factor[:, :, None, None]).clamp(0, 1))
    grey = recolour(x, draws(3), replace(STILL, grey=1))
    torch.testing.assert_close(grey, luma(x).expand_as(x))
    dull = recolour(0.4 + 0.2 * x, draws(3), replace(STILL, saturation=0.9, hue=0.3, colour_probability=1))
    torch.testing.assert_close(luma(dull), luma(0.4 + 0.2 * x), atol=2e-3, rtol=0)


def test_one_channel_keeps_its_colour() -> None:
    x = pictures(3, 1)
    torch.testing.assert_close(recolour(x, draws(3), replace(STILL, hue=0.5, saturation=1, grey=1)), x)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_is_scipys(sigma: float) -> None:
    x = pictures(2, 3, 24)
    found = blur(x, torch.full((2, 1), sigma), sigma)
    radius = math.ceil(3 * sigma)
    for b in range(2):
        for c in range(3):
            expected = gaussian_filter(x[b, c].double().numpy(), sigma, mode="mirror", radius=radius)
            np.testing.assert_allclose(found[b, c].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_speckle_has_the_moments_of_gamma(looks: float) -> None:
    values = speckle(draws(40), looks, 64, 64)
    assert float(values.mean()) == pytest.approx(1, abs=0.02)
    assert float(values.var()) == pytest.approx(1 / looks, rel=0.06)
    assert float(values.min()) >= 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": 1.5}, "views.flip"),
        ({"crop_low": 0.9, "crop_high": 0.5}, "low <= high"),
        ({"noise": -1.0}, "0 or more"),
    ],
)
def test_refusals(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PictureViewConfig(**options)


def test_colours_are_moved_by_the_four_operations_clipped_once() -> None:
    """One pixel at a time, from the definitions of brightness, contrast, saturation and hue."""
    config = replace(STILL, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, colour_probability=1)
    x = 0.3 + 0.4 * torch.rand(3, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    random = draws(3)
    found = recolour(x, random, config)
    weights, to = torch.tensor([0.299, 0.587, 0.114]).double(), torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    ).double()  # fmt: skip
    for i in range(3):
        bright, contrast, saturation = (float(random.uniform(COLOUR + k, 0.6, 1.4)[i]) for k in (1, 2, 3))
        angle = float(random.uniform(COLOUR + 4, -0.1, 0.1)[i]) * 2 * math.pi
        lit = x[i] * bright
        middle = (lit * weights[:, None, None]).sum(0).mean()
        lit = middle + (lit - middle) * contrast
        grey = (lit * weights[:, None, None]).sum(0)
        vivid = grey + (lit - grey) * saturation
        luma, chroma = (to @ vivid.flatten(1))[:1], (to @ vivid.flatten(1))[1:]
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        turned = torch.cat([luma, turn @ chroma])
        expected = (torch.linalg.inv(to) @ turned).clamp(0, 1).view_as(vivid)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)

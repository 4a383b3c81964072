"""Crops with points: what is drawn at a point stays under it, whatever the crop."""

from __future__ import annotations

import pytest
import torch

from consilience.errors import InputError
from consilience.views.crops import CropConfig, crop_view
from consilience.views.keyed import KeyedRandom

NAN = float("nan")


def draws(count: int, key: int = 0) -> KeyedRandom:
    return KeyedRandom.of(torch.arange(count), key)


def scene(count: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright soft spot a picture, on black, and where its middle is; a second row of padding."""
    places = 8 + (size - 16) * torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(0))
    at = torch.arange(size) + 0.5
    across = torch.exp(-0.5 * ((at - places[:, :, :1]) / 2) ** 2)
    down = torch.exp(-0.5 * ((at - places[:, :, 1:]) / 2) ** 2)
    pictures = (down.transpose(1, 2) @ across)[:, None].expand(-1, 3, -1, -1)
    return pictures, torch.cat([places, torch.full_like(places, NAN)], 1)


def test_points_stay_on_what_they_mark() -> None:
    pictures, places = scene(60)
    crops = crop_view(pictures, places, draws(60), CropConfig(size=32))
    at = torch.arange(32) + 0.5
    seen = 0
    for i in range(60):
        point = crops.points[i, 0]
        if point.isnan().any() or not (float(point.min()) > 6 and float(point.max()) < 26):
            continue
        spot = crops.pictures[i].mean(0)
        middle = torch.stack([(spot.sum(0) * at).sum(), (spot.sum(1) * at).sum()]) / spot.sum()
        torch.testing.assert_close(middle, point, atol=0.15, rtol=0)
        seen += 1
    assert seen > 5
    assert crops.points[:, 1].isnan().all()


def test_points_outside_of_the_crop_are_none() -> None:
    pictures, places = scene(200)
    crops = crop_view(pictures, places, draws(200), CropConfig(size=32, scale_low=1, scale_high=1))
    there = ~crops.points[:, 0].isnan().any(1)
    assert 0.1 < float(there.float().mean()) < 0.6  # a quarter of the area, middles being likelier
    inside = crops.points[:, 0][there]
    assert 0 <= float(inside.min()) <= float(inside.max()) <= 32
    brightest = crops.pictures.amax((1, 2, 3))
    assert float(brightest[there].min()) > 0.2


def test_scale_one_without_flip_cuts_pixels_out() -> None:
    pictures = torch.rand(8, 3, 20, 20)
    config = CropConfig(size=12, scale_low=1, scale_high=1, flip=0, grey=0)
    crops = crop_view(pictures, torch.full((8, 1, 2), NAN), draws(8), config)
    for i in range(8):
        windows = pictures[i].unfold(1, 12, 1).unfold(2, 12, 1)
        away = (windows - crops.pictures[i][:, None, None]).abs().amax((0, 3, 4))
        assert float(away.min()) < 1e-5


def test_a_scale_that_leaves_no_room_is_not_used() -> None:
    pictures = torch.rand(50, 1, 32, 32)
    crops = crop_view(pictures, torch.full((50, 1, 2), NAN), draws(50), CropConfig(size=32))
    assert (crops.scale >= 1).all()
    assert crops.scale.max() > 1.1


def test_a_sample_has_its_crop_in_any_batch() -> None:
    pictures, places = scene(6)
    whole = crop_view(pictures, places, draws(6), CropConfig(size=32))
    chosen = torch.tensor([5, 2])
    part = crop_view(pictures[chosen], places[chosen], KeyedRandom.of(chosen, 0), CropConfig(size=32))
    torch.testing.assert_close(part.pictures, whole.pictures[chosen])
    torch.testing.assert_close(part.points, whole.points[chosen], equal_nan=True)


def test_refusals() -> None:
    with pytest.raises(InputError, match="hold no crop of 64"):
        crop_view(torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 2), draws(1), CropConfig(size=64))
    for wrong in ({"size": 4}, {"scale_low": 0.0}, {"scale_low": 2.0}, {"flip": 2.0}, {"grey": -1.0}):
        with pytest.raises(InputError, match=r"crops\."):
            CropConfig(**wrong)  # type: ignore[arg-type]

"""Weather: the physics of each kind, drawn by sample; and the view that puts it on a share of a batch."""

from __future__ import annotations

import pytest
import torch

from consilience.data.weather import NamedDraws, depth_ramp, haze, rain, snow
from consilience.views.keyed import KeyedRandom
from consilience.views.weather import weather_view


def draws(count: int, key: int = 0) -> KeyedRandom:
    return KeyedRandom.of(torch.arange(count), key)


def named(count: int) -> NamedDraws:
    return NamedDraws(0, [str(i) for i in range(count)])


def test_depth_is_that_of_a_plane() -> None:
    depth = depth_ramp(101, 3)[0, 0, :, 0]
    assert depth[0].item() == pytest.approx(1)
    assert depth[-1].item() == pytest.approx(0.2)
    inverse = 1 / depth
    torch.testing.assert_close(inverse.diff(), torch.full((100,), 0.04), atol=1e-5, rtol=0)


def test_haze_hides_what_is_far() -> None:
    x = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    out, drawn = haze(x, named(16))
    spread = out.std((1, 3))
    assert (spread[:, :8].mean(1) < spread[:, -8:].mean(1)).all()
    assert 2.6 <= float(drawn["beta"].min()) <= float(drawn["beta"].max()) <= 4.6
    assert 0.3 <= float(drawn["airlight"].min()) <= float(drawn["airlight"].max()) <= 0.9


def test_rain_darkens_by_squaring_and_only_adds_light_to_that() -> None:
    x = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    out, _ = rain(x, named(4))
    assert (out >= x.square() - 1e-6).all()
    share = (out > x.square() + 0.02).float().mean((1, 2, 3))
    assert 0.1 < float(share.min()) <= float(share.max()) < 0.6


@pytest.mark.parametrize("size", [96, 384])
def test_streaks_run_along_their_lean_and_scale_with_the_picture(size: int) -> None:
    """On black: a streak's light is alike along its way and differs across it; its contrast is that of any size."""
    out, drawn = rain(torch.zeros(6, 1, size, size), named(6))
    for i in range(6):
        field = out[i, 0] - out[i, 0].mean()
        lean = drawn["lean"][i] * torch.pi / 180
        step = max(2.0, 20 * size / 768)
        moved = {}
        for name, (x, y) in {"along": (lean.sin(), lean.cos()), "across": (lean.cos(), -lean.sin())}.items():
            dx, dy = round(float(step * x)), round(float(step * y))
            a = field[max(0, dy) : size + min(0, dy), max(0, dx) : size + min(0, dx)]
            b = field[max(0, -dy) : size + min(0, -dy), max(0, -dx) : size + min(0, -dx)]
            moved[name] = float((a * b).mean() / field.square().mean())
        assert moved["along"] > moved["across"] + 0.2, (drawn["lean"][i], moved)
    assert 0.03 < float(out.mean()) < 0.15


def test_snow_brightens_dark_pictures_in_spots() -> None:
    x = torch.full((4, 3, 96, 96), 0.1)
    out, drawn = snow(x, named(4))
    veil = 0.9 * 0.1 + 0.1
    assert float(out.min()) == pytest.approx(veil, abs=1e-3)
    spots = (out > veil + 0.2).float().mean((1, 2, 3))
    assert 0.005 < float(spots.min()) <= float(spots.max()) < 0.3
    order = drawn["share"].argsort()
    assert spots[order[-1]] > spots[order[0]]


def test_keyed_and_named_numbers_serve_alike() -> None:
    x = torch.rand(5, 3, 32, 32)
    for render in (haze, rain, snow):
        whole, _ = render(x, draws(5))
        chosen = torch.tensor([4, 1])
        part, _ = render(x[chosen], KeyedRandom.of(chosen, 0))
        torch.testing.assert_close(part, whole[chosen])


def test_a_share_of_a_batch_gets_weather() -> None:
    x = torch.rand(200, 1, 16, 16)
    out, changed = weather_view(x, draws(200), 0.3)
    assert 0.2 < float(changed.float().mean()) < 0.4
    assert torch.equal(out[~changed], x[~changed])
    assert ((out - x).abs().amax((1, 2, 3)) > 1e-3)[changed].all()
    again, _ = weather_view(x[:20], draws(20), 0.3)
    torch.testing.assert_close(again, out[:20])
    same, none = weather_view(x, draws(200), 0.0)
    assert torch.equal(same, x)
    assert not none.any()

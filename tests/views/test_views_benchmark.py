"""The views benchmark: both sides make the same kind of view, and its answer has the promised form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.benchmarks import views
from consilience.errors import InputError
from consilience.views.pictures import PictureViewConfig

STILL = PictureViewConfig(crop_low=1.0, ratio=1.0, flip=0.0, colour_probability=0.0, grey=0.0, blur=0.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_still_views_are_the_picture_on_both_sides(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, channels), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    singles = [Image.fromarray(one if channels == 3 else one[:, :, 0]) for one in pixels]
    expected = tensor.float() / 255
    torch.testing.assert_close(views.batched(tensor, STILL, 0), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(views.one_by_one(singles, STILL), expected)


def test_both_sides_spread_alike() -> None:
    """Mean and spread of many views of one picture agree: neither side does less."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((6, 6)).resize((64, 64)))  # blobs, not noise
    tensor = torch.from_numpy(np.repeat(picture[None], 300, 0)).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    ours = views.batched(tensor, PictureViewConfig(), 0)
    theirs = views.one_by_one([Image.fromarray(picture)] * 300, PictureViewConfig())
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.02)
    assert ours.std(0).mean().item() == pytest.approx(theirs.std(0).mean().item(), rel=0.1)


def test_form_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "PICTURES", 8)
    found = views.run(repeats=1)
    assert set(found["ratios"]) == {"rgb", "grey"}
    assert set(found["views_per_second"]) == {"ours_rgb", "pillow_rgb", "ours_grey", "pillow_grey"}
    assert found["ratios"]["rgb"]["median"] > 0
    with pytest.raises(InputError, match="at least 1"):
        views.run(repeats=0)

"""Pictures of any size on a square: what is kept, and where a position of the file lands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilience.data.pictures import Fit, Placement, decode_image, placement
from consilience.data.schema import Kind

from .conftest import png


def spot(width: int, height: int, x: int, y: int) -> bytes:
    """A black picture with a white 3 x 3 spot about (x, y)."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    return png(pixels)


@pytest.mark.parametrize("fit", ["cut", "whole", "centre"])
@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (40, 30), (64, 64)])
def test_a_spot_lands_where_the_placement_says(fit: Fit, width: int, height: int) -> None:
    x, y = width // 2 + 3, height // 2 - 4
    raw = spot(width, height, x, y)
    pixels = decode_image(raw, Kind.GREY, 64, fit)[0].astype(float)
    assert pixels.shape == (64, 64)
    rows, columns = np.indices(pixels.shape)
    centre = [(columns * pixels).sum() / pixels.sum() + 0.5, (rows * pixels).sum() / pixels.sum() + 0.5]
    place = placement(raw, 64, fit).place(np.array([[x + 0.5, y + 0.5]]))[0]
    np.testing.assert_allclose(centre, place, atol=0.3)


def test_whole_keeps_everything_and_centre_keeps_the_scale() -> None:
    white = png(np.full((30, 60), 255, np.uint8))
    whole = decode_image(white, Kind.GREY, 20, "whole")[0]
    assert (whole[:5] == 0).all()
    assert (whole[5:15] == 255).all()
    texture = np.random.default_rng(0).integers(0, 256, (50, 41), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(png(texture), Kind.GREY, 20, "centre")[0], texture[15:35, 10:30])
    padded = decode_image(png(texture), Kind.GREY, 64, "centre")[0]
    assert int(padded.astype(int).sum()) == int(texture.astype(int).sum())


def test_turned_by_exif() -> None:
    import io

    picture = Image.fromarray(np.zeros((20, 40), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", exif=exif)
    assert placement(stream.getvalue(), 10, "whole") == Placement.of(20, 40, 10, "whole")


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["cut", "whole"]), st.integers(1, 100))
def test_covers_or_fits(width: int, height: int, fit: Fit, size: int) -> None:
    place = Placement.of(width, height, size, fit)
    if fit == "cut":
        assert min(place.width, place.height) == size
    else:
        assert max(place.width, place.height) == size

"""Where a map's places land in the picture it was made from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from consilience.data.pictures import Fit, Placement, decode_image, decode_whole
from consilience.data.reading import png_bytes
from consilience.data.schema import Kind
from consilience.prediction.pictures import onto, overlay


@pytest.mark.parametrize("fit", ["whole", "centre", "cut"])
def test_a_spot_returns_to_where_it_was(fit: Fit) -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[24:36, 42:54] = 255
    square = decode_image(png_bytes(picture), Kind.GREY, 48, fit)[0].astype(np.float32)
    back = onto(square, Placement.of(90, 60, 48, fit), 48, 90, 60)
    y, x = np.unravel_index(back.argmax(), back.shape)
    bright = back > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert abs(rows.mean() - 29.5) < 1.5
    assert abs(columns.mean() - 47.5) < 1.5
    assert 24 <= y < 36
    assert 42 <= x < 54


def test_a_coarse_map_is_stretched_over_the_picture() -> None:
    found = onto(np.array([[0.0, 1.0]]), Placement.of(40, 20, 40, "whole"), 40, 40, 20)
    assert found.shape == (20, 40)
    np.testing.assert_allclose(found[:, 0], 0)
    np.testing.assert_allclose(found[:, -1], 1)
    assert (np.diff(found[5]) >= 0).all()
    assert found[5, 20] == pytest.approx(0.525)


def test_colours_follow_the_map() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    ramp = np.linspace(0, 1, 8)[None].repeat(8, 0)
    shown = overlay(grey, ramp, Placement.of(8, 8, 8, "cut"), 8)
    assert shown.shape == (8, 8, 3)
    assert shown[0, 0, 2] > shown[0, 0, 1], "low is blue"
    assert shown[0, -1, 0] > shown[0, -1, 2], "high is yellow"
    flat = overlay(grey, np.zeros((8, 8)), Placement.of(8, 8, 8, "cut"), 8)
    assert (flat == flat[0, 0]).all()


def test_the_whole_picture_upright() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    assert (decode_whole(png_bytes(picture)) == picture).all()
    import io

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(turned, "PNG", exif=exif)
    assert decode_whole(turned.getvalue()).shape == (9, 5, 3)

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consilience.data.decode import (
    DecodeConfig,
    decode,
    decode_batch,
    decode_points,
    format_of,
    measure,
    prove,
)
from consilience.data.pictures import decode_image, image_channels
from consilience.data.schema import Kind
from consilience.errors import InputError

from .conftest import BOX, export, npy, npz, png

RNG = np.random.default_rng(0)


# Pictures


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    grey = RNG.integers(0, 256, (28, 28), dtype=np.uint8)
    out = decode_image(png(grey), Kind.GREY, 28)
    assert out.shape == (1, 28, 28)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[0], grey)
    colour = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(png(colour), Kind.RGB, 9), colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(decode_image(png(grey), Kind.RGB, 28), np.stack([grey] * 3))


def test_the_shorter_side_is_resized_and_the_centre_cut() -> None:
    wide = np.zeros((10, 40), dtype=np.uint8)
    wide[:, 15:25] = 200
    out = decode_image(png(wide), Kind.GREY, 10)
    np.testing.assert_array_equal(out[0], np.full((10, 10), 200))
    for shape in ((7, 100), (100, 7), (1, 3), (513, 512)):
        raw = png(RNG.integers(0, 256, shape, dtype=np.uint8))
        assert decode_image(raw, Kind.GREY, 16).shape == (1, 16, 16)


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    out = decode_image(png(rgba), Kind.RGB, 4)
    np.testing.assert_array_equal(out[:, 0, 0], [10, 20, 30])
    np.testing.assert_array_equal(out[:, 3, 3], [255, 255, 255])
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8).repeat(2, 0), mode=None).convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    stream = io.BytesIO()
    palette.save(stream, format="PNG", transparency=0)
    assert (decode_image(stream.getvalue(), Kind.RGB, 2)[:, :, 0] == 255).all()


def test_sixteen_bits_keep_the_upper_byte() -> None:
    deep = np.array([[0, 255], [256, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(decode_image(png(deep), Kind.GREY, 2)[0], [[0, 0], [1, 255]])


def test_exif_rotation_is_applied() -> None:
    picture = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    picture.save(stream, format="PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), Kind.GREY, 2)[0], [[255, 255], [0, 0]])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_and_foreign_bytes_are_refused(form: str) -> None:
    raw = png(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), form)
    for broken in (raw[: len(raw) // 2], raw[:-200], b"", b"hello", raw[:30] + b"\0" * 300):
        with pytest.raises(InputError):
            decode_image(broken, Kind.RGB, 32)


def test_huge_pictures_are_refused_before_decoding() -> None:
    stream = io.BytesIO()
    Image.new("1", (20000, 4001)).save(stream, format="PNG")
    with pytest.raises(InputError, match="80000000"):
        decode_image(stream.getvalue(), Kind.GREY, 32)


def test_channels_of_a_file() -> None:
    assert image_channels(png(np.zeros((2, 2), np.uint8))) == 1
    assert image_channels(png(np.zeros((2, 2, 3), np.uint8))) == 3
    assert image_channels(png(np.zeros((2, 2, 4), np.uint8))) == 3


# Clouds


def assert_normalised(cloud: np.ndarray, n: int) -> None:
    assert cloud.shape == (n, 3)
    assert cloud.dtype == np.float32
    np.testing.assert_allclose(cloud.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-5)


def test_an_exact_count_keeps_order_and_shape() -> None:
    points = RNG.normal(size=(16, 3)) * 5 + 3
    out = decode_points(npy(points), "", 16)
    centred = points - points.mean(0)
    np.testing.assert_allclose(out, centred / np.linalg.norm(centred, axis=1).max(), atol=1e-6)


@given(st.integers(8, 60), st.integers(8, 60), st.booleans(), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_any_count_gives_n_normalised_points_always_the_same(n: int, want: int, as_npz: bool, extra: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 3 + extra)).astype(np.float32)
    raw = npz(points=values, colours=values) if as_npz else npy(values)
    out = decode_points(raw, "", want)
    assert_normalised(out, want)
    np.testing.assert_array_equal(out, decode_points(raw, "other.npy", want))
    if want == n:
        assert len(np.unique(out, axis=0)) == n


def test_more_points_are_thinned_to_a_subset_and_fewer_repeated() -> None:
    line = np.stack([np.arange(100.0), np.zeros(100), np.zeros(100)], 1)
    thin = decode_points(npy(line), "", 10)[:, 0]
    assert (np.diff(thin) > 0).all()
    thick = decode_points(npy(line[:8]), "", 20)
    assert len(np.unique(thick, axis=0)) == 8


def test_int8_is_fixed_point_and_fortran_order_is_read() -> None:
    points = RNG.integers(-127, 128, (16, 3)).astype(np.int8)
    np.testing.assert_allclose(decode_points(npy(points), "", 16), decode_points(npy(points / 127), "", 16), atol=1e-6)
    floats = RNG.normal(size=(16, 3))
    by_column = decode_points(npy(np.asfortranarray(floats)), "", 16)
    np.testing.assert_array_equal(by_column, decode_points(npy(floats), "", 16))


@pytest.mark.parametrize("form", ["ply", "off", "obj", "stl", "glb"])
def test_meshes_are_sampled_on_their_surface(form: str) -> None:
    raw = export(BOX, form)
    out = decode_points(raw, f"x.{form}", 200)
    assert_normalised(out, 200)
    np.testing.assert_array_equal(out, decode_points(raw, f"y.{form}", 200))
    sides = np.ptp(out, axis=0)
    assert sides[0] < sides[1] < sides[2]


def test_a_ply_cloud_keeps_its_points() -> None:
    points = RNG.normal(size=(12, 3)).astype(np.float32)
    raw = export(trimesh.PointCloud(points), "ply")
    np.testing.assert_allclose(decode_points(raw, "", 12), decode_points(npy(points), "", 12), atol=1e-5)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"what is this", "unknown 3-D format"),
        (npy(np.zeros((7, 3))), "7 points"),
        (npy(np.zeros((20, 3))), "coincide"),
        (npy(np.full((20, 3), np.nan)), "NaN"),
        (npy(np.zeros((20, 2))), "points, 3"),
        (npy(np.zeros(20)), "points, 3"),
        (npy(np.array([["a", "b", "c"]] * 9)), "points, 3"),
        (npy(np.ones((20, 3)))[:-1], "truncated"),
        (npy(np.ones((20, 3)))[:40], "broken"),
        (npz(a=np.ones((9, 3)), b=np.ones(3)), "under the name points|without 'points'"),
        (b"PK\x03\x04 not a zip", "broken"),
        (b"ply\nformat ascii 1.0\nelement vertex 5\n", "broken ply"),
        (b"glTF" + b"\0" * 40, "broken glb"),
    ],
)
def test_bad_clouds_are_refused(raw: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_points(raw, "", 16)


def test_pickles_are_never_loaded() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}] * 9, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="never loaded"):
        decode_points(stream.getvalue(), "x.npy", 16)
    with pytest.raises(InputError):
        decode_points(pickle.dumps(np.zeros((9, 3))), "x.npy", 16)


def test_an_oversized_claim_is_refused_without_memory() -> None:
    small = npy(np.zeros((9, 3)))
    assert b"(9, 3), }          " in small
    huge = small.replace(b"(9, 3), }          ", b"(9999999999, 3), } ")
    with pytest.raises(InputError, match="promises 239999999976 bytes"):
        decode_points(huge, "x.npy", 16)
    with pytest.raises(InputError, match="broken NumPy"):
        decode_points(small.replace(b"(9, 3)", b"(9, 3 "), "x.npy", 16)


SAMPLES = [
    (png(RNG.integers(0, 256, (9, 9), dtype=np.uint8)), Kind.GREY),
    (png(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8), "JPEG"), Kind.RGB),
    (npy(RNG.normal(size=(9, 3))), Kind.POINTS),
    (npz(points=RNG.normal(size=(9, 3))), Kind.POINTS),
    *((export(BOX, form), Kind.MESH) for form in ("ply", "off", "stl", "glb", "obj")),
]


@given(st.sampled_from(range(len(SAMPLES))), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_decode_or_raise_input_error(which: int, data: st.DataObject) -> None:
    raw, kind = SAMPLES[which]
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(raw)))])
    config = DecodeConfig(image_size=8, n_points=8, n_faces=12)
    for broken in (bytes(damaged), cut):
        try:
            out = decode(broken, kind, "x.obj", config)
        except InputError:
            continue
        assert out.shape == config.shape(kind)
        assert np.isfinite(out).all()


# Formats and batches


def test_formats_are_told_by_content_then_by_name() -> None:
    assert format_of(b"\x89PNG\r\n\x1a\n...", "wrong.npy") == "png"
    assert format_of(export(BOX, "stl"), "part.STL") == "stl"
    assert format_of(export(BOX, "obj"), "part.obj") == "obj"
    assert format_of(b"????", "photo.JPG") == "jpeg"
    assert format_of(b"????", "list.txt") == ""
    assert format_of(b"BM is how this caption begins", "", Kind.TEXT) == "text"
    assert format_of(npy(np.zeros(3)), "", Kind.VECTOR) == "npy"


def test_measures() -> None:
    assert measure(png(np.zeros((3, 5), np.uint8)), Kind.GREY, "") == (3, 5)
    assert measure(npy(np.zeros((9, 3))), Kind.POINTS, "") == (9,)
    assert measure(export(BOX, "off"), Kind.MESH, "") == (12,)
    assert measure(export(BOX, "off"), Kind.POINTS, "") == (8,)
    assert measure("läuft".encode(), Kind.TEXT, "") == (5,)
    assert measure(npy(np.zeros((3, 7))), Kind.REGIONS, "") == (3, 7)
    assert measure(npy(np.zeros(7)), Kind.VECTOR, "") == (7,)


def test_proofs_take_any_size() -> None:
    assert prove(b"abc", Kind.TEXT, "", "bytes") == (5,)
    assert prove(npy(np.zeros((99, 3000))), Kind.REGIONS, "", "bytes") == (99, 3000)
    assert prove(npy(np.zeros(5000)), Kind.VECTOR, "", "bytes") == (5000,)
    assert prove(png(np.zeros((3, 5), np.uint8)), Kind.GREY, "", "bytes") == (3, 5)
    for kind, values, what in (
        (Kind.VECTOR, np.zeros((0,)), "holds no values"),
        (Kind.REGIONS, np.zeros((0, 4)), "holds no values"),
        (Kind.REGIONS, np.zeros(4), r"shape \(4,\)"),
        (Kind.VECTOR, np.zeros((2, 4)), r"shape \(2, 4\)"),
        (Kind.VECTOR, np.array(1.0), r"shape \(\)"),
        (Kind.VECTOR, np.array([np.inf]), "infinite"),
    ):
        with pytest.raises(InputError, match=what):
            prove(npy(values), kind, "", "bytes")


def test_a_batch_has_zeros_and_a_mask_where_nothing_is() -> None:
    kinds = {"image": Kind.RGB, "points": Kind.POINTS, "shape": Kind.MESH}
    config = DecodeConfig(image_size=6, n_points=8, n_faces=16)
    picture, cloud, mesh = png(np.full((6, 6), 7, np.uint8)), npy(RNG.normal(size=(8, 3))), export(BOX, "stl")
    rows = pa.table(
        {
            "id": ["a", "b"],
            "image": [picture, None],
            "origin_image": ["a.png", None],
            "points": [None, cloud],
            "origin_points": [None, "b.npy"],
            "shape": [mesh, None],
            "origin_shape": ["a.stl", None],
        }
    )
    values, present = decode_batch(rows, kinds, config)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        name: (2, *config.shape(kind)) for name, kind in kinds.items()
    }
    assert [values[name].dtype for name in kinds] == [torch.uint8, torch.float32, torch.float32]
    assert [present[name].tolist() for name in kinds] == [[True, False], [False, True], [True, False]]
    assert not values["image"][1].any()
    assert not values["points"][0].any()
    np.testing.assert_array_equal(values["shape"][0].numpy(), decode(mesh, Kind.MESH, "a.stl", config))
    broken = rows.set_column(1, "image", pa.array([picture[:20], None]))
    with pytest.raises(InputError, match=r"sample 'a', image from a\.png"):
        decode_batch(broken, kinds, config)


def test_a_batch_of_captions_and_features() -> None:
    kinds = {"text": Kind.TEXT, "image": Kind.REGIONS, "code": Kind.VECTOR}
    config = DecodeConfig(max_tokens=6, regions=3, region_width=2, vector_width=4)
    rows = pa.table(
        {
            "id": ["a", "b"],
            "text": [b"ab", None],
            "origin_text": ["t", None],
            "image": [None, npy(np.ones((2, 2)))],
            "origin_image": [None, "r.npy"],
            "code": [npy(np.arange(3)), None],
            "origin_code": [None, None],
        }
    )
    values, present = decode_batch(rows, kinds, config)
    for name, kind in kinds.items():
        assert values[name].dtype == kind.dtype
        assert tuple(values[name].shape) == (2, *config.shape(kind))
    assert values["text"].tolist() == [[1, 101, 102, 2, -1, -1], [-1] * 6]
    assert values["image"].tolist() == [[[0, 0]] * 3, [[1, 1], [1, 1], [0, 0]]]
    assert values["code"].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert [present[name].tolist() for name in kinds] == [[True, False], [False, True], [True, False]]
    broken = rows.set_column(1, "text", pa.array([b"ok", b"\xff"]))
    with pytest.raises(InputError, match=r"sample 'b', text from nowhere: the caption is not UTF-8"):
        decode_batch(broken, kinds, config)


def test_sizes_are_checked() -> None:
    for name in ("image_size", "n_points", "n_faces", "max_tokens", "regions", "region_width", "vector_width"):
        with pytest.raises(InputError, match=name):
            DecodeConfig(**{name: 0})
    with pytest.raises(InputError, match="did you mean 'words'"):
        DecodeConfig(tokenizer="word:v.json")

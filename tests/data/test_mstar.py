from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilience.data.check import check
from consilience.data.decode import DecodeConfig
from consilience.data.importers import import_table
from consilience.data.importers.mstar import (
    MSTAR,
    class_of,
    is_mstar,
    is_standard,
    picture_of,
    read_mstar,
    read_phoenix,
)
from consilience.data.loader import read
from consilience.data.schema import Kind
from consilience.errors import InputError


def chip(
    magnitude: np.ndarray, target: str, serial: str, depression: float = 17.0, native: int = 0, phase: bool = True
) -> bytes:
    """A file as the CDs hold them: padded ASCII header, big-endian magnitudes, then phases."""
    rows, columns = magnitude.shape
    lines = [
        "[PhoenixHeaderVer01.04]",
        "PhoenixHeaderLength= 00000",
        f"PhoenixSigSize= {8 * rows * columns:07d}",
        "PhoenixSigNum= 0001",
        f"native_header_length= {native}",
        "Filename= HB03333.015",
        f"NumberOfColumns= {columns}",
        f"NumberOfRows= {rows}",
        f"TargetType= {target}",
        f"TargetSerNum= {serial}",
        "TargetAz= 152.780548",
        f"DesiredDepression= {depression:g}",
        f"MeasuredDepression= {depression + 0.1:.6f}",
        "[EndofPhoenixHeader]",
        "",
    ]
    header = "\n".join(lines)
    header = header.replace("Length= 00000", f"Length= {len(header):05d}")
    angles = np.zeros_like(magnitude) if phase else magnitude[:0]
    return header.encode() + bytes(native) + magnitude.astype(">f4").tobytes() + angles.astype(">f4").tobytes()


def magnitudes(rows: int = 9, columns: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).rayleigh(0.3, (rows, columns)).astype(np.float32)


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """Two vehicles, three serials, two angles and one other, in the folders of the public discs."""
    for place, target, serial, angle in (
        ("TRAIN/17_DEG/BMP2/SN_9563/HB03787.000", "bmp2_tank", "9563", 17),
        ("TRAIN/17_DEG/BMP2/SN_9566/HB03787.001", "bmp2_tank", "9566", 17),
        ("TEST/15_DEG/T72/SN_132/HB03333.015", "t72_tank", "132", 15),
        ("TEST/15_DEG/ZSU_23_4/HB14933.026", "zsu23-4_gun", "d08", 15),
        ("TEST/30_DEG/2S1/HB20000.000", "2s1_gun", "b01", 30),
    ):
        path = tmp_path / "disc" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chip(magnitudes(9, 7, seed=sum(place.encode())), target, serial, angle))
    (tmp_path / "disc" / "README").write_text("MSTAR public targets")
    (tmp_path / "disc" / "TRAIN" / "notes.001").write_text("no chip")
    return tmp_path / "disc"


def test_phoenix_files_become_rows(disc: Path, tmp_path: Path) -> None:
    table = import_table(disc, tmp_path / "table")
    assert table.modalities == {"image": Kind.GREY}
    found = table.take(table.select(), ["id", "split", "label", "serial", "depression", "azimuth", "standard"])
    rows = {row["id"].rsplit("/", 1)[1]: row for row in found.to_pylist()}
    assert len(rows) == 5
    first, other = rows["HB03787.000"], rows["HB03787.001"]
    assert (first["split"], first["label"], first["serial"], first["depression"]) == ("train", "BMP2", "9563", 17)
    assert first["azimuth"] == pytest.approx(152.780548)
    assert (first["standard"], other["standard"]) == (True, False)
    assert rows["HB03333.015"]["split"] == "test"
    assert rows["HB14933.026"]["label"] == "ZSU_23_4"
    assert rows["HB20000.000"]["split"] == "depression-30"
    assert len(table.select("standard and split = 'train'")) == 1


def test_numbers_are_big_endian_and_magnitude_comes_first() -> None:
    given = magnitudes()
    got = read_phoenix(chip(given, "t72_tank", "132"), "x")
    np.testing.assert_array_equal(got.magnitude, given)
    np.testing.assert_array_equal(read_phoenix(chip(given, "t72_tank", "132", native=512), "x").magnitude, given)
    np.testing.assert_array_equal(read_phoenix(chip(given, "t72_tank", "132", phase=False), "x").magnitude, given)
    assert (got.target, got.depression) == ("T72", 17)


def test_the_scale_of_a_chip_is_its_own() -> None:
    given = magnitudes(40, 50)
    pixels = picture_of(given)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture_of(4 * given), pixels)
    top = np.quantile(given, 0.999)
    quarter = np.abs(given / top - 0.25) < 1e-3
    assert np.abs(pixels[quarter] - 127.5).max() <= 1
    assert pixels.max() == 255
    bright = given.copy()
    bright[0, 0] = 1000.0
    np.testing.assert_allclose(picture_of(bright)[1:], pixels[1:], atol=20)  # one pixel does not dim the others
    assert not picture_of(np.zeros((3, 4), np.float32)).any()
    single = np.zeros((40, 50), np.float32)
    single[1, 1] = 2.0  # the quantile is nought
    assert picture_of(single)[1, 1] == 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:200], "no Phoenix header"),
        (lambda data: data[:-200], "need .*; copy the file again"),
        (lambda data: data.replace(b"NumberOfRows= 9", b"NumberOfRows= x"), "no whole number NumberOfRows"),
        (lambda data: data.replace(b"PhoenixHeaderLength= ", b"PhoenixHeaderSize= X"), "no whole number PhoenixHead"),
        (lambda data: data[:-400] + np.full(100, -1, ">f4").tobytes(), "negative"),
    ],
)
def test_broken_files_are_named(disc: Path, tmp_path: Path, change, message) -> None:  # type: ignore[no-untyped-def]
    path = disc / "TEST/15_DEG/T72/SN_132/HB03333.015"
    data = chip(magnitudes(), "t72_tank", "132", 15, phase=False)
    data = data + data[-148:] if "need" not in message else data
    path.write_bytes(change(data))
    report = check(disc)
    assert [bad.origin for bad in report.unreadable] == ["TEST/15_DEG/T72/SN_132/HB03333.015"]
    with pytest.raises(InputError, match=message) as error:
        import_table(disc, tmp_path / "table")
    assert "HB03333.015" in str(error.value)
    assert not (tmp_path / "table").exists()


def test_check_reads_a_disc(disc: Path) -> None:
    report = check(disc)
    assert report.splits == {"train": 2, "test": 2, "depression-30": 1}
    assert report.labels == {"2S1": 1, "BMP2": 2, "T72": 1, "ZSU_23_4": 1}
    assert report.modalities["image"].smallest == [9, 7]
    assert report.problems == []


def test_a_single_chip_and_other_sources(disc: Path, tmp_path: Path) -> None:
    path = disc / "TEST/15_DEG/T72/SN_132/HB03333.015"
    assert is_mstar(path, set())
    assert [row.id for row in read_mstar(path).rows] == ["HB03333.015"]
    (tmp_path / "other" / "image").mkdir(parents=True)
    (tmp_path / "other" / "image" / "a.001").write_text("no chip")
    assert not is_mstar(tmp_path / "other", {"image"})
    with pytest.raises(InputError, match="captions apply"):
        import_table(disc, tmp_path / "table", captions="bpe")


def jpeg(seed: int, side: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def test_folders_of_pictures_are_walked_to_any_depth(tmp_path: Path) -> None:
    """Equal names in several classes and serials, chips of several sizes, serials one level down."""
    for number, (place, side) in enumerate(
        (
            ("TRAIN/2S1/HB1.jpeg", 20),
            ("TRAIN/BMP2/SN_9563/HB1.jpeg", 16),
            ("TRAIN/BMP2/SN_C21/HB1.jpeg", 16),
            ("TEST/2S1/HB1.jpeg", 20),
            ("TEST/BMP2/SN_9563/deeper/HB2.jpeg", 16),
        )
    ):
        path = tmp_path / "SOC" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, side))
    table = import_table(tmp_path / "SOC", tmp_path / "table")
    found = table.take(table.select(), ["split", "label", "serial", "depression", "standard"]).to_pylist()
    assert len(found) == 5
    assert {(row["split"], row["label"]) for row in found} == {
        (s, t) for s in ("train", "test") for t in ("2S1", "BMP2")
    }
    assert [row["standard"] for row in found if row["serial"] == "SN_C21"] == [False]
    assert {row["depression"] for row in found if row["split"] == "train"} == {17}
    batch = next(read(table, table.select(), DecodeConfig(image_size=12, image_fit="centre"), 5))
    assert batch.values["image"].shape == (5, 1, 12, 12)


def test_names_of_vehicles() -> None:
    spelled = ("2s1_gun", "bmp2_tank", "brdm2_truck", "btr70_transport", "btr60_transport", "d7_bulldozer", "t62_tank",
               "t72_tank", "zil131_truck", "zsu23-4_gun")  # fmt: skip
    assert [class_of(name) for name in spelled] == [
        "2S1", "BMP2", "BRDM_2", "BTR70", "BTR_60", "D7", "T62", "T72", "ZIL131", "ZSU_23_4",
    ]  # fmt: skip
    assert class_of("slicy") == "slicy"
    assert is_standard("T72", "SN_132")
    assert not is_standard("T72", "SN_812")
    assert is_standard("2S1", "b01")
    assert not is_standard("BMP2", "c21")


def test_the_archive(shared: Path, tmp_path: Path) -> None:
    table = import_table(shared / "mstar_soc", tmp_path / "table")
    assert len(table) == 1300
    counts = {split: len(table.select(f"split = '{split}' and label = 'T72'")) for split in ("train", "test")}
    assert counts == {"train": 80, "test": 50}
    assert set(table.column("depression", "split = 'train'").tolist()) == {17}
    assert len(table.labels()[1]) == 10
    assert table.source.endswith(MSTAR)
    batch = next(read(table, table.select()[:4], DecodeConfig(image_size=64, image_fit="centre"), 4))
    assert batch.values["image"].shape == (4, 1, 64, 64)


def test_archives_that_are_not_like_that(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / MSTAR).write_bytes(b"torn")
    with pytest.raises(InputError, match="not a readable Parquet"):
        import_table(tmp_path / MSTAR, tmp_path / "table")
    pq.write_table(pa.table({"split": ["train"]}), tmp_path / MSTAR)
    with pytest.raises(InputError, match="lacks target, serial"):
        import_table(tmp_path / MSTAR, tmp_path / "table")

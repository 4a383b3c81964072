from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilience.data.check import check
from consilience.data.importers import import_table
from consilience.data.importers.opensarship import label_of
from consilience.data.schema import Kind
from consilience.errors import InputError

SHIPS = (
    (100, 200, "70", "Bulk Carrier", "477000001"),
    (300, 400, "70", "Container Ship", "477000002"),
    (500, 600, "80", "Crude Oil Tanker", "477000003"),
    (700, 800, "30", "Fishing", "477000004"),
)


def tiff(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 3, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "TIFF")
    return stream.getvalue()


def scene(root: Path, name: str) -> Path:
    """A scene as the releases hold it: chips in two polarisations, other forms of them, and the records."""
    folder = root / name
    records = []
    for number, (x, y, code, elaborated, mmsi) in enumerate(SHIPS):
        for pol in ("vh", "vv"):
            for kind, prefix in (("Patch_Uint8", "Visual_"), ("Patch_Cal", "")):
                path = folder / kind / f"{prefix}Cargo_x{x}_y{y}_{pol}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tiff(10 * number + len(pol + name)))
        records.append(
            f"<ship><SARShipInformation><Center_x>{x}</Center_x><Center_y>{y}</Center_y></SARShipInformation>"
            f"<AISShipInformation><MMSI>{mmsi}</MMSI><Ship_Type>{code}</Ship_Type></AISShipInformation>"
            f"<MarineTrafficInformation><Elaborated_type>{elaborated}</Elaborated_type></MarineTrafficInformation></ship>"
        )
    (folder / "Ship.xml").write_text(f"<?xml version='1.0'?><ShipList>{''.join(records)}</ShipList>")
    return folder


def test_ships_become_rows(tmp_path: Path) -> None:
    for name in ("S1A_IW_GRDH_A", "S1A_IW_GRDH_B"):
        scene(tmp_path / "data", name)
    table = import_table(tmp_path / "data", tmp_path / "table")
    assert table.modalities == {"vv": Kind.GREY, "vh": Kind.GREY}
    rows = table.take(table.select(), ["id", "label", "split", "mmsi", "elaborated_type", "scene"]).to_pylist()
    assert len(rows) == 8
    first = rows[0]
    assert first["id"] == "S1A_IW_GRDH_A/x100_y200"
    assert (first["label"], first["elaborated_type"], first["mmsi"]) == ("bulk carrier", "Bulk Carrier", "477000001")
    assert [row["label"] for row in rows[:4]] == ["bulk carrier", "container ship", "tanker", None]
    for a, b in zip(rows[:4], rows[4:], strict=True):
        assert a["split"] == b["split"], "one ship in two scenes is on one side"
    assert check(tmp_path / "data").splits == check(table).splits


def test_one_scene_and_chips_without_a_record(tmp_path: Path) -> None:
    folder = scene(tmp_path, "one")
    (folder / "Patch_Uint8" / "Visual_Cargo_x9_y9_vv.tif").write_bytes(tiff(1))
    table = import_table(folder, tmp_path / "table")
    assert len(table) == 5
    alone = table.take(table.select("center_x = 9"), ["label", "mmsi", "vh", "vv"]).to_pylist()[0]
    assert alone["label"] is alone["mmsi"] is alone["vh"] is None
    assert alone["vv"]


def test_shares_of_the_splits(tmp_path: Path) -> None:
    from consilience.data.importers.opensarship import _split

    found = [_split(f"47700{n:04d}") for n in range(2000)]
    assert found.count("test") / 2000 == pytest.approx(0.3, abs=0.03)


def test_scenes_that_are_not_like_that(tmp_path: Path) -> None:
    folder = scene(tmp_path / "data", "one")
    (folder / "Ship.xml").write_text("<ShipList><ship>")
    with pytest.raises(InputError, match=r"Ship\.xml is not well-formed"):
        import_table(tmp_path / "data", tmp_path / "table")
    (folder / "Ship.xml").write_text("<ShipList><ship><SARShipInformation/></ship></ShipList>")
    with pytest.raises(InputError, match="ship 1 has no numbers Center_x"):
        import_table(tmp_path / "data", tmp_path / "table")
    (folder / "Ship.xml").unlink()
    with pytest.raises(InputError, match=r"every scene needs its Ship\.xml"):
        import_table(tmp_path / "data", tmp_path / "table")
    for file in (folder / "Patch_Uint8").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no chips such as"):
        import_table(tmp_path / "data", tmp_path / "table")


def test_a_torn_chip_is_named(tmp_path: Path) -> None:
    folder = scene(tmp_path / "data", "one")
    (folder / "Patch_Uint8" / "Visual_Cargo_x300_y400_vv.tif").write_bytes(b"II*\0torn")
    assert [bad.id for bad in check(tmp_path / "data").unreadable] == ["one/x300_y400"]
    with pytest.raises(InputError, match="x300_y400"):
        import_table(tmp_path / "data", tmp_path / "table")


def test_three_classes() -> None:
    assert label_of("Ore/Bulk Carrier") == "bulk carrier"
    assert label_of("LPG Tanker") == "tanker"
    assert label_of("") is None

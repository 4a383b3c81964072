"""OpenSARShip: ship chips of Sentinel-1 with their AIS messages (Huang et al., IEEE JSTARS 2018), releases 1 and 2.

One folder a scene, unpacked: ``Patch_Uint8/Visual_TYPE_xX_yY_POL.tif``, 8-bit pictures of one ship in one
polarisation, and ``Ship.xml``, whose records ``ship`` are joined to them by ``SARShipInformation/Center_x`` and
``Center_y``. The class is ``MarineTrafficInformation/Elaborated_type``, of which the usual three are kept as labels:
bulk carrier, container ship, tanker. The other chips stay as unlabelled rows.

There is no official split. Every ship (its MMSI, where AIS gives one, else its place in the scene) goes to train or
test by a hash, three tenths of them to test: no ship is on both sides, whatever scenes are imported.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

CHIPS, RECORDS = "Patch_Uint8", "Ship.xml"
CLASSES = {"bulk carrier": "bulk carrier", "container ship": "container ship", "tanker": "tanker"}
"""What an elaborated type has in it, to the label."""
TEST_SHARE = 0.3
SCALARS = {
    "scene": pa.string(),
    "ship_type": pa.string(),
    "elaborated_type": pa.string(),
    "mmsi": pa.string(),
    "center_x": pa.int64(),
    "center_y": pa.int64(),
}
_CHIP = re.compile(r"Visual_(?P<type>.+?)_x(?P<x>\d+)_y(?P<y>\d+)(?:_(?P<pol>vv|vh|hh|hv))?\.tiff?", re.IGNORECASE)
Place = tuple[int, int]


def is_opensarship(path: Path, names: set[str]) -> bool:
    """Whether a folder is a scene, or holds scenes."""
    return {CHIPS, RECORDS} & names == {CHIPS, RECORDS} or bool(_scenes(path))


def read_opensarship(path: Path) -> Reading:
    """Open a scene or a folder of scenes: a row a ship with one grey modality a polarisation (``vv``, ``vh``; ``image``
    where the name has none), the columns of :data:`SCALARS`, and ids ``SCENE/xX_yY``.

    Raises InputError for a scene without readable ``Ship.xml``, records without centres, and folders without chips.
    """
    scenes = [path] if (path / CHIPS).is_dir() else _scenes(path)
    ships = {scene: _ships(scene) for scene in scenes}
    found = sorted({pol for chips in ships.values() for entry in chips.values() for pol in entry}, reverse=True)
    if not found:
        raise InputError(f"{path}: no chips such as {CHIPS}/Visual_Cargo_x10_y20_vv.tif; unpack the scenes' archives")
    kinds: dict[str, Kind | None] = dict.fromkeys(found, Kind.GREY)
    records = {scene: read_records(scene / RECORDS) for scene in scenes}
    return Reading(str(path), kinds, _rows(path, ships, records), SCALARS)


def read_records(file: Path) -> dict[Place, dict[str, str]]:
    """Centre (x, y) of every ship of a scene to its texts ``ship_type``, ``elaborated_type``, ``mmsi`` ("" where there
    is none); InputError naming the file, and the record, where it cannot be read."""
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or 'unreadable'}; every scene needs its {RECORDS}") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is not well-formed XML ({error}); unpack it again") from error
    records: dict[Place, dict[str, str]] = {}
    for number, ship in enumerate(root.iter("ship"), start=1):
        texts = [ship.findtext(f"SARShipInformation/Center_{axis}", "").strip() for axis in ("x", "y")]
        try:
            place = (int(float(texts[0])), int(float(texts[1])))
        except ValueError as error:
            raise InputError(f"{file}: ship {number} has no numbers Center_x and Center_y; unpack it again") from error
        records[place] = {
            "ship_type": ship.findtext("AISShipInformation/Ship_Type", "").strip(),
            "elaborated_type": ship.findtext("MarineTrafficInformation/Elaborated_type", "").strip(),
            "mmsi": ship.findtext("AISShipInformation/MMSI", "").strip(),
        }
    return records


def label_of(elaborated: str) -> str | None:
    """One of the three classes, or None."""
    return next((label for part, label in CLASSES.items() if part in elaborated.lower()), None)


def _scenes(path: Path) -> list[Path]:
    return sorted(entry.parent for entry in path.glob(f"*/{CHIPS}") if entry.is_dir())


def _ships(scene: Path) -> dict[Place, dict[str, Path]]:
    """Centre to the chips of one ship by polarisation."""
    found: dict[Place, dict[str, Path]] = {}
    for file in sorted((scene / CHIPS).iterdir()):
        named = _CHIP.fullmatch(file.name)
        if named:
            pol = (named["pol"] or "image").lower()
            found.setdefault((int(named["x"]), int(named["y"])), {})[pol] = file
    return found


def _rows(
    root: Path,
    ships: dict[Path, dict[Place, dict[str, Path]]],
    records: dict[Path, dict[Place, dict[str, str]]],
) -> Iterator[Row | Bad]:
    for scene, places in ships.items():
        for (x, y), chips in sorted(places.items()):
            name = f"{scene.name}/x{x}_y{y}"
            known = records[scene].get((x, y), {"ship_type": "", "elaborated_type": "", "mmsi": ""})
            values: dict[str, bytes | None] = {}
            origins = {pol: file.relative_to(root).as_posix() for pol, file in chips.items()}
            bad: Bad | None = None
            for pol, file in chips.items():
                try:
                    values[pol] = file.read_bytes()
                except OSError as error:
                    bad = Bad(name, pol, origins[pol], error.strerror or "unreadable")
            scalars = {"scene": scene.name, **{key: value or None for key, value in known.items()}}
            yield bad or Row(
                id=name,
                split=_split(known["mmsi"] or name),
                label=label_of(known["elaborated_type"]),
                values=values,
                origins=origins,
                scalars=scalars | {"center_x": x, "center_y": y},
            )


def _split(ship: str) -> str:
    share = int.from_bytes(hashlib.blake2b(ship.encode(), digest_size=4).digest(), "big") / 2**32
    return "test" if share < TEST_SHARE else "train"

"""Nuclei under the microscope with a point for each, and how the embedded file was made; weather is put on at import.

Source: a table of one row a picture of the 2018 Data Science Bowl's first stage with the community's corrections,
points being the centres of the masks; see embedded/ATTRIBUTION.txt.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from consilience.data.reading import Bad, Reading
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.data.weather import with_weather
from consilience.files import write_bytes

SIDE = 112
"""Longest side of the embedded pictures in pixels."""
SHARES = {"haze": 0.04, "rain": 0.04, "snow": 0.04}
"""Of the training pictures; the paper's data sets have 3 to 12 per cent."""
SEED = 0
PLACES = pa.list_(pa.list_(pa.float64()))
"""Arrow type of a column of positions."""


def read_nuclei(variant: str = "") -> Reading:
    """The embedded pictures (``image``), with the columns ``places``, ``count``, ``stain`` (fluorescence or tissue) and
    ``weather``: 88% of the training pictures without weather, the test pictures in each (see
    :func:`~consilience.data.weather.with_weather`). ``variant`` clear: none has weather."""
    name = f"embedded:nuclei:{variant}" if variant else "embedded:nuclei"
    scalars = {"places": PLACES, "count": pa.int64(), "stain": pa.string(), "weather": pa.string()}
    plain = Reading(name, {"image": Kind.RGB}, _rows(), scalars)
    return plain if variant == "clear" else with_weather(plain, SHARES, SEED)


def _rows() -> Iterator[Row | Bad]:
    with as_file(files("consilience.data") / "embedded" / "nuclei.parquet") as path:
        entries = pq.read_table(path).to_pylist()
    for number, entry in enumerate(entries):
        yield Row(
            id=entry["id"],
            split=entry["split"],
            values={"image": entry["image"]},
            origins={"image": f"nuclei.parquet::image[{number}]"},
            scalars={
                "places": entry["places"],
                "count": len(entry["places"]),
                "stain": entry["stain"],
                "weather": "normal",
            },
        )


def small(picture: bytes, points: np.ndarray, stretch: bool, side: int = SIDE) -> tuple[bytes, np.ndarray]:
    """A picture whose longest side is ``side`` pixels as lossless WebP, and its points there, to a hundredth.
    ``stretch``: brightness is scaled so that one pixel in a thousand is white, as dim fluorescence is shown."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if stretch:
        pixels = np.asarray(image, dtype=np.float64)
        top = max(1.0, float(np.quantile(pixels.max(2), 0.999)))
        image = Image.fromarray((pixels * 255 / top).clip(0, 255).round().astype(np.uint8))
    scale = side / max(image.size)
    wide, high = round(image.width * scale), round(image.height * scale)
    moved = points * [wide / image.width, high / image.height]
    stream = io.BytesIO()
    image.resize((wide, high), Image.Resampling.LANCZOS).save(stream, "WEBP", lossless=True, quality=80, method=4)
    return stream.getvalue(), np.round(moved, 2)


def build(source: Path, destination: Path) -> None:
    """Write the embedded file from the source table (Parquet, columns as in the attribution)."""
    columns: dict[str, list[object]] = {name: [] for name in ("id", "split", "stain", "places", "image")}
    for entry in pq.read_table(source).to_pylist():
        points = np.array(entry["points"], dtype=np.float64).reshape(-1, 2)
        picture, points = small(entry["image_png"], points, entry["gray"])
        columns["id"].append(entry["image_id"])
        columns["split"].append(entry["split"])
        columns["stain"].append("fluorescence" if entry["gray"] else "tissue")
        columns["places"].append(points.tolist())
        columns["image"].append(picture)
    types = {"places": PLACES, "image": pa.binary()}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", compression_level=19)
    write_bytes(destination, stream.getvalue())

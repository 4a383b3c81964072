"""The data sets that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from consilience.data.emoji import LANGUAGES
from consilience.data.reading import Reading, npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import unknown


@dataclass(frozen=True)
class DatasetInfo:
    """What there is to know about an embedded data set."""

    name: str
    what: str
    modalities: dict[str, Kind]
    rows: dict[str, int]
    """Split to number of rows."""
    classes: int
    licence: str
    source: str
    variants: tuple[str, ...] = ()
    """What may follow the name and a colon."""


DATASETS: dict[str, DatasetInfo] = {
    "mnist3d": DatasetInfo(
        name="mnist3d",
        what="real handwritten digits: a grey 28 x 28 picture and a cloud of 128 points of the same digit",
        modalities={"image": Kind.GREY, "points": Kind.POINTS},
        rows={"train": 5000, "test": 1000},
        classes=10,
        licence="MNIST is commonly distributed under CC BY-SA 3.0",
        source="MNIST (Y. LeCun, C. Cortes, C. Burges): the first 5000 training and 1000 test images",
    ),
    "emoji": DatasetInfo(
        name="emoji",
        what="emoji drawn in two styles (Noto as image, Fluent as fluent, missing for 240) with their names and "
        "keywords as text: emoji is English, emoji:de German and so on, emoji:all one row a language",
        modalities={"image": Kind.RGB, "fluent": Kind.RGB, "text": Kind.TEXT},
        rows={"train": 1009, "test": 310},
        classes=10,
        licence="Apache-2.0 (Noto), MIT (Fluent, emojibase), Unicode License v3 (names and keywords)",
        source="Noto Emoji (Google), Fluent Emoji (Microsoft), emojibase (M. Johnson) with Unicode CLDR texts",
        variants=(*LANGUAGES, "all"),
    ),
}
"""Embedded data sets by name."""


def dataset_names() -> list[str]:
    """Every name :func:`read_dataset` knows, variants (``emoji:de``) included."""
    return [name for base, info in DATASETS.items() for name in (base, *(f"{base}:{v}" for v in info.variants))]


def is_dataset(name: str) -> bool:
    """Whether ``name`` is an embedded data set or a variant of one."""
    return name in dataset_names()


def read_dataset(name: str) -> Reading:
    """The rows of an embedded data set; :class:`InputError` with the nearest name when there is none."""
    if not is_dataset(name):
        raise unknown("data set", name, dataset_names())
    base, _, variant = name.partition(":")
    kinds = dict(DATASETS[base].modalities)
    if base == "mnist3d":
        return Reading(f"embedded:{name}", kinds, _mnist3d())
    sizes = {"tokenizer": "fit-words"}  # a thousand short lists of words: too few to learn words from letters
    scalars = {"name": pa.string(), "subgroup": pa.string(), "hexcode": pa.string()}
    if variant == "all":
        scalars |= {"language": pa.string(), "group": pa.int64()}
        return Reading(f"embedded:{name}", kinds, _emoji(LANGUAGES, grouped=True), scalars, sizes)
    return Reading(f"embedded:{name}", kinds, _emoji((variant or "en",), grouped=False), scalars, sizes)


def _emoji(languages: tuple[str, ...], *, grouped: bool) -> Iterator[Row]:
    """One row an emoji, or (``grouped``) one an emoji and language, with the emoji's number as group."""
    with as_file(files("consilience.data") / "embedded" / "emoji.parquet") as path:
        entries = pq.read_table(path).to_pylist()
    for number, entry in enumerate(entries):
        for language in languages:
            columns = {"image": "image", "fluent": "fluent", "text": f"text_{language}"}
            scalars = {name: entry[name] for name in ("name", "subgroup", "hexcode")}
            yield Row(
                id=f"{entry['hexcode']}#{language}" if grouped else entry["hexcode"],
                split=entry["split"],
                label=entry["group"],
                values={"image": entry["image"], "fluent": entry["fluent"], "text": entry[columns["text"]].encode()},
                origins={name: f"emoji.parquet::{column}[{number}]" for name, column in columns.items()},
                scalars=scalars | ({"language": language, "group": number} if grouped else {}),
            )


def _mnist3d() -> Iterator[Row]:
    with as_file(files("consilience.data") / "embedded" / "mnist3d.npz") as path, np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for split in ("train", "test"):
        images, points = arrays[f"{split}_images"], arrays[f"{split}_points"]
        for i, label in enumerate(arrays[f"{split}_labels"].tolist()):
            yield Row(
                id=f"{split}-{i:05d}",
                split=split,
                label=str(label),
                values={"image": png_bytes(images[i]), "points": npy_bytes(points[i])},
                origins={
                    "image": f"mnist3d.npz::{split}_images[{i}]",
                    "points": f"mnist3d.npz::{split}_points[{i}]",
                },
            )

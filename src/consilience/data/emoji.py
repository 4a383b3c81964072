"""How the embedded emoji set was made: pictures made small, names and keywords of a language joined to a text.

Source: a table of one row an emoji, with Noto Emoji and Microsoft Fluent Emoji pictures of 72 x 72 pixels
and emojibase's labels and tags; see embedded/ATTRIBUTION.txt for origins and licences.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from consilience.files import write_bytes

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "ja", "ko", "zh", "hi", "th")
SIDE, COLOURS = 36, 64
_KEPT = ("hexcode", "emoji", "group", "subgroup", "split")


def small_picture(png: bytes, side: int = SIDE, colours: int = COLOURS) -> bytes:
    """A picture with transparency as a PNG of ``side`` x ``side`` pixels and a palette of ``colours`` RGBA
    colours; where the side divides the picture's, every pixel is the mean of its square."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    whole = picture.width % side == 0 and picture.height % side == 0
    # Averaging is done on premultiplied colours: those of invisible pixels must not bleed into the edges.
    picture = picture.convert("RGBa").resize((side, side), Image.Resampling.BOX if whole else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    palette = picture.convert("RGBA").quantize(colours, method=Image.Quantize.FASTOCTREE)
    palette.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def caption(label: str, tags: Sequence[str]) -> str:
    """``label, tag, tag``; a tag that only repeats the label is left out."""
    return ", ".join([label, *(tag for tag in tags if tag.lower() != label.lower())])


def build(source: Path, destination: Path) -> None:
    """Write the embedded file from the source table (Parquet, columns as in the attribution)."""
    table = pq.read_table(source)
    columns: dict[str, pa.Array] = {name: pa.array(table[name].to_pylist(), pa.string()) for name in _KEPT}
    columns["name"] = pa.array(table["label_en"].to_pylist(), pa.string())
    for language in LANGUAGES:
        pairs = zip(table[f"label_{language}"].to_pylist(), table[f"tags_{language}"].to_pylist(), strict=True)
        columns[f"text_{language}"] = pa.array([caption(label, tags) for label, tags in pairs], pa.string())
    for name, style in (("image", "noto"), ("fluent", "fluent")):
        pictures = [None if png is None else small_picture(png) for png in table[f"{style}_png"].to_pylist()]
        columns[name] = pa.array(pictures, pa.binary())
    stream = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        stream,
        compression="zstd",
        compression_level=19,
        use_dictionary=["group", "subgroup", "split"],
    )
    write_bytes(destination, stream.getvalue())

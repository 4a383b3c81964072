"""What an upload really is, and whether it is safe to decode: the bytes decide, names and declared types are checked.

Nothing here opens a file. A file's name is looked at for its suffix alone. :func:`identify` reads the first bytes;
:func:`examine` compares what a file promises (pixels, points, faces, unpacked bytes) with what it holds and with the
limits, before any parser allocates memory for it.
"""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from consilience.data.decode import ARRAY_FORMATS, GEOMETRY_FORMATS, format_of
from consilience.data.features import is_reference, shape_of
from consilience.data.pictures import IMAGE_FORMATS
from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.serve.limits import Limits, Refusal

UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"})
"""Declared types that say nothing about the content."""
TYPES = {
    "png": {"image/png"},
    "jpeg": {"image/jpeg", "image/jpg", "image/pjpeg"},
    "gif": {"image/gif"},
    "bmp": {"image/bmp", "image/x-bmp", "image/x-ms-bmp"},
    "webp": {"image/webp"},
    "tiff": {"image/tiff"},
    "npy": {"application/x-npy", "application/x-numpy-data"},
    "npz": {"application/x-npz", "application/x-numpy-data", "application/zip", "application/x-zip-compressed"},
    "ply": {"model/ply", "application/ply", "application/x-ply", "text/plain"},
    "off": {"model/off", "application/x-off", "text/plain"},
    "obj": {"model/obj", "application/x-tgif", "application/object", "text/plain", "text/prs.wavefront-obj"},
    "stl": {"model/stl", "model/x.stl-ascii", "model/x.stl-binary", "application/sla", "application/vnd.ms-pki.stl"}
    | {"application/x-navistyle", "text/plain"},
    "glb": {"model/gltf-binary"},
}
"""Format to the media types that a client may truthfully declare for it."""
MEMBERS = 64
"""Arrays in an uploaded .npz, nodes of a .glb times sixteen."""
_ALIASES = {"jpg": "jpeg", "tif": "tiff"}
_SUFFIXES = (*IMAGE_FORMATS, *ARRAY_FORMATS, *GEOMETRY_FORMATS)
_HEADER = 1 << 16
_WIDTHS = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64"), 8),
}


def suffix_of(name: str) -> str:
    """The suffix of a client's file name without the dot, in lower case; its folders are ignored."""
    bare = PureWindowsPath(PurePosixPath(name).name).name
    suffix = PurePosixPath(bare).suffix.lower().lstrip(".")
    return _ALIASES.get(suffix, suffix)


def identify(data: bytes, declared: str, name: str) -> str:
    """The format of an upload by its first bytes (.obj and binary .stl, which have no mark, by suffix and content).

    Raises :class:`Refusal` 415 for an unknown format, and where the declared media type or the suffix of the name
    says something else than the bytes; 422 for an empty upload.
    """
    if not data:
        raise Refusal(422, "the upload is empty; send a file", cause="empty")
    if is_reference(data):
        raise Refusal(415, "references to files of the server are never followed; send the data", cause="reference")
    suffix = suffix_of(name)
    found = format_of(data) or _unmarked(data, suffix, declared)
    if not found:
        known = ", ".join(_SUFFIXES)
        raise Refusal(415, f"the bytes are of no known format; send one of {known}", cause="unknown_format")
    if found == "stl" and not suffix and data.startswith(b"solid") and b"facet" not in data[:_HEADER]:
        raise Refusal(415, "the bytes are of no known format", cause="unknown_format")
    media = declared.partition(";")[0].strip().lower()
    if media not in UNSAID and media not in TYPES[found]:
        raise Refusal(415, f"declared as {media[:60]!r}, but the bytes are {found}; declare what it is", cause="lying")
    if suffix in _SUFFIXES and suffix != found:
        raise Refusal(415, f"named .{suffix}, but the bytes are {found}; rename the file", cause="lying")
    return found


def fitting(form: str, kinds: dict[str, Kind]) -> list[str]:
    """The modalities, of those in ``kinds``, that a file of this format can be a query of."""
    if form in IMAGE_FORMATS:
        return [name for name, kind in kinds.items() if kind.is_image]
    shapes = (Kind.POINTS, Kind.MESH) if form != "npy" else (Kind.POINTS, Kind.REGIONS, Kind.VECTOR)
    return [name for name, kind in kinds.items() if kind in shapes]


def examine(data: bytes, form: str, limits: Limits) -> None:
    """Compare what the file promises with what it holds and with the limits; :class:`Refusal` 422 with the reason."""
    try:
        if form in IMAGE_FORMATS:
            _picture(data, form, limits)
        elif form == "npy":
            _array(data, limits)
        elif form == "npz":
            _archive(data, limits)
        else:
            {"ply": _ply, "off": _off, "obj": _obj, "stl": _stl, "glb": _glb}[form](data, limits)
    except (Refusal, InputError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise Refusal(422, f"broken {form} file ({reason})", cause="broken") from error


def _unmarked(data: bytes, suffix: str, declared: str) -> str:
    if suffix == "stl" and len(data) >= 84 and len(data) == 84 + 50 * struct.unpack_from("<I", data, 80)[0]:
        return "stl"
    wanted = suffix == "obj" or declared.partition(";")[0].strip().lower() in TYPES["obj"] - {"text/plain"}
    if wanted and b"\x00" not in data[:_HEADER] and re.search(rb"^v\s+[-+.\d]", data[:_HEADER], re.M):
        return "obj"
    return ""


def _many(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise Refusal(422, f"{count} {what}; this server takes up to {limit}", cause=f"{what.split()[0]}")


def _truncated(what: str, needed: int, there: int) -> None:
    if needed > there:
        raise Refusal(422, f"{what}: the header promises at least {needed} bytes, {there} are there", cause="broken")


def _picture(data: bytes, form: str, limits: Limits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # measured just below, against our own limit
        width, height = Image.open(io.BytesIO(data), formats=[form.upper()]).size
    _many(f"pixels ({width} x {height})", width * height, limits.pixels)


def _array(data: bytes, limits: Limits) -> None:
    shape = shape_of(data)
    _many("rows in the array", shape[0] if shape else 0, limits.points)
    _many("values in the array", int(np.prod(np.array(shape, dtype=object))), limits.array_bytes // 4)


def _archive(data: bytes, limits: Limits) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _many("members in the archive", len(members), MEMBERS)
        _many("bytes when unpacked", sum(member.file_size for member in members), limits.array_bytes)
        for member in members:
            if member.flag_bits & 1:
                raise Refusal(422, "the archive is encrypted; send it in the clear", cause="broken")
            if not member.filename.endswith(".npy"):
                raise Refusal(422, "the archive holds more than arrays; write it with numpy.savez", cause="broken")
            with archive.open(member) as stream:
                head = stream.read(_HEADER)
            shape = shape_of(head)
            _many("rows in an array", shape[0] if shape else 0, max(limits.points, limits.faces))


def _ply(data: bytes, limits: Limits) -> None:
    head, mark, _ = data[:_HEADER].partition(b"end_header")
    if not mark:
        raise Refusal(422, "broken ply file (its header has no end)", cause="broken")
    binary = b"format ascii" not in head
    needed, count, width = 0, 0, 0
    for line in [*head.decode("ascii", "replace").splitlines(), "element end 0"]:
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3:
            needed += count * width
            count, width = int(words[2]), 0
            if count < 0:
                raise Refusal(422, f"broken ply file ({count} of {words[1][:20]})", cause="broken")
            if words[1] in ("vertex", "face"):
                limit = limits.points if words[1] == "vertex" else limits.faces
                _many("points" if words[1] == "vertex" else "faces", count, limit)
            else:
                _many("elements", count, limits.faces)
        elif words[:1] == ["property"] and len(words) >= 3:
            # a list takes at least its own length, a number of an ascii file one digit and one space
            width += (_WIDTHS.get(words[2 if words[1] == "list" else 1], 1)) if binary else 2
    _truncated("broken ply file", needed, len(data) - len(head))


def _off(data: bytes, limits: Limits) -> None:
    lines = (line.partition(b"#")[0].split() for line in data[:_HEADER].splitlines())
    words = [word for line in lines for word in line][:4]
    first = words[0][3:] if words else b""
    numbers = ([first] if first else []) + words[1:]
    if not words or not words[0].startswith(b"OFF") or len(numbers) < 2:
        raise Refusal(422, "broken off file (no counts of vertices and faces)", cause="broken")
    points, faces = int(numbers[0]), int(numbers[1])
    if points < 0 or faces < 0:
        raise Refusal(422, f"broken off file ({points} vertices, {faces} faces)", cause="broken")
    _many("points", points, limits.points)
    _many("faces", faces, limits.faces)
    _truncated("broken off file", 6 * points + 2 * faces, len(data))


def _obj(data: bytes, limits: Limits) -> None:
    _many("points", data.count(b"\nv ") + data.count(b"\nv\t") + data.startswith(b"v "), limits.points)
    _many("faces", data.count(b"\nf ") + data.count(b"\nf\t") + data.startswith(b"f "), limits.faces)


def _stl(data: bytes, limits: Limits) -> None:
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        _many("faces", count, limits.faces)
        return
    if not data.startswith(b"solid") or b"\x00" in data[:_HEADER]:
        raise Refusal(422, f"broken stl file (its header promises {count} faces, {len(data)} bytes)", cause="broken")
    _many("faces", data.count(b"endfacet"), limits.faces)


def _glb(data: bytes, limits: Limits) -> None:
    magic, version, length = struct.unpack_from("<4sII", data)
    size, kind = struct.unpack_from("<I4s", data, 12)
    if magic != b"glTF" or version != 2 or length != len(data) or kind != b"JSON" or 20 + size > len(data):
        raise Refusal(422, "broken glb file (its header does not fit its length)", cause="broken")
    scene = json.loads(data[20 : 20 + size])
    for entry in [*scene.get("buffers", []), *scene.get("images", [])]:
        if "uri" in entry:
            raise Refusal(422, "the glb names other files, which are never followed; embed them", cause="external")
    accessors, nodes = scene.get("accessors", []), scene.get("nodes", [])
    _many("nodes", len(nodes), 16 * MEMBERS)
    children = [child for node in nodes for child in node.get("children", [])]
    if len(set(children)) != len(children):
        raise Refusal(422, "broken glb file (a node has two parents)", cause="broken")
    points, faces = [], []
    for mesh in scene.get("meshes", []):
        parts = mesh.get("primitives", [])
        corners = [int(accessors[part["attributes"]["POSITION"]]["count"]) for part in parts]
        points.append(sum(corners))
        faces.append(
            sum(int(accessors[p["indices"]]["count"]) if "indices" in p else c for p, c in zip(parts, corners))
        )
    used = [node["mesh"] for node in nodes if "mesh" in node]
    _many("points", sum(points[mesh] for mesh in used), limits.points)
    _many("faces", sum(faces[mesh] for mesh in used) // 3, limits.faces)

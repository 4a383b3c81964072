"""Raw bytes to arrays, one modality family a function; the same bytes always give the same array.

The bytes are anybody's. The parsers below raise whatever they stumble over (``TokenError`` from a damaged
NumPy header, ``struct.error``, ``AttributeError``), so every exception while parsing is reported as a
broken file.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from consilience.data.features import decode_regions, decode_vector, is_reference, npy_array, shape_of
from consilience.data.geometry import MESH_COLUMNS, mesh_features, pad_faces, sample_surface
from consilience.data.pictures import IMAGE_FORMATS, Fit, decode_image, open_image, reason
from consilience.data.schema import Kind, Modalities
from consilience.data.text import PADDING, as_text, decode_text, encode, split_spec, tokenizer
from consilience.errors import InputError

ARRAY_FORMATS = ("npy", "npz")
GEOMETRY_FORMATS = ("ply", "off", "obj", "stl", "glb")
MIN_POINTS = 8
MAX_ARRAY_BYTES = 1 << 30
HUGE = 1e100
_ALIASES = {"jpg": "jpeg", "tif": "tiff"}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"ply", "ply"),
    (b"glTF", "glb"),
    (b"OFF", "off"),
    (b"solid", "stl"),
)


@dataclass(frozen=True)
class DecodeConfig:
    """Sizes of the decoded tensors."""

    image_size: int = 28
    """Height and width of images in pixels."""
    n_points: int = 128
    """Points per cloud."""
    n_faces: int = 500
    """Faces per mesh (500 is MeshNet's size for Manifold40)."""
    tokenizer: str = "bytes"
    """How captions become token ids, see :mod:`consilience.data.text`."""
    max_tokens: int = 64
    """Tokens per caption, markers included; longer captions are cut."""
    regions: int = 36
    """Regions per picture (36 is the number of SCAN and its successors)."""
    region_width: int = 2048
    """Width of a region's feature vector."""
    vector_width: int = 128
    """Width of single feature vectors."""
    image_fit: Fit = "cut"
    """How pictures of any size get there: the shorter side is resized and the centre cut out (cut), the longer side is
    resized and black put around (whole), or the centre is cut out at its own scale (centre)."""

    def __post_init__(self) -> None:
        lows = {"image_size": 1, "n_points": MIN_POINTS, "n_faces": 1, "max_tokens": 2}
        for name, low in (lows | dict.fromkeys(("regions", "region_width", "vector_width"), 1)).items():
            if getattr(self, name) < low:
                raise InputError(f"decode.{name} is {getattr(self, name)}; give a number of at least {low}")
        split_spec(self.tokenizer)

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Shape of one decoded sample of ``kind``."""
        if kind.is_image:
            return (3 if kind is Kind.RGB else 1, self.image_size, self.image_size)
        return {
            Kind.POINTS: (self.n_points, 3),
            Kind.MESH: (self.n_faces, MESH_COLUMNS),
            Kind.TEXT: (self.max_tokens,),
            Kind.REGIONS: (self.regions, self.region_width),
            Kind.VECTOR: (self.vector_width,),
        }[kind]


_PROOF = DecodeConfig(image_size=32, n_points=32, n_faces=4096)


def format_of(data: bytes, origin: str = "", kind: Kind | None = None) -> str:
    """The format of raw bytes: by their first bytes, else by the suffix of ``origin``; ``""`` when unknown.
    A caption has no mark of its own: it is ``text`` by its ``kind``. A row of another file is ``reference``."""
    if kind is Kind.TEXT:
        return "text"
    if is_reference(data):
        return "reference"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    suffix = PurePath(origin.split("::")[0]).suffix.lower().lstrip(".")
    suffix = _ALIASES.get(suffix, suffix)
    return suffix if suffix in (*IMAGE_FORMATS, *ARRAY_FORMATS, *GEOMETRY_FORMATS) else ""


def decode_points(data: bytes, origin: str, n: int) -> Float[np.ndarray, "{n} 3"]:
    """A point cloud as float32 [n, 3]: mean 0, farthest point at radius 1.

    Accepts .npy and .npz (``points``, or the only array) with one point a row (columns beyond the third are
    left out; int8 is fixed point, 127 = 1), and .ply, .off, .obj, .stl, .glb: vertices of a cloud, or ``n``
    points drawn uniformly from the surface of a mesh. More than ``n`` points: a random choice of ``n`` in
    their own order; fewer: all, then randomly repeated ones. Randomness is seeded by the bytes, so a sample
    never changes.

    Raises :class:`InputError` for broken data, fewer than 8 points, NaN or infinity, or points that all
    coincide.
    """
    if format_of(data, origin) in ARRAY_FORMATS:
        arrays = _arrays(data)
        if len(arrays) > 1 and "points" not in arrays:
            raise InputError(f"npz without 'points' (it has {', '.join(arrays)}); store the cloud under that name")
        values = arrays["points"] if "points" in arrays else next(iter(arrays.values()))
        if values.ndim != 2 or values.shape[1] < 3 or not _is_number(values):
            raise InputError(f"point array has shape {values.shape} {values.dtype}; expected [points, 3] numbers")
        cloud = values[:, :3].astype(np.float64) / (127 if values.dtype == np.int8 else 1)
    else:
        vertices, faces = _geometry(data, origin)
        if len(faces):
            try:
                cloud = sample_surface(vertices, faces, max(n, MIN_POINTS), _content_rng(data))
            except ValueError as error:
                raise InputError(f"{error}; give a mesh with triangles of some size") from error
        else:
            cloud = vertices
    if len(cloud) < MIN_POINTS:
        raise InputError(f"{len(cloud)} points; a cloud needs at least {MIN_POINTS}")
    if not (np.abs(cloud) < HUGE).all():
        raise InputError("NaN, infinite or huge coordinates; remove those points")
    if len(cloud) > n:
        cloud = cloud[np.sort(_content_rng(data).choice(len(cloud), n, replace=False))]
    elif len(cloud) < n:
        repeated = _content_rng(data).integers(0, len(cloud), n - len(cloud))
        cloud = np.concatenate([cloud, cloud[repeated]])
    cloud = cloud - cloud.mean(0)
    radius = np.linalg.norm(cloud, axis=1).max()
    if not radius > 0:
        raise InputError("all points coincide; a cloud needs an extent")
    return np.asarray(cloud / radius, dtype=np.float32)


def decode_mesh(data: bytes, origin: str, faces: int) -> Float[np.ndarray, "{faces} 18"]:
    """A triangle mesh as float32 [faces, 18], see :attr:`Kind.MESH` and :func:`geometry.mesh_features`.

    Accepts .ply, .off, .obj, .stl, .glb, and MeshNet's .npz: ``faces`` [F, 15] (centre 3, corners 9
    absolute or relative to the centre, normal 3) with ``neighbors`` [F, 3], or their older names ``face``
    and ``neighbor_index``; coordinates of an .npz are kept as they are. Raises :class:`InputError` for
    broken data, a file without triangles, and an .npz with more than ``faces`` faces.
    """
    rng = _content_rng(data)
    if format_of(data, origin) in ARRAY_FORMATS:
        return _meshnet_npz(_arrays(data), faces, rng)
    vertices, triangles = _geometry(data, origin)
    if not len(triangles):
        raise InputError("no triangles; import it as points instead (kind points)")
    if not (np.abs(vertices) < HUGE).all():
        raise InputError("NaN, infinite or huge coordinates; repair the mesh")
    try:
        features: np.ndarray = mesh_features(vertices, triangles, faces, rng)
        return features
    except ValueError as error:
        raise InputError(f"{error}; give a mesh with triangles of some size") from error


def decode(data: bytes, kind: Kind, origin: str, config: DecodeConfig) -> np.ndarray:
    """One sample as an array of shape ``config.shape(kind)`` and of numpy's counterpart of ``kind.dtype``."""
    if kind.is_image:
        return decode_image(data, kind, config.image_size, config.image_fit)
    if kind is Kind.TEXT:
        return decode_text(data, config.tokenizer, config.max_tokens)
    if kind is Kind.REGIONS:
        return decode_regions(data, config.regions, config.region_width)
    if kind is Kind.VECTOR:
        return decode_vector(data, config.vector_width)
    if kind is Kind.POINTS:
        return decode_points(data, origin, config.n_points)
    return decode_mesh(data, origin, config.n_faces)


def measure(data: bytes, kind: Kind, origin: str) -> tuple[int, ...]:
    """Size before decoding: (height, width) of a picture as stored, (points,) of a cloud, (faces,) of a
    mesh, (characters,) of a caption, (regions, width) and (width,) of features; a mesh that is read as a cloud
    counts its vertices. Raises :class:`InputError` like the decoding functions."""
    if kind.is_image:
        picture = open_image(data)
        return picture.height, picture.width
    if kind is Kind.TEXT:
        return (len(as_text(data)),)
    if kind in (Kind.REGIONS, Kind.VECTOR):
        return shape_of(data)
    if format_of(data, origin) in ARRAY_FORMATS:
        arrays = _arrays(data)
        names = ("points",) if kind is Kind.POINTS else ("faces", "face")
        array = next((arrays[name] for name in names if name in arrays), next(iter(arrays.values())))
        return (len(array) if array.ndim else 0,)
    vertices, faces = _geometry(data, origin)
    return (len(vertices),) if kind is Kind.POINTS else (len(faces),)


def prove(data: bytes, kind: Kind, origin: str, spec: str) -> tuple[int, ...]:
    """Decode a sample whatever its size, as the proof that it can be read, and return that size: (tokens,) of
    a caption under the tokenizer ``spec``, else as :func:`measure`. Raises :class:`InputError` if it cannot."""
    if kind is Kind.TEXT:
        return (len(encode(data, spec, tokenizer(spec))),)
    size = measure(data, kind, origin)
    if kind in (Kind.REGIONS, Kind.VECTOR):
        if 0 in size:
            raise InputError(f"feature array has shape {size}; it holds no values")
        if kind is Kind.REGIONS:
            decode_regions(data, *(size if len(size) == 2 else (1, 1)))
        else:
            decode_vector(data, size[0] if size else 1)
    else:
        decode(data, kind, origin, _PROOF)
    return size


def decode_batch(
    rows: pa.Table, modalities: Modalities, config: DecodeConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values [b, ...] and presence masks bool [b] of ``rows`` (columns ``id``, and per modality its bytes and
    ``origin_<modality>``). A missing sample is zeros, a missing caption padding (-1). Raises
    :class:`InputError` naming the sample."""
    values: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}
    for name, kind in modalities.items():
        origins = rows[f"origin_{name}"]
        empty = PADDING if kind is Kind.TEXT else 0
        values[name] = torch.full((rows.num_rows, *config.shape(kind)), empty, dtype=kind.dtype)
        present[name] = torch.zeros(rows.num_rows, dtype=torch.bool)
        out, mask = values[name].numpy(), present[name].numpy()
        for position, (data, origin) in enumerate(zip(rows[name].to_pylist(), origins.to_pylist(), strict=True)):
            if data is None:
                continue
            try:
                out[position] = decode(data, kind, origin or "", config)
            except InputError as error:
                place = f"sample {rows['id'][position].as_py()!r}, {name} from {origin or 'nowhere'}"
                raise InputError(f"{place}: {error}") from error
            mask[position] = True
    return values, present


def _content_rng(data: bytes) -> np.random.Generator:
    seed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return np.random.default_rng(seed)


def _is_number(values: np.ndarray) -> bool:
    return bool(np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating))


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .npy (under ``array``) or .npz; pickled objects and oversized claims are refused."""
    if data.startswith(b"\x93NUMPY"):
        return {"array": npy_array(data)}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if sum(entry.file_size for entry in members) > MAX_ARRAY_BYTES:
                raise ValueError(f"more than {MAX_ARRAY_BYTES} bytes when unpacked")
            raw = {entry.filename.removesuffix(".npy"): archive.read(entry) for entry in members}
    except Exception as error:
        raise InputError(f"broken NumPy file ({reason(error)}); repair or remove it") from error
    if not raw:
        raise InputError("npz without arrays; store the sample with numpy.savez")
    return {name: npy_array(array) for name, array in raw.items()}


def _geometry(data: bytes, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [v, 3] and triangles int64 [f, 3] (none for a cloud) of a geometry file."""
    kind = format_of(data, origin)
    if kind not in GEOMETRY_FORMATS:
        known = ", ".join((*ARRAY_FORMATS, *GEOMETRY_FORMATS))
        raise InputError(f"{'empty file' if not data else 'unknown 3-D format'}; expected one of {known}")
    import trimesh  # takes a second, and most data sets have no geometry files

    try:
        loaded = trimesh.load(io.BytesIO(data), file_type=kind, process=False)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_geometry()
        vertices = np.asarray(loaded.vertices, dtype=np.float64)
        faces = np.asarray(getattr(loaded, "faces", np.zeros((0, 3))), dtype=np.int64).reshape(-1, 3)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise ValueError("no vertices")
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError("a face names a vertex that is not there")
    except Exception as error:
        raise InputError(f"broken {kind} file ({reason(error)}); repair or remove it") from error
    return vertices, faces


def _meshnet_npz(arrays: Mapping[str, np.ndarray], n_faces: int, rng: np.random.Generator) -> np.ndarray:
    rows, neighbours = (
        arrays.get("faces", arrays.get("face")),
        arrays.get("neighbors", arrays.get("neighbor_index")),
    )
    if rows is None or neighbours is None:
        raise InputError(f"npz has {', '.join(arrays)}; a mesh needs faces [F, 15] and neighbors [F, 3]")
    if rows.ndim != 2 or rows.shape[1] != 15 or neighbours.shape != (len(rows), 3) or not len(rows):
        raise InputError(f"faces {rows.shape} and neighbors {neighbours.shape}; expected [F, 15] and [F, 3]")
    if len(rows) > n_faces:
        raise InputError(f"{len(rows)} faces in the npz; set decode.n_faces to at least that (it is {n_faces})")
    rows = rows.astype(np.float64)
    if not (np.abs(rows) < HUGE).all() or neighbours.min() < 0 or neighbours.max() >= len(rows):
        raise InputError("NaN, infinity or a neighbour that is not there; write the npz again")
    centres, corners, normals = rows[:, :3], rows[:, 3:12].reshape(-1, 3, 3), rows[:, 12:]
    tolerance = 1e-3 * max(1.0, float(np.abs(centres).max()))
    if np.abs(corners.mean(1) - centres).max() > tolerance:
        if np.abs(corners.mean(1)).max() > tolerance:
            raise InputError("the corners fit the centres neither as absolute nor as relative positions")
        corners = corners + centres[:, None]
    return pad_faces(corners, normals, neighbours, n_faces, rng)

"""Uploads that mean harm, built by hand."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, pixels: bytes | None = None) -> bytes:
    """A grey PNG that promises a size; ``more``: chunks before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"\x00" * (width + 1) * height) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pixel_bomb() -> bytes:
    return png(60_000, 60_000, pixels=zlib.compress(b"\x00" * 1000))


def text_bomb() -> bytes:
    """16 MB of text in 16 KB of a PNG's compressed text chunk."""
    return png(12, 12, chunk(b"zTXt", b"comment\x00\x00" + zlib.compress(b"a" * (16 << 20))))


def archive_bomb(megabytes: int) -> bytes:
    """An .npz whose one member unpacks to zeros."""
    stream = io.BytesIO()
    np.savez_compressed(stream, points=np.zeros((megabytes << 17, 1)))
    return stream.getvalue()


def archive_that_lies(size: int) -> bytes:
    """An .npz whose directory promises ``size`` bytes for a small member."""
    stream = io.BytesIO()
    np.savez(stream, points=np.zeros((10, 3)))
    data = bytearray(stream.getvalue())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, entry + 24, size)
    return bytes(data)


def archive_of_many(count: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.npy", b"")
    return stream.getvalue()


def archive_upwards() -> bytes:
    """An .npz with a member that would be written outside, if anything were written."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../../tmp/consilience-was-here.npy", b"x")
    return stream.getvalue()


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def pickled_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Harm(), Harm()], dtype=object), allow_pickle=True)
    return stream.getvalue()


def bare_pickle() -> bytes:
    return pickle.dumps(Harm())


def npy_header(shape: str) -> bytes:
    """A .npy that promises ``shape`` and holds nothing."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def ply(points: object, faces: object, body: bytes = b"", form: str = "ascii") -> bytes:
    return (
        f"ply\nformat {form} 1.0\nelement vertex {points}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode() + body


def box_ply(third: str = "0 0 1", face: str = "3 0 1 2") -> bytes:
    """A tetrahedron, of which one vertex and one face can be replaced."""
    body = f"0 0 0\n1 0 0\n0 1 0\n{third}\n{face}\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    return ply(4, 4, body.encode())


def many_faces(count: int) -> bytes:
    """A binary .ply of ``count`` triangles that share nothing: sound, but work."""
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(3 * count, 3)).astype("<f4")
    faces = np.empty(count, dtype=[("n", "u1"), ("v", "<i4", 3)])
    faces["n"], faces["v"] = 3, np.arange(3 * count).reshape(-1, 3)
    return ply(3 * count, count, corners.tobytes() + faces.tobytes(), "binary_little_endian")


def glb(scene: dict[str, object]) -> bytes:
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def stl(faces: int, promised: int) -> bytes:
    return b"\x00" * 80 + struct.pack("<I", promised) + b"\x00" * 50 * faces

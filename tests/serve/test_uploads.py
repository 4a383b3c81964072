"""Uploads that lie or mean harm get a 4xx with a reason, and the server goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from consilience.data.features import reference
from consilience.data.schema import Kind
from consilience.serve.limits import Limits, Refusal
from consilience.serve.uploads import identify, suffix_of
from tests.cli import tiny
from tests.serve import attacks
from tests.serve.conftest import Served, Start, npy

OBJ = b"mtllib %s\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\nusemtl x\n"


def send(client: TestClient, data: bytes, name: str = "x", kind: str = "application/octet-stream", **more: Any) -> Any:
    return client.post("/api/search", files={"file": (name, data, kind)}, data={"k": 3, **more})


def refused(client: TestClient, status: int, *words: Any, **more: Any) -> str:
    """The reason of a refusal; a sound request after it is answered."""
    answer = send(client, *words, **more)
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert set(content) == {"error", "status"}
    assert content["status"] == status
    assert "\n" not in content["error"]
    assert "Traceback" not in content["error"]
    healthy = send(client, tiny.png(1))
    assert healthy.status_code == 200
    assert len(healthy.json()["hits"]) == 3
    return str(content["error"])


BROKEN = {
    "pixel bomb": (attacks.pixel_bomb(), "x.png", "pixels"),
    "text chunk bomb": (attacks.text_bomb(), "x.png", ""),
    "cut png": (tiny.png(0)[:60], "x.png", "broken"),
    "jpeg of nothing": (b"\xff\xd8\xff\xe0" + b"\x00" * 50, "x.jpg", "broken"),
    "lying archive": (attacks.archive_that_lies(2**31 - 1), "x.npz", "bytes when unpacked"),
    "crowded archive": (attacks.archive_of_many(200), "x.npz", "members"),
    "archive that climbs": (attacks.archive_upwards(), "x.npz", ""),
    "cut archive": (attacks.archive_of_many(3)[:-10], "x.npz", "broken"),
    "pickled array": (attacks.pickled_npy(), "x.npy", "objects"),
    "huge array": (attacks.npy_header("(4000000000, 3)"), "x.npy", "rows"),
    "deep array": (attacks.npy_header("(2, 100000, 100000, 100000)"), "x.npy", "values"),
    "cut array": (attacks.npy_header("(1000, 3)"), "x.npy", "broken"),
    "array header of code": (attacks.npy_header("(__import__('os').getpid(), 3)"), "x.npy", "broken"),
    "flat array": (npy(np.zeros(9)), "x.npy", "shape"),
    "array of NaN": (npy(np.full((20, 3), np.nan)), "x.npy", "NaN"),
    "array of words": (npy(np.array([["a", "b", "c"]] * 9)), "x.npy", "numbers"),
    "too many vertices": (attacks.ply(4_000_000_000, 1), "x.ply", "points"),
    "vertices that are not there": (attacks.ply(1_000_000, 1), "x.ply", "promises"),
    "negative count": (attacks.ply(-5, 1), "x.ply", "broken"),
    "count that is no number": (attacks.ply("many", 1), "x.ply", "broken"),
    "too many faces": (attacks.ply(3, 10**12, form="binary_little_endian"), "x.ply", "faces"),
    "header without end": (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 20000, "x.ply", "header"),
    "vertex of NaN": (attacks.box_ply(third="nan nan nan"), "x.ply", ""),
    "infinite vertex": (attacks.box_ply(third="inf 0 0"), "x.ply", ""),
    "face out of range": (attacks.box_ply(face="3 0 1 77"), "x.ply", "vertex that is not there"),
    "negative face": (attacks.box_ply(face="3 0 1 -2"), "x.ply", ""),
    "off counts": (b"OFF\n2000000000 5 0\n0 0 0\n", "x.off", "points"),
    "off promises": (b"OFF\n100000 5 0\n0 0 0\n", "x.off", "promises"),
    "off without counts": (b"OFF\n", "x.off", "counts"),
    "off of words": (b"OFF one two three\n", "x.off", "broken"),
    "stl of words": (b"solid x\nfacet normal 0 0 1\nouter loop\nvertex a b c\n" * 5, "x.stl", "points"),
    "glb beyond": (b"glTF" + b"\x02\x00\x00\x00\xff\xff\xff\x00" + b"\x00" * 30, "x.glb", "length"),
    "glb elsewhere": (
        attacks.glb({"buffers": [{"uri": "file:///etc/passwd", "byteLength": 4}]}),
        "x.glb",
        "other files",
    ),
    "glb that branches": (
        attacks.glb({"nodes": [{"children": [1, 1]}, {"mesh": 0}], "meshes": [{"primitives": []}]}),
        "x.glb",
        "two parents",
    ),
    "glb of promises": (
        attacks.glb(
            {
                "accessors": [{"count": 10**11}],
                "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
                "nodes": [{"mesh": 0}],
            }
        ),
        "x.glb",
        "points",
    ),
    "glb without sense": (attacks.glb({"meshes": [{"primitives": [{}]}]}), "x.glb", "broken"),
    "obj without shape": (b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "x.obj", ""),
    "obj out of range": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 900\n", "x.obj", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_harmful_files(client: TestClient, name: str) -> None:
    data, file, reason = BROKEN[name]
    assert reason in refused(client, 422, data, file)


LYING = {
    "html": (b"<html><script>alert(1)</script>", "x.html", "text/html"),
    "html as png": (b"<html><script>alert(1)</script>", "x.png", "image/png"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "x.svg", "image/svg+xml"),
    "png as model": (tiny.png(0), "x.png", "model/obj"),
    "png as jpeg": (tiny.png(0), "x.png", "image/jpeg"),
    "png named ply": (tiny.png(0), "x.ply", "application/octet-stream"),
    "ply named png": (attacks.box_ply(), "x.png", "application/octet-stream"),
    "ply as picture": (attacks.box_ply(), "x.ply", "image/png"),
    "bare pickle": (attacks.bare_pickle(), "x.npy", "application/octet-stream"),
    "elf": (b"\x7fELF" + b"\x00" * 60, "x", "application/octet-stream"),
    "gzip": (b"\x1f\x8b\x08" + b"\x00" * 60, "x.ply.gz", "application/gzip"),
    "stl of another length": (attacks.stl(2, 4_000_000_000), "x.stl", "application/octet-stream"),
    "words named obj": (b"hello there\n" * 9, "x.obj", "model/obj"),
    "pdf": (b"%PDF-1.7\n", "x.pdf", "application/pdf"),
}


@pytest.mark.parametrize("name", LYING)
def test_lying_types(client: TestClient, name: str) -> None:
    refused(client, 415, *LYING[name])


def test_an_empty_file(client: TestClient) -> None:
    assert "empty" in refused(client, 422, b"")


def test_a_reference_to_a_file_of_the_server_is_not_followed(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "secret.npy"
    np.save(path, np.ones((4, 3), np.float32))
    assert "never followed" in refused(client, 415, reference(path, 0), "x.npy")


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "C:\\evil\\..\\x", "a" * 3000, "x\u202e.png", "\x00"]
)
def test_a_file_name_is_never_a_path(client: TestClient, name: str) -> None:
    answer = send(client, tiny.png(0), name)
    assert answer.status_code == 200
    assert "passwd" not in answer.text
    assert not Path("/tmp/consilience-was-here.npy").exists()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes to: whoever opens it hangs."""
    path = tmp_path / "material.mtl"
    os.mkfifo(path)
    yield path
    path.unlink()


def test_material_files_are_not_opened(start: Start, served: Served, trap: Path) -> None:
    client = start(served, Limits(decode_seconds=5.0))
    answer = send(client, OBJ % str(trap).encode(), "x.obj", modality="points")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("form", ["npy", "npz", "ply", "off", "obj", "stl", "glb"])
def test_every_format_is_taken(client: TestClient, form: str) -> None:
    answer = send(client, tiny.shape_file(4, form), f"shape.{form.upper()}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["queries"][0] == {"kind": "file", "modality": "points", "format": form, "weight": 1.0}
    shape = client.post("/api/geometry", files={"file": (f"x.{form}", tiny.shape_file(4, form))})
    assert shape.content[:4] == (b"PNTS" if form in ("npy", "npz", "ply") else b"TRIS")
    count = int.from_bytes(shape.content[4:8], "little")
    width = 3 if shape.content[:4] == b"PNTS" else 9
    numbers = np.frombuffer(shape.content, "<f4", offset=8).reshape(count, width)
    assert 0.9 < np.linalg.norm(numbers.reshape(-1, 3), axis=1).max() < 1.0001


def test_limits_of_a_server(start: Start, served: Served) -> None:
    limits = Limits(upload_bytes=300_000, pixels=200, points=50, faces=20, array_bytes=100_000, k=5, files=2)
    client = start(served, limits)

    def healthy() -> None:
        answer = client.post("/api/search", files={"file": ("x", tiny.png(1))}, data={"k": 3})
        assert answer.status_code == 200

    def fails(data: bytes, name: str, status: int, reason: str) -> None:
        answer = send(client, data, name)
        assert (answer.status_code, reason in answer.text) == (status, True), answer.text
        healthy()

    fails(attacks.png(20, 20), "x.png", 422, "400 pixels")
    fails(npy(np.zeros((51, 3), np.float32)), "x.npy", 422, "51 rows")
    fails(attacks.archive_bomb(1), "x.npz", 422, "bytes when unpacked")
    fails(attacks.many_faces(21), "x.ply", 422, "points")
    fails(b"\x00" * 400_000, "x", 413, "larger than 300000 bytes")
    many = client.post("/api/search", files=[("file", (str(i), tiny.png(i))) for i in range(3)])
    assert many.status_code in (400, 422)
    answer = send(client, tiny.png(0), k=6)
    assert (answer.status_code, "up to 5 results" in answer.text) == (422, True)
    healthy()


def test_a_body_of_unknown_length_is_counted(start: Start, served: Served) -> None:
    client = start(served, Limits(upload_bytes=100_000))

    def parts() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(20):
            yield b"\x00" * 10_000
        yield b"\r\n--b--\r\n"

    answer = client.post("/api/search", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413


def test_decoding_that_takes_too_long_is_ended(start: Start, served: Served) -> None:
    client = start(served, Limits(decode_seconds=0.4, decoders=1))
    assert "longer than 0.4 s" in refused(client, 422, attacks.many_faces(600_000), "x.ply")


def test_decoding_that_takes_too_much_memory_is_ended(start: Start, served: Served) -> None:
    client = start(served, Limits(decode_bytes=48 << 20, decoders=1))
    reason = refused(client, 422, attacks.many_faces(300_000), "x.ply")
    assert "memory" in reason or "allocate" in reason or "decoder" in reason


def test_a_decoder_that_died_is_replaced(client: TestClient) -> None:
    decoder = client.app.state.service.decoder  # type: ignore[attr-defined]
    for process in list(decoder._all):
        process.kill()
        process.join()
    assert send(client, tiny.png(2)).status_code == 200


def test_a_cloud_is_no_picture(client: TestClient) -> None:
    assert "points is points" in refused(client, 415, tiny.png(0), modality="points")
    assert "no modality 'text'" in refused(client, 422, tiny.png(0), modality="text")


def test_text_comes_as_words(start: Start, captions: Served) -> None:
    client = start(captions, Limits(characters=20))
    assert "words, not a file" in refused(client, 415, b"a round ball", "x.txt", "text/plain", modality="text")
    assert "no file" in client.post("/api/search", files={"text": ("x.txt", b"a round ball")}).json()["error"]
    for words, reason in (("x" * 21, "21 letters"), (" ", "empty")):
        answer = client.post("/api/search", json={"text": words})
        assert (answer.status_code, reason in answer.text) == (422, True)
    found = client.post("/api/search", data={"text": "a round ball", "k": 4, "into": "image"}).json()
    assert [hit["modality"] for hit in found["hits"]] == ["image"] * 4


def test_names_and_marks() -> None:
    assert [suffix_of(n) for n in ("a/b.PLY", "x.jpg", "..", "", "a.b/c", "C:\\x.tif")] == [
        "ply",
        "jpeg",
        "",
        "",
        "",
        "tiff",
    ]
    assert identify(tiny.png(0), "", "whatever") == "png"
    assert identify(tiny.png(0), "image/png; charset=binary", "x.PNG") == "png"
    with pytest.raises(Refusal):
        identify(b"v 1 2 3\n", "", "")  # an .obj has no mark of its own
    assert identify(b"# c\nv 1 2 3\n", "model/obj", "") == "obj"
    assert Kind.POINTS.value == "points"

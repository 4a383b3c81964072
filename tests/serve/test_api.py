"""Routes in this process: search, items, the map, the review, keys, metrics, limits on concurrency and time."""

from __future__ import annotations

import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from consilience.data.review import Review
from consilience.data.table import Table
from consilience.search.query import Query
from consilience.serve.guard import HEADERS
from consilience.serve.items import where_of
from consilience.serve.limits import Limits
from tests.cli import tiny
from tests.serve.conftest import ADDRESS, Served, Start

KEY = "a-key-of-some-length"


def ask(client: TestClient, *files: bytes, **fields: Any) -> dict[str, Any]:
    answer = client.post("/api/search", files=[("file", ("x", data)) for data in files], data=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def fails(client: TestClient, status: int, **fields: Any) -> str:
    answer = client.post("/api/search", files={"file": ("x", tiny.png(0))}, data=fields)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


def test_search_gives_what_the_searcher_gives(client: TestClient, served: Served) -> None:
    searcher = served.searcher()
    vector = searcher.encode([Query("image", tiny.png(7))])
    for fields, into in (
        ({}, None),
        ({"into": "points"}, ["points"]),
        ({"into": ["points", "image"]}, ["points", "image"]),
    ):
        (wanted,) = searcher.search(vector, into=into, k=5)
        found = ask(client, tiny.png(7), k=5, **fields)["hits"]
        assert [(hit["index"], hit["modality"], hit["rank"]) for hit in found] == [
            (hit.index, hit.modality, hit.rank) for hit in wanted
        ]
        np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in wanted], atol=1e-5)


def test_filters(client: TestClient) -> None:
    found = ask(client, tiny.png(0), k=100, into="image", split="test")["hits"]
    assert {hit["split"] for hit in found} == {"test"}
    found = ask(client, tiny.png(0), k=100, into="image", label=["rod", "plate"])["hits"]
    assert {hit["label"] for hit in found} == {"rod", "plate"}
    found = ask(client, tiny.png(0), k=100, into="image", label="rod", split="train")["hits"]
    assert len(found) == 16
    assert ask(client, tiny.png(0), label="' or 1=1 --")["hits"] == []
    assert ask(client, tiny.png(0), label="rod'; drop table samples")["hits"] == []


def test_filters_as_sql() -> None:
    assert where_of([], []) is None
    assert where_of(["a"], ["b'c", "d"]) == "split in ('a') and label in ('b''c', 'd')"


def test_each_modality_can_be_given_its_own_results(client: TestClient) -> None:
    found = ask(client, tiny.png(1), k=4, each="true")["hits"]
    assert [hit["modality"] for hit in found] == ["image"] * 4 + ["points"] * 4
    assert found[4:] == ask(client, tiny.png(1), k=4, into="points")["hits"]


def test_several_queries_are_fused(client: TestClient, served: Served) -> None:
    searcher = served.searcher()
    cloud = tiny.shape_file(3, "npy")
    vector = searcher.fuse([Query("image", tiny.png(1), 3.0), Query("points", cloud, 1.0)])
    wanted = searcher.search(vector[None], into=["image"], k=6)[0]
    found = client.post(
        "/api/search",
        files=[("file", ("x", tiny.png(1))), ("file", ("x.npy", cloud))],
        data={"weight": ["3", "1"], "k": 6, "into": "image"},
    ).json()
    assert [hit["index"] for hit in found["hits"]] == [hit.index for hit in wanted]
    assert [(query["modality"], query["weight"]) for query in found["queries"]] == [("image", 3.0), ("points", 1.0)]


def test_stored_rows_are_queries(client: TestClient) -> None:
    body = {"like": [{"index": 4, "modality": "image"}, {"index": 9, "modality": "points", "weight": 0.5}], "k": 3}
    one = client.post("/api/search", json=body).json()
    two = client.post("/api/search", data={"like": ["4:image", "9:points:0.5"], "k": 3}).json()
    assert one["hits"] == two["hits"]
    assert (
        client.post("/api/search", json={"like": [{"index": 4, "modality": "image"}]}).json()["hits"][0]["index"] == 4
    )
    assert client.post("/api/search", json={"like": [{"index": 400, "modality": "image"}]}).status_code == 404


def test_text_finds_pictures(start: Start, captions: Served) -> None:
    client = start(captions)
    searcher = captions.searcher()
    wanted = searcher.search(searcher.encode([Query("text", "a flat plate")]), into=["image"], k=5)[0]
    found = client.post("/api/search", json={"text": "a flat plate", "into": ["image"], "k": 5}).json()["hits"]
    assert [hit["index"] for hit in found] == [hit.index for hit in wanted]
    (hit,) = client.post("/api/search", json={"text": "a flat plate", "into": ["text"], "k": 1}).json()["hits"]
    assert hit["text"] == "a flat plate"


def test_text_where_the_run_knows_none(client: TestClient) -> None:
    answer = client.post("/api/search", json={"text": "a rod"})
    assert (answer.status_code, "knows no text" in answer.text) == (422, True)


def test_parameters_are_checked(client: TestClient) -> None:
    assert "up to 200" in fails(client, 422, k=201)
    assert "greater than or equal to 1" in fails(client, 422, k=0)
    assert "k: " in fails(client, 422, k="many")
    assert "there are image, points" in fails(client, 422, into="sound")
    assert "by: " in fails(client, 422, by="magic")
    assert "no codes" in fails(client, 422, by="code", into="image")
    assert "colour: " in fails(client, 422, colour="red")
    assert "given 2 times" in fails(client, 422, k=["1", "2"])
    assert "weight" in fails(client, 422, weight="-1")
    assert "weight" in fails(client, 422, weight="nan")
    assert "2 of weight for 1 files" in fails(client, 422, weight=["1", "2"])
    assert "like" in fails(client, 422, like="x:image")
    ask(client, tiny.png(0))


@pytest.mark.parametrize(
    ("content", "media", "status"),
    [
        (b"{", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"[]", "application/json", 422),
        (b'{"k": "\xff"}', "application/json", 422),
        (b'{"where": "1=1"}', "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"like": [{"index": 1e400, "modality": "image"}]}', "application/json", 422),
        (b'{"like": [{"index": 99999999999999999999999, "modality": "image"}]}', "application/json", 404),
        (b"x", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=zzz", 400),
    ],
)
def test_bodies_that_make_no_sense(client: TestClient, content: bytes, media: str, status: int) -> None:
    answer = client.post("/api/search", content=content, headers={"content-type": media})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "status"}


def test_items(client: TestClient, served: Served) -> None:
    facts = client.get("/api/items/7").json()
    assert (facts["id"], facts["label"], facts["split"]) == ("s7", tiny.label(7), "train")
    assert set(facts["modalities"]) == {"image", "points", "text"}
    assert not facts["modalities"]["image"]["origin"].startswith("/")
    assert client.get("/api/items/99").status_code == 404
    assert client.get("/api/items/99999999999999999999999").status_code == 404
    assert client.get("/api/items/x").status_code == 422
    assert client.get("/api/items/..%2f..%2fetc").status_code in (404, 422)
    some = client.get("/api/items", params={"k": 5, "label": "rod"}).json()["items"]
    assert len(some) == 5
    assert {item["label"] for item in some} == {"rod"}
    assert client.get("/api/items", params={"k": 500}).status_code == 422


def test_raw_bytes_have_a_safe_type(client: TestClient) -> None:
    picture = client.get("/api/items/7/image")
    assert (picture.content, picture.headers["content-type"]) == (tiny.png(7), "image/png")
    assert picture.headers["content-disposition"] == 'inline; filename="7-image.png"'
    form = tiny.SHAPES[7 % len(tiny.SHAPES)]
    shape = client.get("/api/items/7/points")
    assert shape.headers["content-type"] == "application/octet-stream"
    assert shape.headers["content-disposition"] == f'attachment; filename="7-points.{form}"'
    words = client.get("/api/items/7/text")
    assert words.headers["content-type"] == "text/plain; charset=utf-8"
    for answer in (picture, shape, words):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    for path in ("7/sound", "7/origin_image", "7/id", "99/image"):
        assert client.get(f"/api/items/{path}").status_code == 404


def test_thumbnails_and_words(client: TestClient) -> None:
    for modality in ("image", "points"):
        answer = client.get(f"/api/items/7/{modality}/thumbnail")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).format == "PNG"
        assert client.get(f"/api/items/7/{modality}/thumbnail").content == answer.content
    assert client.get("/api/items/7/text/thumbnail").status_code == 404
    assert client.get("/api/items/7/text/text").json() == {"text": "a flat plate"}


def test_shapes(client: TestClient, start: Start, meshes: Served) -> None:
    for index in range(8):
        shape = client.get(f"/api/geometry/{index}/points").content
        cloud = tiny.SHAPES[index % 7] in ("npy", "npz", "ply")
        assert shape[:4] == (b"PNTS" if cloud else b"TRIS")
        count = int.from_bytes(shape[4:8], "little")
        assert len(shape) == 8 + count * (12 if cloud else 36)
        if not cloud:
            assert count == 12  # a box
    assert client.get("/api/geometry/1/image").status_code == 404
    assert start(meshes).get("/api/geometry/0/points").content[:4] == b"TRIS"


def test_similar(client: TestClient, served: Served) -> None:
    found = client.get("/api/items/7/similar", params={"modality": "image", "into": "points", "k": 4}).json()
    wanted = served.searcher().similar(7, "image", into=["points"], k=4)
    assert [hit["index"] for hit in found["hits"]] == [hit.index for hit in wanted]
    assert 7 not in [hit["index"] for hit in found["hits"]]
    assert client.get("/api/items/7/similar", params={"modality": "text"}).status_code == 422
    assert client.get("/api/items/99/similar").status_code == 404
    assert client.get("/api/items/7/similar", params={"k": 0}).status_code == 422


def test_embed(client: TestClient, served: Served) -> None:
    found = client.post("/api/embed", files={"file": ("x", tiny.png(2))}).json()
    wanted = served.searcher().encode([Query("image", tiny.png(2))])[0]
    np.testing.assert_allclose(found["vectors"][0]["vector"], wanted, atol=1e-6)
    assert found["encoder"] == served.searcher().fingerprint
    assert client.post("/api/embed", json={}).status_code == 422


def test_facets(client: TestClient) -> None:
    facets = client.get("/api/facets").json()
    assert facets["rows"] == 60
    assert facets["split"] == {"test": 12, "train": 48}
    assert facets["label"] == {"ball": 20, "plate": 20, "rod": 20}
    assert facets["modalities"]["image"] == {"kind": "grey", "searchable": True, "coded": False}
    assert facets["modalities"]["text"]["searchable"] is False
    assert facets["queries"] == {"image": "grey", "points": "points"}
    assert facets["by"] == ["vector"]


def test_codes(start: Start, copied: Served) -> None:
    from consilience.embedding.hashing import hash_columns

    hash_columns(copied.run, Table.open(copied.path), bits=32)
    client = start(copied)
    assert client.get("/api/facets").json()["by"] == ["vector", "code"]
    searcher = copied.searcher()
    vector = searcher.encode([Query("image", tiny.png(7))])
    for rerank in (0, 20):
        wanted = searcher.search(vector, into=["points"], k=5, by="code", rerank=rerank)[0]
        found = ask(client, tiny.png(7), k=5, into="points", by="code", rerank=rerank)
        assert [hit["index"] for hit in found["hits"]] == [hit.index for hit in wanted]


def test_the_map_is_made_once(start: Start, copied: Served) -> None:
    client = start(copied)
    assert client.get("/api/map").json()["state"] == "making"
    deadline = time.monotonic() + 60
    while (found := client.get("/api/map", params={"modality": "points"}).json())["state"] == "making":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found["state"] == "ready"
    assert sorted(found["index"]) == list(range(60))
    assert max(map(abs, found["x"] + found["y"])) <= 1
    assert {"map_image", "map_points"} <= set(Table.open(copied.path).columns)
    few = client.get("/api/map", params={"limit": 7}).json()
    assert len(few["index"]) <= 7
    assert few["rows"] == 60
    assert client.get("/api/map", params={"modality": "text"}).status_code == 404


def test_review(start: Start, copied: Served) -> None:
    client = start(copied)
    found = client.get("/api/review").json()
    assert [suspect["index"] for suspect in found["suspects"]] == [3, 4, 5, 6, 7, 8]
    assert found["suspects"][0]["better"] == 6
    assert found["counts"]["open"] == 6

    def decide(**body: Any) -> Any:
        return client.post("/api/review", json=body)

    assert decide(index=3, decision="re-pair", partner=6).json()["counts"]["re-pair"] == 1
    assert decide(index=4, decision="drop").json()["counts"]["open"] == 4
    assert decide(index=4, decision="keep").json()["counts"]["drop"] == 0
    assert client.post("/api/review/undo").json()["suspect"]["decision"] == "drop"
    assert [suspect.decision for suspect in Review.open(Table.open(copied.path)).queue(3)] == ["re-pair", "drop", None]
    assert (
        client.get("/api/review", params={"open_only": True, "limit": 2, "offset": 1}).json()["suspects"][0]["index"]
        == 6
    )
    assert client.get("/api/review/counts").json()["suspects"] == 6
    for body, status in (
        ({"index": 99, "decision": "keep"}, 404),
        ({"index": 4, "decision": "burn"}, 422),
        ({"index": 4, "decision": "re-pair"}, 422),
        ({"index": 4, "decision": "re-pair", "partner": 4}, 422),
        ({"index": 4, "decision": "re-pair", "partner": 400}, 422),
        ({"index": 4, "decision": "keep", "partner": 5}, 422),
        ({"decision": "keep"}, 422),
    ):
        answer = decide(**body)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "status"}), answer.text
    form = client.post("/api/review", data={"index": 4, "decision": "keep"})
    assert form.status_code == 415  # what a form of a foreign page could send


def test_decisions_are_settled_at_the_end(copied: Served) -> None:
    from consilience.serve.app import create_app

    with TestClient(create_app(copied.searcher()), base_url=ADDRESS) as client:
        client.post("/api/review", json={"index": 5, "decision": "drop"})
        assert "review" not in Table.open(copied.path).columns
    assert Table.open(copied.path).column("review")[5] == "drop"


def test_a_newer_version_of_the_table_is_picked_up(start: Start, copied: Served) -> None:
    client = start(copied)
    before = client.get("/api/facets").json()["version"]
    Table.open(copied.path).write_columns(np.arange(60), {"extra": np.arange(60) * 2}, {})
    deadline = time.monotonic() + 20
    while client.get("/api/facets").json()["version"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.get("/api/items/4").json()["columns"]["extra"] == 8
    ask(client, tiny.png(0))


def test_the_key(start: Start, served: Served) -> None:
    client = start(served, api_key=KEY)
    for path in ("/api/facets", "/api/items/1/image", "/api/openapi.json", "/metrics", "/api/nothing"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": KEY + "x"}).status_code == 401
        assert client.get(path, headers={"authorization": f"Basic {KEY}"}).status_code == 401
        assert client.get(path, headers={"x-api-key": "\u00e4".encode("latin-1")}).status_code == 401
        assert client.get(path, headers={"x-api-key": KEY}).status_code in (200, 404)
        assert client.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code in (200, 404)
    assert client.post("/api/search", json={"like": []}).status_code == 401
    for path in ("/", "/page/app.js", "/health", "/ready"):
        assert client.get(path).status_code == 200
    assert KEY not in client.get("/metrics", headers={"x-api-key": KEY}).text


def test_foreign_pages_are_turned_away(client: TestClient) -> None:
    assert client.get("/api/facets", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/facets", headers={"host": "localhost:1234"}).status_code == 200
    body = {"index": 1, "decision": "keep"}
    assert client.post("/api/review", json=body, headers={"origin": "https://evil.example"}).status_code == 403
    assert client.post("/api/review", json=body, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    own = {"origin": ADDRESS, "sec-fetch-site": "same-origin"}
    assert (
        client.post("/api/search", json={"like": [{"index": 1, "modality": "image"}]}, headers=own).status_code == 200
    )


def test_headers_and_pages(client: TestClient) -> None:
    for path in ("/", "/page/style.css", "/page/app.js", "/health", "/nothing", "/api/nothing", "/page/..%2fapp.py"):
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, path
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/page/__init__.py").status_code == 404
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert client.get("/nothing").json() == {"error": "there is nothing here", "status": 404}
    assert client.delete("/api/facets").json()["status"] == 405


def test_the_page_names_nothing_outside() -> None:
    import re

    from consilience.serve import app

    for path in (Path(app.__file__).parent / "page").iterdir():
        text = path.read_text()
        found = [place for place in re.findall(r"https?://[^\s\"')]+", text) if place != "http://www.w3.org/2000/svg"]
        assert not found, (path.name, found)
        assert " style=" not in text
        assert len(text.splitlines()) < 400


def test_the_description(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    search = paths["/api/search"]["post"]["requestBody"]["content"]
    assert {"file", "like", "into", "k"} <= set(search["multipart/form-data"]["schema"]["properties"])
    assert search["application/json"]["schema"]["properties"]["k"]["default"] == 24
    routes = {"/api/items/{index}", "/api/items/{index}/similar", "/api/embed", "/api/map", "/api/facets", "/health"}
    assert routes | {
        "/ready",
        "/metrics",
        "/api/review",
        "/api/review/undo",
        "/api/geometry/{index}/{modality}",
    } <= set(paths)
    assert "$ref" not in json.dumps(search)


def test_health_and_metrics(start: Start, served: Served) -> None:
    client = start(served)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json()["status"] == "ready"
    ask(client, tiny.png(0), tiny.png(1))
    client.post("/api/search", files={"file": ("x.png", b"nothing")})
    client.get("/api/items/3")
    text = client.get("/metrics").text

    def value(line: str) -> float:
        return float(next(row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line)))

    assert value('consilience_requests_total{method="POST",route="/api/search",status="200"}') == 1
    assert value('consilience_requests_total{method="POST",route="/api/search",status="415"}') == 1
    assert value('consilience_requests_total{method="GET",route="/api/items/{index}",status="200"}') == 1
    assert value('consilience_rejections_total{reason="unknown_format"}') == 1
    assert value('consilience_batch_size_sum{modality="image"}') == 2
    assert value('consilience_request_seconds_count{route="/api/search"}') == 2
    assert value("consilience_queue_depth") == 0
    assert value("consilience_table_rows") == 60


def test_requests_beyond_the_bound_are_turned_down(start: Start, served: Served) -> None:
    client = start(served, Limits(concurrency=2, window=1.0))

    def one(number: int) -> Any:
        return client.post("/api/search", files={"file": ("x", tiny.png(number))})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(6)))
    busy = [answer for answer in answers if answer.status_code == 503]
    assert len(busy) == 4
    assert [answer.status_code for answer in answers].count(200) == 2
    assert all(answer.headers["retry-after"] == "1" for answer in busy)
    assert client.get("/health").status_code == 200
    assert one(1).status_code == 200


def test_a_request_that_takes_too_long_is_answered(start: Start, served: Served) -> None:
    client = start(served, Limits(seconds=0.3, window=1.5))
    begun = time.monotonic()
    answer = client.post("/api/search", files={"file": ("x", tiny.png(0))})
    assert (answer.status_code, "within 0.3 s" in answer.text) == (504, True)
    assert time.monotonic() - begun < 1.2
    assert client.get("/api/items/1").status_code == 200


def test_a_failure_shows_no_trace(start: Start, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start(served)

    def broken(index: int) -> None:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(client.app.state.service.catalogue, "facts", broken)  # type: ignore[attr-defined]
    answer = client.get("/api/items/1")
    assert answer.json() == {"error": "failed unexpectedly; the server's log says more", "status": 500}
    assert client.get("/api/facets").status_code == 200


def test_messages_do_not_tell_folders(start: Start, served: Served, tmp_path: Path) -> None:
    path = shutil.copytree(served.path, tmp_path / "table")
    client = start(Served(served.run, path))
    answer = client.post("/api/search", files={"file": ("x", tiny.png(0))}, data={"by": "code", "into": "image"})
    assert answer.status_code == 422
    assert str(tmp_path) not in answer.text
    assert "consilience index" in answer.text

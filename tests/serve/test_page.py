"""The page in headless Chromium, as people use it. No request may leave the server, no error may reach the console."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from consilience.data.review import Review
from consilience.data.table import Table
from consilience.serve.app import Options, create_app
from consilience.serve.server import address, listen
from tests.cli import tiny
from tests.serve.conftest import Served, suspect
from tests.serve.server import until_ready

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = Path(os.environ.get("CONSILIENCE_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
KEY = "a-key-of-some-length"
LAPTOP, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is absent (set CONSILIENCE_CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def at(served: Served, options: Options | None = None) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    app = create_app(served.searcher(), options)
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
            assert thread.is_alive()
        until_ready(address(sock))
        yield address(sock)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a copy of the Table with a map, and six suspicious pairs of which row 3 has a better partner."""
    from consilience.embedding.layout import map_columns

    path = shutil.copytree(served.path, tmp_path_factory.mktemp("page") / "table")
    suspect(Table.open(path))
    map_columns(Table.open(path))
    with at(Served(served.run, path)) as found:
        yield found


Open = Callable[..., "Page"]
Serving = Callable[..., str]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Start a server that outlives the test's pages."""
    with ExitStack() as stack:
        yield lambda served, options=None: stack.enter_context(at(served, options))


@pytest.fixture
def visit(browser: Browser, serving: Serving, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open the page; at the end nothing may have gone wrong in it (``refusal``: but for answers of that status, which
    Chromium reports as errors). A picture of it goes to CONSILIENCE_SCREENSHOTS."""
    opened: list[tuple[Page, list[str]]] = []

    def go(url: str, size: tuple[int, int] = LAPTOP, dark: bool = False, touch: bool = False, refusal: int = 0) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            is_mobile=touch,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        wrong: list[str] = []

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and f"status of {refusal} " not in message.text:
                wrong.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda sent: None if sent.url.startswith((url, "blob:", "data:")) else wrong.append(sent.url)
        )
        opened.append((page, wrong))
        page.goto(url)
        return page

    yield go
    folder = os.environ.get("CONSILIENCE_SCREENSHOTS")
    for number, (page, wrong) in enumerate(opened):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.wait_for_timeout(500)
            name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
            page.screenshot(path=f"{folder}/{name}{f'-{number}' if number else ''}.png")
        page.context.close()
        assert not wrong, wrong


def cards(page: Page) -> Locator:
    return page.locator(".card")


def results(page: Page) -> None:
    """Wait until a search has been answered."""
    page.locator("#found-title", has_text="Most alike").wait_for()
    page.locator(".groups:not(.waiting)").wait_for()


def draw(page: Page, *places: tuple[float, float]) -> None:
    page.get_by_role("tab", name="Draw").click()
    box = page.locator("#sketch").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()


def pixels(page: Page, selector: str) -> str:
    """The content of a canvas; "" while it is empty."""
    found: str = page.locator(selector).first.evaluate(
        """canvas => {
            const copy = document.createElement('canvas');
            copy.width = canvas.width;
            copy.height = canvas.height;
            const context = copy.getContext('2d', { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const colours = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
            return colours.some(colour => colour !== colours[0]) ? copy.toDataURL() : '';
        }"""
    )
    return found


def until(page: Page, done: Callable[[], Any], what: str) -> Any:
    """What ``done`` gives as soon as it gives something. (The page's policy forbids evaluating strings in it.)"""
    deadline = time.monotonic() + 20
    while not (found := done()):
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(50)
    return found


def drawn(page: Page, selector: str) -> str:
    return str(until(page, lambda: pixels(page, selector), f"{selector} stays empty"))


def test_start(visit: Open, url: str) -> None:
    page = visit(url)
    cards(page).first.wait_for()
    assert "60 rows" in page.locator("#about").inner_text()
    assert cards(page).count() == 24
    assert page.get_by_role("tab").all_inner_texts() == ["Upload", "Draw"]
    assert page.locator("#review-count").inner_text() == "6"


@pytest.mark.parametrize("form", ["ply", "off", "obj", "stl", "npy"])
def test_upload_a_shape(visit: Open, url: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"shape.{form}"
    path.write_bytes(tiny.shape_file(4, form))
    page = visit(url)
    page.locator("#file").set_input_files(path)
    results(page)
    assert page.locator(".chip-name").inner_text() == path.name
    drawn(page, ".chip canvas")
    wanted = httpx.post(
        f"{url}/api/search", files={"file": (path.name, path.read_bytes())}, data={"k": 12, "into": "image"}
    )
    shown = page.locator('.card[data-modality="image"]')
    assert [int(shown.nth(i).get_attribute("data-index") or -1) for i in range(5)] == [
        hit["index"] for hit in wanted.json()["hits"][:5]
    ]


def test_drop_a_picture(visit: Open, url: str) -> None:
    page = visit(url)
    cards(page).first.wait_for()
    page.evaluate(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'digit.png', { type: 'image/png' }));
            document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }));
        }""",
        list(tiny.png(7)),
    )
    results(page)
    first = page.locator('.card[data-modality="image"]').first
    assert first.get_attribute("data-index") == "7"
    assert first.locator(".score").inner_text() == "1.000"


def test_a_file_that_is_refused(visit: Open, url: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.ply"
    path.write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\n")
    page = visit(url, refusal=422)
    cards(page).first.wait_for()
    page.locator("#file").set_input_files(path)
    page.locator(".groups .wrong", has_text="Broken ply file (its header has no end)").wait_for()
    page.get_by_role("button", name="Remove broken.ply").click()
    cards(page).first.wait_for()


def test_draw_and_erase(visit: Open, url: str) -> None:
    page = visit(url)
    draw(page, (0.5, 0.15), (0.5, 0.85))
    results(page)
    assert page.locator(".chip-name").inner_text() == "Drawing"
    before = pixels(page, "#sketch")
    page.get_by_role("button", name="Eraser").click()
    draw(page, (0.2, 0.5), (0.8, 0.5))
    results(page)
    assert pixels(page, "#sketch") != before
    page.get_by_role("button", name="Clear").click()
    page.locator("#found-title", has_text="Start anywhere").wait_for()
    assert page.locator(".chip").count() == 0


def test_filter(visit: Open, url: str) -> None:
    page = visit(url)
    draw(page, (0.5, 0.15), (0.5, 0.85))
    results(page)
    assert page.locator(".group h2").all_inner_texts() == ["points", "image"]
    page.get_by_role("button", name="points", exact=True).click()
    page.locator(".group").first.wait_for(state="detached")
    assert {cards(page).nth(i).get_attribute("data-modality") for i in range(cards(page).count())} == {"points"}
    page.locator('[data-filter="label"][data-value="rod"]').click()
    page.locator('[data-filter="split"][data-value="test"]').click()
    until(page, lambda: page.locator(".card").count() == 4, "4 of .card")
    assert set(page.locator(".card .label").all_inner_texts()) == {"rod"}
    page.locator('[data-filter="label"][data-value="rod"]').click()
    until(page, lambda: page.locator(".card").count() == 12, "12 of .card")


def test_turn_a_shape(visit: Open, url: str) -> None:
    page = visit(url)
    page.locator('.card[data-modality="points"] .look').first.click()
    dialog = page.locator("#detail canvas").first
    before = drawn(page, "#detail canvas")
    box = dialog.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 190, box["y"] + 130, steps=5)
    page.mouse.up()
    turned = pixels(page, "#detail canvas")
    assert turned not in ("", before)
    dialog.focus()
    page.keyboard.press("ArrowLeft")
    assert pixels(page, "#detail canvas") not in ("", before, turned)
    page.mouse.wheel(0, -300)
    page.keyboard.press("Escape")
    page.locator("#detail[open]").wait_for(state="hidden")


def test_more_like_this_and_together(visit: Open, url: str) -> None:
    page = visit(url)
    first = cards(page).first
    index = first.get_attribute("data-index")
    first.get_by_role("button", name="More like").click()
    results(page)
    assert page.locator(".chip-name").inner_text() == f"Row {index}"
    cards(page).nth(2).locator(".card-name").click()
    page.get_by_role("button", name="Add the points to the queries").click()
    until(page, lambda: page.locator(".chip").count() == 2, "2 of .chip")
    results(page)
    page.locator(".chip").first.get_by_role("button").click()
    until(page, lambda: page.locator(".chip").count() == 1, "1 of .chip")
    results(page)


def test_map(visit: Open, url: str) -> None:
    page = visit(url)
    page.get_by_role("link", name="Map").click()
    page.locator("#map-note", has_text="60 samples").wait_for()
    before = drawn(page, "#map")
    assert page.locator("#legend li").count() == 3
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(100)
    near = pixels(page, "#map")
    assert near != before
    page.mouse.move(640, 400)
    page.mouse.down()
    page.mouse.move(700, 430, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert pixels(page, "#map") != near
    page.get_by_role("button", name="All", exact=True).click()
    page.locator("#map-modalities").get_by_role("button", name="points").click()
    page.locator('#map-modalities [aria-pressed="true"]', has_text="points").wait_for()
    page.locator("#map-note", has_text="60 samples").wait_for()
    page.locator("#map").focus()
    page.keyboard.press("Enter")
    page.locator("#detail[open]").get_by_role("button", name="More like this").first.click()
    results(page)


def test_review_by_keyboard(visit: Open, serving: Serving, served: Served, tmp_path: Path) -> None:
    path = shutil.copytree(served.path, tmp_path / "table")
    suspect(Table.open(path))
    page = visit(serving(Served(served.run, path)))
    page.get_by_role("link", name="Review").click()
    page.locator(".walk", has_text="1 / 6").wait_for()
    assert page.locator(".proposed").count() == 1
    for key, place, state in (
        ("r", "2 / 6", "1 of 6 pairs decided: 0 kept, 0 dropped, 1 re-paired"),
        ("d", "3 / 6", "2 of 6 pairs decided: 0 kept, 1 dropped, 1 re-paired"),
        ("k", "4 / 6", "3 of 6 pairs decided: 1 kept, 1 dropped, 1 re-paired"),
        ("u", "3 / 6", "2 of 6 pairs decided: 0 kept, 1 dropped, 1 re-paired"),
        ("ArrowLeft", "2 / 6", "2 of 6 pairs decided: 0 kept, 1 dropped, 1 re-paired"),
    ):
        page.keyboard.press(key)
        page.locator(".walk", has_text=place).wait_for()
        page.locator(".review-head", has_text=state).wait_for()
    assert page.locator(".verdict").inner_text() == "Dropped"
    page.keyboard.press("r")  # the second pair has no better partner
    page.locator("#toast", has_text="no better partner").wait_for()
    assert page.locator("#review-count").inner_text() == "4"
    made = [suspect.decision for suspect in Review.open(Table.open(path)).queue()]
    assert made == ["re-pair", "drop", None, None, None, None]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    for number in range(4):
        page.keyboard.press("k")
        page.locator(".review-head", has_text=f"{3 + number} of 6").wait_for()
    assert page.locator("#review-count").is_hidden()


def test_nothing_to_review(visit: Open, serving: Serving, captions: Served) -> None:
    """And text, where the run knows it."""
    page = visit(serving(captions))
    page.get_by_role("link", name="Review").click()
    page.get_by_role("heading", name="Nothing to review").wait_for()
    page.get_by_role("link", name="Search", exact=True).click()
    page.get_by_role("tab", name="Text").click()
    page.get_by_label("Describe what you are looking for").fill("a flat plate")
    page.keyboard.press("Enter")
    results(page)
    assert page.locator('.card[data-modality="text"] blockquote').first.inner_text() == "a flat plate"


def test_the_key_is_asked_for(visit: Open, serving: Serving, served: Served) -> None:
    page = visit(serving(served, Options(api_key=KEY)), refusal=401)
    page.get_by_label("API key").fill("wrong-key-wrong-key")
    page.keyboard.press("Enter")
    page.get_by_text("The key was not accepted.").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    cards(page).first.wait_for()
    until(page, lambda: page.locator(".card img").first.evaluate("image => image.naturalWidth"), "no picture")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phone(visit: Open, url: str, dark: bool) -> None:
    page = visit(url, PHONE, dark, touch=True)
    narrow = "document.documentElement.scrollWidth <= 390"
    cards(page).first.wait_for()
    assert page.evaluate(narrow)
    draw(page, (0.5, 0.15), (0.5, 0.85))
    results(page)
    assert page.evaluate(narrow)
    cards(page).first.locator(".card-name").tap()
    page.locator("#detail[open] figure").first.wait_for()
    assert page.evaluate(narrow)
    page.get_by_role("button", name="Close").tap()
    for name in ("Map", "Review"):
        page.get_by_role("link", name=name).tap()
        page.locator("#map-note", has_text="60 samples" if name == "Map" else "").wait_for(state="attached")
        page.wait_for_timeout(150)
        assert page.evaluate(narrow), name
    colours: Any = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colours == "rgb(20, 24, 27)") == dark

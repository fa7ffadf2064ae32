"""The page in Chromium, over `weft live` on a session that grows."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN, SHARE = "owner-token-of-the-page-tests", "reader-token-of-the-page-tests"
#: A name that would do harm if it ever became HTML; the file behind it is cut short.
EVIL = "a <img src=x onerror=alert(1)> #1 %41"
WAIT = 30_000  # ms: generous, for busy machines


def _need(found: Any, what: str) -> None:
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what} is missing, and CI needs it")
        pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    _need(Path(CHROMIUM).exists(), CHROMIUM)
    _need(importlib.util.find_spec("playwright"), "playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_is_built() -> None:
    """The page, built from the sources as they are."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    if not hook.is_current(ROOT):
        _need(hook.find_node(), "Node, which builds the page,")
        hook.build(ROOT)


class Live:
    """`weft live` as a process of its own."""

    def __init__(self, root: Path, frames: Path, movies: Path) -> None:
        self.root = root
        self.frames = frames
        self.movies = movies
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root.parent / "live.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        options = ["--port", str(self.port), "--token", TOKEN, "--share-token", SHARE, "--workers", "1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "weft", "live", str(self.root), *options, "--threads", "1"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )
        deadline = time.monotonic() + 60
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"weft live did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("status") is not None
        return False

    def get(self, address: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}api/{address}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def selection(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            found: dict[str, Any] = json.loads((self.root / "selection.json").read_text(encoding="utf-8"))
            return found
        return {"ranges": {}, "include": [], "exclude": []}


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def live(
    tiny_movies: Path, page_is_built: None, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A watched session of two movies and one that is cut short; a third movie may come."""
    import weft

    folder = tmp_path_factory.mktemp("page")
    frames = folder / "frames"
    frames.mkdir()
    movies = sorted((tiny_movies / "frames").glob("*.tif"))
    for movie in movies[:2]:
        shutil.copy2(movie, frames)
    broken = frames / f"{EVIL}.tif"
    broken.write_bytes(movies[2].read_bytes()[:5000])
    weft.new(
        folder / "session",
        frames=frames / "*.tif",
        gain=tiny_movies / "gain.mrc",
        pixel_size=1.5,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=4.0,
        ctf={"range_max": 8.0, "window": 256},
        live={"poll_interval": 0.3, "settle": 0.3, "give_up": 0.5, "keep_free": 0.0},
    )
    found = Live(folder / "session", frames, tiny_movies / "frames")
    found.start()
    until(lambda: found.get("status")["items"]["done"] == 2, "two movies processed", 90.0)
    yield found
    found.stop()


class Visit:
    """One page, and everything that it should not do."""

    def __init__(self, browser: Any, live: Live, token: str = TOKEN, **context: Any) -> None:
        self.live = live
        self.faults: list[str] = []
        #: While the server is away, the browser complains about that.
        self.forgiving = False
        options = {"viewport": {"width": 1440, "height": 900}, **context}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on(
            "dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        self.page.on("request", self._request)
        self.page.goto(f"{live.url}?token={token}")
        self.page.wait_for_selector("[data-connection=live]")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not self.forgiving:
            self.faults.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.live.url, "blob:")):
            self.faults.append(f"a request leaves the machine: {request.url}")

    def go(self, address: str) -> Any:
        self.page.evaluate("to => { location.hash = to }", address)
        return self.page

    def locator(self, selector: str, **options: Any) -> Any:
        return self.page.locator(selector, **options)


@pytest.fixture
def visit(browser: Any, live: Live) -> Iterator[Callable[..., Visit]]:
    """Open the page; at the end nothing may have gone wrong in it."""
    visits: list[Visit] = []

    def make(**options: Any) -> Visit:
        visits.append(Visit(browser, live, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert one.faults == []


SIZES: dict[str, dict[str, Any]] = {
    "wide": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_each_view_loads(visit: Callable[..., Visit], size: str) -> None:
    seen = visit(**SIZES[size])
    views = {
        "#/": "[data-metric=defocus] .u-over",
        "#/micrographs": ".card img",
        "#/micrograph/movie_000": ".viewer[aria-busy=false] canvas",
        "#/settings": "[data-key='ctf.range_max'] input",
    }
    for address, shows in views.items():
        seen.go(address)
        seen.locator(shows).first.wait_for()
        width = seen.page.evaluate(
            "(m => [m.scrollWidth - m.clientWidth, document.documentElement.scrollWidth - innerWidth])"
            "(document.querySelector('main'))"
        )
        assert max(width) <= 0, f"{address} is wider than the window"
    seen.go("#/micrograph/movie_000")
    seen.locator("[aria-label='CTF curve'] canvas").wait_for()
    seen.locator(".track-picture canvas").first.wait_for()
    assert seen.locator(".spectrum").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    painted = seen.locator(".viewer canvas").evaluate(
        "c => new Set(c.getContext('2d').getImageData(c.width / 2, c.height / 2, 40, 40).data).size"
    )
    assert painted > 20, "there is a picture on the canvas"


def test_a_range_is_dragged_and_typed_and_moved_by_keys(visit: Callable[..., Visit], live: Live) -> None:
    seen = visit()
    panel = seen.locator("[data-metric=defocus]")
    handle = panel.locator(".range-upper")
    box = handle.bounding_box()
    seen.page.mouse.move(box["x"] + 80, box["y"] + box["height"] / 2)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 80, box["y"] + 60, steps=6)
    seen.page.mouse.up()
    until(lambda: "defocus" in live.selection()["ranges"], "the dragged range on the disk")
    low, dragged = live.selection()["ranges"]["defocus"]
    assert low is None
    assert float(handle.get_attribute("aria-valuenow")) == pytest.approx(dragged)
    until((live.root / "micrographs_selected.star").exists, "the table of what is selected")

    handle.focus()
    seen.page.keyboard.press("ArrowUp")
    until(lambda: live.selection()["ranges"]["defocus"][1] > dragged, "the range moved by a key")

    field = panel.get_by_label("highest accepted value")
    field.fill("0.01")
    field.press("Enter")
    until(lambda: live.selection()["ranges"]["defocus"] == [None, 0.01], "the typed range")
    seen.locator(".tile", has_text=re.compile("^Selected0")).wait_for()

    panel.get_by_role("button", name="accept everything").click()
    until(lambda: live.selection()["ranges"] == {}, "no range any more")


def test_hovering_and_brushing_a_plot(visit: Callable[..., Visit]) -> None:
    seen = visit()
    plot = seen.locator("[data-metric=defocus] .u-over")
    box = plot.bounding_box()
    plot.focus()
    seen.page.keyboard.press("ArrowLeft")
    seen.locator(".hover-card strong").wait_for()
    # within the lines of the range, which lie at the edges
    seen.page.mouse.move(box["x"] + 2, box["y"] + 6)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 6, steps=4)
    seen.page.mouse.up()
    seen.locator(".brush-bar").wait_for()
    shown = int(seen.locator(".brush-bar strong").inner_text().split()[0])
    seen.locator(".brush-bar a").click()
    seen.locator(".card").nth(shown - 1).wait_for()
    assert seen.locator(".card").count() == shown >= 2


def test_marking_by_keyboard(visit: Callable[..., Visit], live: Live) -> None:
    seen = visit()
    seen.go("#/micrographs?search=movie_&sort=name")
    seen.locator(".card[data-id=movie_001]").wait_for()
    seen.locator(".grid").focus()
    seen.page.keyboard.press("Home")
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("e")
    until(lambda: live.selection()["exclude"] == ["movie_001"], "excluded on the disk")
    seen.locator(".card.out[data-id=movie_001]").wait_for()
    seen.page.keyboard.press("i")
    until(lambda: live.selection()["include"] == ["movie_001"], "included on the disk")
    seen.page.keyboard.press("u")
    until(lambda: live.selection()["include"] == live.selection()["exclude"] == [], "undecided again")
    seen.page.keyboard.press("Enter")
    seen.locator("h1", has_text="movie_001").wait_for()


def test_picks_are_chosen_edited_and_kept(visit: Callable[..., Visit], live: Live) -> None:
    from weft.formats.star import read_star
    from weft.picking.picks import Picks
    from weft.session.pick_files import write_picks

    xy = np.array([[60.0, 60.0], [420.0, 60.0], [60.0, 420.0]])
    found = Picks(xy, np.array([0.9, 0.5, 0.2]), 60.0)
    write_picks(live.root / "picks" / "topaz" / "movie_000.star", found, 1.5)
    seen = visit()
    seen.go("#/micrograph/movie_000")
    seen.locator(".viewer[aria-busy=false]").wait_for()
    seen.page.get_by_label("Whose picks").select_option("topaz")
    # the session's own picker may have found as many: the slider's end tells that these are topaz's
    seen.locator(".pick-bar input[aria-label='Least score'][max='0.9']").wait_for()
    seen.locator(".pick-bar", has_text="3 picks").wait_for()
    seen.page.get_by_label("Least score").fill("0.4")
    seen.locator(".pick-bar", has_text="2 picks of 3").wait_for()
    seen.page.get_by_role("button", name="Edit picks").click()
    canvas = seen.locator(".viewer canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2 - 60, "y": box["height"] / 2})
    canvas.click(position={"x": box["width"] / 2 + 60, "y": box["height"] / 2 + 40})
    canvas.click(position={"x": box["width"] / 2 - 60, "y": box["height"] / 2})  # taken away again
    canvas.focus()
    seen.page.keyboard.press("a")  # at the crosshair, in the middle
    seen.page.get_by_role("button", name="Save picks").click()
    path = live.root / "picks" / "manual" / "movie_000.star"
    until(path.exists, "the picks on the disk")
    table = next(iter(read_star(path).values()))
    kept = list(zip(table.floats("rlnCoordinateX"), table.floats("rlnCoordinateY"), strict=True))
    scale = 320 / min(box["width"], box["height"])  # pixels of the average in one of the screen
    expected = [(40.0, 40.0), (280.0, 40.0), (160 + 60 * scale, 160 + 40 * scale), (160.0, 160.0)]
    for (x, y), (ex, ey) in zip(kept, expected, strict=True):
        assert abs(x - ex) < 1.5, "within rounding of the screen"
        assert abs(y - ey) < 1.5
    assert table.floats("rlnAutopickFigureOfMerit").tolist() == [0.9, 0.5, -999.0, -999.0]
    seen.locator(".pick-bar", has_text="4 picks").wait_for()
    assert seen.page.get_by_label("Whose picks").input_value() == "manual"
    # what was not saved waits while another one is looked at
    canvas.click(position={"x": box["width"] / 2 - 90, "y": box["height"] / 2 - 90})
    seen.go("#/micrograph/movie_001")
    seen.locator("h1", has_text="movie_001").wait_for()
    seen.go("#/micrograph/movie_000")
    seen.locator(".pick-bar", has_text="5 picks not saved").wait_for()
    again = visit()
    again.go("#/micrograph/movie_000")
    again.locator(".pick-bar", has_text="4 picks").wait_for()
    assert again.page.get_by_label("Whose picks").input_value() == "manual"


def test_artefacts_are_shown_in_violet(visit: Callable[..., Visit], live: Live) -> None:
    from weft.formats import mrc

    mask = np.zeros((60, 60), np.int8)
    mask[25:35, 25:35] = 1  # around the middle
    mrc.write(live.root / "mask" / "movie_000.mrc", mask, 8.0, dtype=np.int8)
    seen = visit()
    seen.go("#/micrograph/movie_000")
    seen.locator(".viewer[aria-busy=false]").wait_for()
    seen.page.get_by_role("checkbox", name="Picks").uncheck()

    def violet() -> float:
        """How much more blue than green there is in the middle."""
        shown = imagecodecs.png_decode(seen.locator(".viewer canvas").screenshot())
        y, x = (n // 2 for n in shown.shape[:2])
        middle = shown[y - 10 : y + 10, x - 10 : x + 10].astype(float)
        return float((middle[..., 2] - middle[..., 1]).mean())

    # the colour has 160 more of blue than of green, and lies over grey with an alpha of 0.47
    until(lambda: 60.0 < violet() < 90.0, "violet in the middle")
    seen.page.get_by_role("checkbox", name="Artefacts").uncheck()
    until(lambda: abs(violet()) < 1.0, "grey in the middle")


def test_the_picker_is_taught_from_the_page(visit: Callable[..., Visit], live: Live) -> None:
    from weft.picking.picks import Picks
    from weft.session.pick_files import write_picks

    picked = Picks(np.array([[90.0, 90.0], [300.0, 120.0]]), np.full(2, np.nan), 80.0)
    write_picks(live.root / "picks" / "manual" / "movie_001.star", picked, 1.5)
    seen = visit()
    seen.go("#/micrograph/movie_001")
    seen.page.get_by_role("button", name="Teach the picker").click()
    panel = seen.locator(".teach-panel")
    panel.get_by_role("button", name="Start").click()
    panel.locator("[data-training=running]").wait_for()
    panel.get_by_role("button", name="Stop").click()
    panel.locator("[data-training=stopped]").wait_for()
    assert live.get("picking/train")["model"] == "default"
    # how one looks that has got somewhere
    state = live.get("picking/train") | {"state": "running", "steps": 200}
    state["history"] = [
        {
            "step": step,
            "old_on_old": 0.8,
            "new_on_old": 0.8,
            "old_on_new": 0.5,
            "new_on_new": 0.5 + step / 500,
        }
        for step in (20, 40, 60)
    ]
    seen.page.route("**/api/picking/train", lambda route: route.fulfill(json=state))
    seen.page.reload()
    seen.page.get_by_role("button", name="Teach the picker").click()
    plot = panel.locator(".accuracy-plot")
    plot.locator("canvas").wait_for()
    assert "your picks, now 62.0 %, your picks, before 50.0 %" in plot.get_attribute("aria-label")
    assert panel.locator("progress").get_attribute("value") == "60"


def test_sliders_ask_for_another_picture(visit: Callable[..., Visit]) -> None:
    seen = visit()
    seen.go("#/micrograph/movie_000")
    seen.locator(".viewer[aria-busy=false]").wait_for()
    with seen.page.expect_response(lambda reply: "strength=1.5" in reply.url) as reply:
        seen.page.get_by_label("Strength").fill("1.5")
    assert reply.value.status == 200
    seen.page.get_by_label("Local defocus").check()
    seen.locator(".ramp").wait_for()
    seen.locator(".viewer canvas").focus()
    for key in ("+", "ArrowLeft", "-", "0"):
        seen.page.keyboard.press(key)


def test_a_failed_movie_says_why_and_is_tried_again(visit: Callable[..., Visit], live: Live) -> None:
    until(lambda: live.get("status")["items"]["failed"] == 1, "the broken movie has failed")
    seen = visit()
    seen.go("#/micrographs?state=failed")
    seen.locator(".card").first.wait_for()
    name = seen.locator(".card").first.get_attribute("data-id")
    seen.locator(".card").first.click()
    seen.locator(".item-error").wait_for()
    assert "tif" in seen.locator(".item-error p").inner_text()
    assert EVIL in seen.locator("[aria-label=File]").inner_text(), "the file's own name, as text"
    with seen.page.expect_response("**/api/retry") as reply:
        seen.page.get_by_role("button", name="Retry").click()
    assert reply.value.status == 200
    assert reply.value.json()["items"] == [name]
    # nothing has changed, so it fails again, and can be tried again
    seen.page.get_by_role("button", name="Retry").wait_for()


def test_a_new_movie_appears_without_reload(visit: Callable[..., Visit], live: Live) -> None:
    seen = visit()
    seen.page.evaluate("window.stayed = true")
    seen.go("#/micrographs")
    seen.locator(".card").first.wait_for()
    name = "movie_new"
    shutil.copy(live.movies / "movie_002.tif", live.frames / f"{name}.tif")
    began = time.monotonic()
    seen.locator(f".card.is-done[data-id={name}] img").wait_for()
    print(f"on the page {time.monotonic() - began:.1f} s after the file was complete")
    seen.go("#/")
    seen.locator(".tile", has_text="4 micrographs").wait_for()
    assert seen.page.evaluate("window.stayed")


def test_settings_say_what_becomes_stale(visit: Callable[..., Visit], live: Live) -> None:
    seen = visit()
    seen.go("#/settings")
    field = seen.locator("[data-key='ctf.range_max'] input")
    field.fill("nonsense")
    seen.locator("[data-key='ctf.range_max'] .field-error").wait_for()
    assert seen.page.get_by_role("button", name="Apply").is_disabled()
    field.fill("7.5")
    seen.locator(".settings-bar", has_text="ctf of ").wait_for()
    seen.page.get_by_role("button", name="Apply").click()
    until(lambda: "range_max = 7.5" in (live.root / "weft.toml").read_text(), "the setting in weft.toml")
    seen.locator(".settings-bar").wait_for(state="detached")


def test_who_may_only_look_sees_no_buttons(visit: Callable[..., Visit]) -> None:
    seen = visit(token=SHARE)
    seen.locator("[data-metric=defocus] .range-input").first.wait_for()
    assert seen.locator("[data-metric=defocus] .range-input").first.is_disabled()
    assert seen.page.get_by_role("button", name="Pause").count() == 0
    seen.go("#/micrograph/movie_000")
    seen.locator(".viewer[aria-busy=false]").wait_for()
    assert seen.page.get_by_role("button", name="Edit picks").count() == 0
    assert seen.page.get_by_role("button", name="Teach the picker").count() == 0
    assert seen.page.get_by_role("button", name="Exclude").count() == 0


def test_it_reconnects_when_the_server_is_back(visit: Callable[..., Visit], live: Live) -> None:
    seen = visit()
    seen.page.evaluate("window.stayed = true")
    seen.go("#/micrograph/movie_000")
    seen.locator(".viewer[aria-busy=false]").wait_for()
    seen.forgiving = True
    live.stop(signal.SIGKILL)
    seen.locator("[data-connection=reconnecting]").wait_for()
    seen.locator(".banner").wait_for()
    live.start()
    seen.locator("[data-connection=live]").wait_for()
    seen.forgiving = False
    assert seen.page.evaluate("window.stayed")
    seen.go("#/micrographs")
    seen.locator(".card.is-done").first.wait_for()

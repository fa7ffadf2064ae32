"""The views of tilt series in Chromium, over a server that processes nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from series_session import DARK, NAME, Made, make
from test_page import SIZES, browser, page_is_built  # noqa: F401  (fixtures)

import weft
from weft.session.tilt_table import read_table, table_path
from weft.web.app import Application
from weft.web.security import Access

OWNER, READER = "owner-token-of-the-tests", "reader-token-of-the-tests"
WAIT = 30_000  # ms: generous, for busy machines


class Served:
    """The server in a thread of this process, and what is true of its session."""

    def __init__(self, made: Made, application: Application) -> None:
        self.made = made
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = uvicorn.Config(application, "127.0.0.1", self.port, log_level="warning")
        self._server = uvicorn.Server(options)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="module")
def served(
    page_is_built: None,  # noqa: F811
    idle_manager: Callable[[Any], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A session of one series."""
    made = make(tmp_path_factory.mktemp("series-page") / "session")
    manager = idle_manager(weft.open(made.root))
    found = Served(made, Application(manager, Access(OWNER, READER), status_every=0.3))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """Open the page; at the end nothing may have gone wrong in it."""
    faults: list[str] = []
    contexts = []

    def make_page(token: str = OWNER, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None
        )
        page.goto(f"{served.url}?token={token}")
        page.wait_for_selector("[data-connection=live]")
        return page

    yield make_page
    for context in contexts:
        context.close()
    assert faults == []


def go(page: Any, address: str) -> None:
    page.evaluate("to => { location.hash = to }", address)


def painted(page: Any, canvas: str) -> int:
    """How many colours there are in the middle of a canvas."""
    found: int = page.locator(canvas).first.evaluate(
        "c => new Set(c.getContext('2d').getImageData(c.width / 2, c.height / 2, 40, 40).data).size"
    )
    return found


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT / 1000
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("size", SIZES)
def test_each_view_of_a_series_fits(visit: Callable[..., Any], size: str) -> None:
    page = visit(**SIZES[size])
    views = {
        "": ".series-picture img",
        "#/series": f"[data-series={NAME}]",
        f"#/series/{NAME}": ".tilt-card img",
        f"#/series/{NAME}?show=alignment": ".alignment-viewer[aria-busy=false] canvas",
        f"#/series/{NAME}?show=ctf": ".hand-scores",
        f"#/series/{NAME}?show=tomogram": ".slice-pane[aria-busy=false] canvas",
        f"#/series/{NAME}?show=steps": ".step",
    }
    for address, shows in views.items():
        if address:
            go(page, address)
        page.locator(shows).first.wait_for()
        wider = page.evaluate(
            "[document.querySelector('main'), document.documentElement]"
            ".map(one => one.scrollWidth - one.clientWidth).reduce((a, b) => Math.max(a, b))"
        )
        assert wider <= 0, f"{address} is wider than the window"
    go(page, "#/overview")
    page.locator("[data-metric=motion]").wait_for()
    go(page, "#/micrographs")
    page.locator(".card").first.wait_for()
    assert page.locator(".gallery-count").inner_text() == "9", "tilts are micrographs; their series is none"


def test_a_series_is_seen_first_with_what_came_of_it(visit: Callable[..., Any]) -> None:
    page = visit()
    row = page.locator(f"[data-series={NAME}]")
    words = row.inner_text()
    for part in ("8 of 9", "−60° … +60°", "gold beads", "3.00 µm", "certain", "16 Å", "done"):
        assert part in words
    row.click()
    page.locator(".tilt-card").first.wait_for()
    states = page.locator("[data-step]").evaluate_all("all => all.map(one => one.dataset.state)")
    assert states == ["done"] * 4
    angles = page.locator(".tilt-head strong").all_inner_texts()
    assert angles[0] == "−60.0°"
    assert angles[-1] == "+60.0°"
    page.locator(".series-tabs label", has_text="as acquired").click()
    assert page.locator(".tilt-head strong").first.inner_text() == "0.0°"
    dark = page.locator(f"[data-tilt='{DARK}']")
    assert "dark" in dark.inner_text()
    assert "out" in (dark.get_attribute("class") or "")


def test_a_tilt_is_left_out_and_what_that_does_is_shown(visit: Callable[..., Any], served: Served) -> None:
    page = visit()
    go(page, f"#/series/{NAME}")
    card = page.locator("[data-tilt='4']")
    card.get_by_role("button", name="Leave out").click()
    page.locator("[data-step=reconstruct][data-state=stale]").wait_for()
    assert "left out by hand" in card.inner_text()
    assert read_table(table_path(served.made.root, NAME)).tilts[4].decision is False
    page.locator(".notice-warning", has_text="is to be left out").wait_for()
    # another one is kept from the keyboard, and both are undone
    page.locator(f"[data-tilt='{DARK}']").press("i")
    until(lambda: read_table(table_path(served.made.root, NAME)).tilts[DARK].decision, "kept")
    page.locator(f"[data-tilt='{DARK}']").press("u")
    card.get_by_role("button", name="Reset").click()
    page.locator("[data-step=reconstruct][data-state=done]").wait_for()
    assert {row.decision for row in read_table(table_path(served.made.root, NAME)).tilts} == {None}


def test_who_may_only_look_gets_no_buttons(visit: Callable[..., Any]) -> None:
    page = visit(READER)
    go(page, f"#/series/{NAME}")
    page.locator(".tilt-card").first.wait_for()
    assert page.locator(".tilt-buttons").count() == 0
    go(page, f"#/series/{NAME}?show=ctf")
    page.locator(".hand-scores").wait_for()
    assert page.get_by_role("button", name="Use hand").count() == 0


def test_markers_are_followed_through_the_tilts(visit: Callable[..., Any]) -> None:
    page = visit()
    go(page, f"#/series/{NAME}?show=alignment&tilt=0")
    page.locator(".alignment-viewer[aria-busy=false]").wait_for()
    until(lambda: painted(page, ".alignment-viewer canvas") > 20, "an image with markers")
    where = page.locator(".turn-bar output")
    assert where.inner_text() == "0.0°"
    page.keyboard.press(".")
    until(lambda: where.inner_text() == "+15.0°", "the next tilt")
    page.locator(".dot-panel", has_text="Residual of each marker").locator(".dot-plot").click()
    page.locator(".turn-words", has_text="seen 8 times").wait_for()
    # what was left out can be looked at, too
    go(page, f"#/series/{NAME}?show=tilts")
    page.locator(f"[data-tilt='{DARK}'] a").click()
    page.locator(".viewer-busy", has_text="left out").wait_for()


def test_the_hand_can_be_set_for_all(visit: Callable[..., Any], served: Served) -> None:
    page = visit()
    go(page, f"#/series/{NAME}?show=ctf")
    page.locator(".hand-panel", has_text="found from this series").wait_for()
    page.locator(".hand-panel").get_by_role("button", name="Use hand +1 for all").click()
    until(lambda: 'hand = "+1"' in (served.made.root / "weft.toml").read_text(), "the setting")
    page.locator(".hand-panel button").wait_for(state="detached")


def test_sections_follow_sliders_and_clicks(visit: Callable[..., Any], served: Served) -> None:
    page = visit()
    go(page, f"#/series/{NAME}?show=tomogram")
    page.locator(".slice-pane").nth(2).wait_for()
    assert page.locator(".slice-pane").evaluate_all("all => all.map(one => one.dataset.pane)") == [
        "z",
        "x",
        "y",
    ]
    until(lambda: painted(page, "[data-pane=z] canvas") > 20, "a section")
    depth, height, width = served.made.tomogram.shape
    slider = page.get_by_label("Section along z")
    slider.fill("2")
    until(lambda: "z 3 of" in page.locator("[data-pane=z] canvas").get_attribute("aria-label"), "section 3")
    page.keyboard.press(".")
    until(lambda: slider.input_value() == "3", "the next section")
    box = page.locator("[data-pane=z]").bounding_box()
    page.locator("[data-pane=z] canvas").click(position={"x": box["width"] / 4, "y": box["height"] * 3 / 4})
    x, y = (int(page.get_by_label(f"Section along {axis}").input_value()) for axis in "xy")
    assert abs(x - width / 4) <= 1
    assert abs(y - height * 3 / 4) <= 1
    assert depth > 3
    with page.expect_response(lambda answer: "map=raw" in answer.url and "/slice" in answer.url) as answer:
        page.locator("label", has_text="as reconstructed").click()
    assert answer.value.ok

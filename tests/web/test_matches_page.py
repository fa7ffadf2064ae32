"""The matches of a series in Chromium: circles on sections, the cut-off, what is saved."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from match_session import add_search, star_of
from series_session import NAME, TOMOGRAM_PIXEL, make
from test_page import SIZES, browser, page_is_built  # noqa: F401  (fixtures)
from test_series_page import OWNER, READER, Served, go, until, visit  # noqa: F401  (a fixture)

import weft
from weft.formats.tomo_particles import read_tomo_particles
from weft.matching.candidates import CandidateSettings
from weft.session.candidate_files import take_candidates
from weft.web.app import Application
from weft.web.security import Access

Visit = Callable[..., Any]
JOB = f"{NAME}_ribosome"
ADDRESS = f"#/series/{NAME}?show=matches"
TEAL = (86, 212, 200)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """Where the particles are, once the session is made."""
    return {}


@pytest.fixture(scope="module")
def served(
    page_is_built: None,  # noqa: F811
    idle_manager: Callable[[Any], Any],
    tmp_path_factory: pytest.TempPathFactory,
    truth: dict[str, np.ndarray],
) -> Iterator[Served]:
    """A session of one series with two searches."""
    made = make(tmp_path_factory.mktemp("matches-page") / "session")
    truth["xyz"] = add_search(made, hand=True)
    add_search(made, ("apoferritin", "proteasome"), seed=4)
    manager = idle_manager(weft.open(made.root))
    found = Served(made, Application(manager, Access(OWNER, READER), status_every=0.3))
    found.start()
    yield found
    found.stop()


def shown(page: Any) -> int:
    return int(page.locator(".pick-count").get_attribute("data-picks"))


def matches(page: Any, search: str = JOB) -> None:
    go(page, ADDRESS)
    page.locator(".search-choice select").select_option(search)
    page.locator(".search-facts", has_text=search.removeprefix(f"{NAME}_").split("+")[0]).wait_for()
    page.locator(".pick-count").wait_for()
    page.locator(".slice-pane[aria-busy=false] canvas").first.wait_for()


def cut_off(page: Any, value: float) -> None:
    page.get_by_label("Cut-off", exact=True).fill(f"{value:g}")


def teal(page: Any, pane: str = "z") -> int:
    """How many pixels of a section have the colour of the first template's circles."""
    count: int = page.locator(f"[data-pane={pane}] canvas").evaluate(
        "(shown, [r, g, b]) => { const c = document.createElement('canvas');"
        " [c.width, c.height] = [shown.width, shown.height]; const on = c.getContext('2d');"
        " on.drawImage(shown, 0, 0); const d = on.getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 0; i < d.length; i += 4)"
        " n += Math.abs(d[i] - r) + Math.abs(d[i + 1] - g) + Math.abs(d[i + 2] - b) < 30; return n; }",
        list(TEAL),
    )
    return count


@pytest.mark.parametrize("size", SIZES)
def test_it_fits(visit: Visit, size: str) -> None:  # noqa: F811
    page = visit(**SIZES[size])
    matches(page)
    wider = page.evaluate(
        "[document.querySelector('main'), document.documentElement]"
        ".map(one => one.scrollWidth - one.clientWidth).reduce((a, b) => Math.max(a, b))"
    )
    assert wider <= 0


def test_the_cut_off_changes_the_count_and_saving_writes_that_many(
    visit: Visit,  # noqa: F811
    served: Served,
) -> None:
    root = served.made.root
    job = root / "matching" / f"{JOB}.json"
    page = visit()
    matches(page)
    assert shown(page) == len(take_candidates(job)), "at first the false alarm's cut-off"
    counts = []
    for value in (0.15, 0.2, 0.25):
        cut_off(page, value)
        wanted = len(take_candidates(job, CandidateSettings(cut_off=value)))
        until(lambda: shown(page) == wanted, f"{wanted} picks at {value}")  # noqa: B023
        counts.append(wanted)
    assert counts == sorted(set(counts), reverse=True)
    page.get_by_label("At most").fill("5")
    page.get_by_label("At most").press("Enter")
    until(lambda: shown(page) == 5, "five at most")
    assert not star_of(root).exists(), "nothing is written by looking"
    page.locator(".cut-off-panel").get_by_role("button", name="Save").click()
    page.locator(".search-facts", has_text="5 in matching/").wait_for()
    assert len(read_tomo_particles(star_of(root))) == 5
    sheet = tomllib.loads((root / "weft.toml").read_text())["candidates"]
    assert (sheet["cut_off"], sheet["number"]) == (0.25, 5)
    page.locator(".unsaved").wait_for(state="detached")
    # and back to what noise allows
    page.get_by_label("At most").fill("1000")
    page.get_by_label("At most").press("Enter")
    page.locator(".cut-off-panel").get_by_role("button", name="Use").first.click()
    automatic = len(take_candidates(job))
    until(lambda: shown(page) == automatic, "the false alarm's cut-off")
    page.locator(".cut-off-panel").get_by_role("button", name="Save").click()
    page.locator(".search-facts", has_text=f"{automatic} in matching/").wait_for()
    assert tomllib.loads((root / "weft.toml").read_text())["candidates"]["cut_off"] == 0.0


def test_circles_are_where_the_particles_are(
    visit: Visit,  # noqa: F811
    truth: dict[str, np.ndarray],
) -> None:
    page = visit()
    matches(page)
    page.get_by_label("Better pick").wait_for()
    page.keyboard.press("j")
    voxels = np.rint(truth["xyz"][0] / TOMOGRAM_PIXEL).astype(int)
    for axis, place in zip("xyz", voxels, strict=True):
        slider = page.get_by_label(f"Section along {axis}")
        until(lambda: slider.input_value() == str(place), f"the best pick along {axis}")  # noqa: B023
    until(lambda: teal(page) > 50 and teal(page, "x") > 50, "circles in both sections")
    page.locator("label", has_text="Picks").locator("input").uncheck()
    until(lambda: teal(page) == 0, "no circles")
    page.locator("label", has_text="Picks").locator("input").check()
    cut_off(page, 0.28)
    page.get_by_role("button", name="Weakest").click()
    page.locator(".pick-turner", has_text="score 0.28").wait_for()
    with page.expect_response(lambda reply: "/slice?" in reply.url and "/matches/" in reply.url) as reply:
        page.locator("label", has_text="Scores").locator("input").check()
    assert reply.value.ok


def test_hand_and_recall_are_shown(visit: Visit) -> None:  # noqa: F811
    page = visit()
    matches(page)
    panel = page.locator(".match-hand")
    assert "certain" in panel.inner_text()
    panel.locator("img").scroll_into_view_if_needed()
    until(lambda: panel.locator("img").evaluate("one => one.naturalWidth") > 0, "the picture")
    page.get_by_role("button", name="Estimate recall").click()
    page.locator(".cut-off-panel th", has_text="Recall").wait_for()
    assert page.locator(".recall-line").count() == 1


def test_competing_templates_have_their_colours_and_readers_no_button(visit: Visit) -> None:  # noqa: F811
    page = visit(READER)
    matches(page, f"{NAME}_apoferritin+proteasome")
    words = page.locator(".cut-off-panel").inner_text()
    assert "apoferritin" in words
    assert "proteasome" in words
    assert page.get_by_role("button", name="Save").count() == 0
    assert page.get_by_role("button", name="Estimate recall").count() == 1

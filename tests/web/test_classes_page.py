"""The classes of a training in Chromium: circles in their colours on sections, chosen and hidden."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from class_session import DIAMETER, LABELS, add_classes
from series_session import NAME, TOMOGRAM_PIXEL, make
from test_page import SIZES, browser, page_is_built  # noqa: F401  (fixtures)
from test_series_page import OWNER, READER, Served, go, until, visit  # noqa: F401  (a fixture)

import weft
from weft.session.heterogeneity.class_colours import class_colour
from weft.web.app import Application
from weft.web.security import Access

Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def places() -> dict[str, np.ndarray]:
    """Of the particles of each training, once the session is made."""
    return {}


@pytest.fixture(scope="module")
def served(
    page_is_built: None,  # noqa: F811
    idle_manager: Callable[[Any], Any],
    tmp_path_factory: pytest.TempPathFactory,
    places: dict[str, np.ndarray],
) -> Iterator[Served]:
    """A session of one series with two trainings."""
    made = make(tmp_path_factory.mktemp("classes-page") / "session")
    places["first"] = add_classes(made, "first")
    places["second"] = add_classes(made, "second", seed=8)
    found = Served(made, Application(idle_manager(weft.open(made.root)), Access(OWNER, READER)))
    found.start()
    yield found
    found.stop()


def coloured(page: Any, number: int, pane: str = "z") -> int:
    """How many pixels of a section have a class's colour."""
    colour = [int(class_colour(number)[i : i + 2], 16) for i in (1, 3, 5)]
    count: int = page.locator(f"[data-pane={pane}] canvas").evaluate(
        "(shown, [r, g, b]) => { const c = document.createElement('canvas');"
        " [c.width, c.height] = [shown.width, shown.height]; const on = c.getContext('2d');"
        " on.drawImage(shown, 0, 0); const d = on.getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 0; i < d.length; i += 4)"
        " n += Math.abs(d[i] - r) + Math.abs(d[i + 1] - g) + Math.abs(d[i + 2] - b) < 30; return n; }",
        colour,
    )
    return count


def tomogram(page: Any) -> None:
    go(page, f"#/series/{NAME}?show=tomogram")
    page.locator(".class-panel").wait_for()
    page.locator(".slice-pane[aria-busy=false] canvas").first.wait_for()


def to(page: Any, place: np.ndarray) -> None:
    """Sections through a place."""
    for axis, voxel in zip("xyz", np.rint(place / TOMOGRAM_PIXEL).astype(int), strict=True):
        page.get_by_label(f"Section along {axis}").fill(str(voxel))


@pytest.mark.parametrize("size", SIZES)
def test_it_fits(visit: Visit, size: str) -> None:  # noqa: F811
    page = visit(**SIZES[size])
    tomogram(page)
    wider = page.evaluate(
        "[document.querySelector('main'), document.documentElement]"
        ".map(one => one.scrollWidth - one.clientWidth).reduce((a, b) => Math.max(a, b))"
    )
    assert wider <= 0
    if folder := os.environ.get("WEFT_PICTURES"):
        page.screenshot(path=f"{folder}/classes_{size}.png")


def test_circles_are_where_the_particles_are_and_can_be_hidden(
    visit: Visit,  # noqa: F811
    places: dict[str, np.ndarray],
) -> None:
    page = visit(token=READER)
    tomogram(page)
    panel = page.locator(".class-panel")
    for number in (1, 2, 3):
        text = panel.locator("label", has_text=f"Class {number}").inner_text()
        assert text.split() == ["Class", str(number), str((number == LABELS).sum())]
        to(page, places["first"][int(np.argmax(number == LABELS))])
        until(lambda: coloured(page, number) > 40 and coloured(page, number, "x") > 40, f"class {number}")  # noqa: B023
        box = panel.locator("label", has_text=f"Class {number}").locator("input")
        box.uncheck()
        until(lambda: coloured(page, number) + coloured(page, number, "x") == 0, f"no class {number}")  # noqa: B023
        box.check()
        until(lambda: coloured(page, number) > 40, f"class {number} again")  # noqa: B023


def test_another_training_has_its_own_places(visit: Visit, places: dict[str, np.ndarray]) -> None:  # noqa: F811
    page = visit()
    tomogram(page)
    third = LABELS == 3
    apart = np.abs(places["first"][third, :1] - places["second"][third, 0]).min(axis=0)
    place = places["second"][third][apart.argmax()]
    assert apart.max() > DIAMETER / 2 + TOMOGRAM_PIXEL, (
        "the first training has no such particle in its section"
    )
    to(page, place)
    page.locator(".class-panel select").select_option("second")
    until(lambda: coloured(page, 3, "x") > 40, "the second training's")
    page.locator(".class-panel select").select_option("first")
    until(lambda: coloured(page, 3, "x") == 0, "none of the first training's is here")

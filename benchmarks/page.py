"""Frames of the page with thousands of items: is it usable at once, and does it stay smooth?

    python benchmarks/page.py [--items 10000]

Makes a session (many_items.py), serves it with `weft live`, and drives the page in Chromium without a GPU:
what is measured is the time between two frames while somebody hovers, brushes, scrolls and searches. A
screen shows one every 16.7 ms; a stall is what takes several.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from many_items import make_session
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
TOKEN = "token-of-the-page-benchmark"
PORT = 8799
_WATCH = """() => {
    window.gaps = []; let last = performance.now(); window.watching = true;
    const look = () => { const now = performance.now(); window.gaps.push(now - last); last = now;
        if (window.watching) requestAnimationFrame(look); };
    requestAnimationFrame(look); }"""
_DRAWN = """() => new Promise(done => { const look = () => {
    const canvas = document.querySelector('[data-metric=defocus] canvas');
    if (!canvas) return requestAnimationFrame(look);
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let painted = 0; for (let i = 3; i < data.length; i += 4) painted += data[i] > 0;
    painted > 2000 ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(look); };
    look(); })"""


def measure(page: Any, what: str, act: Callable[[], None]) -> None:
    """Do something, and print the gaps between frames meanwhile."""
    page.evaluate(_WATCH)
    act()
    gaps = np.array(page.evaluate("() => { window.watching = false; return window.gaps.slice(1) }"))
    numbers = (np.median(gaps), np.percentile(gaps, 95), gaps.max())
    print(f"| {what} | {len(gaps)} | " + " | ".join(f"{number:.0f}" for number in numbers) + " |", flush=True)


def drive(page: Any) -> None:
    """Use the page as a person does."""
    plot = page.locator("[data-metric=defocus] .u-over").bounding_box()

    def sweep(step: float) -> None:
        for i in range(60):
            page.mouse.move(plot["x"] + 20 + i * step, plot["y"] + 30 + (i % 7) * 8)
            page.wait_for_timeout(10)

    def brush() -> None:
        page.mouse.move(plot["x"] + 20, plot["y"] + 15)
        page.mouse.down()
        sweep(7)
        page.mouse.up()

    def wheel(times: int, by: int) -> None:
        for _ in range(times):
            page.mouse.wheel(0, by)
            page.wait_for_timeout(12)

    def limit() -> None:
        handle = page.locator("[data-metric=resolution] .range-upper").bounding_box()
        page.mouse.move(handle["x"] + 60, handle["y"] + 4)
        page.mouse.down()
        for i in range(40):
            page.mouse.move(handle["x"] + 60, handle["y"] + 4 + i)
            page.wait_for_timeout(12)
        page.mouse.up()
        page.wait_for_timeout(1000)

    def search() -> None:
        page.fill("input[type=search]", "1")
        page.wait_for_timeout(300)
        page.select_option("label:has-text('Sort by') select", "resolution")
        page.wait_for_timeout(300)

    print("\n| what | frames | median (ms) | 95 % | longest |\n|---|---|---|---|---|")
    measure(page, "hover over a plot", lambda: sweep(8))
    measure(page, "brush a plot", brush)
    measure(page, "scroll the overview", lambda: wheel(60, 60))
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('main').scrollTop = 0")
    page.wait_for_timeout(300)
    measure(page, "drag a range and apply it", limit)
    page.evaluate("location.hash = '#/micrographs'")
    page.wait_for_selector(".card img")
    page.wait_for_timeout(500)
    page.mouse.move(700, 500)
    measure(page, "scroll the micrographs", lambda: wheel(100, 240))
    measure(page, "search and sort them", search)


def main() -> None:
    """Make the session, serve it, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    items = parser.parse_args().items
    with tempfile.TemporaryDirectory() as folder:
        make_session(Path(folder) / "session", items)
        command = [sys.executable, "-m", "weft", "live", str(Path(folder) / "session"), "--no-watch", "-q"]
        server = subprocess.Popen([*command, "--port", str(PORT), "--token", TOKEN])
        try:
            asking = urllib.request.Request(f"http://127.0.0.1:{PORT}/api/status")
            asking.add_header("Authorization", f"Bearer {TOKEN}")
            began = time.monotonic()
            while time.monotonic() < began + 120 and server.poll() is None:
                try:
                    urllib.request.urlopen(asking, timeout=5).close()
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            print(f"{items} items; the server answered after {time.monotonic() - began:.1f} s")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
                )
                for visit in ("first", "second"):
                    page = browser.new_page(viewport={"width": 1440, "height": 900})
                    page.goto(f"http://127.0.0.1:{PORT}/?token={TOKEN}")
                    print(f"{visit} visit: plots drawn {page.evaluate(_DRAWN) / 1000:.2f} s after its start")
                drive(page)
                browser.close()
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()

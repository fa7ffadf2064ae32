"""Advice to the acquisition: said where the numbers bear it, told when it changes, never in the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.errors import SettingsError
from weft.session.advice import Advice, AdviceSettings, advise
from weft.session.adviser import Adviser
from weft.session.config import sections
from weft.session.selection import Verdict
from weft.session.session import Session


@dataclass(frozen=True)
class Seen:
    """What advice asks of a board's entry."""

    name: str
    mtime: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "/data/GridSquare_1/Data"
    state: str = "done"
    processed: float | None = None
    reason: str = ""

    @property
    def source(self) -> str:
        return f"{self.folder}/{self.name}.tif"


def _seen(count: int, folder: str = "/data/GridSquare_1/Data", start: int = 0, **metrics: Any) -> list[Seen]:
    """Items whose metrics are functions of their number, or numbers."""
    return [
        Seen(
            f"m{start + i:03d}",
            float(start + i),
            {name: how(i) if callable(how) else how for name, how in metrics.items()},
            folder,
        )
        for i in range(count)
    ]


def _verdicts(items: list[Seen], rejected: Callable[[Seen], bool] = lambda item: False) -> dict[str, Verdict]:
    return {item.name: Verdict(not rejected(item)) for item in items}


def _advise(items: list[Seen], settings: AdviceSettings, rejected: Any = lambda item: False) -> list[Advice]:
    return advise(items, _verdicts(items, rejected), settings)


def _noise(seed: int, scale: float) -> Callable[[int], float]:
    values = np.random.default_rng(seed).normal(0, scale, 1000)
    return lambda i: float(values[i])


ALL = AdviceSettings(
    skip=True, refocus=True, settle=True, defocus_targets=(1.5,), skip_ice=0.5, skip_resolution=8.0
)


def test_it_is_off_by_default(new_session: Callable[..., Session]) -> None:
    session = new_session()
    settings = session.settings.get(AdviceSettings)
    assert not settings.enabled
    assert (settings.file, settings.webhook) == (None, None)
    items = _seen(40, defocus=90000.0, motion_early=99.0, ice_ring=9.0, resolution=40.0)
    assert _advise(items, settings, lambda item: True) == []
    assert sections()["advice"] is AdviceSettings


def test_a_good_session_needs_no_advice() -> None:
    noise = _noise(0, 500.0)
    items = _seen(60, defocus=lambda i: 15000 + noise(i), motion_early=2.0, ice_ring=0.1, resolution=4.0)
    assert _advise(items, ALL, lambda item: item.name.endswith("3")) == []
    assert _advise([], ALL) == []


# ---------------------------------------------------------------- skip


def test_an_area_that_gives_nothing_is_skipped() -> None:
    good = _seen(30, "/data/GridSquare_1/Data")
    bad = _seen(12, "/data/GridSquare_2/Data", start=30)
    found = _advise(good + bad, ALL, lambda item: "Square_2" in item.folder and item.name != "m030")
    assert [(a.kind, a.folder) for a in found] == [("skip", "/data/GridSquare_2/Data")]
    evidence = found[0].evidence["rejected"]
    assert evidence["n"] == 12
    assert evidence["fraction"] == pytest.approx(11 / 12, abs=1e-3)
    low, high = evidence["between"]
    # Wilson's limits for 11 of 12
    assert (low, high) == (pytest.approx(0.646, abs=1e-3), pytest.approx(0.985, abs=1e-3))
    assert "11 of its last 12 micrographs are not selected" in found[0].text


def test_few_items_or_half_of_them_are_no_reason_to_skip() -> None:
    bad = _seen(7)
    assert _advise(bad, ALL, lambda item: True) == []
    half = _seen(20)
    assert _advise(half, ALL, lambda item: int(item.name[1:]) < 13) == []
    # what failed says nothing about the specimen
    failed = [Seen(f"f{i}", float(i), state="failed") for i in range(20)]
    assert _advise(failed, ALL, lambda item: True) == []


def test_an_area_that_was_left_is_not_spoken_of() -> None:
    bad, good = _seen(20, "/data/old"), _seen(20, "/data/now", start=20)
    assert _advise(bad + good, ALL, lambda item: item.folder == "/data/old") == []


def test_thick_ice_and_poor_resolution() -> None:
    noise = _noise(1, 0.05)
    items = _seen(15, ice_ring=lambda i: 0.9 + noise(i), resolution=lambda i: 11.0 + noise(i))
    (found,) = _advise(items, ALL)
    assert found.kind == "skip"
    assert found.evidence["ice"]["value"] == pytest.approx(0.9, abs=0.05)
    assert found.evidence["ice"]["limit"] == 0.5
    assert found.evidence["resolution"]["n"] == 15
    assert "median ice ring" in found.text
    assert "above 8 Å" in found.text
    # not asked for, not said
    assert _advise(items, AdviceSettings(skip=True)) == []


def test_areas_by_a_part_of_the_path() -> None:
    items = [
        Seen(f"sq{i // 20}_{i:03d}", float(i), {"ice_ring": 0.9 if i >= 20 else 0.0}, "/data")
        for i in range(40)
    ]
    # the square that was left is fine, the one that is recorded now is not
    (found,) = _advise(items, ALL.model_copy(update={"area": r"(sq\d+)_"}))
    assert found.folder == "sq1"
    (whole,) = _advise(items, ALL.model_copy(update={"area": r"sq\d"}))
    assert whole.folder == "sq1"
    (folder,) = _advise(items, ALL.model_copy(update={"area": "nowhere"}))
    assert folder.folder == "/data"


# ---------------------------------------------------------------- focus


def test_the_offset_from_the_target_is_measured() -> None:
    noise = _noise(2, 400.0)
    (found,) = _advise(_seen(20, defocus=lambda i: 19500 + noise(i)), ALL)
    assert found.kind == "offset"
    offset = found.evidence["offset"]
    assert offset["value"] == pytest.approx(0.45, abs=0.03)
    # 1.25 σ / √n of a normal distribution
    assert offset["error"] == pytest.approx(1.2533 * 0.04 / np.sqrt(20), rel=0.5)
    assert abs(offset["value"] - 0.45) < 3 * offset["error"]
    assert "by −0.4" in found.text
    # the other way round
    (other,) = _advise(_seen(20, defocus=lambda i: 10000 + noise(i)), ALL)
    assert "by +0." in other.text


@pytest.mark.parametrize("offset", [-0.35, 0.0, 0.3, 0.5])
def test_a_list_of_targets(offset: float) -> None:
    """The acquisition goes through 1.0, 1.2 ... 2.0 µm: not scatter, and the offset can still be told."""
    targets = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    noise = _noise(3, 300.0)
    items = _seen(24, defocus=lambda i: 1e4 * (targets[i % 6] + offset) + noise(i))
    settings = AdviceSettings(refocus=True, defocus_targets=targets, last=24)
    found = {a.kind: a for a in _advise(items, settings)}
    if offset:
        assert list(found) == ["offset"]
        assert found["offset"].evidence["offset"]["value"] == pytest.approx(offset, abs=0.03)
    else:
        assert list(found) == ["refocus_less"]


def test_drift_says_how_often_to_focus() -> None:
    noise = _noise(4, 100.0)
    (found,) = _advise(_seen(20, defocus=lambda i: 15000 + 250 * (i - 10) + noise(i)), ALL)
    assert found.kind == "refocus_more"
    drift = found.evidence["drift_per_item"]
    assert drift["value"] == pytest.approx(0.025, abs=3 * drift["error"])
    assert drift["error"] < 0.002
    # 0.2 µm allowed, 25 nm an item
    assert found.evidence["every"] in (7, 8)
    assert f"at least every {found.evidence['every']} items" in found.text


def test_scatter_asks_for_focusing_and_steadiness_for_less() -> None:
    wide, narrow = _noise(5, 4000.0), _noise(6, 100.0)
    (found,) = _advise(_seen(20, defocus=lambda i: 15000 + wide(i)), ALL)
    assert found.kind == "refocus_more"
    assert found.evidence["scatter"]["value"] > 0.2
    (steady,) = _advise(_seen(20, defocus=lambda i: 15000 + narrow(i)), ALL)
    assert steady.kind == "refocus_less"
    # too few to be sure
    assert _advise(_seen(10, defocus=lambda i: 15000 + narrow(i)), ALL) == []


def test_settling_time() -> None:
    noise = _noise(7, 1.0)
    items = _seen(20, motion_early=lambda i: 9.0 + noise(i), motion_total=18.0)
    (found,) = _advise(items, ALL)
    assert found.kind == "settle"
    early = found.evidence["early_motion"]
    assert early["value"] == pytest.approx(9.0, abs=1.0)
    assert early["limit"] == 5.0
    assert found.evidence["share_of_motion"]["value"] == pytest.approx(0.5, abs=0.05)
    # certain of being above, not just above
    far = _noise(8, 4.0)
    assert _advise(_seen(20, motion_early=lambda i: 5.5 + far(i)), ALL) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("advice.area", "(", "not a regular expression"),
        ("advice.file", "../advice.json", "plain file name"),
        ("advice.file", "/etc/advice.json", "plain file name"),
        ("advice.file", "selection.json", "not selection.json"),
        ("advice.file", "weft.toml", "ends in .json"),
        ("advice.webhook", "file:///etc/passwd", "http://"),
        ("advice.webhook", "http://", "http://"),
        ("advice.last", "2", "≥ 5"),
    ],
)
def test_settings_that_cannot_be(
    new_session: Callable[..., Session], key: str, value: str, words: str
) -> None:
    session = new_session()
    with pytest.raises(SettingsError, match=words):
        session.set(key, value)
    session.set("advice.file", "advice.json")
    session.set("advice.webhook", "http://localhost:1/x")
    session.set("advice.defocus_targets", "1.0, 1.5")
    assert session.settings.get(AdviceSettings).defocus_targets == (1.0, 1.5)


# ---------------------------------------------------------------- telling it


class _Listener:
    """A web address on this machine that remembers what it gets."""

    def __init__(self, delay: float = 0.0, status: int = 200) -> None:
        self.got: list[dict[str, Any]] = []
        self.release = threading.Event()
        if not delay:
            self.release.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.release.wait(10)
                listener.got.append({"type": self.headers["Content-Type"], **json.loads(body)})
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def listen() -> Iterator[Callable[..., _Listener]]:
    made: list[_Listener] = []

    def make(**how: Any) -> _Listener:
        made.append(_Listener(**how))
        return made[-1]

    yield make
    for listener in made:
        listener.release.set()
        listener.server.shutdown()
        listener.server.server_close()


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_file_and_address_get_it_when_it_changes(tmp_path: Path, listen: Callable[..., _Listener]) -> None:
    listener = listen()
    settings = ALL.model_copy(update={"file": "advice.json", "webhook": listener.address})
    adviser = Adviser(tmp_path, lambda text: pytest.fail(text))
    calm = _seen(20, defocus=lambda i: 15000 + 500 * (-1) ** i)
    moved = _seen(20, defocus=lambda i: 19000 + 500 * (-1) ** i)

    assert adviser.update(calm, {}, settings) == []
    # the file is there and says so; nobody is called for nothing
    assert json.loads((tmp_path / "advice.json").read_text())["advice"] == []

    adviser.update(moved, {}, settings)
    first = (tmp_path / "advice.json").stat()
    written = json.loads((tmp_path / "advice.json").read_text())
    assert written["session"] == tmp_path.name
    assert written["advice"][0]["kind"] == "offset"
    assert written["advice"][0]["evidence"]["offset"]["n"] == 20
    _wait(lambda: adviser._posted is not None)
    # a little different, but the same advice
    adviser.update(_seen(21, defocus=lambda i: 19010 + 500 * (-1) ** i), {}, settings)
    assert (tmp_path / "advice.json").stat().st_ino == first.st_ino
    adviser.update(calm, {}, settings)
    assert json.loads((tmp_path / "advice.json").read_text())["advice"] == []
    adviser.close(5)
    assert [[a["kind"] for a in message["advice"]] for message in listener.got] == [["offset"], []]
    assert listener.got[0]["type"] == "application/json"
    assert [path.name for path in tmp_path.iterdir()] == ["advice.json"]


def test_a_deaf_address_is_never_waited_for(tmp_path: Path, listen: Callable[..., _Listener]) -> None:
    listener = listen(delay=1.0)
    settings = ALL.model_copy(update={"webhook": listener.address})
    adviser = Adviser(tmp_path)
    begin = time.monotonic()
    for offset in range(1, 30):
        adviser.update(_seen(20, defocus=15000.0 + 5000.0 * offset), {}, settings)
        adviser.update(_seen(20, defocus=15000.0 + 5000.0 * offset), {}, settings)
    assert time.monotonic() - begin < 5
    listener.release.set()
    adviser.close(5)
    # the first, which was on its way, and the newest; those between are out of date
    assert len(listener.got) <= 3
    assert listener.got[-1]["advice"][0]["evidence"]["offset"]["value"] == pytest.approx(14.5)


def test_failures_to_tell_are_noted_once_and_tried_again(
    tmp_path: Path, listen: Callable[..., _Listener]
) -> None:
    listener = listen(status=302)
    notes: list[str] = []
    adviser = Adviser(tmp_path, notes.append)
    settings = ALL.model_copy(update={"webhook": listener.address})
    moved = _seen(20, defocus=19000.0)
    for attempt in (1, 2):
        adviser.update(moved, {}, settings)
        _wait(lambda: len(listener.got) == attempt and adviser._pending is None)  # noqa: B023
    assert len(notes) == 1
    assert "advice.webhook" in notes[0]
    nobody = settings.model_copy(update={"webhook": "http://127.0.0.1:9/", "file": "advice.json"})
    adviser.update(moved, {}, nobody)
    _wait(lambda: len(notes) == 2)
    assert "refused" in notes[1]
    adviser.close()

    (tmp_path / "gone").mkdir()
    lost = Adviser(tmp_path / "gone", notes.append)
    (tmp_path / "gone").rmdir()
    lost.update(moved, {}, ALL.model_copy(update={"file": "advice.json"}))
    assert "advice cannot be written (No such file or directory)" in notes[-1]

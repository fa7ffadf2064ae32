"""A tilt series that arrives while the session runs: movies one by one, an mdoc that grows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weft
from weft.session.live import Manager
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

TINY: dict[str, Any] = SMALL_SERIES | {"width": 224, "height": 224, "tilt_range": 32.0, "tilt_increment": 8.0}


def _wait(done: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = done()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail("it took too long")


def _append_sections(mdoc: Path, text: str, first: int, last: int) -> None:
    """SerialEM adds a section to its mdoc after every tilt."""
    head, *sections = text.split("[ZValue")
    kept = [head, *(f"[ZValue{section}" for section in sections[first:last])]
    with mdoc.open("a") as file:
        file.write("".join(kept[1:] if first else kept))


def test_a_series_arrives(tmp_path: Path) -> None:
    source = tmp_path / "microscope"
    write_tilt_session(source, TiltSimulationSettings(**TINY), seed=4)
    movies = sorted((source / "frames").glob("*.tif"))
    text = (source / "mdoc" / "TS_01.mdoc").read_text()
    frames, mdocs = tmp_path / "frames", tmp_path / "mdoc"
    frames.mkdir()
    mdocs.mkdir()
    session = weft.new(
        tmp_path / "session",
        frames=frames / "*.tif",
        mdoc=mdocs,
        pixel_size=TINY["pixel_size"],
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=3.0,
        live={"poll_interval": 0.1, "settle": 0.1, "series_quiet": 2.0, "series_deadline": 60.0},
        reconstruction={"pixel_size": 25.0},
        alignment={"thickness": 1000.0},
    )
    name = "TS_01"
    with Manager(session, workers=0, device="cpu") as manager:
        for movie in movies[:4]:
            shutil.copy(movie, frames)
        _append_sections(mdocs / "TS_01.mdoc", text, 0, 4)
        _wait(lambda: sum(e.state == "done" for e in manager.board.entries.values()) >= 4)
        assert manager.board.entry(movies[0].stem).kind == "tilt"
        # the rest comes within the quiet time: the series must not have been begun
        for i, movie in enumerate(movies[4:], 4):
            shutil.copy(movie, frames)
            _append_sections(mdocs / "TS_01.mdoc", text, i, i + 1)
        entry = _wait(lambda: (e := manager.board.entry(name)) is not None and e.state == "done" and e)
        assert entry.kind == "series"
        assert entry.metrics["tilts"] == len(movies) == 9
        assert (session.root / entry.outputs["tomogram"]).is_file()
        assert (session.root / "tomograms.star").is_file() or _wait((session.root / "tomograms.star").is_file)
        # a tilt is left out on the page: everything of the series is made anew, and of nothing else
        motion = session[movies[0].stem].record.steps["motion"].fingerprint
        manager.decide_tilts(name, [2], keep=False)
        _wait(
            lambda: (
                (e := manager.board.entry(name)) is not None and e.state == "done" and e.metrics["tilts"] == 8
            )
        )
        assert session[movies[0].stem].record.steps["motion"].fingerprint == motion
        with pytest.raises(weft.SessionError, match="there is no 99"):
            manager.decide_tilts(name, [99], keep=False)
    # what live has made, a run leaves alone
    report = session.run(workers=0)
    assert not report.done
    assert not report.failed


def test_a_movie_that_never_comes(tmp_path: Path) -> None:
    """Its series waits, says for what, and goes on without it after the deadline."""
    source = tmp_path / "microscope"
    write_tilt_session(source, TiltSimulationSettings(**(TINY | {"missing_tilts": (3,)})), seed=4)
    session = weft.new(
        tmp_path / "session",
        frames=source / "frames" / "*.tif",
        mdoc=source / "mdoc",
        pixel_size=TINY["pixel_size"],
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=3.0,
        live={"poll_interval": 0.1, "settle": 0.1, "series_quiet": 1.0, "series_deadline": 12.0},
        reconstruction={"pixel_size": 25.0},
        alignment={"thickness": 1000.0},
    )
    with Manager(session, workers=0, device="cpu") as manager:
        waiting = _wait(
            lambda: [w for w in manager.status()["waiting"] if "not arrived" in w["reason"]], seconds=60.0
        )
        assert waiting[0]["name"] == "TS_01"
        entry = _wait(lambda: (e := manager.board.entry("TS_01")) is not None and e.state == "done" and e)
        assert entry.metrics["tilts"] == 8
        assert entry.metrics["tilts_left_out"] == 1

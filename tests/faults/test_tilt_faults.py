"""Tilt series with something wrong: each fault has its own clear outcome, and costs nobody else anything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import weft
from weft.session.series_book import SeriesBook
from weft.session.session import Session
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

#: Small enough to be made and aligned in seconds.
TINY: dict[str, Any] = SMALL_SERIES | {"width": 224, "height": 224, "tilt_range": 40.0, "tilt_increment": 8.0}
COARSE = {
    "reconstruction": {"pixel_size": 25.0},
    "alignment": {"thickness": 1000.0},
    "tomogram_deconvolution": {"write": False},
}


def _make(folder: Path, **faults: Any) -> Path:
    write_tilt_session(folder, TiltSimulationSettings(**(TINY | faults)), seed=11)
    return folder


def _session(folder: Path, *, run: list[str] | None = None, **changes: Any) -> tuple[Session, Any]:
    given: dict[str, Any] = {
        "frames": folder / "frames" / "*.tif",
        "mdoc": folder / "mdoc",
        "pixel_size": TINY["pixel_size"],
        "voltage": 300.0,
        "cs": 2.7,
        "amplitude": 0.07,
        "dose_per_frame": TINY["dose_per_tilt"] / 2,
        **COARSE,
    }
    session = weft.new(folder / "session", **(given | changes))
    report = session.run(steps=run or ["stack"], workers=0)
    return session, report


def _reasons(session: Session, name: str = "TS_01") -> dict[float, str]:
    return {tilt["angle"]: tilt["reason"] for tilt in session[name].tilts if not tilt["used"]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series without faults, to be copied and broken."""
    return _make(tmp_path_factory.mktemp("sound"))


def test_a_missing_movie(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    lost = sorted((tmp_path / "data" / "frames").glob("*.tif"))[3]
    lost.unlink()
    session, report = _session(tmp_path / "data")
    assert not report.failed
    assert len([t for t in session["TS_01"].tilts if t["used"]]) == 10
    (reason,) = _reasons(session).values()
    assert lost.name in reason
    # it comes after all: then the series has all its tilts
    shutil.copy(sound / "frames" / lost.name, lost)
    session.run(steps=["stack"], workers=0)
    assert not _reasons(session)


def test_a_movie_that_cannot_be_read(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "frames").glob("*.tif"))[5]
    broken.write_bytes(broken.read_bytes()[:3000])
    session, report = _session(tmp_path / "data")
    assert list(report.failed) == [broken.stem]  # the movie, not its series
    (reason,) = _reasons(session).values()
    assert reason.startswith("its movie failed")
    assert len([t for t in session["TS_01"].tilts if t["used"]]) == 10


def test_a_black_tilt(tmp_path: Path) -> None:
    session, report = _session(_make(tmp_path / "data", black_tilts=(4,)), run=["align"])
    assert not report.failed
    (reason,) = _reasons(session).values()
    assert "dark" in reason or "counts" in reason
    assert len(session["TS_01"]) == 10
    assert session["TS_01"].alignment.verdict in ("good", "doubtful")


def test_a_tilt_taken_again(tmp_path: Path) -> None:
    session, report = _session(_make(tmp_path / "data", repeated_tilts=(2,)))
    assert not report.failed
    tilts = session["TS_01"].tilts
    assert len(tilts) == 12
    (reason,) = _reasons(session).values()
    assert "again" in reason
    # the exposure that is left out has damaged the specimen all the same
    assert max(tilt["dose"] for tilt in tilts) == pytest.approx(12 * TINY["dose_per_tilt"], rel=0.01)


def test_a_movie_named_twice(tmp_path: Path) -> None:
    session, report = _session(_make(tmp_path / "data", duplicate_entries=(6,)))
    assert not report.failed
    (reason,) = _reasons(session).values()
    assert "named twice" in reason
    assert len([t for t in session["TS_01"].tilts if t["used"]]) == 11


def test_unsorted_angles_and_no_doses(tmp_path: Path) -> None:
    session, report = _session(_make(tmp_path / "data", unsorted=True, doses=False))
    assert not report.failed
    series = session["TS_01"]
    used = sorted((t for t in series.tilts if t["used"]), key=lambda t: t["section"])
    assert [t["angle"] for t in used] == sorted(t["angle"] for t in used)
    # the exposure is that of the frames, in the order of the dates
    assert all(t["exposure"] == pytest.approx(TINY["dose_per_tilt"]) for t in used)
    by_date = sorted(series.tilts, key=lambda t: t["date"])
    doses = [t["dose"] for t in by_date]
    assert doses == pytest.approx([TINY["dose_per_tilt"] * (i + 1) for i in range(11)])
    assert any("dose" in note.lower() for note in series.results["stack"]["notes"])
    # a tilt that is left out has exposed the specimen like the others
    SeriesBook(session).decide("TS_01", [1], keep=False)
    session.run(steps=["stack"], workers=0)
    after = sorted(session["TS_01"].tilts, key=lambda t: t["date"])
    assert [t["dose"] for t in after] == pytest.approx(doses)


def test_three_tilts(tmp_path: Path) -> None:
    """Too few to be sure of anything: it says so, and gets a tomogram."""
    folder = _make(tmp_path / "data", tilt_range=30.0, tilt_increment=30.0)
    session, report = _session(folder, run=["reconstruct"])
    assert not report.failed
    series = session["TS_01"]
    assert len(series) == 3
    assert series.alignment.verdict != "good"
    assert series.paths["tomogram"].is_file()


def test_two_tilts_cost_that_series_only(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    text = (sound / "mdoc" / "TS_01.mdoc").read_text()
    sections = text.split("[ZValue")
    short = tmp_path / "data" / "mdoc" / "short.mdoc"
    short.write_text("[ZValue".join(sections[:3]))
    session, report = _session(tmp_path / "data")
    assert list(report.failed) == ["short"]
    assert "a series needs 3" in report.failed["short"]
    assert "TS_01" in report.done
    assert session["TS_01"].error is None


def test_an_mdoc_that_is_none(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    (tmp_path / "data" / "mdoc" / "garbage.mdoc").write_bytes(bytes(range(256)) * 20)
    notes: list[str] = []
    session, _ = _session(tmp_path / "data", run=["motion"])
    report = session.run(steps=["stack"], workers=0, progress=lambda p: notes.append(p.note))
    assert not report.failed
    assert any("garbage.mdoc" in note for note in notes)
    assert "TS_01" in session.series


def test_no_mdocs_at_all(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(sound / "frames", tmp_path / "frames")
    notes: list[str] = []
    session, _ = _session(tmp_path, mdoc=tmp_path / "empty", run=["motion"])
    session.run(steps=["motion"], workers=0, progress=lambda p: notes.append(p.note))
    assert any("empty" in note for note in notes)


def test_images_of_two_sizes(sound: Path, tmp_path: Path) -> None:
    from weft.formats.tiff import write_tiff
    from weft.movies.source import open_movie

    shutil.copytree(sound, tmp_path / "data")
    odd = sorted((tmp_path / "data" / "frames").glob("*.tif"))[7]
    with open_movie(odd) as source:
        frames = [source.read(i)[:-32] for i in range(len(source))]
    odd.unlink()
    write_tiff(odd, frames)
    _, report = _session(tmp_path / "data")
    assert "224×192" in report.failed["TS_01"]
    assert odd.name in report.failed["TS_01"]

"""A session from new to finished: what is written, what is redone, what is left alone."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

import weft
from weft.errors import SessionError, SettingsError
from weft.formats import mrc
from weft.formats.star import read_star
from weft.session.run_report import Progress
from weft.session.session import Session

NewSession = Callable[..., Session]


@pytest.fixture(scope="module")
def finished(tiny_movies: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session that has run; tests copy it before they change it."""
    session = weft.new(
        tmp_path_factory.mktemp("finished") / "s",
        frames=tiny_movies / "frames" / "*.tif",
        gain=tiny_movies / "gain.mrc",
        pixel_size=1.5,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=4.0,
        average={"halves": True},
    )
    report = session.run(workers=0, threads=1)
    assert report.exit_code == 0
    assert sorted(report.done) == ["movie_000", "movie_001", "movie_002"]
    return session


@pytest.fixture
def copy(finished: Session, tmp_path: Path) -> Session:
    shutil.copytree(finished.root, tmp_path / "copy")
    return weft.open(tmp_path / "copy")


def _ran(session: Session, before: dict[str, dict[str, float]]) -> dict[str, set[str]]:
    """Steps of each item whose timing is another than before: they have run again."""
    out: dict[str, set[str]] = {}
    for name, record in session.store.read_all().items():
        old = before.get(name, {})
        out[name] = {step for step, stamp in _stamps(session, name).items() if old.get(step) != stamp}
        assert set(record.timings) <= {"motion", "ctf", "pick"}
    return out


def _stamps(session: Session, name: str) -> dict[str, float]:
    """When each step last wrote: the time of its first output."""
    record = session.store.read(name)
    assert record is not None
    return {
        step: max((session.root / path).stat().st_mtime_ns for path in done.outputs.values())
        for step, done in record.steps.items()
        if done.outputs
    }


def _all_stamps(session: Session) -> dict[str, dict[str, float]]:
    return {name: _stamps(session, name) for name in session.store.names()}


def test_every_file_is_where_it_belongs(finished: Session) -> None:
    root = finished.root
    for name in ("movie_000", "movie_001", "movie_002"):
        image, info = mrc.read(root / "average" / f"{name}.mrc")
        assert image.shape == (320, 320)
        assert info.pixel_size == pytest.approx(1.5, rel=1e-4)  # the header is single precision
        assert (root / "average" / "even" / f"{name}.mrc").is_file()
        assert (root / "average" / "odd" / f"{name}.mrc").is_file()
        assert (root / "powerspectrum" / f"{name}.npz").is_file()
        for folder in ("thumbnails", "powerspectrum"):
            picture = imagecodecs.png_decode((root / folder / f"{name}.png").read_bytes())
            assert picture.dtype == np.uint8
            assert picture.std() > 5  # not blank
    assert not list(root.rglob("*.part"))
    assert not (root / ".lock").exists()


def test_the_table_has_what_relion_wants(finished: Session) -> None:
    tables = read_star(finished.root / "micrographs.star")
    assert tables["optics"].value("rlnMicrographPixelSize") == "1.5"
    micrographs = tables["micrographs"]
    assert len(micrographs) == 3
    for label in (
        "rlnMicrographName",
        "rlnMicrographMetadata",
        "rlnOpticsGroup",
        "rlnDefocusU",
        "rlnDefocusV",
        "rlnDefocusAngle",
        "rlnCtfAstigmatism",
        "rlnCtfFigureOfMerit",
        "rlnCtfMaxResolution",
        "rlnAccumMotionTotal",
        "rlnAccumMotionEarly",
        "rlnAccumMotionLate",
    ):
        assert label in micrographs
    for label in ("rlnMicrographName", "rlnMicrographMetadata"):
        assert all(Path(name).is_file() for name in micrographs.strings(label))
    difference = micrographs.floats("rlnDefocusU") - micrographs.floats("rlnDefocusV")
    np.testing.assert_allclose(micrographs.floats("rlnCtfAstigmatism"), difference, atol=0.01)


def test_items_answer_as_the_models_do(finished: Session) -> None:
    movie = finished["movie_001"]
    xy = np.array([[10.0, 20.0], [400.0, 300.0]])
    assert movie.track(xy).shape == (5, 2, 2)
    u, v, angle = movie.ctf.at(xy)
    assert len(u) == len(v) == len(angle) == 2
    assert movie.metrics["pixel_size"] == 1.5
    assert movie.metrics["frames"] == 5
    assert movie.error is None
    assert movie.paths["average"].is_file()
    assert [m.name for m in finished] == ["movie_000", "movie_001", "movie_002"]
    with pytest.raises(SessionError, match="no item 'nonsense'"):
        _ = finished["nonsense"]


def test_the_index_is_a_cache(copy: Session, finished: Session) -> None:
    def rows() -> list[tuple[str, str]]:
        with sqlite3.connect(copy.root / "index.sqlite") as database:
            return database.execute("SELECT name, state FROM items ORDER BY name").fetchall()

    before = rows()
    assert [row[0] for row in before] == ["movie_000", "movie_001", "movie_002"]
    # it was made elsewhere, and names are absolute
    star = (copy.root / "micrographs.star").read_text().replace(str(finished.root), str(copy.root))
    (copy.root / "index.sqlite").unlink()
    (copy.root / "micrographs.star").unlink()
    assert copy.reindex() == 3
    assert rows() == before
    assert (copy.root / "micrographs.star").read_text() == star


def test_a_broken_index_stops_no_run(copy: Session) -> None:
    (copy.root / "index.sqlite").write_bytes(b"garbage" * 1000)
    assert copy.run(workers=0, threads=1).exit_code == 0
    with sqlite3.connect(copy.root / "index.sqlite") as database:
        assert database.execute("SELECT count(*) FROM items").fetchone() == (3,)


def test_nothing_is_done_twice(copy: Session) -> None:
    before = _all_stamps(copy)
    report = copy.run(workers=0, threads=1)
    assert report.done == []
    assert len(report.current) == 3
    assert not any(_ran(copy, before).values())


@pytest.mark.parametrize(
    ("key", "value", "steps"),
    [
        ("ctf.range_max", "6.5", {"ctf"}),
        ("motion.bfactor", "50", {"motion", "ctf", "pick"}),
        ("average.dose_weighting", "none", {"motion", "ctf", "pick"}),
        ("engine.threads", "1", set()),
        ("input.frames", "{frames}/movie_*.tif", set()),
    ],
)
def test_a_change_redoes_what_reads_it_and_nothing_else(
    copy: Session, tiny_movies: Path, key: str, value: str, steps: set[str]
) -> None:
    before = _all_stamps(copy)
    copy.set(key, value.format(frames=tiny_movies / "frames"))
    states = {name: status.steps for name, status in copy.status().items()}
    stale = {step for item in states.values() for step, state in item.items() if state.state == "stale"}
    assert stale == steps
    if steps:
        reasons = {item[next(s for s in ("motion", "ctf") if s in steps)].reason for item in states.values()}
        assert reasons == {f"changed: {key}"}
    copy.run(workers=0, threads=1, only="movie_000")
    assert _ran(copy, before) == {"movie_000": steps, "movie_001": set(), "movie_002": set()}
    if steps:
        assert {n: s.state for n, s in copy.status().items()}["movie_001"] == "stale"


def test_setting_it_back_needs_a_run_only_where_it_was_redone(copy: Session) -> None:
    old = copy.settings.plain()["ctf"]["range_max"]
    copy.set("ctf.range_max", "6.5")
    copy.run(workers=0, threads=1, only="movie_000")
    copy.set("ctf.range_max", str(old))
    states = {name: status.state for name, status in copy.status().items()}
    assert states == {"movie_000": "stale", "movie_001": "done", "movie_002": "done"}


def test_a_deleted_result_is_made_again(copy: Session) -> None:
    before = (copy.root / "average" / "movie_002.mrc").read_bytes()
    (copy.root / "average" / "movie_002.mrc").unlink()
    assert "average/movie_002.mrc is missing" in copy.status()["movie_002"].reason
    assert copy.run(workers=0, threads=1).done == ["movie_002"]
    assert (copy.root / "average" / "movie_002.mrc").read_bytes() == before


def test_a_replaced_input_is_done_again(new_session: NewSession, tiny_movies: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    shutil.copy(tiny_movies / "frames" / "movie_000.tif", frames / "a.tif")
    session = new_session(frames=frames / "*.tif")
    session.run(workers=0, threads=1)
    shutil.copy(tiny_movies / "frames" / "movie_001.tif", frames / "a.tif")
    assert session.status()["a"].reason == "the input file has changed"
    assert session.run(workers=0, threads=1).done == ["a"]


def test_results_stay_when_the_movies_are_moved_away(
    new_session: NewSession, tiny_movies: Path, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    shutil.copy(tiny_movies / "frames" / "movie_000.tif", frames / "a.tif")
    session = new_session(frames=frames / "*.tif")
    session.run(workers=0, threads=1)
    record = session.store.read("a")
    (frames / "a.tif").rename(tmp_path / "elsewhere.tif")
    assert session.run(workers=0, threads=1).current == ["a"]
    session.set("motion.bfactor", "10")
    report = session.run(workers=0, threads=1)
    assert report.exit_code == 1
    assert "cannot be read" in report.failed["a"]
    assert session.store.read("a") == record  # what was known is not thrown away
    (tmp_path / "elsewhere.tif").rename(frames / "a.tif")
    assert session.run(workers=0, threads=1).done == ["a"]


def test_one_step_brings_those_that_it_needs(new_session: NewSession) -> None:
    session = new_session()
    session.run(["motion"], "movie_000", workers=0)
    assert set(session["movie_000"].results) == {"motion"}
    session.run(["ctf"], "movie_001", workers=0)
    assert set(session["movie_001"].results) == {"motion", "ctf"}
    # a row needs every column: the one without CTF waits
    assert len(read_star(session.root / "micrographs.star")["micrographs"]) == 1
    with pytest.raises(SettingsError, match="'nonsense' is not a step; there are motion, ctf"):
        session.run(["nonsense"])


def test_nothing_to_do_is_said(new_session: NewSession, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no item is called x"):
        new_session().run(only="x*", workers=0)
    with pytest.raises(SessionError, match="no file matches"):
        new_session("empty", frames=tmp_path / "*.nothing").run(workers=0, threads=1)


def test_progress_tells_each_item(new_session: NewSession) -> None:
    told: list[Progress] = []
    new_session().run(["motion"], workers=0, progress=told.append)
    assert [(p.finished, p.total) for p in told] == [(1, 3), (2, 3), (3, 3)]


def test_workers_give_the_same_as_none(finished: Session, new_session: NewSession) -> None:
    session = new_session(average={"halves": True})
    report = session.run(workers=2, threads=1)
    assert report.exit_code == 0
    for name in ("movie_000", "movie_001", "movie_002"):
        ours, theirs = session.store.read(name), finished.store.read(name)
        assert ours is not None
        assert theirs is not None
        # another number of threads sums in another order: single precision, not bit by bit
        for key, value in theirs.metrics.items():
            if isinstance(value, float):
                assert ours.metrics[key] == pytest.approx(value, rel=1e-2, abs=1e-2), key
        assert {s: r.fingerprint for s, r in ours.steps.items()} == {
            s: r.fingerprint for s, r in theirs.steps.items()
        }


def test_a_settings_file_that_breaks_during_a_run_spoils_nothing(new_session: NewSession) -> None:
    session = new_session()
    path = session.root / "weft.toml"
    good = path.read_text()

    def spoil(progress: Progress) -> None:
        path.write_text("[broken")

    assert session.run(["motion"], workers=0, progress=spoil).exit_code == 0
    path.write_text(good)
    assert all(status.steps["motion"].state == "done" for status in session.status().values())


def test_records_hold_timings_apart(finished: Session) -> None:
    data = json.loads(finished.store.path("movie_000").read_text())
    assert set(data["timings"]) == {"motion", "ctf", "pick"}
    assert "seconds" not in json.dumps(data["steps"])

"""Sessions of tilt series, from frames and mdocs to tomograms, and what becomes stale when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import starfile

import weft
from weft.session import config
from weft.session.plan import step_states
from weft.session.series_book import SeriesBook
from weft.session.session import Session
from weft.simulation.tilt_settings import SMALL_SERIES

STEPS = ["stack", "align", "tilt_ctf", "reconstruct"]


def _name(tilt_session: Session) -> str:
    return next(iter(tilt_session.series))


def test_from_frames_to_a_tomogram(done_tilts: Path, tilt_frames: Path) -> None:
    session = weft.open(done_tilts)
    series = session[_name(session)]
    truth = json.loads(next(tilt_frames.glob("*.json")).read_text())
    n = len(truth["tilts"])
    assert series.metrics["tilts"] == n == len(series)
    assert list(series.tilt_angles) == sorted(t["tilt"] for t in truth["tilts"])
    assert all(tilt["used"] for tilt in series.tilts)
    # every tilt is a movie of its own, without the steps of micrographs
    tilt = session[series.tilts[0]["item"]]
    assert tilt.kind == "tilt"
    assert set(tilt.record.steps) == {"motion"}
    assert series.hand == truth["hand"] == -1
    assert series.alignment.method == "fiducials"
    # one point, followed through the truth and through the session; a rigid motion is free, so distances only
    path = series.paths["tomogram"]
    assert path.name == f"{series.name}_20.00Apx.mrc"
    with mrcfile.open(path) as volume:
        shape = volume.data.shape
        assert volume.voxel_size.x == pytest.approx(20.0)
        assert np.isfinite(volume.data).all()
    size = [round(v / 20.0 / 2) * 2 for v in series.volume_size]
    assert list(shape) == size[::-1]
    for name in ("tomogram_deconvolved", "slices", "slices_deconvolved", "xf", "tlt", "aln", "star", "xml"):
        assert series.paths[name].is_file(), name


def test_projection_agrees_with_the_truth(done_tilts: Path, tilt_frames: Path) -> None:
    """Distances between particles in every image, which no rigid motion of the specimen changes: 1 px."""
    session = weft.open(done_tilts)
    series = session[_name(session)]
    truth = json.loads(next(tilt_frames.glob("*.json")).read_text())
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    xyz = np.array(truth["particles_xyz_centered"])
    order = np.argsort([t["tilt"] for t in truth["tilts"]], kind="stable")
    tilts = [truth["tilts"][i] for i in order]
    true = []
    for tilt in tilts:
        # the formula of the simulator's truth, written out
        a, b = np.deg2rad(tilt["tilt"] + truth["level"][1]), np.deg2rad(-truth["axis"])
        x = np.deg2rad(truth["level"][0])
        rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        ry = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        rz = np.array([[np.cos(b), np.sin(b), 0], [-np.sin(b), np.cos(b), 0], [0, 0, 1]])
        q = xyz @ (rz @ ry @ rx).T
        true.append(q[:, :2] + np.array(tilt["shift"]))
    centre = np.array(series.volume_size) / 2
    image = series.geometry.image_size.numpy() / 2

    def left(p: Any) -> Any:
        moved = xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + centre
        return (series.project(moved)[..., :2] - image - np.array(true)).ravel()

    fit = least_squares(left, np.zeros(6), x_scale=[0.05] * 3 + [50.0] * 3, loss="soft_l1", f_scale=5.0)
    error = left(fit.x).reshape(-1, 2)
    assert np.sqrt((error**2).sum(-1).mean()) < SMALL_SERIES["pixel_size"]


def test_tables_of_relion_and_imod(done_tilts: Path) -> None:
    session = weft.open(done_tilts)
    series = session[_name(session)]
    table = starfile.read(session.root / "tomograms.star")
    row = table.iloc[0] if hasattr(table, "iloc") else table
    assert row["rlnTomoName"] == series.name
    assert row["rlnTomoHand"] == -series.hand
    assert Path(row["rlnTomoTiltSeriesStarFile"]).is_file()
    tilts = starfile.read(row["rlnTomoTiltSeriesStarFile"])
    assert len(tilts) == len(series)
    np.testing.assert_allclose(tilts["rlnTomoNominalStageTiltAngle"], series.tilt_angles)
    mean = 0.5 * (tilts["rlnDefocusU"] + tilts["rlnDefocusV"])
    np.testing.assert_allclose(mean, series.ctf.defocus, atol=0.02)
    assert all(Path(name).is_file() for name in tilts["rlnMicrographName"])
    assert not (session.root / "micrographs.star").exists()  # tilts are no micrographs


def test_nothing_is_done_twice(tilt_session: Session) -> None:
    report = tilt_session.run(workers=0)
    assert not report.done
    assert not report.failed


def test_a_tilt_left_out_by_hand(tilt_session: Session) -> None:
    """It makes everything of its series stale, and nothing else; then the series has one tilt less."""
    name = _name(tilt_session)
    before = len(tilt_session[name])
    SeriesBook(tilt_session).decide(name, [0], keep=False)
    states = step_states(tilt_session[name].record, tilt_session.settings, tilt_session.root)
    assert {states[step].state for step in STEPS} == {"stale"}
    report = tilt_session.run(steps=["align"], workers=0)
    assert report.done == [name]
    series = tilt_session[name]
    assert len(series) == before - 1
    left_out = [tilt for tilt in series.tilts if not tilt["used"]]
    assert [tilt["reason"] for tilt in left_out] == ["left out by hand"]
    # and the decision stands when mdocs are read again
    tilt_session.run(steps=["align"], workers=0)
    assert len(tilt_session[name]) == before - 1


def test_a_movie_that_is_excluded_leaves_its_series(tilt_session: Session) -> None:
    """With its reason, and comes back when it is included again; its own record stays as it is."""
    name = _name(tilt_session)
    before = len(tilt_session[name])
    movie = next(tilt["item"] for tilt in tilt_session[name].tilts if tilt["used"])
    motion = tilt_session[movie].record
    tilt_session.select(tilt_session.selection.decide(movie, accept=False))
    report = tilt_session.run(steps=["stack"], workers=0)
    assert report.done == [name]
    assert report.excluded == [movie]
    left_out = {tilt["item"]: tilt["reason"] for tilt in tilt_session[name].tilts if not tilt["used"]}
    assert left_out == {movie: "its movie is excluded by hand"}
    assert tilt_session[name].metrics["tilts"] == before - 1
    tilt_session.select(tilt_session.selection.decide(movie, accept=True))
    assert tilt_session.run(steps=["stack"], workers=0).done == [name]
    assert tilt_session[name].metrics["tilts"] == before
    assert tilt_session[movie].record == motion


def test_settings_make_stale_what_reads_them(tilt_session: Session) -> None:
    name = _name(tilt_session)

    def stale() -> list[str]:
        states = step_states(tilt_session[name].record, tilt_session.settings, tilt_session.root)
        return [step for step in STEPS if states[step].state != "done"]

    assert stale() == []
    tilt_session.set("reconstruction.pixel_size", "25")
    assert stale() == ["reconstruct"]
    tilt_session.set("handedness.hand", "-1")
    assert stale() == ["tilt_ctf", "reconstruct"]
    tilt_session.set("alignment.thickness", "1000")
    assert stale() == ["align", "tilt_ctf", "reconstruct"]


def test_motion_again_makes_the_series_stale(tilt_session: Session) -> None:
    name = _name(tilt_session)
    tilt_session.set("motion.range_max", "12")
    report = tilt_session.run(steps=["stack"], workers=0)
    assert name in report.done
    states = step_states(tilt_session[name].record, tilt_session.settings, tilt_session.root)
    assert states["stack"].state == "done"
    assert states["align"].state == "stale"


def test_a_hand_that_is_set_is_used(tilt_session: Session) -> None:
    """Also against the data: then the other fit's defoci come with it."""
    name = _name(tilt_session)
    tilt_session.set("handedness.hand", "+1")
    tilt_session.run(steps=["tilt_ctf"], workers=0)
    series = tilt_session[name]
    assert series.hand == 1.0
    assert series.metrics["hand_from"] == "set"
    assert series.ctf.hand == 1.0
    # what the data say is still said
    assert series.handedness.hand == -1.0
    point = np.array(series.volume_size) / 2 + [[200.0, 0.0, 0.0]]
    seen = series.project(point)[:, 0, 2] - series.ctf.defocus
    assert np.polyfit(np.sin(np.deg2rad(series.tilt_angles)), seen, 1)[0] > 150.0


def test_workers_give_the_same(new_tilt_session: Callable[..., Session], done_tilts: Path) -> None:
    session = new_tilt_session()
    report = session.run(steps=["align"], workers=2)
    assert not report.failed
    name = _name(session)
    mine, theirs = session[name], weft.open(done_tilts)[name]
    assert mine.record.steps["align"].fingerprint == theirs.record.steps["align"].fingerprint
    np.testing.assert_allclose(
        mine.geometry.shift.numpy(), theirs.alignment.geometry.shift.numpy(), atol=0.02
    )


def test_only_one_series(new_tilt_session: Callable[..., Session]) -> None:
    """A series takes its movies along, whatever they are called; other patterns name nothing."""
    session = new_tilt_session()
    SeriesBook(session).look(session.movie_sources({}), {})
    report = session.run(steps=["stack"], only=_name(session), workers=0)
    assert not report.failed
    assert _name(session) in report.done
    with pytest.raises(weft.SessionError, match="no item is called nothing"):
        session.run(only="nothing", workers=0)


def test_movies_become_tilts_when_mdocs_come(
    new_tilt_session: Callable[..., Session], tilt_frames: Path
) -> None:
    session = new_tilt_session(mdoc=())
    first = next(iter(session.items))
    session.run(steps=["ctf"], only=first, workers=0)
    assert session[first].kind == "movie"
    config.edit_file(session.root, {"input.mdoc": str(tilt_frames / "mdoc")})
    report = session.run(steps=["motion"], only=first, workers=0)
    assert report.done == [first]  # a tilt's average is not dose-weighted
    assert session[first].kind == "tilt"
    # the defocus was that of another average, and tilts get theirs with their series
    assert set(session[first].record.steps) == {"motion"}


def test_beads_are_erased_where_the_alignment_or_the_network_sees_them(tilt_session: Session) -> None:
    """Gold is the densest thing in a tomogram; either way it goes."""
    name = _name(tilt_session)
    markers = tilt_session[name].alignment.markers.numpy()
    assert len(markers) >= 7, "of eight, one of which is near the border of the field"

    def gold() -> float:
        """The densest voxel within 60 Å of the faintest marker; of the strongest, once they are erased."""
        with mrcfile.open(weft.open(tilt_session.root)[name].paths["tomogram"]) as file:
            volume, step = file.data, float(file.voxel_size.x)
            z, y, x = ((np.arange(n) - n / 2) * step for n in volume.shape)
            densest = []
            for at in markers:
                r2 = (z - at[2])[:, None, None] ** 2 + (y - at[1])[:, None] ** 2 + (x - at[0]) ** 2
                densest.append(volume[r2 < 60.0**2].max())
            return float(max(densest) if filled else min(densest))

    filled: dict[str, float] = {}
    with_beads = gold()
    for how in ("alignment", "network"):
        config.edit_file(tilt_session.root, {"bead_erasing.erase": "true", "bead_erasing.find": how})
        session = weft.open(tilt_session.root)
        assert not session.run(steps=["reconstruct"], workers=0).failed
        filled[how] = weft.open(tilt_session.root)[name].metrics["beads_filled"]
        assert gold() < 0.6 * with_beads, "the densest that is left, against the faintest that was there"
    # the network's discs end at the fringe that it sees, the others where theory says
    assert 0.4 < filled["network"] / filled["alignment"] < 2.5

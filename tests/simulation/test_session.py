"""Files of movies and sessions, and their truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from weft.errors import RequestError
from weft.formats import mrc
from weft.movies.source import SourceSettings, open_movie
from weft.simulation.movie import MovieSimulationSettings, simulate_movie
from weft.simulation.session import eer_raw_frames, session_settings, simulate_session, write_movie

SMALL = MovieSimulationSettings(width=96, height=80, frames=3, ice_thickness=100.0, coverage=0.0)

KEYS = {
    "seed", "optics", "frames", "shape", "dose_per_frame", "defocus", "astig", "astig_angle", "plane",
    "track_xy", "tracks", "global_shift", "particles_xy", "eulers", "radius", "gain",
}  # fmt: skip


@pytest.fixture(scope="module")
def movie():
    return simulate_movie(SMALL, 3)


@pytest.mark.parametrize("format", ["tiff", "mrc", "eer"])
def test_round_trip(tmp_path, movie, format):
    path = write_movie(tmp_path, "one", movie, format)
    group = SourceSettings(eer_frames=eer_raw_frames(SMALL)) if format == "eer" else SourceSettings()
    with open_movie(path, group) as source:
        assert len(source) == 3
        for i in range(3):
            np.testing.assert_array_equal(np.asarray(source.read(i), int), movie.frames[i].astype(int))
    gain, info = mrc.read(tmp_path / "gain.mrc")
    np.testing.assert_array_equal(gain, movie.gain)
    assert info.pixel_size == pytest.approx(1.0)
    truth = json.loads((tmp_path / "truth" / "one.json").read_text())
    assert truth["gain"] == "gain.mrc"
    assert set(truth) == KEYS


def test_tiff_rows_are_flipped(tmp_path, movie):
    path = write_movie(tmp_path, "one", movie, "tiff", gain=False)
    np.testing.assert_array_equal(tifffile.imread(path), movie.frames[:, ::-1])
    assert not (tmp_path / "gain.mrc").exists()


def test_counts_above_a_byte(tmp_path):
    s = SMALL.model_copy(update={"dose_per_frame": 100.0, "pixel_size": 2.0, "frames": 2})
    movie = simulate_movie(s, 0)
    assert movie.frames.dtype == np.uint16
    for format in ("tiff", "mrc"):
        with open_movie(write_movie(tmp_path, format, movie, format)) as source:
            np.testing.assert_array_equal(np.asarray(source.read(1), int), movie.frames[1].astype(int))


def test_truth_has_the_reference_keys(reference_data, movie):
    reference = json.loads((reference_data / "reference" / "movie_flat.json").read_text())
    assert set(movie.truth) == set(reference) == KEYS
    assert set(movie.truth["optics"]) == set(reference["optics"])
    for key in ("track_xy", "tracks", "global_shift", "plane", "shape"):
        ours, theirs = np.array(movie.truth[key]), np.array(reference[key])
        assert ours.ndim == theirs.ndim
        # only the number of frames differs
        assert ours.shape[1:] == theirs.shape[1:]
    np.testing.assert_allclose(
        np.array(movie.truth["track_xy"]) / [96.0, 80.0],
        np.array(reference["track_xy"]) / (2048 * 0.95),
    )


def test_particles_are_in_the_truth(small_pdb):
    s = MovieSimulationSettings(
        width=256, height=192, frames=1, specimen=str(small_pdb), coverage=0.2, tilt=30.0
    )
    truth = simulate_movie(s, 0).truth
    xy, eulers = np.array(truth["particles_xy"]), np.array(truth["eulers"])
    assert len(xy) == len(eulers) > 10
    radius = truth["radius"]
    assert (xy >= radius).all()
    assert (xy <= np.array([256.0, 192.0]) - radius).all()
    assert truth["plane"] == pytest.approx([np.tan(np.pi / 6), 0.0])
    assert truth["defocus"] == pytest.approx(13000.0)
    assert truth["astig"] == pytest.approx(300.0)


def test_session(tmp_path):
    calls = []
    made = simulate_session(
        tmp_path, 3, SMALL, seed=4, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [p.name for p in made.movies] == ["movie_000.tif", "movie_001.tif", "movie_002.tif"]
    assert all(p.is_file() for p in [*made.movies, *made.truths, made.gain])
    truths = [json.loads(p.read_text()) for p in made.truths]
    assert len({t["defocus"] for t in truths}) == 3
    assert len({t["seed"] for t in truths}) == 3
    # one is tilted by 25 degrees, the others are flat
    slopes = [np.hypot(*t["plane"]) for t in truths]
    assert slopes == pytest.approx([0.0, 0.0, np.tan(np.radians(25.0))])
    gain, _ = mrc.read(made.gain)
    assert (gain == 0).sum() == SMALL.dead_pixels
    frames = [tifffile.imread(p)[:, ::-1] for p in made.movies]
    assert all((f[:, gain == 0] == 0).all() for f in frames)
    assert (frames[0] != frames[1]).any()


def test_session_is_the_same_for_any_number_of_processes(tmp_path):
    one = simulate_session(tmp_path / "one", 2, SMALL, seed=1)
    two = simulate_session(tmp_path / "two", 2, SMALL, seed=1, workers=2)
    for a, b in zip([*one.movies, *one.truths, one.gain], [*two.movies, *two.truths, two.gain], strict=True):
        assert a.name == b.name
        assert a.read_bytes() == b.read_bytes() or a.suffix == ".mrc"
    np.testing.assert_array_equal(mrc.read(one.gain)[0], mrc.read(two.gain)[0])


def test_session_settings_keep_what_is_shared():
    every = session_settings(5, SMALL, seed=2)
    for one in every:
        assert (one.width, one.voltage, one.frames) == (96, SMALL.voltage, 3)
        assert 0.7 * SMALL.defocus < one.defocus < 1.4 * SMALL.defocus
    assert sum(one.tilt != 0.0 for one in every) == 1
    tilted = SMALL.model_copy(update={"tilt": 10.0})
    assert all(one.tilt == 10.0 for one in session_settings(3, tilted))
    assert len(session_settings(1, SMALL)) == 1


def test_wrong_requests(tmp_path, movie):
    with pytest.raises(RequestError, match="0 movies"):
        simulate_session(tmp_path, 0)
    with pytest.raises(RequestError, match="tiff, mrc or eer"):
        simulate_session(tmp_path, 1, SMALL, format="png")
    hot = simulate_movie(SMALL.model_copy(update={"hot_pixels": 3}), 0)
    with pytest.raises(RequestError, match="without hot pixels"):
        write_movie(tmp_path, "hot", hot, "eer")


def test_a_failure_in_a_process_is_reported(tmp_path):
    broken = SMALL.model_copy(update={"specimen": str(tmp_path / "missing.pdb")})
    with pytest.raises(RequestError, match=r"missing\.pdb"):
        simulate_session(tmp_path / "out", 2, broken, workers=2)

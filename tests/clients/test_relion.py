"""RELION itself reads what we write, and finds the motion in it that we found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weft
from weft.formats import mrc
from weft.formats.relion import evaluate_motion_model, fit_motion_model
from weft.formats.star import Table, read_star, write_star
from weft.session.session import Session
from weft.session.tables import write_micrographs_star

Relion = Callable[..., str]
PIXEL, FRAMES, SKIPPED = 1.5, 7, 1


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as RELION is started in, with two processed movies; the first frame is left out."""
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    root = tmp_path_factory.mktemp("project")
    settings = MovieSimulationSettings(
        width=512, height=512, frames=FRAMES, pixel_size=PIXEL, dose_per_frame=4.0
    )
    simulate_session(root, 2, settings, seed=3)
    session = weft.new(
        root / "weft",
        frames=root / "frames" / "*.tif",
        gain=root / "gain.mrc",
        pixel_size=PIXEL,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=4.0,
        skip_first=SKIPPED,
        motion={"local": "on"},
    )
    report = session.run(workers=0)
    assert report.exit_code == 0, report.failed
    records = session.store.read_all().values()
    write_micrographs_star(root / "micrographs.star", records, session.root, root)
    return root


@pytest.fixture(scope="module")
def particles(project: Path, relion: Relion) -> Path:
    """Particles that RELION has extracted from our micrographs at places that mean nothing."""
    rng = np.random.default_rng(0)
    for name in ("movie_000", "movie_001"):
        path = project / "coords" / "weft" / "average" / f"{name}_pick.star"
        path.parent.mkdir(parents=True, exist_ok=True)
        xy = rng.uniform(80, 430, (12, 2))
        write_star(path, {"": Table({"rlnCoordinateX": xy[:, 0], "rlnCoordinateY": xy[:, 1]})})
    said = relion(
        *("preprocess", "--i", "micrographs.star", "--coord_dir", "coords/", "--coord_suffix", "_pick.star"),
        *("--part_star", "Extract/particles.star", "--part_dir", "Extract/", "--extract"),
        *("--extract_size", 64, "--norm", "--bg_radius", 24, "--white_dust", -1, "--black_dust", -1),
        cwd=project,
    )
    assert "WARNING" not in said
    assert "24 particles" in said
    return project / "Extract" / "particles.star"


def test_relion_takes_every_row_and_column_of_the_micrographs(project: Path, relion: Relion) -> None:
    said = relion(
        *("star_handler", "--i", "micrographs.star", "--o", "selected.star"),
        *("--select", "rlnCtfMaxResolution", "--minval", 0, "--maxval", 1000),
        cwd=project,
    )
    assert "WARNING" not in said.upper()
    ours, theirs = read_star(project / "micrographs.star"), read_star(project / "selected.star")
    for block in ("optics", "micrographs"):
        assert list(theirs[block].columns) == list(ours[block].columns)
    for label in ("rlnDefocusU", "rlnAccumMotionTotal"):
        # RELION writes six digits after the point
        np.testing.assert_allclose(
            theirs["micrographs"].floats(label), ours["micrographs"].floats(label), atol=1e-6
        )


def test_relion_extracts_with_our_ctf(project: Path, particles: Path) -> None:
    table = read_star(particles)
    assert table["optics"].value("rlnImagePixelSize") == "1.500000"
    defocus = dict(
        zip(
            read_star(project / "micrographs.star")["micrographs"].strings("rlnMicrographName"),
            read_star(project / "micrographs.star")["micrographs"].floats("rlnDefocusU"),
        )
    )
    rows = table["particles"]
    for name, value in zip(rows.strings("rlnMicrographName"), rows.floats("rlnDefocusU")):
        assert value == pytest.approx(defocus[name], abs=1e-3)


def _references(project: Path, particles: Path) -> None:
    """What polishing wants besides: half maps, a mask and an FSC, of nothing in particular."""
    rng = np.random.default_rng(1)
    table = read_star(particles)
    columns: dict[str, Any] = dict(table["particles"].columns)
    n = len(table["particles"])
    for label in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        columns[label] = rng.uniform(0, 180, n)
    for label in ("rlnOriginXAngst", "rlnOriginYAngst"):
        columns[label] = np.zeros(n)
    columns["rlnRandomSubset"] = [1 + i % 2 for i in range(n)]
    columns["rlnClassNumber"] = [1] * n
    write_star(project / "refined.star", {"optics": table["optics"], "particles": Table(columns)})
    z, y, x = np.mgrid[-32:32, -32:32, -32:32]
    r = np.sqrt(z**2 + y**2 + x**2)
    volume = np.exp(-((r / 14) ** 4)) * (1 + 0.5 * rng.normal(size=r.shape))
    for half in (1, 2):
        mrc.write(project / f"half{half}.mrc", volume.astype(np.float32), PIXEL)
    mrc.write(project / "mask.mrc", (r < 22).astype(np.float32), PIXEL)
    index = np.arange(33)
    fsc = np.clip(1.2 - index / 25, 0, 1)
    labels = ("Corrected", "UnmaskedMaps", "MaskedMaps")
    curves = {f"rlnFourierShellCorrelation{label}": fsc for label in labels}
    general = {"rlnFinalResolution": [4.0], "rlnMaskName": ["mask.mrc"]}
    resolution = {
        "rlnSpectralIndex": index,
        "rlnResolution": index / (64 * PIXEL),
        "rlnAngstromResolution": 64 * PIXEL / np.maximum(index, 0.1),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": 0 * fsc,
    }
    blocks = {"general": Table(general, loop=False), "fsc": Table({**resolution, **curves})}
    write_star(project / "post.star", blocks)


def _polish(relion: Relion, project: Path, output: str, *more: object) -> str:
    return relion(
        *("motion_refine", "--i", "refined.star", "--corr_mic", "micrographs.star"),
        *("--m1", "half1.mrc", "--m2", "half2.mrc", "--mask", "mask.mrc", "--f", "post.star"),
        *("--angpix_ref", PIXEL, "--o", output, "--first_frame", 1, "--last_frame", -1),
        *("--s_vel", 0.6, "--s_div", 10000, "--s_acc", 3, "--j", 1, *more),
        cwd=project,
    )


def test_bayesian_polishing_starts_from_our_tracks(project: Path, particles: Path, relion: Relion) -> None:
    """Polishing that may not iterate writes down the motion that it read."""
    _references(project, particles)
    said = _polish(relion, project, "unmoved", "--max_iters", 0)
    assert "pixel size from weft/average/movie_000.star: 1.5 A" in said
    session, table = weft.open(project / "weft"), read_star(project / "refined.star")["particles"]
    for name in ("movie_000", "movie_001"):
        rows = [i for i, mic in enumerate(table.strings("rlnMicrographName")) if name in mic]
        xy = np.stack([table.floats("rlnCoordinateX")[rows], table.floats("rlnCoordinateY")[rows]], axis=1)
        ours = session[name].track(xy * PIXEL)
        theirs = _tracks(project / "unmoved" / "weft" / "average" / f"{name}_tracks.star", len(rows))
        # RELION counts the file's frames, and gives none of those that were left out any motion
        assert len(theirs) == FRAMES
        assert not theirs[:SKIPPED].any()
        theirs = theirs[SKIPPED:]
        # a place's mean over the frames is free; the rest is what a cubic in time cannot follow
        difference = (theirs - theirs.mean(0)) - (ours - ours.mean(0))
        size = np.sqrt(((ours - ours.mean(0)) ** 2).mean())
        record = session.store.read(name)
        assert record is not None
        residual = record.steps["motion"].results["relion_model_residual"]
        assert size > 1.0  # Å: there is something to get wrong
        assert np.sqrt((difference**2).mean()) < 0.05 + residual


def test_bayesian_polishing_goes_through(project: Path, particles: Path, relion: Relion) -> None:
    _references(project, particles)
    _polish(relion, project, "polish", "--combine_frames", "--bfac_minfreq", 20, "--bfac_maxfreq", -1)
    assert len(read_star(project / "polish" / "shiny.star")["particles"]) == 24


def _tracks(path: Path, n: int) -> NDArray[np.float64]:
    blocks = read_star(path)
    tracks = [blocks[str(i)] for i in range(n)]
    return np.stack(
        [np.stack([t.floats("rlnOriginXAngst"), t.floats("rlnOriginYAngst")], axis=-1) for t in tracks],
        axis=1,
    )


def test_the_polynomial_means_what_relion_means(reference_data: Path, relion: Relion, tmp_path: Path) -> None:
    """RELION's own STAR, read by our formulas, is as close to the truth as RELION is known to be."""
    for name in ("movie_flat.tif", "movie_flat_gain.mrc"):
        (tmp_path / name).symlink_to((reference_data / "reference" / name).resolve())
    truth = json.loads((reference_data / "reference" / "movie_flat.json").read_text())
    optics = {
        "rlnOpticsGroupName": ["o"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [0.95],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.07],
    }
    movies = {"rlnMicrographMovieName": ["movie_flat.tif"], "rlnOpticsGroup": [1]}
    write_star(tmp_path / "movies.star", {"optics": Table(optics), "movies": Table(movies)})
    relion(
        *("run_motioncorr", "--i", "movies.star", "--o", "mc", "--use_own", "--j", 2),
        *("--patch_x", 5, "--patch_y", 5, "--bfactor", 150, "--dose_per_frame", 1.2),
        *("--gainref", "movie_flat_gain.mrc"),
        cwd=tmp_path,
    )
    star = read_star(tmp_path / "mc" / "movie_flat.star")
    shift = star["global_shift"]
    whole = np.stack([shift.floats("rlnMicrographShiftX"), shift.floats("rlnMicrographShiftY")], axis=1)
    fraction = np.array(truth["track_xy"]) / (2048 * 0.95) - 0.5
    model = star["local_motion_model"].floats("rlnMotionModelCoeff")
    local = evaluate_motion_model(model, fraction, len(whole))

    def error(shifts: NDArray[np.float64]) -> float:
        difference = -0.95 * shifts - np.array(truth["tracks"])
        return float(np.sqrt(((difference - difference.mean(0)) ** 2).sum(-1).mean()))

    # 0.72 Å is what the project's score of RELION on this movie says, and 1.05 without its local model
    assert error(whole[:, None] + local) == pytest.approx(0.72, abs=0.02)
    assert error(np.repeat(whole[:, None], len(fraction), axis=1)) > 1.0


def test_a_polynomial_is_found_again() -> None:
    rng = np.random.default_rng(2)
    n_frames = 12
    power = np.tile(np.arange(1, 4), 6)
    model = rng.normal(size=(2, 18)) / 11.0**power
    fraction = rng.uniform(-0.5, 0.5, (40, 2))
    shifts = evaluate_motion_model(model, fraction, n_frames)
    found, offset, residual = fit_motion_model(shifts + 0.7, fraction)
    np.testing.assert_allclose(found, model, rtol=1e-6, atol=1e-9)  # exact but for rounding
    np.testing.assert_allclose(offset, 0.7, atol=1e-9)
    assert residual < 1e-9
    assert found.shape == (2, 18)


def test_short_movies_have_a_polynomial_too() -> None:
    """Two frames leave the powers of time undetermined: the smallest solution is taken."""
    shifts = np.zeros((2, 9, 2))
    shifts[1] = 0.5
    fraction = np.stack(np.meshgrid([-0.3, 0, 0.3], [-0.3, 0, 0.3]), -1).reshape(-1, 2)
    model, offset, residual = fit_motion_model(shifts, fraction)
    np.testing.assert_allclose(evaluate_motion_model(model, fraction, 2) + offset, shifts, atol=1e-6)
    assert residual < 1e-6


def test_several_sets_of_constants_are_several_optics_groups(tmp_path: Path) -> None:
    from weft.formats.relion import Micrograph, write_micrographs
    from weft.physics.optics import Optics

    rows = [
        Micrograph({"rlnMicrographName": f"{i}.mrc"}, Optics(1.0, voltage), 2.0)
        for i, voltage in enumerate((300.0, 200.0, 300.0))
    ]
    write_micrographs(tmp_path / "m.star", rows)
    tables = read_star(tmp_path / "m.star")
    assert tables["optics"].floats("rlnVoltage").tolist() == [300.0, 200.0]
    assert tables["micrographs"].ints("rlnOpticsGroup").tolist() == [1, 2, 1]


def test_a_turned_gain_is_written_as_relion_needs_it(new_session: Callable[..., Session]) -> None:
    """RELION multiplies by the file that the STAR names: it must be in the orientation that we used."""
    session = new_session(gain_flip_x=True)
    session.run(["motion"], "movie_000", workers=0)
    general = read_star(session.root / "average" / "movie_000.star")["general"]
    used = mrc.read(general.value("rlnMicrographGainName"))[0]
    given = mrc.read(str(session.settings.input.gain))[0]
    np.testing.assert_array_equal(used, given[:, ::-1])

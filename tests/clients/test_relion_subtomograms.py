"""RELION reconstructs the true structure from the sub-tomograms and image series that we write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weft
from weft.formats import mrc
from weft.formats.tomo_particles import TomoParticles
from weft.session.subtomogram_export import ParticleExportSettings, export_subtomograms
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

# a minute or more of simulation and processing on two idle cores
pytestmark = pytest.mark.slow

Relion = Callable[..., str]
BOX, PIXEL, DIAMETER = 32, 8.0, 180.0


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A processed small series, and its particles at their true poses in the aligned specimen."""
    from scipy.optimize import least_squares

    from weft.physics.geometry import TiltGeometry

    root = tmp_path_factory.mktemp("relion_tomo")
    settings = {**SMALL_SERIES, "particles": 40, "hand": -1, "field": 0.95, "crowding": 0.0}
    made = write_tilt_session(root, TiltSimulationSettings(**settings), seed=5)
    truth = json.loads(Path(made[0].truth).read_text())
    session = weft.new(
        root / "session",
        frames=root / "frames" / "*.tif",
        mdoc=root / "mdoc",
        pixel_size=SMALL_SERIES["pixel_size"],
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=SMALL_SERIES["dose_per_tilt"] / 2,
        alignment={"thickness": 1200.0},
    )
    assert not session.run(steps=["tilt_ctf"], workers=0).failed
    series = next(iter(session.series.values()))
    order = {round(tilt["nominal"], 1): tilt for tilt in truth["tilts"]}
    tilts = [order[round(angle, 1)] for angle in series.tilt_angles.tolist()]
    true = TiltGeometry.of(
        [tilt["tilt"] for tilt in tilts],
        axis=truth["axis"],
        shift=[tilt["shift"] for tilt in tilts],
        volume_size=series.geometry.volume_size,
        image_size=series.geometry.image_size,
        level=tuple(truth["level"]),
    )
    xyz = np.array(truth["particles_xyz_centered"])
    middle = 0.5 * np.array(series.volume_size)
    places = true.project(torch.as_tensor(xyz + middle))[..., :2].numpy()

    # an alignment is defined up to a motion of the specimen as a whole
    def apart(shift: np.ndarray) -> np.ndarray:
        return np.ravel(series.project(xyz + middle + shift)[..., :2] - places)

    shift = least_squares(apart, np.zeros(3), loss="soft_l1", f_scale=10.0).x
    names = [series.name] * len(xyz)
    euler = np.array(truth["eulers_to_specimen"])
    particles = TomoParticles(names, xyz + shift, euler, np.full(len(xyz), np.nan))
    return {"session": session, "particles": particles, "root": root}


def _structure() -> np.ndarray:
    """The specimen's own points as a map."""
    from weft.simulation.specimen import phantom

    points = phantom("barrel").points  # x, y, z from the centre, Å
    k = np.fft.fftfreq(BOX, PIXEL)
    phase = [np.exp(-2j * np.pi * np.outer(points[:, i], k)) for i in range(3)]
    spectrum = np.einsum("pz,py,px->zyx", phase[2], phase[1], phase[0], optimize=True)
    return np.fft.fftshift(np.fft.ifftn(spectrum).real)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_relion_finds_the_structure(case: dict[str, Any], tmp_path: Path, kind: str, relion: Relion) -> None:
    settings = ParticleExportSettings.model_validate(
        {"kind": kind, "flavour": "relion3", "box": BOX, "pixel_size": PIXEL, "diameter": DIAMETER}
    )
    report = export_subtomograms(case["session"], tmp_path, case["particles"], settings)
    assert report.exit_code == 0, report
    turned = ["--3d_rot"] if kind == "3d" else []
    relion("reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", *turned, cwd=tmp_path)
    found, _ = mrc.read(tmp_path / "map.mrc")
    x = (np.arange(BOX) - BOX // 2) * PIXEL
    inside = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) < 0.5 * DIAMETER
    true = _structure()

    def similarity(other: np.ndarray) -> float:
        return float(np.corrcoef(found[inside], other[inside])[0, 1])

    # protein is bright and has its own hand; 40 particles of a small series, low frequencies without contrast
    assert similarity(true) > 0.7
    assert similarity(true) > similarity(np.roll(true[:, :, ::-1], 1, 2)) + 0.05

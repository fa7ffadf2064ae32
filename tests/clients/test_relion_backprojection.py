"""relion_reconstruct and weft backproject make the same map of the same images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.formats.tilt_particles import TiltParticles, read_tilt_particles
from weft.particles.backprojection import BackprojectionSettings
from weft.particles.fsc import shell_correlation, soft_sphere
from weft.physics.geometry import euler_angles
from weft.session.heterogeneity.backprojection import backproject
from weft.session.heterogeneity.inputs import TiltImageFiles

Relion = Callable[..., str]
BOX = 32
#: RELION masks what it writes by a sphere: both are compared well inside of it.
MASK = soft_sphere(BOX, 22.0, 3.0)
#: RELION knows no damage by dose, but the scale factor.
PLAIN = BackprojectionSettings(dose_weighting="none")


@pytest.fixture(scope="module")
def folder(reference_data: Path) -> Path:
    return reference_data / "real" / "bpowell122__tomodrgn"


def optics(pixel: float, amplitude: float, premultiplied: bool) -> Table:
    return Table(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["one"],
            "rlnImagePixelSize": [pixel],
            "rlnImageSize": [BOX],
            "rlnImageDimensionality": [2],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [amplitude],
            "rlnCtfDataAreCtfPremultiplied": [int(premultiplied)],
        }
    )


def compare(relion: Relion, tmp_path: Path, particles: TiltParticles) -> torch.Tensor:
    """FSC under the mask of RELION's map and ours."""
    relion("reconstruct", *("--i", "in.star", "--o", "out.mrc", "--ctf", "--skip_gridding"), cwd=tmp_path)
    theirs = torch.from_numpy(np.array(mrc.read(tmp_path / "out.mrc")[0], np.float32))
    ours = backproject(particles, PLAIN, invert=False).average.sums.map()
    return shell_correlation(theirs * MASK, ours * MASK)


def test_rows_of_images(relion: Relion, folder: Path, tmp_path: Path) -> None:
    """Class D as its file has it: poses, origins in pixels, phase shift, scale factor.

    72 particles in 12 directions leave gaps in Fourier space, which the programs fill in differently.
    """
    source = folder / "10076_classD_32_sim.star"
    table = next(iter(read_star(source).values()))
    (tmp_path / "data").mkdir()
    shutil.copy(folder / "10076_classD_32_sim.mrcs", tmp_path / "data")
    labels = ("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    labels += ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnCtfScalefactor")
    columns: dict[str, Any] = {label: table[label] for label in labels}
    columns["rlnOpticsGroup"] = [1] * len(table)
    for axis in "XY":
        columns[f"rlnOrigin{axis}Angst"] = table.floats(f"rlnOrigin{axis}") * 13.1
    write_star(tmp_path / "in.star", {"optics": optics(13.1, 0.1, False), "particles": Table(columns)})
    found = compare(relion, tmp_path, read_tilt_particles(source))
    # measured 0.97 or more to shell 6, falling to 0.89 at shell 12
    assert float(found[1:7].min()) > 0.95, found
    assert float(found[7:13].min()) > 0.85, found


def test_premultiplied_tilts(relion: Relion, folder: Path, tmp_path: Path) -> None:
    """WarpTools' 70S particles, each image with the orientation and defocus that the reader finds."""
    name = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12_optimisation_set.star"
    particles = read_tilt_particles(folder / name)
    files = TiltImageFiles(particles)
    images = np.concatenate([files.read(i) for i in range(len(particles))])
    mrc.write(tmp_path / "stack.mrcs", images, particles.pixel_size, volume=False)
    euler = euler_angles(torch.from_numpy(particles.rotation)).numpy()
    count = particles.images
    columns: dict[str, Any] = {
        "rlnImageName": [f"{i + 1}@stack.mrcs" for i in range(count)],
        "rlnDefocusU": particles.defocus_u,
        "rlnDefocusV": particles.defocus_v,
        "rlnDefocusAngle": particles.angle,
        "rlnPhaseShift": particles.phase_shift,
        "rlnCtfScalefactor": particles.cos_tilt,
        "rlnAngleRot": euler[:, 0],
        "rlnAngleTilt": euler[:, 1],
        "rlnAnglePsi": euler[:, 2],
        "rlnOriginXAngst": -particles.shift[:, 0],
        "rlnOriginYAngst": -particles.shift[:, 1],
        "rlnOpticsGroup": [1] * count,
    }
    write_star(tmp_path / "in.star", {"optics": optics(12.0, 0.07, True), "particles": Table(columns)})
    found = compare(relion, tmp_path, particles)
    assert float(found[1:12].min()) > 0.99, found

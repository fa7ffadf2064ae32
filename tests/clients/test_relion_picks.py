"""RELION extracts particles at the places that we write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.picking.picks import Picks
from weft.session.pick_files import write_picks

Relion = Callable[..., str]
PIXEL, SIDE, BOX, COUNT = 1.5, 320, 32, 12


def test_relion_extracts_our_picks(relion: Relion, tmp_path: Path) -> None:
    """Every particle is one dark pixel: it must be in the middle of its box, which RELION has at n // 2."""
    random = np.random.default_rng(0)
    image = random.normal(0.0, 1.0, (SIDE, SIDE)).astype(np.float32)
    # apart, so that no box has two
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)
    xy = grid * 70 + random.integers(40, 70, (COUNT, 2))
    image[xy[:, 1], xy[:, 0]] = -500.0
    (tmp_path / "mics").mkdir()
    (tmp_path / "out").mkdir()
    mrc.write(tmp_path / "mics" / "a.mrc", image, PIXEL)
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographPixelSize": [PIXEL],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.07],
    }
    micrographs = Table({"rlnMicrographName": ["mics/a.mrc"], "rlnOpticsGroup": [1]})
    write_star(tmp_path / "mics.star", {"optics": Table(optics), "micrographs": micrographs})
    picks = Picks(xy * PIXEL, np.linspace(1.0, 0.1, COUNT), 120.0)
    write_picks(tmp_path / "picks" / "mics" / "a_autopick.star", picks, PIXEL)
    relion(
        *("preprocess", "--i", "mics.star", "--coord_dir", "picks/", "--coord_suffix", "_autopick.star"),
        *("--part_star", "out/particles.star", "--part_dir", "out/", "--extract", "--extract_size", BOX),
        cwd=tmp_path,
    )
    rows = read_star(tmp_path / "out" / "particles.star")["particles"]
    np.testing.assert_allclose(rows.floats("rlnCoordinateX"), xy[:, 0])
    np.testing.assert_allclose(rows.floats("rlnAutopickFigureOfMerit"), picks.score, atol=1e-5)
    stack, _ = mrc.read(tmp_path / "out" / "mics" / "a.mrcs")
    assert stack.shape == (COUNT, BOX, BOX)
    for particle in stack:
        assert np.unravel_index(np.abs(particle).argmax(), particle.shape) == (BOX // 2, BOX // 2)

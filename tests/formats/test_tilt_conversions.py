"""One tilt series through the files of IMOD, AreTomo, Dynamo, RELION 5 and Warp, from any to any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.formats import aretomo, dynamo, imod, relion_tomo, warp_geometry, warp_xml
from weft.physics.geometry import TiltGeometry

PIXEL = 1.35
SIZE = (3838, 3710)
IMAGE = tuple(n * PIXEL for n in SIZE)
VOLUME = (4000 * PIXEL, 4100 * PIXEL, 2000 * PIXEL)
N = 41


def made() -> TiltGeometry:
    rng = np.random.default_rng(11)
    return TiltGeometry.of(
        np.linspace(-60, 60, N) + rng.normal(0, 0.05, N), axis=85.3 + rng.normal(0, 0.3, N),
        shift=rng.normal(0, 150, (N, 2)), defocus=rng.normal(3e4, 500, N), volume_size=VOLUME,
        image_size=IMAGE, hand=-1.0,
    )  # fmt: skip


def through_imod(geometry: TiltGeometry, folder: Path) -> TiltGeometry:
    solved = imod.from_geometry(geometry, pixel_size=PIXEL)
    imod.write_xf(folder / "a.xf", solved.transforms, solved.shifts)
    imod.write_tlt(folder / "a.tlt", solved.angles)
    back = imod.read_alignment(folder / "a.xf", folder / "a.tlt")
    return imod.to_geometry(back, pixel_size=PIXEL, image_size=IMAGE, volume_size=VOLUME)


def through_aretomo(geometry: TiltGeometry, folder: Path) -> TiltGeometry:
    aretomo.write_aln(folder / "a.aln", aretomo.from_geometry(geometry, pixel_size=PIXEL))
    return aretomo.to_geometry(aretomo.read_aln(folder / "a.aln"), pixel_size=PIXEL, volume_size=VOLUME)


def through_dynamo(geometry: TiltGeometry, folder: Path) -> TiltGeometry:
    solved = dynamo.DynamoAlignment("TS", dynamo.from_geometry(geometry, pixel_size=PIXEL))
    dynamo.write_dynamo_alignment(folder / "TS", solved)
    back = dynamo.read_dynamo_alignment(folder / "TS").alignment
    return dynamo.to_geometry(back, pixel_size=PIXEL, image_size=IMAGE, volume_size=VOLUME)


def through_relion(geometry: TiltGeometry, folder: Path) -> TiltGeometry:
    series = relion_tomo.from_geometry(geometry, "TS", pixel_size=PIXEL)
    relion_tomo.write_tilt_series(folder / "tomograms.star", [series])
    back = relion_tomo.read_tilt_series(folder / "tomograms.star")["TS"]
    return relion_tomo.to_geometry(back, image_size=SIZE)


def through_warp(geometry: TiltGeometry, folder: Path) -> TiltGeometry:
    series = warp_geometry.from_geometry(geometry, [f"{i}.tif" for i in range(N)], np.arange(N) * 3.0)
    warp_xml.write_warp_xml(folder / "TS.xml", series)
    return warp_geometry.to_geometry(warp_xml.read_warp_xml(folder / "TS.xml"))


PROGRAMS: dict[str, Callable[[TiltGeometry, Path], TiltGeometry]] = {
    "imod": through_imod,
    "aretomo": through_aretomo,
    "dynamo": through_dynamo,
    "relion": through_relion,
    "warp": through_warp,
}


@pytest.mark.parametrize(("first", "second"), list(product(PROGRAMS, PROGRAMS)))
def test_all_pairs(first: str, second: str, tmp_path: Path) -> None:
    """To 0.005 pixels of a 4k image; the defocus too where the second program's file holds it."""
    geometry = made()
    xyz = torch.as_tensor(np.random.default_rng(5).uniform(0, 1, (40, 3))) * geometry.volume_size
    expected = geometry.project(xyz)
    once = PROGRAMS[first](geometry, tmp_path)
    # files of alignment have no defocus: who imports them brings it along
    once = replace(once, defocus=geometry.defocus, hand=geometry.hand)
    twice = PROGRAMS[second](once, tmp_path)
    assert (twice.project(xyz) - expected)[..., :2].abs().max() < 0.005 * PIXEL
    if second in ("relion", "warp"):
        assert (twice.project(xyz) - expected)[..., 2].abs().max() < 0.01


def test_the_same_series_in_all_files_is_the_same_geometry() -> None:
    """One solved alignment in the numbers of each program, written down by hand."""
    angle, axis, tx, ty = 30.0, 85.0, 12.0, -7.0
    c, s = np.cos(np.radians(axis)), np.sin(np.radians(axis))
    a = np.array([[c, s], [-s, c]])
    # AreTomo's own export to IMOD: A = R(-ROT), d = A (-TX, -TY)
    solved = imod.ImodAlignment(a[None], -(a @ [tx, ty])[None], np.array([angle]))
    one = imod.to_geometry(
        solved, pixel_size=PIXEL, image_size=IMAGE, volume_size=VOLUME, defocus=3e4, exact_centre=False
    )
    two = aretomo.to_geometry(
        aretomo.AreTomoAlignment(
            section=np.array([1]), axis=np.array([axis]), angles=np.array([angle]),
            shift=np.array([[tx, ty]]), magnification=np.ones(1), weights=np.ones((1, 4)),
            raw_size=(*SIZE, 1),
        ),
        pixel_size=PIXEL, volume_size=VOLUME, defocus=3e4,
    )  # fmt: skip
    # RELION's import of IMOD and AreTomo alignments: YTilt = TILT, ZRot = ROT, shifts in Å
    columns = {"rlnTomoXTilt": [0.0], "rlnTomoYTilt": [angle], "rlnTomoZRot": [axis],
               "rlnTomoXShiftAngst": [tx * PIXEL], "rlnTomoYShiftAngst": [ty * PIXEL],
               "rlnDefocusU": [3e4], "rlnDefocusV": [3e4]}  # fmt: skip
    general = {"rlnTomoHand": -1.0, "rlnTomoTiltSeriesPixelSize": PIXEL}
    three = relion_tomo.to_geometry(
        relion_tomo.RelionTiltSeries("TS", general, relion_tomo.Table(columns)),
        image_size=SIZE, volume_size=VOLUME,
    )  # fmt: skip
    # Warp's import of an .xf
    four = warp_geometry.to_geometry(
        warp_xml.WarpTiltSeries(
            angles=np.array([angle]), axis=np.array([axis]), shift=np.array([[tx, ty]]) * PIXEL,
            dose=np.zeros(1), use_tilt=np.ones(1, bool), movies=["a"], fov_fraction=np.ones(1),
            grids={"GridCTF": warp_xml.WarpGrid(np.full((1, 1, 1), 3.0))},
        ),
        image_size=IMAGE, volume_size=VOLUME,
    )  # fmt: skip
    xyz = torch.as_tensor(np.random.default_rng(6).uniform(0, 1, (20, 3))) * one.volume_size
    for other in (two, three, four):
        torch.testing.assert_close(other.project(xyz), one.project(xyz), atol=1e-6, rtol=0)


def test_what_cannot_be_said_is_an_error(tmp_path: Path) -> None:
    inclined = replace(made(), level_x=torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="inclination about x"):
        through_aretomo(inclined, tmp_path)
    with pytest.raises(ValueError, match="inclination about x"):
        through_dynamo(inclined, tmp_path)
    xyz = torch.rand(5, 3, dtype=torch.float64) * inclined.volume_size
    for program in (through_relion, through_warp):
        torch.testing.assert_close(
            program(inclined, tmp_path).project(xyz), inclined.project(xyz), atol=1e-4, rtol=0
        )

"""Warp's XML: against positions, angles and defoci that Warp itself wrote, and against warpylib."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.star import Table, read_star
from weft.formats.warp_geometry import from_geometry, positions, rotations, to_geometry
from weft.formats.warp_xml import WarpGrid, WarpTiltSeries, read_warp_xml, write_warp_xml
from weft.physics.geometry import TiltGeometry, euler_matrix

SMALL = """<?xml version="1.0" encoding="utf-8"?>
<TiltSeries DataDirectory="../frames" AreAnglesInverted="True" LevelAngleX="1.5" LevelAngleY="-5.9" Bfactor="-16">
	<Angles>-3
0
3</Angles>
	<AxisAngle>85
85.1
85.2</AxisAngle>
	<AxisOffsetX>1
2
3</AxisOffsetX>
	<AxisOffsetY>4
5
6</AxisOffsetY>
	<Dose>6
0
3</Dose>
	<UseTilt>True
False
True</UseTilt>
	<MoviePath>a.tif
b.tif
c.tif</MoviePath>
	<PS1D>0|1;0.5|2</PS1D>
	<CTF>
		<Param Name="Voltage" Value="300" />
		<Param Name="Defocus" Value="2.5" />
	</CTF>
	<GridCTF Width="1" Height="1" Depth="3" MarginX="0" MarginY="0" MarginZ="0">
		<Node X="0" Y="0" Z="0" Value="2.4" />
		<Node X="0" Y="0" Z="1" Value="2.5" />
		<Node X="0" Y="0" Z="2" Value="2.7" />
	</GridCTF>
</TiltSeries>"""  # noqa: E501

# EMPIAR-10491 in Warp: a K3 image, a volume turned by 90°
IMAGE = np.array([5760.0, 4092.0]) * 0.834
VOLUME = np.array([4000.0, 5700.0, 1000.0]) * 0.834


def small(tmp_path: Path, old: str = "", new: str = "") -> WarpTiltSeries:
    path = tmp_path / "TS_1.xml"
    path.write_text(SMALL.replace(old, new) if old else SMALL)
    return read_warp_xml(path)


def test_values(tmp_path: Path) -> None:
    series = small(tmp_path)
    assert series.angles.tolist() == [-3, 0, 3]
    assert series.shift.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert series.use_tilt.tolist() == [True, False, True]
    assert series.movies == ["a.tif", "b.tif", "c.tif"]
    assert (series.level_x, series.level_y, series.hand) == (1.5, -5.9, -1.0)
    np.testing.assert_allclose(series.defocus, [24000, 25000, 27000])
    assert series.attributes["Bfactor"] == "-16"
    assert series.ctf["Voltage"] == "300"
    geometry = to_geometry(series, image_size=(100, 100), volume_size=(100, 100, 50))
    assert geometry.hand == -1.0
    with pytest.raises(FormatError, match="size of its images"):
        to_geometry(series)


def test_nothing_is_lost(tmp_path: Path) -> None:
    series = small(tmp_path)
    series.image_size, series.volume_size = (100.0, 90.0), (80.0, 70.0, 30.0)
    write_warp_xml(tmp_path / "b.xml", series)
    back = read_warp_xml(tmp_path / "b.xml")
    for name in ("angles", "axis", "shift", "dose", "use_tilt", "fov_fraction"):
        np.testing.assert_array_equal(getattr(back, name), getattr(series, name))
    assert (back.movies, back.ctf, back.other) == (series.movies, series.ctf, series.other)
    assert (back.image_size, back.volume_size) == (series.image_size, series.volume_size)
    assert series.attributes.items() <= back.attributes.items()
    np.testing.assert_array_equal(back.defocus, series.defocus)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("TiltSeries", "Movie", FormatError, "describes a Movie"),
        ("<Angles>-3\n0\n", "<Angles>-3\n", CorruptError, "for 2 tilts"),
        ("<Angles>-3", "<Angles>left", CorruptError, "'left'"),
        ('Z="2" Value="2.7"', 'Z="1" Value="2.7"', CorruptError, "lacks 1 of its 3"),
        ('Z="2" Value="2.7"', 'Z="5" Value="2.7"', CorruptError, "GridCTF"),
        ('LevelAngleX="1.5"', 'LevelAngleX="1, 5"', CorruptError, "2 numbers, not 1"),
        ("<Angles>", "<Winkel>", FormatError, "not XML"),
        ("True\nFalse\nTrue", "True\nmaybe\nTrue", CorruptError, "UseTilt"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        small(tmp_path, old, new)


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(SMALL[: len(SMALL) // 2])
    with pytest.raises(TruncatedError):
        read_warp_xml(path)
    path.write_bytes(b"")
    with pytest.raises(TruncatedError, match="empty"):
        read_warp_xml(path)


def test_grids_agree_with_the_geometry() -> None:
    """Without grids, `positions` and `TiltGeometry.project` are one; constant grids shift as they say."""
    rng = np.random.default_rng(0)
    geometry = TiltGeometry.of(
        np.linspace(-60, 60, 9), axis=-85.6, shift=rng.normal(0, 50, (9, 2)), defocus=rng.normal(3e4, 500, 9),
        volume_size=(3000, 4000, 800), image_size=(4800, 3400), level=(1.4, -5.9), hand=-1.0,
    )  # fmt: skip
    series = from_geometry(geometry, [f"{i}.tif" for i in range(9)], np.arange(9) * 3.0)
    xyz = rng.uniform(0, 1, (20, 3)) * geometry.volume_size.numpy()
    plain = positions(series, xyz)
    np.testing.assert_allclose(plain, geometry.project(torch.as_tensor(xyz)), atol=1e-6)
    series.grids["GridMovementX"] = WarpGrid(np.full((9, 2, 3), 7.0))
    series.grids["GridVolumeWarpZ"] = WarpGrid(np.full((1, 1, 1, 1), 4.0))
    moved = positions(series, xyz) - plain
    third = geometry.matrices[:, None, :, 2].numpy() * 4.0
    np.testing.assert_allclose(moved[..., 0], (third[..., 0] - 7.0) + 0 * moved[..., 0], atol=1e-6)
    np.testing.assert_allclose(moved[..., 2], -third[..., 2] + 0 * moved[..., 2], atol=1e-6)


@pytest.fixture(scope="module")
def mappings(reference_data: Path) -> tuple[WarpTiltSeries, np.ndarray[Any, Any], Table]:
    folder = reference_data / "real" / "warpem__warpylib"
    blocks = read_star(folder / "TS_1.star")
    points = np.stack([blocks["points"].floats(f"centeredCoordinate{c}Angst") for c in "XYZ"], axis=1)
    return read_warp_xml(folder / "TS_1.xml"), points + VOLUME / 2, blocks["mappings"]


def test_warps_own_positions_and_defoci(mappings: tuple[WarpTiltSeries, Any, Table]) -> None:
    """27 points in 41 tilts with M's refined grids: Warp's values to 0.001 Å and 0.02 Å of defocus."""
    series, points, table = mappings
    tilt, point = table.ints("tiltID") - 1, table.ints("pointID") - 1
    got = positions(series, points, image_size=IMAGE, volume_size=VOLUME)[tilt, point]
    for axis, letter in enumerate("XY"):
        expected = table.floats(f"centeredCoordinate{letter}Angst")
        np.testing.assert_allclose(got[:, axis] - IMAGE[axis] / 2, expected, atol=1e-3)
    half, angle = series.astigmatism[tilt].T
    np.testing.assert_allclose(got[:, 2] + half, table.floats("defocusU"), atol=0.02)
    np.testing.assert_allclose(got[:, 2] - half, table.floats("defocusV"), atol=0.02)
    np.testing.assert_allclose(angle, table.floats("defocusAngle"), atol=1e-3)


def test_warps_own_angles(mappings: tuple[WarpTiltSeries, Any, Table]) -> None:
    series, points, table = mappings
    got = rotations(series, points, volume_size=VOLUME)[table.ints("tiltID") - 1, table.ints("pointID") - 1]
    angles = (torch.as_tensor(table.floats(f"angle{name}")) for name in ("Rot", "Tilt", "Psi"))
    np.testing.assert_allclose(got, euler_matrix(*angles), atol=5e-6)


def test_warps_own_xml_survives(mappings: tuple[WarpTiltSeries, Any, Table], tmp_path: Path) -> None:
    series, points, _ = mappings
    write_warp_xml(tmp_path / "b.xml", series)
    back = read_warp_xml(tmp_path / "b.xml")
    assert (back.attributes, back.ctf, back.other) == (series.attributes, series.ctf, series.other)
    sizes: dict[str, Any] = {"image_size": IMAGE, "volume_size": VOLUME}
    np.testing.assert_array_equal(positions(back, points, **sizes), positions(series, points, **sizes))


def test_old_warp_in_utf16(reference_data: Path) -> None:
    """Warp 1 wrote UTF-16 and had no fourth dimension in its grids of warp."""
    series = read_warp_xml(reference_data / "real/turonova__cryoCAT/test_data/TS_017/017.xml")
    assert len(series) == 60
    assert series.movies[0] == "017_01.mrc"
    assert series.axis[0] == pytest.approx(83.22321)
    assert np.isfinite(positions(series, np.zeros((1, 3)), image_size=IMAGE, volume_size=VOLUME)).all()


@pytest.mark.parametrize("name", ["reference1d", "reference2d", "reference3d"])
def test_spline_grids_of_warp(reference_data: Path, name: str) -> None:
    """Values of einspline, written by Warp: control points and interpolated ones in one file."""
    blocks = read_star(reference_data / "real" / "warpem__warpylib" / f"{name}.star")
    assert "grid" in blocks
    table = blocks["grid"]
    place = np.stack([table.ints(f"i{c}") if f"i{c}" in table else 0 * table.ints("ix") for c in "xyz"])
    values = np.zeros(place.max(axis=1)[::-1] + 1)
    values[place[2], place[1], place[0]] = table.floats("value")
    grid = WarpGrid(values)
    rest = next(block for key, block in blocks.items() if key != "grid")
    labels = list(rest.columns)
    where = [rest.floats(label) for label in labels[:-1]]
    where += [np.full(len(rest), 0.5)] * (3 - len(where))
    np.testing.assert_allclose(grid.at(*where), rest.floats(labels[-1]), atol=2e-4)


def _warpylib(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    try:
        importlib.import_module("torch_projectors")
    except (ImportError, OSError):
        # its compiled part loads with few versions of torch only, and geometry does not use it
        monkeypatch.setitem(sys.modules, "torch_projectors", ModuleType("torch_projectors"))
    return pytest.importorskip("warpylib")


def test_against_warpylib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is written here, read by Warp's own Python library: the same places and defoci."""
    warpylib = _warpylib(monkeypatch)
    rng = np.random.default_rng(4)
    for hand in (1.0, -1.0):
        geometry = TiltGeometry.of(
            np.linspace(-57, 60, 7), axis=84.7 + rng.normal(0, 0.2, 7), shift=rng.normal(0, 40, (7, 2)),
            defocus=rng.normal(3e4, 400, 7), volume_size=(3000, 2900, 700), image_size=(3000, 2800),
            level=(2.5, -4.0), hand=hand,
        )  # fmt: skip
        series = from_geometry(geometry, [f"{i}.tif" for i in range(7)], rng.permutation(7) * 3.0)
        series.grids["GridMovementX"] = WarpGrid(rng.normal(0, 5, (7, 3, 4)))
        series.grids["GridMovementY"] = WarpGrid(rng.normal(0, 5, (7, 2, 2)))
        series.grids["GridVolumeWarpX"] = WarpGrid(rng.normal(0, 5, (3, 2, 2, 3)))
        write_warp_xml(tmp_path / "TS.xml", series)
        theirs = warpylib.TiltSeries(path=str(tmp_path / "TS.tomostar"))
        xyz = rng.uniform(0.2, 0.8, (25, 3)) * geometry.volume_size.numpy()
        got = theirs.get_position_in_all_tilts_single(torch.as_tensor(xyz, dtype=torch.float32)).numpy()
        expected = positions(read_warp_xml(tmp_path / "TS.xml"), xyz).transpose(1, 0, 2)
        np.testing.assert_allclose(got[..., :2], expected[..., :2], atol=0.01)
        np.testing.assert_allclose(got[..., 2] * 1e4, expected[..., 2], atol=0.1)

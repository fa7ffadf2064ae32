"""IMOD's files: against IMOD's tutorial series, imodmodel and other programs' alignments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.imod import (
    ImodAlignment,
    from_geometry,
    read_alignment,
    read_com,
    read_edf,
    read_tlt,
    read_xf,
    to_geometry,
    write_tlt,
    write_xf,
)
from weft.formats.imod_defocus import ImodDefocus, ImodDefocusRow, read_defocus, write_defocus
from weft.formats.imod_model import ImodModel, read_model, write_model
from weft.physics.geometry import TiltGeometry

TILT_COM = """# Command file to run Tilt
$setenv IMOD_OUTPUT_FORMAT MRC
$tilt -StandardInput
InputProjections a.ali
IMAGEBINNED 2
TILTFILE a.tlt
THICKNESS 900
XAXISTILT 1.94
OFFSET -2.5
SHIFT 4.0 -7.0
PERPENDICULAR
$if (-e ./savework) ./savework
"""


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s], [-s, c]])


def test_text_files(tmp_path: Path) -> None:
    a, d = np.stack([rotation(85.0), rotation(85.2)]), np.array([[116.328, -191.695], [0.5, 1e-3]])
    write_xf(tmp_path / "a.xf", a, d)
    transforms, shifts = read_xf(tmp_path / "a.xf")
    np.testing.assert_allclose(transforms, a, atol=1e-9)
    np.testing.assert_allclose(shifts, d, atol=1e-5)
    write_tlt(tmp_path / "a.tlt", [-60.123, 0.0])
    assert read_tlt(tmp_path / "a.tlt").tolist() == [-60.123, 0.0]
    # RELION and AreTomo write further columns; some people write commas
    (tmp_path / "b.tlt").write_text("\r\n-57.00 117\r\n-54.00, 108\r\n")
    assert read_tlt(tmp_path / "b.tlt").tolist() == [-57.0, -54.0]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", TruncatedError, "empty"),
        ("1 0 0 1 5\n", CorruptError, "line 1: 5 numbers"),
        ("1 0 0 1 5 6\n\n1 0 0 1 5 6 7\n", CorruptError, "line 3: 7 numbers"),
        ("1 0 0 1 nan 6\n", CorruptError, "not finite"),
        ("ENTIRE FILE\n", FormatError, "holds no numbers"),
    ],
)
def test_faults_of_xf(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / "a.xf").write_text(text)
    with pytest.raises(error, match=words):
        read_xf(tmp_path / "a.xf")


def test_alignment_from_files(tmp_path: Path) -> None:
    write_xf(tmp_path / "a.xf", [rotation(85.0)] * 3, np.zeros((3, 2)))
    write_tlt(tmp_path / "a.tlt", [-3, 0, 3])
    (tmp_path / "tilt.com").write_text(TILT_COM)
    found = read_alignment(tmp_path / "a.xf", tmp_path / "a.tlt", tmp_path / "tilt.com")
    assert (found.x_axis_tilt, found.angle_offset, found.slice_shift) == (1.94, -2.5, (4.0, -7.0))
    np.testing.assert_allclose(found.axis, 85.0)
    (tmp_path / "tilt.com").write_text(TILT_COM.replace("OFFSET -2.5", "OFFSET -2.5 12"))
    with pytest.raises(FormatError, match="OFFSET moves the axis"):
        read_alignment(tmp_path / "a.xf", tmp_path / "a.tlt", tmp_path / "tilt.com")
    write_tlt(tmp_path / "x.xtilt", [0.0, 0.4, 0.0])
    (tmp_path / "tilt.com").write_text(TILT_COM + "XTILTFILE x.xtilt\n")
    with pytest.raises(FormatError, match="XTILTFILE"):
        read_alignment(tmp_path / "a.xf", tmp_path / "a.tlt", tmp_path / "tilt.com")
    write_tlt(tmp_path / "a.tlt", [-3, 0])
    with pytest.raises(CorruptError, match="2 angles, but 3 transforms"):
        read_alignment(tmp_path / "a.xf", tmp_path / "a.tlt")


def test_stretched_transforms_are_refused() -> None:
    bad = ImodAlignment(np.stack([rotation(10), 1.01 * rotation(10)]), np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(FormatError, match=r"view 2 .*scale 1\.0100"):
        to_geometry(bad, pixel_size=1.0, image_size=(10, 10))
    assert len(to_geometry(bad, pixel_size=1.0, image_size=(10, 10), max_stretch=0.02)) == 2
    mirrored = ImodAlignment(np.diag([1.0, -1.0])[None], np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(FormatError, match="mirrored"):
        to_geometry(mirrored, pixel_size=1.0, image_size=(10, 10), max_stretch=0.02)


def test_bb_positions(reference_data: Path) -> None:
    """IMOD's tutorial series: 1403 observations of 23 beads, predicted from IMOD's 3D points and transforms.

    The residuals that IMOD itself states are predicted minus observed position: ours are the same to what the
    two decimals of its files and the Z factors (specimen shrinking, not part of a transform) leave.
    """
    folder = reference_data / "real/LabShare-Archive__IMOD/uitestData/BB"
    residuals = np.loadtxt(folder / "BBa.resid", skiprows=1)
    xyz = np.array([line.split()[1:4] for line in (folder / "BBafid.xyz").open()], float)
    transforms, shifts = read_xf(folder / "BBa.tltxf")
    angles = read_tlt(folder / "BBa.tlt")
    view = residuals[:, 2].astype(int)
    bead = np.cumsum(np.r_[0, np.diff(view) <= 0])
    half = 256.0
    alignment = ImodAlignment(transforms, shifts, angles)
    for inverted in (False, True):
        geometry = to_geometry(
            alignment, pixel_size=1.0, image_size=(512, 512), volume_size=(512, 512, 512),
            invert_angles=inverted, max_stretch=0.03,
        )  # fmt: skip
        # IMOD counts x and y from the pixel's edge and Z from the middle
        z = half + (1.0 if inverted else -1.0) * xyz[:, 2]
        points = torch.as_tensor(np.column_stack([xyz[:, :2], z]))
        matrices = geometry.matrices[:, :2].numpy()
        aligned = np.einsum("vij,bj->vbi", matrices, points.numpy() - half)
        # the transform's stretch, which a geometry leaves out, put back
        turn = np.stack([rotation(axis) for axis in alignment.axis])
        raw = np.linalg.solve(transforms[:, None], (turn[:, None] @ aligned[..., None]))[..., 0]
        places = raw + geometry.shift.numpy()[:, None] + half + 0.5
        error = places[view, bead] - residuals[:, :2] - residuals[:, 3:5]
        assert np.abs(error.mean(axis=0)).max() < 0.01
        assert np.abs(error).mean() < 0.06
        observed = places[view, bead] - residuals[:, :2]
        assert np.hypot(*observed.T).mean() < 0.34
        # without putting it back, what `max_stretch` says
        plain = geometry.project(points).numpy()[view, bead, :2] + 0.5 - places[view, bead]
        assert np.hypot(*plain.T).max() < 0.03 * 256


def test_bb_x_axis_tilt(reference_data: Path) -> None:
    """XAXISTILT flattens the specimen: the beads' planes have no slope along y any more.

    The value that was set by hand there is 1.94°, the beads of its two surfaces say 2.2°.
    """
    folder = reference_data / "real/LabShare-Archive__IMOD/uitestData/BB"
    xyz = np.array([line.split()[1:4] for line in (folder / "BBafid.xyz").open()], float) - [256, 256, 0]
    tilt = next(c for c in read_com(folder / "tilta.com") if c.program == "tilt").numbers("XAXISTILT")[0]
    assert tilt == 1.94
    alignment = ImodAlignment(rotation(0)[None], np.zeros((1, 2)), np.zeros(1), x_axis_tilt=tilt)
    level = to_geometry(alignment, pixel_size=1.0, image_size=(512, 512)).matrices[0].numpy()
    # our specimen (z = -Z) before the levelling, taken to the level one
    flat = (xyz * [1, 1, -1]) @ level
    upper = flat[:, 2] > np.median([flat[:, 2].min(), flat[:, 2].max()])

    def slope(z: np.ndarray) -> float:
        design = np.column_stack([xyz[:, 0], xyz[:, 1], upper, np.ones(len(xyz))])
        return float(np.degrees(np.arctan(np.linalg.lstsq(design, z, rcond=None)[0][1])))

    assert abs(slope(xyz[:, 2])) > 2.0
    assert abs(slope(flat[:, 2])) < 0.5


def test_ts_03(reference_data: Path) -> None:
    """EMPIAR-10164 TS_03: RELION's alignment by IMOD and another by IMOD agree in their axis to 0.03°."""
    from weft.formats import relion_tomo

    real = reference_data / "real"
    imod = real / "TomoBabel__cets-imod"
    alignment = read_alignment(imod / "alignment_files/TS_03.xf", imod / "tilt_series/TS_03.tlt")
    size = (3838, 3710)
    mine = to_geometry(alignment, pixel_size=1.35, image_size=[n * 1.35 for n in size])
    table = real / "TomoBabel__cets-relion/AlignTiltSeries/job005/aligned_tilt_series.star"
    series = relion_tomo.read_tilt_series(table, names=["TS_03"])["TS_03"]
    other = relion_tomo.to_geometry(series, image_size=size)
    assert len(mine) == len(other) == 40
    np.testing.assert_allclose(mine.angles, other.angles, atol=1e-3)
    np.testing.assert_allclose(mine.axis, other.axis, atol=0.03)
    # their specimens lie 28 Å apart, and the shifts agree to 3 pixels beyond that
    apart = (other.shift - mine.shift).numpy().reshape(-1)
    design = mine.matrices[:, :2].numpy().reshape(-1, 3)
    moved = np.linalg.lstsq(design, apart, rcond=None)[0]
    assert np.linalg.norm(moved) < 40
    assert np.sqrt(np.mean((apart - design @ moved) ** 2)) < 4 * 1.35


def test_warps_import(reference_data: Path) -> None:
    """Warp's own import of an .xf and .tlt, whose pixels are 10 Å: to 0.001 Å, with Warp's centre."""
    from weft.formats.warp_xml import read_warp_xml

    folder = reference_data / "real/warpem__warpylib/xf_import"
    series = read_warp_xml(folder / "00254.xml")
    alignment = read_alignment(folder / "00254.xf", folder / "00254.tlt")
    found = to_geometry(alignment, pixel_size=10.0, image_size=(1, 1), exact_centre=False)
    np.testing.assert_allclose(found.shift, series.shift, atol=1e-3)
    np.testing.assert_allclose(found.axis, series.axis, atol=1e-5)
    np.testing.assert_allclose(found.angles, series.angles)
    exact = to_geometry(alignment, pixel_size=10.0, image_size=(1, 1))
    np.testing.assert_allclose(exact.shift, found.shift - 5.0)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_there_and_back(invert: bool, exact: bool) -> None:
    rng = np.random.default_rng(1)
    geometry = TiltGeometry.of(
        np.linspace(-60, 60, 5), axis=85 + rng.normal(0, 0.3, 5), shift=rng.normal(0, 80, (5, 2)),
        defocus=3e4, volume_size=(4000, 3900, 900), image_size=(4000, 3800), level=(1.5, -4.0), hand=-1.0,
    )  # fmt: skip
    alignment = from_geometry(geometry, pixel_size=2.0, invert_angles=invert, exact_centre=exact)
    sign = -1.0 if invert else 1.0
    back = to_geometry(
        alignment, pixel_size=2.0, image_size=(4000, 3800), volume_size=(4000, 3900, 900), defocus=3e4,
        hand=sign * geometry.hand, invert_angles=invert, exact_centre=exact,
    )  # fmt: skip
    xyz = torch.as_tensor(rng.uniform(0, 1, (30, 3))) * geometry.volume_size
    torch.testing.assert_close(back.project(xyz), geometry.project(xyz), atol=1e-6, rtol=0)


def test_inverting_mirrors_the_specimen_only() -> None:
    """The same images and defoci, from a specimen that is mirrored in z."""
    alignment = ImodAlignment(
        np.stack([rotation(80), rotation(80.5)]), np.array([[3.0, 4], [5, -6]]), np.array([-30.0, 45.0]),
        x_axis_tilt=2.0, angle_offset=1.5, slice_shift=(4.0, -7.0),
    )  # fmt: skip
    plain, inverted = (
        to_geometry(alignment, pixel_size=2.0, image_size=(100, 100), volume_size=(200, 100, 60),
                    defocus=2e4, hand=1.0, invert_angles=flag)
        for flag in (False, True)
    )  # fmt: skip
    xyz = torch.rand(20, 3, dtype=torch.float64) * plain.volume_size
    mirrored = xyz * torch.tensor([1.0, 1.0, -1.0]) + torch.tensor([0.0, 0.0, 60.0])
    torch.testing.assert_close(plain.project(xyz), inverted.project(mirrored), atol=1e-9, rtol=0)


def test_command_and_project_files(tmp_path: Path, reference_data: Path) -> None:
    real = reference_data / "real"
    newst, tilt = (read_com(real / f"uermel__cryoet-alignment/{n}.com")[0] for n in ("newst", "tilt"))
    assert newst.program == "newstack"
    assert newst.numbers("BinByFactor") == [2]
    assert newst.numbers("TaperAtFill") == [1, 1]
    assert (tilt.program, tilt.numbers("THICKNESS")) == ("tilt", [900])
    assert "PERPENDICULAR" in tilt.entries
    edf = read_edf(real / "teamtomo__etomofiles/TS_001/TS_001.edf")
    assert edf["Setup.DatasetName"] == "TS_001"
    (tmp_path / "a.com").write_text("no command\n")
    with pytest.raises(FormatError, match="not a command file"):
        read_com(tmp_path / "a.com")


def test_models_round_trip(tmp_path: Path, reference_data: Path) -> None:
    """Byte for byte, with meshes and views; points as imodmodel reads them."""
    paths = sorted((reference_data / "real/teamtomo__imodmodel").glob("*.mod"))
    assert len(paths) == 6
    for path in paths:
        model = read_model(path)
        write_model(tmp_path / "a.mod", model)
        assert (tmp_path / "a.mod").read_bytes() == path.read_bytes()
    imodmodel = pytest.importorskip("imodmodel")
    for path in paths:
        model, other = read_model(path), imodmodel.ImodModel.from_file(path)
        assert model.size == (other.header.xmax, other.header.ymax, other.header.zmax)
        for mine, theirs in zip(model.objects, other.objects, strict=True):
            for contour, expected in zip(mine.contours, theirs.contours, strict=True):
                np.testing.assert_allclose(contour.points, np.asarray(expected.points))


def test_fiducial_model(tmp_path: Path) -> None:
    tracks = np.random.default_rng(0).uniform(0, 700, (4, 7, 2))
    tracks[1, 2:4] = np.nan
    write_model(tmp_path / "a.fid", ImodModel.of_tracks(tracks, (720, 710), 4.0))
    model = read_model(tmp_path / "a.fid")
    assert model.size == (720, 710, 7)
    assert model.pixel_size == pytest.approx(4.0)
    np.testing.assert_allclose(model.tracks(), tracks, atol=1e-4)
    model.contours[0].points[1, 2] = 0
    with pytest.raises(ValueError, match="two points in one view"):
        model.tracks()
    data = (tmp_path / "a.fid").read_bytes()
    for cut in (len(data) - 4, len(data) // 2, 100):
        (tmp_path / "b.fid").write_bytes(data[:cut])
        with pytest.raises(TruncatedError):
            read_model(tmp_path / "b.fid")
    (tmp_path / "b.fid").write_bytes(b"MODEL" + data)
    with pytest.raises(FormatError, match="not a binary model"):
        read_model(tmp_path / "b.fid")


def test_defocus_files(tmp_path: Path, reference_data: Path) -> None:
    paths = sorted((reference_data / "real/TomoBabel__cets-imod/imod_defocus_files").glob("*.defocus"))
    assert len(paths) == 5
    for path in paths:
        found = read_defocus(path)
        assert len(found.per_view(40)) == 40
        write_defocus(tmp_path / "a.defocus", found)
        assert read_defocus(tmp_path / "a.defocus") == found
    full = read_defocus(paths[1]).rows[0]
    assert (full.defocus_u, full.defocus_v, full.astigmatism_angle) == (13314.0, 9175.0, 32.43)
    assert (full.phase_shift, full.cut_on) == (29.08, pytest.approx(0.04912))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("1 1 -57 -57 1360\n", FormatError, "no version number"),
        ("1 1 -57 -57 1360 7\n", FormatError, "version 7"),
        ("1 0 0 0 0 3\n1 1 -57 -57 1360\n", CorruptError, "line 2: 5 values, not 7"),
        ("1 1 -57 -57 1360 2\n2 1 -57 -57 1360\n", CorruptError, "views 2 to 1"),
        ("", TruncatedError, "empty"),
        ("data_\n", FormatError, "not of a .defocus"),
    ],
)
def test_faults_of_defocus(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / "a.defocus").write_text(text)
    with pytest.raises(error, match=words):
        read_defocus(tmp_path / "a.defocus")


def test_defocus_flags(tmp_path: Path) -> None:
    """Radians and inverted angles; a row for several views stands behind one for a single view."""
    rows = "1 3 -3 3 1000 900 0.5 1.0\n2 2 0 0 1100 1000 0.5 1.0\n"
    (tmp_path / "a.defocus").write_text(f"31 0 0 0 0 3\n{rows}")
    found = read_defocus(tmp_path / "a.defocus")
    assert found.angles_inverted
    assert found.rows[0].astigmatism_angle == pytest.approx(28.6479)
    assert found.rows[0].phase_shift == pytest.approx(57.2958)
    assert [row.defocus_u for row in found.per_view(3)] == [10000, 11000, 10000]
    with pytest.raises(ValueError, match="view 4"):
        found.per_view(4)
    row = ImodDefocusRow(1, 1, 0.0, 0.0, 2e4, 2e4)
    write_defocus(tmp_path / "b.defocus", ImodDefocus((row, row)))
    assert (tmp_path / "b.defocus").read_text().split("\n")[0].endswith("\t2")

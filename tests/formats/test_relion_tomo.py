"""RELION's tilt series: columns are kept, and places are where RELION's own formula has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import CorruptError, FormatError
from weft.formats.relion_tomo import (
    RelionTiltSeries,
    from_geometry,
    projection_matrices,
    read_tilt_series,
    to_geometry,
    write_tilt_series,
)
from weft.formats.star import Table, read_star, write_star
from weft.physics.geometry import TiltGeometry

N = 5
SIZE = (400, 380)


def turn(axis: int, degrees: float) -> np.ndarray:
    """Right-handed, as RELION's d4Matrix::rotation; 4×4."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out = np.eye(4)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[i, i] = out[j, j] = c
    out[j, i], out[i, j] = s, -s
    return out


def shift(x: float, y: float, z: float = 0.0) -> np.ndarray:
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def series(hand: float = -1.0, xtilt: float = 1.5) -> RelionTiltSeries:
    rng = np.random.default_rng(2)
    tilts = Table(
        {
            "rlnMicrographName": [f"MotionCorr/job002/frames/{i}.mrc" for i in range(N)],
            "rlnTomoXTilt": np.full(N, xtilt),
            "rlnTomoYTilt": np.linspace(-57, 60, N),
            "rlnTomoZRot": 85 + rng.normal(0, 0.2, N),
            "rlnTomoXShiftAngst": rng.normal(0, 40, N),
            "rlnTomoYShiftAngst": rng.normal(0, 40, N),
            "rlnDefocusU": rng.normal(3e4, 300, N),
            "rlnDefocusV": rng.normal(3e4, 300, N),
        }
    )
    general = {
        "rlnTomoHand": hand, "rlnTomoTiltSeriesPixelSize": 1.35, "rlnVoltage": 300.0,
        "rlnTomoSizeX": 400, "rlnTomoSizeY": 380, "rlnTomoSizeZ": 120,
    }  # fmt: skip
    return RelionTiltSeries("TS_01", general, tilts)


def relion(item: RelionTiltSeries, xyz: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """RELION's own: matrices as in its reconstruction, defocus as in Tomogram::getCtf; pixels and Å."""
    volume = [int(item.general[f"rlnTomoSize{c}"]) // 2 for c in "XYZ"]
    places, defocus = [], []
    t = item.tilts
    pixel = item.pixel_size
    for i in range(len(item)):
        p = (
            shift(size[0] // 2, size[1] // 2)
            @ shift(t.floats("rlnTomoXShiftAngst")[i] / pixel, t.floats("rlnTomoYShiftAngst")[i] / pixel)
            @ turn(2, t.floats("rlnTomoZRot")[i])
            @ turn(1, t.floats("rlnTomoYTilt")[i])
            @ turn(0, t.floats("rlnTomoXTilt")[i])
            @ shift(*(-v for v in volume))
        )
        out = np.column_stack([xyz, np.ones(len(xyz))]) @ p.T
        centre = p @ [*volume, 1.0]
        places.append(out[:, :2])
        mean = 0.5 * (t.floats("rlnDefocusU")[i] + t.floats("rlnDefocusV")[i])
        defocus.append(mean + item.hand * pixel * (out[:, 2] - centre[2]))
    return np.array(places), np.array(defocus)


@pytest.mark.parametrize("hand", [1.0, -1.0])
@pytest.mark.parametrize("size", [SIZE, (401, 379)])
@pytest.mark.parametrize("invert", [False, True])
def test_places_and_defocus_are_relions(hand: float, size: tuple[int, int], invert: bool) -> None:
    item = series(hand)
    geometry = to_geometry(item, image_size=size, invert_angles=invert)
    assert geometry.hand == (hand if invert else -hand)
    pixels = np.random.default_rng(3).uniform(0, 1, (20, 3)) * [400, 380, 120]
    mine = pixels.copy()
    if not invert:
        mine[:, 2] = 120 - mine[:, 2]
    places, defocus = relion(item, pixels, size)
    found = geometry.project(torch.as_tensor(mine * 1.35)).numpy()
    np.testing.assert_allclose(found[..., :2] / 1.35, places, atol=1e-6)
    np.testing.assert_allclose(found[..., 2], defocus, atol=1e-5)
    back = from_geometry(geometry, "TS_01", pixel_size=1.35, invert_angles=invert)
    places_back, defocus_back = relion(back, pixels, size)
    np.testing.assert_allclose(places_back, places, atol=1e-6)
    np.testing.assert_allclose(defocus_back, defocus, atol=1e-5)
    assert back.general["rlnTomoHand"] == hand


def test_files_keep_every_column(tmp_path: Path) -> None:
    items = [series(), series()]
    items[1].name = "TS_02"
    folder = tmp_path / "Tomograms/job006"
    folder.mkdir(parents=True)
    write_tilt_series(folder / "tomograms.star", items, root=tmp_path)
    text = (folder / "tomograms.star").read_text()
    assert "Tomograms/job006/tilt_series/TS_02.star" in text
    back = read_tilt_series(folder / "tomograms.star")
    assert list(back) == ["TS_01", "TS_02"]
    assert list(back["TS_01"].tilts.columns) == list(items[0].tilts.columns)
    np.testing.assert_array_equal(back["TS_02"].defocus, items[1].defocus)
    assert back["TS_01"].volume_size == pytest.approx((540.0, 513.0, 162.0))
    assert list(read_tilt_series(folder / "tomograms.star", names=["TS_02"])) == ["TS_02"]
    with pytest.raises(FormatError, match="does not list the series TS_3"):
        read_tilt_series(folder / "tomograms.star", names=["TS_3"])
    (folder / "tilt_series/TS_01.star").unlink()
    with pytest.raises(FormatError, match=r"TS_01\.star that it names"):
        read_tilt_series(folder / "tomograms.star")


def test_faults(tmp_path: Path) -> None:
    varying = series()
    varying.tilts.columns["rlnTomoXTilt"] = np.linspace(0, 1, N)
    with pytest.raises(FormatError, match=r"rlnTomoXTilt varies by 1\.000"):
        to_geometry(varying, image_size=SIZE)
    missing = series()
    del missing.tilts.columns["rlnTomoZRot"]
    with pytest.raises(FormatError, match="no column _rlnTomoZRot"):
        to_geometry(missing, image_size=SIZE)
    nan = series()
    nan.tilts.columns["rlnTomoXShiftAngst"] = ["nan"] * N
    with pytest.raises(CorruptError, match="not finite"):
        to_geometry(nan, image_size=SIZE)
    bare = series()
    del bare.general["rlnTomoHand"]
    with pytest.raises(FormatError, match="rlnTomoHand"):
        to_geometry(bare, image_size=SIZE)
    write_star(tmp_path / "a.star", {"global": Table({"rlnTomoName": ["a", "a"]})})
    with pytest.raises(FormatError, match="neither"):
        read_tilt_series(tmp_path / "a.star")
    with pytest.raises(ValueError, match="2 values for 5 tilts"):
        from_geometry(TiltGeometry.of(np.zeros(N)), "a", pixel_size=1, tilts={"rlnX": [1, 2]})


def test_matrices_of_relion_4(tmp_path: Path) -> None:
    """The same series said by matrices: the same places."""
    item = series()
    plain = to_geometry(item, image_size=SIZE)
    volume = [int(item.general[f"rlnTomoSize{c}"]) // 2 for c in "XYZ"]
    rows: dict[str, list[str]] = {f"rlnTomoProj{c}": [] for c in "XYZW"}
    for i in range(N):
        t = {k: item.tilts.floats(k)[i] for k in item.tilts.columns if k != "rlnMicrographName"}
        p = (
            shift(200 + t["rlnTomoXShiftAngst"] / 1.35, 190 + t["rlnTomoYShiftAngst"] / 1.35)
            @ turn(2, t["rlnTomoZRot"]) @ turn(1, t["rlnTomoYTilt"]) @ turn(0, t["rlnTomoXTilt"])
            @ shift(*(-v for v in volume))
        )  # fmt: skip
        for c, row in zip("XYZW", p, strict=True):
            rows[f"rlnTomoProj{c}"].append("[" + ",".join(repr(float(v)) for v in row) + "]")
    tilts = Table({**rows, **{k: item.tilts[k] for k in ("rlnDefocusU", "rlnDefocusV")}})
    general = Table({k: [v] for k, v in {"rlnTomoName": "TS_01", **item.general}.items()})
    write_star(tmp_path / "tomograms.star", {"global": general, "TS_01": tilts})
    back = read_tilt_series(tmp_path / "tomograms.star")["TS_01"]
    assert projection_matrices(back).shape == (N, 4, 4)
    xyz = torch.rand(10, 3, dtype=torch.float64) * plain.volume_size
    found = to_geometry(back, image_size=SIZE)
    torch.testing.assert_close(found.project(xyz), plain.project(xyz), atol=1e-6, rtol=0)
    back.tilts.columns["rlnTomoProjX"] = ["[1,2]"] * N
    with pytest.raises(CorruptError, match="not four numbers"):
        projection_matrices(back)


def test_real_files(reference_data: Path) -> None:
    """RELION 5's tables of EMPIAR-10164, and the set with matrices that WarpTools exports."""
    real = reference_data / "real"
    jobs = real / "TomoBabel__cets-relion"
    for table, sized in (("AlignTiltSeries/job005/aligned_tilt_series.star", False),
                         ("Denoise/job007/tomograms.star", True)):  # fmt: skip
        found = read_tilt_series(jobs / table, names=["TS_01", "TS_03", "TS_43"])
        assert [len(item) for item in found.values()] == [40, 40, 41]
        item = found["TS_01"]
        assert item.pixel_size == 1.35
        assert (item.volume_size == (5400.0, 5400.0, 2700.0)) is sized
        geometry = to_geometry(item, image_size=(3838, 3710))
        assert geometry.hand == 1.0
        np.testing.assert_allclose(geometry.axis, 85.0, atol=1.0)
        nominal = item.tilts.floats("rlnTomoNominalStageTiltAngle")
        np.testing.assert_allclose(geometry.angles, nominal, atol=0.1)
    warp = real / "bpowell122__tomodrgn/warptools_test_4-tomos_10-ptcls_box-32_angpix-12_tomograms.star"
    sets = read_tilt_series(warp)
    assert len(sets) == 4
    first = next(iter(sets.values()))
    r = projection_matrices(first)[:, :3, :3]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.broadcast_to(np.eye(3), r.shape), atol=1e-5)
    assert "rlnTomoTiltSeriesName" in first.general
    assert read_star(warp)["global"].strings("rlnTomoName")[0] == first.name

"""Tomograms of sessions and of other programs: their geometry against IMOD's formula and real files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

import weft
from weft.errors import FormatError, ItemError, RequestError, SessionError, WeftError
from weft.formats import mrc
from weft.formats.aretomo import AreTomoAlignment, AreTomoDark, write_aln
from weft.formats.ctffind import read_ctffind
from weft.formats.warp_geometry import positions
from weft.formats.warp_xml import read_warp_xml
from weft.physics.geometry import TiltGeometry
from weft.session.tilt_item import TiltSeries
from weft.session.tomogram_source import (
    ForeignTomogramSettings,
    TomogramSource,
    foreign_tomogram,
    session_tomogram,
)
from weft.tilts.gridding import transfer_volume
from weft.tilts.images import TiltImages
from weft.tilts.reconstruction import ReconstructionSettings, reconstruct
from weft.tilts.volumes import VolumeGrid

sys.path.append(str(Path(__file__).parents[1] / "web"))
from series_session import DARK, NAME, PIXEL, TOMOGRAM_PIXEL, Made, make

Array = NDArray[np.float64]
N, VOXEL = 64, 10.0
#: One-sided, so that the sign of the angles matters.
ANGLES = np.arange(-20.0, 61.0, 2.0)


def write_tomogram(
    path: Path, shape: tuple[int, int, int] = (N, N, N), voxel: float | None = VOXEL, data: Any = None
) -> Path:
    values = np.zeros(shape, np.float32) if data is None else data.astype(np.float32)
    mrc.write(path, values, voxel or 1.0, volume=True)
    if voxel is None:
        with path.open("r+b") as file:  # cell lengths of nothing
            file.seek(40)
            file.write(bytes(12))
    return path


def write_lines(path: Path, values: Any) -> str:
    path.write_text("".join(f"{v:g}\n" for v in values))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tomogram(tmp_path / "TS_7.mrc")
    write_lines(tmp_path / "TS_7.tlt", ANGLES)
    return tmp_path


def source(folder: Path, **settings: Any) -> TomogramSource:
    if not {"tilts", "tilt_range"} & set(settings):
        settings["tilts"] = str(folder / "TS_7.tlt")
    return foreign_tomogram(folder / "TS_7.mrc", ForeignTomogramSettings(**settings))


OPTICS = {"voltage": 300.0, "cs": 2.7, "amplitude": 0.07}

# ------------------------------------------------------------------------------------------ how things lie


def imods_tomogram() -> tuple[Array, Array]:
    """Points, projected and back-projected by IMOD's x = X cos t + Z sin t, z up; nothing of Weft's in it.

    Returns images (tilts, y, x) and the map (z, y, x).
    """
    rng = np.random.default_rng(3)
    points = rng.uniform(-18, 18, (60, 3))
    grid = np.arange(N) - N // 2
    images = np.zeros((len(ANGLES), N, N))
    ramp = np.abs(np.fft.rfftfreq(N))
    for image, angle in zip(images, np.radians(ANGLES), strict=True):
        x = points[:, 0] * np.cos(angle) + points[:, 2] * np.sin(angle)
        spots = np.exp(-0.5 * ((grid[None, :] - x[:, None]) / 1.2) ** 2)
        rows = np.exp(-0.5 * ((grid[None, :] - points[:, 1:2]) / 1.2) ** 2)
        image += rows.T @ spots
    volume = np.zeros((N, N, N))
    z, x = np.meshgrid(grid, grid, indexing="ij")
    for image, angle in zip(images, np.radians(ANGLES), strict=True):
        filtered = np.fft.irfft(np.fft.rfft(image, axis=1) * ramp, N, axis=1)
        place = x * np.cos(angle) + z * np.sin(angle)
        for y in range(N):
            volume[:, y] += np.interp(place, grid, filtered[y], 0.0, 0.0)
    return images, volume


def power_inside(volume: Array, geometry: TiltGeometry, found: TomogramSource) -> float:
    """Part of a map's power (beyond the lowest frequencies) where the tilts have measured something."""
    centre = 0.5 * geometry.volume_size.float()
    seen = transfer_volume(
        centre, N, VOXEL, replace(geometry, defocus=torch.full((len(ANGLES),), 3e4)), found.contrast,
        dose_model="none", cosine=False,
    ).numpy() > 0.0  # fmt: skip
    power = np.abs(np.fft.rfftn(volume)) ** 2
    axis, half = np.fft.fftfreq(N), np.fft.rfftfreq(N)
    kz, ky, kx = np.meshgrid(axis, axis, half, indexing="ij")
    # beyond 1/thickness all sections have parted; where a Gaussian spot still has power
    band = (np.hypot(kx, kz) > 0.08) & (np.sqrt(kx**2 + ky**2 + kz**2) < 0.25)
    return float(power[band & seen].sum() / power[band].sum())


def test_the_missing_wedge_is_where_the_maps_power_is_not(folder: Path) -> None:
    """The sign of IMOD's angles: a range of -20° to 60° leaves a lopsided wedge.

    What is outside are the leaks of spots cut off at the map's faces and linear interpolation.
    """
    _, volume = imods_tomogram()
    found = source(folder)
    inside = power_inside(volume, found.geometry, found)
    other = power_inside(volume, source(folder, mirrored=True).geometry, found)
    assert inside > 0.97
    assert other < inside - 0.2
    # and a map that was flipped instead of rotated
    assert power_inside(volume[::-1], source(folder, mirrored=True).geometry, found) > 0.95


def test_our_reconstruction_from_the_geometry_is_imods(folder: Path) -> None:
    """Weft's own back-projection of the same images gives the same map, not its mirror image."""
    images, theirs = imods_tomogram()
    found = source(folder)
    geometry = replace(found.geometry, image_size=torch.tensor([N * VOXEL, N * VOXEL], dtype=torch.float64))
    prepared = TiltImages.prepare(
        (torch.from_numpy(image.astype(np.float32)) for image in images), VOXEL, VOXEL
    )
    ours = np.zeros((N, N, N))

    def write(_name: str, first: int, slab: torch.Tensor) -> None:
        ours[first : first + len(slab)] = slab.numpy()

    settings = ReconstructionSettings(pixel_size=VOXEL, method="wbp", dose_weighting="none", invert=False)
    reconstruct(
        prepared, geometry, found.contrast, VolumeGrid.of(geometry.volume_size, VOXEL), write, settings
    )
    inner = (slice(8, -8),) * 3
    same = np.corrcoef(ours[inner].ravel(), theirs[inner].ravel())[0, 1]
    mirror = np.corrcoef(ours[::-1][inner].ravel(), theirs[inner].ravel())[0, 1]
    # the filters differ at low frequencies: Weft's is that of a volume of finite thickness
    assert same > 0.9
    assert mirror < 0.5


@pytest.mark.parametrize("hand", [1, -1])
def test_hand_means_the_same_as_in_a_session(folder: Path, hand: int) -> None:
    """The same images: a session's specimen is IMOD's, mirrored in z. Place and defocus must agree."""
    found = source(folder, defocus="3.1", hand=hand, tilt_axis=84.0, **OPTICS)
    assert found.geometry.hand == -hand
    session = TiltGeometry.of(
        ANGLES, axis=84.0, defocus=31000.0, volume_size=found.geometry.volume_size, hand=float(hand)
    )
    points = torch.as_tensor(np.random.default_rng(0).uniform(0, N * VOXEL, (20, 3)))
    flipped = points.clone()
    flipped[:, 2] = N * VOXEL - points[:, 2]
    torch.testing.assert_close(found.geometry.project(points), session.project(flipped), atol=1e-6, rtol=0)
    # mirrored volumes are the session's own
    same = source(folder, defocus="3.1", hand=hand, tilt_axis=84.0, mirrored=True, **OPTICS).geometry
    torch.testing.assert_close(same.project(points), session.project(points), atol=1e-6, rtol=0)


def test_hand_0_and_unknown(folder: Path) -> None:
    for settings in ({"hand": 0}, {}):
        found = source(folder, defocus="2.5", **settings, **OPTICS)
        defocus = found.geometry.project(torch.rand(7, 3, dtype=torch.float64) * 500)[..., 2]
        assert (defocus == 25000.0).all()
        assert bool(found.notes) == (not settings)


# -------------------------------------------------------------------------------------------- what is said


def test_defaults_and_choices(folder: Path) -> None:
    found = source(folder)
    assert (found.name, found.voxel_size, found.shape) == ("TS_7", VOXEL, (N, N, N))
    assert found.geometry.volume_size.tolist() == [640.0] * 3
    assert (found.method, found.has_ctf, found.dose_model) == ("uncorrected", False, "none")
    assert found.density_positive
    assert not found.dose_weighted
    found = source(
        folder, tomogram_is="warp", dark=True, dose_weighted=True, name="x", tilt_range=(-60, 60), tilt_step=2
    )
    assert (found.method, found.density_positive, found.dose_weighted) == ("amplitude", False, True)
    assert (found.name, len(found.geometry)) == ("x", 61)
    part = source(folder, volume_size=(640, 640, 2000), origin=(0, 0, 500))
    assert part.origin == (0, 0, 500)
    assert part.geometry.volume_size.tolist() == [640, 640, 2000]


def test_the_centre_of_odd_sizes_is_their_middle_voxel(folder: Path) -> None:
    write_tomogram(folder / "TS_7.mrc", (21, 33, 40))
    assert source(folder).geometry.volume_size.tolist() == [400.0, 320.0, 200.0]


def test_dose(folder: Path) -> None:
    dose = np.arange(41) * 3.0 + 3.0
    found = source(folder, dose=write_lines(folder / "dose.txt", dose), voltage=300)
    np.testing.assert_array_equal(found.contrast.dose, dose)
    assert found.dose_model == "warp"

    def order(**settings: Any) -> list[float]:
        given = source(folder, dose_per_tilt=2.0, voltage=300, **settings)
        dose = given.contrast.dose.numpy()
        return [float(ANGLES[i]) for i in np.argsort(dose)[:6]]

    assert order(acquisition="symmetric") == [0, 2, -2, 4, -4, 6]
    assert order(acquisition="bidirectional", start_angle=-16) == [-16, -14, -12, -10, -8, -6]
    assert order(acquisition="down") == [60, 58, 56, 54, 52, 50]
    numbers = np.roll(np.arange(1, 42), 10)
    assert order(acquisition=write_lines(folder / "order.txt", numbers))[0] == ANGLES[10]
    least = source(folder, dose_per_tilt=2.0, voltage=300, acquisition="up").contrast.dose
    assert (float(least.min()), float(least.max())) == (2.0, 82.0)


# ---------------------------------------------------------------------------------- files of other programs


def test_imods_files(reference_data: Path, tmp_path: Path) -> None:
    """TS_03 of EMPIAR-10164: IMOD's angles and defocus with astigmatism and phase shift."""
    write_tomogram(tmp_path / "TS_7.mrc")
    place = reference_data / "real" / "TomoBabel__cets-imod"
    tlt = str(place / "tilt_series" / "TS_03.tlt")
    name = str(place / "imod_defocus_files" / "TS_03_astigmatism_and_phase_shift.defocus")
    found = source(tmp_path, tilts=tlt, defocus=name, tilt_axis=85.3, hand=1, **OPTICS)
    # its first line: 1483.9 and 1068.7 nm at 32.44°, 26.49° of phase
    assert float(found.geometry.defocus[0]) == pytest.approx(12763.0)
    assert float(found.contrast.astigmatism[0]) == pytest.approx(4152.0)
    assert float(found.contrast.angle[0]) == pytest.approx(32.44)
    assert float(found.contrast.phase_shift[0]) == pytest.approx(26.49)
    assert float(found.geometry.angles[0]) > 50.0  # the file has -57°
    with pytest.raises(RequestError, match="--tilt-axis"):
        source(tmp_path, tilts=tlt, defocus=name, hand=1, **OPTICS)
    plain = str(place / "imod_defocus_files" / "TS_03_plain_estimation.defocus")
    assert source(tmp_path, tilts=tlt, defocus=plain, **OPTICS).has_ctf


def test_imods_ranges_of_views(folder: Path) -> None:
    """A value that was found from several views is that of their middle; single views may not be missing."""
    place = folder / "a.defocus"
    place.write_text("1 11 -20.0 0.0 3000.0 2\n6 16 -10 10 3100\n11 41 0 60 3200\n")
    found = source(folder, defocus=str(place), **OPTICS).geometry.defocus
    assert found[[0, 5, 10, 40]].tolist() == [30000.0, 30000.0, 31000.0, 32000.0]
    assert float(found[7]) == pytest.approx(30400.0)
    for text, words in (
        ("1 1 -20.0 -20.0 3000.0 2\n41 41 60 60 3200\n", "no defocus for view 2"),
        ("1 41 -20.0 60.0 3000.0 2\n1 41 -20 60 3200\n", "two values"),
        ("1 20 -20.0 20.0 3000.0 2\n", "defocus for 20 tilts"),
    ):
        place.write_text(text)
        with pytest.raises(FormatError, match=words):
            source(folder, defocus=str(place), **OPTICS)


def test_relions_table(reference_data: Path, tmp_path: Path) -> None:
    """EMPIAR-10164: rec_TS_03.mrc and tomograms.star, whose hand is -1."""
    star = reference_data / "real/TomoBabel__cets-relion/Denoise/job008/tomograms.star"
    if not star.is_file():
        pytest.skip("no such table")
    path = write_tomogram(tmp_path / "rec_TS_03.mrc", (54, 108, 108), 50.0)
    found = foreign_tomogram(path, ForeignTomogramSettings(tilts=str(star), tomogram_is="ctf-corrected"))
    assert (found.name, found.method, found.image_pixel_size) == ("TS_03", "power", 1.35)
    assert found.geometry.volume_size.tolist() == [5400.0, 5400.0, 2700.0]
    assert found.geometry.hand == -1.0
    assert (found.contrast.optics.voltage, found.contrast.optics.amplitude) == (300.0, 0.1)
    # by the end of each exposure: 114 before the first line's, 3 a tilt
    assert float(found.contrast.dose[0]) == 117.0
    assert found.has_ctf
    assert foreign_tomogram(path, ForeignTomogramSettings(tilts=str(star), ctf="no")).has_ctf is False
    small = write_tomogram(tmp_path / "small_TS_03.mrc", (64, 64, 64), 10.0)
    other = write_tomogram(tmp_path / "other.mrc", (54, 108, 108), 50.0)
    with pytest.raises(FormatError, match="is it another one"):
        foreign_tomogram(small, ForeignTomogramSettings(tilts=str(star)))
    with pytest.raises(RequestError, match="--series"):
        foreign_tomogram(other, ForeignTomogramSettings(tilts=str(star)))


def test_warps_xml(reference_data: Path, tmp_path: Path) -> None:
    """Places and defoci are Warp's, but for what M has refined locally; tilts out of use are left out."""
    xml = reference_data / "real/warpem__warpylib/TS_1.xml"
    write_tomogram(tmp_path / "TS_7.mrc")
    found = source(tmp_path, tilts=str(xml), tomogram_is="warp")
    series = read_warp_xml(xml)
    assert len(found.geometry) == int(series.use_tilt.sum())
    series.grids = {k: v for k, v in series.grids.items() if "Movement" not in k and "VolumeWarp" not in k}
    xyz = np.random.default_rng(1).uniform(0, 640, (9, 3))
    size = found.geometry.volume_size.tolist()
    expected = positions(series, xyz, image_size=(4000.0, 4000.0), volume_size=size)
    # the file does not say how large the images are
    got = found.geometry.project(torch.as_tensor(xyz)) + torch.tensor([2000.0, 2000.0, 0.0])
    np.testing.assert_allclose(got, expected[series.use_tilt], atol=1e-6)
    assert found.contrast.optics.voltage == 300.0


def test_aretomos_files(reference_data: Path, tmp_path: Path) -> None:
    """An alignment of 10 of 12 images, and a table of CTFs with a line for each of the 12."""
    table = read_ctffind(reference_data / "real/uermel__cryoet-alignment/test_CTF.txt")
    assert table.defocus_u[0] == 25951.41
    assert table.angle[1] == 83.57
    write_tomogram(tmp_path / "TS_7.mrc")
    kept = np.array([1, 2, 3, 4, 5, 7, 8, 9, 10, 12])
    angles = -33.0 + 6.0 * (kept - 1)
    solved = AreTomoAlignment(
        section=kept, axis=np.full(10, -12.66), angles=angles, shift=np.ones((10, 2)),
        magnification=np.ones(10), weights=np.ones((10, 4)), raw_size=(2032, 2032, 12),
        dark=[AreTomoDark(6, 6, -3.0), AreTomoDark(11, 11, 27.0)],
    )  # fmt: skip
    aln = tmp_path / "TS_7.aln"
    write_aln(aln, solved)
    found = source(tmp_path, tilts=str(aln))
    np.testing.assert_allclose(found.geometry.angles, -angles)
    assert float(found.geometry.axis[0]) == pytest.approx(-12.66)
    head = "# Columns: #1 micrograph number; #2 - defocus 1 [A]"
    body = [f"{i} {20000 + 2 * i} 20000 10 0.5 0.1 inf" for i in range(1, 13)]
    ctf = tmp_path / "TS_7_CTF.txt"
    ctf.write_text("\n".join([head, *body]) + "\n")
    settings = {"tilts": str(aln), "defocus": str(ctf), "hand": 1, **OPTICS}
    with_ctf = source(tmp_path, **settings)
    np.testing.assert_allclose(with_ctf.geometry.defocus, 20000.0 + kept)
    assert float(with_ctf.contrast.phase_shift[0]) == pytest.approx(np.degrees(0.5))
    # where the numbers do not tell which images were kept, they cannot be told apart
    solved.section, solved.dark = np.arange(1, 11), [AreTomoDark(6, 0, -3.0), AreTomoDark(11, 0, 27.0)]
    write_aln(aln, solved)
    with pytest.raises(FormatError, match=r"CTFs for 12 tilts, but TS_7\.aln has 10"):
        source(tmp_path, **settings)


# -------------------------------------------------------------------------------------------- of a session


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A session of one series with finished records."""
    return make(tmp_path_factory.mktemp("series") / "session")


@pytest.mark.parametrize(
    ("changes", "method", "weights"),
    [
        ({}, "power", "counts"),
        ({"ctf_weights": "amplitude", "tilt_weighting": "cosine", "invert": False}, "amplitude", "cosine"),
        ({"ctf_weights": "none", "dose_weighting": "none", "tilt_weighting": "none"}, "uncorrected", ""),
        ({"method": "wbp_flipped", "dose_weighting": "grant"}, "flipped", ""),
        ({"method": "wbp", "region": [160.0, 320.0, 0.0, 96.0, 50.0, 150.0]}, "uncorrected", ""),
    ],
)
def test_of_a_session(made: Made, changes: dict[str, Any], method: str, weights: str) -> None:
    """What the settings that the reconstruction was made with mean for the specimen's signal."""
    series = weft.open(made.root)[NAME]
    assert isinstance(series, TiltSeries)
    assert series.record is not None
    used = {"reconstruction": {"pixel_size": TOMOGRAM_PIXEL, **changes}}
    used["input"] = {"voltage": 300.0, "cs": 2.7, "amplitude": 0.07}
    series.record.steps["reconstruct"] = replace(series.record.steps["reconstruct"], settings=used)
    found = session_tomogram(series)
    assert (found.name, found.voxel_size, found.image_pixel_size) == (NAME, TOMOGRAM_PIXEL, PIXEL)
    assert found.path.is_file()
    assert found.method == method
    assert found.dose_weighted == (changes.get("dose_weighting") != "none")
    assert found.dose_model == ("grant" if changes.get("dose_weighting") == "grant" else "warp")
    assert found.density_positive == changes.get("invert", True)
    assert found.cosine == (weights == "cosine")
    # the records' counts follow the cosine
    counts = np.cos(np.radians(found.geometry.angles.numpy()))
    expected = counts / counts.max() if weights == "counts" else np.ones(len(counts))
    np.testing.assert_allclose(found.contrast.weight, expected)
    by_angle = [3.0 * (made.angles.index(a) + 1) for a in sorted(made.angles) if a != made.angles[DARK]]
    np.testing.assert_allclose(found.contrast.dose, by_angle)
    np.testing.assert_allclose(found.geometry.defocus, made.ctf.defocus, atol=0.01)
    np.testing.assert_allclose(found.contrast.astigmatism, 310.0)
    assert found.geometry.hand == 1.0
    assert found.shape == made.tomogram.shape
    assert found.origin == ((160.0, 0.0, 64.0) if "region" in changes else (0.0, 0.0, 0.0))


def test_of_a_session_without_a_tomogram(made: Made) -> None:
    series = weft.open(made.root)[NAME]
    assert isinstance(series, TiltSeries)
    assert series.record is not None
    done = series.record.steps["reconstruct"]
    series.record.steps["reconstruct"] = replace(done, outputs={"tomogram": "reconstruction/gone.mrc"})
    with pytest.raises(SessionError, match="is gone"):
        session_tomogram(series)
    del series.record.steps["reconstruct"]
    with pytest.raises(SessionError, match="has no tomogram"):
        session_tomogram(series)


# ------------------------------------------------------------------------------------------------- faults


def test_faults_of_the_request(folder: Path) -> None:
    doses = write_lines(folder / "dose.txt", range(40))
    (folder / "a.json").write_text("{}")
    cases: list[tuple[dict[str, Any], type[WeftError], str]] = [
        ({"dose": doses, "voltage": 300}, FormatError, "doses for 40 tilts, but TS_7.tlt has 41"),
        ({"ctf": "yes"}, RequestError, "its defocus is not known"),
        ({"defocus": "3"}, RequestError, "without the voltage: give --voltage"),
        ({"defocus": "3", "voltage": 300}, RequestError, "spherical aberration: give --cs"),
        ({"defocus": "nowhere.defocus"}, RequestError, "there is no file nowhere.defocus"),
        ({"defocus": str(folder / "a.json")}, RequestError, "not from .json"),
        ({"tilts": str(folder / "a.json")}, RequestError, "not from .json"),
        ({"tilts": str(folder / "b.tlt")}, RequestError, "there is no file"),
        ({"tilts": ""}, RequestError, "--tilts"),
        ({"dose_per_tilt": 3.0, "voltage": 300}, RequestError, "--acquisition"),
        ({"voxel_size": 8.0}, FormatError, "its header says 10 Å a voxel, --voxel-size 8 Å"),
        ({"origin": (0, 0, 5)}, RequestError, "--volume-size"),
        ({"tilts": "a.tlt", "tilt_range": (-60, 60)}, RequestError, "not both"),
        ({"dose": doses, "dose_per_tilt": 3.0}, RequestError, "not both"),
    ]
    for settings, error, words in cases:
        with pytest.raises(error) as caught:
            source(folder, **settings)
        assert words in str(caught.value), (settings, caught.value)
        assert str(caught.value).count("\n") == 0
    with pytest.raises(RequestError, match="there is no tomogram"):
        foreign_tomogram(folder / "TS_8.mrc", ForeignTomogramSettings())
    for bad in ({"tilt_range": (60, -60)}, {"origin": (1, 2)}):
        with pytest.raises(ValidationError):
            ForeignTomogramSettings(**bad)  # type: ignore[arg-type]


def test_faults_of_the_header(folder: Path) -> None:
    write_tomogram(folder / "TS_7.mrc", voxel=None)
    with pytest.raises(ItemError, match="--voxel-size"):
        source(folder)
    assert source(folder, voxel_size=8.0).voxel_size == 8.0
    mrc.write(folder / "TS_7.mrc", np.zeros((4, 4, 4), np.float32), VOXEL, volume=True)
    with (folder / "TS_7.mrc").open("r+b") as file:
        file.seek(48)  # the cell's length along z
        file.write(np.float32(80.0).tobytes())
    with pytest.raises(FormatError, match="no cubes"):
        source(folder)


def test_faults_of_ctf_tables(tmp_path: Path) -> None:
    path = tmp_path / "a_CTF.txt"
    for text, words in (
        ("", "empty"),
        ("# only\n", "no images"),
        ("1 2 3\n", "3 columns"),
        ("1 left 3 4 5 6 7\n", "no row of numbers"),
        ("1 nan 3 4 5 6 7\n", "not finite"),
        ("1 2.0 2.0 4 5 6 7\n", "no defocus in Å"),
        ("2 2e4 2e4 4 5 6 7\n1 2e4 2e4 4 5 6 7\n", "count up"),
    ):
        path.write_text(text)
        with pytest.raises(ItemError, match=words):
            read_ctffind(path)

"""Particles in tomograms, as RELION, WarpTools, pytom-match-pick and Dynamo list them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star, write_star
from weft.formats.tomo_particles import (
    TomoParticles,
    euler_angles,
    euler_matrices,
    join_particles,
    plain_name,
    read_tomo_particles,
    write_tomo_particles,
)

VOLUME = (4000.0, 4200.0, 1500.0)
PIXEL = 10.0


@pytest.fixture
def particles() -> TomoParticles:
    random = np.random.default_rng(3)
    n = 12
    euler = np.stack(
        [random.uniform(-180, 180, n), random.uniform(0, 180, n), random.uniform(-180, 180, n)], 1
    )
    euler[0], euler[1] = (40.0, 0.0, 0.0), (-70.0, 180.0, 0.0)  # the poles
    return TomoParticles(
        ["TS_01"] * 7 + ["TS_02"] * 5,
        random.uniform(-700, 700, (n, 3)),
        euler,
        random.uniform(0.1, 0.6, n),
        {"rlnClassNumber": random.integers(1, 4, n)},
    )


def same(a: TomoParticles, b: TomoParticles) -> None:
    assert a.tomogram == b.tomogram
    # the text holds every digit; what is left is the arithmetic of pixels and matrices
    np.testing.assert_allclose(a.xyz, b.xyz, atol=1e-9)
    np.testing.assert_allclose(euler_matrices(a.euler), euler_matrices(b.euler), atol=1e-9)
    np.testing.assert_allclose(a.score, b.score)


def without_centred(path: Path) -> None:
    """Leave a reader nothing but the flavour's own coordinates."""
    blocks = read_star(path)
    for block in blocks.values():
        for axis in "XYZ":
            block.columns.pop(f"rlnCenteredCoordinate{axis}Angst", None)
    write_star(path, blocks)


@pytest.mark.parametrize("flavour", ["relion5", "relion4", "relion3", "warp", "dynamo"])
def test_every_flavour_comes_back(tmp_path: Path, particles: TomoParticles, flavour: str) -> None:
    path = tmp_path / ("a.tbl" if flavour == "dynamo" else "a.star")
    write_tomo_particles(path, particles, flavour, pixel_size=PIXEL, volume_size=VOLUME)  # type: ignore[arg-type]
    pixel = PIXEL if flavour in ("relion4", "warp", "dynamo") else None
    if flavour not in ("relion5", "dynamo"):
        same(read_tomo_particles(path), particles)
        table = next(iter(read_star(path).values()))
        needed = {"rlnTomoName", "rlnLCCmax", "rlnAngleRot", "rlnCenteredCoordinateZAngst", "rlnClassNumber"}
        assert needed <= set(table.columns)
        without_centred(path)
    same(read_tomo_particles(path, pixel_size=pixel, volume_size=VOLUME), particles)


def test_sizes_may_differ_between_tomograms(tmp_path: Path, particles: TomoParticles) -> None:
    sizes = {"TS_01": VOLUME, "TS_02": (3000.0, 3000.0, 900.0)}
    pixels = {"TS_01": 5.0, "TS_02": 8.0}
    path = tmp_path / "a.star"
    write_tomo_particles(path, particles, "relion4", pixel_size=pixels, volume_size=sizes)
    table = read_star(path)["particles"]
    expected = (particles.xyz[-1, 0] + 1500.0) / 8.0
    assert table.floats("rlnCoordinateX")[-1] == pytest.approx(expected)
    without_centred(path)
    same(read_tomo_particles(path, pixel_size=pixels, volume_size=sizes), particles)
    with pytest.raises(FormatError, match="TS_02"):
        read_tomo_particles(path, pixel_size=pixels, volume_size={"TS_01": VOLUME})


def test_the_centre_is_where_relion_has_it(tmp_path: Path) -> None:
    """Pixel n//2 of an even n is the centre: RELION 4's matrices and RELION 5's coordinates agree in that."""
    path = tmp_path / "a.star"
    optics = Table({"rlnOpticsGroup": [1], "rlnTomoTiltSeriesPixelSize": [2.0]})
    columns = {f"rlnCoordinate{axis}": [n // 2] for axis, n in zip("XYZ", (400, 420, 150), strict=True)}
    table = Table({"rlnTomoName": ["T"], **columns, "rlnOpticsGroup": [1]})
    write_star(path, {"optics": optics, "particles": table})
    read = read_tomo_particles(path, volume_size=(800.0, 840.0, 300.0))
    np.testing.assert_allclose(read.xyz, [[0.0, 0.0, 0.0]])
    assert read.optics is not None
    assert np.isnan(read.score).all()


def test_normalised_coordinates_of_warptools(tmp_path: Path, particles: TomoParticles) -> None:
    path = tmp_path / "a.star"
    write_tomo_particles(path, particles, "warp", volume_size=VOLUME, normalised=True)
    without_centred(path)
    blocks = read_star(path)
    table = blocks[""]
    del table.columns["rlnTomoName"], table.columns["rlnLCCmax"]
    assert table.floats("rlnCoordinateX").max() < 1.0
    assert table.strings("rlnMicrographName")[0] == "TS_01.tomostar"
    write_star(path, blocks)
    read = read_tomo_particles(path, volume_size=VOLUME)
    same(read, particles)
    assert "rlnAutopickFigureOfMerit" not in read.extra


def test_orientations_of_subtomograms_are_joined(tmp_path: Path) -> None:
    """RELION: M = A_subtomogram · A_particle, place = coordinate − A_subtomogram · origin (ParticleSet)."""
    sub, own, origin = (20.0, 70.0, -130.0), (-15.0, 95.0, 44.0), np.array([3.0, -2.0, 5.0])
    labels = [f"rlnTomoSubtomogram{a}" for a in ("Rot", "Tilt", "Psi")]
    labels += [f"rlnAngle{a}" for a in ("Rot", "Tilt", "Psi")]
    columns = {label: [value] for label, value in zip(labels, sub + own, strict=True)}
    columns |= {f"rlnOrigin{axis}Angst": [v] for axis, v in zip("XYZ", origin, strict=True)}
    columns |= {f"rlnCenteredCoordinate{axis}Angst": [100.0] for axis in "XYZ"}
    columns |= {"rlnAngleTiltPrior": [90.0]}
    path = tmp_path / "a.star"
    write_star(path, {"particles": Table({"rlnTomoName": ["T"], **columns})})
    read = read_tomo_particles(path)

    def matrix(angles: tuple[float, float, float]) -> np.ndarray:
        from scipy.spatial.transform import Rotation

        return Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()

    np.testing.assert_allclose(euler_matrices(read.euler)[0], matrix(sub) @ matrix(own), atol=1e-12)
    np.testing.assert_allclose(read.xyz[0], 100.0 - matrix(sub) @ origin, atol=1e-12)
    assert not read.extra, "columns that are relative to what has been joined"


def test_euler_angles_invert_euler_matrices() -> None:
    random = np.random.default_rng(0)
    euler = random.uniform((-180, 0, -180), (180, 180, 180), (200, 3))
    np.testing.assert_allclose(euler_angles(euler_matrices(euler)), euler, atol=1e-6)


def test_dynamo_convention(reference_data: Path) -> None:
    """Along a microtubule the particle's z axis lies on the line between neighbours (and, from the package
    eulerangles, row 1 is rot −37.37, tilt 96.221, psi −97.05)."""
    path = reference_data / "real/builab__subtomo2Chimera/aligned.tbl"
    read = read_tomo_particles(path, pixel_size=8.48, volume_size=VOLUME)
    assert len(read) == 499
    np.testing.assert_allclose(read.euler[0], (-37.37, 96.221, -97.05), atol=1e-9)
    distance = np.linalg.norm(read.xyz[:, None] - read.xyz[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    along = read.xyz[distance.argmin(1)] - read.xyz
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    cosine = np.abs((along * euler_matrices(read.euler)[:, :, 2]).sum(1))
    # 3.5 degrees; a wrong sign of tdrot or tilt gives a median below 0.9
    assert np.median(cosine) > 0.998
    # column 24 and dx of row 1; 0.5 is the first voxel's centre
    assert read.xyz[0, 0] == pytest.approx((263.5 + 0.93647 - 0.5) * 8.48 - 2000.0)


def test_dynamo_table_maps(reference_data: Path) -> None:
    folder = reference_data / "real/alisterburt__dynamo2m/dynamo2warp"
    read = read_tomo_particles(folder / "example.tbl", pixel_size=15.0, volume_size=VOLUME)
    assert read.tomogram[0] == "tomo_ts01"
    assert len(set(read.tomogram)) == 48
    with pytest.raises(FormatError, match="tomogram 2"):
        read_tomo_particles(
            folder / "example.tbl", pixel_size=15.0, volume_size=VOLUME, table_map={1: "tomo_ts01"}
        )
    with pytest.raises(FormatError, match="size of pixels and tomograms"):
        read_tomo_particles(folder / "example.tbl")


@pytest.mark.parametrize(
    ("file", "count", "tomograms", "pixel"),
    [
        ("bpowell122__tomodrgn/warptools_test_4-tomos_10-ptcls_box-32_angpix-12.star", 40, 4, 12.0),
        ("turonova__cryoCAT/test_data/motl_data/relion_4.0.star", 1746, 13, 1.971),
        ("builab__subtomo2Chimera/run_data_empiar10064.star", 284, 1, 2.62),
        ("alisterburt__dynamo2m/warp2dynamo/example.star", 1399, 47, 5.0),
        ("alisterburt__dynamo2m/relion_star_downgrade/relion3.1.star", 57, 1, 5.0),
        ("bpowell122__tomodrgn/10076_both_32_sim_vols.star", 144, 1, 13.1),
    ],
)
def test_real_files_in_pixels(
    reference_data: Path, file: str, count: int, tomograms: int, pixel: float
) -> None:
    """`pixel` is what each file's program counts in, as its own header or documentation says."""
    path = reference_data / "real" / file
    read = read_tomo_particles(path, volume_size=VOLUME)
    assert (len(read), len(set(read.tomogram))) == (count, tomograms)
    given = read_tomo_particles(path, volume_size=VOLUME, pixel_size=pixel)
    np.testing.assert_allclose(read.xyz, given.xyz)
    assert np.isfinite(read.euler).all()
    assert not any(name.endswith((".tomostar", ".mrc")) for name in read.tomogram)


def test_warptools_particles_lie_within_their_tomograms(reference_data: Path) -> None:
    """4400×6000×1400 pixels of 1.667 Å: with the tilt series' pixels, all particles were in one corner."""
    folder = reference_data / "real/bpowell122__tomodrgn"
    size = np.array([4400, 6000, 1400]) * 1.667
    read = read_tomo_particles(
        folder / "warptools_test_4-tomos_10-ptcls_box-32_angpix-12.star", volume_size=tuple(size)
    )
    assert (np.abs(read.xyz) < 0.5 * size).all()
    assert (read.xyz.min(0) < 0).all()
    assert (read.xyz.max(0) > 0).all()
    assert read.tomogram[0] == "Unt_083"
    assert "rlnTomoVisibleFrames" in read.extra


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("TomoBabel__cets-relion/Picks/job019/particles.star", 9442),
        ("hanjinliu__cylindra/cylindra_builtins/relion/tests/test_jobs/Picks/job_picks/particles.star", 5),
        (
            "hanjinliu__cylindra/cylindra_builtins/relion/tests/test_jobs/Class3D/job_class3d/run_it025_data.star",
            10,
        ),
    ],
)
def test_real_files_of_relion5(reference_data: Path, file: str, count: int) -> None:
    assert len(read_tomo_particles(reference_data / "real" / file)) == count


def test_columns_of_early_pytom(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    columns = {f"ptmCoordinate{axis}": [5.0] for axis in "XYZ"}
    columns |= {f"ptmAngle{a}": [0.0] for a in ("Rot", "Tilt", "Psi")}
    columns |= {"ptmLCCmax": [0.4], "ptmDetectorPixelSize": [8.0], "rlnDetectorPixelSize": [8.0]}
    write_star(path, {"": Table({**columns, "ptmMicrographName": ["tomo_7"]})})
    read = read_tomo_particles(path, volume_size=(80.0, 80.0, 80.0))
    np.testing.assert_allclose(read.xyz, [[0.0, 0.0, 0.0]])
    assert (read.tomogram, read.score.tolist()) == (["tomo_7"], [0.4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rlnCenteredCoordinateYAngst": None}, "no _rlnCenteredCoordinateYAngst"),
        (
            {"rlnCenteredCoordinateYAngst": [1.0, float("nan")]},
            "row 2 of the column _rlnCenteredCoordinateYAngst",
        ),
        ({"rlnAngleTilt": [1.0, "x"]}, "row 2 of the column _rlnAngleTilt is x"),
        ({"rlnAnglePsi": None}, "no _rlnAnglePsi"),
        ({"rlnTomoName": None}, "no column _rlnTomoName or _rlnMicrographName"),
        ({f"rlnCenteredCoordinate{a}Angst": None for a in "XYZ"}, "neither the column"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, list[object] | None], message: str) -> None:
    columns = {f"rlnCenteredCoordinate{axis}Angst": [1.0, 2.0] for axis in "XYZ"}
    columns |= {f"rlnAngle{a}": [0.0, 0.0] for a in ("Rot", "Tilt", "Psi")}
    table: dict[str, object] = {"rlnTomoName": ["T", "T"], **columns, **change}
    path = tmp_path / "bad.star"
    write_star(path, {"particles": Table({k: v for k, v in table.items() if v is not None})})  # type: ignore[misc]
    with pytest.raises((FormatError, CorruptError), match=message):
        read_tomo_particles(path)


def test_sizes_that_nobody_has_told(tmp_path: Path, particles: TomoParticles) -> None:
    path = tmp_path / "a.star"
    write_tomo_particles(path, particles, "relion4", pixel_size=PIXEL, volume_size=VOLUME)
    without_centred(path)
    with pytest.raises(FormatError, match="size of the tomograms"):
        read_tomo_particles(path, pixel_size=PIXEL)
    with pytest.raises(FormatError, match="how large the pixels"):
        read_tomo_particles(path, volume_size=VOLUME)
    with pytest.raises(ValueError, match="pixel_size and volume_size"):
        write_tomo_particles(path, particles, "relion3", volume_size=VOLUME)
    bad = TomoParticles(["T"], np.array([[0.0, np.nan, 0.0]]), np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(ValueError, match="particle 1"):
        write_tomo_particles(path, bad)


def test_select_and_join(particles: TomoParticles) -> None:
    first = particles.select(np.array([name == "TS_01" for name in particles.tomogram]))
    rest = particles.select([i for i, name in enumerate(particles.tomogram) if name != "TS_01"])
    joined = join_particles([first, rest])
    same(joined, particles)
    assert list(joined.extra["rlnClassNumber"]) == list(particles.extra["rlnClassNumber"])
    assert len(join_particles([])) == 0


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("../reconstruction/TS_01.mrc_15.00Apx.mrc", "TS_01"),
        ("TS_1.tomostar", "TS_1"),
        ("/a/b/TS_01.mrc.tomostar", "TS_01"),
        ("tomograms\\TS_01_10.00Apx.mrc", "TS_01"),
        ("TS.01", "TS.01"),
    ],
)
def test_names_of_series(name: str, series: str) -> None:
    assert plain_name(name) == series


def test_annotated_voxels_and_relion5_places_of_the_same_particles(reference_data: Path) -> None:
    """RELION 5 has converted 1871 picks in voxels of TS_03 itself. Its picker counts from size/2 − 1 pixels
    of the tilt series (3dem/relion issue 1137), where RELION's geometry and ours have size/2: one pixel."""
    folder = reference_data / "real/TomoBabel__cets-relion"
    table = read_star(folder / "Denoise/job008/tomograms.star")["global"]
    row = table.strings("rlnTomoName").index("TS_03")
    pixel, binning = (table.floats(k)[row] for k in ("rlnTomoTiltSeriesPixelSize", "rlnTomoTomogramBinning"))
    size = tuple(table.floats(f"rlnTomoSize{axis}")[row] * pixel for axis in "XYZ")
    voxels = read_tomo_particles(
        folder / "Picks/job019/annotations/TS_03_particles.star",
        pixel_size=pixel * binning,
        volume_size=size,
    )
    places = read_tomo_particles(folder / "Picks/job019/particles.star")
    places = places.select([name == "TS_03" for name in places.tomogram])
    assert len(places) == len(voxels) == 1871
    np.testing.assert_allclose(places.xyz - voxels.xyz, pixel, atol=1e-5)

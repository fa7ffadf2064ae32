"""`weft export subtomograms`: what every flavour writes, and what cannot be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from weft.errors import RequestError
from weft.formats import mrc
from weft.formats.dynamo import read_tbl
from weft.formats.relion_tomo import projection_matrices, read_tilt_series, to_geometry
from weft.formats.star import read_star
from weft.formats.tomo_particles import TomoParticles, read_tomo_particles, write_tomo_particles
from weft.particles.cutting import ImageSeriesSettings
from weft.session.particle_lists import find_particles
from weft.session.session import Session
from weft.session.session import open as open_session
from weft.session.subtomogram_export import ParticleExportSettings, export_subtomograms

BOX, PIXEL = 24, 12.0


@pytest.fixture(scope="module")
def session(done_tilts: Path) -> Session:
    return open_session(done_tilts)


@pytest.fixture(scope="module")
def name(session: Session) -> str:
    return next(iter(session.series.values())).name


@pytest.fixture(scope="module")
def particles(name: str) -> TomoParticles:
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-250.0, 250.0, (6, 3)) * [1.0, 1.0, 0.5]
    return TomoParticles([name] * 6, xyz, rng.uniform(-90.0, 90.0, (6, 3)), np.full(6, np.nan))


def _settings(**given: object) -> ParticleExportSettings:
    return ParticleExportSettings.model_validate(
        {"box": BOX, "pixel_size": PIXEL, "diameter": 150.0, **given}
    )


def test_volumes_for_relion(session: Session, name: str, particles: TomoParticles, tmp_path: Path) -> None:
    report = export_subtomograms(session, tmp_path, particles, _settings())
    assert report.written == {name: 6}
    assert report.exit_code == 0
    tables = read_star(tmp_path / "particles.star")
    rows = tables["particles"]
    assert tables["optics"].value("rlnImageDimensionality") == "3"
    volume, info = mrc.read(tmp_path / rows.strings("rlnImageName")[0])
    ctf, _ = mrc.read(tmp_path / rows.strings("rlnCtfImage")[0])
    assert volume.shape == (BOX,) * 3
    assert ctf.shape == (BOX, BOX, BOX // 2 + 1)
    assert info.pixel_size == pytest.approx(PIXEL)
    assert rows.ints("rlnRandomSubset").tolist() == [1, 2, 1, 2, 1, 2]
    # what is written can be read again, and means the same
    again = read_tomo_particles(tmp_path / "particles.star")
    np.testing.assert_allclose(again.xyz, particles.xyz, atol=1e-6)
    np.testing.assert_allclose(again.euler, particles.euler, atol=1e-6)
    found = np.column_stack([rows.floats(f"rlnCoordinate{axis}") for axis in "XYZ"]) * PIXEL
    size = np.array(session[name].volume_size)  # type: ignore[union-attr]
    np.testing.assert_allclose(found - 0.5 * size, particles.xyz, atol=1e-6)


def test_stacks_for_relion_5(session: Session, name: str, particles: TomoParticles, tmp_path: Path) -> None:
    export_subtomograms(session, tmp_path, particles, _settings(kind="2d"))
    tables = read_star(tmp_path / "particles.star")
    assert tables["general"].value("rlnTomoSubTomosAre2DStacks") == "1"
    assert tables["optics"].value("rlnCtfDataAreCtfPremultiplied") == "1"
    rows = tables["particles"]
    for file, frames in zip(rows.strings("rlnImageName"), rows.strings("rlnTomoVisibleFrames"), strict=True):
        seen = [int(v) for v in frames.strip("[]").split(",")]
        stack, _ = mrc.read(tmp_path / file)
        assert len(seen) == len(session[name])
        assert stack.shape == (sum(seen), BOX, BOX)
        assert stack.any(axis=(1, 2)).all()
    both = read_star(tmp_path / "optimisation_set.star")[""]
    assert both.value("rlnTomoParticlesFile") == "particles.star"
    # tilt series in the form in which RELION's coordinates and angles are ours
    series = read_tilt_series(tmp_path / both.value("rlnTomoTomogramsFile"), tmp_path)[name]
    own = session[name].geometry  # type: ignore[union-attr]
    size = [round(float(v) / series.pixel_size) for v in own.image_size]
    found = to_geometry(series, image_size=size, invert_angles=True)
    xyz = torch.as_tensor(particles.xyz) + 0.5 * own.volume_size
    torch.testing.assert_close(found.project(xyz), own.project(xyz), atol=0.05, rtol=0.0)


def test_stacks_for_warptools(session: Session, name: str, particles: TomoParticles, tmp_path: Path) -> None:
    export_subtomograms(session, tmp_path, particles, _settings(kind="2d", flavour="warp", premultiply=False))
    rows = read_star(tmp_path / "particles.star")["particles"]
    stack, _ = mrc.read(tmp_path / rows.strings("rlnImageName")[2])
    assert stack.shape == (len(session[name]), BOX, BOX)
    tomograms = read_star(tmp_path / "tomograms.star")
    table = tomograms[f"{name}.tomostar"]
    own = session[name].geometry  # type: ignore[union-attr]
    pixel = float(tomograms["global"].value("rlnTomoTiltSeriesPixelSize"))
    series = read_tilt_series(tmp_path / "tomograms.star")[f"{name}.tomostar"]
    matrices = torch.as_tensor(projection_matrices(series))
    assert len(table) == len(own)
    voxels = (torch.as_tensor(particles.xyz) + 0.5 * own.volume_size) / pixel
    seen = torch.einsum("tij,nj->tni", matrices[:, :2, :3], voxels) + matrices[:, None, :2, 3]
    true = own.project(voxels * pixel)[..., :2]
    # sizes of the volume in whole pixels
    torch.testing.assert_close(seen * pixel, true, atol=pixel, rtol=0.0)
    # M's particle series: a row an image that shows its particle
    images = read_star(tmp_path / "images.star")[""]
    assert (images.floats("rlnCtfBfactor") < 0.0).all()
    assert len(set(images.strings("rlnGroupName"))) == 6
    defocus = 0.5 * (images.floats("rlnDefocusU") + images.floats("rlnDefocusV"))
    first = int(images.strings("rlnImageName")[0].split("@")[0]) - 1
    assert defocus[0] == pytest.approx(float(own.project(voxels[:1] * pixel)[first, 0, 2]), abs=0.01)


def test_rows_for_relion_3(session: Session, name: str, particles: TomoParticles, tmp_path: Path) -> None:
    export_subtomograms(session, tmp_path, particles, _settings(kind="2d", flavour="relion3"))
    rows = read_star(tmp_path / "particles.star")["particles"]
    assert (rows.floats("rlnCtfBfactor") > 0.0).all()
    number, file = rows.strings("rlnImageName")[-1].split("@")
    stack, _ = mrc.read(tmp_path / file)
    assert int(number) == len(stack)
    assert rows.floats("rlnCtfScalefactor").max() <= 1.0


def test_volumes_for_dynamo(session: Session, particles: TomoParticles, tmp_path: Path) -> None:
    export_subtomograms(session, tmp_path, particles, _settings(flavour="dynamo"))
    table = read_tbl(tmp_path / "crop.tbl")
    assert table[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert not table[:, 3:6].any()
    assert (table[:, 13] < -40.0).all()
    assert len(list(tmp_path.glob("particle_*.em"))) == 6


def test_what_cannot_be_cut_is_counted(session: Session, name: str, tmp_path: Path) -> None:
    xyz = np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0], [9000.0, 0.0, 0.0], [10.0, 0.0, 0.0]])
    mixed = TomoParticles([name, name, name, "TS_99"], xyz, np.zeros((4, 3)), np.zeros(4))
    report = export_subtomograms(session, tmp_path, mixed, _settings())
    assert report.written == {name: 1}
    assert sorted(report.skipped.values()) == [1, 1, 1]
    assert "TS_99" in report.notes[0]
    strange = TomoParticles(["TS_99"], np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(RequestError, match=r"does not have \(TS_99\); it has"):
        export_subtomograms(session, tmp_path, strange, _settings())


def test_settings_that_make_no_sense(session: Session, particles: TomoParticles, tmp_path: Path) -> None:
    for given, message in (
        ({"box": 25}, "even number"),
        ({"diameter": 900.0}, "larger --box"),
        ({"flavour": "relion5"}, "--kind 3d is written for"),
        ({"kind": "2d", "flavour": "dynamo"}, "--kind 2d is written for"),
    ):
        with pytest.raises(RequestError, match=message):
            export_subtomograms(session, tmp_path, particles, _settings(**given))
    report = export_subtomograms(session, tmp_path, particles, _settings(pixel_size=1.0, diameter=20.0))
    assert report.exit_code == 1
    assert "ask for larger ones" in report.problems[0]
    assert ImageSeriesSettings(box=24).particle_diameter == 0.75 * 24 * 8.0


def test_candidates_are_found_by_their_template(
    session: Session, name: str, particles: TomoParticles, tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(session.root, root, symlinks=True)
    copy = open_session(root)
    with pytest.raises(RequestError, match="no candidates; run"):
        find_particles(copy)
    (root / "matching").mkdir(exist_ok=True)
    write_tomo_particles(root / "matching" / f"{name}_barrel_candidates.star", particles, "relion5")
    assert len(find_particles(copy)) == 6
    assert len(find_particles(copy, template="barrel")) == 6
    write_tomo_particles(root / "matching" / f"{name}_shell_candidates.star", particles, "relion5")
    with pytest.raises(RequestError, match="barrel, shell"):
        find_particles(copy)
    with pytest.raises(RequestError, match="only: barrel, shell"):
        find_particles(copy, template="globule")


def test_the_command(session: Session, name: str, particles: TomoParticles, tmp_path: Path) -> None:
    from weft.cli.export import app

    write_tomo_particles(tmp_path / "list.star", particles, "relion5")
    arguments = ["subtomograms", str(session.root), "--particles", str(tmp_path / "list.star")]
    arguments += ["--box", "24", "--pixel-size", "12", "--diameter", "150", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "6 particles of 1 tomograms" in done.output

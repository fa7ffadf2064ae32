"""RELION itself reads the particles that are cut from movies, and makes maps of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weft
from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.picking.picks import Picks
from weft.session.particle_export import export_particles
from weft.session.pick_files import pick_path, write_picks
from weft.session.session import Session
from weft.session.tables import write_micrographs_star
from weft.session.wanted_particles import ParticleSettings
from weft.simulation.specimen import load_specimen

Relion = Callable[..., str]
PIXEL, BOX, BINNED = 1.5, 64, 4.5


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Two movies of an asymmetric particle in strong contrast, with the true places and angles as picks."""
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    root = tmp_path_factory.mktemp("relion")
    settings = MovieSimulationSettings(
        width=576, height=576, frames=4, pixel_size=PIXEL, dose_per_frame=8.0, specimen="globule", signal=2.0
    )
    simulate_session(root, 2, settings, seed=12)
    session = weft.new(
        root / "weft",
        frames=root / "frames" / "*.tif",
        gain=root / "gain.mrc",
        pixel_size=PIXEL,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=8.0,
    )
    report = session.run(steps=["motion", "ctf"], workers=0)
    assert report.exit_code == 0, report.failed
    for path in (root / "truth").glob("*.json"):
        truth = json.loads(path.read_text())
        xy = np.array(truth["particles_xy"])
        picks = Picks(xy, np.ones(len(xy)), 160.0, eulers=np.array(truth["eulers"]))
        write_picks(session.root / pick_path("truth", path.stem), picks, PIXEL)
    return session


def _exported(session: Session, project: Path, **given: Any) -> Path:
    project.mkdir(parents=True, exist_ok=True)
    settings = ParticleSettings(box=BOX, pixel_size=BINNED, diameter=180.0, **given)
    report = export_particles(session, project / "Extract", settings, project=project)
    assert report.exit_code == 0, report.problems
    assert report.path is not None
    return report.path.relative_to(project)


@pytest.fixture(scope="module")
def structure() -> np.ndarray[Any, Any]:
    """The true map at 20 Å."""
    specimen = load_specimen("globule")
    k = np.fft.fftfreq(BOX, BINNED)
    phase = [np.exp(-2j * np.pi * np.outer(specimen.points[:, i], k)) for i in range(3)]
    spectrum = np.einsum("p,pz,py,px->zyx", specimen.strengths, phase[2], phase[1], phase[0], optimize=True)
    kk = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    spectrum *= (kk > 0) * np.exp(-kk * 20.0**2 / 2.0)
    found: np.ndarray[Any, Any] = np.fft.fftshift(np.fft.ifftn(spectrum).real)
    return found


def _agreement(found: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> float:
    """Correlation within the particle's sphere, at 20 Å."""
    k = np.fft.fftfreq(BOX, BINNED)
    kk = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    smooth = np.fft.ifftn(np.fft.fftn(found) * (kk > 0) * np.exp(-kk * 20.0**2 / 2.0)).real
    x = (np.arange(BOX) - BOX // 2) * BINNED
    inside = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < 85.0**2
    return float(np.corrcoef(smooth[inside], true[inside])[0, 1])


@pytest.mark.parametrize("ctf", ["none", "flip", "premultiply"])
def test_a_map_from_the_known_angles(
    session: Session, relion: Relion, structure: np.ndarray[Any, Any], tmp_path: Path, ctf: str
) -> None:
    """Some 30 particles make a map that correlates with the truth, and less with its mirror image.

    relion_reconstruct 3.1.3 makes no sense of rlnCtfDataAreCtfPremultiplied, which is for relion_refine:
    these images are given to it as flipped ones, which they are, too.
    """
    star = _exported(session, tmp_path, ctf=ctf)
    more = ["--ctf"] if ctf == "none" else ["--ctf", "--ctf_phase_flipped"]
    blocks = read_star(tmp_path / star)
    told = blocks["optics"].columns.pop("rlnCtfDataAreCtfPremultiplied", None)
    assert (told == ["1"]) == (ctf == "premultiply")
    write_star(tmp_path / star, blocks)
    said = relion("reconstruct", "--i", star, "--o", "map.mrc", *more, "--angpix", BINNED, cwd=tmp_path)
    assert "WARNING" not in said.upper()
    found = np.array(mrc.read(tmp_path / "map.mrc")[0])
    right = _agreement(found, structure)
    assert right > 0.5
    mirrored = np.roll(found[::-1], 1, 0)
    assert _agreement(mirrored, structure) < right - 0.2


def test_every_column_comes_back(session: Session, relion: Relion, tmp_path: Path) -> None:
    star = _exported(session, tmp_path)
    said = relion(
        *("star_handler", "--i", star, "--o", "selected.star"),
        *("--select", "rlnDefocusU", "--minval", 0, "--maxval", 1e6),
        cwd=tmp_path,
    )
    assert "WARNING" not in said.upper()
    ours, theirs = read_star(tmp_path / star), read_star(tmp_path / "selected.star")
    for block in ("optics", "particles"):
        assert list(theirs[block].columns) == list(ours[block].columns)
    for label in ("rlnDefocusU", "rlnCoordinateX", "rlnAngleRot"):
        np.testing.assert_allclose(
            theirs["particles"].floats(label), ours["particles"].floats(label), atol=1e-6
        )


def test_stacks_are_read(session: Session, relion: Relion, tmp_path: Path) -> None:
    """RELION copies our images into a stack of its own, value by value."""
    star = _exported(session, tmp_path)
    relion("stack_create", "--i", star, "--o", "copied", cwd=tmp_path)
    names = read_star(tmp_path / star)["particles"].strings("rlnImageName")
    theirs = np.array(mrc.read(tmp_path / "copied.mrcs")[0])
    assert len(theirs) == len(names)
    ours = np.array(mrc.read(tmp_path / names[0].split("@")[1])[0])
    np.testing.assert_allclose(theirs[: len(ours)], ours, atol=1e-5)


def test_relion_extracts_the_same_particles_from_our_average(
    session: Session, relion: Relion, tmp_path: Path
) -> None:
    """Cut by RELION from the averages at the same places they are the same particles.

    But for the fraction of a pixel by which RELION rounds places: low-passed they correlate by more than 0.9.
    """
    write_micrographs_star(
        tmp_path / "micrographs.star", session.store.read_all().values(), session.root, session.root.parent
    )
    project = session.root.parent
    (project / "micrographs.star").write_text((tmp_path / "micrographs.star").read_text())
    for path in (session.root / "picks/truth").glob("*.star"):
        to = project / "coords" / "weft" / "average" / f"{path.stem}_pick.star"
        to.parent.mkdir(parents=True, exist_ok=True)
        block = read_star(path)[""]
        kept = {label: block[label] for label in ("rlnCoordinateX", "rlnCoordinateY")}
        write_star(to, {"": Table(kept)})
    relion(
        *("preprocess", "--i", "micrographs.star", "--coord_dir", "coords/", "--coord_suffix", "_pick.star"),
        *(
            "--part_star",
            "Theirs/particles.star",
            "--part_dir",
            "Theirs/",
            "--extract",
            "--extract_size",
            128,
        ),
        *("--norm", "--bg_radius", 60, "--white_dust", -1, "--black_dust", -1, "--invert_contrast"),
        cwd=project,
    )
    settings = ParticleSettings(box=128, diameter=180.0)
    report = export_particles(session, tmp_path / "ours", settings)
    assert report.path is not None
    ours = read_star(report.path)["particles"]
    theirs = read_star(project / "Theirs" / "particles.star")["particles"]
    places: dict[tuple[str, float, float], str] = {}
    for name, micrograph, x, y in zip(
        theirs.strings("rlnImageName"),
        theirs.strings("rlnMicrographName"),
        theirs.floats("rlnCoordinateX"),
        theirs.floats("rlnCoordinateY"),
        strict=True,
    ):
        places[Path(micrograph).stem, round(x), round(y)] = name
    low = np.exp(-200.0 * (np.fft.fftfreq(128)[:, None] ** 2 + np.fft.fftfreq(128) ** 2))
    found = []
    for name, micrograph, x, y in zip(
        ours.strings("rlnImageName"),
        ours.strings("rlnMicrographName"),
        ours.floats("rlnCoordinateX"),
        ours.floats("rlnCoordinateY"),
        strict=True,
    ):
        other = places[Path(micrograph).stem, round(x), round(y)]
        pair = []
        for folder, one in ((tmp_path / "ours", name), (project, other)):
            number, file = one.split("@")
            image = np.array(mrc.MrcStack(folder / file).read(int(number) - 1), np.float64)
            pair.append(np.fft.ifft2(np.fft.fft2(image) * low).real.ravel())
        if 64 <= x < 576 - 64 and 64 <= y < 576 - 64:
            found.append(np.corrcoef(*pair)[0, 1])
    assert len(found) >= 5
    assert min(found) > 0.9

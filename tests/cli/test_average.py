"""weft average: from a session's tilt images, and from RELION 5's stacks that Weft has exported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

import weft
from weft.cli import main
from weft.formats import mrc
from weft.formats.star import read_star
from weft.formats.tomo_particles import TomoParticles, euler_angles, read_tomo_particles, write_tomo_particles
from weft.physics.geometry import euler_matrix, tilt_matrices
from weft.session.match_job import MatchJob, MatchTemplate

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture(scope="module")
def truth(tilt_frames: Path) -> dict[str, object]:
    """What the simulation knows."""
    found: dict[str, object] = json.loads(next(tilt_frames.glob("*.json")).read_text())
    return found


@pytest.fixture(scope="module")
def particles(done_tilts: Path, truth: dict[str, object]) -> TomoParticles:
    """The true particles, moved as a whole to where the alignment sees them."""
    series = next(iter(weft.open(done_tilts).series.values()))
    xyz = np.array(truth["particles_xyz_centered"])
    by_angle = {round(t["tilt"], 1): t for t in truth["tilts"]}
    tilts = [min(by_angle.values(), key=lambda t: abs(t["tilt"] - angle)) for angle in series.tilt_angles]
    level = torch.tensor(truth["level"], dtype=torch.float64)
    axis = torch.tensor(float(truth["axis"]), dtype=torch.float64)
    angles = torch.tensor([t["tilt"] for t in tilts], dtype=torch.float64)
    matrices = tilt_matrices(angles, axis, level[0], level[1]).numpy()
    pixel = truth["optics"]["pixel"]
    middle = np.array(truth["shape"][::-1]) * pixel / 2
    true = (xyz @ matrices.transpose(0, 2, 1))[..., :2]
    true += (middle + np.array([t["shift"] for t in tilts]))[:, None]
    centre = np.array(series.volume_size) / 2

    def placed(p: np.ndarray) -> np.ndarray:
        return xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:]

    fit = least_squares(
        lambda p: (series.project(placed(p) + centre)[..., :2] - true).ravel() / 10.0,
        np.zeros(6),
        x_scale=np.r_[0.05, 0.05, 0.05, 50.0, 50.0, 50.0],
        loss="soft_l1",
    )
    rot, tilt, psi = torch.tensor(truth["eulers_to_specimen"], dtype=torch.float64).unbind(1)
    turned = Rotation.from_rotvec(fit.x[:3]).as_matrix() @ euler_matrix(rot, tilt, psi).numpy()
    n = len(xyz)
    return TomoParticles([series.name] * n, placed(fit.x), euler_angles(turned), np.full(n, np.nan))


@pytest.fixture
def star(particles: TomoParticles, tmp_path: Path) -> Path:
    path = tmp_path / "true.star"
    write_tomo_particles(path, particles)
    return path


def resolution(text: str) -> float:
    found = re.search(r"resolution ([\d.]+) Å", text)
    assert found, text
    return float(found[1])


def test_true_particles_of_a_session(
    run_weft: Weft,
    done_tilts: Path,
    star: Path,
    particles: TomoParticles,
    truth: dict[str, object],
    tmp_path: Path,
) -> None:
    diameter = 2.0 * float(truth["radius"])
    out = tmp_path / "out"
    code, text, err = run_weft("average", done_tilts, "--particles", star, "--diameter", diameter, "-o", out)
    assert code == 0, err
    assert f"{len(particles)} particles" in text
    assert resolution(text) < 60.0
    names = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.star", "fsc.png", "slices.png", "particles.star")
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    volume, info = mrc.read(out / "map.mrc")
    assert info.voxel_size is not None
    # density is positive, and where the particle is
    n = len(volume)
    x = np.arange(n) - n // 2
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) * info.voxel_size[0]
    inside = radius < 0.35 * diameter
    assert volume[inside].mean() > 3.0 * np.abs(volume[radius > 0.6 * diameter].mean())
    assert volume[inside].mean() > 0.0
    table = read_star(out / "fsc.star")["fsc"]
    assert table.floats("rlnFourierShellCorrelationCorrected")[1] > 0.9
    assert imagecodecs.png_decode((out / "fsc.png").read_bytes()).shape[0] > 300
    assert imagecodecs.png_decode((out / "slices.png").read_bytes()).shape == (6 * n + 4, 9 * n + 8)
    back = read_tomo_particles(out / "particles.star")
    np.testing.assert_allclose(back.xyz, particles.xyz, atol=1e-3)
    assert {int(v) for v in back.extra["rlnRandomSubset"]} == {1, 2}


def test_wrong_orientations_average_to_less(
    run_weft: Weft,
    done_tilts: Path,
    particles: TomoParticles,
    truth: dict[str, object],
    star: Path,
    tmp_path: Path,
) -> None:
    """The test that tells right picks from wrong ones: random orientations share the coarse shape only."""
    wrong = tmp_path / "wrong.star"
    turned = Rotation.random(len(particles), random_state=1).as_matrix()
    write_tomo_particles(wrong, replace(particles, euler=euler_angles(turned)))
    diameter = 2.0 * float(truth["radius"])
    found = []
    for number, path in enumerate((star, wrong)):
        out = tmp_path / str(number)
        code, _text, err = run_weft(
            "average", done_tilts, "--particles", path, "--diameter", diameter, "-o", out
        )
        assert code == 0, err
        curve = read_star(out / "fsc.star")["fsc"].floats("rlnFourierShellCorrelationCorrected")
        found.append(curve[3 : len(curve) // 2].mean())
    assert found[0] > found[1] + 0.2


def test_candidates_of_a_template_and_a_round_of_alignment(
    run_weft: Weft, tilt_session: weft.Session, particles: TomoParticles, truth: dict[str, object]
) -> None:
    name, root = particles.tomogram[0], tilt_session.root
    folder = root / "matching"
    folder.mkdir(exist_ok=True)
    diameter = 2.0 * float(truth["radius"])
    size = tilt_session.series[name].volume_size
    job = MatchJob(
        *(name, "tomogram.mrc", 20.0, (10, 10, 10), (0.0, 0.0, 0.0), size, 8.0),
        [MatchTemplate("/elsewhere/thing.mrc", "", diameter)],
        *("rotations.npy", {"search_space": 1000, "mean": 0.0, "std": 0.02}, {}),
    )
    job.write(folder / f"{name}_thing.json")
    code, _, err = run_weft("average", root, "--template", "thing")
    assert code == 2
    assert "weft candidates" in err
    off = np.random.default_rng(1).normal(0.0, 5.0, particles.xyz.shape)
    write_tomo_particles(
        folder / f"{name}_thing_candidates.star", replace(particles, xyz=particles.xyz + off)
    )
    code, text, err = run_weft("average", root, "--iterations", 1, "--angle-range", 4)
    assert code == 0, err
    assert "as given: FSC" in text
    assert "round 1: FSC" in text
    folder = root / "particles" / "average" / "thing"
    back = read_tomo_particles(folder / "particles.star")
    before = np.linalg.norm(off - off.mean(0), axis=1)
    left = back.xyz - particles.xyz
    after = np.linalg.norm(left - left.mean(0), axis=1)
    assert np.median(after) < 0.7 * np.median(before)
    assert np.isfinite(back.score).all()


def test_stacks_for_relion_give_the_same(
    run_weft: Weft, done_tilts: Path, star: Path, truth: dict[str, object], tmp_path: Path
) -> None:
    """The reader against the exporter: geometry, defocus, hand, premultiplied images, visible tilts."""
    diameter = 2.0 * float(truth["radius"])
    pixel = float(truth["optics"]["pixel"]) * 1.5
    box = 2 * round(0.9 * diameter / pixel)
    common = ("--box", box, "--pixel-size", pixel, "--diameter", diameter)
    exported, one, two = tmp_path / "exported", tmp_path / "one", tmp_path / "two"
    code, text, err = run_weft(
        *("export", "subtomograms", done_tilts, "-o", exported, "--particles", star, "--kind", "2d", *common)
    )
    assert code == 0, text + err
    mask = ("--mask-diameter", diameter)
    code, _, err = run_weft("average", exported / "optimisation_set.star", *mask, "-o", one)
    assert code == 0, err
    code, _, err = run_weft(
        *("average", done_tilts, "--particles", star, "--dose-weighting", "grant", *common, *mask, "-o", two)
    )
    assert code == 0, err
    a, b = (mrc.read(folder / "map.mrc")[0].astype(np.float64).ravel() for folder in (one, two))
    # premultiplied before images were cropped to their box, and stored with fewer digits
    assert np.corrcoef(a, b)[0, 1] > 0.97


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--template", "nothing"], "weft match"),
        (["--particles", "{star}"], "size is not known"),
        (["--particles", "{star}", "--diameter", "200", "--box", "63"], "even number"),
        (["--particles", "{star}", "--template", "thing"], "not both"),
        (["--particles", "{star}", "--diameter", "200", "--only", "nothing*"], "no particles"),
        (["--particles", "{star}", "--diameter", "200", "--symmetry", "Q3"], "point group"),
    ],
)
def test_requests_that_cannot_be_met(
    run_weft: Weft, done_tilts: Path, star: Path, arguments: list[str], words: str
) -> None:
    code, _, err = run_weft("average", done_tilts, *(text.format(star=star) for text in arguments))
    assert code == 2
    assert words in err
    assert "unexpected" not in err


def test_files_that_are_no_sets(run_weft: Weft, star: Path, tmp_path: Path) -> None:
    code, _, err = run_weft("average", tmp_path / "nothing.star")
    assert code == 2
    assert "no such session or STAR file" in err
    code, _, err = run_weft("average", star)
    assert code == 1
    assert "tomograms" in err
    code, _, err = run_weft("average", star, "--box", 64)
    assert code == 2
    assert "belongs to a session" in err

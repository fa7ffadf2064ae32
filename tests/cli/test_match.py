"""weft match: of a session, of a single tomogram, and what it says when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weft.cli import main
from weft.formats import mrc
from weft.session.match_job import MatchJob
from weft.session.session import Session

sys.path.append(str(Path(__file__).parents[1] / "session"))
from match_files import DIAMETER, VOXEL, write_mask, write_template

Weft = Callable[..., tuple[int, str, str]]
SHAPE = (20, 30, 34)
ANGLES = np.arange(-51.0, 52.0, 6.0)


@pytest.fixture
def run_weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["match", *(str(argument) for argument in arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    write_template(folder / "barrel.mrc")
    write_mask(folder / "mask.mrc")
    return folder


@pytest.fixture
def tomogram(tmp_path: Path, maps: Path) -> Path:
    """``tomo.mrc`` with one structure in noise, and ``tomo.tlt``."""
    volume = np.random.default_rng(1).normal(size=SHAPE)
    template = np.asarray(mrc.read(maps / "barrel.mrc")[0])
    # x 20, y 13, z 9: as the template lies
    volume[1:17, 5:21, 12:28] += 5.0 * template / template.std()
    mrc.write(tmp_path / "tomo.mrc", volume.astype(np.float32), VOXEL, volume=True)
    (tmp_path / "tomo.tlt").write_text("".join(f"{a:g}\n" for a in ANGLES))
    return tmp_path / "tomo.mrc"


def options(maps: Path, **changes: object) -> list[object]:
    given: dict[str, object] = {
        "template": maps / "barrel.mrc",
        "mask": maps / "mask.mrc",
        "particle-diameter": DIAMETER,
        "angular-step": 60,
        "refine": 5,
    }
    given |= {key.replace("_", "-"): value for key, value in changes.items()}
    return [word for key, value in given.items() if value is not None for word in (f"--{key}", value)]


# ---------------------------------------------------------------------------------------- a single tomogram


def test_a_tomogram_of_any_program(tomogram: Path, maps: Path, run_weft: Weft) -> None:
    tilts = tomogram.with_suffix(".tlt")
    code, out, err = run_weft(tomogram, "--tilts", tilts, *options(maps, weighting="wedge"))
    assert code == 0, err
    assert "tomo: " in out
    assert "100 % done" in err
    folder = tomogram.parent / "matching"
    assert {p.name for p in folder.iterdir()} == {
        "tomo_barrel.json",
        "tomo_barrel_scores.mrc",
        "tomo_barrel_angles.mrc",
        "tomo_barrel_rotations.npy",
        "tomo_barrel_refined.npz",
        "tomo_barrel_candidates.star",
    }
    scores, _ = mrc.read(folder / "tomo_barrel_scores.mrc")
    at = np.unravel_index(int(scores.argmax()), scores.shape)
    assert np.abs(np.array(at) - (9, 13, 20)).max() <= 1
    job = MatchJob.read(folder / "tomo_barrel.json")
    assert job.statistics["search_space"] == np.prod(SHAPE) * 72
    # 1 µm of underfocus, another folder
    given = options(
        maps, defocus=1, voltage=300, cs=2.7, amplitude=0.07, output=tomogram.parent / "elsewhere"
    )
    code, out, err = run_weft(tomogram, "--tilts", tilts, *given)
    assert code == 0, err
    assert "note: the hand is not known" in out
    assert (tomogram.parent / "elsewhere" / "tomo_barrel.json").is_file()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"mask": "wide.mrc"}, 1, "same --box"),
        ({"template": "large.mrc", "mask": None}, 1, "template is 32 voxels wide and the tomogram only 20"),
        ({"template": "other.mrc"}, 1, "other.mrc has voxels of 10 Å and the tomogram of 20 Å"),
        ({"weighting": "ctf"}, 1, "its defocus is not known: give it (--defocus)"),
        ({"tilts": "short.tlt", "dose": "long.txt"}, 1, "long.txt"),
        ({"tilts": None}, 2, "--tilts"),
        ({"template": None}, 2, "--template"),
        ({"particle_diameter": None}, 2, "--particle-diameter"),
        ({"template": "nowhere.mrc"}, 2, "there is no template"),
        ({"angular_step": 400}, 2, "angular-step"),
        ({"symmetry": "Q3"}, 2, "'Q3' is not a point group"),
        ({"region": "0,100"}, 1, "six numbers"),
    ],
)
def test_one_sentence_each(
    changes: dict[str, object],
    code: int,
    message: str,
    tomogram: Path,
    maps: Path,
    run_weft: Weft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tomogram.parent
    monkeypatch.chdir(folder)
    write_mask(folder / "wide.mrc", box=18)
    write_template(folder / "large.mrc", box=32)
    write_template(folder / "other.mrc", voxel=10.0)
    (folder / "short.tlt").write_text("".join(f"{a:g}\n" for a in ANGLES[:-1]))
    (folder / "long.txt").write_text("".join(f"{3 * i}\n" for i in range(len(ANGLES))))
    given = options(maps, **({"tilts": "tomo.tlt", "weighting": "wedge"} | changes))
    found, _, err = run_weft(tomogram, *given)
    assert found == code
    assert message in err
    said = [line for line in err.splitlines() if line.startswith("weft: ")]
    assert len(said) == 1
    assert "Traceback" not in err


def test_tomograms_that_are_not_finite(tomogram: Path, maps: Path, run_weft: Weft) -> None:
    volume = np.array(mrc.read(tomogram)[0])
    volume[3, 4, 5] = np.nan
    mrc.write(tomogram, volume, VOXEL, volume=True)
    given = options(maps, tilts=tomogram.with_suffix(".tlt"), weighting="wedge")
    code, _, err = run_weft(tomogram, *given)
    assert code == 1
    assert "not finite at voxel x 5, y 4, z 3" in err


def test_a_source_that_is_not_there(tmp_path: Path, maps: Path, run_weft: Weft) -> None:
    code, _, err = run_weft(tmp_path / "nothing", *options(maps))
    assert (code, "no such session or tomogram" in err) == (2, True)


# ------------------------------------------------------------------------------------------------ a session


def test_a_session(
    tilt_session: Session, maps: Path, run_weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, name = tilt_session.root, next(iter(tilt_session.series))
    monkeypatch.chdir(maps)
    assert run_weft(root, "--workers", 0)[0] == 2
    # paths count from where the person is, and are kept
    given = options(maps, template="barrel.mrc", mask="mask.mrc", angular_step=80, workers=0)
    code, out, err = run_weft(root, *given, "--only", "no such*")
    assert not (root / "matching" / f"{name}_barrel.json").exists()
    code, out, err = run_weft(root, *given, "--only", f"{name[:4]}*")
    assert code == 0, out + err
    text = (root / "weft.toml").read_text()
    assert str(maps / "barrel.mrc") in text
    assert "angular_step = 80" in text
    job = root / "matching" / f"{name}_barrel.json"
    assert job.is_file()
    assert job.with_name(f"{name}_barrel_candidates.star").is_file()
    before = job.stat().st_mtime_ns
    monkeypatch.chdir(root)
    # what is kept need not be said again, and is not done again
    assert run_weft(root, "--workers", 0)[0] == 0
    assert job.stat().st_mtime_ns == before
    code, _, err = run_weft(root, "--tilts", "x.tlt", "--workers", 0)
    assert (code, "about a single tomogram" in err) == (2, True)
    # the item fails, and says why
    write_mask(root / "wide.mrc", box=18)
    code, out, err = run_weft(root, "--mask", root / "wide.mrc", "--workers", 0)
    assert code == 1
    assert "same --box" in out + err

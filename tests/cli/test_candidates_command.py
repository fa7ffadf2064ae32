"""weft candidates: from job files of finished searches to files of other programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from weft.cli import main
from weft.errors import CorruptError, FormatError
from weft.formats import mrc
from weft.formats.star import read_star
from weft.formats.tomo_particles import read_tomo_particles
from weft.matching.candidates import CandidateSettings
from weft.session.candidate_estimates import estimate_job
from weft.session.candidate_files import find_jobs, read_candidates, take_candidates, write_candidates
from weft.session.match_job import MatchJob, MatchTemplate

VOXEL, SIGMA = 10.0, 0.02
#: z, y, x of voxels with particles.
PLACES = np.array([[8, 10, 12], [8, 25, 30], [12, 40, 20], [10, 15, 45], [9, 32, 8]])
SHAPE = (20, 48, 56)
ORIGIN = (50.0, 0.0, 20.0)
VOLUME = (700.0, 480.0, 300.0)
Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def make_job(
    folder: Path, name: str = "TS_1", templates: tuple[str, ...] = ("ribosome",), seed: int = 1, **change: Any
) -> Path:
    """A search's results with five particles, of falling score."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    # the highest of many looks at noise
    scores = (SIGMA * random.gumbel(4.0, 0.25, SHAPE)).astype(np.float32).clip(0, 6.5 * SIGMA)
    for i, place in enumerate(PLACES):
        scores[tuple(place)] = SIGMA * (15.0 - i)
    angles = random.integers(0, 40, SHAPE).astype(np.float32)
    stem = f"{name}_{templates[0]}"
    mrc.write(folder / f"{stem}_scores.mrc", scores, pixel_size=VOXEL)
    mrc.write(folder / f"{stem}_angles.mrc", angles, pixel_size=VOXEL)
    np.save(folder / f"{stem}_rotations.npy", random.uniform(0, 170, (40, 3)).astype(np.float32))
    files = {"scores": f"{stem}_scores.mrc", "angles": f"{stem}_angles.mrc"}
    if len(templates) > 1:
        which = np.zeros(SHAPE, np.float32)
        which[tuple(PLACES[1])] = 1
        mrc.write(folder / f"{stem}_templates.mrc", which, pixel_size=VOXEL)
        files["templates"] = f"{stem}_templates.mrc"
    given: dict[str, Any] = {
        "name": name,
        "tomogram": f"../reconstruction/{name}_10.00Apx.mrc",
        "voxel_size": VOXEL,
        "shape": SHAPE,
        "origin": ORIGIN,
        "volume_size": VOLUME,
        "image_pixel_size": 2.5,
        "templates": [MatchTemplate(f"/elsewhere/{one}.mrc", "", 60.0) for one in templates],
        "rotations": f"{stem}_rotations.npy",
        "statistics": {"search_space": int(np.prod(SHAPE)) * 40, "mean": 0.0, "std": SIGMA},
        "files": files,
    }
    path = folder / f"{stem}{change.pop('suffix', '')}.json"
    MatchJob(**{**given, **change}).write(path)
    return path


def expected() -> np.ndarray:
    """Å from the volume's centre."""
    return np.asarray(PLACES[:, ::-1] * VOXEL + ORIGIN - 0.5 * np.array(VOLUME))


def test_a_session_gets_a_file_an_item_and_one_for_all(tmp_path: Path, run_weft: Weft) -> None:
    matching = tmp_path / "matching"
    make_job(matching), make_job(matching, "TS_2", seed=2)
    (matching / "notes.json").write_text("{}")
    # of 4·10⁷ scores 1 lies above 5.4 σ by chance; this noise reaches 6.5 σ
    code, out, err = run_weft(
        "candidates", tmp_path, "--template", "ribosome", "-n", 10, "--cut-off", 7 * SIGMA
    )
    assert (code, err) == (0, "")
    assert "TS_1: 5 candidates from 0.14 up" in out
    table = read_star(matching / "TS_1_ribosome_candidates.star")["particles"]
    assert table.strings("rlnTomoName") == ["TS_1"] * 5
    read = read_tomo_particles(matching / "TS_1_ribosome_candidates.star")
    np.testing.assert_allclose(read.xyz, expected(), atol=1e-9)
    np.testing.assert_allclose(read.score, SIGMA * (15.0 - np.arange(5)), rtol=1e-6)
    rotations = np.load(matching / "TS_1_ribosome_rotations.npy")
    angles, _ = mrc.read(matching / "TS_1_ribosome_angles.mrc")
    np.testing.assert_allclose(read.euler, rotations[angles[tuple(PLACES.T)].astype(int)], rtol=1e-6)
    together = read_tomo_particles(matching / "ribosome_candidates.star")
    assert together.tomogram == ["TS_1"] * 5 + ["TS_2"] * 5
    assert (
        MatchJob.read(matching / "TS_1_ribosome.json").files["candidates"] == "TS_1_ribosome_candidates.star"
    )
    # one item again: the table of all keeps the other
    assert run_weft("candidates", tmp_path, "-n", 3, "--only", "TS_2", "--cut-off", 0.14)[0] == 0
    assert len(read_tomo_particles(matching / "ribosome_candidates.star")) == 8


def test_the_cut_off_follows_from_false_positives(tmp_path: Path, run_weft: Weft) -> None:
    path = make_job(tmp_path / "matching")
    code, out, _ = run_weft("candidates", path, "--false-positives", 1e-6)
    assert code == 0
    # the same tail of the normal distribution by another function: 7.14 σ
    assert f"5 candidates from {-SIGMA * ndtri(1e-6 / (20 * 48 * 56 * 40)):.4g} up" in out
    assert len(take_candidates(path, CandidateSettings(false_positives=1e5))) > 5


@pytest.mark.parametrize("flavour", ["relion5", "relion4", "relion3", "warp", "dynamo"])
def test_flavours(tmp_path: Path, run_weft: Weft, flavour: str) -> None:
    path = make_job(tmp_path / "matching")
    for _ in range(2):  # also over the files of before
        assert run_weft("candidates", path, "--cut-off", 0.14, "--flavour", flavour)[0] == 0
    for name in ("TS_1_ribosome", "ribosome"):
        star = path.with_name(f"{name}_candidates.star")
        table = next(iter(read_star(star).values()))
        for label in ("rlnCenteredCoordinateXAngst", "rlnAngleTilt", "rlnLCCmax", "rlnTomoName"):
            assert label in table
        if flavour in ("relion4", "relion3", "warp"):
            pixel = 2.5 if flavour == "relion4" else VOXEL
            x = (expected()[:, 0] + 0.5 * VOLUME[0]) / pixel
            np.testing.assert_allclose(table.floats("rlnCoordinateX"), x)
        if flavour == "relion3":
            assert table.strings("rlnMicrographName")[0] == "TS_1_10.00Apx.mrc"
        if flavour == "warp":
            assert table.strings("rlnMicrographName")[0] == "TS_1.tomostar"
        if flavour == "dynamo":
            read = read_tomo_particles(star.with_suffix(".tbl"), pixel_size=VOXEL, volume_size=VOLUME)
            np.testing.assert_allclose(read.xyz, expected(), atol=1e-9)


def test_pixels_that_are_not_known(tmp_path: Path, run_weft: Weft) -> None:
    path = make_job(tmp_path, image_pixel_size=0.0)
    code, _, err = run_weft("candidates", path, "--flavour", "relion4")
    assert code == 2
    assert "size is not known" in err


def test_competing_templates_have_files_of_their_own(tmp_path: Path, run_weft: Weft) -> None:
    path = make_job(tmp_path / "matching", templates=("large", "small"))
    assert run_weft("candidates", tmp_path, "--template", "large", "--cut-off", 0.14)[0] == 0
    large = read_tomo_particles(path.with_name("TS_1_large_candidates.star"))
    small = read_tomo_particles(path.with_name("TS_1_small_candidates.star"))
    assert (len(large), len(small)) == (4, 1)
    assert set(large.extra["rlnClassNumber"]) == {"1"}
    assert small.extra["rlnClassNumber"] == ["2"]
    np.testing.assert_allclose(small.xyz[0], expected()[1])
    assert len(read_candidates(path)) == 5
    assert [len(read_candidates(path, stem)) for stem in ("large", "small")] == [4, 1]


def test_refined_poses_replace_those_of_the_grid(tmp_path: Path) -> None:
    path = make_job(tmp_path)
    index = np.ravel_multi_index(tuple(PLACES[[2, 0]].T), SHAPE)
    pose = np.array([[221.0, 402.0, 143.0], [173.0, 98.0, 101.0]])
    np.savez(tmp_path / "fine.npz", xyz=pose, euler=[[1.0, 2, 3], [4, 5, 6]], score=[0.9, 0.5], index=index)
    job = MatchJob.read(path)
    MatchJob(**{**job.__dict__, "files": {**job.files, "refined": "fine.npz"}}).write(path)
    found = take_candidates(path, CandidateSettings(cut_off=0.14))
    np.testing.assert_allclose(found.xyz[[2, 0]], pose)
    np.testing.assert_allclose(found.euler[[2, 0]], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(found.xyz[1], PLACES[1, ::-1] * VOXEL + ORIGIN)
    assert (np.diff(found.score) < 0).all(), "the order is that of the grid's scores"


@pytest.mark.parametrize("whole", [False, True])
def test_mask(tmp_path: Path, run_weft: Weft, whole: bool) -> None:
    path = make_job(tmp_path)
    mask = np.zeros((30, 48, 70) if whole else SHAPE, np.float32)
    mask[..., (25 if whole else 20) :] = 1.0
    mrc.write(tmp_path / "TS_1_mask.mrc", mask, pixel_size=VOXEL)
    code, out, _ = run_weft("candidates", path, "--cut-off", 0.14, "--mask", tmp_path / "{name}_mask.mrc")
    assert code == 0
    assert "TS_1: 3 candidates" in out
    mrc.write(tmp_path / "TS_1_mask.mrc", mask[:, 1:], pixel_size=VOXEL)
    code, out, _ = run_weft("candidates", path, "--cut-off", 0.14, "--mask", tmp_path / "TS_1_mask.mrc")
    assert code == 1
    assert "failed: TS_1: " in out
    assert "the mask has" in out


def test_estimate_draws_a_figure(tmp_path: Path, run_weft: Weft) -> None:
    path = make_job(tmp_path)
    code, out, _ = run_weft("candidates", path, "--cut-off", 0.14, "--estimate", "-n", 50)
    assert code == 0
    figure = tmp_path / "TS_1_ribosome_recall.svg"
    assert figure.read_text().startswith("<?xml")
    scores, estimate = estimate_job(path, CandidateSettings(number=50))
    assert estimate.particles == pytest.approx(5, abs=1.0)
    assert "about 5 particles; recall 100 %" in out
    assert (np.diff(scores) <= 0).all()


def test_merging(tmp_path: Path, run_weft: Weft) -> None:
    first = write_candidates(make_job(tmp_path / "a"), CandidateSettings(cut_off=0.14))
    write_candidates(make_job(tmp_path / "b", seed=3), CandidateSettings(cut_off=0.25))
    write_candidates(make_job(tmp_path / "c", "TS_9"), CandidateSettings(cut_off=0.25))
    assert len(first) == 5
    files = [next((tmp_path / folder).glob("*.star")) for folder in "abc"]
    out = tmp_path / "out" / "all.star"
    assert run_weft("candidates", "--merge", *files, "-o", out, "--distance", 30)[0] == 0
    merged = read_tomo_particles(out)
    assert (merged.tomogram.count("TS_1"), merged.tomogram.count("TS_9")) == (5, 3)
    code, _, err = run_weft("candidates", "--merge", *files)
    assert code == 2
    assert "--distance" in err


def test_a_search_with_the_other_hand_has_files_of_its_own(tmp_path: Path, run_weft: Weft) -> None:
    matching = tmp_path / "matching"
    make_job(matching)
    make_job(matching, suffix="_hand-1", hand=-1)
    assert run_weft("candidates", tmp_path, "--cut-off", 0.14)[0] == 0
    assert (matching / "TS_1_ribosome_hand-1_candidates.star").exists()
    assert len(read_tomo_particles(matching / "ribosome_candidates.star")) == 5


def test_what_is_wrong_is_said(tmp_path: Path, run_weft: Weft) -> None:
    code, _, err = run_weft("candidates", tmp_path)
    assert (code, "run `weft match` first" in err) == (2, True)
    path = make_job(tmp_path / "matching")
    make_job(tmp_path / "matching", templates=("proteasome",))
    code, _, err = run_weft("candidates", tmp_path)
    assert (code, "choose one" in err) == (2, True)
    code, _, err = run_weft("candidates", tmp_path, "--template", "x")
    assert (code, "there are proteasome, ribosome" in err) == (2, True)
    assert run_weft("candidates", tmp_path / "none")[0] == 2
    assert run_weft("candidates", path, "--flavour", "x")[0] == 2
    assert run_weft("candidates", path, "--false-positives", "-3")[0] == 2
    assert find_jobs(tmp_path, "ribosome", ["TS_2"]) == []
    # results that are gone, cut short, or of another search
    scores = path.with_name("TS_1_ribosome_scores.mrc")
    angles = path.with_name("TS_1_ribosome_angles.mrc")
    other, _ = mrc.read(angles)
    mrc.write(angles, other[1:], pixel_size=VOXEL)
    with pytest.raises(CorruptError, match="where the search had"):
        take_candidates(path)
    scores.unlink()
    code, out, _ = run_weft("candidates", path)
    assert (code, "run the search of TS_1 again" in out) == (1, True)
    bad = path.with_name("x.json")
    bad.write_text("[]")
    with pytest.raises(FormatError, match="not the job file"):
        take_candidates(bad)


@pytest.mark.slow
def test_a_large_map_takes_seconds(tmp_path: Path) -> None:
    """512×512×200: 0.5 CPU s are measured, 2 s are asked for; twice that, as the machine may be busy. The map
    is not read as a whole: the process grows by less than a gigabyte."""
    import resource

    path = make_job(tmp_path)
    job = MatchJob.read(path)
    block = np.random.default_rng(0).gumbel(4.0 * SIGMA, 0.25 * SIGMA, (20, 512, 512)).astype(np.float32)
    block = np.minimum(block, 6.0 * SIGMA)
    scores = np.tile(block, (10, 1, 1))
    scores[::20, 30::40, 30::40] = 0.4
    mrc.write(tmp_path / "s.mrc", scores, pixel_size=VOXEL)
    mrc.write(tmp_path / "a.mrc", np.zeros_like(scores), pixel_size=VOXEL)
    scores_size = scores.size
    del scores
    big = {"shape": (200, 512, 512), "volume_size": (5120.0, 5120.0, 2000.0), "origin": (0.0, 0.0, 0.0)}
    files = {"scores": "s.mrc", "angles": "a.mrc"}
    statistics = {"search_space": scores_size * 45_000, "mean": 0.0, "std": SIGMA}
    MatchJob(**{**job.__dict__, **big, "files": files, "statistics": statistics}).write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    found = take_candidates(path, CandidateSettings(number=5000))
    seconds = time.process_time() - begin
    # those in section 0 are nearer to the face than half a diameter
    assert len(found) == 9 * 12 * 12
    assert seconds < 4.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20

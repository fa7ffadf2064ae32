"""A cut-off that holds to a part of false discoveries, on a search made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from weft.formats import mrc
from weft.matching.candidates import CandidateSettings, cut_off
from weft.session.candidate_estimates import estimate_job, with_discovery_limit
from weft.session.candidate_files import job_statistics, take_candidates
from weft.session.match_job import MatchJob, MatchTemplate

VOXEL, SHAPE, STD = 10.0, (60, 160, 160), 0.02


def make_job(folder: Path, particles: int, streaks: int = 120) -> tuple[Path, np.ndarray]:
    """Noise, streaks that score above it, and particles that score above those."""
    random = np.random.default_rng(4)
    scores = np.clip(random.normal(0.05, STD, SHAPE), -0.9, 0.9).astype(np.float32)
    z, y, x = (a.ravel() for a in np.meshgrid(*(np.arange(8, n - 8, 14) for n in SHAPE), indexing="ij"))
    order = random.permutation(len(z))
    wrong, true = order[particles : particles + streaks], order[:particles]
    scores[z[wrong], y[wrong], x[wrong]] = 0.13 + random.exponential(0.03, streaks)
    scores[z[true], y[true], x[true]] = random.normal(0.5, 0.03, particles)
    mrc.write(folder / "T_a_scores.mrc", scores, VOXEL, volume=True)
    mrc.write(folder / "T_a_angles.mrc", np.zeros(SHAPE, np.float32), VOXEL, volume=True)
    np.save(folder / "T_a_rotations.npy", np.zeros((1, 3), np.float32))
    job = MatchJob(
        name="T",
        tomogram="T.mrc",
        voxel_size=VOXEL,
        shape=SHAPE,
        origin=(0.0, 0.0, 0.0),
        volume_size=tuple(float(n * VOXEL) for n in reversed(SHAPE)),  # type: ignore[arg-type]
        image_pixel_size=4.0,
        templates=[MatchTemplate("a.mrc", "", 100.0)],
        rotations="T_a_rotations.npy",
        statistics={"search_space": 480 * scores.size, "mean": 0.0, "std": STD},
        files={"scores": "T_a_scores.mrc", "angles": "T_a_angles.mrc"},
    )
    job.write(folder / "T_a.json")
    return folder / "T_a.json", np.stack([x[true], y[true], z[true]], axis=1) * VOXEL


def test_the_cut_off_rises_above_what_is_not_noise(tmp_path: Path) -> None:
    path, places = make_job(tmp_path, 150)
    # a cut-off among the streaks
    plain = CandidateSettings(false_positives=1.0)
    held = with_discovery_limit(path, plain.model_copy(update={"false_discoveries": 0.02}))
    assert held.cut_off > cut_off(job_statistics(MatchJob.read(path), path), plain)
    # the lowest one at which the estimate says no more than that
    _, estimate = estimate_job(path, plain)
    assert held.cut_off == estimate.cut_off_for(0.02)
    assert estimate.at(held.cut_off)[1] <= 0.02
    found, before = take_candidates(path, held), take_candidates(path, plain)
    away = [np.linalg.norm(c.xyz[:, None] - places, axis=-1).min(axis=1) for c in (found, before)]
    assert (away[0] < VOXEL).sum() == (away[1] < VOXEL).sum() > 0.85 * len(places)  # but for the margin
    assert (away[0] >= VOXEL).sum() < (away[1] >= VOXEL).sum()


def test_a_cut_off_that_was_given_and_a_search_without_particles_stay(tmp_path: Path) -> None:
    path, _ = make_job(tmp_path, 0, 0)
    limited = CandidateSettings(false_discoveries=0.02)
    assert with_discovery_limit(path, limited).cut_off == 0.0
    given = limited.model_copy(update={"cut_off": 0.3})
    assert with_discovery_limit(path, given) is given
    assert with_discovery_limit(path, CandidateSettings()) == CandidateSettings()

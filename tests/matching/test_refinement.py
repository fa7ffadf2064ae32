"""Poses beyond the grid: structures planted exactly, between voxels and between orientations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from weft.matching.angles import angular_distance, rotation_grid
from weft.matching.mask import ellipsoid_mask
from weft.matching.matcher import Matcher
from weft.matching.plan import SearchSettings, Template
from weft.matching.refinement import Refined, refine_places
from weft.matching.search import run_search
from weft.physics.geometry import euler_angles

BOX, VOXEL, STEP, COUNT = 18, 10.0, 15.0, 6
SHAPE = (34, 44, 64)
POINTS = np.array([[5.0, 0.0, 0.5], [0.0, 4.5, -1.0], [-3.0, -2.0, 3.5], [0.5, -1.0, -5.0], [2.0, -4.0, 1.0]])
#: z, y, x, voxels.
PLACES = np.array([[10, 10, 11], [22, 12, 30], [12, 31, 12], [21, 32, 31], [11, 12, 50], [22, 31, 51]])


def points(
    xyz: NDArray[np.float64], shape: tuple[int, ...], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gaussians of 1.4 voxels, x y z from a centre z y x."""
    z, y, x = np.meshgrid(*(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    out = np.zeros(shape)
    for px, py, pz in xyz:
        out += np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2.0 * 1.4**2))
    return out


def planted(noise: float) -> tuple[NDArray[np.float32], NDArray[np.float64], torch.Tensor]:
    """A tomogram, places (x, y, z, voxels) and orientations of what is in it."""
    random = np.random.default_rng(3)
    volume = random.normal(0.0, noise, SHAPE)
    shifts = random.uniform(-0.5, 0.5, (COUNT, 3))
    turns = Rotation.random(COUNT, random_state=7).as_matrix()
    for place, shift, turn in zip(PLACES, shifts, turns, strict=True):
        volume += points(POINTS @ turn.T, SHAPE, place + shift)
    return volume.astype(np.float32), (PLACES + shifts)[:, ::-1], euler_angles(torch.from_numpy(turns))


def refined(
    noise: float, *, off: int = 0, **changes: object
) -> tuple[Refined, NDArray[np.float64], torch.Tensor, Matcher]:
    volume, xyz, euler = planted(noise)
    template = Template(
        torch.from_numpy(points(POINTS, (BOX,) * 3, np.full(3, BOX // 2)).astype(np.float32)),
        ellipsoid_mask(BOX, (7.0, 7.0, 7.0), 0.5),
        140.0,
    )
    settings = SearchSettings(**({"angular_step": STEP, "weighting": "none", "whiten": False} | changes))
    matcher = Matcher.of(volume, VOXEL, [template], None, settings)
    grid = rotation_grid(STEP)
    nearest = [int(angular_distance(grid, one.expand(len(grid), 3)).argmin()) for one in euler]
    start = PLACES.copy()
    start[0, 1] += off
    found = refine_places(matcher, start, np.array(nearest))
    return found, xyz, euler, matcher


@pytest.mark.parametrize("whiten", [False, True])
def test_poses_between_voxels_and_orientations(whiten: bool) -> None:
    """0.15 voxels and a fifth of the step; noise as strong as a fifth of a point's height."""
    found, xyz, euler, matcher = refined(0.2, whiten=whiten)
    away = np.linalg.norm(found.xyz - xyz, axis=1)
    turned = angular_distance(torch.from_numpy(found.euler), euler)
    assert away.max() < 0.15
    assert float(turned.max()) < STEP / 5.0
    # what it started from was as far away as the grid makes it
    assert np.linalg.norm(PLACES[:, ::-1] - xyz, axis=1).mean() > 0.35
    grid = matcher.plan.rotations
    best = torch.stack([angular_distance(grid, one.expand(len(grid), 3)).min() for one in euler])
    assert float(best.mean()) > STEP / 4.0
    assert found.score.max() <= 1.0 + 1e-4


def test_without_noise_the_top_is_found() -> None:
    """What is left comes from paraboloids for tops that are none, and from interpolated templates."""
    found, xyz, euler, _ = refined(0.0)
    assert np.linalg.norm(found.xyz - xyz, axis=1).max() < 0.08
    assert float(angular_distance(torch.from_numpy(found.euler), euler).max()) < 0.6
    assert found.score.min() > 0.98


def test_a_place_that_is_off_by_a_voxel() -> None:
    found, xyz, euler, _ = refined(0.1, off=1)
    assert np.linalg.norm(found.xyz - xyz, axis=1).max() < 0.15
    assert float(angular_distance(torch.from_numpy(found.euler), euler).max()) < STEP / 5.0


def test_refined_scores_are_those_of_the_search() -> None:
    """The same measure: no less than the best of the grid, and more by what a better pose explains."""
    low, high = (PLACES[1] - 2) * VOXEL, (PLACES[1] + 2) * VOXEL
    region = tuple(float(v) for z in (2, 1, 0) for v in (low[z], high[z]))
    found, _, _, matcher = refined(0.2, region=region)
    grid = run_search(matcher).scores
    assert grid.shape == (5, 5, 5)
    assert grid.max() - 1e-4 < found.score[1] < grid.max() + 0.2


def test_threads_and_progress() -> None:
    before, seen = torch.get_num_threads(), []
    _, _, _, matcher = refined(0.1)
    numbers = np.zeros(COUNT, np.int64)
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(refine_places(matcher, PLACES, numbers, progress=seen.append))
    finally:
        torch.set_num_threads(before)
    assert np.allclose(results[0].xyz, results[1].xyz)
    assert np.allclose(results[0].score, results[1].score)
    assert seen == pytest.approx([(i + 1) / COUNT for i in range(COUNT)] * 2)
    empty = refine_places(matcher, np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    assert empty.xyz.shape == (0, 3)

"""Grids of orientations: published counts, evenness, and what symmetry leaves of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from weft.errors import SettingsError
from weft.matching.angles import (
    angular_distance,
    angular_step,
    healpix_side,
    nearby,
    rotation_grid,
)
from weft.physics.geometry import euler_angles, euler_matrix, rotation_about
from weft.physics.symmetry import symmetry_operators


def matrices(angles: torch.Tensor) -> torch.Tensor:
    return euler_matrix(*angles.double().unbind(-1))


# pytom-match-pick's documentation and tests (`angle_to_angle_list`), and its paper's 50,544 at 7°
@pytest.mark.parametrize(
    ("step", "count"), [(38.53, 480), (12.85, 8700), (7.0, 50544), (3.92, 248400), (3.0, 576000)]
)
def test_as_many_rotations_as_are_published(step: float, count: int) -> None:
    side = healpix_side(step)
    assert 12 * side * side * math.ceil(360.0 / step) == count
    if count < 100_000:
        assert rotation_grid(step).shape == (count, 3)


def test_large_grids_have_their_counts_too() -> None:
    assert len(rotation_grid(3.92)) == 248400


def test_directions_and_turns_are_the_published_ones() -> None:
    """HEALPix's rings (Górski et al. 2005, eq. 4): the first ring at cos θ = 1 − 1/(3 side²), four pixels."""
    grid = rotation_grid(38.53)
    tilts = torch.unique(grid[:, 1].round(decimals=9))
    assert len(tilts) == 4 * 2 - 1
    assert math.cos(math.radians(float(tilts[0]))) == pytest.approx(1.0 - 1.0 / 12.0, abs=1e-9)
    assert torch.unique(grid[:, 2]).tolist() == [36.0 * i for i in range(10)]
    # what the planted block of pytom's test is turned by (rotation 100 of its list, in its own order)
    wanted = torch.tensor([math.degrees(1.1780972450961724), 90.0])
    assert float((grid[:, :2] - wanted).abs().sum(1).min()) < 1e-9


@pytest.mark.parametrize("step", [0.05, 0.0, 121.0, float("nan")])
def test_a_step_that_makes_no_sense(step: float) -> None:
    with pytest.raises(SettingsError, match="angular step"):
        rotation_grid(step)


def test_crowthers_step() -> None:
    """Views of a particle of diameter D for a resolution d: π D / d over half a turn (Crowther 1970)."""
    assert 180.0 / angular_step(300.0, 20.0) == pytest.approx(math.pi * 300.0 / 20.0)


# ------------------------------------------------------------------------------------------- Euler angles


def test_angles_of_matrices_and_back() -> None:
    random = torch.from_numpy(Rotation.random(500, random_state=1).as_matrix())
    angles = euler_angles(random)
    assert torch.allclose(matrices(angles), random, atol=1e-12)
    assert float(angles[:, 1].min()) >= 0.0
    assert float(angles[:, 1].max()) <= 180.0


@pytest.mark.parametrize("tilt", [0.0, 180.0])
@pytest.mark.parametrize("rot", [0.0, 37.0, -160.0])
@pytest.mark.parametrize("psi", [0.0, 122.0, 270.0])
def test_angles_at_the_poles(tilt: float, rot: float, psi: float) -> None:
    given = matrices(torch.tensor([[rot, tilt, psi]]))
    found = euler_angles(given)
    assert torch.allclose(matrices(found), given, atol=1e-9)
    assert found[0, 0] == 0.0


def test_angles_next_to_a_pole() -> None:
    # where tilt is 1e-7°, rot and psi are known only together
    for tilt in (1e-7, 180.0 - 1e-7):
        given = matrices(torch.tensor([[20.0, tilt, 30.0]], dtype=torch.float64))
        assert torch.allclose(matrices(euler_angles(given)), given, atol=1e-8)


def test_rotations_around_none() -> None:
    turns = nearby(2.0)
    assert turns.shape == (26, 3, 3)
    angle = torch.rad2deg(torch.acos(0.5 * (torch.einsum("nii->n", turns) - 1.0)))
    assert sorted({round(float(a), 6) for a in angle}) == pytest.approx([2.0, 2.0 * 2**0.5, 2.0 * 3**0.5])
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert np.allclose(rotation_about(vectors).numpy(), Rotation.from_rotvec(vectors.numpy()).as_matrix())


def test_distance_between_orientations() -> None:
    one = torch.tensor([[10.0, 40.0, 70.0]])
    other = euler_angles(
        matrices(one) @ symmetry_operators("D7")[5] @ rotation_about(torch.tensor([[0.0, 0.1, 0.0]]))
    )
    assert float(angular_distance(one, other, "D7")) == pytest.approx(math.degrees(0.1), abs=1e-6)
    assert float(angular_distance(one, other)) > 20.0


# --------------------------------------------------------------------------------------------- evenness


def test_the_grid_is_even() -> None:
    """Cells of equal volume: every part of the rotations that is drawn at random has its share."""
    step = 20.0
    grid = Rotation.from_matrix(matrices(rotation_grid(step)).numpy())
    random = Rotation.random(40000, random_state=2)
    _, nearest = tree(grid).query(random.as_quat())
    share = np.bincount(nearest % len(grid), minlength=len(grid)) / (40000 / len(grid))
    # 40000 / 1944 = 20 draws a cell: 22 % by chance; HEALPix's cells differ in shape, not in size. Cells at
    # the poles, whose rings lie closest, have neighbours in psi and rot at once
    assert share.std() < 0.4
    assert share.min() > 0.0


def tree(grid: Rotation) -> cKDTree:
    """Of unit quaternions and their negatives, which are the same rotations."""
    quaternions = grid.as_quat()
    return cKDTree(np.concatenate([quaternions, -quaternions]))


def distances(grid: np.ndarray, group: np.ndarray, draws: int = 4000) -> np.ndarray:
    """Of random rotations to the nearest of the grid's, turned by any operator; degrees."""
    everything = Rotation.from_matrix((grid[:, None] @ group[None]).reshape(-1, 3, 3))
    away, _ = tree(everything).query(Rotation.random(draws, random_state=3).as_quat())
    return np.degrees(4.0 * np.arcsin(np.minimum(0.5 * away, 1.0)))


@pytest.mark.parametrize("name", ["C1", "C2", "C7", "D2", "D7", "T", "O", "I1", "I2"])
def test_the_grid_reaches_all_rotations(name: str) -> None:
    step = 12.0
    group = symmetry_operators(name)
    grid = rotation_grid(step, name)
    full = len(rotation_grid(step))
    # pixels on the border of the asymmetric part are few: one ring of them around it at most
    assert len(grid) < full / len(group) * 1.35 + 200
    assert len(grid) > full / len(group) * 0.7
    away = distances(matrices(grid).numpy(), group.numpy())
    whole = distances(matrices(rotation_grid(step)).numpy(), np.eye(3)[None])
    print(name, len(grid), full / len(group), away.max(), whole.max(), np.median(away))
    assert away.max() < 1.2 * step

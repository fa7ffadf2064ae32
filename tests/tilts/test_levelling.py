"""Inclinations of planes, pairs of surfaces and filled slabs, and of the slab in a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry
from weft.tilts.levelling import inclination_of, level_markers
from weft.tilts.slab import level_from_volume

LEVEL = (3.0, -7.0)


def turned(level_places: NDArray[np.float64], level: tuple[float, float] = LEVEL) -> torch.Tensor:
    """Places in a level specimen → the frame of the bundle adjustment, by the geometry's own definition."""
    matrix = TiltGeometry.of([0.0], level=level).matrices[0].numpy()
    return torch.from_numpy(level_places @ matrix.T)


def field(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(-1200.0, 1200.0, (n, 2))


def test_levelled_points_are_horizontal() -> None:
    rng = np.random.default_rng(1)
    places = turned(np.c_[field(20, rng), np.zeros(20)]).numpy()
    a, b, _ = np.linalg.lstsq(np.c_[places[:, :2], np.ones(20)], places[:, 2], rcond=None)[0]
    assert inclination_of(a, b) == pytest.approx(LEVEL, abs=1e-9)


# 18 beads scatter by 20 Å over 700 Å: 20 / 700 / sqrt(18) is 0.4°, the rest is the fit's own
@pytest.mark.parametrize("sides", [1, 2])
def test_beads_on_one_or_both_surfaces(sides: int) -> None:
    rng = np.random.default_rng(sides)
    z = 450.0 * (2 * rng.integers(0, 2, 18) - 1) if sides == 2 else np.zeros(18)
    found = level_markers(turned(np.c_[field(18, rng), z + rng.normal(0, 20, 18)]), what="beads")
    assert (found.level_x, found.level_y) == pytest.approx(LEVEL, abs=1.0)
    assert found.error < 1.5
    if sides == 2:
        assert found.thickness == pytest.approx(900.0, abs=60.0)
        assert "two surfaces" in found.how


def test_particles_that_fill_a_slab_are_better_than_a_plane_through_them() -> None:
    """A plane through 110 particles in 800 Å of ice is wrong by 230 Å / 700 Å / √110 = 1.8° (1 σ)."""
    ours, plane = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        places = turned(np.c_[field(110, rng), rng.uniform(-400, 400, 110)])
        found = level_markers(places)
        ours.append(np.hypot(found.level_x - LEVEL[0], found.level_y - LEVEL[1]))
        p = places.numpy()
        slope = np.linalg.lstsq(np.c_[p[:, :2], np.ones(110)], p[:, 2], rcond=None)[0]
        least = inclination_of(slope[0], slope[1])
        plane.append(np.hypot(least[0] - LEVEL[0], least[1] - LEVEL[1]))
    assert np.sqrt(np.mean(np.square(ours))) < 0.6 * np.sqrt(np.mean(np.square(plane)))
    assert np.max(ours) < 2.0


def test_stray_places_do_not_decide() -> None:
    rng = np.random.default_rng(5)
    places = np.c_[field(60, rng), 450.0 * (2 * rng.integers(0, 2, 60) - 1) + rng.normal(0, 15, 60)]
    places[:4, 2] = [1500.0, -1400.0, 1250.0, 1600.0]
    found = level_markers(turned(places))
    assert (found.level_x, found.level_y) == pytest.approx(LEVEL, abs=1.0)


def test_too_little_to_level_by() -> None:
    assert "only 3" in level_markers(torch.zeros(3, 3)).how
    line = torch.linspace(-500, 500, 20, dtype=torch.float64)[:, None] * torch.tensor([1.0, 1.0, 0.1])
    assert "line" in level_markers(line.double()).how


def test_slab_in_a_volume() -> None:
    """Noise where the specimen is: no missing wedge, so that only the method's own error counts."""
    rng = np.random.default_rng(7)
    voxel, shape = 20.0, (90, 96, 96)
    density = rng.normal(0, 1, shape)
    axes = [(np.arange(n) - n // 2) * voxel for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)[..., ::-1]
    normal = turned(np.array([[0.0, 0.0, 1.0]])).numpy()[0]
    density *= 0.3 + (abs(grid @ normal - 60.0) < 300.0)
    centre = tuple(float(n // 2) * voxel for n in shape[::-1])
    found = level_from_volume(torch.from_numpy(density).float(), voxel, centre)  # type: ignore[arg-type]
    assert (found.level_x, found.level_y) == pytest.approx(LEVEL, abs=1.0)
    assert found.thickness == pytest.approx(600.0, abs=60.0)
    assert found.error > 2.0  # what the missing wedge does to real reconstructions is counted
    assert found.centre[2] == pytest.approx(60.0 / normal[2], abs=30.0)

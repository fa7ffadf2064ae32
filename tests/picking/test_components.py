"""From probabilities to particles and masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from weft.picking.components import (
    PickingSettings,
    artefact_mask,
    candidate_peaks,
    covering_discs,
    find_particles,
)

GRID = 8.0


def disc(image: NDArray[np.float64], x: float, y: float, radius: float, value: float = 0.95) -> None:
    """Draw a disc; all in pixels."""
    rows, columns = np.indices(image.shape)
    image[np.hypot(rows - y, columns - x) <= radius] = value


def size_of(image: NDArray[np.float64]) -> tuple[float, float]:
    return image.shape[1] * GRID, image.shape[0] * GRID


def test_centroids_and_diameter() -> None:
    image = np.zeros((96, 128))
    for x, y in ((20, 30), (60, 40), (100, 70)):
        disc(image, x, y, 6.0)
    none = np.zeros(image.shape, dtype=bool)
    picks = find_particles(image, none, size_of(image), 0.5, 0.5, PickingSettings())
    assert sorted(map(tuple, np.rint(picks.xy / GRID).astype(int).tolist())) == [
        (20, 30),
        (60, 40),
        (100, 70),
    ]
    # discs of half the particles' radius: 2 × 6 px × 8 Å / 0.5, but for the area of a disc of pixels
    assert picks.diameter == pytest.approx(2 * 6 * GRID / 0.5, rel=0.05)
    assert picks.score == pytest.approx(0.95)


def test_particles_joined_by_doubtful_pixels_are_two() -> None:
    image = np.zeros((64, 64))
    image[30:33, 20:40] = 0.6
    disc(image, 20, 31, 4.0)
    disc(image, 40, 31, 4.0)
    picks = find_particles(image, image < 0, size_of(image), 0.5, 0.5, PickingSettings(spacing=0.0))
    assert len(picks) == 2
    assert np.ptp(picks.xy[:, 0]) == pytest.approx(20 * GRID, abs=4 * GRID)


def test_the_larger_of_two_that_overlap_stays() -> None:
    image = np.zeros((64, 64))
    disc(image, 20, 31, 5.0, 0.9)
    disc(image, 30, 31, 3.0, 0.99)
    settings = PickingSettings(diameter=100.0, spacing=1.0)
    picks = find_particles(image, image < 0, size_of(image), 0.5, 0.5, settings)
    assert np.rint(picks.xy / GRID).astype(int).tolist() == [[20, 31]]
    assert len(find_particles(image, image < 0, size_of(image), 0.5, 0.5, PickingSettings(spacing=0.1))) == 2


def test_masks_are_kept_clear_of() -> None:
    dirt = np.zeros((64, 64))
    dirt[:, 40:] = 0.3
    dirt[:, 50:] = 0.8
    dirt[50:60, 5:15] = 0.3  # doubtful everywhere: dropped
    dirt[5:8, 5:8] = 0.9  # nine pixels: dropped
    mask = artefact_mask(dirt, PickingSettings())
    assert mask[:, 40:].all()
    assert not mask[:, :40].any()
    image = np.zeros((64, 64))
    for x in (6, 30, 36, 50):
        disc(image, x, 31, 2.5)
    picks = find_particles(image, mask, size_of(image), 0.5, 0.5, PickingSettings(mask_distance=40.0))
    # 4 px from the mask is nearer than 40 Å
    assert sorted(np.rint(picks.xy[:, 0] / GRID).astype(int).tolist()) == [6, 30]


def test_nothing_there() -> None:
    image = np.zeros((64, 64))
    picks = find_particles(image, image < 0, size_of(image), 0.5, 0.5, PickingSettings())
    assert len(picks) == 0
    assert math.isnan(picks.diameter)


def test_discs_that_cover_a_mask() -> None:
    rows, columns = np.indices((80, 100))
    bead = np.hypot(rows - 20, columns - 30) <= 5.0
    pair = (np.hypot(rows - 60, columns - 40) <= 5.0) | (np.hypot(rows - 60, columns - 49) <= 5.0)
    film = columns > 75
    xy, diameters = covering_discs(bead | pair | film, (100 * GRID, 80 * GRID), 200.0)
    near = np.hypot(xy[:, 0] / GRID - 30, xy[:, 1] / GRID - 20) < 8
    assert near.sum() == 1
    np.testing.assert_allclose(xy[near][0], [30 * GRID, 20 * GRID], atol=GRID)
    # the film is thicker than 200 Å and stays; all of the rest is covered
    assert (xy[:, 0] < 75 * GRID).all()
    left = bead | pair
    for (x, y), diameter in zip(xy, diameters, strict=True):
        left &= np.hypot(columns * GRID - x, rows * GRID - y) > 0.5 * diameter + GRID
    assert not left.any()
    assert len(covering_discs(film & False, (800.0, 640.0), 200.0)[0]) == 0


def test_candidates() -> None:
    image = np.zeros((64, 64))
    disc(image, 20, 30, 3.0, 0.4)
    disc(image, 50, 30, 3.0, 0.9)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:, 45:] = True
    peaks, places = candidate_peaks(image, mask, 8)
    assert peaks.tolist() == [0.4]
    assert np.hypot(places[0, 0] - 30, places[0, 1] - 20) <= 3.0

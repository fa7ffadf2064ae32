"""The non-uniform FFT against the sum that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from weft.simulation.splatting import PaddedGrid, point_spectrum


def direct_sum(xy, weights, grid):
    ky, kx = grid.frequencies(1.0)
    total = np.zeros((grid.ny, grid.nx // 2 + 1), complex)
    for (x, y), w in zip(xy + grid.margin, weights, strict=True):
        total += w * np.exp(-2j * np.pi * (kx * x + ky * y))
    total[grid.ny // 2] = 0.0
    total[:, -1] = 0.0
    return total


@pytest.mark.parametrize(("height", "width", "margin"), [(40, 60, 6), (64, 50, 0)])
def test_equals_the_direct_sum(height, width, margin):
    rng = np.random.default_rng(0)
    grid = PaddedGrid.around(height, width, margin)
    # points beyond every border too: the field is periodic
    xy = rng.uniform(-20.0, 90.0, (300, 2))
    weights = rng.normal(size=300)
    expected = direct_sum(xy, weights, grid)
    error = np.abs(point_spectrum(xy, weights, grid) - expected)
    size = np.sqrt((np.abs(expected) ** 2).mean())
    # the documented accuracy: 1e-4 of the norm; the worst coefficients, at the corners, ten times that
    assert np.sqrt((error**2).mean()) < 1e-4 * size
    assert error.max() < 1e-3 * size


def test_equals_the_direct_sum_over_several_chunks(monkeypatch):
    monkeypatch.setattr("weft.simulation.splatting._CHUNK", 7)
    rng = np.random.default_rng(1)
    grid = PaddedGrid.around(30, 30, 3)
    xy = rng.uniform(0.0, 30.0, (50, 2))
    expected = direct_sum(xy, np.ones(50), grid)
    error = np.abs(point_spectrum(xy, None, grid) - expected)
    assert np.sqrt((error**2).mean()) < 1e-4 * np.sqrt((np.abs(expected) ** 2).mean())


def test_a_shift_is_a_phase_ramp():
    rng = np.random.default_rng(2)
    grid = PaddedGrid.around(64, 64, 8)
    xy = rng.uniform(0.0, 64.0, (200, 2))
    shift = np.array([0.37, -1.81])
    ky, kx = grid.frequencies(1.0)
    ramp = np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1]))
    still, moved = point_spectrum(xy, None, grid), point_spectrum(xy + shift, None, grid)
    # two results, each within 1e-4 of exact
    assert np.linalg.norm(moved - still * ramp) < 2e-4 * np.linalg.norm(still)


def test_grid_lengths_suit_the_oversampling():
    for n in (64, 100, 333, 1024, 3838):
        grid = PaddedGrid.around(n, n + 1, 20)
        assert grid.ny >= n + 40
        assert grid.nx >= n + 41
        assert grid.ny % 4 == 0
        assert grid.nx % 4 == 0

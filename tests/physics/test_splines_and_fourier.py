"""Splines, Fourier resampling and windows against SciPy, NumPy and analytic signals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from weft.physics import fourier
from weft.physics.splines import evaluate_grid, spline_matrix
from weft.physics.windows import Windows


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_spline_passes_through_its_control_points_and_keeps_constants(n: int) -> None:
    at = np.linspace(0, 1, n) if n > 1 else np.array([0.3])
    np.testing.assert_allclose(spline_matrix(n, at), np.eye(n) if n > 1 else [[1.0]], atol=1e-12)
    np.testing.assert_allclose(spline_matrix(n, np.linspace(-0.2, 1.3, 31)).sum(1), 1.0, atol=1e-12)


def test_spline_is_the_natural_cubic() -> None:
    values = np.random.default_rng(0).normal(size=6)
    u = np.linspace(0, 1, 41)
    expected = CubicSpline(np.linspace(0, 1, 6), values, bc_type="natural")(u)
    np.testing.assert_allclose(spline_matrix(6, u) @ values, expected, atol=1e-12)


def test_grid_is_a_product_of_splines() -> None:
    rng = np.random.default_rng(1)
    grid = rng.normal(size=(2, 4, 5))
    y, x = rng.uniform(size=(2, 20))
    expected = np.stack([np.diag(spline_matrix(4, y) @ g @ spline_matrix(5, x).T) for g in grid])
    np.testing.assert_allclose(evaluate_grid(grid, y, x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "new"), [((20, 24), (12, 10)), ((21, 25), (13, 14)), ((12, 13), (20, 32)), ((15, 16), (15, 16))]
)
def test_resize_is_exact_for_band_limited_signals(size: tuple[int, int], new: tuple[int, int]) -> None:
    # frequencies below both Nyquists: the resampled signal is the signal at the new places
    def signal(shape: tuple[int, int]) -> np.ndarray:
        y, x = np.arange(shape[0])[:, None] / shape[0], np.arange(shape[1])[None] / shape[1]
        return 0.7 + np.cos(2 * np.pi * (3 * y + 2 * x)) + np.sin(2 * np.pi * (4 * x - 2 * y)) + 0 * x * y

    out = fourier.resize(torch.from_numpy(signal(size)).float(), new)
    np.testing.assert_allclose(out, signal(new), atol=2e-6)


def test_shift_phases_sample_at_a_displaced_place() -> None:
    y, x = np.arange(16)[:, None] / 16, np.arange(20)[None] / 20
    image = torch.from_numpy(np.cos(2 * np.pi * (2 * x + 3 * y))).float()
    ky, kx = fourier.frequencies((16, 20))
    moved = fourier.rfft2(image) * fourier.shift_phases(ky, kx, torch.tensor(1.3), torch.tensor(-0.6))
    expected = np.cos(2 * np.pi * (2 * (x - 0.6 / 20) + 3 * (y + 1.3 / 16)))
    np.testing.assert_allclose(fourier.irfft2(moved, (16, 20)), expected, atol=1e-5)


def test_fast_sizes_have_small_factors() -> None:
    assert [fourier.fast_size(n) for n in (3838, 3710, 97, 1)] == [3840, 3750, 98, 2]


@pytest.mark.parametrize(("length", "size"), [(512, 128), (2048, 512), (320, 128)])
@pytest.mark.parametrize("border", [True, False])
def test_squared_windows_count_every_pixel_once(length: int, size: int, border: bool) -> None:
    w = Windows.along(length, size, border=border)
    total = np.zeros(length)
    for start, taper in zip(w.starts, w.tapers, strict=True):
        total[start : start + size] += taper**2
    edge = size // 16 if border else size // 2
    np.testing.assert_allclose(total[edge : length - edge], 1.0, atol=1e-6)
    assert w.shares.sum() == pytest.approx(length / size - (0 if border else 0.5))


@pytest.mark.parametrize("length", [128, 130, 200, 500])
def test_windows_that_do_not_divide_the_axis_still_count_it_once(length: int) -> None:
    w = Windows.along(length, 128, border=True)
    assert w.starts[0] == 0
    assert w.starts[-1] + 128 == length
    assert np.diff(w.starts).max(initial=0) <= 64
    assert w.shares.sum() == pytest.approx(length / 128)

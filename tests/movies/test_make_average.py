"""Averages: sampling against analytic signals, weights against their formulas, both implementations alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.movies.average import (
    AverageSettings,
    aligned_frames,
    binned_size,
    contrast,
    dose_components,
    make_average,
)
from weft.movies.motion import MotionModel
from weft.movies.warp import accumulate, node_places, sample_plain
from weft.physics.optics import Optics

OPTICS = Optics(1.0, 300, 2.7, 0.07, 2.0)


def still(n: int, size: tuple[int, int]) -> MotionModel:
    return MotionModel(n, (float(size[1]), float(size[0])), np.zeros((n, 2)))


@pytest.mark.parametrize("size", [(70, 83), (128, 96)])
def test_compiled_and_plain_sampling_agree(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.normal(size=(2, *size)).astype(np.float32))
    nodes = node_places(size)
    shift = np.stack([np.stack([3.3 + 0.002 * nodes[..., 1], -5.7 + 0.003 * nodes[..., 0]], axis=-1)] * 2)
    shift[1] *= -1.6
    weights = np.array([[1.0, 0.5], [-0.3, 0.0]])
    sums = torch.zeros(2, *size)
    accumulate(sums, frames, shift, weights)
    plain = [sample_plain(f, d) for f, d in zip(frames, shift, strict=True)]
    expected = torch.stack([sum(weights[b, r] * plain[b] for b in range(2)) for r in range(2)])
    # the compiled kernel keeps the whole-pixel part over runs of 16: third-order effect of the slopes
    torch.testing.assert_close(sums, expected, atol=2e-4, rtol=0)


def test_a_moving_wave_stands_still_in_the_average() -> None:
    y, x = np.mgrid[:160, :192].astype(float)
    drift = np.array([[0.0, 0.0], [2.3, -1.4], [4.1, -2.2], [-3.7, 5.5]])
    local = np.zeros((2, 2, 2, 2))
    local[0, 1] = [[0.0, 1.0], [0.5, -1.0]]
    model = MotionModel(4, (192.0, 160.0), drift, local)
    # the frame shows at p what the average shows at q, where q + track(q) = p
    frames = []
    places = np.stack([x, y], axis=-1).reshape(-1, 2)
    for f in range(4):
        q = places.copy()
        for _ in range(20):
            q = places - model.track(q)[f]
        frames.append(np.cos(2 * np.pi * (0.11 * q[:, 0] + 0.05 * q[:, 1])).reshape(x.shape))
    stack = torch.from_numpy(np.array(frames)).float()
    average = make_average(stack, model, OPTICS, AverageSettings(dose_weighting="none")).average.numpy()
    expected = np.cos(2 * np.pi * (0.11 * x + 0.05 * y))
    inside = np.s_[12:-12, 12:-12]
    # cubic B-splines at a quarter of the sampling frequency: aliases of the order of 1 in 1000
    assert np.abs(average - expected)[inside].max() < 0.01


@pytest.mark.parametrize("half", [0.5, 0.504, 0.47, 0.4])
def test_displacements_of_half_a_pixel_leave_nyquist_finite(half: float) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 64, 96)).astype(np.float32))
    motion = MotionModel(2, (96.0, 64.0), np.array([[half, -half], [-half, half]]))
    average = make_average(frames, motion, OPTICS, AverageSettings(dose_weighting="none")).average
    # independent noise of two frames: 0.71; divided by what is left at Nyquist it was 1e14, 5 and 0.91
    assert 0.65 < float(average.std()) < 0.8


def test_sign_of_the_track() -> None:
    frames = torch.zeros(2, 64, 64)
    frames[0, 30, 20] = 100.0
    frames[1, 33, 25] = 100.0  # the feature moves by +5 in x, +3 in y
    motion = MotionModel(2, (64.0, 64.0), np.array([[0.0, 0.0], [5.0, 3.0]]))
    average = make_average(frames, motion, OPTICS, AverageSettings(dose_weighting="none")).average
    assert divmod(int(average.argmax()), 64) == (30, 20)


def test_weighting_is_renormalised() -> None:
    """Noise keeps its spectrum: what users of Warp miss (§ "renormalised" of the changelog)."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(12, 256, 256)).astype(np.float32))
    motion = still(12, (256, 256))
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    for model in ("warp", "grant"):
        average = make_average(noise, motion, OPTICS, AverageSettings(dose_weighting=model)).average
        power = np.abs(np.fft.rfft2(average.numpy())) ** 2 * 12 / 256**2
        for low, high in [(0.02, 0.1), (0.1, 0.2), (0.3, 0.4)]:
            # 12 frames: unit power again after the factor 12; some 1,000 coefficients in the first ring
            assert power[(k > low) & (k < high)].mean() == pytest.approx(1.0, abs=0.08)


def test_weights_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(1)
    frames = torch.from_numpy(rng.normal(size=(5, 64, 64)).astype(np.float32))
    got = make_average(frames, still(5, (64, 64)), OPTICS, AverageSettings()).average.numpy()
    k2 = np.fft.fftfreq(64)[:, None] ** 2 + np.fft.rfftfreq(64)[None] ** 2
    w = np.stack([np.exp(-2.0 * (f + 1) * k2) for f in range(5)])
    spectra = np.stack([np.fft.rfft2(f - f.mean()) for f in frames.numpy()])
    expected = (w * spectra).sum(0) / np.sqrt(5 * (w**2).sum(0))
    # at whole pixels the sampling is exact once its response is divided out; the rest is the border, where
    # the sampled image is mirrored and the transform is periodic, and the components' 0.2 %
    wanted = np.fft.irfft2(expected, s=(64, 64))
    inside = np.s_[10:-10, 10:-10]
    difference = (got - wanted)[inside]
    assert np.abs(difference - difference.mean()).max() < 0.02 * wanted.std()


def test_halves_add_up_and_are_independent() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.normal(size=(6, 96, 96)).astype(np.float32))
    made = make_average(
        frames, still(6, (96, 96)), OPTICS, AverageSettings(halves=True, dose_weighting="none")
    )
    assert made.even is not None
    assert made.odd is not None
    torch.testing.assert_close(0.5 * (made.even + made.odd), made.average, atol=1e-5, rtol=0)
    assert abs(np.corrcoef(made.even.numpy().ravel(), made.odd.numpy().ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("factor", [1.37, 2.0, 2.5])
def test_binning_keeps_places_and_grey_values(factor: float) -> None:
    y, x = np.mgrid[:120, :150]
    wave = 5.0 + np.cos(2 * np.pi * (0.04 * x + 0.1 * y))
    made = make_average(
        torch.from_numpy(np.array([wave, wave])).float(),
        still(2, (120, 150)),
        OPTICS,
        AverageSettings(bin=factor, dose_weighting="none"),
    )
    ny, nx = binned_size((120, 150), factor)
    assert made.average.shape == (ny, nx)
    assert made.pixel_size == pytest.approx(120 / ny)
    v, u = np.mgrid[:ny, :nx]
    expected = 5.0 + np.cos(2 * np.pi * (0.04 * u * 150 / nx + 0.1 * v * 120 / ny))
    inside = np.s_[6:-6, 6:-6]
    # a wave that is not periodic in the frame leaks a little at the border
    assert np.abs(made.average.numpy() - expected)[inside].max() < 0.05


def test_anisotropic_magnification_is_undone() -> None:
    """A circle that the microscope stretched comes out round."""
    y, x = np.mgrid[:200, :200] - 100.0
    a = np.deg2rad(30.0)
    along, across = x * np.cos(a) + y * np.sin(a), -x * np.sin(a) + y * np.cos(a)
    # pixels are 4 % larger along the angle: a circle of 60 covers fewer of them there
    ring = np.exp(-((np.hypot(along * 1.02, across * 0.98) - 60.0) ** 2) / (2 * 2.0**2))
    frames = torch.from_numpy(np.array([ring, ring])).float()
    settings = AverageSettings(dose_weighting="none", anisotropy=4.0, anisotropy_angle=30.0)
    made = make_average(frames, still(2, (200, 200)), OPTICS, settings).average.numpy()
    expected = np.exp(-((np.hypot(x, y) - 60.0) ** 2) / (2 * 2.0**2))
    assert np.abs(made - expected).max() < 0.03


def test_components_span_the_weights() -> None:
    k = np.linspace(0, 0.6, 500)
    weights = np.exp(-np.outer(np.arange(1, 61), k**2))
    left, right = dose_components(weights, 1e-3)
    assert np.abs(left @ right - weights).max() < 1e-3
    assert left.shape[1] <= 7


def test_aligned_frames_average_to_the_average() -> None:
    rng = np.random.default_rng(3)
    frames = torch.from_numpy(rng.normal(size=(4, 90, 100)).astype(np.float32))
    motion = MotionModel(4, (100.0, 90.0), rng.normal(size=(4, 2)))
    settings = AverageSettings(dose_weighting="none", bin=1.5)
    stack = torch.stack(list(aligned_frames(frames, motion, OPTICS, settings)))
    average = make_average(frames, motion, OPTICS, settings).average
    # one response is divided out of each frame, their mean out of the average: they differ near Nyquist
    assert float((stack.mean(0) - average).std()) < 0.02 * float(average.std())


def test_contrast_is_that_of_the_band() -> None:
    x = np.arange(300)
    wave = torch.from_numpy(2.0 + 0.3 * np.cos(2 * np.pi * x / 30)[None].repeat(300, 0)).float()
    # a cosine of 60 Å lies in the band, one of 10 Å does not
    assert contrast(wave, 2.0) == pytest.approx(0.3 / np.sqrt(2) / 2.0, rel=1e-3)
    assert contrast(wave, 1 / 3) < 1e-3

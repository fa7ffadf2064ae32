"""Fourier shell correlation: against NumPy on whole transforms, and on maps whose signal is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weft.particles.fsc import (
    crossing,
    fsc_figure,
    half_map_fsc,
    last_signal,
    shell_correlation,
    soft_sphere,
)

SIZE, PIXEL = 48, 4.0


def noise(seed: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed))


def smooth(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Times exp(−2π²σ²k²), σ in pixels."""
    k = torch.fft.fftfreq(len(volume))
    k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    return torch.fft.ifftn(torch.fft.fftn(volume) * torch.exp(-2.0 * math.pi**2 * sigma**2 * k2)).real


@pytest.mark.parametrize("size", [20, 21])
def test_shells_as_the_whole_transform_gives_them(size: int) -> None:
    a, b = noise(1, size), noise(1, size) + noise(2, size)
    k = np.fft.fftfreq(size, 1.0 / size)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().astype(int)
    one, two = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    found = shell_correlation(a, b)
    assert len(found) == size // 2
    for shell in range(size // 2):
        inside = radius == shell
        top = (one[inside] * two[inside].conj()).sum().real
        bottom = np.sqrt((np.abs(one[inside]) ** 2).sum() * (np.abs(two[inside]) ** 2).sum())
        assert float(found[shell]) == pytest.approx(top / bottom, abs=1e-5)


def test_equal_and_unrelated_maps() -> None:
    torch.testing.assert_close(
        shell_correlation(noise(1), noise(1)), torch.ones(SIZE // 2, dtype=torch.float64)
    )
    # N independent coefficients correlate by 1/√N; the smallest shell counted here has 100
    assert float(shell_correlation(noise(1), noise(2))[3:].abs().max()) < 0.35


def test_a_mask_does_not_make_resolution() -> None:
    """A mask so tight and sharp that strong low frequencies leak into all shells."""
    mask = soft_sphere(SIZE, 12.0, 2.0)
    signal = smooth(noise(3) * soft_sphere(SIZE, 10.0, 1.0), 2.5)
    signal *= 3.0 / signal.std()
    fsc = half_map_fsc(signal + noise(4), signal + noise(5), PIXEL, mask)
    # from shell 14 on the signal's power is less than 1e-4 of the noise's: exp(−4π²·2.5²·(14/48)²) of 1e5
    assert float(fsc.masked.min()) > 0.5
    assert fsc.masked[14] > 0.95
    # a sphere of 12 px leaves few independent coefficients in a shell, so that the curve scatters
    assert float(fsc.corrected[14:].mean().abs()) < 0.2
    assert float(fsc.corrected[14:].max()) < 0.35
    assert float(fsc.corrected[:9].min()) > 0.95


def test_correction_takes_away_what_the_mask_gives() -> None:
    """Half maps that share nothing but strong low frequencies, under a mask with sharp detail of its own."""
    x = torch.arange(SIZE) - SIZE // 2
    mask = soft_sphere(SIZE, 24.0, 2.0) * (0.5 + 0.5 * torch.sign(torch.cos(1.3 * x.float())))[None, None]
    signal = smooth(noise(6), 6.0)
    signal *= 30.0 / signal.std()
    fsc = half_map_fsc(signal + noise(7), signal + noise(8), PIXEL, mask)
    spoiled = fsc.randomised > 0.2
    spoiled[: int(SIZE * PIXEL / fsc.randomised_from) + 3] = False
    assert int(spoiled.sum()) >= 2, "the case has shells that the mask spoils"
    assert float((fsc.masked - fsc.randomised)[spoiled].abs().mean()) < 0.25
    assert float(fsc.corrected[spoiled].mean()) < float(fsc.masked[spoiled].mean())


def test_crossings_are_interpolated() -> None:
    k = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04])
    curve = torch.tensor([1.0, 0.9, 0.6, 0.4, 0.45])
    assert crossing(k, curve, 0.5) == pytest.approx(1.0 / 0.025)
    assert crossing(k, curve, 0.143) == pytest.approx(1.0 / 0.04)  # never below: the last shell
    assert crossing(k, torch.tensor([1.0, 0.1, 0.9, 0.9, 0.9]), 0.143) == math.inf


def test_the_figure_shows_all_curves_and_where_they_cross() -> None:
    mask = soft_sphere(SIZE, 24.0, 3.0)
    signal = smooth(noise(3), 2.0)
    signal *= 3.0 / signal.std()
    fsc = half_map_fsc(signal + noise(4), signal + noise(5), PIXEL, mask)
    figure = fsc_figure(fsc, "a title")
    axes = figure.axes[0]
    labels = [line.get_label() for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    assert labels == ["no mask", "masked", "masked, phases randomised", "corrected"]
    assert axes.get_title() == "a title"
    assert [text.get_text() for text in axes.texts] == [
        f"{fsc.resolution(0.5):.1f} Å",
        f"{fsc.resolution(0.143):.1f} Å",
    ]


def test_a_curve_may_fall_and_rise_again() -> None:
    # as it is where most images have the first zero of their CTF
    curve = torch.tensor([1.0, 0.9, 0.77, 0.42, 0.12, 0.19, 0.46, 0.53, 0.41, 0.1, 0.02, -0.03, 0.15, 0.0])
    assert last_signal(curve) == 8, "one shell by chance counts for nothing"
    assert last_signal(torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1, 0.0, 0.02])) == 3
    assert last_signal(torch.tensor([1.0, 0.05, 0.0, 0.0])) == 0
    assert last_signal(torch.full((6,), 0.9)) == 5

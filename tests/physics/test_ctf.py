"""CTF, wavelength and dose against published numbers and formulas written out independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weft.physics.ctf import astigmatic_defocus, ctf, matching_frequency
from weft.physics.dose import dose_of_frames, dose_weight
from weft.physics.optics import Optics, electron_wavelength


@pytest.mark.parametrize(("voltage", "expected"), [(100, 0.0370144), (200, 0.0250793), (300, 0.0196875)])
def test_wavelength_has_the_published_values(voltage: float, expected: float) -> None:
    # Reimer & Kohl, Transmission Electron Microscopy, table 2.2; to the digits printed there
    assert electron_wavelength(voltage) == pytest.approx(expected, rel=2e-5)


def test_ctf_is_positive_at_low_frequency_for_underfocus() -> None:
    optics = Optics(1.0, 300, 2.7, 0.07)
    k2 = torch.tensor([0.0, (1 / 30.0) ** 2], dtype=torch.float64)
    values = ctf(k2, 15000.0, optics)
    assert values[0] == pytest.approx(0.07)
    assert values[1] > 0.5


def test_zeros_are_where_the_equation_puts_them() -> None:
    optics = Optics(1.0, 300, 2.7, 0.1)
    wl, cs = 0.0196875, 2.7e7
    for n in range(1, 8):
        # ½ π Cs λ³ q² − π λ z q + (n π − φ) = 0 for q = k²
        roots = np.roots([0.5 * math.pi * cs * wl**3, -math.pi * wl * 18000.0, n * math.pi - math.asin(0.1)])
        q = float(min(r.real for r in roots if r.real > 0))
        assert abs(float(ctf(torch.tensor(q, dtype=torch.float64), 18000.0, optics))) < 1e-3


def test_phase_plate_of_ninety_degrees_makes_a_cosine() -> None:
    optics = Optics(1.0, 300, 2.7, 0.0)
    k2 = torch.linspace(0, 0.02, 50, dtype=torch.float64)
    chi = math.pi * optics.wavelength * k2 * (5000.0 - 0.5 * 2.7e7 * optics.wavelength**2 * k2)
    torch.testing.assert_close(ctf(k2, 5000.0, optics, 90.0), torch.cos(chi))


def test_astigmatism_is_greatest_along_its_angle() -> None:
    azimuth = torch.deg2rad(torch.tensor([30.0, 120.0, 75.0], dtype=torch.float64))
    z = astigmatic_defocus(12000.0, 10000.0, 30.0, azimuth)
    np.testing.assert_allclose(z, [12000.0, 10000.0, 11000.0])


@pytest.mark.parametrize("cs", [0.0, 0.01, 2.7])
def test_matching_frequency_keeps_the_phase(cs: float) -> None:
    optics = Optics(1.0, 300, cs, 0.07)
    k = torch.linspace(0.02, 0.3, 40, dtype=torch.float64)
    matched = matching_frequency(k, 14000.0, 16000.0, optics)
    torch.testing.assert_close(
        ctf(matched**2, 16000.0, optics), ctf(k**2, 14000.0, optics), atol=1e-8, rtol=0
    )


def test_warp_dose_weight_is_a_b_factor_of_four_per_electron() -> None:
    k = torch.tensor([0.1, 0.25], dtype=torch.float64)
    np.testing.assert_allclose(dose_weight(k, 20.0, 300), np.exp(-4 * 20.0 * k.numpy() ** 2 / 4))


def test_grant_dose_weight_has_the_published_critical_exposure() -> None:
    # Grant & Grigorieff 2015, eq. 3: N_c(1/3 Å) = 0.24499 · 3^1.6649 + 2.8141 = 4.34 e/Å²
    k = torch.tensor([1 / 3], dtype=torch.float64)
    critical = 0.24499 * 3**1.6649 + 2.8141
    assert float(dose_weight(k, critical, 300, "grant")) == pytest.approx(math.exp(-0.5), rel=1e-6)
    assert float(dose_weight(k, 10, 200, "grant")) < float(dose_weight(k, 10, 300, "grant"))


def test_dose_counts_what_came_before() -> None:
    np.testing.assert_allclose(dose_of_frames(3, 1.5, 10.0), [11.5, 13.0, 14.5])

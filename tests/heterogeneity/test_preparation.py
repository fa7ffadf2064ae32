"""Images as coefficients: weights as published, phases about the particle, the CTF divided out again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.preparation import (
    ImageFacts,
    PreparationSettings,
    prepare,
    remove_background,
    signal_weights,
)


def _facts(m: int = 3, **given: float) -> ImageFacts:
    usual = {
        "defocus_u": 18000.0,
        "defocus_v": 17000.0,
        "angle": 20.0,
        "phase_shift": 0.0,
        "dose": 0.0,
        "cos_tilt": 1.0,
        "voltage": 300.0,
        "cs": 2.7,
        "amplitude": 0.1,
    } | given
    numbers = {name: torch.full((m,), value) for name, value in usual.items()}
    return ImageFacts(torch.eye(3).expand(m, 3, 3), torch.zeros(m, 2), **numbers)


def test_the_weight_of_a_tilt_is_its_cosine() -> None:
    facts = replace(_facts(2), cos_tilt=torch.tensor([1.0, math.cos(math.radians(15.0))]))
    weights = signal_weights(facts, torch.tensor([0.02, 0.1]), PreparationSettings(dose_weighting="none"))
    assert weights[0].tolist() == [1.0, 1.0]
    assert weights[1].tolist() == pytest.approx([0.966, 0.966], abs=5e-4)
    off = PreparationSettings(dose_weighting="none", tilt_weighting=False)
    assert signal_weights(facts, torch.tensor([0.02]), off).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(("voltage", "part"), [(300.0, 1.0), (200.0, 0.8)])
def test_the_weight_of_a_dose_is_grants(voltage: float, part: float) -> None:
    k, dose = np.array([0.01, 0.05, 0.1, 0.3]), 20.0
    # Grant & Grigorieff 2015, eq. 3 and 5
    critical = part * (0.245 * k**-1.665 + 2.81)
    facts = _facts(1, dose=dose, voltage=voltage)
    settings = PreparationSettings(dose_mask=False)
    found = signal_weights(facts, torch.tensor(k, dtype=torch.float32), settings)[0]
    np.testing.assert_allclose(
        found, np.exp(-dose / (2 * critical)), rtol=4e-3
    )  # its constants are rounded in print
    masked = signal_weights(facts, torch.tensor(k, dtype=torch.float32), PreparationSettings())[0]
    assert ((masked > 0).numpy() == (dose < 2.51284 * critical)).all()
    assert 0 < (masked > 0).sum() < len(k), "so that both are seen"


def test_phases_count_from_the_particle() -> None:
    """A point at the particle's centre has no phase, wherever the particle lies in the image."""
    lattice = Lattice.of(16, 2.0)
    images = torch.zeros(2, 16, 16)
    images[0, 8, 8] = 1.0
    images[1, 5, 11] = 1.0  # 3 pixels to the right, 3 up
    values = lattice.coefficients(images, torch.tensor([[0.0, 0.0], [6.0, -6.0]]))
    assert torch.allclose(values, torch.ones_like(values), atol=1e-5)


def test_coefficients_are_those_of_the_half_plane() -> None:
    lattice = Lattice.of(12, 1.0)
    points = set(zip(lattice.ux.tolist(), lattice.uy.tolist(), strict=True))
    assert len(points) == len(lattice)
    assert not {(-x, -y) for x, y in points if (x, y) != (0, 0)} & points, "no point and its mate"
    whole = {(x, y) for x in range(-5, 6) for y in range(-5, 6) if x * x + y * y < 5.5**2}
    assert points | {(-x, -y) for x, y in points} == whole
    assert (lattice.radius.diff() >= 0).all()


def test_parseval() -> None:
    """Squared differences over these coefficients are those of Hartley's, and of the pixels."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 16, 16, generator=random)
    lattice = Lattice.of(16, 1.0)
    # band-limited to what the lattice holds
    k = torch.fft.fftfreq(16) * 16
    inside = torch.hypot(k[:, None], k) < 7.5
    image = torch.fft.ifft2(torch.fft.fft2(image) * inside).real
    full = torch.fft.fft2(image)
    hartley = (full.real - full.imag).square().sum()
    half = lattice.coefficients(image, torch.zeros(1, 2)).abs().square()
    once = (lattice.ux == 0) & (lattice.uy == 0)
    total = 2 * half[:, ~once].sum() + half[:, once].sum()
    assert float(total) == pytest.approx(float(hartley), rel=1e-5)
    assert float(total) == pytest.approx(float(256 * image.square().sum()), rel=1e-5)


def test_premultiplied_images_become_flipped_ones() -> None:
    """Images that were multiplied by CTF, dose weight and tilt, as programs do it."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(3, 32, 32, generator=random)
    lattice, facts = Lattice.of(32, 4.0), _facts(dose=15.0, cos_tilt=0.8)
    settings = PreparationSettings(diameter=100.0)
    plain = prepare(images, facts, lattice, settings)
    # multiply by the CTF as a program would
    full = torch.fft.rfft2(remove_background(images, facts.shift, 12.5))
    ctf = prepare(torch.zeros(3, 32, 32), facts, lattice, settings.model_copy(update={"dose_mask": False}))
    multiplied = torch.zeros_like(full)
    for c in range(len(lattice)):
        x, y = int(lattice.ux[c]), int(lattice.uy[c])
        multiplied[:, y % 32, x] = full[:, y % 32, x] * ctf.transfer[:, c]
        if x == 0 and y:
            multiplied[:, -y, 0] = full[:, -y, 0] * ctf.transfer[:, c]
    given = torch.fft.irfft2(multiplied, (32, 32))
    found = prepare(given, facts, lattice, settings, premultiplied=True)
    kept = found.weight > 0
    # the mean outside of the particle is taken from different images: the lowest coefficients differ
    kept[:, : lattice.within(3.0)] = False
    assert kept.float().mean() > 0.7
    expected = plain.values * plain.transfer.sign()
    assert torch.allclose(found.values[kept], expected[kept], atol=0.02 * float(plain.values.abs().mean()))
    assert torch.allclose(found.transfer[kept], plain.transfer.abs()[kept], atol=1e-5)
    assert (found.values[~(found.weight > 0)] == 0).all(), "what was lost counts nothing"


def test_the_background_lies_around_the_particle() -> None:
    image = torch.full((1, 20, 20), 3.0)
    at = torch.arange(20) - 10
    # a particle that is not in the middle
    image[0][(at[:, None] + 4) ** 2 + (at - 3) ** 2 <= 16] = 10.0
    found = remove_background(image, torch.tensor([[3.0, -4.0]]), 5.0)
    assert found[0, 0, 0] == 0.0
    assert found.max() == 7.0

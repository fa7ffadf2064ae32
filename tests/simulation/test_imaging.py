"""Optics, damage, tilted planes: the images against formulas that are written elsewhere or here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch

from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.dose import dose_weight
from weft.physics.optics import Optics, electron_wavelength
from weft.simulation.imaging import damage_amplitude, ice_amplitude, relativistic, transfer
from weft.simulation.movie import MovieSimulationSettings
from weft.simulation.scene import Scene, plane_gradient


def test_wavelength():
    # Kirkland's table: 300 kV 0.0196876 Å, 200 kV 0.0250793 Å, 100 kV 0.0370144 Å
    for voltage, expected in ((300.0, 0.0196876), (200.0, 0.0250793), (100.0, 0.0370144)):
        wavelength, _ = relativistic(voltage)
        assert wavelength == pytest.approx(expected, rel=1e-5)
        assert wavelength == pytest.approx(electron_wavelength(voltage), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"astigmatism": 0.0},
        {"astigmatism": 0.08, "astigmatism_angle": 25.0},
        {"astigmatism": 0.15, "astigmatism_angle": -70.0, "phase_shift": 60.0, "voltage": 200.0, "cs": 2.0},
        {"defocus": -0.5, "amplitude": 0.1},
    ],
)
def test_transfer_agrees_with_the_fits_formula(changes):
    s = MovieSimulationSettings(**changes)
    ky, kx = scipy.fft.fftfreq(128, 1.1)[:, None], scipy.fft.rfftfreq(128, 1.1)[None, :]
    defocus, half = s.defocus * 1e4, 0.5 * s.astigmatism * 1e4
    azimuth = torch.from_numpy(np.arctan2(*np.broadcast_arrays(ky, kx)))
    along = astigmatic_defocus(defocus + half, defocus - half, s.astigmatism_angle, azimuth)
    optics = Optics(1.1, s.voltage, s.cs, s.amplitude)
    expected = ctf(torch.from_numpy(kx**2 + ky**2), along, optics, s.phase_shift).numpy()
    # the two programs' constants differ in the seventh digit: 1e-6 of a phase of some hundred radians
    np.testing.assert_allclose(transfer(ky, kx, defocus, s), expected, atol=5e-4)


def zeros(defocus, s, n):
    """The first n frequencies where the phase is a multiple of pi, from the quadratic in k^2."""
    wavelength = electron_wavelength(s.voltage)
    phi = math.radians(s.phase_shift) + math.asin(s.amplitude)
    a, b = 0.5 * math.pi * s.cs * 1e7 * wavelength**3, math.pi * wavelength * defocus
    return [
        math.sqrt((b - math.sqrt(b * b - 4 * a * (i * math.pi - phi))) / (2 * a)) for i in range(1, n + 1)
    ]


def radial_power(image, bins):
    n = image.shape[0]
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = np.abs(scipy.fft.rfft2((image - image.mean()) * window)) ** 2
    k = np.hypot(scipy.fft.fftfreq(n)[:, None], scipy.fft.rfftfreq(n)[None, :])
    index = np.digitize(k.ravel(), bins) - 1
    keep = (index >= 0) & (index < len(bins) - 1)
    total = np.bincount(index[keep], power.ravel()[keep], len(bins) - 1)
    return total / np.bincount(index[keep], minlength=len(bins) - 1)


def ice(**changes):
    return MovieSimulationSettings(
        **{
            **{"width": 512, "height": 512, "frames": 1},
            **{"coverage": 0.0, "ice_thickness": 60.0, "astigmatism": 0.0},
            **changes,
        }
    )


@pytest.mark.parametrize("phase_shift", [0.0, 80.0])
def test_thon_rings_vanish_at_the_zeros(phase_shift):
    s = ice(defocus=0.8, phase_shift=phase_shift)
    (image,) = Scene(s, np.random.SeedSequence(1)).frames()
    for low, high in zip(zeros(8000.0, s, 5)[:-1], zeros(8000.0, s, 5)[1:], strict=True):
        width = 0.0015  # of a ring at the zero and between zeros, less than a tenth of the distance
        middle = math.sqrt(0.5 * (low**2 + high**2))
        dark = radial_power(image, [low - width, low + width])[0]
        bright = radial_power(image, [middle - width, middle + width])[0]
        # sin^2 over the ring's own width and the window's, half of one step of 1/512
        assert dark < 0.06 * bright


def fitted_defocus(image, candidates, s):
    bins = np.arange(0.05, 0.22, 1 / 256)
    k = 0.5 * (bins[1:] + bins[:-1])
    form = ice_amplitude(k, 1.0, 100.0, s).astype(float)
    data = radial_power(image, bins) / form**2
    scores = []
    for defocus in candidates:
        model = transfer(np.zeros_like(k), k, float(defocus), s).astype(float) ** 2
        scores.append(np.corrcoef(data, model)[0, 1])
    return candidates[int(np.argmax(scores))]


def test_a_tilted_plane_has_its_own_defocus_everywhere():
    s = ice(defocus=1.0, tilt=40.0, tilt_axis=20.0, slab_thickness=50.0, drift=0.0, local_motion=0.0, width=768, height=768)  # noqa: E501  # fmt: skip
    (image,) = Scene(s, np.random.SeedSequence(2)).frames()
    slope = plane_gradient(s)
    assert math.hypot(*slope) == pytest.approx(math.tan(math.radians(40.0)))
    assert slope[1] / slope[0] == pytest.approx(math.tan(math.radians(20.0)))
    for x, y in ((0, 0), (512, 0), (0, 512), (512, 512)):
        patch = image[y : y + 256, x : x + 256].astype(np.float64)
        expected = 10000.0 + slope[0] * (x + 128 - 384) + slope[1] * (y + 128 - 384)
        found = fitted_defocus(patch, np.arange(6000.0, 14001.0, 50.0), s)
        # the rings of one 256 px patch give its defocus to a few 50 Å steps; corners differ by 2,000 Å
        assert abs(found - expected) < 250.0


def test_positive_tilt_brings_positive_x_to_greater_underfocus():
    assert plane_gradient(MovieSimulationSettings(tilt=30.0))[0] == pytest.approx(math.tan(math.pi / 6))
    assert plane_gradient(MovieSimulationSettings(tilt=30.0))[1] == pytest.approx(0.0)
    # an axis turned counter-clockwise from y by 90 degrees points to -x: what lies at +y goes down
    assert plane_gradient(MovieSimulationSettings(tilt=30.0, tilt_axis=90.0))[1] > 0.5


def test_slabs_are_thin_and_cover_the_particles():
    s = MovieSimulationSettings(width=256, height=256, specimen="shell", tilt=30.0, slab_thickness=80.0)
    scene = Scene(s, np.random.SeedSequence(0))
    assert (np.diff(scene.slab_defocus) <= 80.0 + 1e-6).all()
    assert scene.slab_defocus.min() < s.defocus * 1e4 < scene.slab_defocus.max()
    spread = math.hypot(*plane_gradient(s)) * 256
    assert np.ptp(scene.slab_defocus) > 0.8 * spread


def test_damage_agrees_with_the_published_critical_exposure():
    k = np.array([0.05, 0.1, 0.2, 0.3, 0.4])
    s = MovieSimulationSettings()
    for dose in (0.0, 10.0, 40.0):
        expected = dose_weight(torch.from_numpy(k), dose, 300.0, "grant").numpy()
        # three digits of the published constants
        np.testing.assert_allclose(damage_amplitude(k, dose, s), expected, rtol=0.02)
    assert (damage_amplitude(k, 40.0, MovieSimulationSettings(damage=0.0)) == 1.0).all()
    at200 = damage_amplitude(k, 10.0, MovieSimulationSettings(voltage=200.0))
    assert (at200 < damage_amplitude(k, 10.0, s)).all()


def test_damage_accumulates_in_the_frames(small_pdb):
    s = MovieSimulationSettings(
        width=192, height=192, frames=3, dose_per_frame=10.0, specimen=str(small_pdb), coverage=0.011,
        ice_thickness=0.0, drift=0.0, jitter=0.0, local_motion=0.0, defocus=0.3, signal=5.0,
    )  # fmt: skip
    scene = Scene(s, np.random.SeedSequence(0))
    assert len(scene.particles.xy) >= 1
    spectra = [np.abs(scipy.fft.rfft2(f - 1.0)) for f in scene.frames()]
    k = np.hypot(scipy.fft.fftfreq(192)[:, None], scipy.fft.rfftfreq(192)[None, :])
    ring = (k > 0.145) & (k < 0.155)
    measured = np.sqrt((spectra[2][ring] ** 2).sum() / (spectra[0][ring] ** 2).sum())
    # the frames' middles are at 5 and 25 e/Å^2
    critical = 0.24499 * 0.15**-1.6649 + 2.8141
    assert measured == pytest.approx(math.exp(-20.0 / (2 * critical)), rel=0.03)


def test_protein_is_dark():
    s = MovieSimulationSettings(width=256, height=256, frames=1, specimen="shell", coverage=0.2)
    scene = Scene(s, np.random.SeedSequence(0))
    (image,) = scene.frames()
    y, x = np.mgrid[:256, :256]
    inside = np.zeros((256, 256), bool)
    for px, py in scene.particles.xy + scene.motion.track(scene.particles.xy)[0]:
        inside |= np.hypot(x - px, y - py) < 60
    assert image[inside].mean() < image[~inside].mean() - 0.01


def test_particles_do_not_overlap():
    scene = Scene(MovieSimulationSettings(width=1024, frames=1, specimen="shell"), np.random.SeedSequence(3))
    xy = scene.particles.xy
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * np.eye(len(xy))
    assert distance.min() >= 2 * scene.specimen.radius
    wanted = 0.3 * 1024 * 1024 / (math.pi * scene.specimen.radius**2)
    assert len(xy) == pytest.approx(wanted, abs=0.51)


def test_signal_is_realistic():
    """Contrast as micrographs have it: Thon rings to 4-5 Å above the noise of 32 e/Å^2, not beyond 1 % of it at Nyquist."""  # noqa: E501
    s = MovieSimulationSettings(width=512, height=512, frames=2, defocus=1.0)
    image, _ = Scene(s, np.random.SeedSequence(0)).frames()
    bins = np.array([1 / 60, 1 / 25, 1 / 12, 1 / 8, 1 / 6, 1 / 5, 1 / 4, 0.45, 0.5])
    window = np.hanning(512)[:, None] * np.hanning(512)
    snr = radial_power(image.astype(np.float64), bins) / (window**2).sum() * 32.0
    assert 1.0 < snr[0] < 30.0  # particles stand out once filtered to 25 Å
    assert (snr[2:6] > 0.02).all()
    assert (snr[2:6] < 1.0).all()
    assert snr[-1] < 0.05

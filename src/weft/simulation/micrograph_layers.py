"""What an image of ice is made of beside its particles: thickness, grain, smudges, and thick contaminants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from weft.simulation.contamination_layer import Contamination, smooth_field
from weft.simulation.imaging import ice_amplitude, relativistic
from weft.simulation.micrograph_settings import MicrographSimulationSettings
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.splatting import PaddedGrid

__all__ = [
    "Radial",
    "contaminant_intensity",
    "granular_spectrum",
    "ice_thickness",
    "imaging_optics",
    "smudges",
]

Array = NDArray[Any]


def imaging_optics(s: MicrographSimulationSettings) -> MovieSimulationSettings:
    """What the imaging formulas read."""
    return MovieSimulationSettings(
        voltage=s.voltage,
        cs=s.cs,
        amplitude=s.amplitude,
        phase_shift=s.phase_shift,
        defocus=s.defocus,
        astigmatism=s.astigmatism,
        astigmatism_angle=s.astigmatism_angle,
        envelope=s.blur,
        signal=s.signal,
    )


class Radial:
    """Functions of |k| on a half plane, made from a fine table."""

    def __init__(self, grid: PaddedGrid, pixel_size: float) -> None:
        ky, kx = grid.frequencies(pixel_size)
        k = np.sqrt(ky * ky + kx * kx)
        self.table = np.linspace(0.0, float(k.max()) * 1.0001, 4096)
        self.index = np.round(k * (4095.0 / self.table[-1])).astype(np.int32)

    def __call__(self, function: Any) -> Array:
        values: Array = np.asarray(function(self.table), np.float32)[self.index]
        return values


def ice_thickness(grid: PaddedGrid, s: MicrographSimulationSettings, rng: np.random.Generator) -> Array:
    """Of the ice over the padded field, Å: a wedge, a lens, thin in the middle, and waves."""
    y, x = np.linspace(-1.0, 1.0, grid.ny), np.linspace(-1.0, 1.0, grid.nx)
    angle, wedge, lens = rng.uniform(0.0, 2.0 * math.pi), rng.normal(scale=0.5), abs(rng.normal(scale=0.4))
    centre = rng.uniform(-0.8, 0.8, 2)
    # every term is a sum of products of a column and a row
    columns = [wedge * math.sin(angle) * y + lens * ((y - centre[1]) ** 2 - 1.0), np.ones_like(y)]
    rows = [np.ones_like(x), wedge * math.cos(angle) * x + lens * (x - centre[0]) ** 2]
    for _ in range(4):
        ky, kx = rng.normal(scale=2.5, size=2)
        height, phase = rng.normal(scale=0.12), rng.uniform(0.0, 2.0 * math.pi)
        columns += [height * np.sin(ky * y + phase), height * np.cos(ky * y + phase)]
        rows += [np.cos(kx * x), np.sin(kx * x)]
    shape = np.stack(columns, axis=1).astype(np.float32) @ np.stack(rows).astype(np.float32)
    shape -= shape.mean()
    shape *= s.ice_variation
    shape += 1.0
    result: Array = np.clip(shape, 0.25, 3.0, out=shape)
    result *= np.float32(s.ice_thickness)
    return result


def smudges(shape: tuple[int, ...], s: MicrographSimulationSettings, rng: np.random.Generator) -> Array:
    """Smudges that every micrograph has, of what lies on the ice: a loss; the strongest are dark."""
    fine, coarse = (rng.uniform(*limits) / s.pixel_size for limits in ((70.0, 250.0), (250.0, 1000.0)))
    spots = np.maximum(smooth_field((shape[0], shape[1]), fine, rng) - np.float32(rng.uniform(0.5, 1.8)), 0.0)
    result: Array = (
        smooth_field((shape[0], shape[1]), coarse, rng) + np.float32(rng.uniform(0.0, 2.5)) * spots
    )
    result -= result.mean()
    result *= np.float32(s.clouds)
    return result


def granular_spectrum(
    form: Radial,
    optics: MovieSimulationSettings,
    s: MicrographSimulationSettings,
    thickness: Array,
    dirt: Contamination,
    rng: np.random.Generator,
) -> Array:
    """Spectrum of the ice's own noise and of a film of denatured protein on its surfaces."""
    noise = rng.standard_normal(thickness.shape, dtype=np.float32)
    noise *= np.sqrt(thickness * np.float32(1.0 / s.ice_thickness)) * dirt.ice
    per_area = 1.0 / s.pixel_size**2
    wavelength, mass = relativistic(s.voltage)

    def amplitude(k: Array) -> Array:
        ice = ice_amplitude(k, per_area, s.ice_thickness, optics)
        # the noise of molecules all over the thickness: each height has its own transfer
        spread = np.sinc(0.5 * wavelength * s.ice_thickness * k * k)
        # loose chains of 15 kDa, 10.6 Å of contrast for each of their residues, in coils of 10 Å
        chain = optics.signal * wavelength * mass * 136.0 * 10.6 * np.exp(-2.0 * (math.pi * 10.0 * k) ** 2)
        film = chain * math.sqrt(s.film / 700.0 / per_area) * np.exp(-0.25 * s.blur * k * k)
        result: Array = np.sqrt((ice * spread) ** 2 + film**2)
        return result

    spectrum: Array = scipy.fft.rfft2(noise) * form(amplitude)
    return spectrum


def contaminant_intensity(dirt: Contamination, s: MicrographSimulationSettings, grid: PaddedGrid) -> Array:
    """Intensity behind the contaminants: they turn and weaken the wave, the microscope spreads it."""
    wavelength, mass = relativistic(s.voltage)
    phase = dirt.phase * np.float32(wavelength * mass * s.contaminant_signal)
    # at other voltages slower electrons are lost sooner, as they are turned more
    slower = relativistic(300.0)[0] * relativistic(300.0)[1] / (wavelength * mass)
    loss = dirt.loss * np.float32(0.5 / slower**2)
    wave = _polar(np.exp(-loss), phase)
    spectrum = scipy.fft.fft2(wave, overwrite_x=True)
    ky = scipy.fft.fftfreq(grid.ny, s.pixel_size).astype(np.float32)[:, None]
    kx = scipy.fft.fftfreq(grid.nx, s.pixel_size).astype(np.float32)[None, :]
    spectrum *= _aberration(ky, kx, s, wavelength)
    wave = scipy.fft.ifft2(spectrum, overwrite_x=True)
    intensity: Array = wave.real**2 + wave.imag**2
    return intensity


def _aberration(ky: Array, kx: Array, s: MicrographSimulationSettings, wavelength: float) -> Array:
    """exp(i path) with the envelope, for every frequency but 0; the sign makes underfocused matter dark."""
    k2 = ky * ky + kx * kx
    turn = math.radians(2.0 * s.astigmatism_angle)
    oriented = (kx * kx - ky * ky) * math.cos(turn) + 2.0 * kx * ky * math.sin(turn)
    path = s.defocus * 1e4 * 0.5 * wavelength * k2 + 0.25 * s.astigmatism * 1e4 * wavelength * oriented
    path = 2.0 * math.pi * (path - 0.25 * s.cs * 1e7 * wavelength**3 * k2 * k2)
    path = path + math.radians(s.phase_shift)
    result = _polar(np.exp(-0.25 * s.blur * k2), path)
    result[0, 0] = 1.0
    return result


def _polar(modulus: Array, phase: Array) -> Array:
    """Complex numbers in single precision."""
    result = np.empty(phase.shape, np.complex64)
    result.real = modulus * np.cos(phase)
    result.imag = modulus * np.sin(phase)
    return result

"""The simulator's own physics: scattering, damage and the microscope's transfer, as formulas.

Nothing here is shared with the fits.  Constants are CODATA's (scipy.constants); scattering factors are
Peng's (1996) from gemmi.  The image of weakly scattering matter is 1 - 2 (phase convolved with the
transfer function), so protein, which scatters more than the ice that it displaces, is dark.
"""

from __future__ import annotations

import math
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy import constants

from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.specimen import Specimen

__all__ = ["damage_amplitude", "ice_amplitude", "particle_amplitude", "relativistic", "transfer"]

Array = NDArray[Any]

# vitreous ice of 0.93 g/cm^3: molecules in an Å^3
ICE_DENSITY = 0.93 / 18.015 * constants.Avogadro * 1e-24


def relativistic(voltage: float) -> tuple[float, float]:
    """Wavelength (Å) and mass ratio m/m0 of electrons of a voltage in kV."""
    energy = voltage * 1e3 * constants.e
    rest = constants.m_e * constants.c**2
    momentum = math.sqrt(energy * (energy + 2.0 * rest)) / constants.c
    return constants.h / momentum * 1e10, 1.0 + energy / rest


def transfer(ky: Array, kx: Array, defocus: float, settings: MovieSimulationSettings) -> Array:
    """Sine of the phase between scattered and unscattered wave at spatial frequencies in 1/Å; float32.

    The path difference of defocus dz (underfocus) and spherical aberration at the angle a = wavelength k
    is dz a^2/2 - Cs a^4/4; a phase plate and the amplitude contrast advance the phase by constants.

    Parameters
    ----------
    ky, kx : arrays that broadcast against each other
    defocus : float
        Å, the mean of defocus U and V.
    """
    wavelength, _ = relativistic(settings.voltage)
    turn = math.radians(2.0 * settings.astigmatism_angle)
    k2 = kx * kx + ky * ky
    # k^2 cos 2(azimuth - angle), without the azimuth
    k2_astigmatic = (kx * kx - ky * ky) * math.cos(turn) + 2.0 * kx * ky * math.sin(turn)
    angle2 = wavelength**2 * k2
    path = 0.5 * defocus * angle2 + 0.25 * settings.astigmatism * 1e4 * wavelength**2 * k2_astigmatic
    path = path - 0.25 * settings.cs * 1e7 * angle2 * angle2
    advance = math.radians(settings.phase_shift) + math.asin(settings.amplitude)
    result: Array = np.sin(2.0 * math.pi / wavelength * path + advance).astype(np.float32)
    return result


def particle_amplitude(k: Array, specimen: Specimen, settings: MovieSimulationSettings) -> Array:
    """Phase (radian Å^2) of one unit of strength at frequencies `k` in 1/Å, less the solvent displaced.

    Carbon's scattering factor blurred by the specimen's B-factor, minus the water that would be in the
    points' place as a Gaussian of their volume (Fraser, MacRae & Suzuki 1978).
    """
    atom = _scattering(gemmi.Element("C"), k)
    atom = atom / float(_scattering(gemmi.Element("C"), np.zeros(1))[0])
    water = float(_water(np.zeros(1))[0]) * ICE_DENSITY * specimen.volume / float(specimen.strengths.mean())
    solvent = water * np.exp(-math.pi * specimen.volume ** (2.0 / 3.0) * k * k)
    matter = atom * np.exp(-0.25 * specimen.blur * k * k) - solvent
    result: Array = (_strength(settings) * matter * _envelope(k, settings)).astype(np.float32)
    return result


def ice_amplitude(
    k: Array, points_per_area: float, thickness: float, settings: MovieSimulationSettings
) -> Array:
    """Phase (radian Å^2) of one of the random points that stand for the ice, at `k` in 1/Å.

    Fewer and stronger points than there are molecules make the same noise when each carries the root of
    the molecules' number; independent points carry the molecules' structure factor in the same root.

    Parameters
    ----------
    points_per_area : float
        In an Å^2 of the image.
    thickness : float
        Of the ice along the beam, Å.
    """
    molecules = ICE_DENSITY * thickness / points_per_area
    amplitude = _water(k) * np.sqrt(molecules * _ice_structure(k))
    result: Array = (_strength(settings) * amplitude * _envelope(k, settings)).astype(np.float32)
    return result


def damage_amplitude(k: Array, dose: float, settings: MovieSimulationSettings) -> Array:
    """What is left of the particles' amplitude after `dose` e/Å^2: exp(-dose / (2 critical)); float32.

    Critical exposure 0.245 k^-1.665 + 2.81 e/Å^2 at 300 kV (Grant & Grigorieff 2015), less at lower
    voltages in proportion to the squared electron velocity.
    """
    if settings.damage == 0.0:
        return np.ones_like(k, dtype=np.float32)
    _, mass = relativistic(settings.voltage)
    _, mass300 = relativistic(300.0)
    slower = (1.0 - mass**-2) / (1.0 - mass300**-2)
    critical = slower * (0.245 * np.maximum(k, 1e-4) ** -1.665 + 2.81)
    result: Array = np.exp(-0.5 * settings.damage * dose / critical).astype(np.float32)
    return result


def _strength(settings: MovieSimulationSettings) -> float:
    """Phase (radian Å^2) behind one Å of scattering factor: wavelength times the relativistic mass ratio."""
    wavelength, mass = relativistic(settings.voltage)
    return settings.signal * wavelength * mass


def _envelope(k: Array, settings: MovieSimulationSettings) -> Array:
    result: Array = np.exp(-0.25 * settings.envelope * k * k)
    return result


def _scattering(element: gemmi.Element, k: Array) -> Array:
    """Electron scattering factor in Å at spatial frequency k = 2 sin(theta) / wavelength."""
    table = element.c4322
    a, b = np.asarray(table.a), np.asarray(table.b)
    result: Array = (a * np.exp(-0.25 * b * (k * k)[..., None])).sum(axis=-1)
    return result


def _water(k: Array) -> Array:
    return _scattering(gemmi.Element("O"), k) + 2.0 * _scattering(gemmi.Element("H"), k)


def _ice_structure(k: Array) -> Array:
    """Structure factor of vitreous ice: 0.08 at long range, its ring at 3.7 Å, 1 for single molecules."""
    rise = 1.0 - 0.92 * np.exp(-((k / 0.30) ** 4))
    ring = 0.9 * np.exp(-0.5 * ((k - 0.272) / 0.022) ** 2)
    result: Array = rise + ring
    return result

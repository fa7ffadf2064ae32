"""The microscope's and the exposure's constants, in one object instead of ten arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Optics", "electron_wavelength"]


def electron_wavelength(voltage: float) -> float:
    """Relativistic de Broglie wavelength of an electron.

    Parameters
    ----------
    voltage : float
        Acceleration voltage in kV.

    Returns
    -------
    float
        Wavelength in Å (0.0197 at 300 kV).
    """
    volts = voltage * 1e3
    return 12.2642598 / math.sqrt(volts * (1.0 + 0.978475598e-6 * volts))


@dataclass(frozen=True)
class Optics:
    """What is known about an exposure before looking at it.

    Attributes
    ----------
    pixel_size : float
        Å, of the images that go with this object (the raw frames, unless said otherwise).
    voltage : float
        kV.
    cs : float
        Spherical aberration, mm.
    amplitude : float
        Amplitude contrast, 0 to 1.
    dose_per_frame : float
        e/Å² of every frame.
    prior_dose : float
        e/Å² that the specimen had received before the first frame.
    """

    pixel_size: float
    voltage: float = 300.0
    cs: float = 2.7
    amplitude: float = 0.07
    dose_per_frame: float = 1.0
    prior_dose: float = 0.0

    @property
    def wavelength(self) -> float:
        """Å."""
        return electron_wavelength(self.voltage)

    @property
    def cs_angstrom(self) -> float:
        """Spherical aberration, Å."""
        return self.cs * 1e7

    @property
    def amplitude_phase(self) -> float:
        """The phase that stands for amplitude contrast, arcsin(amplitude), radians."""
        return math.asin(self.amplitude)

    def at_pixel_size(self, pixel_size: float) -> Optics:
        """The same exposure in images of another pixel size (Å)."""
        return replace(self, pixel_size=pixel_size)

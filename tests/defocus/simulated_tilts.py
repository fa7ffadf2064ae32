"""Light tilt series with a known CTF: noise as a specimen, filtered with the defocus of every place.

Shares nothing with the fit: the geometry, the CTF and its variation across the image are written out once
more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics

WAVELENGTH = 0.0196875  # Å at 300 kV
CS = 2.7e7  # Å
OPTICS = Optics(4.0, 300.0, 2.7, 0.07)


@dataclass
class Series:
    """What is simulated. Å and degrees; images are square."""

    angles: NDArray[np.float64]
    defocus: NDArray[np.float64]
    size: int = 400
    pixel: float = 4.0
    axis: float = 20.0
    level: tuple[float, float] = (0.0, 0.0)
    hand: float = 1.0
    delta: NDArray[np.float64] | float = 0.0  # U − V
    angle: float = 0.0
    phase: NDArray[np.float64] | float = 0.0
    signal: float = 40.0  # power of the specimen to that of shot noise at zero frequency
    fall_off: float = 700.0  # Å²: of this power, exp(−b k²)
    counts: float = 48.0
    seed: int = 0
    shift: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.shift = np.random.default_rng(self.seed + 1).normal(0.0, 40.0, (len(self.angles), 2))

    def geometry(self, level: tuple[float, float] | None = None, hand: float | None = None) -> TiltGeometry:
        """What an alignment would say; other levels or the other hand for a wrong one."""
        side = self.size * self.pixel
        return TiltGeometry.of(
            self.angles,
            axis=self.axis,
            shift=self.shift,
            image_size=(side, side),
            volume_size=(side, side, 1000.0),
            level=self.level if level is None else level,
            hand=self.hand if hand is None else hand,
        )

    def gradient(self, t: int) -> NDArray[np.float64]:
        """Of defocus along x and y of image `t`: from the normal of the turned plane."""
        x, y, a = np.deg2rad([self.level[0], self.angles[t] + self.level[1], -self.axis])
        about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        # Ry and Rz as RELION's Euler matrices have them
        about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
        about_z = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
        normal = about_z @ about_y @ about_x @ np.array([0.0, 0.0, 1.0])
        return -self.hand * normal[:2] / normal[2]

    def images(self) -> torch.Tensor:
        """(tilts, y, x) float32 counts."""
        n, rng = self.size, np.random.default_rng(self.seed)
        ky, kx = np.fft.fftfreq(n, self.pixel)[:, None], np.fft.rfftfreq(n, self.pixel)[None]
        k2, azimuth = kx**2 + ky**2, np.arctan2(ky, kx)
        envelope = np.sqrt(self.signal * self.counts) * np.exp(-0.5 * self.fall_off * k2)
        delta = np.broadcast_to(self.delta, len(self.angles))
        phase = np.broadcast_to(self.phase, len(self.angles))
        yy, xx = np.mgrid[:n, :n] * self.pixel - 0.5 * n * self.pixel
        out = np.empty((len(self.angles), n, n), np.float32)
        for t in range(len(self.angles)):
            gx, gy = self.gradient(t)
            z = self.defocus[t] + gx * (xx - self.shift[t, 0]) + gy * (yy - self.shift[t, 1])
            specimen = np.fft.rfft2(rng.normal(size=(n, n))) * envelope
            lobe = 0.5 * delta[t] * np.cos(2 * (azimuth - np.deg2rad(self.angle)))
            steps = max(2, int(np.ptp(z) / 200.0) + 2)
            levels = np.linspace(z.min(), z.max() + 1.0, steps)
            place = (z - levels[0]) / (levels[1] - levels[0])
            image = rng.normal(0.0, np.sqrt(self.counts), (n, n)) + self.counts
            for i, level in enumerate(levels):
                chi = np.pi * WAVELENGTH * k2 * (level + lobe) - 0.5 * np.pi * CS * WAVELENGTH**3 * k2**2
                c = np.sin(chi + np.deg2rad(phase[t]) + np.arcsin(0.07))
                share = np.clip(1.0 - np.abs(place - i), 0.0, 1.0)
                if share.any():
                    image -= share * np.fft.irfft2(specimen * c, (n, n))
            out[t] = image
        return torch.from_numpy(out)


def series(
    highest: float,
    count: int,
    *,
    scatter: float = 1200.0,
    mean: float = 25000.0,
    seed: int = 0,
    **more: object,
) -> Series:
    """`count` tilts from −highest to +highest with scattered defoci."""
    rng = np.random.default_rng(seed + 100)
    angles = np.linspace(-highest, highest, count)
    return Series(angles, rng.normal(mean, scatter, count), seed=seed, **more)  # type: ignore[arg-type]


def dose_symmetric(angles: NDArray[np.float64], per_tilt: float = 3.0) -> NDArray[np.float64]:
    """Accumulated exposure when tilts are taken from the middle outwards."""
    out = np.empty(len(angles))
    out[np.argsort(np.abs(angles), kind="stable")] = per_tilt * np.arange(len(angles))
    return out

"""Particle images in Fourier space: the coefficients of a band, and what the microscope did to each.

A coefficient is counted in whole periods over the box, u = k · n · pixel size, from the centre of pixel n//2
of the image, so that a particle that sits there has real and positive contributions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weft.particles import image_series
from weft.particles.image_series import ImageSeries
from weft.physics import fourier
from weft.physics.dose import DoseWeighting

__all__ = [
    "Band",
    "chunks",
    "noise_power",
    "spectra",
    "transfer",
]

#: Particles that the noise is measured from.
_ENOUGH = 100


@dataclass(frozen=True)
class Band:
    """Coefficients of square images up to a radius: one of each Friedel pair, the mean value left out.

    Attributes
    ----------
    size : int
        Pixels of an image's side.
    pixel_size : float
        Å.
    rows, columns : (c,) int64
        Where they are in a half-plane transform.
    ux, uy : (c,) float32
        Periods over the box.
    """

    size: int
    pixel_size: float
    rows: torch.Tensor
    columns: torch.Tensor
    ux: torch.Tensor
    uy: torch.Tensor

    @classmethod
    def of(
        cls,
        size: int,
        pixel_size: float,
        resolution: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> Band:
        """All to `resolution` (Å), and at most those of the last shell before Nyquist."""
        # a hair less than half a period: grids twice as fine have a place on its far side
        radius = size // 2 - 0.51
        if resolution > 0.0:
            radius = min(radius, size * pixel_size / resolution)
        uy = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64, device=device)[:, None]
        ux = torch.arange(size // 2 + 1, dtype=torch.float64, device=device)[None, :]
        within = (ux * ux + uy * uy <= radius * radius) & ((ux > 0) | (uy > 0))
        rows, columns = within.nonzero(as_tuple=True)
        ux, uy = torch.broadcast_tensors(ux, uy)  # type: ignore[no-untyped-call]
        return cls(size, pixel_size, rows, columns, ux[within].float(), uy[within].float())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def radius(self) -> torch.Tensor:
        """(c,) float32, periods over the box."""
        return torch.hypot(self.ux, self.uy)

    @property
    def k(self) -> torch.Tensor:
        """(c,) float32, 1/Å."""
        return self.radius / (self.size * self.pixel_size)

    @property
    def shells(self) -> torch.Tensor:
        """(c,) int64: the nearest whole radius."""
        return self.radius.round().long()


def chunks(count: int, size: int) -> Iterator[torch.Tensor]:
    """0 ... count − 1, so many at a time."""
    for first in range(0, count, size):
        yield torch.arange(first, min(first + size, count))


def spectra(series: ImageSeries, band: Band) -> torch.Tensor:
    """Coefficients of the images as if each particle lay in the middle of its image.

    Returns
    -------
    (particles, tilts, c) complex64
    """
    n = band.size
    full = fourier.rfft2(series.images.float())[..., band.rows, band.columns]
    centre = n // 2 + series.shift / series.pixel_size
    angle = centre[..., :1] * band.ux + centre[..., 1:] * band.uy
    angle *= 2.0 * math.pi / n
    return full * torch.polar(torch.ones_like(angle), angle)


def transfer(series: ImageSeries, band: Band, dose_weighting: DoseWeighting) -> torch.Tensor:
    """H, what the signal has been multiplied by: CTF × dose × weight.

    Returns
    -------
    (particles, tilts, c) float32
        0 where an image does not show the particle.
    """
    extent = band.size * band.pixel_size
    return image_series.transfer(series, band.uy / extent, band.ux / extent, dose_weighting)


def noise_power(series: ImageSeries, band: Band, dose_weighting: DoseWeighting) -> torch.Tensor:
    """Power of one coefficient by shell, which in single tilt images is nearly all noise.

    Of premultiplied images it is what their noise was before.

    Returns
    -------
    (shells,) float32
        Up to the largest shell of the band.
    """
    some = torch.linspace(0, len(series) - 1, min(_ENOUGH, len(series))).round().long()
    shells = band.shells
    power = torch.zeros(int(shells.max()) + 1, dtype=torch.float64, device=shells.device)
    count = torch.zeros_like(power)
    for part in chunks(len(some), 10):
        few = series.select(some[part])
        seen = few.weight > 0
        found = spectra(few, band).abs().square() * seen[..., None]
        amount = seen[..., None].expand_as(found).float()
        if series.premultiplied:
            amount = amount * transfer(few, band, dose_weighting).square()
        power.index_add_(0, shells, found.sum((0, 1)).double())
        count.index_add_(0, shells, amount.sum((0, 1)).double())
    # shells that hold nothing (that of the mean value) take the next one's
    power = power / count.clamp(min=1e-6)
    known = (count > 1e-6) & (power > 0)
    if not bool(known.any()):
        return torch.ones_like(power).float()
    least = power[known].max() * 1e-6
    power[~known] = power[known][0]
    return power.clamp(min=least).float()

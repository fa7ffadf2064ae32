"""Power spectra of overlapping patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics import fourier
from weft.physics.windows import Windows

__all__ = ["Spectra", "averaged_spectrum", "patch_spectra"]


BORDER = False  # the border is where frames are incomplete and motion is known least


@dataclass(frozen=True)
class Spectra:
    """Power spectra of patches in their half-plane.

    Attributes
    ----------
    power : (patches, ky, kx) float32
        Scaled so that the mean over the outer half of the frequencies is 1 in every patch.
    centers : (patches, 2) float64
        x, y of the patches' centres, Å.
    ky, kx : (rows,), (columns,) float32
        1/Å; both may be a part of the half-plane.
    multiplicity : (ky, kx) float32
        Independent values that a coefficient stands for, ½ on kx = 0, 0 where it is not used.
    independence : (patches,) float32
        Independent periodograms behind each value: less than 1 because patches overlap, more than 1
        where frames or patches were averaged.
    extent : (float, float)
        Width and height of the field of view, Å.
    """

    power: torch.Tensor
    centers: NDArray[np.float64]
    ky: torch.Tensor
    kx: torch.Tensor
    multiplicity: torch.Tensor
    independence: torch.Tensor
    extent: tuple[float, float]

    @property
    def k(self) -> torch.Tensor:
        """(ky, kx), 1/Å."""
        return torch.sqrt(self.ky[:, None] ** 2 + self.kx[None, :] ** 2)

    @property
    def azimuth(self) -> torch.Tensor:
        """(ky, kx), radians from +x, counter-clockwise in array coordinates."""
        return torch.atan2(self.ky[:, None], self.kx[None, :].expand(len(self.ky), -1))

    @property
    def dk(self) -> float:
        """Spacing of the samples along kx, 1/Å."""
        return float(self.kx[1] - self.kx[0])

    def some(self, count: int) -> Spectra:
        """At most `count` of the patches, evenly chosen."""
        n = len(self.power)
        if n <= count:
            return self
        chosen = np.unique(np.linspace(0, n - 1, count).round().astype(int))
        return replace(
            self,
            power=self.power[chosen],
            centers=self.centers[chosen],
            independence=self.independence[chosen],
        )

    def within(self, low: float, high: float) -> Spectra:
        """The part with low ≤ |k| ≤ high (1/Å); rows and columns beyond are dropped."""
        rows = torch.nonzero(self.ky.abs() <= high)[:, 0]
        columns = torch.nonzero(self.kx <= high)[:, 0]
        part = replace(
            self,
            power=self.power[:, rows][:, :, columns].contiguous(),
            ky=self.ky[rows],
            kx=self.kx[columns],
            multiplicity=self.multiplicity[rows][:, columns],
        )
        inside = (part.k >= low) & (part.k <= high)
        return replace(part, multiplicity=part.multiplicity * inside)


def patch_spectra(images: torch.Tensor | Sequence[torch.Tensor], pixel_size: float, window: int) -> Spectra:
    """Periodograms of half-overlapping patches of an image, or their means over several images.

    Parameters
    ----------
    images : (y, x) or (n, y, x) float32, or a sequence of (y, x)
    pixel_size : float
        Å.
    window : int
        Side of the patches in pixels; reduced to the image's where that is smaller.
    """
    stack = [images] if isinstance(images, torch.Tensor) and images.ndim == 2 else images
    ny, nx = stack[0].shape
    device = stack[0].device
    side = min(fourier.fast_size(window), ny - ny % 2, nx - nx % 2)
    rows, columns = (Windows.along(n, side, border=BORDER) for n in (ny, nx))
    tapers = [torch.as_tensor(w.tapers, device=device) for w in (rows, columns)]
    power = torch.zeros(len(rows.starts) * len(columns.starts), side, side // 2 + 1, device=device)
    for n in range(len(stack)):
        image = stack[n]
        i = 0
        for y, taper_y in zip(rows.starts, tapers[0]):
            for x, taper_x in zip(columns.starts, tapers[1]):
                patch = image[y : y + side, x : x + side]
                spectrum = fourier.rfft2((patch - patch.mean()) * (taper_y[:, None] * taper_x))
                power[i] += torch.view_as_real(spectrum).square().sum(-1)
                i += 1
    centers = np.array([(x, y) for y in rows.centers for x in columns.centers]) * pixel_size
    ky, kx = fourier.frequencies((side, side), pixel_size, device)
    independence = torch.as_tensor(np.outer(rows.shares, columns.shares).reshape(-1) * len(stack)).float()
    return _scaled(power, centers, ky[:, 0], kx[0], independence, (nx * pixel_size, ny * pixel_size))


def averaged_spectrum(power: torch.Tensor, pixel_size: float, averaged: float = 100.0) -> Spectra:
    """A power spectrum that somebody else computed, as one patch.

    Parameters
    ----------
    power : (n, n) float32
        Centred (zero frequency at n//2, n//2), as programs write it; power or amplitude.
    pixel_size : float
        Å/px of the image whose transform it is.
    averaged : float
        Independent periodograms averaged in it; only the expected errors depend on it.
    """
    n = power.shape[-1]
    half = torch.fft.ifftshift(power)[:, : n // 2 + 1].contiguous()
    ky, kx = fourier.frequencies((n, n), pixel_size, power.device)
    extent = (n * pixel_size, n * pixel_size)
    centers = np.array([[extent[0] / 2, extent[1] / 2]])
    return _scaled(half[None].clone(), centers, ky[:, 0], kx[0], torch.tensor([averaged]), extent)


def _scaled(
    power: torch.Tensor,
    centers: NDArray[np.float64],
    ky: torch.Tensor,
    kx: torch.Tensor,
    independence: torch.Tensor,
    extent: tuple[float, float],
) -> Spectra:
    multiplicity = torch.ones(len(ky), len(kx), device=power.device)
    multiplicity[:, 0] = 0.5
    if len(ky) % 2 == 0:
        multiplicity[:, -1] = 0.5
    k = torch.sqrt(ky[:, None] ** 2 + kx[None, :] ** 2)
    nyquist = float(kx[-1])
    outer = multiplicity * ((k > 0.5 * nyquist) & (k < nyquist))
    level = (power * outer).sum((-2, -1), keepdim=True) / outer.sum()
    power /= level.clamp_min(1e-20)
    return Spectra(power, centers, ky, kx, multiplicity, independence.to(power.device), extent)

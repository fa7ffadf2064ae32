"""Power spectra of the patches of a tilt series, reduced to sectors of rings.

At three electrons per Å² a coefficient says next to nothing, but astigmatism is small: within a sector of a
ring of one Fourier pixel the CTF hardly changes. The mean over such a cell keeps everything that a fit can
use in a hundredth of the numbers, and is still compared with its exact expectation (`tilt_model`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.tilt_signal import signal_centers
from weft.errors import FitError
from weft.physics import fourier
from weft.physics.windows import Windows

__all__ = ["SECTORS", "TiltSpectra", "tilt_spectra"]

SECTORS = 18  # of 10°: 1000 Å of astigmatism change the phase within one by 0.1 rad at 8 Å
LEAST_PATCH = 64  # pixels
LEAST_ALONG = 3  # patches along each side of the image at least: gradients of defocus are wanted
NORMAL_BAND = 0.5  # power is relative to its mean beyond this part of Nyquist


@dataclass(frozen=True)
class TiltSpectra:
    """Mean power in cells (sector, ring) of every patch of every tilt.

    Attributes
    ----------
    power : (tilts, patches, sectors, rings) float32
        Scaled so that the mean over the outer half of the frequencies is 1 in every patch; 1 in unusable
        tilts.
    counts : (sectors, rings) float32
        Independent coefficients in each cell; 0 where there is none.
    shares : (patches,) float32
        Part of a patch's coefficients that are independent of the other patches'.
    k2 : (sectors, rings) float32
        Mean k² of a cell's coefficients, 1/Å².
    azimuth : (sectors,) float32
        Radians from +x, counter-clockwise in array coordinates.
    places : (patches, 2) float64
        x, y of the patches' centres, Å from the centre of the image's first pixel.
    centers : (tilts, patches, 2) float64
        Where the signal of each patch has its centre: see `tilt_signal`.
    side : float
        Of a patch, Å.
    spread : (patches, 2) float64
        Variance of a patch's weight along x and y about its centre, Å².
    used : (tilts,) bool
        Tilts that were asked for and hold contrast.
    """

    power: torch.Tensor
    counts: torch.Tensor
    shares: torch.Tensor
    k2: torch.Tensor
    azimuth: torch.Tensor
    places: NDArray[np.float64]
    centers: NDArray[np.float64]
    side: float
    spread: NDArray[np.float64]
    used: NDArray[np.bool_]

    @property
    def dk(self) -> float:
        """Width of a ring, 1/Å."""
        return 1.0 / self.side

    @property
    def k(self) -> NDArray[np.float64]:
        """Mean frequency of every ring, (rings,) 1/Å."""
        counts = self.counts.cpu().numpy()
        mean = (self.k2.cpu().numpy() * counts).sum(0) / counts.sum(0).clip(1e-9)
        return np.asarray(np.sqrt(mean), dtype=np.float64)

    def within(self, low: float, high: float) -> TiltSpectra:
        """The rings with low ≤ k ≤ high (1/Å)."""
        k = self.k
        inside = torch.as_tensor(np.flatnonzero((k >= low) & (k <= high)), device=self.power.device)
        return replace(
            self,
            power=self.power[..., inside].contiguous(),
            counts=self.counts[:, inside],
            k2=self.k2[:, inside],
        )

    def select(self, tilts: NDArray[np.int64]) -> TiltSpectra:
        """The same for some of the tilts."""
        chosen = torch.as_tensor(tilts, device=self.power.device)
        return replace(self, power=self.power[chosen], centers=self.centers[tilts], used=self.used[tilts])


def tilt_spectra(
    images: torch.Tensor | Sequence[torch.Tensor],
    pixel_size: float,
    patch: float,
    highest: float,
    include: NDArray[np.bool_],
) -> TiltSpectra:
    """Spectra of half-overlapping patches; one image's patches are held at a time.

    Parameters
    ----------
    images : (tilts, y, x) float32, or a sequence of (y, x) or of (n, y, x) tensors
        n images of one tilt (halves, for example) are added up.
    pixel_size : float
        Å.
    patch : float
        Side of the patches, Å; less where the image would not hold three of them side by side.
    highest : float
        Frequency up to which rings are kept, 1/Å.
    include : (tilts,) bool
        Images that are looked at; the others are not even read.

    Raises
    ------
    FitError
        If images are too small or not of one size.
    """
    if not include.any():
        raise FitError("every tilt is excluded: there is nothing to fit")
    first = _image(images[int(np.flatnonzero(include)[0])])
    ny, nx = first.shape
    device = first.device
    largest = 2 * min(ny, nx) // (LEAST_ALONG + 1)
    side = min(fourier.fast_size(round(patch / pixel_size)), largest - largest % 2)
    if side < LEAST_PATCH:
        raise FitError(
            f"patches of {side} pixels are too small for a CTF fit (images of {nx}×{ny}, patches of "
            f"{patch:.0f} Å): use larger patches or images with smaller pixels"
        )
    rows, columns = (Windows.along(n, side, border=True) for n in (ny, nx))
    cells, counts, k2, azimuth = _cells(side, pixel_size, highest, device)
    n_rings = counts.shape[1]
    flat = cells.reshape(-1)
    multiplicity = torch.ones(side, side // 2 + 1, device=device)
    multiplicity[:, 0] = multiplicity[:, -1] = 0.5
    kept = torch.nonzero(flat >= 0)[:, 0]
    index, weight = flat[kept], multiplicity.reshape(-1)[kept]
    k = _frequency(side, pixel_size, device)
    nyquist = 0.5 / pixel_size
    outer = multiplicity * ((k > NORMAL_BAND * nyquist) & (k < nyquist))
    outer = (outer / outer.sum()).reshape(-1)
    tapers_y, tapers_x = (torch.as_tensor(w.tapers, device=device) for w in (rows, columns))
    places = [(y, x) for y in range(len(rows.starts)) for x in range(len(columns.starts))]
    power = torch.ones(len(include), len(places), SECTORS, n_rings, device=device)
    used = include.copy()
    middles = np.array([(columns.centers[x], rows.centers[y]) for y, x in places]) * pixel_size
    centers = np.tile(middles, (len(include), 1, 1))
    for t in np.flatnonzero(include):
        image = _image(images[int(t)])
        if image.shape != first.shape:
            raise FitError(
                f"tilt {t} has {image.shape[1]}×{image.shape[0]} pixels, others {nx}×{ny}: all images of a "
                "series must have one size"
            )
        deviation = float(image.std())
        if not math.isfinite(deviation) or deviation <= 1e-6 * abs(float(image.mean())):
            used[t] = False
            continue
        centers[t] = signal_centers(image, pixel_size, rows, columns)
        for p, (y, x) in enumerate(places):
            y0, x0 = int(rows.starts[y]), int(columns.starts[x])
            part = image[y0 : y0 + side, x0 : x0 + side]
            spectrum = fourier.rfft2((part - part.mean()) * (tapers_y[y][:, None] * tapers_x[x]))
            periodogram = torch.view_as_real(spectrum).square().sum(-1).reshape(-1)
            level = float(periodogram @ outer)
            if not level > 0.0:
                used[t] = False
                break
            sums = torch.bincount(index, periodogram[kept] * weight, minlength=SECTORS * n_rings)
            power[t, p] = sums.reshape(SECTORS, n_rings) / counts.clamp_min(0.5) / level
    power[torch.as_tensor(~used, device=device)] = 1.0
    power = torch.where(counts > 0, power, torch.ones_like(power))
    spread = [(w.tapers.astype(float) ** 2) for w in (rows, columns)]
    variance_y, variance_x = (_variance(s) * pixel_size**2 for s in spread)
    return TiltSpectra(
        power=power,
        counts=counts,
        shares=torch.tensor([rows.shares[y] * columns.shares[x] for y, x in places], device=device).float(),
        k2=k2,
        azimuth=azimuth,
        places=middles,
        centers=centers,
        side=side * pixel_size,
        spread=np.array([(variance_x[x], variance_y[y]) for y, x in places]),
        used=used,
    )


def _image(given: torch.Tensor) -> torch.Tensor:
    image = given if given.ndim == 2 else given.sum(0)
    return image if image.dtype == torch.float32 else image.float()


def _variance(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    i = np.arange(weights.shape[1])
    norm = weights.sum(1)
    mean = weights @ i / norm
    return np.asarray(weights @ i**2 / norm - mean**2)


def _frequency(side: int, pixel_size: float, device: torch.device) -> torch.Tensor:
    ky, kx = fourier.frequencies((side, side), pixel_size, device)
    return torch.sqrt(ky**2 + kx**2)


def _cells(
    side: int, pixel_size: float, highest: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cell of every coefficient of the half-plane (−1: none), and counts, k² and azimuths of the cells."""
    ky, kx = fourier.frequencies((side, side), pixel_size, device)
    k = torch.sqrt(ky**2 + kx**2)
    dk = 1.0 / (side * pixel_size)
    n_rings = int(min(highest, 0.5 / pixel_size) / dk) + 1
    ring = torch.round(k / dk).long()
    turn = (torch.atan2(ky, kx.expand_as(k)) + 0.5 * math.pi) / math.pi
    # the two halves of the line kx = 0 are one direction
    sector = torch.remainder(torch.floor(turn * SECTORS).long(), SECTORS)
    cells = torch.where(ring < n_rings, sector * n_rings + ring, torch.full_like(ring, -1))
    weight = torch.ones_like(k)
    weight[:, 0] = weight[:, -1] = 0.5
    kept = cells.reshape(-1) >= 0
    index, w = cells.reshape(-1)[kept], weight.reshape(-1)[kept]
    n = SECTORS * n_rings
    counts = torch.bincount(index, w, minlength=n).reshape(SECTORS, n_rings)
    sums = torch.bincount(index, w * k.reshape(-1)[kept] ** 2, minlength=n).reshape(SECTORS, n_rings)
    rings = (torch.arange(n_rings, device=device) * dk) ** 2
    k2 = torch.where(counts > 0, sums / counts.clamp_min(0.5), rings.expand_as(sums))
    counts[:, 0] = 0.0  # the mean is no contrast
    azimuth = -0.5 * math.pi + (torch.arange(SECTORS, device=device) + 0.5) * math.pi / SECTORS
    return cells, counts, k2, azimuth.float()

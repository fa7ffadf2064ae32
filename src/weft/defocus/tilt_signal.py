"""Where in a patch its signal is.

At high tilt the edge of a lamella or of the carbon film runs through patches, and gold beads outshine all
else: the rings of a patch then show the defocus of a place that is not its middle. The centre of what is
above the shot noise at low resolution tells the place.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics import fourier
from weft.physics.windows import Windows

__all__ = ["signal_centers"]

COARSE = 8.0  # Å: pixels of the map of signal
BAND = (60.0, 20.0)  # Å: where specimens are strong
DOUBT = (
    0.2  # part of the shot noise that is counted as signal spread evenly: without signal the middle remains
)


def signal_centers(
    image: torch.Tensor, pixel_size: float, rows: Windows, columns: Windows
) -> NDArray[np.float64]:
    """Centres of mass of the signal in all patches, row by row: (patches, 2) x, y in Å.

    Parameters
    ----------
    image : (y, x) float32
    rows, columns : Windows
        Of the patches.
    """
    binning = max(1, round(COARSE / pixel_size))
    ny, nx = (n // binning for n in image.shape)
    second = image[:, :-2] - 2.0 * image[:, 1:-1] + image[:, 2:]
    noise = float(second.square().mean()) / 6.0 / binning**2  # of a coarse pixel
    cut = image[: ny * binning, : nx * binning]
    coarse = cut.reshape(ny, binning, nx, binning).mean((1, 3)) if binning > 1 else cut
    ky, kx = fourier.frequencies((ny, nx), pixel_size * binning, image.device)
    k = torch.sqrt(ky**2 + kx**2)
    band = (k >= 1.0 / BAND[0]) & (k <= 1.0 / BAND[1])
    filtered = fourier.irfft2(fourier.rfft2(coarse - coarse.mean()) * band, (ny, nx))
    energy = filtered.square().cpu().numpy().astype(np.float64)
    doubles = torch.full_like(k, 2.0)
    doubles[:, 0] = 1.0
    floor = noise * float((band * doubles).sum()) / (ny * nx)
    y, weight_y = _coarse_weights(rows, binning, ny)
    x, weight_x = _coarse_weights(columns, binning, nx)
    # what is above the noise, and a little everywhere
    above = energy - (1.0 - DOUBT) * floor
    total = weight_y @ above @ weight_x.T
    least = DOUBT * floor * weight_y.sum(1)[:, None] * weight_x.sum(1)[None]
    total = np.maximum(total, np.maximum(least, 1e-30))
    middle_x, middle_y = np.meshgrid(columns.centers, rows.centers)
    from_x = (weight_y @ above @ (weight_x * x).T - middle_x * (weight_y @ above @ weight_x.T)) / total
    from_y = ((weight_y * y) @ above @ weight_x.T - middle_y * (weight_y @ above @ weight_x.T)) / total
    half = 0.5 * rows.tapers.shape[1]
    centers = np.stack([middle_x + from_x.clip(-half, half), middle_y + from_y.clip(-half, half)], axis=-1)
    return np.asarray(centers.reshape(-1, 2) * pixel_size)


def _coarse_weights(
    windows: Windows, binning: int, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of coarse pixels in fine ones, and the squared windows there, (windows, n)."""
    place = (np.arange(n) + 0.5) * binning - 0.5
    inside = np.arange(windows.tapers.shape[1])
    weights = [
        np.interp(place - start, inside, taper.astype(np.float64) ** 2, left=0.0, right=0.0)
        for start, taper in zip(windows.starts, windows.tapers)
    ]
    return np.asarray(place, dtype=np.float64), np.asarray(np.stack(weights), dtype=np.float64)

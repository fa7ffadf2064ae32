"""Patches of images at other pixels, of any size and at any place, without interpolation.

A patch is evaluated at the new pixels by its own Fourier series, cut off at their Nyquist frequency: that
shifts by any part of a pixel, changes the pixel size by any factor, and filters against aliasing in one step.
"""

from __future__ import annotations

import math

import torch

from weft.physics import fourier

__all__ = ["at_pixels"]


def at_pixels(patches: torch.Tensor, at: torch.Tensor, size: int, ratio: tuple[float, float]) -> torch.Tensor:
    """The Fourier series of patches, from the output's Nyquist frequency on cut off, at the output's pixels.

    Parameters
    ----------
    patches : (i, y, x) float32
    at : (i, 2) float64
        x, y, px: where the output's pixel size//2 lies in a patch.
    ratio : (float, float)
        x, y: the output's pixels in those of the patch.

    Returns
    -------
    (i, size, size) float32
    """
    device = patches.device
    ny, nx = patches.shape[1:]
    (kx, to_x), (ky, to_y) = (
        _sums(size, n, r, both, device) for n, r, both in ((nx, ratio[0], False), (ny, ratio[1], True))
    )
    turn = 2.0 * math.pi * at.to(device)
    phase_x = (turn[:, :1] * kx / nx).float()
    phase_y = (turn[:, 1:] * ky / ny).float()
    spectra = fourier.rfft2(patches)[:, ky % ny][:, :, kx]
    spectra = spectra * torch.polar(torch.ones_like(phase_y), phase_y)[:, :, None]
    spectra *= torch.polar(torch.ones_like(phase_x), phase_x)[:, None]
    return (to_y @ spectra @ to_x.T).real.contiguous()


def _sums(
    size: int, length: int, ratio: float, both: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies that are kept, periods per patch, and the matrix (size, frequencies) that sums them."""
    below = math.ceil(0.5 * length / ratio - 1e-9) - 1
    highest = length // 2 if ratio < 1.0 + 1e-9 else below
    k = torch.arange(-highest if both else 0, highest + 1, device=device)
    place = (torch.arange(size, dtype=torch.float64, device=device) - size // 2) * ratio
    angle = 2.0 * math.pi / length * place[:, None] * k
    # a real image: negative frequencies are the mates of positive ones
    count = torch.ones(len(k), dtype=torch.float64, device=device) if both else 2.0 - (k == 0).double()
    # both signs of the images' own Nyquist frequency are one coefficient
    count = torch.where((2 * k.abs() == length), 0.5 * count, count)
    return k, torch.polar(count.expand_as(angle) / length, angle).to(torch.complex64)

"""Wiener-like deconvolution of a micrograph, so that particles can be seen.

Tegunov & Cramer 2019, "Deconvolution": the spectral signal-to-noise ratio is supposed to be
exp(−100 F f) · 10^(3 S) · H(f), with the fall-off F and the strength S both 1 for typical data, and H a
raised cosine that removes what varies over more than the high-pass length.
"""

from __future__ import annotations

import math

import torch

from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["DeconvolutionSettings", "deconvolve", "supposed_snr"]


class DeconvolutionSettings(Settings):
    """How micrographs are deconvolved for viewing."""

    write: bool = setting(False, "Write a deconvolved copy of every average, for viewing and for pickers.")
    strength: float = setting(
        1.0,
        "How much low frequencies are lifted: the signal-to-noise ratio is 10^(3 strength).",
        ge=0.0,
        le=5.0,
    )
    falloff: float = setting(
        1.0, "How soon the signal is supposed to fall off with frequency.", ge=0.0, le=10.0
    )
    highpass: float = setting(
        300.0, "Variations over more than this length are removed.", unit="Å", ge=0.0, le=10000.0
    )


def supposed_snr(k: torch.Tensor, settings: DeconvolutionSettings) -> torch.Tensor:
    """Supposed signal-to-noise ratio at spatial frequency `k` (1/Å); 0 at k = 0 when there is a high-pass."""
    snr = torch.exp(-100.0 * settings.falloff * k) * 10.0 ** (3.0 * settings.strength)
    if settings.highpass > 0.0:
        snr = snr * (0.5 - 0.5 * torch.cos(math.pi * (k * settings.highpass).clamp(max=1.0)))
    return torch.as_tensor(snr)


def deconvolve(
    image: torch.Tensor,
    defocus: tuple[float, float, float],
    optics: Optics,
    settings: DeconvolutionSettings | None = None,
    phase_shift: float = 0.0,
) -> torch.Tensor:
    """Undo the CTF where the signal is supposed to be stronger than the noise.

    The result keeps the micrograph's contrast: particles stay dark.

    Parameters
    ----------
    image : (y, x) float32
    defocus : (float, float, float)
        U, V (Å) and angle (degrees); the mean over the field.
    optics : Optics
        `pixel_size` is that of the image.
    settings : DeconvolutionSettings, optional
    phase_shift : float
        Of a phase plate, degrees.

    Returns
    -------
    (y, x) float32
        Mean zero.
    """
    settings = settings or DeconvolutionSettings()
    ny, nx = image.shape
    size = (fourier.fast_size(ny), fourier.fast_size(nx))
    ky, kx = fourier.frequencies(size, optics.pixel_size, image.device)
    k2 = ky**2 + kx**2
    azimuth = torch.atan2(ky, kx.expand(size[0], -1))
    u, v, angle = defocus
    c = ctf(k2, astigmatic_defocus(u, v, angle, azimuth), optics, phase_shift)
    snr = supposed_snr(torch.sqrt(k2), settings)
    # c / (c² + 1/snr), without dividing by a vanishing ratio
    wiener = c * snr / (c * c * snr + 1.0)
    spectrum = fourier.rfft2(image - image.mean(), size) * wiener
    out: torch.Tensor = fourier.irfft2(spectrum, size)[:ny, :nx].contiguous()
    return out

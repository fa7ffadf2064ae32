"""Gaussian, high-pass and low-pass filters of a half-plane spectrum, in one multiplication.

Frequencies are in cycles per pixel along each axis. The edges of the passes are raised cosines:

    low-pass    1 up to c,           ½ (1 + cos(π (k − c)/w)) up to c + w,   0 beyond
    high-pass   0 up to c − w,       ½ (1 + cos(π (c − k)/w)) up to c,       1 beyond
    Gaussian    exp(−2π² σ² k²): a convolution with a Gaussian of standard deviation σ

Xmipp's ``real_gaussian`` is exp(−π² σ² k²), whose standard deviation is σ/√2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Filter", "apply_filter", "filter_gain"]


@dataclass(frozen=True)
class Filter:
    """What is passed: frequencies in cycles per pixel; what is off is None.

    Attributes
    ----------
    gaussian : float
        Standard deviation, pixels; 0 is off.
    highpass, lowpass : (cut-off, width) or None
    """

    gaussian: float = 0.0
    highpass: tuple[float, float] | None = None
    lowpass: tuple[float, float] | None = None

    def __bool__(self) -> bool:
        return self.gaussian > 0.0 or self.highpass is not None or self.lowpass is not None

    def _numbers(self) -> tuple[float, float, float, float, float]:
        """exponent, and for each pass its cut-off and width; a pass that lets all through where it is off."""
        exponent = -2.0 * math.pi**2 * self.gaussian**2
        high, low = self.highpass or (-1.0, 0.0), self.lowpass or (math.inf, 0.0)
        return (exponent, *high, *low)


def _axes(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    ky = torch.fft.fftfreq(size[0], dtype=torch.float64)
    kx = torch.fft.rfftfreq(size[1], dtype=torch.float64)
    return ky, kx


def filter_gain(wanted: Filter, size: tuple[int, int]) -> torch.Tensor:
    """What a filter multiplies each coefficient with, ``(y, x//2+1)`` float64, for images of `size`."""
    ky, kx = _axes(size)
    squared = ky[:, None] ** 2 + kx[None, :] ** 2
    k = torch.sqrt(squared)
    gain = torch.exp(-2.0 * math.pi**2 * wanted.gaussian**2 * squared)
    for edge, sign in ((wanted.highpass, -1.0), (wanted.lowpass, 1.0)):
        if edge is not None:
            gain = gain * _edge(sign * (k - edge[0]), edge[1])
    return gain


def _edge(beyond: torch.Tensor, width: float) -> torch.Tensor:
    """1 where `beyond` ≤ 0, a raised cosine of `width`, then 0."""
    if width == 0.0:
        return (beyond <= 0.0).double()
    out: torch.Tensor = 0.5 * (1.0 + torch.cos(math.pi * (beyond / width).clamp(0.0, 1.0)))
    return out


def apply_filter(spectrum: torch.Tensor, wanted: Filter, size: tuple[int, int], factor: float = 1.0) -> None:
    """Multiply a half-plane by a filter and a factor, in place.

    Parameters
    ----------
    spectrum : (y, x//2+1) complex64
    size : (int, int)
        Of the image.
    """
    if not wanted:
        if factor != 1.0:
            spectrum *= factor
    elif spectrum.device.type == "cpu":
        ky, kx = (axis.numpy() for axis in _axes(size))
        exponent = wanted._numbers()[0]
        _multiply(
            spectrum.numpy(),
            ky,
            kx,
            np.exp(exponent * ky**2) * factor,
            np.exp(exponent * kx**2),
            *wanted._numbers()[1:],
        )
    else:
        gain = filter_gain(wanted, size) * factor
        spectrum *= gain.to(spectrum.device, torch.float32)


@numba.njit(nogil=True, cache=True)
def _multiply(
    spectrum: NDArray[np.complex64],
    ky: NDArray[np.float64],
    kx: NDArray[np.float64],
    gauss_y: NDArray[np.float64],
    gauss_x: NDArray[np.float64],
    high: float,
    high_width: float,
    low: float,
    low_width: float,
) -> None:  # pragma: no cover - compiled
    for i in range(ky.size):
        for j in range(kx.size):
            gain = gauss_y[i] * gauss_x[j]
            squared = ky[i] * ky[i] + kx[j] * kx[j]
            # cosines only where an edge is: everywhere else this is comparisons
            if high > 0.0 and squared < high * high:
                below = high - math.sqrt(squared)
                if below < high_width:
                    gain *= 0.5 * (1.0 + math.cos(math.pi * below / high_width))
                else:
                    gain = 0.0
            if squared > low * low:
                above = math.sqrt(squared) - low
                if above < low_width:
                    gain *= 0.5 * (1.0 + math.cos(math.pi * above / low_width))
                else:
                    gain = 0.0
            spectrum[i, j] *= np.float32(gain)

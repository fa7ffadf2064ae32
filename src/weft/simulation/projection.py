"""Projections of many copies of one structure at once: rotated and splatted in one compiled loop.

Like :mod:`weft.simulation.splatting` this is a non-uniform Fourier transform: points are splatted onto a grid
1.5 times finer than the image and the kernel's own transform is divided out.  The kernel is the cubic
B-spline, four taps wide and a polynomial: some ten times quicker, and exact to 0.2 % at half the image's
Nyquist frequency and to 6 % at its very edge, where nothing is left of a particle in ice.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from weft.simulation.specimen import Specimen, projection_matrix
from weft.simulation.splatting import PaddedGrid, coarse_transform

__all__ = ["projections_spectrum"]

Array = NDArray[Any]


def projections_spectrum(
    specimen: Specimen, places: Array, eulers: Array, grid: PaddedGrid, pixel_size: float
) -> Array:
    """Sum over the points of all particles of strength x exp(-2 pi i k x).

    Parameters
    ----------
    specimen : Specimen
    places : ``(n, 2)`` array
        Centres, Å; 0 is the centre of the inner image's first pixel.
    eulers : ``(n, 3)`` array
        rot, tilt, psi, degrees.
    grid : PaddedGrid
    pixel_size : float, Å

    Returns
    -------
    ``(grid.ny, grid.nx // 2 + 1)`` complex64
        The origin of the phases is the first pixel of the padded grid; the Nyquist row and column are zero.
    """
    my, mx = (3 * grid.ny) // 2, (3 * grid.nx) // 2
    fine = np.zeros((my, mx), np.float32)
    if len(places):
        scale = 1.5 / pixel_size
        turns = np.stack([projection_matrix(*e)[:2] for e in eulers]) * scale
        centres = (np.asarray(places, float) / pixel_size + grid.margin) * 1.5
        _deposit(
            fine,
            np.ascontiguousarray(specimen.points, np.float32),
            np.ascontiguousarray(specimen.strengths, np.float32),
            turns.astype(np.float32),
            np.ascontiguousarray(centres),
        )
    spectrum = coarse_transform(fine, grid)
    spectrum *= (np.sinc(scipy.fft.fftfreq(grid.ny) / 1.5) ** -4).astype(np.float32)[:, None]
    spectrum *= (np.sinc(scipy.fft.rfftfreq(grid.nx) / 1.5) ** -4).astype(np.float32)[None, :]
    return np.asarray(spectrum)


@numba.njit(nogil=True, cache=True)
def _deposit(fine: Array, points: Array, strengths: Array, turns: Array, centres: Array) -> None:
    """Add every particle's points to the fine, periodic grid ``(my, mx)`` float32, in place."""
    my, mx = fine.shape
    row = np.empty(4, np.float32)
    column = np.empty(4, np.float32)
    one, sixth = np.float32(1.0), np.float32(1.0 / 6.0)
    for n in range(len(centres)):
        turn = turns[n]
        for i in range(len(points)):
            x = (
                centres[n, 0]
                + turn[0, 0] * points[i, 0]
                + turn[0, 1] * points[i, 1]
                + turn[0, 2] * points[i, 2]
            )
            y = (
                centres[n, 1]
                + turn[1, 0] * points[i, 0]
                + turn[1, 1] * points[i, 1]
                + turn[1, 2] * points[i, 2]
            )
            left, low = math.floor(x), math.floor(y)
            u, v = np.float32(x - left), np.float32(y - low)
            w = strengths[i]
            column[0] = (one - u) ** 3 * sixth
            column[1] = (np.float32(4.0) - np.float32(6.0) * u * u + np.float32(3.0) * u * u * u) * sixth
            column[3] = u * u * u * sixth
            column[2] = one - column[0] - column[1] - column[3]
            row[0] = w * (one - v) ** 3 * sixth
            row[1] = w * (np.float32(4.0) - np.float32(6.0) * v * v + np.float32(3.0) * v * v * v) * sixth
            row[3] = w * v * v * v * sixth
            row[2] = w - row[0] - row[1] - row[3]
            if left >= 1 and left + 2 < mx and low >= 1 and low + 2 < my:
                for a in range(4):
                    for b in range(4):
                        fine[low - 1 + a, left - 1 + b] += row[a] * column[b]
            else:
                for a in range(4):
                    for b in range(4):
                        fine[(low - 1 + a) % my, (left - 1 + b) % mx] += row[a] * column[b]

"""Overlapping windows that count every pixel of an image once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """Half-overlapping windows along one axis.

    Half sines, whose squares (raised cosines) add up to one where neighbours overlap by half. Towards the
    image's border, where there is no neighbour, a window falls off like the others, or, with `border`,
    stays at one but for a short ramp, so that nothing is lost there.

    Attributes
    ----------
    starts : (n,) int64
        First pixel of each window.
    tapers : (n, size) float32
    centers : (n,) float64
        Centres of mass of the squared windows, pixels.
    shares : (n,) float64
        Part of a window's coefficients that are independent of its neighbours': they add up to the length
        of the axis over `size`.
    """

    starts: NDArray[np.int64]
    tapers: NDArray[np.float32]
    centers: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def along(cls, length: int, size: int, *, border: bool) -> Windows:
        """Windows of `size` pixels that cover an axis of `length` pixels, the border fully or not."""
        count = max(1, math.ceil((length - size) / (size / 2) - 1e-6) + 1)
        starts = np.round(np.linspace(0, length - size, count)).astype(np.int64)
        half, ramp = size // 2, max(size // 16, 1)
        flat = np.ones(size)
        flat[:ramp] = np.sin(0.5 * np.pi * (np.arange(ramp) + 0.5) / ramp)
        tapers = np.tile(np.sin(np.pi * (np.arange(size) + 0.5) / size), (count, 1))
        if border:
            tapers[0, :half] = flat[:half]
            tapers[-1, size - half :] = flat[:half][::-1]
            if count == 1:
                tapers[0, half : size - half] = 1.0
        squared = tapers**2
        centers = starts + (squared @ np.arange(size)) / squared.sum(1)
        # what all windows together hold that is independent: the axis, less half a window if its border fades
        total = length / size if border else max(length / size - 0.5, 2.0 / 3.0)
        power = squared.mean(1)
        return cls(starts, tapers.astype(np.float32), centers, power * total / power.sum())

"""The camera: pixels of different gain, dead and hot ones, and counting statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import GainError
from weft.simulation.settings import MovieSimulationSettings

__all__ = ["count_frames", "random_gain", "random_hot_pixels"]

Array = NDArray[Any]


def random_gain(settings: MovieSimulationSettings, rng: np.random.Generator) -> Array:
    """A gain reference, ``(height, width)`` float32: corrected = raw x gain, dead pixels are zero.

    Pixels differ at random, columns share a part, and the whole varies slowly; over the pixels that
    count, 1/gain has mean one, so the mean count is the exposure.
    """
    ny, nx = settings.height, settings.width
    sensitivity = np.ones((ny, nx))
    if settings.gain_variation > 0.0:
        y, x = np.linspace(-1.0, 1.0, ny)[:, None], np.linspace(-1.0, 1.0, nx)[None, :]
        slow = rng.normal() * x + rng.normal() * y - (x * x + y * y)
        slow = (slow - slow.mean()) / slow.std()
        pattern = 0.9 * rng.standard_normal((ny, nx)) + 0.25 * rng.standard_normal(nx)[None, :] + 0.35 * slow
        sensitivity += settings.gain_variation * pattern
        sensitivity = np.clip(sensitivity, 0.3, 2.0)
    gain = sensitivity.mean() / sensitivity
    gain.ravel()[rng.choice(ny * nx, settings.dead_pixels, replace=False)] = 0.0
    result: Array = gain.astype(np.float32)
    return result


def random_hot_pixels(settings: MovieSimulationSettings, gain: Array, rng: np.random.Generator) -> Array:
    """How many times too much every pixel counts, ``(height, width)`` float32; dead pixels are not hot."""
    factor = np.ones((settings.height, settings.width), np.float32)
    alive = np.flatnonzero(gain.ravel() > 0.0)
    chosen = rng.choice(alive, settings.hot_pixels, replace=False)
    factor.ravel()[chosen] = rng.uniform(10.0, 40.0, settings.hot_pixels)
    return factor


def count_frames(
    intensities: Iterable[Array],
    gain: Array,
    hot: Array,
    settings: MovieSimulationSettings,
    rng: np.random.Generator,
) -> Array:
    """Count electrons.

    Parameters
    ----------
    intensities : iterable of ``(height, width)`` arrays
        Expected intensity of each frame relative to no specimen.
    gain, hot : ``(height, width)`` arrays
        From :func:`random_gain` and :func:`random_hot_pixels`.

    Returns
    -------
    ``(frames, height, width)`` uint8, or uint16 where a count exceeds 255.
    """
    if gain.shape != (settings.height, settings.width):
        raise GainError(
            f"the gain reference has {gain.shape[1]} x {gain.shape[0]} pixels and the movie "
            f"{settings.width} x {settings.height}; give one of the movie's size"
        )
    alive = gain > 0.0
    response = np.where(
        alive, settings.dose_per_frame * settings.pixel_size**2 / np.where(alive, gain, 1.0), 0.0
    )
    response = (response * hot).astype(np.float32)
    counts = np.empty((settings.frames, settings.height, settings.width), np.uint8)
    for i, intensity in enumerate(intensities):
        # matter that scatters more than weakly could make this negative; no image counts less than 2 %
        expected = response * np.maximum(intensity, np.float32(0.02))
        frame = rng.poisson(expected) if settings.noise == "poisson" else np.rint(expected)
        if counts.dtype == np.uint8 and frame.max() > 255:
            counts = counts.astype(np.uint16)
        counts[i] = np.minimum(frame, np.iinfo(counts.dtype).max)
    return counts

"""A movie with its truth: :func:`simulate_movie`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.simulation.detector import count_frames, random_gain, random_hot_pixels
from weft.simulation.scene import Scene
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.truth import movie_truth

__all__ = ["MovieSimulationSettings", "SimulatedMovie", "simulate_gain", "simulate_movie"]

Array = NDArray[Any]


@dataclass(frozen=True)
class SimulatedMovie:
    """What the camera saw and what is true about it.

    Attributes
    ----------
    frames : ``(f, y, x)`` uint8 or uint16
        Counts, row 0 first as in an MRC file.
    gain : ``(y, x)`` float32
        corrected = raw x gain; zeros are dead pixels.
    truth : dict
        As :func:`weft.simulation.truth.movie_truth` makes it, JSON-able.
    settings : MovieSimulationSettings
    hot : ``(n, 2)`` int array
        x, y in px of the hot pixels.
    """

    frames: Array
    gain: Array
    truth: dict[str, Any]
    settings: MovieSimulationSettings
    hot: Array


def simulate_gain(settings: MovieSimulationSettings, seed: int) -> Array:
    """A gain reference for several movies of one camera, ``(height, width)`` float32."""
    return random_gain(settings, np.random.default_rng(np.random.SeedSequence([seed, 1])))


def simulate_movie(
    settings: MovieSimulationSettings, seed: int, gain: Array | None = None, workers: int = 1
) -> SimulatedMovie:
    """Simulate one movie exactly.

    Parameters
    ----------
    settings : MovieSimulationSettings
    seed : int
        The same seed and settings give the same movie.
    gain : ``(height, width)`` array, optional
        The camera's gain reference; by default one is drawn from the seed.
    workers : int
        Threads of the Fourier transforms.

    Raises
    ------
    SettingsError, FormatError
        The specimen cannot be loaded.
    GainError
        The gain is not of the frames' size.
    """
    for_scene, for_hot, for_counts = np.random.SeedSequence([seed, 0]).spawn(3)
    gain = simulate_gain(settings, seed) if gain is None else np.asarray(gain, np.float32)
    scene = Scene(settings, for_scene)
    hot = random_hot_pixels(settings, gain, np.random.default_rng(for_hot))
    frames = count_frames(scene.frames(workers), gain, hot, settings, np.random.default_rng(for_counts))
    rows, columns = np.nonzero(hot > 1.0)
    return SimulatedMovie(frames, gain, movie_truth(scene, seed), settings, np.stack([columns, rows], axis=1))

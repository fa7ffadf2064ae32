"""How the specimen moves: a drift of everything, and a smooth local motion that relaxes with dose.

Tracks are zero in the first frame at every place, so a feature's place in the aligned average is where it
is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.simulation.settings import MovieSimulationSettings

__all__ = ["SpecimenMotion", "random_motion"]

Array = NDArray[Any]

_WAVES = 4


@dataclass(frozen=True)
class _Field:
    """A smooth vector field: a few plane waves for each component, ``(2, waves)`` each."""

    ky: Array
    kx: Array
    phase: Array
    amplitude: Array
    offset: Array  # (2,)

    def at(self, xy: Array) -> Array:
        result = np.empty((len(xy), 2))
        for axis in range(2):
            argument = xy[:, :1] * self.kx[axis] + xy[:, 1:] * self.ky[axis] + self.phase[axis]
            result[:, axis] = np.cos(argument) @ self.amplitude[axis] + self.offset[axis]
        return result


@dataclass(frozen=True)
class SpecimenMotion:
    """Where every point is in every frame.

    Attributes
    ----------
    drift : ``(frames, 2)`` array
        x, y in Å of the whole specimen.
    courses : ``(modes, frames)`` array
        How much of each field's displacement has happened.
    """

    drift: Array
    courses: Array
    fields: tuple[_Field, ...]

    def displacements(self, xy: Array) -> Array:
        """The fields at places in Å, ``(n, 2)`` -> ``(modes, n, 2)``; ``courses`` says how much of each."""
        return np.stack([field.at(xy) for field in self.fields])

    def shift(self, frame: int, displacements: Array) -> Array:
        """Tracks in one frame of points whose `displacements` are known, ``(n, 2)`` Å."""
        result: Array = np.tensordot(self.courses[:, frame], displacements, axes=1) + self.drift[frame]
        return result

    def track(self, xy: Array) -> Array:
        """Tracks in Å: where a point of the aligned average lies in each frame, less where it is there.

        ``(n, 2)`` Å -> ``(frames, n, 2)`` Å.
        """
        known = self.displacements(np.asarray(xy, np.float64))
        return np.stack([self.shift(f, known) for f in range(len(self.drift))])


def random_motion(settings: MovieSimulationSettings, rng: np.random.Generator) -> SpecimenMotion:
    """Draw a drift and two local fields, one fast and one slow, of the asked size."""
    dose = settings.dose_per_frame * (np.arange(settings.frames) + 0.5)
    drift = _drift(settings, dose, rng)
    # two fields with different courses: no place then moves along a straight line
    shares, decays = (1.0, 0.5), (settings.local_decay, 4.0 * settings.local_decay)
    courses = np.stack([s * (1.0 - np.exp(-dose / d)) for s, d in zip(shares, decays, strict=True)])
    fields = [_random_field(settings, rng) for _ in shares]
    fields = [_normalised(field, settings) for field in fields]
    # the size that was asked for is that of both fields together at the end
    grid = _places(settings)
    last = sum(c[-1] * f.at(grid) for c, f in zip(courses, fields, strict=True))
    size = math.sqrt(float((np.asarray(last) ** 2).sum(axis=1).mean()))
    courses *= settings.local_motion / size
    courses -= courses[:, :1]
    return SpecimenMotion(drift - drift[0], courses, tuple(fields))


def _drift(settings: MovieSimulationSettings, dose: Array, rng: np.random.Generator) -> Array:
    fast = 1.0 - np.exp(-dose / settings.drift_decay)
    slow = dose / dose[-1]
    angle = rng.uniform(0.0, 2.0 * math.pi)
    turn = rng.normal(scale=0.5)
    ways = []
    for course, share, direction in ((fast, 0.6, angle), (slow, 0.4, angle + turn)):
        ways.append(share * course[:, None] * np.array([math.cos(direction), math.sin(direction)]))
    way = ways[0] + ways[1]
    length = math.hypot(*(way[-1] - way[0]))
    if length > 0.0:
        way *= settings.drift / length
    steps = rng.normal(scale=settings.jitter, size=way.shape) if settings.jitter > 0.0 else np.zeros_like(way)
    result: Array = way + np.cumsum(steps, axis=0)
    return result


def _random_field(settings: MovieSimulationSettings, rng: np.random.Generator) -> _Field:
    longest = 2.0 * math.pi / settings.local_wavelength
    size = longest * np.sqrt(rng.uniform(0.1, 1.0, (2, _WAVES)))
    direction = rng.uniform(0.0, 2.0 * math.pi, (2, _WAVES))
    return _Field(
        ky=size * np.sin(direction),
        kx=size * np.cos(direction),
        phase=rng.uniform(0.0, 2.0 * math.pi, (2, _WAVES)),
        amplitude=rng.normal(size=(2, _WAVES)),
        offset=np.zeros(2),
    )


def _normalised(field: _Field, settings: MovieSimulationSettings) -> _Field:
    """The field with mean zero and root mean square one over the image: what is left is local."""
    values = field.at(_places(settings))
    mean = values.mean(axis=0)
    size = math.sqrt(float(((values - mean) ** 2).sum(axis=1).mean()))
    return _Field(field.ky, field.kx, field.phase, field.amplitude / size, -mean / size)


def _places(settings: MovieSimulationSettings) -> Array:
    x = np.linspace(0.0, settings.width * settings.pixel_size, 15)
    y = np.linspace(0.0, settings.height * settings.pixel_size, 15)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)

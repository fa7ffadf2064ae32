"""In which order the angles are taken, and what stage and microscope do meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.simulation.tilt_settings import TiltSimulationSettings

__all__ = ["Exposure", "acquisition", "nominal_angles"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Exposure:
    """One tilt as it was taken.

    Attributes
    ----------
    index : int
        Its number in order of acquisition, from 0.
    nominal, angle : float
        What the microscope says and what is true, degrees.
    shift : ``(2,)`` array
        x, y in Å: where the specimen's centre lies, less the image's centre, in the mean of the frames.
    frame_shifts : ``(frames, 2)`` array
        Å, of each frame; their mean is zero.
    defocus : float
        Å, of the specimen's centre.
    dose_before : float
        e/Å².
    black, missing : bool
        Faults: no beam; no file.
    """

    index: int
    nominal: float
    angle: float
    shift: Array
    frame_shifts: Array
    defocus: float
    dose_before: float
    black: bool
    missing: bool


def nominal_angles(settings: TiltSimulationSettings) -> list[float]:
    """Angles in order of acquisition, degrees, without repetitions.

    Dose-symmetric: 0, +, -, -, +, + ... (Hagen, Wan & Briggs 2017), `group` of them for each sign here.
    Bidirectional: from the start up, then from the start down. Unidirectional: from the lowest up.
    """
    step = settings.tilt_increment
    count = int(settings.tilt_range / step + 1e-6)
    up = [step * i for i in range(1, count + 1)]
    if settings.scheme == "bidirectional":
        offsets = [0.0, *up, *(-a for a in up)]
    elif settings.scheme == "unidirectional":
        offsets = [*(-a for a in reversed(up)), 0.0, *up]
    else:
        offsets = [0.0]
        for start in range(0, count, settings.group):
            part = up[start : start + settings.group]
            sign = 1.0 if (start // settings.group) % 2 == 0 else -1.0
            offsets += [sign * a for a in part] + [-sign * a for a in part]
    return [round(settings.start_angle + a, 4) for a in offsets]


def acquisition(settings: TiltSimulationSettings, rng: np.random.Generator) -> list[Exposure]:
    """Draw shifts, defocus and drift of every exposure, in order of acquisition."""
    nominal: list[float] = []
    for i, angle in enumerate(nominal_angles(settings)):
        nominal += [angle] * (2 if i in settings.repeated_tilts else 1)
    walk = np.zeros(2)
    exposures = []
    for i, angle in enumerate(nominal):
        if i > 0:
            walk = walk + rng.normal(size=2) * settings.shift_walk
        shift = walk + rng.normal(size=2) * settings.shift_jitter
        exposures.append(
            Exposure(
                index=i,
                nominal=angle,
                angle=angle + float(rng.normal()) * settings.angle_error,
                shift=shift,
                frame_shifts=_drift(settings, rng),
                defocus=(settings.defocus + float(rng.normal()) * settings.defocus_scatter) * 1e4,
                dose_before=i * settings.dose_per_tilt,
                black=i in settings.black_tilts,
                missing=i in settings.missing_tilts,
            )
        )
    return exposures


def _drift(settings: TiltSimulationSettings, rng: np.random.Generator) -> Array:
    """A way of the asked length in a random direction, fast at first, ``(frames, 2)`` with mean zero."""
    direction = rng.uniform(0.0, 2.0 * math.pi)
    if settings.frames == 1:
        return np.zeros((1, 2))
    course = 1.0 - np.exp(-1.5 * np.arange(settings.frames) / (settings.frames - 1))
    course *= settings.drift / course[-1]
    course -= course.mean()
    result: Array = course[:, None] * np.array([math.cos(direction), math.sin(direction)])
    return result

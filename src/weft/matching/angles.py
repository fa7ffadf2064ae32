"""Orientations to be tried: even over all rotations, at a step in degrees.

The direction of the tomogram's z axis in the template's frame takes the centres of HEALPix pixels (Górski et
al. 2005; rings, any number of pixels along a base pixel's side), and psi turns about it. A pixel has the area
of a square whose side is the step, or less.
"""

from __future__ import annotations

import math

import healpix
import numpy as np
import torch

from weft.errors import SettingsError
from weft.physics.geometry import euler_matrix, rotation_about, rotation_angle
from weft.physics.symmetry import symmetry_operators

__all__ = [
    "angular_distance",
    "angular_step",
    "healpix_side",
    "nearby",
    "rotation_grid",
]

#: No symmetry axis of any group lies here; it decides which of equal directions is taken.
_GENERIC = (0.3416407, 0.1793921, 0.9225524)


def angular_step(diameter: float, resolution: float) -> float:
    """The step that a particle's size and the resolution ask for (Crowther et al. 1970), degrees.

    Δ = resolution / diameter: turning by it moves the particle's edge by half a resolution element.
    """
    return math.degrees(resolution / diameter)


def healpix_side(step: float) -> int:
    """The fewest pixels along a base pixel's side whose area is at most step² (degrees)."""
    pixels = 4.0 * math.pi / math.radians(step) ** 2
    side = max(1, math.ceil(math.sqrt(pixels / 12.0) - 1e-9))
    return side


def rotation_grid(step: float, symmetry: str = "C1") -> torch.Tensor:
    """All orientations at a step.

    Parameters
    ----------
    step : float
        Degrees.
    symmetry : str
        Of the template: orientations that look the same are taken once.

    Returns
    -------
    (n, 3) float64
        rot, tilt, psi, degrees; 12 side² · ⌈360 / step⌉ of them for C1.
    """
    if not 0.1 <= step <= 120.0:
        raise SettingsError(f"an angular step of {step:g}° is not between 0.1° and 120°")
    side = healpix_side(step)
    tilt, rot = (np.degrees(v) for v in healpix.pix2ang(side, np.arange(12 * side * side)))
    rot = np.mod(rot, 360.0)
    group = symmetry_operators(symmetry).numpy()
    if len(group) > 1:
        t, r = np.radians(tilt), np.radians(rot)
        direction = np.stack([np.sin(t) * np.cos(r), np.sin(t) * np.sin(r), np.cos(t)], axis=1)
        # the part of the sphere that is nearer to one point than to those that look the same
        nearness = direction @ group @ np.array(_GENERIC)
        keep = nearness[0] >= nearness.max(0) - 1e-12
        rot, tilt = rot[keep], tilt[keep]
    count = math.ceil(360.0 / step - 1e-9)
    psi = np.arange(count) * (360.0 / count)
    out = np.stack([np.repeat(rot, count), np.repeat(tilt, count), np.tile(psi, len(rot))], axis=1)
    return torch.from_numpy(out)


def nearby(step: float) -> torch.Tensor:
    """The 26 rotations around none, by ±`step` degrees about x, y and z: (26, 3, 3) float64."""
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * math.radians(step)
    vectors = torch.cartesian_prod(steps, steps, steps)
    vectors = vectors[vectors.norm(dim=1) > 0.0]
    return rotation_about(vectors)


def angular_distance(first: torch.Tensor, second: torch.Tensor, symmetry: str = "C1") -> torch.Tensor:
    """By how much two orientations differ, degrees; the least over what looks the same.

    Parameters
    ----------
    first, second : (n, 3)
        rot, tilt, psi, degrees.
    """
    a, b = (euler_matrix(*v.double().unbind(-1)) for v in (first, second))
    return rotation_angle(a[:, None], b[:, None] @ symmetry_operators(symmetry)).min(dim=1).values

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
from weft.physics.geometry import euler_matrix
from weft.physics.symmetry import symmetry_operators

__all__ = [
    "angular_distance",
    "angular_step",
    "euler_angles",
    "healpix_side",
    "nearby",
    "rotation_grid",
    "small_rotations",
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


def euler_angles(matrices: torch.Tensor) -> torch.Tensor:
    """rot, tilt, psi (degrees) of matrices as :func:`~weft.physics.geometry.euler_matrix` makes them.

    (..., 3, 3) → (..., 3), tilt between 0 and 180. At the poles rot is 0.
    """
    m = matrices.double()
    tilt = torch.rad2deg(torch.atan2(torch.hypot(m[..., 2, 0], m[..., 2, 1]), m[..., 2, 2]))
    pole = torch.hypot(m[..., 2, 0], m[..., 2, 1]) < 1e-9
    rot = torch.where(pole, torch.zeros_like(tilt), torch.rad2deg(torch.atan2(m[..., 2, 1], m[..., 2, 0])))
    at_pole = torch.rad2deg(torch.atan2(-m[..., 1, 0] * m[..., 2, 2].sign(), m[..., 1, 1]))
    at_pole = torch.where(m[..., 2, 2] > 0, torch.rad2deg(torch.atan2(m[..., 0, 1], m[..., 1, 1])), at_pole)
    psi = torch.where(pole, at_pole, torch.rad2deg(torch.atan2(m[..., 1, 2], -m[..., 0, 2])))
    return torch.stack([rot, tilt, psi], dim=-1)


def nearby(step: float) -> torch.Tensor:
    """The 26 rotations around none, by ±`step` degrees about x, y and z: (26, 3, 3) float64."""
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * math.radians(step)
    vectors = torch.cartesian_prod(steps, steps, steps)
    vectors = vectors[vectors.norm(dim=1) > 0.0]
    return small_rotations(vectors)


def small_rotations(vectors: torch.Tensor) -> torch.Tensor:
    """Rotations about axes, by as many radians as they are long: (n, 3) → (n, 3, 3) float64."""
    x, y, z = vectors.double().unbind(-1)
    nil = torch.zeros_like(x)
    cross = torch.stack([nil, -z, y, z, nil, -x, -y, x, nil], dim=-1).reshape(-1, 3, 3)
    return torch.as_tensor(torch.linalg.matrix_exp(cross))


def angular_distance(first: torch.Tensor, second: torch.Tensor, symmetry: str = "C1") -> torch.Tensor:
    """By how much two orientations differ, degrees; the least over what looks the same.

    Parameters
    ----------
    first, second : (n, 3)
        rot, tilt, psi, degrees.
    """
    a, b = (euler_matrix(*v.double().unbind(-1)) for v in (first, second))
    turned = b[:, None] @ symmetry_operators(symmetry)
    trace = torch.einsum("nij,nsij->ns", a, turned)
    return torch.rad2deg(torch.acos((0.5 * (trace - 1.0)).clamp(-1.0, 1.0))).min(dim=1).values

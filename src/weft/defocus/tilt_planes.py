"""How defocus varies across the images of a tilt series when its specimen is a plane.

The plane z = 0 of the volume has, in the image of a tilt, the normal n = M(0, b, γ) · Rx(level_x) ·
(0, 0, 1), with b = tilt + level_y and γ = −axis (`physics.geometry`). Its depth changes by
−(n_x, n_y) / n_z along x and y:

    gradient = hand × [ tan b · (cos γ, −sin γ) + tan level_x / cos b · (sin γ, cos γ) ]

the first across the tilt axis, the second along it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry

__all__ = ["across_axis", "depth", "gradients", "level_derivatives"]


@dataclass(frozen=True)
class _Angles:
    """In radians: b and level_x, and the directions across and along the tilt axis, (tilts, 2)."""

    b: NDArray[np.float64]
    level_x: float
    across: NDArray[np.float64]
    along: NDArray[np.float64]

    @classmethod
    def of(cls, geometry: TiltGeometry, level: NDArray[np.float64]) -> _Angles:
        gamma = -np.deg2rad(geometry.axis.expand(len(geometry)).cpu().numpy())
        c, s = np.cos(gamma), np.sin(gamma)
        return cls(
            np.deg2rad(geometry.angles.cpu().numpy() + float(geometry.level_y) + level[1]),
            float(np.deg2rad(float(geometry.level_x) + level[0])),
            np.column_stack([c, -s]),
            np.column_stack([s, c]),
        )


def across_axis(geometry: TiltGeometry) -> NDArray[np.float64]:
    """Direction in each image along which a positive tilt increases defocus with hand +1, (tilts, 2)."""
    return _Angles.of(geometry, np.zeros(2)).across


def gradients(geometry: TiltGeometry, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient of defocus along the image's x and y, (tilts, 2) Å/Å, hand included.

    Parameters
    ----------
    level : (2,) array
        Correction of level_x and level_y, degrees.
    """
    a = _Angles.of(geometry, level)
    return np.asarray(
        geometry.hand
        * (np.tan(a.b)[:, None] * a.across + (np.tan(a.level_x) / np.cos(a.b))[:, None] * a.along)
    )


def level_derivatives(geometry: TiltGeometry, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives of the gradients by level_x and level_y (the last axis), (tilts, 2, 2) 1/degree."""
    a = _Angles.of(geometry, level)
    cos_b = np.cos(a.b)
    by_x = (1.0 / (np.cos(a.level_x) ** 2 * cos_b))[:, None] * a.along
    by_y = (1.0 / cos_b**2)[:, None] * a.across
    by_y = by_y + (np.tan(a.level_x) * np.sin(a.b) / cos_b**2)[:, None] * a.along
    return np.asarray(geometry.hand * np.deg2rad(np.stack([by_x, by_y], axis=-1)))


def depth(
    geometry: TiltGeometry, slopes: NDArray[np.float64], centers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Defocus at places of the images minus that of the volume's centre, (tilts, n) Å.

    Parameters
    ----------
    slopes : (tilts, 2) array
        Gradients along x and y.
    centers : (tilts, n, 2) array
        Å from the centre of the image's first pixel.
    """
    middle = (geometry.shift + 0.5 * geometry.image_size).cpu().numpy()
    return np.asarray(np.einsum("tnc,tc->tn", centers - middle[:, None], slopes))

"""How defocus varies across the images of a tilt series when its specimen is a plane.

A tilt's gradient of defocus follows from the geometry: the specimen's central plane, z = 0 in the volume,
is seen in the image through the first two rows of the tilt's matrix, and its depth is the third.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry, tilt_matrices

__all__ = ["depth", "gradients", "inclined", "level_derivatives"]


def inclined(geometry: TiltGeometry, level: NDArray[np.float64]) -> TiltGeometry:
    """The same geometry with a correction (degrees) added to level_x and level_y."""
    return replace(
        geometry,
        level_x=geometry.level_x + float(level[0]),
        level_y=geometry.level_y + float(level[1]),
    )


def _slopes(geometry: TiltGeometry, level: torch.Tensor) -> torch.Tensor:
    matrices = tilt_matrices(
        geometry.angles, geometry.axis, geometry.level_x + level[0], geometry.level_y + level[1]
    )
    # depth = row · p and place = (two rows) · p for p in the plane z = 0
    return geometry.hand * torch.linalg.solve(matrices[:, :2, :2].mT, matrices[:, 2, :2, None])[..., 0]


def gradients(geometry: TiltGeometry, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient of defocus along the image's x and y, (tilts, 2) Å/Å, hand included.

    Parameters
    ----------
    level : (2,) array
        Correction of level_x and level_y, degrees.
    """
    return np.asarray(_slopes(geometry, torch.as_tensor(level, dtype=torch.float64)).numpy())


def level_derivatives(geometry: TiltGeometry, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives of the gradients by level_x and level_y, (tilts, 2, 2) 1/degree."""
    at = torch.as_tensor(level, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda x: _slopes(geometry, x))(at)
    return np.asarray(jacobian.numpy())


def depth(
    geometry: TiltGeometry, slopes: NDArray[np.float64], centers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Defocus at places of the images minus that of the volume's centre, (tilts, n) Å.

    Parameters
    ----------
    slopes : (tilts, ...) array
        Gradients; the last axis is x, y.
    centers : (tilts, n, 2) array
        Å from the centre of the image's first pixel.
    """
    middle = (geometry.shift + 0.5 * geometry.image_size).numpy()
    return np.asarray(np.einsum("tnc,tc->tn", centers - middle[:, None], slopes))

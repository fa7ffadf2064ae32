"""Where particles lie in their tomogram, and how they are turned in it, by their tilt images.

An image is turned by T_t · M, where M takes the map's coordinates to the tomogram's and T_t those to tilt t's
image, and it lies at the first two rows of T_t · (p − volume centre) + shift + image centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry

__all__ = ["SpecimenPose", "place_of", "pose_of", "untilted"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SpecimenPose:
    """The orientation of one particle in its tomogram.

    Attributes
    ----------
    matrix : (3, 3) float64
        From map to tomogram coordinates.
    tilt : (n) int64
        Of which tilt of the series each image is.
    mismatch : float
        Degrees: how far the images' orientations are from what the series makes of this one, in the mean.
    """

    matrix: Array
    tilt: NDArray[np.int64]
    mismatch: float


def untilted(cos_tilt: Array, dose: Array) -> int:
    """Which of a particle's images is of the smallest tilt; of several, the one with the least dose."""
    return int(np.lexsort((dose, -np.round(cos_tilt, 6)))[0])


def pose_of(rotation: Array, cos_tilt: Array, geometry: TiltGeometry) -> SpecimenPose:
    """The orientation that explains those of all images, and which tilts these are.

    The image of the smallest tilt is taken for each of the series' tilts in turn; the one counts with which
    the other images are nearest to tilts of the series, and have their tilt angles.

    Parameters
    ----------
    rotation : (n, 3, 3)
        From map to image coordinates.
    cos_tilt : (n)
        The tilts' cosines; all 1 where they are not known.
    geometry : TiltGeometry

    Returns
    -------
    SpecimenPose
    """
    turns = np.asarray(geometry.matrices.numpy(), np.float64)
    first = rotation[int(np.argmax(cos_tilt))]
    candidates = turns.transpose(0, 2, 1) @ first
    # (candidate, tilt, image): cosine of the angle between what is expected and what is
    expected = turns[None] @ candidates[:, None]
    trace = np.einsum("ctij,nij->ctn", expected, rotation)
    apart = np.degrees(np.arccos(np.clip(0.5 * (trace - 1.0), -1.0, 1.0)))
    tilt = apart.argmin(axis=1)
    away = np.take_along_axis(apart, tilt[:, None], axis=1)[:, 0].mean(axis=1)
    cost = away.copy()
    if len(cos_tilt) == 1 or (cos_tilt != 1.0).any():
        # series of equal steps look alike when they are shifted: the tilts themselves tell
        angle = np.degrees(np.arccos(np.clip(turns[:, 2, 2], -1.0, 1.0)))
        known = np.degrees(np.arccos(np.clip(cos_tilt, -1.0, 1.0)))
        cost += np.abs(angle[tilt] - known).mean(axis=1)
    best = int(cost.argmin())
    chosen = tilt[best].astype(np.int64)
    # every image says what the orientation is: the rotation nearest to their mean (Moakher 2002, SIMAX 24:1)
    u, _, v = np.linalg.svd(np.einsum("nji,njk->ik", turns[chosen], rotation))
    matrix = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
    return SpecimenPose(np.asarray(matrix), chosen, float(away[best]))


def place_of(xy: Array, tilt: NDArray[np.int64], geometry: TiltGeometry) -> tuple[Array, float]:
    """The place in the tomogram that explains those in the images best.

    Parameters
    ----------
    xy : (n, 2)
        Å from the centre of the image's first pixel.
    tilt : (n) int64
        Of the series.
    geometry : TiltGeometry

    Returns
    -------
    place : (3,)
        Å from the centre of the tomogram's first voxel.
    residual : float
        Å, root mean square over the images.

    Raises
    ------
    ValueError
        A single tilt says nothing of the depth.
    """
    rows = np.asarray(geometry.matrices.numpy(), np.float64)[tilt, :2].reshape(-1, 3)
    centre = geometry.shift.numpy()[tilt] + 0.5 * geometry.image_size.numpy()
    wanted = (xy - centre).reshape(-1)
    found, _, rank, _ = np.linalg.lstsq(rows, wanted, rcond=1e-6)
    if rank < 3:
        raise ValueError("images of a single tilt do not say how deep a particle lies")
    residual = float(np.sqrt(2.0 * np.mean(np.square(rows @ found - wanted))))
    return np.asarray(found + 0.5 * geometry.volume_size.numpy()), residual

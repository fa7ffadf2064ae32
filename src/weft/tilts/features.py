"""Places in the specimen that are worth following: where a coarse reconstruction has most structure."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import torch

from weft.physics.geometry import TiltGeometry
from weft.tilts.backprojection import OVERSAMPLING, backproject, filtered_images

__all__ = ["coarse_volume", "find_places"]

EDGE = 0.04  # of the field: nothing is looked for closer to the volume's sides
CELLS = 8  # along each side: the best place of each is taken before any second one


def coarse_volume(
    images: torch.Tensor,
    pixel_size: tuple[float, float],
    geometry: TiltGeometry,
    voxel: float,
    band: float,
) -> torch.Tensor:
    """Weighted back-projection of small images, density positive.

    Parameters
    ----------
    images : (tilts, y, x) float32
        Density dark, mean 0.
    pixel_size : (float, float)
        x, y, Å.
    geometry : TiltGeometry
        Its volume size decides on that of the volume.
    voxel : float
        Å.
    band : float
        Highest frequency, 1/Å.

    Returns
    -------
    (z, y, x) float32
        Voxel i lies at i · `voxel`, as in :class:`~weft.physics.geometry.TiltGeometry`.
    """
    shape = [max(8, 2 * round(0.5 * float(n) / voxel)) for n in geometry.volume_size.flip(0)]
    p = torch.tensor(pixel_size, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    matrices = geometry.matrices
    make = filtered_images(images, pixel_size, matrices, eye, shape[0] * voxel, band)
    linear = OVERSAMPLING * matrices[:, :2] / p[:, None]
    step = (linear * voxel).transpose(1, 2)
    first = (geometry.shift + 0.5 * geometry.image_size) * OVERSAMPLING / p
    first = first - linear @ (0.5 * geometry.volume_size)
    out = torch.zeros(shape, device=images.device)
    for t in range(len(images)):
        for image in make(t):
            backproject(out, image[None], first[t : t + 1], step[t : t + 1])
    return out.neg_()


def find_places(
    volume: torch.Tensor, voxel: float, radius: float, distance: float, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Local maxima of the density's strength, spread over the field.

    The strength is the root mean square of the density (without its slow changes) in a Gaussian
    neighbourhood, which is as high for a particle as for a piece of membrane or a gold bead; it is capped,
    so that beads do not outshine the rest.

    Parameters
    ----------
    volume : (z, y, x) float32
        From :func:`coarse_volume`.
    voxel : float
        Å.
    radius : float
        Standard deviation of the neighbourhood, Å.
    distance : float
        Least distance of two places, Å.
    most : int
        How many at most.

    Returns
    -------
    xyz : (n, 3) float64
        Å from the centre of the volume's first voxel, best first.
    strength : (n,) float64
        In standard deviations above the median of the volume.
    """
    density = volume.cpu().numpy()
    density = density - scipy.ndimage.gaussian_filter(density, 2.5 * radius / voxel)
    spread = 1.4826 * np.median(np.abs(density - np.median(density))) + 1e-20
    density = np.clip(density / spread, -8.0, 8.0)
    strength = scipy.ndimage.gaussian_filter(np.clip(density, 0.0, None) ** 2, radius / voxel)
    middle = np.median(strength)
    scale = 1.4826 * np.median(np.abs(strength - middle)) + 1e-20
    size = 2 * max(1, math.floor(distance / voxel / math.sqrt(3.0))) + 1
    peak = (strength == scipy.ndimage.maximum_filter(strength, size)) & (strength > middle + 2.0 * scale)
    edge = max(2, round(EDGE * max(volume.shape[1:])))
    peak[:2], peak[-2:] = False, False
    peak[:, :edge], peak[:, -edge:], peak[:, :, :edge], peak[:, :, -edge:] = False, False, False, False
    at = np.argwhere(peak)
    value = strength[tuple(at.T)]
    order = np.argsort(-value, kind="stable")
    at, value = at[order], value[order]
    kept: list[int] = []
    for i in range(len(at)):
        if all(np.linalg.norm(at[i] - at[j]) * voxel >= distance for j in kept):
            kept.append(i)
        if len(kept) >= 3 * most:
            break
    at, value = at[kept], value[kept]
    chosen = _spread_out(at, volume.shape, most)
    xyz = np.stack([_vertex(strength, p) for p in at[chosen]]) if len(chosen) else np.zeros((0, 3))
    return (
        torch.from_numpy(xyz[:, ::-1].copy() * voxel),
        torch.from_numpy((value[chosen] - middle) / scale).double(),
    )


def _spread_out(at: np.ndarray, shape: tuple[int, ...], most: int) -> list[int]:
    """The best of every cell of the field first, then the best of all; indices in order of strength."""
    first: dict[tuple[int, int], int] = {}
    for i, (_, y, x) in enumerate(at.tolist()):
        first.setdefault((y * CELLS // shape[1], x * CELLS // shape[2]), i)
    chosen = sorted(first.values())[:most]
    taken = set(chosen)
    chosen += [i for i in range(len(at)) if i not in taken][: most - len(chosen)]
    return sorted(chosen)


def _vertex(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """z, y, x of a maximum, to a part of a voxel."""
    out = at.astype(float)
    for axis in range(3):
        step = np.zeros(3, int)
        step[axis] = 1
        low, mid, high = (values[tuple(at + s * step)] for s in (-1, 0, 1))
        curvature = low - 2 * mid + high
        if curvature < 0:
            out[axis] += np.clip(0.5 * (low - high) / curvature, -0.5, 0.5)
    return out

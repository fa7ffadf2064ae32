"""How volumes differ: a mask of what they show, and the principal components of their voxels under it.

Penczek, Kimmel & Spahn 2011 (Structure 19, 1582) call these eigenvolumes. With n volumes of v voxels the
n × n matrix of their products is diagonalised (the method of snapshots, Sirovich 1987), so that v may be
large.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from weft.errors import FitError, ItemError
from weft.matching.density import find_particle

__all__ = ["VolumeComponents", "density_mask", "masked_voxels", "volume_components"]

Array = NDArray[np.float64]
Volume = NDArray[np.float32]

#: Voxels whose variance is above this part of the largest belong to the mask.
_VARIES = 0.1
#: Voxels with a smaller weight than this are left out of the analysis.
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class VolumeComponents:
    """Eigenvolumes.

    Attributes
    ----------
    mean : (v,) float64
        Of the weighted voxels.
    axes : (k, v) float64
        Unit vectors over the weighted voxels.
    variance, explained : (k,) float64
    scores : (n, k) float64
        Of every volume.
    """

    mean: Array
    axes: Array
    variance: Array
    explained: Array
    scores: Array


def density_mask(volumes: Iterable[Volume], extend: float = 3.0, soft: float = 3.0) -> Volume:
    """Where any of the volumes has density or where they differ, extended, with a soft edge.

    Parameters
    ----------
    volumes : iterable of (z, y, x) float32
        All of one shape; gone through once.
    extend, soft : float
        Voxels.

    Returns
    -------
    (z, y, x) float32
        Between 0 and 1.

    Raises
    ------
    ItemError
        There is nothing in them.
    """
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for volume in volumes:
        total, squares, count = total + volume, squares + np.square(volume, dtype=np.float64), count + 1
    if count == 0:
        raise ItemError("there are no volumes to make a mask from")
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    inside = find_particle(torch.from_numpy(mean.astype(np.float32)), largest=None).density.numpy() > 0
    smooth = ndimage.gaussian_filter(variance, 1.0)
    # rounding errors are no difference
    if count > 1 and smooth.max() > 1e-10 * float(np.square(mean).max()):
        inside |= smooth > _VARIES * smooth.max()
    distance = ndimage.distance_transform_edt(~inside)
    fade = np.clip((distance - extend) / max(soft, 1e-3), 0.0, 1.0)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * fade), dtype=np.float32)


def masked_voxels(volume: Volume, mask: Volume, *, normalise: bool = True) -> NDArray[np.float32]:
    """The voxels of a volume that a mask lets through, times its weight.

    Parameters
    ----------
    volume, mask : (z, y, x) float32
    normalise : bool
        Subtract the mean and divide by the standard deviation under the mask first: differences of brightness
        and contrast are no differences of structure.

    Raises
    ------
    ItemError
        The mask has another shape, or the volume is the same everywhere under it.
    """
    if volume.shape != mask.shape:
        sizes = [" × ".join(map(str, shape)) for shape in (volume.shape, mask.shape)]
        raise ItemError(f"a volume has {sizes[0]} voxels and the mask {sizes[1]}: they must be the same")
    inside = mask > _LEAST_WEIGHT
    weight = mask[inside].astype(np.float64)
    values = volume[inside].astype(np.float64)
    if not np.isfinite(values).all():
        raise ItemError("a volume holds numbers that are not finite")
    if normalise:
        mean = float(weight @ values / weight.sum())
        spread = float(np.sqrt(weight @ (values - mean) ** 2 / weight.sum()))
        if spread == 0.0:
            raise ItemError("a volume is the same everywhere under the mask")
        values = (values - mean) / spread
    return np.asarray(values * weight, dtype=np.float32)


def volume_components(voxels: NDArray[np.float32], count: int) -> VolumeComponents:
    """Principal components of volumes.

    Parameters
    ----------
    voxels : (n, v) float32
        Rows from :func:`masked_voxels`.
    count : int
        Largest number of components; there are at most n − 1.

    Raises
    ------
    FitError
        Fewer than two volumes, or all of them the same.
    """
    n = len(voxels)
    if n < 2:
        raise FitError(f"components need at least two volumes, not {n}")
    mean = voxels.mean(0, dtype=np.float64)
    products = np.zeros((n, n))
    step = max(1, (1 << 22) // n)
    for start in range(0, voxels.shape[1], step):
        part = voxels[:, start : start + step] - mean[start : start + step]
        products += part @ part.T
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1], vectors[:, ::-1]
    total = float(np.maximum(values, 0.0).sum())
    # single precision leaves differences of 4e-15 of the power between volumes that are the same
    least = max(1e-9 * total, 1e-12 * float(np.einsum("ij,ij->", voxels, voxels, dtype=np.float64)))
    kept = min(count, n - 1, int((values > least).sum()))
    if kept == 0:
        raise FitError("the volumes are all the same: there is nothing to tell apart")
    values, vectors = values[:kept], vectors[:, :kept]
    axes = np.empty((kept, voxels.shape[1]))
    for start in range(0, voxels.shape[1], step):
        part = voxels[:, start : start + step] - mean[start : start + step]
        axes[:, start : start + step] = (vectors.T @ part) / np.sqrt(values)[:, None]
    scores = vectors * np.sqrt(values)
    # the side with the longer tail is positive, so that repeating gives the same signs
    sign = np.where((scores**3).sum(0) < 0.0, -1.0, 1.0)
    return VolumeComponents(mean, axes * sign[:, None], values / (n - 1), values / total, scores * sign)

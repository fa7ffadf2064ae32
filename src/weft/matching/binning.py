"""Searching at larger voxels: fewer places and orientations, before the best are refined at full resolution.

Binning averages cubes of voxels. What that does to the tomogram's spectrum is done to the templates too: a
product of sinc functions, then every so many voxels are kept.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.matching.plan import Template

__all__ = ["binned_template", "binned_tomogram"]


def binned_tomogram(
    tomogram: NDArray[np.floating], factor: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Averages of cubes of `factor`³ voxels; what does not fill a cube at the far faces is left out.

    Voxel i of the result has its centre at voxel factor · i + (factor − 1) / 2.
    """
    shape = tuple(n // factor for n in tomogram.shape)
    if min(shape) < 1:
        raise ItemError(f"a tomogram of {tomogram.shape} voxels cannot be binned {factor} times")
    found = np.empty(shape, dtype=np.float32) if out is None else out
    ny, nx = shape[1] * factor, shape[2] * factor
    for z in range(shape[0]):
        slab = np.asarray(tomogram[z * factor : (z + 1) * factor, :ny, :nx], dtype=np.float32)
        found[z] = slab.reshape(factor, shape[1], factor, shape[2], factor).mean(axis=(0, 2, 4))
    return found


def binned_template(template: Template, factor: int) -> Template:
    """The same structure as a binned tomogram shows it, centred on the voxel n//2 of the smaller box.

    The box keeps at least its length and becomes even.
    """
    size = len(template.volume)
    small = max(4, 2 * math.ceil(size / factor / 2))
    volume = _shrunk(_padded(template.volume, small * factor), factor, smooth=True)
    mask = _shrunk(_padded(template.mask, small * factor), factor, smooth=False).clamp(0.0, 1.0)
    mask[mask < 0.02] = 0.0  # ripples of the edge
    return Template(volume, mask, template.diameter, template.symmetry)


def _padded(volume: torch.Tensor, size: int) -> torch.Tensor:
    """With its centre n//2 at size//2; what surrounds it is the mean of its faces."""
    n = len(volume)
    if n == size:
        return volume
    edge = torch.ones_like(volume, dtype=torch.bool)
    edge[1:-1, 1:-1, 1:-1] = False
    out = torch.full((size, size, size), float(volume[edge].mean()))
    start = size // 2 - n // 2
    part = slice(start, start + n)
    out[part, part, part] = volume
    return out


def _shrunk(volume: torch.Tensor, factor: int, *, smooth: bool) -> torch.Tensor:
    """By cropping its transform to 1 / factor, damped as averaging does if `smooth`."""
    n = len(volume)
    small = n // factor
    spectrum = scipy.fft.rfftn(volume.double().numpy())
    keep = np.r_[0 : small // 2, n - small // 2 : n]
    cut = spectrum[np.ix_(keep, keep, np.arange(small // 2 + 1))]
    k = np.fft.fftfreq(small).astype(np.float64)
    half = np.fft.rfftfreq(small).astype(np.float64)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + half**2)
    if smooth:
        along, last = _response(k, factor), _response(half, factor)
        cut = cut * (along[:, None, None] * along[:, None] * last)
    cut = cut * (radius <= 0.5)
    found = scipy.fft.irfftn(cut, s=(small, small, small)) / factor**3
    return torch.from_numpy(found.astype(np.float32))


def _response(k: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Of averaging `factor` samples, at frequencies per binned voxel."""
    return np.asarray(np.sinc(k) / np.sinc(k / factor))

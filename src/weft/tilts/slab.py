"""The slab that the specimen is, in a coarse reconstruction: its inclination, where it begins and ends."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import scipy.optimize
import torch
from numpy.typing import NDArray

from weft.tilts.alignment import Levelling
from weft.tilts.levelling import inclination_of

__all__ = ["level_from_volume"]

Array = NDArray[np.float64]

COLUMNS = 24  # along each side: the field is divided into so many columns
STEEPEST = 24.0  # degrees
MARGIN = 0.06  # of the field: left out at the sides, where few images overlap
WEDGE = 2.5  # degrees: the missing wedge draws structure out and inclines it; 2.4 and 2.6 were measured
HALF_HEIGHT = 0.5  # the slab ends where its structure has fallen to this share


def level_from_volume(volume: torch.Tensor, voxel: float, centre: tuple[float, float, float]) -> Levelling:
    """The inclination at which the structure in a volume is most concentrated along z.

    Parameters
    ----------
    volume : (z, y, x) float32
        A coarse reconstruction before levelling (:func:`~weft.tilts.features.coarse_volume`), higher than the
        specimen by what its inclination needs.
    voxel : float
        Å.
    centre : (float, float, float)
        x, y, z, Å from the centre of the first voxel: the origin of the bundle adjustment's frame.

    Returns
    -------
    Levelling
        Its error is half of the disagreement of the two halves of the columns (every second one, like a
        chessboard) and what the missing wedge does to both alike. Where structure is not
        concentrated, `how` says "not levelled".
    """
    density = volume.detach().cpu().double().numpy()
    margin = max(2, round(MARGIN * max(density.shape[1:])))
    density = density - scipy.ndimage.gaussian_filter(density, 150.0 / voxel)
    strength = np.minimum(density**2, 25.0 * np.median(density**2))[:, margin:-margin, margin:-margin]
    nz, ny, nx = strength.shape
    step = max(1, round(max(ny, nx) / COLUMNS))
    rows, columns = ny // step, nx // step
    blocks = strength[:, : rows * step, : columns * step].reshape(nz, rows, step, columns, step).mean((2, 4))
    y = (margin + (np.arange(rows) + 0.5) * step - 0.5) * voxel - centre[1]
    x = (margin + (np.arange(columns) + 0.5) * step - 0.5) * voxel - centre[0]
    profiles = scipy.ndimage.gaussian_filter1d(blocks, 40.0 / voxel, axis=0).reshape(nz, -1)
    places = np.stack([np.tile(x, rows), np.repeat(y, columns)], 1)
    board = np.add.outer(np.arange(rows), np.arange(columns)).ravel() % 2

    whole = _steepness(profiles, places, voxel)
    if whole is None:
        return Levelling(how="not levelled: the reconstruction shows no slab")
    slope, profile = whole
    halves = [_steepness(profiles[:, board == side], places[board == side], voxel) for side in (0, 1)]
    level = inclination_of(*slope)
    error = math.nan
    if all(half is not None for half in halves):
        a, b = (np.array(inclination_of(*half[0])) for half in halves if half is not None)
        error = math.hypot(float(np.abs(a - b).max()) / 2.0, WEDGE)
    low, high = _ends(profile)
    middle = 0.5 * (low + high) * voxel - centre[2]
    return Levelling(
        level[0],
        level[1],
        (0.0, 0.0, middle),
        (high - low) * voxel,
        error,
        "the slab in a coarse reconstruction",
    )


def _sheared(profiles: Array, places: Array, slope: Array, voxel: float) -> Array:
    """Mean of all columns, each moved along z by what the slope says; (z,)."""
    nz = len(profiles)
    moves = (places @ slope) / voxel
    z = np.arange(nz)[:, None] + moves
    i = np.clip(np.floor(z).astype(int), 0, nz - 2)
    part = np.clip(z - i, 0.0, 1.0)
    column = np.arange(profiles.shape[1])
    return np.asarray(((1 - part) * profiles[i, column] + part * profiles[i + 1, column]).mean(1))


def _steepness(profiles: Array, places: Array, voxel: float) -> tuple[Array, Array] | None:
    """The slope (x, y) whose mean profile varies most along z, and that profile."""

    def cost(p: Array) -> float:
        if np.hypot(*p) > math.tan(math.radians(STEEPEST)):
            return 0.0
        return -float(_sheared(profiles, places, p, voxel).var())

    grid = np.tan(np.deg2rad(np.arange(-20.0, 20.1, 4.0)))
    values = {(a, b): cost(np.array([a, b])) for a in grid for b in grid}
    start = min(values, key=lambda k: values[k])
    if values[start] > 1.05 * float(np.median(list(values.values()))):
        return None
    simplex = np.array(start) + np.array([[0, 0], [0.05, 0], [0, 0.05]])
    found = scipy.optimize.minimize(cost, start, method="Nelder-Mead", options={"initial_simplex": simplex}).x
    return found, _sheared(profiles, places, found, voxel)


def _ends(profile: Array) -> tuple[float, float]:
    """First and last place (voxels) at which the profile passes half of its height."""
    base, top = np.percentile(profile, 10), np.percentile(profile, 95)
    above = np.flatnonzero(profile > base + HALF_HEIGHT * (top - base))
    return float(above[0]), float(above[-1])

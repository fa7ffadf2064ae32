"""Which points of a plane lie in a polygon that somebody has drawn around them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["inside_lasso"]

#: Points are told from the line by this part of the drawing's size.
_ON_LINE = 1e-12


def inside_lasso(points: ArrayLike, corners: ArrayLike) -> NDArray[np.bool_]:
    """Whether points lie in a polygon, or on its line.

    A point is inside where the line winds around it (its winding number is not 0; Hormann & Agathos 2001,
    Computational Geometry 20:131), so that a hand-drawn line that crosses itself holds all it goes round.

    Parameters
    ----------
    points : (n, 2)
        A point with a coordinate that is no number is outside.
    corners : (k, 2)
        In their order; the last is joined to the first.

    Returns
    -------
    (n,) bool

    Raises
    ------
    ValueError
        Fewer than three different corners, or corners that all lie on one line or are no numbers.
    """
    p = np.asarray(points, np.float64).reshape(-1, 2)
    c = np.asarray(corners, np.float64).reshape(-1, 2)
    if not np.isfinite(c).all():
        raise ValueError("a corner is no place: its coordinates are no finite numbers")
    different = np.unique(c, axis=0)
    if len(different) < 3:
        raise ValueError(f"it has {len(different)} different corners; at least 3 are needed")
    size = float(np.ptp(c, axis=0).max())
    spread = different - different.mean(axis=0)
    if np.linalg.svd(spread, compute_uv=False)[1] <= _ON_LINE * size:
        raise ValueError("its corners lie on one line, with nothing inside")
    winding = np.zeros(len(p), np.int64)
    on_line = np.zeros(len(p), np.bool_)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(p).all(axis=1))
    x, y = np.where(known[:, None], p, 0.0).T
    for a, b in zip(c, np.roll(c, -1, axis=0), strict=True):
        along = b - a
        # twice the area of the triangle: positive where the point is left of the side
        left = along[0] * (y - a[1]) - along[1] * (x - a[0])
        winding += (a[1] <= y) & (y < b[1]) & (left > 0)
        winding -= (b[1] <= y) & (y < a[1]) & (left < 0)
        part = along[0] * (x - a[0]) + along[1] * (y - a[1])
        length = float(along @ along)
        between = (part >= 0.0) & (part <= length)
        on_line |= between & (np.abs(left) <= _ON_LINE * size * np.sqrt(length))
    return np.asarray(known & ((winding != 0) | on_line))

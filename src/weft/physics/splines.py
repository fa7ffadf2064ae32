"""Spline interpolation on coarse grids (Tegunov & Cramer 2019, "Spline interpolation on ... grids").

A quantity that varies slowly over the field of view or over time is described by its values at a few
evenly spaced control points that span the whole axis, first and last point on the two ends. Between
them it follows the natural cubic spline through these values: the cubic B-spline curve that Warp uses.
Interpolation is linear in the control values, so each axis is one small matrix and everything else is
a product of matrices; derivatives with respect to control values are the transposed products.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

__all__ = ["evaluate_grid", "spline_matrix", "spline_penalty"]


@lru_cache(maxsize=64)
def _basis(n: int) -> CubicSpline:
    return CubicSpline(np.linspace(0.0, 1.0, n), np.eye(n), bc_type="natural")


def spline_matrix(n: int, positions: NDArray[np.floating] | torch.Tensor) -> NDArray[np.float64]:
    """Weights of `n` control points at given places on one axis.

    Parameters
    ----------
    n : int
        Control points; 1 is a constant, 2 a straight line.
    positions : (m,) array
        Fractions of the axis, 0 at its first control point and 1 at its last; values outside are
        continued linearly.

    Returns
    -------
    (m, n) float64 array
        Rows sum to 1.
    """
    u = np.asarray(positions, dtype=np.float64).reshape(-1)
    if n == 1:
        return np.ones((u.size, 1))
    if n == 2:
        return np.stack([1.0 - u, u], axis=1)
    basis = _basis(n)
    inside = np.clip(u, 0.0, 1.0)
    slopes = np.asarray(basis(inside, 1))
    out: NDArray[np.float64] = np.asarray(basis(inside)) + (u - inside)[:, None] * slopes
    return out


def spline_penalty(n: int, order: int = 2) -> NDArray[np.float64]:
    """Quadratic form Σ (differences of the given order)² between neighbouring control points, (n, n)."""
    if n <= order:
        return np.zeros((n, n))
    d = np.diff(np.eye(n), n=order, axis=0)
    return np.asarray(d.T @ d, dtype=np.float64)


def evaluate_grid(grid: NDArray[np.floating], *positions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Values of a grid at scattered places.

    Parameters
    ----------
    grid : (..., n_1, ..., n_d) array
        Control values; the last d axes are the gridded ones.
    *positions : d arrays (m,)
        Fraction of each gridded axis, in the grid's axis order.

    Returns
    -------
    (..., m) float64 array
    """
    d = len(positions)
    out = np.asarray(grid, dtype=np.float64)
    lead = out.shape[: out.ndim - d]
    out = out.reshape(-1, *out.shape[out.ndim - d :])
    letters = "ijkl"[:d]
    mats = [spline_matrix(n, p) for n, p in zip(out.shape[1:], positions)]
    expression = ",".join(["a" + letters] + ["m" + c for c in letters]) + "->am"
    return np.asarray(np.einsum(expression, out, *mats, optimize=True)).reshape(*lead, -1)

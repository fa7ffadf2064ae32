"""Principal components of latent coordinates, and points along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["PrincipalComponents", "along_component", "principal_components"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions in which points vary most.

    Attributes
    ----------
    mean : (d,)
    axes : (k, d)
        Unit vectors; the largest coefficient of each is positive, so that repeating gives the same signs.
    variance : (k,)
        Of the points along each, falling.
    explained : (k,)
        As a part of all variance.
    """

    mean: Array
    axes: Array
    variance: Array
    explained: Array

    def scores(self, points: Array) -> Array:
        """Coordinates (n, k) of points (n, d)."""
        return np.asarray((points - self.mean) @ self.axes.T)

    def points(self, scores: Array) -> Array:
        """Points (n, d) from coordinates (n, k)."""
        return np.asarray(self.mean + scores @ self.axes)


def principal_components(points: Array, count: int | None = None) -> PrincipalComponents:
    """Principal components.

    Parameters
    ----------
    points : (n, d)
    count : int, optional
        So many of the first; all d by default.
    """
    points = np.asarray(points, np.float64)
    mean = points.mean(0)
    centred = points - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(points) - 1, 1))
    values, axes = np.maximum(values[::-1], 0.0), vectors.T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    axes = axes * np.where(largest < 0.0, -1.0, 1.0)
    total = float(values.sum())
    explained = values / total if total > 0.0 else np.zeros_like(values)
    return PrincipalComponents(mean, axes[:count], values[:count], explained[:count])


def along_component(
    components: PrincipalComponents,
    points: Array,
    which: int,
    percentiles: Sequence[float],
    *,
    on_data: bool = False,
) -> Array:
    """Points along one component, at percentiles of where the data lie on it.

    Parameters
    ----------
    components : PrincipalComponents
    points : (n, d)
        The data.
    which : int
        From 0.
    percentiles : sequence of float
        0 ... 100.
    on_data : bool
        The data's own points that are nearest to those on the line through the mean: a landscape that is bent
        leaves the line, and a network has learnt nothing of where no particles are.

    Returns
    -------
    (len(percentiles), d)
    """
    place = components.scores(points)[:, which]
    line = components.mean + np.percentile(place, percentiles)[:, None] * components.axes[which]
    if on_data:
        line = points[cKDTree(points).query(line)[1]]
    return np.asarray(line, np.float64)

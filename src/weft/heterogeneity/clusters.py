"""Clusters of particles in latent space: k-means, representatives, agreement of two partitions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from weft.errors import FitError

__all__ = ["Clusters", "adjusted_rand_index", "by_size", "k_means", "representatives"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

#: Starts of k-means, rounds in each, and how often the best goes on for as many, until nothing changes.
_STARTS = 20
_ROUNDS = 8
_TURNS = 20
#: A start is judged on so many particles; the best one goes on with all.
_ENOUGH = 5000


@dataclass(frozen=True)
class Clusters:
    """A partition of particles.

    Attributes
    ----------
    label : (n,) int64
        0 ... k − 1.
    centre : (k, d)
        Mean of each.
    spread : float
        Sum of squared distances from the centres.
    """

    label: Labels
    centre: Array
    spread: float

    @property
    def count(self) -> int:
        """k."""
        return len(self.centre)

    @property
    def size(self) -> Labels:
        """(k,) Particles in each."""
        return np.bincount(self.label, minlength=self.count)


def k_means(points: Array, count: int, *, seed: int = 0, start: Array | None = None) -> Clusters:
    """The partition in `count` clusters with the smallest squared distances from their centres.

    Lloyd's rounds from the starts of Arthur & Vassilvitskii 2007 (k-means++), the best of twenty.

    Parameters
    ----------
    points : (n, d)
    count : int
    seed : int
    start : (count, d), optional
        Centres to start from, instead.

    Raises
    ------
    FitError
        There are fewer different points than clusters.
    """
    n = len(points)
    points = np.asarray(points, np.float64)
    if count == 1:
        return _partition(points, np.zeros(n, np.int64), 1)
    if count > n:
        raise FitError(f"{n} particles cannot be put into {count} clusters: ask for fewer")
    random = np.random.default_rng(seed)
    if start is None:
        some = points if n <= _ENOUGH else points[random.choice(n, _ENOUGH, replace=False)]
        tries = [_rounds(some, count, random) for _ in range(_STARTS)]
        whole = [one for one in tries if one is not None]
        if not whole:
            raise FitError(f"the particles do not fall into {count} clusters: many lie at the same place")
        start = min(whole, key=lambda one: one.spread).centre
    found = _partition(points, _nearest(points, start), count)
    last: Labels | None = None
    for _ in range(_TURNS):
        if found.count < count or (last is not None and np.array_equal(last, found.label)):
            break
        last = found.label
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            label = kmeans2(points, found.centre, iter=_ROUNDS, minit="matrix")[1].astype(np.int64)
        found = _partition(points, label, count)
    return found


def _nearest(points: Array, centre: Array) -> Labels:
    return np.asarray(cKDTree(centre).query(points)[1], np.int64)


def _rounds(points: Array, count: int, random: np.random.Generator) -> Clusters | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster is another start's chance
        label = kmeans2(points, count, iter=_ROUNDS, minit="++", seed=random)[1].astype(np.int64)
    return _partition(points, label, count) if len(np.unique(label)) == count else None


def _partition(points: Array, label: Labels, count: int) -> Clusters:
    size = np.maximum(np.bincount(label, minlength=count), 1)
    centre = np.stack([np.bincount(label, column, count) / size for column in points.T], axis=1)
    return Clusters(label, centre, float(((points - centre[label]) ** 2).sum()))


def by_size(clusters: Clusters) -> Clusters:
    """The same with the largest cluster first."""
    order = np.argsort(-clusters.size, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Clusters(place[clusters.label], clusters.centre[order], clusters.spread)


def representatives(points: Array, clusters: Clusters) -> Labels:
    """The particle nearest to each centre, among the cluster's own.

    Parameters
    ----------
    points : (n, d)
    clusters : Clusters
        None of them empty.

    Returns
    -------
    (k,) int64
        Indices of particles.
    """
    out = np.empty(clusters.count, np.int64)
    for one in range(clusters.count):
        own = np.flatnonzero(clusters.label == one)
        out[one] = own[cKDTree(points[own]).query(clusters.centre[one])[1]]
    return out


def adjusted_rand_index(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """How well two partitions agree: 1 fully, 0 as by chance.

    Hubert & Arabie 1985, J. Classif. 2, 193, eq. 5.

    Parameters
    ----------
    first, second : (n,)
        Labels, whatever their values.
    """
    a, b = (np.unique(labels, return_inverse=True)[1] for labels in (first, second))
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).astype(np.float64)
    table = table.reshape(a.max() + 1, b.max() + 1)

    def pairs(counts: Array) -> float:
        return float((counts * (counts - 1.0) / 2.0).sum())

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / max(len(a) * (len(a) - 1) / 2.0, 1.0)
    most = 0.5 * (rows + columns)
    return 1.0 if most == chance else (together - chance) / (most - chance)

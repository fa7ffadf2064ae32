"""Particles beside each other in latent space: the graph of nearest neighbours, and density from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["join", "local_density", "nearest", "neighbour_graph"]

Array = NDArray[np.float64]

#: Particles of a piece among which the shortest edge to another is looked for.
_JOINED = 4000
#: Of a pair of particles at the same place: a graph has no edges of length 0.
_LEAST = 1e-12


def nearest(points: Array, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Nearest neighbours of every point among the others.

    Parameters
    ----------
    points : (n, d)
    count : int

    Returns
    -------
    distance : (n, count)
    index : (n, count) int64
    """
    count = min(count, len(points) - 1)
    distance, index = cKDTree(points).query(points, count + 1)
    # points at the same place may come before the point itself
    own = index == np.arange(len(points))[:, None]
    own[~own.any(1), -1] = True
    shape = (len(points), count)
    return distance[~own].reshape(shape), index[~own].reshape(shape).astype(np.int64)


def neighbour_graph(points: Array, count: int) -> csr_matrix:
    """Each point joined with its nearest neighbours; edges are as long as the distance.

    Parameters
    ----------
    points : (n, d)
    count : int
        Neighbours of each; a pair is joined if either counts the other.

    Returns
    -------
    (n, n) symmetric sparse matrix
        Perhaps in several pieces: see :func:`join`.
    """
    n = len(points)
    distance, index = nearest(points, count)
    rows = np.repeat(np.arange(n), index.shape[1])
    graph = coo_matrix((np.maximum(distance.ravel(), _LEAST), (rows, index.ravel())), (n, n)).tocsr()
    return graph.maximum(graph.T).tocsr()


def join(graph: csr_matrix, points: Array) -> csr_matrix:
    """Join the pieces of a graph by the shortest edges between them, or nearly those of large ones.

    Parameters
    ----------
    graph : (n, n) sparse
    points : (n, d)
    """
    while True:
        count, piece = connected_components(graph, directed=False)
        if count == 1:
            return graph
        # the smallest piece and what is nearest to it, once a turn
        inside = piece == np.bincount(piece).argmin()
        here, there = (_some(np.flatnonzero(side)) for side in (inside, ~inside))
        distance, index = cKDTree(points[there]).query(points[here])
        one = int(distance.argmin())
        a, b, length = here[one], there[index[one]], max(float(distance[one]), _LEAST)
        graph = (graph + coo_matrix(([length, length], ([a, b], [b, a])), graph.shape)).tocsr()


def _some(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every so many-th, at most about so many."""
    return index[:: -(-len(index) // _JOINED)]


def local_density(points: Array, count: int | None = None) -> Array:
    """How crowded it is at every point: the reciprocal of the mean distance to its neighbours, median 1.

    The power that would make it a true density in d dimensions is left out, as its noise grows with d.

    Parameters
    ----------
    points : (n, d)
    count : int, optional
        Neighbours; √n, between 5 and 50, by default.

    Returns
    -------
    (n,)
    """
    n = len(points)
    if n < 3:
        return np.ones(n)
    count = int(np.clip(round(n**0.5), 5, 50)) if count is None else count
    distance = nearest(points, count)[0].mean(1)
    density = 1.0 / np.maximum(distance, _LEAST + 1e-6 * float(np.median(distance)))
    return np.asarray(density / np.median(density))

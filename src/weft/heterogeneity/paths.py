"""Ways through a landscape: along the particles themselves, from one structure to another.

A straight line between two clusters may cross places where no particle is, of which a network has learnt
nothing. Shortest paths through the graph of nearest neighbours stay where particles are; edges count by their
squared length, so that many small steps are preferred to a jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra

from weft.heterogeneity.components import PrincipalComponents
from weft.heterogeneity.neighbours import join, neighbour_graph

__all__ = ["ends", "order_of_visits", "path_through", "spaced"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Where a component's ends are, in percent.
_ENDS = (2.0, 98.0)


def ends(components: PrincipalComponents, points: Array) -> Indices:
    """The particles at the two ends of the first component: anchors where there are no clusters.

    Parameters
    ----------
    components : PrincipalComponents
    points : (n, d)
    """
    place = components.scores(points)[:, 0]
    return np.array([int(np.abs(place - np.percentile(place, end)).argmin()) for end in _ENDS], np.int64)


def path_through(points: Array, anchors: Sequence[int] | Indices, *, ordered: bool = False) -> Indices:
    """Particles along the shortest path through all anchors.

    Parameters
    ----------
    points : (n, d)
    anchors : sequence of int
        Indices of particles, at least two different ones.
    ordered : bool
        Visit them as given; otherwise in the order that makes the path short.

    Returns
    -------
    (m,) int64
        Indices of particles; the anchors are among them.
    """
    stops = np.asarray(anchors, np.int64)
    graph = join(neighbour_graph(points, max(5, round(math.log2(len(points))))), points)
    graph.data **= 2
    distance, before = dijkstra(graph, directed=False, indices=stops, return_predecessors=True)
    order = list(range(len(stops))) if ordered else order_of_visits(distance[:, stops])
    path = [int(stops[order[0]])]
    for a, b in pairwise(order):
        steps: list[int] = []
        at = int(stops[b])
        while at != stops[a]:
            steps.append(at)
            at = int(before[a, at])
        path += steps[::-1]
    return np.array(path, np.int64)


def order_of_visits(distance: Array) -> list[int]:
    """A short order in which to visit every stop once: the nearest next, from the best start, untangled.

    Parameters
    ----------
    distance : (k, k)
    """
    k = len(distance)

    def length(order: list[int]) -> float:
        return float(distance[order[:-1], order[1:]].sum())

    best: list[int] = []
    for start in range(k):
        order = [start]
        while len(order) < k:
            left = [stop for stop in range(k) if stop not in order]
            order.append(min(left, key=lambda stop: float(distance[order[-1], stop])))
        if not best or length(order) < length(best):
            best = order
    improved = True
    while improved:
        improved = False
        for i in range(k - 1):
            for j in range(i + 1, k):
                turned = best[:i] + best[i : j + 1][::-1] + best[j + 1 :]
                if length(turned) < length(best) - 1e-12:
                    best, improved = turned, True
    # from the earlier of the two ends, so that repeating gives the same
    return best if best[0] <= best[-1] else best[::-1]


def spaced(points: Array, path: Indices, count: int) -> Indices:
    """So many particles of a path, as evenly spaced along it as they lie.

    Parameters
    ----------
    points : (n, d)
    path : (m,) int64
    count : int

    Returns
    -------
    (≤ count,) int64
        The two ends are kept; fewer where the path has fewer particles.
    """
    steps = np.linalg.norm(np.diff(points[path], axis=0), axis=1)
    place = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0.0, place[-1], count)
    chosen = np.unique(np.abs(place[:, None] - wanted).argmin(0))
    return np.asarray(path[chosen])

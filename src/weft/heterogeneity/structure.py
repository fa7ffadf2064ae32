"""Are there clusters at all, and how many?

k-means cuts every landscape into as many parts as it is asked for. Here a cut counts only where the particles
fall into heaps: by the dip test (:mod:`weft.heterogeneity.unimodality`) along the direction that separates
two parts, and again along the data themselves, as distances through the graph of nearest neighbours (those of
Isomap, Tenenbaum et al. 2000, Science 290, 2319) in the plane of that line and of what bends most, so that a
bent continuum (an arc, a ring) is no pair of clusters.

docs/howto/heterogeneity-analysis.md tells how often it is wrong on landscapes with known truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra

from weft.heterogeneity.clusters import Clusters, by_size, k_means
from weft.heterogeneity.neighbours import local_density, nearest, neighbour_graph
from weft.heterogeneity.unimodality import dip_probability

__all__ = ["Cut", "Structure", "best_cut", "fewest", "find_structure"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

#: A cut is believed below this p-value, along the straight line and along the data.
SIGNIFICANT = 0.05
#: Fewer particles, or fewer for each latent dimension, are not tested: there is always a direction in which a
#: few fall apart.
_FEWEST, _FEWEST_EACH = 30, 6
#: No more than so many clusters are looked for.
_MOST = 20
#: k-means with these numbers offers directions; the first has half of the chance of a false alarm.
_OFFERS = (2, 3, 4)
#: Particles that are tested; more add nothing to a decision.
_TESTED = 4000
#: Points of the graph.
_GRAPH = 2000
#: A gap is wider than so many usual distances between neighbours, to both sides.
_STEPS = 2.5
#: Fewer particles do not tell how thinly a place is settled; a gap has less than this of the usual density.
_MANY = 200
_THIN = 0.4


@dataclass(frozen=True)
class Cut:
    """The clearest cut of some particles in two.

    Attributes
    ----------
    line : float
        p-value of one heap along the straight line between the parts, for the best of all lines tried.
    data : float
        The same along the data themselves; 0 where no neighbours join the parts.
    side : (n,) bool
    """

    line: float
    data: float
    side: NDArray[np.bool_]

    @property
    def believed(self) -> bool:
        """Whether the parts are heaps of their own."""
        return max(self.line, self.data) < SIGNIFICANT


@dataclass(frozen=True)
class Structure:
    """What was found.

    Attributes
    ----------
    clusters : Clusters
        One cluster of all where there is no structure.
    first : Cut or None
        The clearest cut of all particles; None with too few of them.
    scaled : bool
        Clusters were found after scaling all components to the same variance.
    """

    clusters: Clusters
    first: Cut | None
    scaled: bool = False

    @property
    def found(self) -> bool:
        """Whether there is more than one cluster."""
        return self.clusters.count > 1


def fewest(dimensions: int) -> int:
    """How many particles it takes to tell clusters from chance."""
    return max(_FEWEST, _FEWEST_EACH * dimensions)


def find_structure(points: Array, *, seed: int = 0) -> Structure:
    """Look for clusters: cut while the parts are heaps, then join what should not have been cut.

    Parameters
    ----------
    points : (n, d)
        Latent coordinates. Their scale matters: what varies most decides; where that shows nothing, all
        components that vary are tried with the same weight.
    seed : int

    Returns
    -------
    Structure
        Clusters by k-means from the centres that the cuts gave, the largest first; centres are those of
        `points`.
    """
    points = np.asarray(points, np.float64)
    whole = k_means(points, 1)
    if len(points) < fewest(points.shape[1]):
        return Structure(whole, None)
    spaces = [points]
    if (scaled := _scaled(points)) is not None:
        spaces.append(scaled)
    first = None
    for number, space in enumerate(spaces):
        cut = best_cut(space, seed=seed, tries=len(spaces), scaled=number > 0)
        first = cut if first is None or max(cut.line, cut.data) < max(first.line, first.data) else first
        if not cut.believed:
            continue
        label = _split(space, cut, seed, number > 0)
        found = k_means(space, int(label.max()) + 1, start=_means(space, label))
        joined = by_size(_clean(space, found))
        return Structure(_described(points, joined), cut, number > 0)
    return Structure(whole, first)


def best_cut(points: Array, *, seed: int = 0, tries: int = 1, scaled: bool = False) -> Cut:
    """The line along which particles look least like one heap.

    Parameters
    ----------
    points : (n, d)
    seed : int
    tries : int
        Of how many tests this is one: p-values along lines are multiplied by it (Bonferroni).
    scaled : bool
        All components have been given the same weight: parts may be longer than they are apart.
    """
    random = np.random.default_rng(seed)
    n = len(points)
    tested = np.arange(n) if n <= _TESTED else np.sort(random.choice(n, _TESTED, replace=False))
    some = points[tested]
    if not np.ptp(some, axis=0).any():
        return Cut(1.0, 1.0, np.zeros(n, bool))
    others = sum(count for count in _OFFERS[1:])
    best: tuple[float, Array, NDArray[np.bool_]] | None = None
    for count in _OFFERS:
        parts = k_means(some, count, seed=seed)
        for one in range(1 if count == 2 else count):
            inside = parts.label == one
            if not 0 < inside.sum() < len(some):
                continue
            a, b = some[inside].mean(0), some[~inside].mean(0)
            p = dip_probability(some @ (a - b)) * 2.0 * (1 if count == 2 else others) * tries
            if best is None or p < best[0]:
                best = p, np.stack([a, b]), inside
    if best is None:
        return Cut(1.0, 1.0, np.zeros(n, bool))
    p, (a, b), inside = best
    along = 1.0
    if p < SIGNIFICANT:
        along = (
            _along_data(_plane(some, inside), inside, random)
            if not scaled
            else _between(some, inside, random)
        )
    return Cut(min(p, 1.0), along, (points - 0.5 * (a + b)) @ (a - b) > 0.0)


def _along_data(points: Array, inside: NDArray[np.bool_], random: np.random.Generator) -> float:
    """p-value of one heap by distances through the graph: to the other part; with many, from far ends too."""
    if len(points) > _GRAPH:
        some = np.sort(random.choice(len(points), _GRAPH, replace=False))
        points, inside = points[some], inside[some]
    graph = neighbour_graph(points, max(5, round(math.log2(len(points)))))
    count, piece = connected_components(graph, directed=False)
    if count > 1:
        # a stray particle or two may lie alone, but pieces that are parts of the landscape are a cut
        sizes = np.sort(np.bincount(piece))[::-1]
        if sizes[1] >= max(5, 0.02 * len(points)):
            return 0.0
        largest = piece == np.bincount(piece).argmax()
        graph, points, inside = graph[largest][:, largest], points[largest], inside[largest]
    if inside.all() or not inside.any():
        return 1.0

    def distance(sources: NDArray[np.int64]) -> Array:
        return np.asarray(dijkstra(graph, directed=False, indices=sources, min_only=True))

    # the nearest of the other part is a step away also where there is no gap
    step = _STEPS * float(np.median(nearest(points, 1)[0]))
    to_one, to_other = distance(np.flatnonzero(inside)), distance(np.flatnonzero(~inside))
    found = dip_probability(np.where(inside, to_other - step, step - to_one))
    if len(points) >= 2 * _MANY:
        from_one = distance(distance(np.array([0])).argsort()[-1:])
        from_other = distance(from_one.argsort()[-1:])
        found = max(found, min(1.0, 2.0 * min(dip_probability(from_one), dip_probability(from_other))))
    return found


def _between(points: Array, inside: NDArray[np.bool_], random: np.random.Generator) -> float:
    """As :func:`_along_data` where parts may be longer than they are apart; 1 if the cut is not in a gap.

    Scaling to the same variance within the parts shows parts side by side, but stretches an arc or a ring at
    the cut. So particles near the cut must be in a thinner place than most, which scaling leaves as it is.
    """
    n = len(points)
    if n < _MANY:
        return 1.0
    a, b = points[inside].mean(0), points[~inside].mean(0)
    place = (points - b) @ (a - b) / float((a - b) @ (a - b))
    width = 0.9 * min(float(place[inside].std()), float(place[~inside].std())) * (n / 2.0) ** -0.2
    grid = np.linspace(0.0, 1.0, 101)
    heights = np.exp(-0.5 * ((grid[:, None] - place) / max(width, 1e-9)) ** 2).sum(1)
    near = np.argsort(np.abs(place - grid[heights.argmin()]))[: max(5, round(0.03 * n))]
    centred = np.where(inside[:, None], points - a, points - b)
    values, vectors = np.linalg.eigh(centred.T @ centred / n)
    even = points @ (vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1])))
    density = local_density(even, max(5, round(0.5 * math.sqrt(n)))) ** points.shape[1]
    if np.median(density[near]) > _THIN:
        return 1.0
    return _along_data(_plane(even, inside), inside, random)


def _plane(points: Array, inside: NDArray[np.bool_]) -> Array:
    """The line between two parts, and the direction in which the data bend most on the way.

    That is where the middle of the way spreads more about the line than its ends do: the bow of an arc, the
    width of a ring. All other directions only add noise to distances.
    """
    a, b = points[inside].mean(0), points[~inside].mean(0)
    length = float(np.linalg.norm(a - b))
    line = (a - b) / max(length, 1e-300)
    along = (points - b) @ line
    across = points - b - along[:, None] * line
    middle = (along > 0.25 * length) & (along < 0.75 * length)
    if points.shape[1] == 1 or middle.sum() < 2 or (~middle).sum() < 2:
        return np.asarray(along[:, None])
    one, two = across[middle], across[~middle]
    bend = np.linalg.eigh(one.T @ one / len(one) - two.T @ two / len(two))[1][:, -1]
    return np.stack([along, across @ bend], axis=1)


def _scaled(points: Array) -> Array | None:
    """Components that vary, all with the same variance; None where that changes nothing."""
    centred = points - points.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(points))
    keep = values > 1e-3 * values[-1]
    if keep.sum() < 2 or values[-1] <= 0.0:
        return None
    return np.asarray(centred @ (vectors[:, keep] / np.sqrt(values[keep])))


def _split(points: Array, cut: Cut, seed: int, scaled: bool) -> Labels:
    """Cut again and again, the largest part first."""
    label = cut.side.astype(np.int64)
    waiting = [0, 1]
    while waiting and label.max() + 1 < _MOST:
        waiting.sort(key=lambda part: int((label == part).sum()))
        part = waiting.pop()
        own = np.flatnonzero(label == part)
        if len(own) < fewest(points.shape[1]):
            continue
        found = best_cut(points[own], seed=seed, tries=int(label.max()) + 1, scaled=scaled)
        if found.believed:
            new = int(label.max()) + 1
            label[own[found.side]] = new
            waiting += [part, new]
    return label


def _clean(points: Array, clusters: Clusters) -> Clusters:
    """Join the pair that looks most like one heap, until none does."""
    while clusters.count > 2:
        worst, pair = SIGNIFICANT, (-1, -1)
        for a, b in combinations(range(clusters.count), 2):
            both = points[(clusters.label == a) | (clusters.label == b)]
            p = dip_probability(both @ (clusters.centre[a] - clusters.centre[b]))
            if p >= worst:
                worst, pair = p, (a, b)
        if pair[0] < 0:
            break
        label = clusters.label.copy()
        label[label == pair[1]] = pair[0]
        label = np.unique(label, return_inverse=True)[1].astype(np.int64)
        clusters = k_means(points, clusters.count - 1, start=_means(points, label))
    return clusters


def _means(points: Array, label: Labels) -> Array:
    return np.stack([points[label == part].mean(0) for part in range(int(label.max()) + 1)])


def _described(points: Array, clusters: Clusters) -> Clusters:
    """The same partition with centres of `points`."""
    centre = _means(points, clusters.label)
    return Clusters(clusters.label, centre, float(((points - centre[clusters.label]) ** 2).sum()))

"""Where particles lie in the ice: apart, in a packed layer, in patches, in clumps."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from weft.simulation.micrograph_settings import MicrographSimulationSettings

__all__ = ["crowded_places", "particle_places"]

Array = NDArray[Any]


def particle_places(
    diameter: float, size: Array, settings: MicrographSimulationSettings, rng: np.random.Generator
) -> Array:
    """Centres of particles in a field of `size` (x, y) Å, ``(n, 2)``.

    The number is what gives the coverage, or fewer where they cannot be that many at their distance.
    """
    s = settings
    wanted = round(s.coverage * float(np.prod(size)) / (0.25 * math.pi * diameter**2))
    if wanted == 0:
        return np.empty((0, 2))
    anywhere = rng.binomial(wanted, s.overlapping)
    clumps = _clumps(diameter, size, s.aggregates, rng)
    apart = max(0, wanted - anywhere)
    distance = s.spacing * diameter
    if s.arrangement == "dense":
        xy = _packed(apart, distance, size, rng)
    else:
        field = _patches(size, 0.4 if s.arrangement == "patchy" else None, rng)
        xy = _thrown(apart, distance, size, field, rng)
    loose = rng.uniform(0.0, 1.0, (anywhere, 2)) * size
    return np.concatenate([xy, loose, clumps])


def crowded_places(xy: Array, distance: float) -> Array:
    """Which have a neighbour nearer than `distance`, ``(n,)`` bool."""
    if len(xy) < 2:
        return np.zeros(len(xy), bool)
    nearest, _ = cKDTree(xy).query(xy, k=2)
    result: Array = nearest[:, 1] < distance
    return result


def _clumps(diameter: float, size: Array, count: int, rng: np.random.Generator) -> Array:
    parts = [np.empty((0, 2))]
    for _ in range(count):
        n = int(rng.integers(3, 25))
        spread = 0.3 * diameter * n ** (1.0 / 3.0)
        parts.append(rng.uniform(0.0, 1.0, 2) * size + rng.normal(scale=spread, size=(n, 2)))
    return np.concatenate(parts)


def _patches(size: Array, part: float | None, rng: np.random.Generator) -> Any:
    """A smooth likelihood of particles over the field, 0 to 1: a function of places in Å."""
    waves = rng.normal(scale=2.0 * math.pi / rng.uniform(1200.0, 5000.0), size=(6, 2))
    phases = rng.uniform(0.0, 2.0 * math.pi, 6)
    level = float(rng.uniform(-0.5, 1.0))

    def field(xy: Array) -> Array:
        height = np.cos(xy @ waves.T + phases).sum(axis=1) / math.sqrt(3.0)
        if part is None:
            result: Array = 1.0 / (1.0 + np.exp(-1.5 * (height + 1.5)))
        else:
            result = 1.0 / (1.0 + np.exp(-12.0 * (height - level)))
        return result

    return field


def _thrown(wanted: int, distance: float, size: Array, field: Any, rng: np.random.Generator) -> Array:
    """Random places at a distance from each other, more of them where `field` is high."""
    tries = 30 * wanted + 2000
    candidates = rng.uniform(0.0, 1.0, (tries, 2)) * size
    candidates = candidates[rng.random(tries) < field(candidates)]
    return np.asarray(candidates[_keep_apart(candidates, distance, size[0], size[1], wanted)])


def _packed(wanted: int, distance: float, size: Array, rng: np.random.Generator) -> Array:
    """Islands of a layer in which neighbours touch: domains of hexagonal arrays, or a disordered layer."""
    disorder = rng.random()
    if disorder < 0.5:
        xy = _domains(distance, size, rng)
    else:
        # a layer that is full: random places that push each other apart
        fullest = 0.82 * float(np.prod(size)) / (0.25 * math.pi * distance**2)
        n = int(max(wanted, min(1.0, rng.uniform(0.85, 1.05)) * fullest))
        xy = _pushed_apart(rng.uniform(0.0, 1.0, (n, 2)) * size, distance, size)
        xy = xy[_keep_apart(xy, 0.9 * distance, size[0], size[1], n)]
    if len(xy) > wanted:
        # vacancies at random, and regions that the layer does not reach
        scattered = rng.uniform(0.0, 0.35)
        drop = len(xy) - wanted
        height = _patches(size, 0.5, rng)(xy) + 1e-3 * rng.random(len(xy))
        height[rng.random(len(xy)) < scattered] = rng.random()
        height = height + rng.uniform(0.0, 0.6) * rng.random(len(xy))
        xy = xy[np.argsort(height)[drop:]]
    return xy


def _domains(distance: float, size: Array, rng: np.random.Generator) -> Array:
    """Hexagonal arrays of different directions that meet, each place a little off."""
    seeds = rng.uniform(0.0, 1.0, (int(rng.integers(1, 16)), 2)) * size
    owner = cKDTree(seeds)
    reach = 0.75 * float(np.hypot(*size)) + distance
    steps = int(reach / distance) + 2
    i, j = np.meshgrid(np.arange(-steps, steps + 1), np.arange(-int(1.2 * steps), int(1.2 * steps) + 1))
    lattice = np.stack([i + 0.5 * (j % 2), j * math.sqrt(0.75)], axis=-1).reshape(-1, 2) * distance
    parts = []
    for n in range(len(seeds)):
        angle = rng.uniform(0.0, math.pi / 3.0)
        c, s = math.cos(angle), math.sin(angle)
        places = lattice @ np.array([[c, s], [-s, c]]) + 0.5 * size + rng.uniform(-0.5, 0.5, 2) * distance
        inside = ((places > 0.0) & (places < size)).all(axis=1)
        places = places[inside]
        parts.append(places[owner.query(places)[1] == n])
    xy = np.concatenate(parts)
    xy = xy + rng.normal(scale=rng.uniform(0.01, 0.09) * distance, size=xy.shape)
    xy = xy[rng.permutation(len(xy))]
    return xy[_keep_apart(xy, 0.85 * distance, size[0], size[1], len(xy))]


def _pushed_apart(xy: Array, distance: float, size: Array, rounds: int = 25) -> Array:
    for _ in range(rounds):
        pairs = cKDTree(xy).query_pairs(distance, output_type="ndarray")
        if not len(pairs):
            break
        apart = xy[pairs[:, 0]] - xy[pairs[:, 1]]
        length = np.maximum(np.sqrt((apart**2).sum(axis=1)), 1e-3)
        push = apart * (0.4 * (distance - length) / length)[:, None]
        n = len(xy)
        for axis in range(2):
            xy[:, axis] += np.bincount(pairs[:, 0], push[:, axis], n) - np.bincount(
                pairs[:, 1], push[:, axis], n
            )
        xy = np.clip(xy, 0.0, size)
    return xy


@numba.njit(nogil=True, cache=True)
def _keep_apart(xy: Array, distance: float, width: float, height: float, most: int) -> Array:
    """Which of the places, taken in turn, are `distance` from all taken before, up to `most`."""
    cell = distance / math.sqrt(2.0)
    nx, ny = int(width / cell) + 1, int(height / cell) + 1
    taken = np.full((ny, nx), -1, np.int64)
    keep = np.zeros(len(xy), np.bool_)
    count = 0
    for n in range(len(xy)):
        if count >= most:
            break
        j = min(max(int(xy[n, 0] / cell), 0), nx - 1)
        i = min(max(int(xy[n, 1] / cell), 0), ny - 1)
        free = taken[i, j] < 0
        for a in range(max(0, i - 2), min(ny, i + 3)):
            for b in range(max(0, j - 2), min(nx, j + 3)):
                other = taken[a, b]
                if other >= 0:
                    dx, dy = xy[other, 0] - xy[n, 0], xy[other, 1] - xy[n, 1]
                    if dx * dx + dy * dy < distance * distance:
                        free = False
        if free:
            taken[i, j] = n
            keep[n] = True
            count += 1
    return keep

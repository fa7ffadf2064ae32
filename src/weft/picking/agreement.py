"""How well picks agree with known positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from weft.picking.picks import Picks

__all__ = ["Agreement", "agreement", "average_precision", "pairs_within"]

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Counts, and what follows from them.

    Attributes
    ----------
    found : int
        Particles with a pick of their own.
    picks, particles : int
    """

    found: int
    picks: int
    particles: int

    @property
    def precision(self) -> float:
        """Part of the picks that are particles; 1 without picks."""
        return self.found / self.picks if self.picks else 1.0

    @property
    def recall(self) -> float:
        """Part of the particles that were found; 1 without particles."""
        return self.found / self.particles if self.particles else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.picks + self.particles
        return 2.0 * self.found / both if both else 1.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.found + other.found, self.picks + other.picks, self.particles + other.particles)


def pairs_within(xy: _Array, truth: _Array, radius: float) -> NDArray[np.int64]:
    """Picks and particles (rows, ``(k, 2)``), each at most once, so that most are paired and then nearest."""
    if not len(xy) or not len(truth):
        return np.zeros((0, 2), dtype=np.int64)
    near = cKDTree(xy).sparse_distance_matrix(cKDTree(truth), radius, output_type="coo_matrix")
    cost = np.full((len(xy), len(truth)), 1e6)
    cost[near.row, near.col] = near.data
    rows, columns = linear_sum_assignment(cost)
    paired = cost[rows, columns] <= radius
    return np.stack([rows[paired], columns[paired]], axis=1)


def agreement(xy: _Array, truth: _Array, radius: float) -> Agreement:
    """Count the picks (Å, ``(n, 2)``) that lie within `radius` of a particle (Å, ``(m, 2)``)."""
    return Agreement(len(pairs_within(xy, truth, radius)), len(xy), len(truth))


def average_precision(found: Sequence[Picks], truth: Sequence[_Array], radius: float) -> float:
    """Area under precision over recall as the least score falls, of several micrographs together."""
    scores: list[_Array] = []
    right: list[NDArray[np.bool_]] = []
    for picks, places in zip(found, truth, strict=True):
        hit = np.zeros(len(picks), dtype=bool)
        hit[pairs_within(picks.xy, places, radius)[:, 0]] = True
        scores.append(picks.score)
        right.append(hit)
    particles = sum(len(places) for places in truth)
    if not particles:
        return math.nan
    hits = np.concatenate(right)[np.argsort(-np.concatenate(scores), kind="stable")]
    recall = np.cumsum(hits) / particles
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    # the best precision at this recall or a greater one
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))

"""What goes with the landscape: every number and every group that is known of particles.

A component that follows the defocus, the tilt or the tomogram may describe the experiment and not the
structure. Ranks are compared, so that neither scales nor outliers matter: Spearman's coefficient for numbers,
Kruskal and Wallis' test for groups, with its ε² (Tomczak & Tomczak 2014) as the share of the ranks' variance
that lies between groups. p-values are corrected for the number of tests (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

__all__ = ["Correlate", "correlates", "group_share", "rank_correlation"]

Array = NDArray[np.float64]

#: Fewer particles with a value do not tell anything.
_FEWEST = 8


@dataclass(frozen=True)
class Correlate:
    """How one coordinate of the landscape goes with one thing that is known.

    Attributes
    ----------
    coordinate : str
        ``pc1`` ...
    known : str
        The column's label, or what groups are called.
    kind : str
        ``number`` or ``groups``.
    size : float
        Spearman's ρ for numbers, ε² for groups.
    p : float
        Corrected for all tests that were done together.
    count : int
        Particles with a value.
    """

    coordinate: str
    known: str
    kind: Literal["number", "groups"]
    size: float
    p: float
    count: int

    @property
    def share(self) -> float:
        """Of the ranks' variance: ρ² or ε²."""
        return self.size**2 if self.kind == "number" else self.size


def rank_correlation(x: Array, y: Array) -> tuple[float, float]:
    """Spearman's ρ and its p-value (Student's t of n − 2 degrees of freedom)."""
    n = len(x)
    a, b = stats.rankdata(x), stats.rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    rho = float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
    if abs(rho) == 1.0:
        return rho, 0.0
    t = rho * np.sqrt((n - 2) / (1.0 - rho * rho))
    return rho, float(2.0 * special.stdtr(n - 2, -abs(t)))


def group_share(x: Array, group: NDArray[np.int64]) -> tuple[float, float]:
    """ε² = H / (n − 1) of Kruskal and Wallis' H, and its p-value (χ² of k − 1 degrees of freedom).

    Parameters
    ----------
    x : (n,)
    group : (n,) int64
        0 ... k − 1, none empty.
    """
    n = len(x)
    ranks = stats.rankdata(x)
    ranks -= ranks.mean()
    count = np.bincount(group)
    between = float((np.bincount(group, ranks) ** 2 / count).sum())
    share = between / float(ranks @ ranks)
    return share, float(special.chdtrc(len(count) - 1, share * (n - 1)))


def correlates(
    coordinates: Mapping[str, Array],
    numbers: Mapping[str, NDArray[Any]],
    groups: Mapping[str, Sequence[str]],
) -> list[Correlate]:
    """Test every coordinate against everything that is known.

    Parameters
    ----------
    coordinates : dict
        Name → (n,) values.
    numbers : dict
        Label → (n,) numbers; particles without a finite one are left out, columns that are the same
        everywhere too.
    groups : dict
        What groups are called → (n,) names; those with a single group, or with one for each particle, are
        left out.

    Returns
    -------
    list of Correlate
        The largest share of variance first.
    """
    found: list[Correlate] = []
    for label, column in numbers.items():
        values = np.asarray(column, np.float64)
        known = np.isfinite(values)
        if known.sum() < _FEWEST or np.ptp(values[known]) == 0.0:
            continue
        for name, coordinate in coordinates.items():
            if np.ptp(coordinate[known]) > 0.0:
                size, p = rank_correlation(coordinate[known], values[known])
                found.append(Correlate(name, label, "number", size, p, int(known.sum())))
    for label, names in groups.items():
        group = np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)
        if group.max(initial=0) == 0 or group.max() + 1 > len(group) // 2 or len(group) < _FEWEST:
            continue
        for name, coordinate in coordinates.items():
            if np.ptp(coordinate) > 0.0:
                size, p = group_share(coordinate, group)
                found.append(Correlate(name, label, "groups", size, p, len(group)))
    return sorted(_corrected(found), key=lambda one: (-one.share, one.known, one.coordinate))


def _corrected(found: list[Correlate]) -> list[Correlate]:
    """Holm's correction."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    out, largest = list(found), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - rank) * found[i].p))
        out[i] = replace(found[i], p=largest)
    return out

"""Is there one heap of numbers or more? The dip test.

Hartigan & Hartigan 1985, "The dip test of unimodality" (Ann. Statist. 13, 70): the dip is the largest
distance between the empirical distribution function and the unimodal one that comes closest. Of all unimodal
distributions the uniform has the largest dips, so that a p-value against it holds for every shape of one
heap, skewed and heavy-tailed ones too. The algorithm is theirs: the greatest convex minorant and the least
concave majorant of the distribution function, over an interval that shrinks to the mode's.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["dip", "dip_probability"]

Array = NDArray[np.float64]

#: Uniform samples that a p-value is counted in; beyond so many numbers dips scale with 1/√n.
_SAMPLES = 4000
_LARGEST = 2000
#: Sizes of samples are rounded to so many steps an octave: √n times the dip hardly depends on n.
_STEPS = 8
_SEED = 1985


def dip(values: NDArray[Any]) -> float:
    """The dip of a sample.

    Parameters
    ----------
    values : (n,)
        In any order; finite.

    Returns
    -------
    float
        Between 1/(2n), which is that of the most even sample, and 1/4.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) < 3 or ordered[0] == ordered[-1]:
        return 0.5 / max(len(ordered), 1)
    return float(_dip(ordered))


def dip_probability(values: NDArray[Any]) -> float:
    """How often a sample of one heap has so large a dip: the p-value of the dip test, on the safe side.

    Counted in uniform samples of the same size; the smallest value is 1/4001.

    Parameters
    ----------
    values : (n,)
    """
    n = len(values)
    if n < 4:
        return 1.0
    known = _uniform_dips(round(2.0 ** (round(_STEPS * math.log2(min(n, _LARGEST))) / _STEPS)))
    larger = len(known) - int(np.searchsorted(known, math.sqrt(n) * dip(values)))
    return (1 + larger) / (1 + len(known))


@lru_cache(maxsize=256)
def _uniform_dips(n: int) -> Array:
    """√n times the dips of uniform samples, ascending."""
    random = np.random.default_rng((_SEED, n))
    return np.sort([math.sqrt(n) * _dip(np.sort(random.random(n))) for _ in range(_SAMPLES)])


@numba.njit(nogil=True, cache=True)
def _hull(x, first, last, side, out):  # type: ignore[no-untyped-def]
    """Corners of the minorant (`side` 1) or majorant (−1) of the steps (x_i, i); returns how many."""
    n = 0
    for i in range(first, last + 1):
        while n >= 2:
            a, b = out[n - 2], out[n - 1]
            if side * ((b - a) * (x[i] - x[a]) - (i - a) * (x[b] - x[a])) < 0.0:
                break
            n -= 1
        out[n] = i
        n += 1
    return n


@numba.njit(nogil=True, cache=True)
def _between(x, a, b, p):  # type: ignore[no-untyped-def]
    """The chord from step a to step b at x_p, in steps."""
    return a + (b - a) * (x[p] - x[a]) / (x[b] - x[a]) if x[b] > x[a] else float(b)


@numba.njit(nogil=True, cache=True)
def _widest(x, lower, n_lower, upper, n_upper):  # type: ignore[no-untyped-def]
    """The widest gap between the two hulls, which is at a corner, and the interval that it leaves."""
    gap, low, high = -1.0, lower[0], upper[n_upper - 1]
    j = 0
    for i in range(n_lower):
        p = lower[i]
        while j < n_upper - 2 and upper[j + 1] < p:
            j += 1
        here = _between(x, upper[j], upper[j + 1], p) + 1.0 - p
        if here > gap:
            gap, low, high = here, p, upper[j + 1]
    j = 0
    for i in range(n_upper):
        p = upper[i]
        while j < n_lower - 2 and lower[j + 1] < p:
            j += 1
        here = p + 1.0 - _between(x, lower[j], lower[j + 1], p)
        if here > gap:
            gap, low, high = here, lower[j], p
    return gap, low, high


@numba.njit(nogil=True, cache=True)
def _dip(x):  # type: ignore[no-untyped-def]
    """Of sorted numbers that are not all the same."""
    n = len(x)
    lower, upper = np.empty(n, np.int64), np.empty(n, np.int64)
    low, high, best = 0, n - 1, 1.0
    while low < high:
        n_lower = _hull(x, low, high, 1.0, lower)
        n_upper = _hull(x, low, high, -1.0, upper)
        gap, new_low, new_high = _widest(x, lower, n_lower, upper, n_upper)
        if gap <= best or new_low > new_high:
            break
        # how well the convex part before the mode and the concave one after it fit
        for i in range(n_lower - 1):
            if lower[i + 1] > new_low:
                break
            for p in range(lower[i], lower[i + 1] + 1):
                best = max(best, p + 1.0 - _between(x, lower[i], lower[i + 1], p))
        for i in range(n_upper - 1):
            if upper[i] < new_high:
                continue
            for p in range(upper[i], upper[i + 1] + 1):
                best = max(best, _between(x, upper[i], upper[i + 1], p) + 1.0 - p)
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return best / (2.0 * n)

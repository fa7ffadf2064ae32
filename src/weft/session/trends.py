"""Whether the newest items differ from those before: statistics that outliers cannot sway.

Ranks decide whether there is a difference, so no distribution is assumed; medians say how large it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Change",
    "Judged",
    "by_time",
    "change",
    "median_error",
    "rank_difference",
    "robust_deviation",
    "series",
    "slope",
]

_MAD = 1.4826  # of a normal distribution: standard deviation / median absolute deviation
_SURE = 1.96  # of a normal distribution: standard deviations that hold 95 %


class Judged(Protocol):
    """What is asked of an item: a part of `weft.session.board.Entry`."""

    @property
    def name(self) -> str: ...
    @property
    def mtime(self) -> float: ...
    @property
    def processed(self) -> float | None: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, Any]: ...


T = TypeVar("T", bound=Judged)


def by_time(entries: Iterable[T]) -> list[T]:
    """Items in the order in which they were recorded."""
    return sorted(entries, key=lambda entry: (entry.mtime, entry.name))


def series(
    entries: Iterable[T], metric: str, states: tuple[str, ...] = ("done",)
) -> tuple[list[T], NDArray[np.float64]]:
    """The items in one of these states that have this metric, and its values."""
    found: list[T] = []
    values: list[float] = []
    for entry in entries:
        value = entry.metrics.get(metric) if entry.state in states else None
        if isinstance(value, int | float) and math.isfinite(value):
            found.append(entry)
            values.append(float(value))
    return found, np.array(values, dtype=np.float64)


def robust_deviation(values: ArrayLike) -> float:
    """Standard deviation from the median absolute deviation."""
    data = np.asarray(values, dtype=np.float64)
    return _MAD * float(np.median(np.abs(data - np.median(data)))) if data.size else 0.0


def median_error(values: ArrayLike) -> float:
    """Standard error of the median, of any distribution.

    From the ordered values between which the true median lies with 95 %.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    n = data.size
    if not n:
        return 0.0
    half = 0.5 * _SURE * math.sqrt(n)
    places = np.clip((0.5 * (n - 1) - half, 0.5 * (n - 1) + half), 0, n - 1)
    low, high = np.interp(places, np.arange(n), data)
    return float(high - low) / (2.0 * _SURE)


def rank_difference(first: ArrayLike, second: ArrayLike) -> float:
    """How clearly the second sample lies above the first, in standard deviations (Mann & Whitney 1947).

    Positive where it lies above. Ties count half, and shrink the standard deviation as they should.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m = a.size, b.size
    if not n or not m:
        return 0.0
    _, inverse, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    # the rank of tied values is the mean of the ranks that they share
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    total = n + m
    ties = float((counts**3 - counts).sum()) / (total * (total - 1))
    variance = n * m / 12.0 * (total + 1 - ties)
    statistic = float(ranks[n:].sum()) - m * (total + 1) / 2.0
    return statistic / math.sqrt(variance) if variance > 0 else 0.0


def slope(values: ArrayLike) -> tuple[float, float]:
    """Median of the slopes between all pairs (Theil & Sen), per item, and its standard error."""
    data = np.asarray(values, dtype=np.float64)
    n = data.size
    if n < 3:
        return 0.0, math.inf
    i, j = np.triu_indices(n, 1)
    found = float(np.median((data[j] - data[i]) / (j - i)))
    rest = robust_deviation(data - found * np.arange(n))
    return found, rest / math.sqrt(n * (n * n - 1) / 12.0)


@dataclass(frozen=True)
class Change:
    """The newest values against those before.

    Attributes
    ----------
    before, now : float
        Medians.
    error : float
        Standard error of their difference.
    significance : float
        Of `rank_difference`; positive where values have risen.
    n_before, n_now : int
    """

    before: float
    now: float
    error: float
    significance: float
    n_before: int
    n_now: int

    @property
    def difference(self) -> float:
        """Now minus before."""
        return self.now - self.before

    @property
    def ratio(self) -> float:
        """Now divided by before."""
        return self.now / self.before if self.before else math.inf


def change(values: Sequence[float] | NDArray[np.float64], last: int, before: int) -> Change | None:
    """Compare the last values with those before them.

    Parameters
    ----------
    last : int
        How many are new.
    before : int
        How many older ones to compare with at most; as many as there are new ones must be there.
    """
    data = np.asarray(values, dtype=np.float64)
    now = data[max(0, data.size - last) :]
    old = data[max(0, data.size - last - before) : max(0, data.size - last)]
    if now.size < last or old.size < last:
        return None
    error = math.hypot(median_error(old), median_error(now))
    return Change(
        float(np.median(old)), float(np.median(now)), error, rank_difference(old, now), old.size, now.size
    )

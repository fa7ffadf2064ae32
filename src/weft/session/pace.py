"""How fast work goes, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["Pace"]

_HOUR = 3600.0
_RECENT = 20
#: Seconds after which items that ended tell nothing about now.
_OLD = 1800.0


class Pace:
    """Counts items as they end.

    Parameters
    ----------
    clock : callable
        Seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._ends: deque[float] = deque()

    def ended(self) -> None:
        """An item has ended now."""
        now = self._clock()
        self._ends.append(now)
        while now - self._ends[0] > _HOUR:
            self._ends.popleft()

    def per_hour(self) -> float | None:
        """Items an hour, over the last hour at most, idle times included; None before the first."""
        now = self._clock()
        ends = [end for end in self._ends if now - end <= _HOUR]
        elapsed = min(_HOUR, now - self._begin)
        return len(ends) / elapsed * _HOUR if ends and elapsed > 0 else None

    def recent_per_hour(self) -> float | None:
        """Items an hour as of the last few; None where there are too few."""
        now = self._clock()
        ends = [end for end in list(self._ends)[-_RECENT:] if now - end <= _OLD]
        if len(ends) < 3 or ends[-1] <= ends[0]:
            return None
        return (len(ends) - 1) / (ends[-1] - ends[0]) * _HOUR

    def time_left(self, items: int) -> float | None:
        """Seconds that so many items will take; None when nobody can tell."""
        if items == 0:
            return 0.0
        rate = self.recent_per_hour() or self.per_hour()
        return items / rate * _HOUR if rate else None

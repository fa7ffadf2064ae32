"""What is to be done, and in which order: asked for, new, stale, to be tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Agenda", "Rank"]


class Rank(IntEnum):
    """Why an item is to be worked on; what counts least comes first."""

    ASKED = 0
    NEW = 1
    STALE = 2
    AGAIN = 3


@dataclass(frozen=True, slots=True)
class _Entry:
    rank: Rank
    order: float
    due: float


class Agenda:
    """Items to be worked on. Not for several threads at once.

    Parameters
    ----------
    clock : callable
        Seconds, from any beginning.

    Attributes
    ----------
    newest_first : bool
        Within a rank.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.newest_first = True
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def put(self, name: str, rank: Rank, mtime: float, delay: float = 0.0) -> None:
        """Plan an item, or plan it anew.

        Parameters
        ----------
        mtime : float
            When its file was last changed, s since 1970.
        delay : float
            Seconds before which it is not to be tried.
        """
        self._entries[name] = _Entry(rank, mtime, self._clock() + delay if delay else 0.0)

    def drop(self, name: str) -> None:
        """Nothing is to be done about an item any more."""
        self._entries.pop(name, None)

    def hurry(self) -> None:
        """Let nothing wait any longer: what stood in the way is gone."""
        for name, entry in self._entries.items():
            self._entries[name] = _Entry(entry.rank, entry.order, 0.0)

    def take(self) -> tuple[str, Rank] | None:
        """The next item, which leaves the agenda; None when there is none to be done now."""
        now = self._clock()
        sign = -1.0 if self.newest_first else 1.0
        due = ((e.rank, sign * e.order, name) for name, e in self._entries.items() if e.due <= now)
        first = min(due, default=None)
        if first is None:
            return None
        rank, _, name = first
        del self._entries[name]
        return name, rank

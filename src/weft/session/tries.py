"""What fails for no fault of its own is tried again, later each time, until it is given up."""

from __future__ import annotations

import time
from collections import Counter

__all__ = ["Tries"]

#: An item that fails for no fault of its own is tried again after so many seconds, then twice as many ...
FIRST_DELAY = 15.0
#: ... and so often at most, until something changes.
MOST_TRIES = 5
#: Items that break down in a row: then it is not the items.
MOST_BROKEN = 4
BREATHER = 30.0


class Tries:
    """Counts failures. Not for several threads at once.

    Attributes
    ----------
    trouble : str
        What broke down last, while it does.
    """

    def __init__(self) -> None:
        self.trouble = ""
        self._tries: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._broken = 0
        self._resume_at = 0.0

    def failed(self, name: str, error: str) -> None:
        """An item has failed."""
        self._tries[name] += 1
        self._errors[name] = error

    def succeeded(self, name: str) -> None:
        """An item is done, so that work goes on."""
        self.forget(name)
        self._broken, self.trouble = 0, ""

    def forget(self, name: str) -> None:
        """Something about an item has changed: it begins anew."""
        self._tries.pop(name, None)
        self._errors.pop(name, None)

    def forget_all(self) -> None:
        """Something has changed that concerns all."""
        self._tries.clear()
        self._errors.clear()

    def given_up(self, name: str) -> str:
        """Why an item is not tried any more; empty where it is."""
        if self._tries[name] < MOST_TRIES:
            return ""
        return f"given up after {MOST_TRIES} tries: {self._errors[name]}"

    def delay(self, name: str) -> float:
        """Seconds until an item may be tried; 0 where it has not failed."""
        tries = self._tries[name]
        return FIRST_DELAY * 2.0 ** (tries - 1) if tries else 0.0

    def broke_down(self, text: str) -> None:
        """The work on an item broke down; after some in a row there is a pause."""
        self.trouble = text
        self._broken += 1
        if self._broken >= MOST_BROKEN:
            self._resume_at = time.monotonic() + BREATHER

    @property
    def pausing(self) -> bool:
        """Whether nothing is to be tried for now."""
        return time.monotonic() < self._resume_at

    def hurry(self) -> None:
        """What stood in the way is gone."""
        self._resume_at, self._broken, self.trouble = 0.0, 0, ""

"""Which files are there and complete: looking again and again, because network file systems tell nobody.

A file is complete when its size and time have stood still for a while and a check of its content (its
header, its number of frames) has nothing to say. Neither the order of times nor names play a part.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Look", "Watcher"]

#: (size in bytes, modification time in ns): what stands still once a file is complete.
Signature = tuple[int, int]

#: Seconds since a file's last change that are beyond the differences between two computers' clocks.
_OLD = 30.0


@dataclass(frozen=True)
class Look:
    """What one look has found.

    Attributes
    ----------
    ready : tuple of Path
        Complete now, and new or changed since they were last given; the most recently changed first.
    waiting : mapping
        Seen, but not complete: the reason in words. Folders that cannot be read are here, too.
    gone : tuple of Path
        Given earlier, not there any more.
    """

    ready: tuple[Path, ...]
    waiting: Mapping[Path, str]
    gone: tuple[Path, ...]


@dataclass(frozen=True)
class _Seen:
    signature: Signature
    since: float
    changed: bool


class Watcher:
    """Looks at a set of files whenever asked.

    Parameters
    ----------
    find : callable
        Gives the files that are there; what it yielded before it raised OSError counts.
    check : callable
        What is missing in a file that stands still, as a clause such as ``"frame 3 is missing"``; empty
        when it is complete.
    settle : float
        Seconds for which size and time must stand still. Files that have not changed for long when first
        seen do not wait.
    give_up : float
        Seconds after which a file that stands still is given although the check still objects: so that it
        fails with an error of its own. It is given again when it changes.
    known : mapping, optional
        Path → (size in bytes, modification time in ns) of what has been dealt with.
    clock : callable
        Seconds, from any beginning.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[Path]],
        check: Callable[[Path], str] = lambda path: "",
        *,
        settle: float = 2.0,
        give_up: float = 60.0,
        known: Mapping[Path, Signature] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settle = settle
        self.give_up = give_up
        self._find = find
        self._check = check
        self._clock = clock
        self._given: dict[Path, Signature] = dict(known or {})
        self._seen: dict[Path, _Seen] = {}

    def look(self) -> Look:
        """Look once; never raises because of what the file system does."""
        found, waiting, whole = self._look_around()
        now = self._clock()
        ready = []
        seen: dict[Path, _Seen] = {}
        for path, signature in sorted(found.items(), key=lambda pair: -pair[1][1]):
            if self._given.get(path) == signature:
                continue
            seen[path] = state = self._follow(path, signature, now)
            still = now - state.since
            if still < self.settle:
                waiting[path] = "still being written" if state.changed else "just arrived"
            elif still < self.give_up and (reason := self._objection(path)):
                waiting[path] = reason
            else:
                ready.append(path)
        # after a folder could not be read, nobody knows what is gone
        gone = [path for path in self._given if whole and path not in found and path not in waiting]
        for path in gone:
            del self._given[path]
        for path in ready:
            self._given[path] = seen.pop(path).signature
        self._seen = seen
        return Look(tuple(ready), waiting, tuple(gone))

    def forget(self, path: Path) -> None:
        """Give a file again with the next look, should it be there."""
        self._given.pop(path, None)

    def signature(self, path: Path) -> Signature | None:
        """Size and time of a file when it was last given."""
        return self._given.get(path)

    def _look_around(self) -> tuple[dict[Path, Signature], dict[Path, str], bool]:
        """Files and their signatures, what cannot be looked at, and whether every folder could be read."""
        found: dict[Path, Signature] = {}
        trouble: dict[Path, str] = {}
        whole = True
        try:
            for path in self._find():
                try:
                    facts = os.stat(path)
                except FileNotFoundError:
                    continue  # it has just gone
                except OSError as error:
                    trouble[path] = f"cannot be looked at ({error.strerror})"
                    continue
                if stat.S_ISREG(facts.st_mode):
                    found[path] = (facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            whole = False
            trouble[Path(error.filename or ".")] = f"the folder cannot be read ({error.strerror})"
        return found, trouble, whole

    def _follow(self, path: Path, signature: Signature, now: float) -> _Seen:
        """Since when a file stands still."""
        before = self._seen.get(path)
        if before is not None:
            return before if before.signature == signature else _Seen(signature, now, True)
        age = time.time() - signature[1] * 1e-9
        return _Seen(signature, now - age if age > max(_OLD, self.settle) else now, False)

    def _objection(self, path: Path) -> str:
        try:
            return self._check(path)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

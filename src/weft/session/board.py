"""The board: how every item of a session stands, in memory, for screens and for whoever hands out work.

Of ten thousand records only the short forms are kept; tracks and surfaces are read from the disk when
somebody asks for them.
"""

from __future__ import annotations

import os
import sys
import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weft.errors import SessionError
from weft.session import index
from weft.session.discovery import natural_key
from weft.session.plan import Expectations, StepState, item_state, states_under
from weft.session.records import FileIdentity, Record, Summary
from weft.session.selection import Selection, Verdict
from weft.session.tilt_table import table_path

if TYPE_CHECKING:
    from weft.session.config import SessionSettings
    from weft.session.session import Session

__all__ = ["Board", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about one item.

    Attributes
    ----------
    name, kind : str
    source : str
        Its file.
    folder : str
        Where that lies: a grid square, for many.
    mtime : float
        When the file was last changed, s since 1970.
    processed : float or None
        When its record was written, s since 1970.
    state : str
        ``"new"``, ``"processing"``, ``"done"``, ``"failed"`` or ``"stale"``.
    reason : str
        Why it failed or is stale.
    step : str
        The one that failed or is stale.
    metrics : mapping
        As the record has them.
    outputs : mapping
        Name → path relative to the session.
    """

    name: str
    kind: str
    source: str
    folder: str
    mtime: float
    processed: float | None = None
    state: str = "new"
    reason: str = ""
    step: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


class Board:
    """All items of a session. Safe to use from several threads.

    Parameters
    ----------
    session : Session

    Attributes
    ----------
    version : int
        Grows with every change.
    broken : dict
        Item whose record cannot be read → why; it is shown as failed.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.version = 0
        self.broken: dict[str, str] = {}
        self._lock = threading.RLock()
        self._summaries: dict[str, Summary] = {}
        self._entries: dict[str, Entry] = {}
        self._order: list[tuple[tuple[tuple[int, int | str], ...], str]] = []
        self._snapshot: Mapping[str, Entry] | None = None
        self._changed: dict[str, int] = {}
        self._in_work: set[str] = set()
        self._inputs: dict[str, FileIdentity] = {}
        self._selection = Selection()
        self._verdicts: Mapping[str, Verdict] | None = None
        self._expectations: Expectations | None = None

    # ------------------------------------------------------------------ reading

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All items by name, in natural order; what was taken out does not change any more."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = MappingProxyType({name: self._entries[name] for _, name in self._order})
            return self._snapshot

    def entry(self, name: str) -> Entry | None:
        """One item; None where there is none of this name."""
        with self._lock:
            return self._entries.get(name)

    @property
    def selection(self) -> Selection:
        """Ranges and decisions by hand."""
        with self._lock:
            return self._selection

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What the selection says about every item."""
        with self._lock:
            if self._verdicts is None:
                metrics = {name: entry.metrics for name, entry in self.entries.items()}
                series = {name for name, entry in self.entries.items() if entry.kind == "series"}
                self._verdicts = MappingProxyType(self._selection.judge(metrics, series))
            return self._verdicts

    def counts(self) -> dict[str, int]:
        """How many items there are in each state, and in the selection."""
        with self._lock:
            states = Counter(entry.state for entry in self._entries.values())
            names = ("done", "failed", "stale", "new", "processing")
            return {
                "total": len(self._entries),
                **{name: states[name] for name in names},
                "excluded": len(self._selection.exclude & self._entries.keys()),
                "selected": sum(verdict.selected for verdict in self.verdicts.values()),
            }

    def changed_since(self, version: int) -> list[str]:
        """Items that have changed since the board had this version."""
        with self._lock:
            if version >= self.version:
                return []
            return [name for name, at in self._changed.items() if at > version]

    def summaries(self) -> dict[str, Record]:
        """The records without what is long, by name."""
        with self._lock:
            return {name: summary.record for name, summary in self._summaries.items()}

    def summary(self, name: str) -> Summary | None:
        """The short form of an item's record; None where it has none."""
        with self._lock:
            return self._summaries.get(name)

    def states(self, name: str) -> dict[str, StepState]:
        """How every step of an item stands, without looking at the disk; empty where it has no record."""
        with self._lock:
            return self._states(name, lambda path: True)

    @property
    def expectations(self) -> Expectations:
        """What the settings ask for, as of the last `load` or `refresh`."""
        with self._lock:
            if self._expectations is None:
                self._expectations = Expectations(self.session.settings, self.session.root)
            return self._expectations

    # ------------------------------------------------------------------ changing

    def load(self) -> None:
        """Take in all records, the settings and the selection.

        Raises
        ------
        SettingsError, SessionError
            When settings or selection cannot be read.
        """
        settings, selection = self.session.settings, Selection.load(self.session.root)
        summaries, broken = index.load(self.session.store, write=True)
        for summary in summaries.values():
            _share_keys(summary.record)
        there = _files(self.session.root, summaries.values())
        with self._lock:
            self._expectations = Expectations(settings, self.session.root)
            self._selection = selection
            self._summaries, self.broken = summaries, broken
            # the file itself is looked at by the watcher
            self._entries = {name: self._made(name, there.__contains__) for name in summaries}
            source = str(self.session.store.folder)
            for name, reason in broken.items():
                series = table_path(self.session.root, name).exists()
                kind = "series" if series else self._expectations.kind_of("movie")
                self._entries[name] = Entry(name, kind, "", source, 0.0, None, "failed", reason)
            self._order = sorted((natural_key(name), name) for name in self._entries)
            self._touch(self._entries)

    def add(self, sources: Mapping[str, tuple[Path, float]], kind: str = "movie") -> None:
        """Put new items on the board.

        Parameters
        ----------
        sources : mapping
            Name → file, and when it was last changed (s since 1970).
        kind : str
            Of all of them.
        """
        with self._lock:
            for name, (path, mtime) in sources.items():
                if name not in self._entries:
                    insort(self._order, (natural_key(name), name))
                if name not in self._summaries and name not in self.broken:
                    self._entries[name] = Entry(name, kind, str(path), str(path.parent), mtime)
            self._touch(sources)

    def remove(self, names: Iterable[str]) -> None:
        """Take items off that have no record."""
        with self._lock:
            for name in names:
                if name in self._entries and name not in self._summaries:
                    del self._entries[name]
                    self._changed.pop(name, None)
            self._order = [place for place in self._order if place[1] in self._entries]
            self._touch(())

    def forget(self, name: str) -> None:
        """An item's record is gone: it is as if it had never been looked at."""
        with self._lock:
            self._summaries.pop(name, None)
            self._inputs.pop(name, None)
            self.broken.pop(name, None)
            self.remove([name])

    def replaced(self, name: str, identity: FileIdentity) -> None:
        """An item's file is another one now, or lies elsewhere."""
        with self._lock:
            if name not in self._summaries:
                return
            if identity == self._summaries[name].record.input:
                self._inputs.pop(name, None)
            else:
                self._inputs[name] = identity
            self._entries[name] = self._made(name, lambda path: True)
            self._touch([name])

    def update(self, names: Iterable[str]) -> list[str]:
        """Read the records of some items again; the names of those that have none."""
        missing = []
        for name in names:
            try:
                summary = self.session.store.read_summary(name)
            except SessionError as error:
                with self._lock:
                    self.broken[name] = str(error)
                    if name in self._entries:
                        entry = replace(self._entries[name], state="failed", reason=str(error))
                        self._entries[name] = entry
                        self._touch([name])
                continue
            if summary is None:
                missing.append(name)
                continue
            _share_keys(summary.record)
            with self._lock:
                self.broken.pop(name, None)
                self._put(name, summary)
        return missing

    def _put(self, name: str, summary: Summary) -> None:
        if name not in self._entries:
            insort(self._order, (natural_key(name), name))
        self._summaries[name] = summary
        known = self._inputs.get(name)
        if known is not None and known.content == summary.record.input.content:
            del self._inputs[name]
        self._entries[name] = self._made(name, lambda path: True)
        self._touch([name])

    def begin(self, name: str) -> None:
        """An item is in work from now on."""
        with self._lock:
            self._in_work.add(name)
            if name in self._entries:
                self._entries[name] = replace(self._entries[name], state="processing", reason="", step="")
                self._touch([name])

    def end(self, name: str) -> list[str]:
        """An item's work has ended: its record is read again; its name where it has none."""
        with self._lock:
            self._in_work.discard(name)
            entry = self._entries.get(name)
            if entry is not None and name not in self._summaries:
                self._entries[name] = replace(entry, state="new")
                self._touch([name])
        return self.update([name])

    def refresh(self, settings: SessionSettings | None = None) -> list[str]:
        """After a change of the settings: what has become stale; the names of those that have changed.

        Parameters
        ----------
        settings : SessionSettings, optional
            Read again when not given.
        """
        expectations = Expectations(settings or self.session.settings, self.session.root)
        with self._lock:
            self._expectations = expectations
            changed = []
            for name, before in list(self._entries.items()):
                if name in self._summaries:
                    entry = self._made(name, lambda path: True)
                else:
                    entry = replace(before, kind=expectations.kind_of(before.kind))
                if entry != before:
                    self._entries[name] = entry
                    changed.append(name)
            if changed:
                self._touch(changed)
            return changed

    def set_selection(self, selection: Selection) -> None:
        """Judge by another selection from now on."""
        with self._lock:
            before, marks = self.verdicts, self._selection
            self._selection, self._verdicts = selection, None
            after = self.verdicts
            by_hand = (marks.include ^ selection.include) | (marks.exclude ^ selection.exclude)
            changed = [name for name, verdict in after.items() if verdict != before.get(name)]
            self._touch({*changed, *(by_hand & after.keys())}, judged=True)

    # ------------------------------------------------------------------ inside

    def _touch(self, names: Iterable[str], judged: bool = False) -> None:
        self.version += 1
        self._changed.update(dict.fromkeys(names, self.version))
        self._snapshot = None
        if not judged:
            self._verdicts = None

    def _states(self, name: str, exists: Callable[[str], bool]) -> dict[str, StepState]:
        summary = self._summaries.get(name)
        if summary is None:
            return {}
        record = summary.record
        return states_under(self.expectations, record, self._inputs.get(name, record.input), exists)

    def _made(self, name: str, exists: Callable[[str], bool]) -> Entry:
        """The entry of an item that has a record."""
        summary = self._summaries[name]
        record = summary.record
        source = self._inputs.get(name, record.input)
        states = self._states(name, exists)
        state: str = item_state(states)
        worst = ((step, s.reason) for step, s in states.items() if s.state == state and s.reason)
        step, reason = next(worst, ("", ""))
        if name in self._in_work:
            state, step, reason = "processing", "", ""
        return Entry(
            name,
            self.expectations.kind_of(record.kind),
            source.path,
            sys.intern(os.path.dirname(source.path)),
            source.mtime_ns * 1e-9,
            summary.mtime_ns * 1e-9,
            state,
            reason,
            step,
            record.metrics,
            record.outputs,
        )


def _share_keys(record: Record) -> None:
    """Let the names of metrics and outputs be one text for all items: half of the memory otherwise."""
    for step in record.steps.values():
        for table in (step.outputs, *step.results.values()):
            if isinstance(table, dict):
                for key in list(table):
                    table[sys.intern(key)] = table.pop(key)


def _files(root: Path, summaries: Iterable[Summary]) -> set[str]:
    """All files in the folders of the items' results, relative to the session.

    A few listings take the place of ten thousands of looks.
    """
    outputs = (step.outputs.values() for summary in summaries for step in summary.record.steps.values())
    folders = {os.path.dirname(path) for paths in outputs for path in paths}
    found: set[str] = set()
    for folder in folders:
        with suppress(OSError), os.scandir(root / folder) as entries:
            found.update(f"{folder}/{entry.name}" for entry in entries)
    return found

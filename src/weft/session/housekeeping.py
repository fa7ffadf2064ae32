"""What a live session needs besides its work: settings, selection, disk, tables, alerts."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import SessionError, SettingsError
from weft.session import config, index
from weft.session.advice import AdviceSettings
from weft.session.adviser import Adviser
from weft.session.alerts import AlertSettings, find_alerts
from weft.session.input import LiveSettings
from weft.session.selection import Selection

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.dispatch import Dispatcher
    from weft.session.feed import Feed
    from weft.session.session import Session

__all__ = ["Housekeeper"]

#: Seconds between two rewritings of the tables, and in times of what one takes.
_TABLES_EVERY = 5.0
_TABLES_SHARE = 20.0
#: Tables that took no longer than this are written at once when the selection changes (s).
_AT_ONCE = 0.1
#: Seconds between two looks at files that people may edit, at the disk, and at alerts.
_LOOK_EVERY = 1.0
_DISK_EVERY = 2.0
_ALERTS_EVERY = 3.0
#: Work goes on when so many times the space is free that was missing.
_ENOUGH = 1.1


class Housekeeper:
    """Keeps a live session in order; `tick` is called a few times a second by one thread.

    Parameters
    ----------
    session : Session
    board : Board
    dispatcher : Dispatcher
    feed : Feed
    on_note : callable
        Gets sentences for people.

    Attributes
    ----------
    alerts : list of dict
        What needs attention, JSON-able; errors first.
    disk : dict
        Bytes free and in total on the session's disk.
    wake : threading.Event
        Set when there is something to be seen to.
    """

    def __init__(
        self,
        session: Session,
        board: Board,
        dispatcher: Dispatcher,
        feed: Feed,
        on_note: Callable[[str], None],
    ) -> None:
        self.session, self.board, self.dispatcher, self.feed = session, board, dispatcher, feed
        self.alerts: list[dict[str, Any]] = []
        self.disk = {"free": 0, "total": 0}
        self.wake = threading.Event()
        self._note = on_note
        self._lock = threading.RLock()
        # of its own: a selection does not wait for a long table
        self._tables_lock = threading.Lock()
        self._adviser = Adviser(session.root, on_note)
        self._own: dict[str, tuple[str, str]] = {}
        self._by_hand = ""
        self._full = ""
        self._told_version = board.version
        self._told_status: Any = None
        self._judged: list[dict[str, Any]] | None = None
        self._judged_version = -1
        self._tables_due: float | None = 0.0
        self._tables_took = 0.0
        self._next = dict.fromkeys(("look", "disk", "alerts", "status"), 0.0)
        self._settings_stamp = _stamp(session.root / config.FILE_NAME)
        self._selection_stamp = _stamp(session.root / "selection.json")
        self.look_at_disk()

    # ------------------------------------------------------------------ called by the manager

    def tick(self, status: Callable[[], dict[str, Any]]) -> None:
        """See to everything that is due."""
        if self._is_due("look", _LOOK_EVERY):
            self.look_at_settings()
            self._look_at_selection()
            self.dispatcher.look_for_late()
        if self._is_due("disk", _DISK_EVERY):
            self.look_at_disk()
        if self._tables_due is not None and time.monotonic() >= self._tables_due:
            self.write_tables()
        if self._is_due("alerts", _ALERTS_EVERY):
            self._look_for_alerts()
        self._tell(status)

    def outcome(self) -> None:
        """An item has ended: the tables are behind, and somebody may be waiting for it."""
        if self._tables_due is None:
            self._tables_due = time.monotonic() + max(_TABLES_EVERY, _TABLES_SHARE * self._tables_took)
        self.wake.set()

    def finish(self) -> None:
        """The last tables; messages that are under way."""
        self.write_tables()
        self._adviser.close()

    def hold(self, reason: str) -> None:
        """Hand out no work for a reason of people's; empty to go on."""
        self._by_hand = reason
        self._set_held()
        self.wake.set()

    def select(self, change: Callable[[Selection], Selection]) -> None:
        """Change the selection, keep it, and judge by it."""
        with self._lock:
            selection = change(self.board.selection)
            selection.save(self.session.root)
            self._selection_stamp = _stamp(self.session.root / "selection.json")
            self._apply(selection)

    def look_at_settings(self, *, force: bool = False) -> None:
        """Take over what weft.toml says, if it was changed; what cannot be read changes nothing."""
        with self._lock:
            stamp = _stamp(self.session.root / config.FILE_NAME)
            if stamp == self._settings_stamp and not force:
                return
            self._settings_stamp = stamp
            try:
                settings = self.session.settings
            except SettingsError as error:
                self._own["settings"] = ("error", f"{error} The settings from before are used.")
                self._next["alerts"] = 0.0
                return
            self._own.pop("settings", None)
            before = self.dispatcher.settings.plain()
            keys = [
                f"{section}.{key}"
                for section, values in settings.plain().items()
                for key, value in values.items()
                if before[section][key] != value
            ]
            if keys:
                self.dispatcher.set_settings(settings)
                self.feed.publish("settings", {"changed": keys})
                self.wake.set()

    # ------------------------------------------------------------------ inside

    def _is_due(self, what: str, interval: float) -> bool:
        now = time.monotonic()
        if now < self._next[what]:
            return False
        self._next[what] = now + interval
        return True

    def _set_held(self) -> None:
        before = self.dispatcher.held
        self.dispatcher.held = self._full or self._by_hand
        if before and not self.dispatcher.held:
            self.dispatcher.hurry()

    def _apply(self, selection: Selection) -> None:
        decided = self.board.selection.exclude ^ selection.exclude
        self.board.set_selection(selection)
        self.dispatcher.plan(decided)
        ranges = {name: list(bounds) for name, bounds in selection.ranges.items()}
        by_hand = {"include": sorted(selection.include), "exclude": sorted(selection.exclude)}
        self.feed.publish("selection", {"ranges": ranges, **by_hand})
        if self._tables_took <= _AT_ONCE:
            self.write_tables()
        else:
            self._tables_due = time.monotonic()
        self.wake.set()

    def _look_at_selection(self) -> None:
        """Somebody may have called `weft select` meanwhile."""
        with self._lock:
            stamp = _stamp(self.session.root / "selection.json")
            if stamp == self._selection_stamp:
                return
            self._selection_stamp = stamp
            try:
                selection = Selection.load(self.session.root)
            except SessionError as error:
                self._own["selection"] = ("error", f"{error} The selection from before is used.")
                return
            self._own.pop("selection", None)
            if selection != self.board.selection:
                self._apply(selection)

    def look_at_disk(self) -> None:
        """Pause while there is too little room."""
        usage = shutil.disk_usage(self.session.root)
        self.disk = {"free": usage.free, "total": usage.total}
        wanted = self.dispatcher.settings.get(LiveSettings).keep_free * 1e9
        before = self._full
        if usage.free < wanted * (_ENOUGH if before else 1.0):
            self._full = (
                f"only {usage.free / 1e9:.1f} GB are free on the session's disk, and live.keep_free is "
                f"{wanted / 1e9:g} GB; work goes on when there is more room"
            )
        else:
            self._full = ""
        if bool(before) != bool(self._full):
            self._note(self._full or "there is room on the disk again: going on")
        self._set_held()

    def write_tables(self) -> None:
        """Bring the tables and the index into accord with the records."""
        with self._tables_lock:
            begin = time.monotonic()
            self._tables_due = None
            root = self.session.root
            written = self.dispatcher.take_written()
            try:
                self.session.write_tables(self.board.summaries())
                try:
                    index.update(root, written.values())
                except sqlite3.Error:
                    index.load(self.session.store, write=True)  # a cache may break
                self._own.pop("tables", None)
            except Exception as error:  # whatever it is, the session must go on
                text = f"The tables cannot be written ({type(error).__name__}: {error}); it is tried again."
                self._own["tables"] = ("error", text)
                self._tables_due = time.monotonic() + _TABLES_EVERY
            self._tables_took = time.monotonic() - begin

    def _look_for_alerts(self) -> None:
        settings = self.dispatcher.settings
        known = {alert["id"] for alert in self.alerts}
        found = [
            {"id": id, "level": level, "text": text, "items": []}
            for id, (level, text) in list(self._own.items())
        ]
        if self._full:
            found.append({"id": "disk", "level": "error", "text": f"Paused: {self._full}.", "items": []})
        if self.dispatcher.trouble:
            text = f"Work on items breaks down, it is tried again: {self.dispatcher.trouble}"
            found.append({"id": "work", "level": "error", "text": text, "items": []})
        if self._judged is None or self.board.version != self._judged_version:
            self._judged_version = self.board.version
            entries = list(self.board.entries.values())
            alerts = find_alerts(entries, settings.get(AlertSettings))
            self._judged = [alert.to_dict() for alert in alerts]
            self._adviser.update(entries, self.board.verdicts, settings.get(AdviceSettings))
        self.alerts = found + self._judged
        for alert in self.alerts:
            if alert["id"] not in known:
                self.feed.publish("alert", alert)

    def _tell(self, status: Callable[[], dict[str, Any]]) -> None:
        """What has changed, to those who listen."""
        version = self.board.version
        if version != self._told_version:
            changed = self.board.changed_since(self._told_version)
            self._told_version = version
            self.feed.publish("items", changed)
        if self._is_due("status", _LOOK_EVERY):
            now = status()
            # what ticks by itself is no news
            news = {key: now[key] for key in ("items", "backlog", "paused", "waiting", "alerts")}
            if news != self._told_status:
                self._told_status = news
                self.feed.publish("status", now)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino

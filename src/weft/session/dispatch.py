"""The live source of tasks: what arrives, changes and fails becomes items on an agenda, then tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.session.agenda import Rank
from weft.session.discovery import name_items
from weft.session.engine import available_cores
from weft.session.input import LiveSettings
from weft.session.intake import take_stock
from weft.session.item_planner import ItemPlanner, LateRecord
from weft.session.pace import Pace
from weft.session.records import Summary
from weft.session.series_book import SeriesBook
from weft.session.steps import steps_of
from weft.session.tilt_table import item_identity
from weft.session.watching import Look
from weft.session.work import Outcome, Task, killed, set_aside

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.config import SessionSettings
    from weft.session.session import Session

__all__ = ["Dispatcher"]

#: Seconds for which a record that a worker has written may be invisible here (network file systems).
_LATE = 90.0


class Dispatcher:
    """Decides what is done next; a `weft.session.engine.Source`. Safe to use from several threads.

    Parameters
    ----------
    session : Session
    board : Board
        Loaded.
    settings : SessionSettings
        For the next task.
    device : str
    on_note : callable
        Gets sentences for people.

    Attributes
    ----------
    held : str
        Why no tasks are handed out; empty while they are.
    stopping : bool
        Whether none will be handed out any more.
    threads : int
        For the arithmetic of a task; 0 leaves it to the worker.
    """

    def __init__(
        self,
        session: Session,
        board: Board,
        settings: SessionSettings,
        device: str = "auto",
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.session = session
        self.board = board
        self.device = device
        self.threads = 0
        self.held = ""
        self.stopping = False
        self.pace = Pace()
        self.book = SeriesBook(session)
        self._note = on_note
        self._lock = threading.RLock()
        self._planner = ItemPlanner(board, self.book)
        self._known = {entry.source: name for name, entry in board.entries.items() if entry.source}
        self._written: dict[str, Summary] = {}
        self._told: set[str] = set()
        self._take_settings(settings)
        self._take_series(self.book.tables)
        self.plan_all()

    # ------------------------------------------------------------------ what the engine asks

    def next(self) -> Task | None:
        """The next task; None when there is none now."""
        with self._lock:
            planner = self._planner
            if self.stopping or self.held or planner.tries.pausing:
                return None
            while (taken := planner.agenda.take()) is not None:
                name, rank = taken
                entry = self.board.entry(name)
                if entry is None or name in planner.in_work:
                    continue  # planned again when its work has ended
                if entry.kind == "series" and planner.why_not_yet(name, asked=rank is Rank.ASKED):
                    continue  # planned again when its movies have been seen to
                task = Task(
                    str(self.session.root),
                    entry.source,
                    name,
                    entry.kind,
                    steps_of(entry.kind),
                    self._plain,
                    self._threads_for(entry.kind),
                    self.device,
                    retry=rank is Rank.ASKED,
                )
                planner.in_work[name] = task
                planner.asked.discard(name)
                self.board.begin(name)
                return task
            return None

    def _threads_for(self, kind: str) -> int:
        """A tilt series that is alone may use all cores."""
        alone = kind == "series" and not self._planner.in_work and not len(self._planner.agenda)
        return max(self.threads, available_cores()) if alone and self.threads else self.threads

    def ended(self) -> bool:
        """Whether no task will come any more."""
        return self.stopping

    def outcome(self, outcome: Outcome) -> None:
        """The work on an item has ended."""
        name, planner = outcome.item, self._planner
        with self._lock:
            planner.in_work.pop(name, None)
            planner.replaced.discard(name)
            if self.board.end(name) and outcome.done:
                now = time.monotonic()
                planner.late[name] = LateRecord(now + _LATE, now)
            self._remember(name)
            if outcome.error:
                planner.tries.failed(name, outcome.error)
            else:
                planner.tries.succeeded(name)
            self.pace.ended()
            planner.plan(name)
            self._follow([name])

    def killer(self, task: Task, deaths: int) -> Outcome:
        """An item has killed its workers: set it aside."""
        text = killed(deaths, "with the button on its page, or `weft run --retry`")
        self._note(f"{task.item}: {text}")
        return set_aside(task, text)

    def error(self, task: Task, error: BaseException) -> Outcome:
        """The work on an item broke down without a word in its record: a full disk, a missing folder."""
        text = f"{task.item}: {type(error).__name__}: {' '.join(str(error).split())}"
        with self._lock:
            self._planner.tries.broke_down(text)
        self._note(text)
        return Outcome(task.item, (), text, task.steps[0])

    def lost_all(self) -> None:
        """The engine has broken down: what was in work is planned again."""
        with self._lock:
            lost = list(self._planner.in_work)
            self._planner.in_work.clear()
            for name in lost:
                self.board.end(name)
            self.plan(lost)

    # ------------------------------------------------------------------ what happens

    def take_in(self, look: Look) -> list[Path]:
        """What a look at the folders has found; files that must be given again, because they slipped away."""
        with self._lock:
            known, busy = dict(self._known), set(self._planner.in_work)
        found = take_stock(self.session, self.board, look.ready, known, busy)
        with self._lock:
            for name, path in found.moved.items():
                self._known = {file: item for file, item in self._known.items() if item != name}
                self._known[str(path)] = name
                self.board.update([name])
                self._remember(name)
                self._note(f"{name}: its movie is {path} now")
            names = name_items(found.fresh, self._known)
            self._known.update({str(path): name for name, path in names.items()})
            kind = self.board.expectations.kind_of("movie")
            self.board.add({name: (path, found.fresh[path]) for name, path in names.items()}, kind)
            for name, identity in found.identities.items():
                before = self.board.summary(name)
                if before is not None and before.record.input.content != identity.content:
                    self._planner.replaced.add(name)
                self.board.replaced(name, identity)
            self._miss(look.gone)
            back = [known[str(path)] for path in look.ready if str(path) in known]
            for name in (*found.moved, *names, *back):
                self._planner.gone.discard(name)
                self._planner.tries.forget(name)
                self._planner.plan(name)
        return found.slipped

    def look_at_series(self) -> dict[str, str]:
        """Read the mdocs, match them with the movies; the series that wait, and for what.

        Raises
        ------
        SettingsError, SessionError
        """
        if not self.settings.input.of_tilts:
            return {}
        with self._lock:
            entries = self.board.entries
            movies = {name: Path(e.source) for name, e in entries.items() if e.kind != "series"}
        news = self.book.look(movies, self.board.summaries)
        with self._lock:
            self._let_go(news.vanished)
            self._take_series(news.changed)
            for text in news.found.problems:
                if text not in self._told:
                    self._told.add(text)
                    self._note(text)
            waiting = {}
            for name in news.found.tables:
                entry = self.board.entry(name)
                if entry is not None and entry.state not in ("done", "processing"):
                    reason = self._planner.plan(name)
                    if reason:
                        waiting[name] = reason
            return waiting

    def decide_tilts(self, name: str, tilts: Iterable[int], keep: bool | None) -> None:
        """Keep or leave out tilts of a series by hand; None leaves it to Weft again.

        Raises
        ------
        SessionError
            For a series or a tilt that is not there.
        """
        with self._lock:
            self.book.decide(name, tilts, keep)
            self._take_series([name])

    def _take_series(self, names: Iterable[str]) -> None:
        """The tables of these series are new or have changed."""
        for name in names:
            path = self.book.path(name)
            try:
                identity = item_identity(path, "series")
            except OSError:
                continue
            self._known[str(path)] = name
            self.board.add({name: (path, identity.mtime_ns * 1e-9)}, "series")
            self.board.replaced(name, identity)
            self._planner.tries.forget(name)
            self._planner.plan(name)

    def _follow(self, movies: Iterable[str]) -> None:
        """Something about these movies has changed: see anew to their series."""
        movies = list(movies)
        if not self.settings.input.of_tilts:
            return
        self._take_series(self.book.follow(movies, self.board.summaries))
        for name in self.book.series_of(movies):
            self._planner.plan(name)

    def _let_go(self, names: Iterable[str]) -> None:
        """Series that nothing describes any more, and of which nothing was made."""
        planner = self._planner
        gone = [name for name in names if name not in planner.in_work and self.board.summary(name) is None]
        self.book.forget(gone)
        for name in gone:
            planner.forget(name)
            self._known = {file: item for file, item in self._known.items() if item != name}
        if gone:
            self.board.remove(gone)

    def _miss(self, gone: Iterable[Path]) -> None:
        """Files that are not there any more."""
        planner, forgotten = self._planner, []
        for path in gone:
            name = self._known.get(str(path))
            if name is None:
                continue
            if self.board.summary(name) is None and name not in planner.in_work:
                forgotten.append(name)
                planner.agenda.drop(name)
                del self._known[str(path)]
            else:
                planner.gone.add(name)
                planner.plan(name)
        if forgotten:
            self.board.remove(forgotten)

    def set_settings(self, settings: SessionSettings) -> list[str]:
        """From the next task on, these; the names of the items that stand otherwise now."""
        with self._lock:
            changed = self.board.refresh(settings)
            self._take_settings(settings)
            self._planner.tries.forget_all()
            self.plan_all()
            return changed

    def _take_settings(self, settings: SessionSettings) -> None:
        self.settings = settings
        self._plain = settings.plain()
        self._planner.live = settings.get(LiveSettings)
        self._planner.agenda.newest_first = self._planner.live.newest_first

    def retry(self, names: Iterable[str]) -> None:
        """Do these before all others, also what failed by a fault of its own.

        Raises
        ------
        SessionError
            For a name that no item has; nothing is done then.
        """
        wanted = list(names)
        with self._lock:
            entries = {name: self.board.entry(name) for name in wanted}
            for name, entry in entries.items():
                if entry is None:
                    raise SessionError(f"{self.session.root} has no item {name!r}.")
            for name, entry in entries.items():
                assert entry is not None
                if name in self.board.broken:
                    self._put_away(name)
                self._planner.tries.forget(name)
                if entry.state != "done":
                    self._planner.asked.add(name)
            self.plan(wanted)

    def _put_away(self, name: str) -> None:
        """A record that cannot be read makes room for a new one."""
        path = self.session.store.path(name)
        with suppress(OSError):
            path.replace(self.session.root / "logs" / f"{name}.unreadable.json")
        self.board.forget(name)
        kind = "series" if name in self.book.tables else self.board.expectations.kind_of("movie")
        for source in (Path(file) for file, item in self._known.items() if item == name):
            with suppress(OSError):
                self.board.add({name: (source, source.stat().st_mtime)}, kind)

    def plan(self, names: Iterable[str]) -> None:
        """See anew whether something is to be done about these, and about the series that they belong to."""
        with self._lock:
            self.book.excluded = self.board.selection.exclude
            names = list(names)
            kinds = {name: entry.kind for name in names if (entry := self.board.entry(name)) is not None}
            for name in names:
                self._planner.plan(name)
            # a series waits for movies that are on the agenda: by now they are
            self._follow(name for name in names if kinds.get(name) != "series")

    def plan_all(self) -> None:
        """See anew what is to be done about every item."""
        self.plan(self.board.entries)

    def hurry(self) -> None:
        """What stood in the way is gone: nothing waits for its next try any longer."""
        with self._lock:
            self._planner.tries.hurry()
            self._planner.agenda.hurry()

    # ------------------------------------------------------------------ what others ask

    @property
    def backlog(self) -> int:
        """Items that wait."""
        with self._lock:
            return len(self._planner.agenda)

    @property
    def in_work(self) -> int:
        """Items that are being worked on."""
        with self._lock:
            return len(self._planner.in_work)

    @property
    def trouble(self) -> str:
        """What broke down last, while it does; else empty."""
        return self._planner.tries.trouble

    def take_written(self) -> dict[str, Summary]:
        """The records that have changed since this was last asked: for the index."""
        with self._lock:
            written, self._written = self._written, {}
            return written

    def look_for_late(self) -> None:
        """Records that could not be seen yet."""
        now, waiting = time.monotonic(), self._planner.late
        with self._lock:
            for name, late in list(waiting.items()):
                if now < late.next_look:
                    continue
                if not self.board.update([name]):
                    self._remember(name)
                elif now < late.until:
                    waiting[name] = LateRecord(late.until, now + 2.0)
                    continue
                del waiting[name]
                self.plan([name])

    def _remember(self, name: str) -> None:
        summary = self.board.summary(name)
        if summary is not None:
            self._written[name] = summary

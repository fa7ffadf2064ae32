"""The live source of tasks: what arrives, changes and fails becomes items on an agenda, then tasks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.session.agenda import Agenda, Rank
from weft.session.discovery import name_items, natural_key
from weft.session.engine import available_cores
from weft.session.input import LiveSettings
from weft.session.intake import follow_moved
from weft.session.pace import Pace
from weft.session.plan import steps_to_run
from weft.session.records import FileIdentity, Summary
from weft.session.series_book import SeriesBook
from weft.session.steps import all_steps, steps_of
from weft.session.tilt_table import item_identity
from weft.session.watching import Look
from weft.session.work import Outcome, Task, killed, set_aside

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.config import SessionSettings
    from weft.session.session import Session

__all__ = ["Dispatcher"]

#: An item that fails for no fault of its own is tried again after so many seconds, then twice as many ...
_FIRST_DELAY = 15.0
#: ... and so often at most, until something changes.
_MOST_TRIES = 5
#: Items that break down in a row: then it is not the items.
_MOST_BROKEN = 4
_BREATHER = 30.0
#: Seconds for which a record that a worker has written may be invisible here (network file systems).
_LATE = 90.0


@dataclass(frozen=True)
class _Late:
    until: float
    next_look: float


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
    trouble : str
        What broke down last, while it does.
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
        self.trouble = ""
        self.pace = Pace()
        self.book = SeriesBook(session)
        self._note = on_note
        self._lock = threading.RLock()
        self._agenda = Agenda()
        self._in_work: dict[str, Task] = {}
        self._known = {entry.source: name for name, entry in board.entries.items() if entry.source}
        self._gone: set[str] = set()
        self._tries: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._replaced: set[str] = set()
        self._asked: set[str] = set()
        self._late: dict[str, _Late] = {}
        self._written: dict[str, Summary] = {}
        self._broken = 0
        self._told: set[str] = set()
        self._resume_at = 0.0
        self._take_settings(settings)
        self._take_series(self.book.tables)
        self.plan_all()

    # ------------------------------------------------------------------ what the engine asks

    def next(self) -> Task | None:
        """The next task; None when there is none now."""
        with self._lock:
            if self.stopping or self.held or time.monotonic() < self._resume_at:
                return None
            while (taken := self._agenda.take()) is not None:
                name, rank = taken
                entry = self.board.entry(name)
                if entry is None or name in self._in_work:
                    continue  # planned again when its work has ended
                if entry.kind == "series" and self._why_not_yet(name, asked=rank is Rank.ASKED):
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
                self._in_work[name] = task
                self._asked.discard(name)
                self.board.begin(name)
                return task
            return None

    def _threads_for(self, kind: str) -> int:
        """A tilt series that is alone may use all cores."""
        alone = kind == "series" and not self._in_work and not len(self._agenda)
        return max(self.threads, available_cores()) if alone and self.threads else self.threads

    def ended(self) -> bool:
        """Whether no task will come any more."""
        return self.stopping

    def outcome(self, outcome: Outcome) -> None:
        """The work on an item has ended."""
        name = outcome.item
        with self._lock:
            self._in_work.pop(name, None)
            self._replaced.discard(name)
            if self.board.end(name) and outcome.done:
                now = time.monotonic()
                self._late[name] = _Late(now + _LATE, now)
            self._remember(name)
            if outcome.error:
                self._tries[name] += 1
                self._errors[name] = outcome.error
            else:
                self._tries.pop(name, None)
                self._errors.pop(name, None)
                self._broken, self.trouble = 0, ""
            self.pace.ended()
            self._plan(name)
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
            self.trouble = text
            self._broken += 1
            if self._broken >= _MOST_BROKEN:
                self._resume_at = time.monotonic() + _BREATHER
        self._note(text)
        return Outcome(task.item, (), text, task.steps[0])

    def lost_all(self) -> None:
        """The engine has broken down: what was in work is planned again."""
        with self._lock:
            lost = list(self._in_work)
            self._in_work.clear()
            for name in lost:
                self.board.end(name)
            self.plan(lost)

    # ------------------------------------------------------------------ what happens

    def take_in(self, look: Look) -> list[Path]:
        """What a look at the folders has found; files that must be given again, because they slipped away."""
        with self._lock:
            known = dict(self._known)
            idle = {n: r for n, r in self.board.summaries().items() if n not in self._in_work}
        new = [path for path in look.ready if str(path) not in known]
        moved = follow_moved(self.session, idle, new) if new else {}
        fresh, slipped = {}, []
        for path in sorted(set(new) - set(moved.values()), key=lambda path: natural_key(str(path))):
            try:
                fresh[path] = path.stat().st_mtime
            except OSError:
                slipped.append(path)
        identities: dict[str, FileIdentity] = {}
        for path in look.ready:
            name = known.get(str(path))
            if name is not None and self.board.summary(name) is not None:
                try:
                    identities[name] = FileIdentity.of(path)
                except OSError:
                    slipped.append(path)
        with self._lock:
            for name, path in moved.items():
                self._known = {file: item for file, item in self._known.items() if item != name}
                self._known[str(path)] = name
                self.board.update([name])
                self._remember(name)
                self._note(f"{name}: its movie is {path} now")
            names = name_items(fresh, self._known)
            self._known.update({str(path): name for name, path in names.items()})
            kind = self.board.expectations.kind_of("movie")
            self.board.add({name: (path, fresh[path]) for name, path in names.items()}, kind)
            for name, identity in identities.items():
                before = self.board.summary(name)
                if before is not None and before.record.input.content != identity.content:
                    self._replaced.add(name)
                self.board.replaced(name, identity)
            self._miss(look.gone)
            back = [known[str(path)] for path in look.ready if str(path) in known]
            for name in (*moved, *names, *back):
                self._gone.discard(name)
                self._tries.pop(name, None)
                self._plan(name)
        return slipped

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
                    reason = self._plan(name)
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
            self._tries.pop(name, None)
            self._plan(name)

    def _follow(self, movies: Iterable[str]) -> None:
        """Something about these movies has changed: see anew to their series."""
        movies = list(movies)
        if not self.settings.input.of_tilts:
            return
        self._take_series(self.book.follow(movies, self.board.summaries))
        for name in self.book.series_of(movies):
            self._plan(name)

    def _let_go(self, names: Iterable[str]) -> None:
        """Series that nothing describes any more, and of which nothing was made."""
        gone = [name for name in names if name not in self._in_work and self.board.summary(name) is None]
        self.book.forget(gone)
        for name in gone:
            self._agenda.drop(name)
            self._asked.discard(name)
            self._known = {file: item for file, item in self._known.items() if item != name}
        if gone:
            self.board.remove(gone)

    def _why_not_yet(self, name: str, *, asked: bool = False) -> str:
        """Why a series is not to be processed yet; empty when it is.

        Parameters
        ----------
        asked : bool
            Somebody asks for it now: nothing that may still come is waited for.
        """
        table = self.book.tables.get(name)
        if table is None:
            return ""  # it fails with a reason of its own
        # while movies are done anew, their series would be done anew with each of them
        movies = [row.item for row in table.tilts if row.item]
        unsettled = [m for m in movies if m in self._agenda or m in self._in_work or m in self._late]
        if unsettled:
            return f"{len(unsettled)} of its {len(movies)} movies are still to be processed"
        if asked:
            return ""
        live = self.settings.get(LiveSettings)
        return self.book.unfinished(name, live.series_quiet, live.series_deadline, to_come=())

    def _miss(self, gone: Iterable[Path]) -> None:
        forgotten = []
        for path in gone:
            name = self._known.get(str(path))
            if name is None:
                continue
            if self.board.summary(name) is None and name not in self._in_work:
                forgotten.append(name)
                self._agenda.drop(name)
                del self._known[str(path)]
            else:
                self._gone.add(name)
                self._plan(name)
        if forgotten:
            self.board.remove(forgotten)

    def set_settings(self, settings: SessionSettings) -> list[str]:
        """From the next task on, these; the names of the items that stand otherwise now."""
        with self._lock:
            changed = self.board.refresh(settings)
            self._take_settings(settings)
            self._tries.clear()
            self.plan_all()
            return changed

    def _take_settings(self, settings: SessionSettings) -> None:
        self.settings = settings
        self._plain = settings.plain()
        self._agenda.newest_first = settings.get(LiveSettings).newest_first

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
                self._tries.pop(name, None)
                if entry.state != "done":
                    self._asked.add(name)
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
                self._plan(name)
            # a series waits for movies that are on the agenda: by now they are
            self._follow(name for name in names if kinds.get(name) != "series")

    def plan_all(self) -> None:
        """See anew what is to be done about every item."""
        self.plan(self.board.entries)

    def hurry(self) -> None:
        """What stood in the way is gone: nothing waits for its next try any longer."""
        with self._lock:
            self._resume_at, self._broken, self.trouble = 0.0, 0, ""
            self._agenda.hurry()

    # ------------------------------------------------------------------ what others ask

    @property
    def backlog(self) -> int:
        """Items that wait."""
        with self._lock:
            return len(self._agenda)

    @property
    def in_work(self) -> int:
        """Items that are being worked on."""
        with self._lock:
            return len(self._in_work)

    def take_written(self) -> dict[str, Summary]:
        """The records that have changed since this was last asked: for the index."""
        with self._lock:
            written, self._written = self._written, {}
            return written

    def look_for_late(self) -> None:
        """Records that could not be seen yet."""
        now = time.monotonic()
        with self._lock:
            for name, late in list(self._late.items()):
                if now < late.next_look:
                    continue
                if not self.board.update([name]):
                    self._remember(name)
                elif now < late.until:
                    self._late[name] = _Late(late.until, now + 2.0)
                    continue
                del self._late[name]
                self.plan([name])

    # ------------------------------------------------------------------ inside

    def _remember(self, name: str) -> None:
        summary = self.board.summary(name)
        if summary is not None:
            self._written[name] = summary

    def _plan(self, name: str) -> str:
        """Put an item on the agenda, or take it off; of a series, what it waits for."""
        entry = self.board.entry(name)
        self._note_given_up(name)
        idle = entry is None or name in self.board.broken or name in self._gone or name in self._late
        if idle or entry is None or entry.state == "done" or name in self._in_work:
            self._agenda.drop(name)
            return ""
        asked = name in self._asked
        waits_for = self._why_not_yet(name, asked=asked) if entry.kind == "series" else ""
        if waits_for:
            self._agenda.drop(name)
            return waits_for
        if asked:
            self._agenda.put(name, Rank.ASKED, entry.mtime)
            return ""
        tries = self._tries[name]
        rank = self._rank(name)
        if rank is None or tries >= _MOST_TRIES or name in self.board.selection.exclude:
            self._agenda.drop(name)
            return ""
        delay = _FIRST_DELAY * 2.0 ** (tries - 1) if tries else 0.0
        self._agenda.put(name, Rank.AGAIN if tries else rank, entry.mtime, delay)
        return ""

    def _note_given_up(self, name: str) -> None:
        """Let the series of a movie know whether anybody will work on it."""
        if name in self.board.broken:
            why = self.board.broken[name]
        elif name in self._gone:
            why = "it is gone"
        elif self._tries[name] >= _MOST_TRIES:
            why = f"given up after {_MOST_TRIES} tries: {self._errors.get(name, 'work on it breaks down')}"
        else:
            why = ""
        if why:
            self.book.given_up[name] = why
        else:
            self.book.given_up.pop(name, None)

    def _rank(self, name: str) -> Rank | None:
        """Why something is to be done about an item; None where nothing is."""
        if self.board.summary(name) is None:
            return Rank.NEW
        states = self.board.states(name)
        if not steps_to_run(states, all_steps()):
            return None
        if name in self._replaced:
            return Rank.NEW
        return Rank.AGAIN if any(s.state == "failed" for s in states.values()) else Rank.STALE

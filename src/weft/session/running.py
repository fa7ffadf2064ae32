"""One run over a session: what has to be done, doing it, and keeping the tables in accord."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.formats.atomic import TEMPORARY_SUFFIX
from weft.session import index
from weft.session.config import SessionSettings
from weft.session.discovery import OUTPUT_FOLDERS, find_movies, natural_key
from weft.session.engine import Crew, available_cores, crew_size, run_tasks
from weft.session.input import EngineSettings
from weft.session.intake import follow_moved
from weft.session.items import Item
from weft.session.lock import SessionLock
from weft.session.plan import Expectations, states_under, steps_to_run
from weft.session.records import Record, Summary
from weft.session.series_book import SeriesBook
from weft.session.steps import steps_of, with_prerequisites
from weft.session.tilt_table import current_input, item_identity
from weft.session.work import Outcome, Task, killed, resolve_device, set_aside

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["Progress", "RunReport", "override", "run", "sweep", "visible_gpus"]

#: Seconds between two rewritings of the tables while a run goes on, and in times of what one takes.
_TABLE_INTERVAL = 5.0
_TABLE_SHARE = 20.0
_KEEP_FREE = 1 << 30


@dataclass(frozen=True)
class Progress:
    """What `run` tells while it works.

    Attributes
    ----------
    total, finished, failed : int
        Items that this run has to do, and how many of them have ended.
    item : str
        The one that has just ended; empty for a note.
    error : str
        Why it failed; empty otherwise.
    seconds : float
        It took.
    note : str
        Something else that people should know.
    """

    total: int
    finished: int
    failed: int
    item: str = ""
    error: str = ""
    seconds: float = 0.0
    note: str = ""


@dataclass
class RunReport:
    """How a run ended.

    Attributes
    ----------
    done : list of str
        Items that were worked on and are done.
    current : list of str
        Items that needed nothing.
    excluded : list of str
        Items that were excluded by hand.
    failed : dict
        Item → reason; those that failed earlier and were not tried again are in it.
    interrupted : bool
    seconds : float
    """

    done: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 done, 1 some items failed, 130 stopped by the user."""
        return 130 if self.interrupted else 1 if self.failed else 0


def run(
    session: Session,
    steps: Sequence[str] | None = None,
    only: str | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    retry: bool = False,
    scheduler: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RunReport:
    """What :meth:`Session.run` does; see there."""
    begin = time.monotonic()
    settings = session.settings
    wanted = with_prerequisites(steps)
    engine = override(settings.engine, workers, threads)
    if scheduler is None:
        resolve_device(device)
    _check_space(session.root)
    report = RunReport()
    with SessionLock(session.root):
        # workers of a cluster may have outlived their last manager, and be writing still
        sweep(session.root, older=3600.0 if scheduler else 0.0)
        for folder in ("records", "logs"):
            (session.root / folder).mkdir(exist_ok=True)
        records = session.summaries(write_index=True)
        _follow_moved(session, records, settings)
        plan = _Plan(session, records, settings, wanted, only, retry, device, report)
        if scheduler is None:
            crew = crew_size(engine, plan.total, visible_gpus(device))
        else:  # the threads of workers elsewhere are theirs
            crew = Crew(0, 0 if engine.threads == "auto" else engine.threads)
        plan.crew = crew
        book = _Bookkeeper(session, records, settings, report, plan, progress)
        try:
            for text in plan.notes:
                book.note(text)
            if plan.total:
                calls = book.outcome, book.killer, book.note
                run_tasks(plan, crew, engine, session.root, *calls, scheduler=scheduler)
        except KeyboardInterrupt:
            report.interrupted = True
        finally:
            book.write_tables()
    report.seconds = time.monotonic() - begin
    return report


class _Plan:
    """What a run has to do, in order; a `weft.session.engine.Source`.

    Movies come first; a tilt series follows as soon as all of its movies have been seen to.

    Attributes
    ----------
    notes : list of str
        What people should know beforehand.
    crew : Crew
    """

    def __init__(
        self,
        session: Session,
        records: dict[str, Record],
        settings: SessionSettings,
        wanted: Sequence[str],
        only: str | None,
        retry: bool,
        device: str,
        report: RunReport,
    ) -> None:
        self.session, self.records, self.report = session, records, report
        self.crew = Crew(1, 0)
        self._settings, self._plain = settings, settings.plain()
        self._wanted, self._only, self._retry, self._device = wanted, only, retry, device
        self._excluded = session.selection.exclude
        self._expectations = Expectations(settings, session.root)
        self._book = SeriesBook(session)
        sources = session.movie_sources(records)
        news = self._book.look(sources, records)
        self._book.forget(news.vanished)
        found = news.found
        self.notes = found.problems
        items = session.items_of(records)
        self._chosen = {n: item for n, item in items.items() if only is None or fnmatchcase(n, only)}
        self._series = {n: item for n, item in self._chosen.items() if item.kind == "series"}
        if only is not None:  # a series needs its movies, whatever they are called
            for name in self._series:
                rows = found.tables[name].tilts if name in found.tables else ()
                self._chosen.update({row.item: items[row.item] for row in rows if row.item in items})
        if not self._chosen:
            named = (*settings.input.frames, *settings.input.mdoc)
            what = f"no item is called {only}" if only else f"no file matches {', '.join(named)}"
            raise SessionError(f"{session.root}: there is nothing to do, {what}.")
        self._movies = deque(
            task
            for name, item in self._chosen.items()
            if item.kind != "series" and (task := self._task(item)) is not None
        )
        self._open = {task.item for task in self._movies}
        self._ready: deque[Task] = deque()
        self._planned = len(self._movies)
        self._expected = set(self._series) if steps_of("series", wanted) else set()
        self._release()

    @property
    def total(self) -> int:
        """Items that have to be done, as far as known."""
        return self._planned + len(self._expected)

    def next(self) -> Task | None:
        """See `Source`."""
        queue = self._ready or self._movies
        if not queue:
            return None
        task = queue.popleft()
        threads = self.crew.threads
        if task.kind == "series" and self.crew.workers:
            # what runs alone may use all cores
            side_by_side = min(
                self.crew.workers, 1 + len(self._ready) + len(self._movies) + len(self._expected)
            )
            threads = max(threads, available_cores() // side_by_side)
        return replace(task, threads=threads, device=self._device)

    def ended(self) -> bool:
        """See `Source`."""
        return not (self._ready or self._movies or self._expected)

    def seen_to(self, name: str) -> None:
        """An item has ended; its record is in `records`."""
        if name in self._open:
            self._open.discard(name)
            if self._settings.input.of_tilts:
                self._book.follow([name], self.records)
            self._release()

    def _release(self) -> None:
        """Series all of whose movies have been seen to."""
        for name in sorted(self._expected, key=natural_key):
            table = self._book.tables.get(name)
            movies = {row.item for row in table.tilts} if table is not None else set()
            if not movies & self._open:
                self._expected.discard(name)
                task = self._task(self._series[name])
                if task is not None:
                    self._planned += 1
                    self._ready.append(task)

    def _task(self, item: Item) -> Task | None:
        """What is to be done about an item; None, and a word in the report, where nothing is."""
        name, report = item.name, self.report
        steps = steps_of(item.kind, self._wanted)
        if not steps:
            return None
        if name in self._excluded:
            report.excluded.append(name)
            return None
        if item.record is not None:
            # a moved session has its tables where it is now
            series = item.kind == "series" and item.source.exists()
            now = item_identity(item.source, item.kind) if series else current_input(item.record)
            states = states_under(self._expectations, item.record, now)
            if not steps_to_run(states, steps, retry=self._retry):
                failed = [states[n].reason for n in steps if n in states and states[n].state == "failed"]
                if failed:
                    report.failed[name] = failed[0]
                else:
                    report.current.append(name)
                return None
        root, source = str(self.session.root), str(item.source)
        return Task(root, source, name, item.kind, steps, self._plain, retry=self._retry)


def _follow_moved(session: Session, records: dict[str, Record], settings: SessionSettings) -> None:
    """Movies that were renamed since the last run keep their records."""
    known = {record.input.path for record in records.values() if record.kind != "series"}
    new = [path for path in find_movies(settings.input, session.root) if str(path) not in known]
    for name in follow_moved(session, records, new):
        summary = session.store.read_summary(name)
        if summary is not None:
            records[name] = summary.record


def _check_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < _KEEP_FREE:
        raise SessionError(f"{root}: only {free / 1e9:.1f} GB are free on this disk; make room first.")


def sweep(root: Path, older: float = 0.0) -> None:
    """Delete the unfinished files that a killed process left behind, if they are so many seconds old."""
    pattern = f".*{TEMPORARY_SUFFIX}"
    found = [root.glob(pattern), *((root / name).rglob(pattern) for name in OUTPUT_FOLDERS)]
    for path in (path for paths in found for path in paths):
        with suppress(FileNotFoundError):
            if not older or time.time() - path.stat().st_mtime > older:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


class _Bookkeeper:
    """Follows a run: the report, the tables, the progress."""

    def __init__(
        self,
        session: Session,
        records: dict[str, Record],
        settings: SessionSettings,
        report: RunReport,
        plan: _Plan,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.session = session
        self.records = records
        self.settings = settings
        self.report = report
        self.plan = plan
        self.progress = progress
        self.counts: Counter[str] = Counter()
        self.changed: dict[str, Summary] = {}
        self.next_tables = time.monotonic() + _TABLE_INTERVAL

    def outcome(self, outcome: Outcome) -> None:
        """An item has ended."""
        self.counts["failed" if outcome.error else "done"] += 1
        if outcome.error:
            self.report.failed[outcome.item] = outcome.error
        else:
            self.report.done.append(outcome.item)
        summary = self.session.store.read_summary(outcome.item)
        if summary is not None:
            self.records[outcome.item] = summary.record
            self.changed[outcome.item] = summary
        self.plan.seen_to(outcome.item)
        self._tell(item=outcome.item, error=outcome.error, seconds=outcome.seconds)
        # rewriting a long table for each of thousands of items would cost more than the items
        if time.monotonic() > self.next_tables:
            self.write_tables()

    def killer(self, task: Task, deaths: int) -> Outcome:
        """An item has killed its workers: set it aside."""
        return set_aside(task, killed(deaths, "with --retry"))

    def note(self, text: str) -> None:
        """Pass on a sentence."""
        self._tell(note=text)

    def _tell(self, *, item: str = "", error: str = "", seconds: float = 0.0, note: str = "") -> None:
        if self.progress is not None:
            finished, failed = self.counts.total(), self.counts["failed"]
            self.progress(Progress(self.plan.total, finished, failed, item, error, seconds, note))

    def write_tables(self) -> None:
        """Bring the tables and the index into accord with the records."""
        begin = time.monotonic()
        self.session.write_tables(self.records)
        try:
            index.update(self.session.root, self.changed.values())
        except sqlite3.Error:
            index.load(self.session.store, write=True)  # a cache may break
        self.changed.clear()
        end = time.monotonic()
        self.next_tables = end + max(_TABLE_INTERVAL, _TABLE_SHARE * (end - begin))


def override(engine: EngineSettings, workers: int | None, threads: int | None) -> EngineSettings:
    """The settings with what was asked for on the command line."""
    given = {name: value for name, value in (("workers", workers), ("threads", threads)) if value is not None}
    return EngineSettings(**(engine.model_dump() | given))


def visible_gpus(device: str) -> int:
    """How many GPUs `device` stands for on this machine."""
    import torch

    return torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0

"""What a run over a session has to do: movies first, and each tilt series as soon as its movies are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.session.config import SessionSettings
from weft.session.discovery import natural_key
from weft.session.engine import Crew, available_cores
from weft.session.items import Item
from weft.session.plan import Expectations, states_under, steps_to_run
from weft.session.records import Record
from weft.session.run_report import RunReport
from weft.session.series_book import SeriesBook
from weft.session.steps import steps_of
from weft.session.tilt_table import current_input, item_identity
from weft.session.work import Task

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["RunPlan"]


class RunPlan:
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

"""One run over a session: what has to be done, doing it, and keeping the tables in accord."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.formats.atomic import TEMPORARY_SUFFIX
from weft.session import index
from weft.session.config import SessionSettings
from weft.session.discovery import OUTPUT_FOLDERS, find_movies
from weft.session.engine import Crew, crew_size, run_tasks
from weft.session.input import EngineSettings
from weft.session.intake import follow_moved
from weft.session.lock import SessionLock
from weft.session.records import Record, Summary
from weft.session.run_plan import RunPlan
from weft.session.run_report import Progress, RunReport
from weft.session.steps import with_prerequisites
from weft.session.work import Outcome, Task, killed, resolve_device, set_aside

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["override", "run", "sweep", "visible_gpus"]

#: Seconds between two rewritings of the tables while a run goes on, and in times of what one takes.
_TABLE_INTERVAL = 5.0
_TABLE_SHARE = 20.0
_KEEP_FREE = 1 << 30


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
    """Bring the items into accord with the settings, and do nothing else.

    Parameters
    ----------
    session : Session
    steps : sequence of str, optional
        Only these and what they need; all by default.
    only : str, optional
        Items by a shell pattern on their names.
    workers, threads : int, optional
        Instead of [engine]'s; 0 workers computes in this process.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    retry : bool
        Try again what failed through a fault of the item's own.
    scheduler : str, optional
        Address, or scheduler file, of a dask cluster to use instead of processes of this machine.
    progress : callable, optional
        Called with a :class:`Progress` whenever an item ends.

    Raises
    ------
    SettingsError, SessionError
        When nothing could be started. Failures of items are in the report.
    """
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
        plan = RunPlan(session, records, settings, wanted, only, retry, device, report)
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
        plan: RunPlan,
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

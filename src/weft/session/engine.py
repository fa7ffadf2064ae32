"""Spreading tasks over worker processes with dask.distributed: one loop, for batch runs and live ones.

The manager keeps one task a worker in flight and asks for the next when one comes back, so that a
dying worker points at one item only, new settings take effect with the next item, and whoever runs the
engine decides the order. A lost worker is replaced and its item tried again; an item that has killed
as many workers as the settings allow is quarantined and the others go on.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from weft.errors import SessionError
from weft.session.cluster import connect
from weft.session.input import EngineSettings
from weft.session.work import Outcome, Task, work

__all__ = ["Crew", "Source", "WorkerView", "crew_size", "run_tasks"]

#: Memory that a worker may need; decides how many workers `auto` starts.
_MEMORY_PER_WORKER = 4 << 30
#: Seconds between two questions to a source that has nothing, and to the scheduler about its workers.
_IDLE = 0.2
_WORKERS_EVERY = 1.0
#: Seconds for which a finished worker's few words are waited for at a time.
_GATHERING = 2.0


@dataclass(frozen=True)
class Crew:
    """How many worker processes, and threads of each; no workers means the calling process."""

    workers: int
    threads: int


@dataclass(frozen=True)
class WorkerView:
    """What a worker does now: the item, empty when it waits, and for how long (s)."""

    name: str
    item: str = ""
    seconds: float = 0.0


@runtime_checkable
class Source(Protocol):
    """Where tasks come from, one by one, in the order in which they are to be done."""

    def next(self) -> Task | None:
        """The next task; None when there is none now."""

    def ended(self) -> bool:
        """Whether none will come any more."""


class _Listed:
    """A source of tasks that are known from the beginning, or made as they are asked for."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._ended = False

    def next(self) -> Task | None:
        task = next(self._tasks, None)
        self._ended = task is None
        return task

    def ended(self) -> bool:
        return self._ended


def available_cores() -> int:
    """Cores that this process may use: the scheduler's mask, not the machine's number."""
    return len(os.sched_getaffinity(0))


def crew_size(settings: EngineSettings, tasks: int, gpus: int = 0) -> Crew:
    """Fill in what the settings leave to the machine: one worker a GPU, or cores shared out.

    Four threads a worker pay off best on many cores; memory and the number of tasks are further limits.
    """
    cores = available_cores()
    threads = settings.threads if settings.threads != "auto" else 0
    if settings.workers == 0:
        return Crew(0, threads or cores)
    if settings.workers != "auto":
        workers = settings.workers
    elif gpus > 0:
        workers = gpus
    else:
        by_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY_PER_WORKER
        each = threads or (1 if cores < 4 else 2 if cores < 8 else 4)
        workers = min(cores // each, by_memory)
    workers = max(1, min(workers, tasks))
    return Crew(workers, threads or max(1, cores // workers))


def run_tasks(
    tasks: Iterable[Task] | Source,
    crew: Crew,
    settings: EngineSettings,
    root: Path,
    on_outcome: Callable[[Outcome], None],
    on_killer: Callable[[Task, int], Outcome],
    on_note: Callable[[str], None] = lambda text: None,
    work: Callable[[Task], Outcome] = work,
    *,
    scheduler: str | None = None,
    on_error: Callable[[Task, BaseException], Outcome] | None = None,
    on_workers: Callable[[list[WorkerView]], None] | None = None,
    abandon: threading.Event | None = None,
    warm_up: Callable[[], None] | None = None,
) -> None:
    """Do all tasks; the callbacks run in the calling thread, in the order in which things end.

    Parameters
    ----------
    tasks : iterable of Task, or Source
        Read one by one, when a worker is free.
    on_outcome : callable
        Gets every outcome.
    on_killer : callable
        Gets a task that has killed its workers, and how often; returns the outcome to report.
    on_note : callable
        Gets a sentence about something that people should know, such as a lost worker.
    work : callable
        What a worker does with a task.
    scheduler : str, optional
        Address, or scheduler file, of a dask cluster whose workers come and go; `crew` is then only
        asked for the threads of a task.
    on_error : callable, optional
        Gets a task whose work itself broke down (a full disk, a folder that the worker cannot see), and
        the error; returns the outcome to report. Without it the error ends the run.
    on_workers : callable, optional
        Told about once a second what the workers do.
    abandon : threading.Event, optional
        Once it is set, what is being worked on is let go of.
    warm_up : callable, optional
        Called in every worker before there is work, so that the first task does not wait for imports.

    Raises
    ------
    SessionError
        When the scheduler does not answer, or is lost.
    """
    source = tasks if isinstance(tasks, Source) else _Listed(iter(tasks))
    abandon = abandon or threading.Event()
    calls = _Calls(on_outcome, on_killer, on_note, on_error, on_workers, work)
    if crew.workers == 0 and scheduler is None:
        _work_here(source, calls, abandon)
        return
    with connect(crew.workers, crew.threads, settings, root, scheduler) as client:
        slots = crew.workers if scheduler is None else 0
        if warm_up is not None:
            addresses = list(client.scheduler_info()["workers"])
            # let go of in the end: nobody waits for them
            warm = [client.submit(warm_up, workers=[a], pure=False, retries=0) for a in addresses]
            warm.clear()
        _Feeder(client, source, calls, settings.attempts, slots).run(abandon)


@dataclass(frozen=True)
class _Calls:
    """Whom to tell."""

    outcome: Callable[[Outcome], None]
    killer: Callable[[Task, int], Outcome]
    note: Callable[[str], None]
    error: Callable[[Task, BaseException], Outcome] | None
    workers: Callable[[list[WorkerView]], None] | None
    work: Callable[[Task], Outcome]

    def broken(self, task: Task, error: BaseException) -> None:
        """The work on a task broke down."""
        if self.error is None:
            raise error
        self.outcome(self.error(task, error))


def _work_here(source: Source, calls: _Calls, abandon: threading.Event) -> None:
    """Everything in the calling process: for debugging."""
    while not abandon.is_set():
        task = source.next()
        if task is None:
            if source.ended():
                return
            abandon.wait(_IDLE)
            continue
        if calls.workers is not None:
            calls.workers([WorkerView("0", task.item)])
        try:
            outcome = calls.work(task)
        except Exception as error:
            calls.broken(task, error)
        else:
            calls.outcome(outcome)
        if calls.workers is not None:
            calls.workers([WorkerView("0")])


class _Feeder:
    """Keeps the workers of a cluster busy.

    Parameters
    ----------
    attempts : int
        How many workers an item may kill.
    slots : int
        Tasks in flight; 0 for one a worker that the scheduler has at the moment.
    """

    def __init__(self, client: Any, source: Source, calls: _Calls, attempts: int, slots: int) -> None:
        self.client, self.source, self.calls = client, source, calls
        self.attempts, self.slots = attempts, slots
        self._elastic = slots == 0
        self._done: queue.Queue[Any] = queue.Queue()
        self._in_work: dict[Any, tuple[Task, float]] = {}
        self._again: deque[Task] = deque()
        self._deaths: Counter[str] = Counter()
        self._look_next = 0.0

    def run(self, abandon: threading.Event) -> None:
        """Until the source has ended and everything is done."""
        while not abandon.is_set():
            self._look_at_workers()
            full = self._submit()
            if not self._in_work and not self._again and self.source.ended():
                return
            try:
                future = self._done.get(timeout=_WORKERS_EVERY if full else _IDLE)
            except queue.Empty:
                continue
            self._settle(future)
        self.client.cancel(list(self._in_work), force=True)

    def _submit(self) -> bool:
        """Hand out tasks; whether all workers have one."""
        while len(self._in_work) < self.slots:
            task = self._again.popleft() if self._again else self.source.next()
            if task is None:
                return False
            # pure=False: the same task again is a new task
            future = self.client.submit(self.calls.work, task, pure=False, retries=0)
            self._in_work[future] = task, time.monotonic()
            future.add_done_callback(self._done.put)
        return True

    def _settle(self, future: Any) -> None:
        from distributed.scheduler import KilledWorker

        if future not in self._in_work:
            return
        task, _ = self._in_work[future]
        outcome = error = None
        if future.status == "finished":
            try:
                outcome = future.result(timeout=_GATHERING)
            except TimeoutError:
                # its worker is silent: it speaks again, or is given up and the task is done anew
                self._done.put(future)
                return
            except Exception:
                outcome = None  # cancelled, or lost with its worker
        elif future.status == "error":
            error = future.exception()
        del self._in_work[future]
        future.release()
        if outcome is not None:
            self._deaths.pop(task.item, None)
            self.calls.outcome(outcome)
        elif error is None:
            self._again.append(task)  # lost with its worker, or with the connection
        elif isinstance(error, KilledWorker):
            self._deaths[task.item] += error.allowed_failures + 1
            count = self._deaths[task.item]
            if count < self.attempts:
                self.calls.note(f"{task.item}: its worker process died, trying again")
                self._again.append(task)
            else:
                del self._deaths[task.item]
                self.calls.outcome(self.calls.killer(task, count))
        elif isinstance(error, ImportError) or "deserializ" in str(error):
            raise SessionError(
                "the scheduler, or a worker, does not understand the tasks; all must run the same Weft "
                f"({' '.join(str(error).split())})."
            ) from None
        else:
            self.calls.broken(task, error)

    def _look_at_workers(self) -> None:
        """How many workers there are and what they do, about once a second."""
        now = time.monotonic()
        if now < self._look_next:
            return
        self._look_next = now + _WORKERS_EVERY
        if self.client.status in ("closed", "closing"):
            raise SessionError("the connection to the dask scheduler is lost; is it still running?")
        if not self._elastic and self.calls.workers is None:
            return
        try:
            found = self.client.scheduler_info()["workers"]
            busy = self.client.processing() if self.calls.workers is not None else {}
        except (OSError, KeyError, TypeError, TimeoutError):
            return  # connecting again
        if self._elastic:
            self.slots = len(found)
        if self.calls.workers is not None:
            tasks = {future.key: entry for future, entry in self._in_work.items()}
            views = []
            for address, facts in found.items():
                name = str(facts.get("name", address))
                keys = [key for key in busy.get(address, ()) if key in tasks]
                task, begin = tasks[keys[0]] if keys else (None, now)
                views.append(WorkerView(name, task.item if task else "", now - begin))
            self.calls.workers(sorted(views, key=lambda view: (len(view.name), view.name)))

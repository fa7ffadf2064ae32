"""Spreading tasks over worker processes with dask.distributed.

The manager keeps one task a worker in flight and hands out the next when one comes back, so that a
dying worker points at one item only, new settings take effect with the next item, and whoever runs the
engine decides the order. A lost worker is restarted and its item tried again; an item that has killed
as many workers as the settings allow is quarantined and the others go on.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from weft.session.input import EngineSettings
from weft.session.work import Outcome, Task, work

__all__ = ["Crew", "crew_size", "run_tasks"]

#: Memory that a worker may need; decides how many workers `auto` starts.
_MEMORY_PER_WORKER = 4 << 30


@dataclass(frozen=True)
class Crew:
    """How many worker processes, and threads of each; no workers means the calling process."""

    workers: int
    threads: int


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


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide the caller's script from the workers.

    A spawned process imports its parent's main script again, which runs all of a script that has no
    ``if __name__ == "__main__"``. Workers need nothing of it.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def run_tasks(
    tasks: Iterable[Task],
    crew: Crew,
    settings: EngineSettings,
    root: Path,
    on_outcome: Callable[[Outcome], None],
    on_killer: Callable[[Task, int], Outcome],
    on_note: Callable[[str], None] = lambda text: None,
    work: Callable[[Task], Outcome] = work,
) -> None:
    """Do all tasks; the callbacks run in the calling thread, in the order in which things end.

    Parameters
    ----------
    tasks : iterable of Task
        Read one by one, when a worker is free.
    on_outcome : callable
        Gets every outcome.
    on_killer : callable
        Gets a task that has killed its workers, and how often; returns the outcome to report.
    on_note : callable
        Gets a sentence about something that people should know, such as a lost worker.
    work : callable
        What a worker does with a task.
    """
    if crew.workers == 0:
        for task in tasks:
            on_outcome(work(task))
        return

    import dask
    import distributed

    dd: Any = distributed  # it has no types
    configuration = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-ttl": f"{settings.worker_timeout:g}s",
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.admin.system-monitor.gil.enabled": False,
        # dask's own threshold makes the allocator give every large array back and fetch it again
        "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": None},
    }
    with (
        dask.config.set(configuration),
        _worker_environment(crew.threads),
        _nameless_main(),
        _log_to(root / "logs" / "engine.log"),
        ExitStack() as stack,
    ):
        # threads and processes that start here leave Ctrl-C to the manager, which then stops them
        with _interrupts_held_back():
            cluster = dd.LocalCluster(
                n_workers=crew.workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # any free port, for this machine alone
                silence_logs=logging.CRITICAL,  # of the workers, whose words would go to the terminal
                host="127.0.0.1",
            )
            stack.callback(cluster.close, timeout=10)
        client = stack.enter_context(dd.Client(cluster))
        _feed(client, iter(tasks), crew, settings, on_outcome, on_killer, on_note, work)


@contextmanager
def _worker_environment(threads: int) -> Iterator[None]:
    """What numpy and torch read when a worker imports them; this process's own is restored."""
    before = dict(os.environ)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    os.environ.update({name: str(threads) for name in names})
    # threads that spin while they wait halve the speed of a machine that others use, too
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        # distributed leaves marks of its own, too
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end; what is started in between never gets it: masks are inherited."""
    resource_tracker.ensure_running()  # which would unblock it again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _feed(
    client: Any,
    tasks: Iterator[Task],
    crew: Crew,
    settings: EngineSettings,
    on_outcome: Callable[[Outcome], None],
    on_killer: Callable[[Task, int], Outcome],
    on_note: Callable[[str], None],
    work: Callable[[Task], Outcome],
) -> None:
    import distributed
    from distributed.scheduler import KilledWorker

    dd: Any = distributed  # it has no types
    queue = dd.as_completed()
    in_work: dict[Any, Task] = {}
    deaths: Counter[str] = Counter()

    def submit(task: Task) -> None:
        # pure=False: the same task again is a new task
        future = client.submit(work, task, pure=False, retries=0)
        in_work[future] = task
        queue.add(future)

    for _, task in zip(range(crew.workers), tasks):  # the range first, so that no task is lost
        submit(task)
    while in_work:
        future = next(queue)
        task = in_work.pop(future)
        again = None
        if future.status == "error":
            error = future.exception()
            if not isinstance(error, KilledWorker):
                raise error
            deaths[task.item] += 1
            count = deaths[task.item]
            if count < settings.attempts:
                on_note(f"{task.item}: its worker process died, trying again")
                again = task
            else:
                on_outcome(on_killer(task, count))
        elif future.status == "finished":
            on_outcome(future.result())
        else:
            again = task  # lost with its worker before it began
        future.release()
        following = again if again is not None else next(tasks, None)
        if following is not None:
            submit(following)


class _FileLog(logging.Handler):
    """Appends to a file; no StreamHandler, because distributed silences those."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(self.format(record) + "\n")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what distributed has to say to a file instead of the terminal."""
    path.parent.mkdir(exist_ok=True)
    handler = _FileLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(level)
        handler.close()

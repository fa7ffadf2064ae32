"""Worker processes of dask.distributed: a cluster of this machine's, or one that is there already."""

from __future__ import annotations

import logging
import os
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from weft.errors import SessionError
from weft.session.input import EngineSettings

__all__ = ["connect"]

#: Seconds for which a scheduler is waited for.
_CONNECTING = 30


@contextmanager
def connect(
    workers: int, threads: int, settings: EngineSettings, root: Path, scheduler: str | None
) -> Iterator[Any]:
    """A client of a cluster, for as long as the block lasts.

    Parameters
    ----------
    workers, threads : int
        Processes to start, and threads of each.
    root : Path
        The session: what the cluster has to say goes to its logs.
    scheduler : str, optional
        Address, or scheduler file, of a cluster that runs already; one of this machine's is started when
        not given.

    Raises
    ------
    SessionError
        When the scheduler does not answer.
    """
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
    with dask.config.set(configuration), _log_to(root / "logs" / "engine.log"), ExitStack() as stack:
        if scheduler is not None:
            yield stack.enter_context(_client(dd, scheduler))
            return
        stack.enter_context(_worker_environment(threads))
        stack.enter_context(_nameless_main())
        # threads and processes that start here leave Ctrl-C to the manager, which then stops them
        with _interrupts_held_back():
            cluster = dd.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # any free port, for this machine alone
                silence_logs=logging.CRITICAL,  # of the workers, whose words would go to the terminal
                host="127.0.0.1",
            )
            stack.callback(cluster.close, timeout=10)
        yield stack.enter_context(dd.Client(cluster))


@contextmanager
def _client(dd: Any, scheduler: str) -> Iterator[Any]:
    is_file = "://" not in scheduler and ("/" in scheduler or Path(scheduler).is_file())
    if is_file and not Path(scheduler).is_file():
        raise SessionError(
            f"there is no scheduler file {scheduler}; start `dask scheduler --scheduler-file {scheduler}`."
        )
    where = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    try:
        client = dd.Client(**where, timeout=_CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SessionError(
            f"no dask scheduler answers at {scheduler} ({type(error).__name__}); is it running?"
        ) from None
    with client:
        yield client


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

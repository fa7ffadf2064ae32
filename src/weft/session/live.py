"""The manager of a live session: watches, hands out work, keeps tables and screens in accord.

Three threads share it: one looks for files, one feeds the workers, one keeps house. Whoever shows the
session asks the board and the status, and listens to the feed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.__about__ import __version__
from weft.errors import SessionError, WeftError
from weft.session import config
from weft.session.board import Board
from weft.session.dispatch import Dispatcher
from weft.session.engine import Crew, WorkerView, crew_size, run_tasks
from weft.session.feed import Feed, Subscription
from weft.session.housekeeping import Housekeeper
from weft.session.input import LiveSettings
from weft.session.intake import find_with_folders, what_is_missing
from weft.session.lock import SessionLock
from weft.session.plan import Expectations
from weft.session.running import override, sweep, visible_gpus
from weft.session.watching import Watcher
from weft.session.work import Outcome, resolve_device, warm_up

if TYPE_CHECKING:
    from weft.session.config import SessionSettings
    from weft.session.selection import Selection
    from weft.session.session import Session

__all__ = ["Manager"]

#: Seconds after which an engine that broke down is started again.
_RESTART = 10.0
#: Looking for files takes no more than this part of a core, and of the time, however many there are.
_LOOKING, _LOOKING_TIME = 0.2, 0.5
_WAITING_SHOWN = 50


class Manager:
    """Processes a session while it grows.

    Parameters
    ----------
    session : Session
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    workers, threads : int, optional
        Instead of [engine]'s.
    scheduler : str, optional
        Address, or scheduler file, of a dask cluster to use instead of worker processes of this machine.
    watch : bool
        Look for new files.
    on_note : callable, optional
        Gets sentences for people; called from several threads.

    Attributes
    ----------
    session : Session
    board : Board
        How every item stands.
    """

    def __init__(
        self,
        session: Session,
        *,
        device: str = "auto",
        workers: int | None = None,
        threads: int | None = None,
        scheduler: str | None = None,
        watch: bool = True,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.session = session
        self.board = Board(session)
        self.watch = watch
        self._device, self._scheduler = device, scheduler
        self._given = workers, threads
        self._note = on_note or (lambda text: None)
        self._lock = SessionLock(session.root)
        self._feed = Feed()
        self._stopping = threading.Event()
        self._abandon = threading.Event()
        self._threads: list[threading.Thread] = []
        self._workers: list[WorkerView] = []
        self._waiting: Mapping[Path, str] = {}
        self._engine_trouble = ""

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Take the session's lock, read what is there, and begin to work.

        Raises
        ------
        SessionError
            When another process holds the session, naming it.
        SettingsError
            When weft.toml is wrong, or there is no such device.
        """
        if self._scheduler is None:
            resolve_device(self._device)
        self._lock.acquire()
        try:
            # workers of a cluster may have outlived their last manager, and be writing still
            sweep(self.session.root, older=3600.0 if self._scheduler else 0.0)
            for folder in ("records", "logs"):
                (self.session.root / folder).mkdir(exist_ok=True)
            self.board.load()
            settings = self.board.expectations.settings
            self._dispatcher = Dispatcher(self.session, self.board, settings, self._device, self._note)
            self._keeper = Housekeeper(self.session, self.board, self._dispatcher, self._feed, self._note)
        except BaseException:
            self._lock.release()
            raise
        for work in (self._work, self._keep_house, *([self._look] if self.watch else [])):
            name = f"weft-{work.__name__.strip('_')}"
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        """Stop: items in work may end within `timeout` seconds, then they are let go of.

        What was let go of is done by the next manager. Safe to call twice.
        """
        if not self._threads:
            return
        self._dispatcher.stopping = True
        self._stopping.set()
        self._keeper.wake.set()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._abandon.set()
        for thread in self._threads:
            thread.join(30.0)
        self._threads = []
        try:
            self._keeper.finish()
        finally:
            self._lock.release()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the manager is stopped by somebody; whether it is."""
        return self._stopping.wait(timeout)

    def __enter__(self) -> Manager:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ what it is asked

    def status(self) -> dict[str, Any]:
        """Everything about the session as a whole; JSON-able."""
        dispatcher, keeper = self._dispatcher, self._keeper
        backlog = dispatcher.backlog
        waiting = list(self._waiting.items())[:_WAITING_SHOWN]
        return {
            "session": str(self.session.root),
            "version": __version__,
            "readonly": False,
            "items": self.board.counts(),
            "throughput": {
                "per_hour": dispatcher.pace.per_hour(),
                "recent_per_hour": dispatcher.pace.recent_per_hour(),
            },
            "backlog": backlog,
            "time_left_s": dispatcher.pace.time_left(backlog + dispatcher.in_work),
            "disk": keeper.disk,
            "workers": [
                {
                    "name": view.name,
                    "state": "working" if view.item else "idle",
                    "item": view.item or None,
                    "seconds": round(view.seconds, 1) if view.item else None,
                }
                for view in self._workers
            ],
            "watching": self.watch,
            "paused": dispatcher.held or None,
            "waiting": [{"name": path.name or str(path), "reason": reason} for path, reason in waiting],
            "alerts": self._alerts(),
        }

    def _alerts(self) -> list[dict[str, Any]]:
        found = list(self._keeper.alerts)
        if self._engine_trouble:
            found.insert(0, {"id": "engine", "level": "error", "text": self._engine_trouble, "items": []})
        return found

    def subscribe(self) -> Subscription:
        """Listen to what happens from now on."""
        return self._feed.subscribe()

    def retry(self, names: Iterable[str]) -> None:
        """Do these before all others, also what failed by a fault of its own.

        Raises
        ------
        SessionError
            For a name that no item has.
        """
        self._dispatcher.retry(names)
        self._keeper.wake.set()

    def decide(self, names: Iterable[str], accept: bool | None) -> None:
        """Include or exclude items by hand; None leaves them to the ranges again.

        Raises
        ------
        SessionError
            For a name that no item has; nothing is changed then.
        """
        wanted = list(names)
        for name in wanted:
            if self.board.entry(name) is None:
                raise SessionError(f"{self.session.root} has no item {name!r}.")
        self._keeper.select(lambda selection: selection.decide_all(wanted, accept))
        # what is excluded is not worked on
        self._dispatcher.plan(wanted)

    def decide_tilts(self, series: str, tilts: Iterable[int], keep: bool | None) -> None:
        """Keep or leave out tilts of a series by hand; None leaves it to Weft again.

        Raises
        ------
        SessionError
            For a series or a tilt that is not there.
        """
        self._dispatcher.decide_tilts(series, tilts, keep)
        self._keeper.wake.set()

    def set_ranges(self, ranges: Mapping[str, tuple[float | None, float | None] | None]) -> None:
        """Change some of the selection's ranges; None removes one.

        Raises
        ------
        SessionError
            For a quantity that cannot be filtered by; nothing is changed then.
        """

        def changed(selection: Selection) -> Selection:
            for quantity, bounds in ranges.items():
                selection = selection.with_range(quantity, *(bounds or (None, None)))
            return selection

        self._keeper.select(changed)

    def preview_settings(self, changes: Mapping[str, str]) -> dict[str, Any]:
        """What would have to be done again after a change of settings, by step, and for how many items.

        Raises
        ------
        SettingsError
        """
        settings = self.session.settings.with_values(changes)
        before, after = self.board.expectations, Expectations(settings, self.session.root)
        steps: dict[str, int] = {}
        items = 0
        for record in self.board.summaries().values():
            content = record.input.content
            old, new = (e.fingerprints(e.kind_of(record.kind), content) for e in (before, after))
            touched = [
                name
                for name, wanted in new.items()
                # what is stale already would be done anyway, and what fails earlier is not reached
                if old.get(name) != wanted
                and (
                    record.steps[name].fingerprint == old.get(name)
                    if name in record.steps
                    else name not in old
                )
            ]
            items += bool(touched)
            for name in touched:
                steps[name] = steps.get(name, 0) + 1
        return {"steps": {name: steps[name] for name in after.bases if name in steps}, "items": items}

    def change_settings(self, changes: Mapping[str, str]) -> None:
        """Change settings in weft.toml: all or none; they hold from the next item on.

        Raises
        ------
        SettingsError
        """
        config.edit_file(self.session.root, changes)
        self._keeper.look_at_settings(force=True)

    def pause(self) -> None:
        """Hand out no more work until `resume`."""
        self._keeper.hold("paused by hand")

    def resume(self) -> None:
        """Go on."""
        self._keeper.hold("")

    # ------------------------------------------------------------------ threads

    @property
    def _settings(self) -> SessionSettings:
        return self._dispatcher.settings

    def _work(self) -> None:
        """Feed the workers; start again when they break down as a whole."""
        while not self._stopping.is_set():
            # somebody who only looks at a session needs no workers
            if not self.watch and not self._dispatcher.backlog:
                self._stopping.wait(0.2)
                continue
            try:
                self._run_engine()
            except Exception as error:
                self._workers = []
                if self._stopping.is_set():
                    return
                said = " ".join(str(error).split())
                text = said if isinstance(error, WeftError) else f"{type(error).__name__}: {said}"
                self._engine_trouble = f"The workers cannot be used: {text} It is tried again."
                self._note(self._engine_trouble)
                self._dispatcher.lost_all()
                self._stopping.wait(_RESTART)

    def _run_engine(self) -> None:
        engine = override(self._settings.engine, *self._given)
        if self._scheduler is None:
            crew = crew_size(engine, 1 << 20, visible_gpus(self._device))
        else:  # the threads of workers elsewhere are theirs
            crew = Crew(0, 0 if engine.threads == "auto" else engine.threads)
        self._dispatcher.threads = crew.threads
        run_tasks(
            self._dispatcher,
            crew,
            engine,
            self.session.root,
            self._outcome,
            self._dispatcher.killer,
            self._note,
            scheduler=self._scheduler,
            on_error=self._dispatcher.error,
            on_workers=self._workers_are,
            abandon=self._abandon,
            warm_up=warm_up,
        )

    def _workers_are(self, views: list[WorkerView]) -> None:
        self._workers = views
        self._engine_trouble = ""

    def _outcome(self, outcome: Outcome) -> None:
        self._dispatcher.outcome(outcome)
        self._keeper.outcome()

    def _look(self) -> None:
        """Look for files, again and again."""
        known = {
            Path(record.input.path): (record.input.size, record.input.mtime_ns)
            for record in self.board.summaries().values()
            if record.kind != "series"
        }
        watcher = Watcher(
            lambda: find_with_folders(self._settings.input, self.session.root),
            lambda path: what_is_missing(path, self._settings.input),
            known=known,
        )
        while not self._stopping.is_set():
            live = self._settings.get(LiveSettings)
            watcher.settle, watcher.give_up = live.settle, live.give_up
            begin, cpu = time.monotonic(), time.thread_time()
            waiting: Mapping[Path, str] = {}
            try:
                look = watcher.look()
                waiting = look.waiting
                for path in self._dispatcher.take_in(look) if look.ready or look.gone else ():
                    watcher.forget(path)
                series = self._dispatcher.look_at_series()
                self._waiting = {**waiting, **{Path(name): reason for name, reason in series.items()}}
            except Exception as error:  # whatever it is, the session must go on
                self._note(f"looking for files: {type(error).__name__}: {error}")
            took = max((time.monotonic() - begin) / _LOOKING_TIME, (time.thread_time() - cpu) / _LOOKING)
            # a file that has just arrived is looked at again as soon as it may be complete
            pause = min(live.poll_interval, max(0.2, 0.5 * live.settle)) if waiting else live.poll_interval
            self._stopping.wait(max(pause, took))

    def _keep_house(self) -> None:
        """Settings, selection, disk, tables, alerts, listeners."""
        while not self._stopping.is_set():
            try:
                self._keeper.tick(self.status)
            except Exception as error:  # whatever it is, the session must go on
                self._note(f"keeping house: {type(error).__name__}: {error}")
            self._keeper.wake.wait(0.25)
            self._keeper.wake.clear()

"""Server-sent events: one listener at the manager, any number of browsers behind it.

A browser is never sent a backlog of events. It is told what has changed since the version it knows, as
it is when it can take it: a slow one gets fewer and larger batches, one that was away goes on where it
stopped, and one that missed too much is told to load its lists anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync

from weft.web.listing import items, json_bytes

if TYPE_CHECKING:
    from weft.session.board import Entry
    from weft.session.live import Manager
    from weft.web.security import Role

__all__ = ["Busy", "Hub", "status_for"]

_log = logging.getLogger(__name__)

STATUS_EVERY = 4.0  # seconds; at least every five are promised
PING_EVERY = 10.0  # seconds without anything to say
GATHERED = 0.4  # seconds for which changes are gathered into one batch
BATCH = 200  # items in one event
MOST = 1000  # items changed; beyond it a browser loads its lists anew
CLIENTS = 100
RETRY = 2000  # milliseconds after which a browser connects again


class Busy(Exception):
    """Too many listeners."""


class _Client:
    """One browser: what it has to be told, the newest of each kind."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.pending: dict[str, Any] = {}
        self.alerts: list[Any] = []
        self.version = 0
        self.known: Mapping[str, Entry] = {}  # all items, as of this version


def _message(event: str, data: Any, identity: str) -> bytes:
    # JSON without line breaks, so one data line is enough
    return b"".join((f"event: {event}\nid: {identity}\ndata: ".encode(), json_bytes(data), b"\n\n"))


def status_for(manager: Manager, role: Role, status: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The status of a session as the one who asks gets it.

    Parameters
    ----------
    status : mapping, optional
        As the manager has made it; asked for when not given.
    """
    given = manager.status() if status is None else status
    of_tilts = manager.board.expectations.settings.input.of_tilts
    return {**given, "readonly": role != "owner", "of_tilts": of_tilts}


class Hub:
    """Spreads what the manager tells over the browsers that listen.

    Parameters
    ----------
    manager : Manager
    status_every : float
        Seconds between two statuses when nothing happens.
    """

    def __init__(self, manager: Manager, status_every: float = STATUS_EVERY) -> None:
        self.manager = manager
        self.status_every = status_every
        # versions count from the manager's start: identities from another start must not match
        self.epoch = secrets.token_hex(4)
        self._clients: set[_Client] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()

    # ------------------------------------------------------------------ from the manager

    def start(self) -> None:
        """Begin to listen; called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        threading.Thread(target=self._listen, args=(self._closed,), name="weft-events", daemon=True).start()

    def close(self) -> None:
        """End all streams; called on the event loop."""
        self._closed.set()
        for client in self._clients:
            client.wake.set()

    def _listen(self, closed: threading.Event) -> None:
        subscription = self.manager.subscribe()
        try:
            due = 0.0
            while not closed.is_set():
                event = subscription.get(timeout=min(0.5, self.status_every))
                if event is not None:
                    self._pass_on(event.kind, event.data)
                if event is not None and event.kind == "status":
                    due = time.monotonic() + self.status_every
                elif time.monotonic() >= due:
                    due = time.monotonic() + self.status_every
                    if self._clients:
                        self._tell_status()
        finally:
            subscription.close()

    def _tell_status(self) -> None:
        try:
            status = self.manager.status()
        except Exception:  # the stream must outlive it: the next one may be well
            _log.exception("the status could not be made")
            return
        self._pass_on("status", status)
        self._pass_on("items", None)

    def _pass_on(self, kind: str, data: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with suppress(RuntimeError):  # the loop may end in this moment
                loop.call_soon_threadsafe(self._publish, kind, data)

    def _publish(self, kind: str, data: Any) -> None:
        for client in self._clients:
            if kind == "alert":
                client.alerts = [*client.alerts, data][-50:]
            else:
                client.pending[kind] = data
            client.wake.set()

    # ------------------------------------------------------------------ to a browser

    def _identity(self, version: int) -> str:
        return f"{self.epoch}-{version}"

    def _known_version(self, last: str | None) -> int | None:
        """The version that a returning browser knows; None where it is of another start, or none."""
        epoch, _, version = (last or "").partition("-")
        if epoch != self.epoch or not version.isdecimal() or int(version) > self.manager.board.version:
            return None
        return int(version)

    def stream(self, role: Role, last: str | None = None) -> AsyncIterator[bytes]:
        """The events for one browser.

        Parameters
        ----------
        role : Role
            Of the one who listens.
        last : str, optional
            Identity of the last event that it has seen.

        Raises
        ------
        Busy
        """
        if len(self._clients) >= CLIENTS:
            raise Busy
        return self._stream(role, last)

    async def _stream(self, role: Role, last: str | None) -> AsyncIterator[bytes]:
        client = _Client()
        self._clients.add(client)
        try:
            known = self._known_version(last)
            yield f"retry: {RETRY}\n: weft\n\n".encode()
            # in a thread: somebody else may be at the board
            client.version, client.known = await run_sync(self._board_now)
            if known is not None:
                client.version = known
            elif last:
                yield _message("reset", {"version": client.version}, self._identity(client.version))
            client.pending["status"] = await run_sync(self.manager.status)
            client.pending["items"] = None
            client.wake.set()
            while not self._closed.is_set():
                try:
                    await asyncio.wait_for(client.wake.wait(), PING_EVERY)
                except TimeoutError:
                    yield b": ping\n\n"
                    continue
                client.wake.clear()
                pending, client.pending = client.pending, {}
                alerts, client.alerts = client.alerts, []
                batches: list[list[dict[str, Any]]] | None = []
                if "items" in pending:
                    del pending["items"]
                    batches = await run_sync(self._batches, client)
                identity = self._identity(client.version)
                if batches is None:
                    yield _message("reset", {"version": client.version}, identity)
                for batch in batches or ():
                    yield _message("items", batch, identity)
                for alert in alerts:
                    yield _message("alert", alert, identity)
                for kind, data in pending.items():
                    if kind == "status":
                        data = status_for(self.manager, role, data)
                    yield _message(kind, data, identity)
                if not self._closed.is_set():
                    await asyncio.sleep(GATHERED)
        finally:
            self._clients.discard(client)

    def _board_now(self) -> tuple[int, Mapping[str, Entry]]:
        board = self.manager.board
        return board.version, board.entries

    def _batches(self, client: _Client) -> list[list[dict[str, Any]]] | None:
        """What has changed for a browser; None where it is too much, or where items have gone."""
        board = self.manager.board
        # taken first: what changes meanwhile is told again, not lost
        version, before = board.version, client.known
        if version == client.version:
            return []
        changed = board.changed_since(client.version)
        client.version, client.known = version, board.entries
        if len(changed) > MOST or not before.keys() <= client.known.keys():
            return None
        found = items(board, changed)
        return [found[i : i + BATCH] for i in range(0, len(found), BATCH)]

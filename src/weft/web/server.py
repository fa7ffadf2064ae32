"""`serve`: the application on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from weft.errors import RequestError
from weft.web.app import Application
from weft.web.security import Access, exposure, start_url

if TYPE_CHECKING:
    from weft.session.live import Manager

__all__ = ["Address", "serve"]

_GRACE = 5  # seconds for requests that are being answered when the server stops
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Address:
    """Where a server is to be found.

    Attributes
    ----------
    host : str
    port : int
        The real one where 0 was asked for.
    url : str
        To open: signs a browser in.
    share_url : str
        The same for somebody who may only look.
    warning : str
        What binding to this host opens to others; empty where nothing.
    """

    host: str
    port: int
    url: str
    share_url: str
    warning: str = ""


class _Server(uvicorn.Server):
    """uvicorn, but streams without end are ended first, and signals end here."""

    def __init__(self, config: uvicorn.Config, application: Application, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._application = application
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.hub.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # the second signal does not wait for requests any more
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise them once more at the end, and there would be no graceful stop of the manager
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _bind(host: str, port: int) -> socket.socket:
    """A socket on the port, before anything else is begun."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers without delay only where the protocol is named
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)
    except (OSError, OverflowError) as error:
        found.close()
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            text = f"port {port} of {host} is taken by another program; give another one with --port."
        elif number == errno.EACCES:
            text = f"port {port} needs a privileged user; give one above 1023 with --port."
        else:
            said = getattr(error, "strerror", None) or str(error)
            text = f"cannot listen on {host}, port {port}: {said}."
        raise RequestError(text) from None
    return found


def serve(
    manager: Manager,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    share_token: str | None = None,
    on_ready: Callable[[Address], None] | None = None,
) -> None:
    """Serve a session until SIGINT or SIGTERM, then stop its manager.

    Parameters
    ----------
    manager : Manager
        Started by the caller; it is stopped here, whatever ends the server.
    host : str
        127.0.0.1 is reached from this machine alone.
    port : int
        0 takes a free one.
    token, share_token : str, optional
        Of the owner, and of readers; made where they are not given.
    on_ready : callable, optional
        Called with the :class:`Address` once requests are answered.

    Raises
    ------
    RequestError
        When the port is taken, or a token is too short to be seen by other computers.
    """
    try:
        access = Access.bound_to(host, token, share_token)
        with _bind(host, port) as listening:
            port = listening.getsockname()[1]
            assert access.share_token is not None
            address = Address(
                host,
                port,
                start_url(host, port, access.token),
                start_url(host, port, access.share_token),
                exposure(host, port),
            )
            application = Application(manager, access)
            config = uvicorn.Config(
                application,
                log_level="warning",
                # addresses may hold the token
                access_log=False,
                server_header=False,
                date_header=False,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=_GRACE,
                h11_max_incomplete_event_size=64 << 10,
            )
            server = _Server(config, application, lambda: on_ready(address) if on_ready else None)
            asyncio.run(server.serve(sockets=[listening]))
    finally:
        manager.stop()

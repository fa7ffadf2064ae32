"""One manager for one session at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from weft.errors import SessionError
from weft.formats.atomic import atomic_write_text

__all__ = ["SessionLock", "process_start"]


def process_start(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None where there is no such process.

    A pid comes back after a reboot or a wrap-around: only pid and start time together are one process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


class SessionLock:
    """The file ``.lock`` of a session: who is working on it.

    A lock whose process is gone is taken over; one of another host is believed, since nobody can tell
    from here.

    Raises
    ------
    SessionError
        When another living process holds it, naming that process.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / ".lock"
        self._token = ""

    def holder(self) -> dict[str, object] | None:
        """Who holds it now (pid, host, since), or None."""
        try:
            data = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def living_holder(self) -> dict[str, object] | None:
        """Who holds it now, unless that process is known to be gone."""
        other = self.holder()
        if other is None or other.get("host") != socket.gethostname():
            return other  # nobody can tell from here
        pid = other.get("pid")
        start = process_start(pid) if isinstance(pid, int) else None
        return other if start is not None and start == other.get("start") else None

    def acquire(self) -> SessionLock:
        """Take it, or raise SessionError."""
        token = uuid.uuid4().hex
        me = {
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": token,
        }
        with _alone_in(self.path.parent):
            other = self.living_holder()
            if other is not None:
                pid, host = other.get("pid"), other.get("host")
                away = f", or delete {self.path} if it is gone" if host != socket.gethostname() else ""
                raise SessionError(
                    f"{self.path.parent}: process {pid} on {host} has been working on this session since "
                    f"{other.get('since')}; stop it first{away}."
                )
            atomic_write_text(self.path, json.dumps(me))
        self._token = token
        return self

    def release(self) -> None:
        """Give it back; nothing happens where it is not ours."""
        other = self.holder()
        if self._token and other is not None and other.get("token") == self._token:
            self.path.unlink(missing_ok=True)
        self._token = ""

    def __enter__(self) -> SessionLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the lock and replace it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # some network file systems cannot lock a folder; the gap is then a millisecond
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

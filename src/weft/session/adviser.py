"""Advice goes out: to a file and to a web address, when it changes, and never in the way of the work."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from weft.formats.atomic import atomic_write_text
from weft.session.advice import Advice, AdviceSettings, advise
from weft.session.selection import Verdict
from weft.session.trends import Judged

__all__ = ["Adviser"]


class Adviser:
    """Keeps the advice of a session current, and tells it to those who asked.

    Parameters
    ----------
    root : Path
        The session.
    on_note : callable, optional
        Gets a sentence for every failure to tell; called from another thread, too.

    Attributes
    ----------
    current : list of Advice
    """

    def __init__(self, root: Path, on_note: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.current: list[Advice] = []
        self._note = on_note or (lambda text: None)
        self._written: tuple[Any, ...] | None = None
        self._posted: tuple[Any, ...] | None = None
        self._pending: tuple[Any, ...] | None = None
        self._problem = ""
        self._outgoing: queue.Queue[tuple[tuple[Any, ...], str, float, bytes] | None] = queue.Queue(1)
        self._thread: threading.Thread | None = None

    def update(
        self, entries: Iterable[Judged], verdicts: Mapping[str, Verdict], settings: AdviceSettings
    ) -> list[Advice]:
        """Look at the items again; write and send what has changed, without waiting for anybody.

        What could not be written or sent is tried again with the next call.
        """
        self.current = advise(entries, verdicts, settings)
        keys = tuple(sorted(advice.key for advice in self.current))
        if settings.file is not None and self._written != (settings.file, keys):
            self._write(settings.file, keys)
        mark = (settings.webhook, keys)
        # having nothing to say is worth saying only to who has heard something else
        if (
            settings.webhook is not None
            and (keys or self._posted)
            and mark not in (self._posted, self._pending)
        ):
            self._send(mark, settings)
        return self.current

    def _text(self) -> str:
        content = {
            "session": self.root.name,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "advice": [advice.to_dict() for advice in self.current],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)

    def _write(self, name: str, keys: tuple[Any, ...]) -> None:
        try:
            atomic_write_text(self.root / name, self._text() + "\n")
        except OSError as error:
            self._complain(f"{self.root / name}: the advice cannot be written ({error.strerror}).")
        else:
            self._written = (name, keys)

    def _complain(self, text: str) -> None:
        if text != self._problem:  # not at every item
            self._problem = text
            self._note(text)

    # ------------------------------------------------------------------ the web address

    def _send(self, mark: tuple[Any, ...], settings: AdviceSettings) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._post_all, name="advice", daemon=True)
            self._thread.start()
        self._pending = mark
        message = (mark, str(settings.webhook), settings.webhook_timeout, self._text().encode())
        while True:
            try:
                self._outgoing.put_nowait(message)
                return
            except queue.Full:
                # only the newest matters
                try:
                    self._outgoing.get_nowait()
                except queue.Empty:
                    continue

    def _post_all(self) -> None:
        opener = urllib.request.build_opener(_NoRedirect)
        while True:
            message = self._outgoing.get()
            if message is None:
                return
            mark, address, timeout, body = message
            request = urllib.request.Request(
                address, body, {"Content-Type": "application/json", "User-Agent": "weft"}, method="POST"
            )
            try:
                with opener.open(request, timeout=timeout):
                    pass
            except (OSError, HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                self._complain(f"advice.webhook {address}: the advice could not be sent ({reason}).")
            else:
                self._posted, self._problem = mark, ""
            if self._pending == mark:
                self._pending = None

    def close(self, timeout: float = 2.0) -> None:
        """Let the last message go out, but wait no longer than `timeout` seconds."""
        if self._thread is None:
            return
        end = time.monotonic() + timeout
        try:
            self._outgoing.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(max(0.0, end - time.monotonic()))
        self._thread = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its content: an error is better."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None

"""What happens in a session, for those who listen."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Event", "Feed", "Subscription"]

_LONGEST = 1000


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    kind : str
        ``"status"``, ``"items"``, ``"selection"``, ``"settings"`` or ``"alert"``.
    data
        JSON-able: the status, names of items, ranges and decisions, changed keys, an alert.
    """

    kind: str
    data: Any


class Subscription:
    """The events since it was made. A listener that is too slow misses the oldest ones."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._queue: queue.Queue[Event] = queue.Queue(_LONGEST)

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when there was none for `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Listen no more."""
        self._feed.leave(self)

    def put(self, event: Event) -> None:
        """Called by the feed."""
        while True:
            try:
                self._queue.put_nowait(event)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue


class Feed:
    """Spreads events over all listeners; never waits for any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        """Listen from now on."""
        subscription = Subscription(self)
        with self._lock:
            self._listeners.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Called by a subscription that is closed."""
        with self._lock:
            self._listeners.discard(subscription)

    def publish(self, kind: str, data: Any) -> None:
        """Tell everybody."""
        event = Event(kind, data)
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.put(event)

"""Server-sent events: what listeners are told, and when they come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from weft.web import events
from weft.web.events import Busy, Hub

WAIT = 20.0  # seconds; on an idle machine it takes hundredths


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "GATHERED", 0.01)


@pytest.fixture
def manager(web_session: Any, idle_manager: Callable[[Any], Any]) -> Any:
    return idle_manager(web_session)


class Listener:
    """A browser: takes the stream apart as one does."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self.stream = stream
        self.last = ""
        self.told: list[tuple[str, Any]] = []
        self.comments: list[str] = []

    async def next(self) -> tuple[str, Any]:
        while True:
            block = (await asyncio.wait_for(anext(self.stream), WAIT)).decode()
            assert block.endswith("\n\n")
            fields = dict(line.split(": ", 1) for line in block.strip().split("\n") if line[0] != ":")
            if "event" not in fields:
                self.comments.append(block)
                continue
            self.last = fields["id"]
            self.told.append((fields["event"], json.loads(fields["data"])))
            return self.told[-1]

    async def until(self, kind: str) -> Any:
        while True:
            found, data = await self.next()
            if found == kind:
                return data


def run(manager: Any, test: Callable[[Hub], Any], status_every: float = 0.1) -> None:
    async def main() -> None:
        hub = Hub(manager, status_every)
        hub.start()
        try:
            await asyncio.wait_for(test(hub), 3 * WAIT)
        finally:
            hub.close()

    asyncio.run(main())


async def decide(manager: Any, names: list[str], accept: bool | None) -> None:
    await asyncio.to_thread(manager.decide, names, accept)


def test_the_status_comes_at_once_and_again_and_again(manager: Any) -> None:
    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            kind, status = await listener.next()
            assert kind == "status"
            assert status["items"]["done"] == 3
            assert status["readonly"] is False
            assert (await listener.until("status"))["readonly"] is False
            assert any("retry:" in comment for comment in listener.comments)
        async with aclosing(hub.stream("reader")) as stream:
            assert (await Listener(stream).until("status"))["readonly"] is True

    run(manager, test)


def test_only_what_has_changed_is_told(manager: Any) -> None:
    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            await decide(manager, ["movie_001"], False)
            items = await listener.until("items")
            assert [(item["id"], item["manual"], item["selected"]) for item in items] == [
                ("movie_001", "exclude", False)
            ]
            assert set(items[0]) >= {"metrics", "outputs", "revision", "reasons", "state"}

    run(manager, test)


def test_a_listener_that_was_away_is_told_what_it_missed(manager: Any) -> None:
    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            first = Listener(stream)
            await first.until("status")
        await decide(manager, ["movie_000"], False)
        await decide(manager, ["movie_002"], False)
        async with aclosing(hub.stream("owner", first.last)) as stream:
            back = Listener(stream)
            missed = await back.until("items")
            assert sorted(item["id"] for item in missed) == ["movie_000", "movie_002"]
            assert "reset" not in [kind for kind, _ in back.told]
        async with aclosing(hub.stream("owner", back.last)) as stream:
            again = Listener(stream)
            await again.until("status")
            await again.until("status")
            assert "items" not in [kind for kind, _ in again.told], "it has missed nothing"

    run(manager, test)


@pytest.mark.parametrize("last", ["0badbeef-1", "nonsense", "1", "-", "{epoch}-999999", "{epoch}-x"])
def test_after_a_restart_of_the_server_lists_are_loaded_anew(manager: Any, last: str) -> None:
    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner", last.format(epoch=hub.epoch))) as stream:
            listener = Listener(stream)
            await listener.until("status")
            assert listener.told[0] == ("reset", {"version": manager.board.version})

    run(manager, test)


def test_too_much_is_not_sent_but_loaded(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 2)

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            await decide(manager, ["movie_000", "movie_001", "movie_002"], False)
            assert await listener.until("reset") == {"version": manager.board.version}
            assert "items" not in [kind for kind, _ in listener.told]

    run(manager, test)


def test_items_that_have_gone_leave_the_lists(manager: Any, tmp_path: Path) -> None:
    async def test(hub: Hub) -> None:
        manager.board.add({"brief": (tmp_path / "brief.tif", 1.0)})
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            manager.board.remove(["brief"])
            assert await listener.until("reset") == {"version": manager.board.version}

    run(manager, test)


def test_many_changes_come_in_batches(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BATCH", 2)

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            await decide(manager, ["movie_000", "movie_001", "movie_002"], False)
            batches = [await listener.until("items"), await listener.until("items")]
            assert [len(batch) for batch in batches] == [2, 1]

    run(manager, test)


def test_a_listener_that_does_not_read_costs_nothing(manager: Any) -> None:
    """Nothing is queued for it: what it gets in the end is how things are by then."""

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            (client,) = hub._clients
            for i in range(40):
                await decide(manager, ["movie_001"], bool(i % 2))
                for kind in ("status", "selection", "items", "alert"):
                    hub._publish(kind, {})
            assert len(client.pending) <= 4
            assert len(client.alerts) <= 50
            items = await listener.until("items")
            assert [(item["id"], item["manual"]) for item in items] == [("movie_001", "include")]

    run(manager, test)


def test_changes_of_selection_and_settings_are_told(manager: Any) -> None:
    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            await listener.until("status")
            await asyncio.to_thread(manager.set_ranges, {"motion": (None, 1e-6)})
            await listener.until("selection")
            await asyncio.to_thread(manager.change_settings, {"ctf.range_max": "6"})
            await listener.until("settings")

    run(manager, test)


class Moody:
    """A manager whose status fails now and then."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def status(self) -> Any:
        self.asked += 1
        if self.asked % 3 == 2:
            raise RuntimeError("no status now")
        return self.manager.status()


def test_a_status_that_fails_does_not_end_the_stream(manager: Any) -> None:
    moody = Moody(manager)

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            listener = Listener(stream)
            while moody.asked < 7:
                await listener.until("status")

    run(moody, test)


def test_silence_is_broken_by_comments(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_EVERY", 0.05)

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            blocks = [await asyncio.wait_for(anext(stream), WAIT) for _ in range(4)]
            assert b": ping\n\n" in blocks

    run(manager, test, status_every=60.0)


def test_streams_end_with_the_server_and_leave_nothing(manager: Any) -> None:
    async def test(hub: Hub) -> None:
        listener = Listener(hub.stream("owner"))
        await listener.until("status")
        assert len(hub._clients) == 1
        hub.close()
        with pytest.raises(StopAsyncIteration):
            await listener.until("nothing")
        assert not hub._clients

    run(manager, test)


def test_there_is_an_end_to_listeners(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CLIENTS", 1)

    async def test(hub: Hub) -> None:
        async with aclosing(hub.stream("owner")) as stream:
            await Listener(stream).until("status")
            with pytest.raises(Busy):
                hub.stream("owner")

    run(manager, test)

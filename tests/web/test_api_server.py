"""`serve`: a real port, real signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from weft.errors import RequestError
from weft.web.server import Address, serve

OWNER = "owner-token-of-the-tests"

PROGRAM = """
import sys
import weft
from weft.session.live import Manager
from weft.web.server import serve

manager = Manager(weft.open(sys.argv[1]), watch=False)
manager.start()
stop = manager.stop
def noted(*given, **named):
    print("stopped", flush=True)
    return stop(*given, **named)
manager.stop = noted
serve(manager, port=0, token=sys.argv[2], on_ready=lambda address: print(address.url, flush=True))
print("left", flush=True)
"""


@pytest.fixture
def running(web_session: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its start address."""
    command = [sys.executable, "-c", PROGRAM, str(web_session.root), OWNER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), process.stderr and process.stderr.read()
    yield process, url
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_though_somebody_listens(
    running: tuple[subprocess.Popen[str], str], sent: signal.Signals
) -> None:
    process, url = running
    base = url.split("/?")[0]
    with httpx.Client(base_url=base, follow_redirects=True, timeout=30, trust_env=False) as browser:
        assert browser.get("/").status_code == 401
        assert browser.get(url).status_code == 200
        assert browser.get("/api/status").json()["items"]["done"] == 3
        with browser.stream("GET", "/api/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in stream.headers
            lines = stream.iter_lines()
            assert next(line for line in lines if line.startswith("data:"))
            begin = time.monotonic()
            process.send_signal(sent)
            for _ in lines:  # until the server ends it
                pass
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 15
    assert process.returncode == 0, err
    assert out.split() == ["stopped", "left"]
    assert OWNER not in err


class Idle:
    """A manager that only notes that it was stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self, timeout: float | None = None) -> None:
        self.stopped += 1


def test_a_port_that_is_taken_is_a_sentence() -> None:
    manager: Any = Idle()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} of 127.0.0.1 is taken.*--port"):
            serve(manager, port=port)
    assert manager.stopped == 1


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 99999)]
)
def test_what_cannot_be_bound_is_a_sentence(host: str, port: int) -> None:
    manager: Any = Idle()
    with pytest.raises(RequestError, match="cannot listen"):
        serve(manager, host, port)
    assert manager.stopped == 1


def test_it_listens_on_this_machine_alone_unless_told_otherwise(
    web_session: Any, idle_manager: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = idle_manager(web_session)
    found: list[Address] = []
    servers: list[Any] = []
    monkeypatch.setattr("weft.web.server._Server.startup", _noting(servers))
    threads = []
    for host in ("127.0.0.1", "0.0.0.0"):
        given = {"port": 0} if host == "127.0.0.1" else {"port": 0, "host": host}
        threads.append(
            threading.Thread(target=serve, args=(manager,), kwargs=given | {"on_ready": found.append})
        )
        threads[-1].start()
    end = time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    for server in servers:
        server.should_exit = True
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    alone, opened = sorted(found, key=lambda address: address.host, reverse=True)
    assert (alone.host, alone.warning) == ("127.0.0.1", "")
    assert alone.url.startswith(f"http://127.0.0.1:{alone.port}/?token=")
    assert alone.url != alone.share_url
    assert "not encrypted" in opened.warning
    assert str(opened.port) in opened.warning


def _noting(servers: list[Any]) -> Any:
    from weft.web.server import _Server

    genuine = _Server.startup

    async def startup(self: Any, sockets: Any = None) -> None:
        servers.append(self)
        await genuine(self, sockets)

    return startup


def test_the_command_says_what_it_opens_and_ends_cleanly(web_session: Any) -> None:
    command = [sys.executable, "-m", "weft", "live", str(web_session.root), "--no-watch", "--port", "0"]
    command += ["--host", "0.0.0.0", "--token", OWNER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert url.endswith(f"/?token={OWNER}")
        answer = httpx.get(url.split("?")[0] + "api/status", headers={"Authorization": f"Bearer {OWNER}"})
        assert answer.json()["items"]["done"] == 3
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, said
    assert "every network of this machine" in said
    assert "not encrypted" in said

"""A small session that was really processed, and a manager that does no work of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import weft
from weft.session.live import Manager
from weft.web.app import Application
from weft.web.security import Access

OWNER, READER = "owner-token-of-the-tests", "reader-token-of-the-tests"
HOST = "127.0.0.1:8765"


@pytest.fixture(scope="session")
def processed(tiny_movies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of three movies, processed: not to be changed."""
    root = tmp_path_factory.mktemp("web") / "session"
    session = weft.new(
        root,
        frames=tiny_movies / "frames" / "*.tif",
        gain=tiny_movies / "gain.mrc",
        pixel_size=1.5,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=4.0,
        ctf={"range_max": 8.0, "window": 256},
    )
    report = session.run(workers=0, threads=1)
    assert not report.failed
    return root


@pytest.fixture(scope="module")
def idle_manager() -> Iterator[Callable[[Any], Manager]]:
    """Make a manager that runs, and leaves the items as they are."""
    started = []

    def make(session: Any) -> Manager:
        manager = Manager(session, watch=False)
        manager.start()
        started.append(manager)
        return manager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.session.live.run_tasks", lambda *given, **named: time.sleep(0.05))
        yield make
        for manager in started:
            manager.stop()


@pytest.fixture
def web_session(processed: Path, tmp_path: Path) -> Any:
    """A copy of it, to be changed."""
    shutil.copytree(processed, tmp_path / "session")
    return weft.open(tmp_path / "session")


@pytest.fixture
def application(web_session: Any, idle_manager: Callable[[Any], Manager]) -> Application:
    """The application over this session; nothing is processed."""
    return Application(idle_manager(web_session), Access(OWNER, READER), status_every=0.2)


@pytest.fixture
def connect(application: Application) -> Iterator[Callable[..., TestClient]]:
    """Make clients: as the owner by default."""
    opened = []

    def make(token: str | None = OWNER, **headers: str) -> TestClient:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        client = TestClient(
            application,
            f"http://{HOST}",
            raise_server_exceptions=False,
            follow_redirects=False,
            headers=given | headers,
        )
        opened.append(client)
        return client

    with TestClient(application):  # what runs beside the requests runs once
        yield make
    for client in opened:
        client.close()


@pytest.fixture
def owner(connect: Callable[..., TestClient]) -> TestClient:
    """A client that may do everything."""
    return connect()

"""Live sessions under fire: workers and managers that are killed, stopped, crash; clusters that go."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from weft.session.batch_script import WorkerRequest, scheduler_command, worker_command
from weft.session.live import Manager
from weft.session.session import Session
from weft.session.work import Outcome, Task
from weft.session.work import work as real_work

NewSession = Callable[..., Session]
QUICK = {"poll_interval": 0.1, "settle": 0.1}


@pytest.fixture
def session(new_session: NewSession) -> Session:
    return new_session(live=QUICK)


def _wait(done: Callable[[], Any], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = done()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail("it took too long")


def _done(session: Session) -> bool:
    """Three items are done, going by the records alone."""
    with suppress(Exception):
        found = session.store.read_all().values()
        done = [{name for name, step in r.steps.items() if step.status == "done"} for r in found]
        return len(done) == 3 and all({"motion", "ctf", "pick"} <= names for names in done)
    return False


def _nothing_torn(root: Path) -> None:
    for path in root.rglob("*.json"):
        if not path.name.startswith("."):
            json.loads(path.read_text())
    assert not list(root.rglob("*.part"))


class _Misbehaves:
    """Work during which the worker comes to grief the first time that it sees an item, or always."""

    def __init__(self, always: bool = False, **how: str) -> None:
        self.how, self.always = how, always

    def __call__(self, task: Task) -> Outcome:
        seen = Path(task.root) / "logs" / f"{task.item}.seen"
        how = self.how.get(task.item)
        if how is not None and (self.always or not seen.exists()):
            seen.touch()
            if how == "segfault":
                ctypes.string_at(0)
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])
            time.sleep(1.0)  # the signal may reach another thread first
        with (Path(task.root) / "logs" / "worked.txt").open("a") as log:
            log.write(f"{task.item}\n")
        return real_work(task)


def _with_work(monkeypatch: pytest.MonkeyPatch, work: Callable[[Task], Outcome]) -> None:
    from weft.session.engine import run_tasks

    def run(*arguments: Any, **options: Any) -> None:
        run_tasks(*arguments, **options, work=work)

    monkeypatch.setattr("weft.session.live.run_tasks", run)


def test_a_worker_that_comes_to_grief_costs_a_retry(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a stopped worker is given up after the timeout, its process killed and replaced
    session = new_session(live=QUICK, engine={"worker_timeout": 12.0})
    _with_work(monkeypatch, _Misbehaves(movie_000="kill", movie_001="segfault", movie_002="stop"))
    notes: list[str] = []
    manager = Manager(session, workers=2, threads=1, on_note=notes.append)
    manager.start()
    try:
        _wait(lambda: manager.board.counts()["done"] == 3)
    finally:
        manager.stop()
    assert sorted(notes) == [f"movie_00{n}: its worker process died, trying again" for n in range(3)]
    worked = (session.root / "logs" / "worked.txt").read_text().split()
    assert sorted(worked) == ["movie_000", "movie_001", "movie_002"]  # nothing twice
    _nothing_torn(session.root)


def test_an_item_that_kills_its_workers_is_set_aside_and_can_be_tried_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_work(monkeypatch, _Misbehaves(always=True, movie_002="kill"))
    with Manager(session, workers=1, threads=1) as manager:
        _wait(lambda: manager.board.counts()["failed"] == 1 and manager.board.counts()["done"] == 2)
        reason = manager.board.entry("movie_002").reason
        assert reason.startswith("set aside: 2 worker processes died")
    monkeypatch.undo()
    with Manager(session, workers=0, threads=1) as manager:
        assert manager.board.entry("movie_002").reason == reason
        manager.retry(["movie_002"])
        _wait(lambda: manager.board.counts()["done"] == 3)


# ---------------------------------------------------------------------- the manager


_MANAGE = """
import sys, weft
from weft.session.live import Manager
manager = Manager(weft.open(sys.argv[1]), workers=1, threads=1)
manager.start()
print("started", flush=True)
sys.stdin.read()
manager.stop()
"""


def _start(session: Session) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _MANAGE, str(session.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_manager_killed_at_any_stage_leaves_nothing_behind(session: Session) -> None:
    # while workers start; in the middle of the work, and everything at once
    for pause, everything in ((0.0, False), (6.0, True)):
        process = _start(session)
        time.sleep(pause)
        if everything:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
        _wait(lambda process=process: not _group_lives(process.pid), 20.0)
    process = _start(session)
    try:
        _wait(lambda: _done(session))
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0
    _wait(lambda: not _group_lives(process.pid), 20.0)
    _nothing_torn(session.root)
    assert session.run(workers=0).current == ["movie_000", "movie_001", "movie_002"]
    assert (session.root / "micrographs.star").read_text().count(".mrc") == 3


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------------- a cluster


@pytest.fixture
def scheduler(session: Session) -> Iterator[Path]:
    """A scheduler as `weft workers` says that it is started."""
    (session.root / "logs").mkdir()
    request = WorkerRequest(session.root)
    process = _shell(scheduler_command(request, 5.0) + " --host 127.0.0.1")
    _wait(request.scheduler_file.exists)
    yield request.scheduler_file
    _end(process)


def _shell(command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, shell=True, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_workers_started_by_hand_one_of_them_killed_then_a_batch_run(
    session: Session, scheduler: Path
) -> None:
    command = worker_command(WorkerRequest(session.root, cores=1))
    workers = [_shell(command), _shell(command)]
    manager = Manager(session, scheduler=str(scheduler), on_note=print)
    manager.start()
    try:
        _wait(lambda: len(manager.status()["workers"]) == 2)
        _wait(lambda: manager.board.counts()["processing"] == 2)
        # with its nanny: as when a node dies
        _end(workers[0])
        _wait(lambda: manager.board.counts()["done"] == 3)
        assert manager.status()["alerts"] == []
        manager.stop()
        _nothing_torn(session.root)
        # `weft run` uses a cluster, too
        session.set("ctf.range_max", "6.5")
        report = session.run(scheduler=str(scheduler))
        assert sorted(report.done) == ["movie_000", "movie_001", "movie_002"]
    finally:
        manager.stop()
        for worker in workers:
            _end(worker)


# ---------------------------------------------------------------------- the command


def test_the_command_serves_until_it_is_told_to_stop(session: Session) -> None:
    import urllib.request

    process = subprocess.Popen(
        [sys.executable, "-m", "weft", "live", str(session.root), "--port", "0", "--token", "secret-of-test",
         "--workers", "1", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split()[-1].split("/?")[0]
    request = urllib.request.Request(
        f"{address}/api/status", headers={"Authorization": "Bearer secret-of-test"}
    )

    def status() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return dict(json.load(reply))

    _wait(lambda: status()["items"]["done"] == 3)
    second = subprocess.run(
        [sys.executable, "-m", "weft", "live", str(session.root), "--port", "0"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 2
    assert f"process {process.pid} on" in second.stderr
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    _wait(lambda: not _group_lives(process.pid), 20.0)
    assert not (session.root / ".lock").exists()

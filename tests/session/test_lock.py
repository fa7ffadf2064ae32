"""One manager for one session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.errors import SessionError
from weft.session.lock import SessionLock, process_start
from weft.session.session import Session


def _write(root: Path, **changes: object) -> None:
    holder = {
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "host": socket.gethostname(),
        "since": "today",
        "token": "t",
    }
    (root / ".lock").write_text(json.dumps(holder | changes))


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    told = rf"process {os.getpid()} on {socket.gethostname()}"
    with SessionLock(tmp_path), pytest.raises(SessionError, match=told):
        SessionLock(tmp_path).acquire()
    with SessionLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_refused_while_another_goes_on(new_session: Callable[..., Session]) -> None:
    session = new_session()
    with SessionLock(session.root), pytest.raises(SessionError, match="working on this session"):
        session.run(workers=0)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _write(tmp_path, pid=dead.pid)
    with SessionLock(tmp_path) as lock:
        holder = lock.holder()
        assert holder is not None
        assert holder["pid"] == os.getpid()


def test_the_same_pid_in_another_life_is_another_process(tmp_path: Path) -> None:
    _write(tmp_path, start=1)
    with SessionLock(tmp_path):
        pass


def test_another_host_is_believed(tmp_path: Path) -> None:
    _write(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(SessionError, match=r"on elsewhere.*delete .*\.lock if it is gone"):
        SessionLock(tmp_path).acquire()


def test_a_torn_lock_file_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("{")
    with SessionLock(tmp_path):
        pass


_RACE = """
import sys, time
from pathlib import Path
from weft.errors import SessionError
from weft.session.lock import SessionLock
root = Path(sys.argv[1])
while not (root / "go").exists():
    time.sleep(0.001)
try:
    SessionLock(root).acquire()
except SessionError:
    print("refused", flush=True)
else:
    print("mine", flush=True)
    (root / f"mine{time.time_ns()}").write_text("")
    while not (root / "end").exists():
        time.sleep(0.01)
"""


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    _write(tmp_path, start=1)
    racers = [
        subprocess.Popen([sys.executable, "-c", _RACE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    (tmp_path / "go").write_text("")
    refused = [p for p in racers if _first_line(p) == "refused"]
    (tmp_path / "end").write_text("")
    for racer in racers:
        racer.wait(20)
    assert len(refused) == 5


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()

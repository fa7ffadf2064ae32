"""The live manager: what it makes of files that come, of settings that change, of disks that fill."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from weft.errors import SessionError, SettingsError
from weft.session import housekeeping, tries
from weft.session.live import Manager
from weft.session.session import Session
from weft.session.work import Outcome, Task

NewSession = Callable[..., Session]
QUICK = {"poll_interval": 0.05, "settle": 0.1, "give_up": 0.6}


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """The folder that the movies come to."""
    folder = tmp_path / "frames"
    folder.mkdir()
    return folder


@pytest.fixture
def session(new_session: NewSession, frames: Path) -> Session:
    return new_session(frames=frames / "*.tif", live=QUICK)


@pytest.fixture
def movies(tiny_movies: Path) -> list[Path]:
    return sorted((tiny_movies / "frames").glob("*.tif"))


@contextmanager
def _running(session: Session, **options: Any) -> Iterator[Manager]:
    notes: list[str] = []
    manager = Manager(session, on_note=notes.append, **({"workers": 0, "threads": 1} | options))
    manager.start()
    try:
        yield manager
    finally:
        manager.stop()
        if notes:
            print(*notes, sep="\n")


def _wait(done: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = done()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail("it took too long")


def _states(manager: Manager) -> dict[str, str]:
    return {name: entry.state for name, entry in manager.board.entries.items()}


def _all(manager: Manager, state: str, number: int) -> bool:
    states = list(_states(manager).values())
    return states == [state] * number


@pytest.fixture
def fake_work(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Work that only notes what it was given, and leaves a record behind."""
    from weft.session.config import from_plain
    from weft.session.plan import Expectations
    from weft.session.records import FileIdentity, Record, RecordStore, StepError, StepRecord

    done: list[Task] = []

    def work(task: Task) -> Outcome:
        done.append(task)
        store, settings = RecordStore(Path(task.root)), from_plain(task.settings)
        identity = FileIdentity.of(task.source)
        record = Record(task.item, task.kind, identity)
        expected = Expectations(settings, Path(task.root))
        for name, wanted in expected.fingerprints("movie", identity.content).items():
            error = None
            if "bad" in task.item and not task.retry:
                error = StepError("TruncatedError", f"{task.source}: cut", True)
            results, outputs = {}, {}
            if name == "motion" and not error:
                results = {"metrics": {"pixel_size": 1.5}}
                outputs = {key: f"average/{task.item}.{key}" for key in ("average", "motion_star")}
            for path in outputs.values():
                (Path(task.root) / path).parent.mkdir(exist_ok=True)
                (Path(task.root) / path).touch()
            if name == "ctf":
                results = {"metrics": {"defocus": 1e4, "astigmatism": 100.0}}
            status = "failed" if error else "done"
            step = StepRecord(status, wanted, expected.reads[name], results, outputs, error)
            record = record.with_step(name, step)
            if error:
                break
        store.write(record)
        return Outcome(task.item, (), error.message if error else "")

    monkeypatch.setattr("weft.session.live.run_tasks", _with_work(work))
    return done


def _with_work(work: Callable[[Task], Outcome]) -> Callable[..., None]:
    from weft.session.engine import run_tasks

    def run(*arguments: Any, **options: Any) -> None:
        run_tasks(*arguments, **options, work=work)

    return run


def _movie(folder: Path, name: str, mtime: float) -> Path:
    """Not a movie; but no work reads it."""
    path = folder / name
    path.write_text(f"{path}")
    os.utime(path, (mtime, mtime))
    return path


# ---------------------------------------------------------------------- the work itself


def _content(root: Path) -> dict[str, Any]:
    """All that a session holds, but for times, its own place, and caches."""
    out: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or name.startswith(("logs", "index.sqlite", "weft.toml", ".")):
            continue
        if name.startswith("records"):
            data = json.loads(path.read_text())
            del data["timings"]
            out[name] = data
        else:
            out[name] = path.read_bytes().replace(str(root).encode(), b"ROOT")
    return out


def test_live_equals_offline(new_session: NewSession, frames: Path, movies: list[Path]) -> None:
    live = new_session("live", frames=frames / "*.tif", live=QUICK, average={"halves": True})
    with _running(live) as manager:
        for number in range(len(movies)):
            # in two parts, and not in the order of names
            target = frames / movies[::-1][number].name
            data = movies[::-1][number].read_bytes()
            target.write_bytes(data[: len(data) // 2])
            _wait(lambda: manager.status()["waiting"])
            assert target.stem not in manager.board.entries
            with target.open("ab") as handle:
                handle.write(data[len(data) // 2 :])
            _wait(lambda number=number: _all(manager, "done", number + 1))
        _wait(lambda: not manager.status()["waiting"])
    offline = new_session("offline", frames=frames / "*.tif", live=QUICK, average={"halves": True})
    assert offline.run(workers=0, threads=1).exit_code == 0
    assert _content(live.root) == _content(offline.root)
    assert live.run(workers=0).done == []


def test_a_truncated_file_fails_with_its_own_error_and_is_done_when_it_is_whole(
    session: Session, frames: Path, movies: list[Path]
) -> None:
    data = movies[0].read_bytes()
    with _running(session) as manager:
        (frames / "cut.tif").write_bytes(data[: int(0.7 * len(data))])
        waiting = _wait(lambda: manager.status()["waiting"])
        assert waiting[0]["name"] == "cut.tif"
        entry = _wait(lambda: (e := manager.board.entry("cut")) and e.state == "failed" and e)
        assert "cut.tif" in entry.reason
        assert entry.step == "motion"
        assert manager.board.counts()["failed"] == 1
        (frames / "cut.tif").write_bytes(data)
        _wait(lambda: _all(manager, "done", 1))


# ---------------------------------------------------------------------- intake and order


def test_newest_first_then_the_backlog_then_what_is_stale(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    now = time.time() - 1000.0
    for n in range(3):
        _movie(frames, f"old_{n}.tif", now + n)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 3))
    assert [task.item for task in fake_work] == ["old_2", "old_1", "old_0"]
    fake_work.clear()
    session.set("motion.bfactor", "77")
    for n in range(3, 6):
        _movie(frames, f"new_{n}.tif", now + n)
    with _running(session) as manager:
        manager.pause()
        _wait(lambda: len(manager.board.entries) == 6)
        before = len(fake_work)
        manager.resume()
        _wait(lambda: _all(manager, "done", 6))
    order = [task.item for task in fake_work[before:]]
    assert order == sorted(order, key=lambda item: (item.startswith("old"), -int(item[-1])))
    assert {"new_5", "new_4", "new_3"} <= {task.item for task in fake_work}


def test_oldest_first_when_asked(new_session: NewSession, frames: Path, fake_work: list[Task]) -> None:
    session = new_session(frames=frames / "*.tif", live=QUICK | {"newest_first": False})
    now = time.time() - 1000.0
    for n in range(3):
        _movie(frames, f"m_{n}.tif", now + n)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 3))
    assert [task.item for task in fake_work] == ["m_0", "m_1", "m_2"]


def test_odd_names_and_the_same_name_in_two_folders(
    new_session: NewSession, frames: Path, fake_work: list[Task]
) -> None:
    session = new_session(frames=frames / "*.tif", recursive=True, live=QUICK)
    names = ["a b.tif", 'it\'s "q".tif', "#1.tif", "Å_电子.tif", "x" * 251 + ".tif", "<b>&.tif", "movie.tif"]
    for folder in (frames / "one", frames / "two"):
        folder.mkdir()
        _movie(folder, "movie.tif", 1e9)
    for name in names:
        _movie(frames, name, 1e9)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", len(names) + 2))
        sources = [entry.source for entry in manager.board.entries.values()]
        assert len(set(sources)) == len(names) + 2
        assert {"movie", "movie__one", "movie__two"} <= set(manager.board.entries)
    assert len(fake_work) == len(names) + 2
    assert session.run(workers=0).done == []


def test_a_renamed_movie_keeps_its_results(session: Session, frames: Path, movies: list[Path]) -> None:
    shutil.copy(movies[0], frames / "first.tif")
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 1))
        written = manager.board.entry("first").processed
        (frames / "first.tif").rename(frames / "second.tif")
        _wait(lambda: manager.board.entry("first").source.endswith("second.tif"))
        assert _all(manager, "done", 1)
        star = (session.root / "average" / "first.star").read_text()
        assert "second.tif" in star
        assert manager.board.entry("first").processed > written
    # the same for a batch run
    (frames / "second.tif").rename(frames / "third.tif")
    report = session.run(workers=0, threads=1)
    assert (report.done, report.current) == ([], ["first"])
    assert session["first"].source == frames / "third.tif"


def test_a_replaced_movie_is_done_again_and_a_vanished_one_forgotten(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    path = _movie(frames, "a.tif", 1e9)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 1))
        path.write_text("another")
        _wait(lambda: len(fake_work) == 2)
        _wait(lambda: _all(manager, "done", 1))
        # only touched: the same content
        os.utime(path, (2e9 - 1e9, 1.1e9))
        time.sleep(0.4)
        assert len(fake_work) == 2
        manager.pause()
        other = _movie(frames, "b.tif", 1e9)
        _wait(lambda: "b" in manager.board.entries)
        other.unlink()
        _wait(lambda: "b" not in manager.board.entries)
        path.unlink()
        manager.resume()
        time.sleep(0.3)
        assert _states(manager) == {"a": "done"}  # what was found out stays true


# ---------------------------------------------------------------------- settings, selection, people


def test_settings_hold_from_the_next_item_on_and_mark_the_others_stale(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    for n in range(4):
        _movie(frames, f"m_{n}.tif", 1e9 + n)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 4))
        manager.pause()
        feed = manager.subscribe()
        assert manager.preview_settings({"ctf.range_max": "4.5"}) == {"steps": {"ctf": 4}, "items": 4}
        assert manager.preview_settings({"engine.attempts": "3"}) == {"steps": {}, "items": 0}
        both = manager.preview_settings({"motion.bfactor": "70", "ctf.range_max": "4.5"})
        assert both == {"steps": {"motion": 4, "ctf": 4, "pick": 4}, "items": 4}
        with pytest.raises(SettingsError, match="range_max"):
            manager.change_settings({"motion.bfactor": "70", "ctf.range_max": "nonsense"})
        assert session.settings.plain()["motion"]["bfactor"] != 70.0
        manager.change_settings({"ctf.range_max": "4.5"})
        assert _all(manager, "stale", 4)
        assert manager.board.entry("m_0").reason == "changed: ctf.range_max"
        assert manager.board.entry("m_0").step == "ctf"
        kinds = {event.kind: event.data for event in iter(lambda: feed.get(1.5), None)}
        assert kinds["settings"] == {"changed": ["ctf.range_max"]}
        assert kinds["status"]["items"]["stale"] == 4
        feed.close()
        manager.resume()
        _wait(lambda: _all(manager, "done", 4))
        assert fake_work[-1].settings["ctf"]["range_max"] == 4.5
        # by hand, in an editor
        session.set("ctf.range_max", "4.25")
        _wait(lambda: fake_work[-1].settings["ctf"]["range_max"] == 4.25)
        _wait(lambda: _all(manager, "done", 4))


def test_a_broken_settings_file_changes_nothing_but_is_told(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    toml = session.root / "weft.toml"
    with _running(session) as manager:
        good = toml.read_text()
        toml.write_text(good + "\n[nonsense]\n")
        alerts = _wait(lambda: manager.status()["alerts"])
        assert [alert["id"] for alert in alerts] == ["settings"]
        assert "[nonsense] is not a section" in alerts[0]["text"]
        _movie(frames, "a.tif", 1e9)
        _wait(lambda: _all(manager, "done", 1))
        toml.write_text(good)
        _wait(lambda: not manager.status()["alerts"])


def test_failures_are_tried_again_only_when_asked(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    _movie(frames, "bad.tif", 1e9)
    _movie(frames, "good.tif", 1e9)
    with _running(session) as manager:
        _wait(lambda: manager.board.counts()["failed"] == 1 and manager.board.counts()["done"] == 1)
        time.sleep(0.3)
        assert len(fake_work) == 2
        assert manager.status()["backlog"] == 0
        with pytest.raises(SessionError, match="no item 'nonsense'"):
            manager.retry(["bad", "nonsense"])
        manager.retry(["bad", "good"])  # what is done is left alone
        _wait(lambda: _all(manager, "done", 2))
        assert len(fake_work) == 3


def test_decisions_and_ranges_are_kept_and_what_is_excluded_is_not_worked_on(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    for name in "ab":
        _movie(frames, f"{name}.tif", 1e9)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 2))
        version = manager.board.version
        manager.set_ranges({"defocus": (100.0, None)})
        assert set(manager.board.changed_since(version)) == {"a", "b"}
        assert manager.board.counts()["selected"] == 0
        manager.decide(["a"], True)
        assert json.loads((session.root / "selection.json").read_text())["include"] == ["a"]
        star = session.root / "micrographs_selected.star"
        _wait(lambda: star.exists() and "/a.average" in star.read_text())
        assert "/b.average" not in star.read_text()
        with pytest.raises(SessionError, match="no item"):
            manager.decide(["a", "c"], False)
        with pytest.raises(SessionError, match="cannot be filtered"):
            manager.set_ranges({"defocus": None, "beauty": (0.0, 1.0)})
        assert manager.board.selection.ranges == {"defocus": (100.0, None)}
        manager.decide(["a"], False)
        manager.change_settings({"motion.bfactor": "70"})
        _wait(lambda: _states(manager) == {"a": "stale", "b": "done"})
        manager.decide(["a"], None)
        _wait(lambda: _all(manager, "done", 2))
        # somebody else's `weft select`
        session.select(session.selection.with_range("defocus", None, None))
        _wait(lambda: manager.board.counts()["selected"] == 2)


def test_a_full_disk_pauses_and_an_empty_one_resumes(
    session: Session, frames: Path, fake_work: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1e9]
    usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(housekeeping.shutil, "disk_usage", lambda path: usage(10**12, 0, int(free[0])))
    monkeypatch.setattr(housekeeping, "_DISK_EVERY", 0.05)
    with _running(session) as manager:
        _movie(frames, "a.tif", 1e9)
        _wait(lambda: manager.status()["backlog"] == 1)
        assert "only 1.0 GB are free" in manager.status()["paused"]
        free[0] = 5.1e9  # not enough to begin again
        time.sleep(0.2)
        assert manager.status()["paused"]
        assert fake_work == []
        free[0] = 6e9
        _wait(lambda: _all(manager, "done", 1))
        assert manager.status()["paused"] is None
        assert manager.status()["disk"] == {"free": 6_000_000_000, "total": 10**12}


def test_work_that_breaks_down_is_tried_again(
    session: Session, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk fills up in the middle of it, and even the record cannot be written."""
    monkeypatch.setattr(tries, "FIRST_DELAY", 0.1)
    tried: list[str] = []

    def work(task: Task) -> Outcome:
        tried.append(task.item)
        if len(tried) < 3:
            raise OSError(28, "No space left on device", "/somewhere")
        from weft.session.work import set_aside

        return set_aside(task, "enough")

    monkeypatch.setattr("weft.session.live.run_tasks", _with_work(work))
    with _running(session) as manager:
        _movie(frames, "a.tif", 1e9)
        _wait(lambda: any("No space left" in alert["text"] for alert in manager.status()["alerts"]))
        _wait(lambda: _states(manager) == {"a": "failed"})
        assert tried == ["a", "a", "a"]
        assert manager.board.entry("a").reason == "enough"


def test_an_engine_that_does_not_start_is_told_and_tried_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _running(session, scheduler=str(session.root / "nothing.json")) as manager:
        alerts = _wait(lambda: manager.status()["alerts"])
        assert "there is no scheduler file" in alerts[0]["text"]


def test_a_record_that_cannot_be_read_fails_alone(
    session: Session, frames: Path, fake_work: list[Task]
) -> None:
    for n in range(2):
        _movie(frames, f"m_{n}.tif", 1e9)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 2))
    (session.root / "records" / "m_0.json").write_text("{torn")
    with _running(session) as manager:
        assert _states(manager) == {"m_0": "failed", "m_1": "done"}
        assert "not a readable record" in manager.board.entry("m_0").reason
        time.sleep(0.3)
        assert len(fake_work) == 2
        manager.retry(["m_0"])
        _wait(lambda: _all(manager, "done", 2))
        assert len(fake_work) == 3


# ---------------------------------------------------------------------- life


def test_a_second_manager_is_refused_and_told_who_holds_the_session(session: Session) -> None:
    with _running(session) as manager:
        with pytest.raises(SessionError, match=f"process {os.getpid()} on .* has been working"):
            Manager(session).start()
        with pytest.raises(SessionError, match=f"process {os.getpid()}"):
            session.run(workers=0)
        assert manager.status()["watching"]
    with _running(session, watch=False) as manager:
        assert not manager.status()["watching"]


def test_stopping_lets_the_item_in_work_end(
    session: Session, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(task: Task) -> Outcome:
        begun.set()
        time.sleep(0.3)
        ended.set()
        return Outcome(task.item)

    monkeypatch.setattr("weft.session.live.run_tasks", _with_work(work))
    with _running(session) as manager:
        for n in range(5):
            _movie(frames, f"m_{n}.tif", 1e9)
        assert begun.wait(20.0)
        manager.stop()
        assert ended.is_set()
        manager.stop()  # again does nothing
    assert not (session.root / ".lock").exists()


def test_the_status_is_what_the_page_expects(session: Session, frames: Path, movies: list[Path]) -> None:
    shutil.copy(movies[0], frames)
    with _running(session) as manager:
        _wait(lambda: _all(manager, "done", 1))
        status = manager.status()
    assert json.loads(json.dumps(status)) == status
    assert status["items"] == {
        "total": 1, "done": 1, "failed": 0, "stale": 0, "new": 0, "processing": 0, "excluded": 0,
        "selected": 1,
    }  # fmt: skip
    assert status["backlog"] == 0
    assert status["time_left_s"] == 0.0
    assert status["throughput"]["per_hour"] > 0
    assert status["workers"] == [{"name": "0", "state": "idle", "item": None, "seconds": None}]
    assert status["disk"]["free"] <= status["disk"]["total"]

"""The watcher: what is complete, what is not yet, what is gone, whatever the names and times."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.session.input import InputSettings
from weft.session.intake import find_with_folders, what_is_missing
from weft.session.watching import Watcher

OLD = time.time() - 3600.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _watcher(folder: Path, clock: Clock, **options: object) -> Watcher:
    return Watcher(lambda: sorted(folder.rglob("*.tif")), clock=clock, **options)  # type: ignore[arg-type]


def _old(path: Path, text: str = "x", mtime: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (mtime, mtime))
    return path


def test_what_has_not_changed_for_long_does_not_wait(tmp_path: Path, clock: Clock) -> None:
    first, second = _old(tmp_path / "a.tif"), _old(tmp_path / "b.tif", mtime=OLD + 5.0)
    watcher = _watcher(tmp_path, clock)
    look = watcher.look()
    assert look.ready == (second, first)  # the most recent first
    assert not look.waiting
    assert watcher.look().ready == ()  # once


def test_a_growing_file_waits_until_it_stands_still(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "a.tif"
    watcher = _watcher(tmp_path, clock, settle=2.0)
    path.write_text("x")
    assert watcher.look().waiting == {path: "just arrived"}
    for size in range(2, 5):
        clock.now += 1.5
        path.write_text("x" * size)
        look = watcher.look()
        assert look.waiting == {path: "still being written"}
        assert look.ready == ()
    clock.now += 1.9
    assert watcher.look().ready == ()
    clock.now += 0.2
    assert watcher.look().ready == (path,)
    clock.now += 100.0
    assert watcher.look().ready == ()


def test_the_order_of_times_plays_no_part(tmp_path: Path, clock: Clock) -> None:
    watcher = _watcher(tmp_path, clock, settle=2.0)
    now = time.time()
    _old(tmp_path / "late.tif", mtime=now)
    watcher.look()
    clock.now += 3.0
    assert [p.name for p in watcher.look().ready] == ["late.tif"]
    # copied with its time: older than what was taken already; and one from a clock that is ahead
    _old(tmp_path / "early.tif", mtime=now - 9999.0)
    _old(tmp_path / "tomorrow.tif", mtime=now + 86400.0)
    names = {p.name for p in watcher.look().ready}
    clock.now += 3.0
    names |= {p.name for p in watcher.look().ready}
    assert names == {"early.tif", "tomorrow.tif"}


def test_an_incomplete_file_is_given_up_in_the_end_and_given_again_when_it_changes(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "a.tif"
    path.write_text("part")
    watcher = _watcher(
        tmp_path, clock, check=lambda p: "" if p.read_text() == "all" else "frame 3 is missing", give_up=60.0
    )
    watcher.look()
    clock.now += 59.0
    assert watcher.look().waiting == {path: "frame 3 is missing"}
    clock.now += 2.0
    assert watcher.look().ready == (path,)
    path.write_text("all")
    os.utime(path, ns=(1, time.time_ns() + 5))
    watcher.look()
    clock.now += 3.0
    assert watcher.look().ready == (path,)


def test_vanished_renamed_replaced(tmp_path: Path, clock: Clock) -> None:
    path = _old(tmp_path / "a.tif")
    watcher = _watcher(tmp_path, clock)
    assert watcher.look().ready == (path,)
    # replaced by another of the same size
    path.write_text("y")
    assert watcher.look().ready == ()
    clock.now += 3.0
    assert watcher.look().ready == (path,)
    # renamed
    os.utime(path, (OLD, OLD))
    watcher.look()
    clock.now += 3.0
    watcher.look()
    other = path.rename(tmp_path / "b.tif")
    look = watcher.look()
    assert look.ready == (other,)
    assert look.gone == (path,)
    # vanished before it was complete: nothing is said about it
    new = tmp_path / "c.tif"
    new.write_text("z")
    watcher.look()
    new.unlink()
    assert watcher.look().gone == ()
    # back again
    other.rename(path)
    look = watcher.look()
    assert look.ready == (path,)
    assert look.gone == (other,)


def test_what_is_known_is_not_given(tmp_path: Path, clock: Clock) -> None:
    path = _old(tmp_path / "a.tif")
    facts = path.stat()
    lost = tmp_path / "lost.tif"
    watcher = _watcher(tmp_path, clock, known={path: (facts.st_size, facts.st_mtime_ns), lost: (1, 1)})
    look = watcher.look()
    assert look.ready == ()
    assert look.gone == (lost,)
    watcher.forget(path)
    assert watcher.look().ready == (path,)


def test_the_same_base_name_in_two_folders(tmp_path: Path, clock: Clock) -> None:
    paths = {_old(tmp_path / folder / "movie.tif") for folder in ("a", "b")}
    assert set(_watcher(tmp_path, clock).look().ready) == paths


@pytest.mark.parametrize(
    "name",
    [
        "a b.tif",
        'it\'s "quoted".tif',
        "#1.tif",
        "µ-Ångström_电子.tif",
        "[1-9]*?.tif",
        "x" * 251 + ".tif",
        "-rf.tif",
    ],
)
def test_odd_names(name: str, tmp_path: Path, clock: Clock) -> None:
    path = _old(tmp_path / name)
    found = InputSettings(
        frames=(str(tmp_path),), pixel_size=1.0, voltage=300.0, cs=2.7, amplitude=0.1, dose_per_frame=1.0
    )
    watcher = Watcher(lambda: find_with_folders(found, tmp_path), clock=clock)
    assert watcher.look().ready == (path,)


def test_trouble_with_folders_and_files_is_told_and_nothing_is_gone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_old(tmp_path / "a.tif"), _old(tmp_path / "b.tif")]
    trouble: list[OSError] = []

    def find() -> Iterator[Path]:
        yield from paths[: 1 if trouble else 2]
        if trouble:
            raise trouble[0]

    watcher = Watcher(find, clock=clock)
    assert len(watcher.look().ready) == 2
    trouble.append(OSError(errno.ESTALE, "Stale file handle", str(tmp_path)))
    look = watcher.look()
    assert look.gone == ()
    assert look.waiting == {tmp_path: "the folder cannot be read (Stale file handle)"}
    trouble.clear()
    # a file that cannot be looked at has not gone either
    real = os.stat

    def stale(path: str, **options: object) -> os.stat_result:
        if path == paths[0]:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("weft.session.watching.os.stat", stale)
    look = watcher.look()
    assert look.waiting == {paths[0]: "cannot be looked at (Stale file handle)"}
    assert look.gone == ()


def test_a_missing_folder_is_named(tmp_path: Path, clock: Clock) -> None:
    there = _old(tmp_path / "here" / "a.tif")
    found = InputSettings(
        frames=(str(there.parent / "*.tif"), str(tmp_path / "unmounted" / "*" / "*.tif")),
        pixel_size=1.0, voltage=300.0, cs=2.7, amplitude=0.1, dose_per_frame=1.0,
    )  # fmt: skip
    watcher = Watcher(lambda: find_with_folders(found, tmp_path), clock=clock)
    look = watcher.look()
    assert look.ready == (there,)
    assert look.waiting == {tmp_path / "unmounted": "the folder cannot be read (No such file or directory)"}


def test_recursive_by_choice(tmp_path: Path) -> None:
    deep = _old(tmp_path / "frames" / "square_1" / "deep" / "a.tif")
    plain = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7, "amplitude": 0.1, "dose_per_frame": 1.0}
    for recursive, wanted in ((False, []), (True, [deep])):
        found = InputSettings(frames=(str(tmp_path / "frames" / "*.tif"),), recursive=recursive, **plain)
        assert list(find_with_folders(found, tmp_path)) == wanted


def test_what_is_missing_in_a_movie(tmp_path: Path) -> None:
    plain = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7, "amplitude": 0.1, "dose_per_frame": 1.0}
    path = tmp_path / "a.tif"
    movie = np.random.default_rng(1).integers(0, 9, (4, 64, 64), dtype=np.uint8)
    tifffile.imwrite(path, movie, photometric="minisblack", compression="lzw", metadata=None)
    found = InputSettings(frames=("*.tif",), **plain)
    assert what_is_missing(path, found) == ""
    assert "4 frames where 5" in what_is_missing(path, found.model_copy(update={"expected_frames": 5}))
    whole = path.read_bytes()
    for part in (0.0, 0.3, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        assert what_is_missing(path, found) != ""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["grow", "touch", "remove", "wait", "wait", "wait"]), min_size=1, max_size=25)
)
def test_whatever_happens_a_file_is_given_once_for_each_state_it_settles_in(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path, clock, stamp = folder / "a.tif", Clock(), time.time_ns()
    watcher = Watcher(lambda: folder.glob("*.tif"), clock=clock, settle=2.0)
    given_states: list[tuple[int, int]] = []
    still = 0.0
    for event in events:
        if event == "grow":
            with path.open("a") as handle:
                handle.write("x")
            stamp += 10**9
            os.utime(path, ns=(stamp, stamp))
            still = 0.0
        elif event == "touch" and path.exists():
            stamp += 10**9
            os.utime(path, ns=(stamp, stamp))
            still = 0.0
        elif event == "remove":
            path.unlink(missing_ok=True)
            given_states.clear()
        else:
            clock.now += 1.5
            still += 1.5
        look = watcher.look()
        if look.ready:
            facts = path.stat()
            assert still >= 2.0
            state = (facts.st_size, facts.st_mtime_ns)
            assert state not in given_states
            given_states.append(state)

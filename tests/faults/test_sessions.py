"""Sessions under fire: killed at any moment, stopped, fed with bad files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import weft
from weft.formats import mrc
from weft.session.session import Session

NewSession = Callable[..., Session]
WEFT = [sys.executable, "-m", "weft"]


def _start(session: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*WEFT, "run", str(session), "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _content(root: Path) -> dict[str, Any]:
    """All that a session holds, but for timings, its own place, and caches."""
    out: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or name.startswith("logs") or name == "index.sqlite":
            continue
        if name.startswith("records"):
            data = json.loads(path.read_text())
            del data["timings"]
            out[name] = data
        else:
            out[name] = path.read_bytes().replace(str(root).encode(), b"ROOT")
    return out


def _gone(group: int, seconds: float = 10.0) -> bool:
    """Whether every process of the group has ended within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "times", [3, pytest.param(20, marks=pytest.mark.slow)], ids=lambda times: f"{times} times"
)
def test_sigkill_at_any_moment_and_again_gives_the_same(new_session: NewSession, times: int) -> None:
    calm, troubled = new_session("calm"), new_session("troubled")
    begin = time.monotonic()
    done = _start(calm.root, "--workers", "1")
    done.communicate(timeout=120)
    assert done.returncode == 0
    length = time.monotonic() - begin
    wanted = _content(calm.root)
    rng = random.Random(times)
    for attempt in range(times):
        # even attempts kill the manager alone, odd ones everything at once
        process = _start(troubled.root, "--workers", "1")
        time.sleep(rng.uniform(0.2, 1.0) * length)
        if attempt % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=60)
        assert _gone(process.pid), "workers outlive their manager"
        for path in troubled.root.rglob("*.json"):
            json.loads(path.read_text())  # nothing torn
        if attempt % 3 == 2:  # a finished session has nothing left to be killed in
            shutil.rmtree(troubled.root / "records", ignore_errors=True)
    again = _start(troubled.root, "--workers", "1")
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert _content(troubled.root) == wanted


def test_ctrl_c_stops_cleanly_and_a_second_run_finishes(new_session: NewSession) -> None:
    session = new_session()
    process = _start(session.root, "--workers", "2")
    assert process.stderr is not None
    process.stderr.readline()  # the first item has ended: work is going on
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130), error  # it may just have ended
    assert "Traceback" not in error
    assert _gone(process.pid)
    assert not (session.root / ".lock").exists()
    assert session.run(workers=0, threads=1).exit_code == 0
    assert all(status.state == "done" for status in session.status().values())


def test_sigterm_stops_as_cleanly(new_session: NewSession) -> None:
    session = new_session()
    process = _start(session.root, "--workers", "1")
    assert process.stderr is not None
    process.stderr.readline()
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "stopped; run again to go on" in out
    assert _gone(process.pid)


def test_a_killed_worker_costs_nothing(new_session: NewSession) -> None:
    import psutil

    session = new_session()
    process = _start(session.root, "--workers", "2")
    assert process.stderr is not None
    process.stderr.readline()
    children = psutil.Process(process.pid).children()
    workers = [p for p in children if "multiprocessing.spawn" in " ".join(p.cmdline())]
    workers[-1].kill()
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "3 done" in out


# ---------------------------------------------------------------------- bad inputs


@pytest.fixture
def frames(tiny_movies: Path, tmp_path: Path) -> Path:
    """A folder with one good movie."""
    folder = tmp_path / "frames"
    folder.mkdir()
    shutil.copy(tiny_movies / "frames" / "movie_000.tif", folder / "good.tif")
    return folder


def _run(new_session: NewSession, frames: Path, **changes: Any) -> tuple[Session, dict[str, str]]:
    """Run a session over good and bad files; the reasons of what failed."""
    session = new_session(frames=[frames / "*.tif", frames / "*.mrc"], **changes)
    report = session.run(workers=0, threads=1)
    return session, report.failed


def _counts(n: int, size: int = 320) -> np.ndarray[Any, Any]:
    return np.random.default_rng(n).poisson(4.0, (n, size, size)).astype(np.uint8)


def _write(path: Path, movie: np.ndarray[Any, Any], **options: Any) -> None:
    tifffile.imwrite(path, movie, photometric="minisblack", metadata=None, **options)


def _truncated(folder: Path) -> Path:
    data = (folder / "good.tif").read_bytes()
    path = folder / "bad.tif"
    path.write_bytes(data[: int(len(data) * 0.7)])
    return path


def _corrupt_lzw(folder: Path) -> Path:
    path = folder / "bad.tif"
    data = bytearray((folder / "good.tif").read_bytes())
    with tifffile.TiffFile(folder / "good.tif") as tif:
        offset, length = tif.pages[2].dataoffsets[0], tif.pages[2].databytecounts[0]
    data[offset : offset + length] = b"\xff" * length
    path.write_bytes(data)
    return path


def _empty(folder: Path) -> Path:
    path = folder / "bad.tif"
    path.write_bytes(b"")
    return path


def _not_a_number(folder: Path) -> Path:
    path = folder / "bad.mrc"
    movie = _counts(4).astype(np.float32)
    movie[2, 10, 10] = np.nan
    mrc.write(path, movie, 1.5, volume=False)
    return path


def _huge_header(folder: Path) -> Path:
    path = folder / "bad.mrc"
    mrc.write(path, _counts(3).astype(np.int8), 1.5, volume=False)
    data = bytearray(path.read_bytes())
    data[0:12] = np.array([100_000, 100_000, 100_000], "<i4").tobytes()
    path.write_bytes(data)
    return path


def _truncated_mrc(folder: Path) -> Path:
    path = folder / "bad.mrc"
    mrc.write(path, _counts(3).astype(np.int8), 1.5, volume=False)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _other_size(folder: Path) -> Path:
    path = folder / "bad.tif"
    _write(path, _counts(3, 256))
    return path


def _text(folder: Path) -> Path:
    path = folder / "bad.tif"
    path.write_text("this is not a movie")
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncated, "bad.tif"),
        (_corrupt_lzw, "bad.tif, frame 2"),
        (_empty, "empty"),
        (_not_a_number, "bad.mrc, frame 2"),
        (_huge_header, "bad.mrc"),
        (_truncated_mrc, "bad.mrc"),
        (_other_size, "256"),  # the gain is of the good movie's size: both sizes are told
        (_text, "TIFF"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_file_costs_itself_and_nothing_else(
    new_session: NewSession, frames: Path, spoil: Callable[[Path], Path], message: str
) -> None:
    spoil(frames)
    session, failed = _run(new_session, frames)
    assert set(failed) == {"bad"}
    assert message in failed["bad"]
    assert "\n" not in failed["bad"]
    assert "Traceback" not in failed["bad"]
    status = session.status()
    assert status["good"].state == "done"
    assert status["bad"].state == "failed"
    assert session["bad"].error == failed["bad"]
    assert "good.mrc" in (session.root / "micrographs.star").read_text()
    # a bad file stays bad: it is not tried again before something changes, and still counts as failed
    again = session.run(workers=0, threads=1)
    assert again.done == []
    assert again.failed == failed
    assert again.exit_code == 1


def test_a_mended_file_is_tried_again_by_itself(new_session: NewSession, frames: Path) -> None:
    bad = _truncated(frames)
    session, failed = _run(new_session, frames)
    assert failed
    shutil.copy(frames / "good.tif", bad)
    report = session.run(workers=0, threads=1)
    assert report.done == ["bad"]
    assert report.exit_code == 0


def test_a_wrong_gain_is_told_for_every_movie(new_session: NewSession, frames: Path, tmp_path: Path) -> None:
    gain = tmp_path / "wrong_gain.mrc"
    mrc.write(gain, np.ones((300, 310), np.float32), 1.5)
    session, failed = _run(new_session, frames, gain=gain)
    assert "310" in failed["good"]
    assert "320" in failed["good"]
    gain.unlink()
    assert "wrong_gain.mrc" in session.run(workers=0, threads=1, retry=True).failed["good"]


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_frames_are_enough_for_an_average(new_session: NewSession, frames: Path, n: int) -> None:
    (frames / "good.tif").unlink()
    _write(frames / "short.tif", _counts(n))
    session, failed = _run(new_session, frames, gain=None)
    states = session.status()["short"].steps
    assert states["motion"].state == "done", failed
    assert mrc.read(session.root / "average" / "short.mrc")[0].shape == (320, 320)
    assert session["short"].track([[100.0, 100.0]]).shape == (n, 1, 2)


def test_a_movie_that_vanishes_is_a_failure_of_its_own(new_session: NewSession, frames: Path) -> None:
    shutil.copy(frames / "good.tif", frames / "gone.tif")
    session = new_session(frames=frames / "*.tif")

    def vanish(progress: object) -> None:
        (frames / "good.tif").unlink(missing_ok=True)

    report = session.run(workers=0, threads=1, progress=vanish)  # "gone" comes first and takes "good" with it
    assert report.done == ["gone"]
    assert "good.tif: cannot be read" in report.failed["good"]


def test_odd_names_go_through_everything(new_session: NewSession, frames: Path) -> None:
    odd = ["two words.tif", 'it\'s "#1".tif', "-x.tif", "é" * 120 + ".tif"]
    for name in odd:
        shutil.copy(frames / "good.tif", frames / name)
    session, failed = _run(new_session, frames)
    assert failed == {}
    assert len(session.status()) == 5
    assert {movie.source.name for movie in session} == {"good.tif", *odd}
    assert session["two words"].name == "two_words"
    assert len(weft.open(session.root).run(workers=0, threads=1).current) == 5


def test_a_full_disk_is_said_before_anything_is_done(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    usage = shutil.disk_usage(session.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(weft.SessionError, match="make room first"):
        session.run(workers=0, threads=1)

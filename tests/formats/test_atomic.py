"""Atomic writing: all or nothing, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft.formats.atomic import TEMPORARY_SUFFIX, atomic_write, atomic_write_text


def test_replaces_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new and ")
        file.flush()
        assert path.read_text() == "old"
        beside = [p for p in tmp_path.iterdir() if p != path]
        assert len(beside) == 1
        assert beside[0].name.startswith(".a.")
        assert beside[0].name.endswith(TEMPORARY_SUFFIX)
        file.write(b"longer")
    assert path.read_text() == "new and longer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "a", "ä")
        (tmp_path / "b").write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ä"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write_text(tmp_path / "none" / "a", "x")


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL in the middle: the old file is whole; the stump has a name that says what it is."""
    path = tmp_path / "a"
    path.write_text("old")
    program = (
        "import os, signal, sys\n"
        "from weft.formats.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert done.returncode == -9
    assert path.read_text() == "old"
    rest = [p.name for p in tmp_path.iterdir() if p != path]
    assert all(name.startswith(".a.") and name.endswith(TEMPORARY_SUFFIX) for name in rest)

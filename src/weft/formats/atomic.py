"""Writing a file so that readers see the old one or the whole new one, never a part.

The bytes go to a hidden file beside the destination, are synced to the disk, and the file is renamed
over the destination; then the folder is synced, so that the new name survives a power cut too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

__all__ = ["TEMPORARY_SUFFIX", "atomic_write", "atomic_write_bytes", "atomic_write_text"]

#: Unfinished files are called ``.<name>.<random><this>``: what a clean-up may delete.
TEMPORARY_SUFFIX = ".part"


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name only when the block ends without an error.

    Parameters
    ----------
    path : path-like
        The destination; its folder must exist.
    sync : bool
        Wait until the bytes are on the disk. Switch off only for what can be made again.

    Yields
    ------
    binary file, open for writing and seeking
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    temporary = Path(name)
    # mkstemp makes private files; results are as readable as any other new file
    os.fchmod(handle, 0o666 & ~_umask())
    os.close(handle)
    try:
        # opened by name, because some libraries ask a file for it
        with temporary.open("w+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if sync:
        _sync_folder(path.parent)


def atomic_write_bytes(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path, sync=sync) as file:
        file.write(data)


def atomic_write_text(path: str | Path, text: str, *, sync: bool = True) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"), sync=sync)


def _umask() -> int:
    # os.umask can only be read by setting it, which other threads would see: Linux tells it otherwise
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _sync_folder(folder: Path) -> None:
    # some network file systems refuse to sync a folder; the rename itself has been done
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

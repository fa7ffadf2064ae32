"""A file that stays open while images are read from it, by several threads at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from weft.errors import TruncatedError

__all__ = ["OpenFile"]


class OpenFile:
    """Base of readers of movies.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)

    def read_bytes(self, offset: int, count: int, frame: int) -> bytes:
        """``count`` bytes from ``offset``, or TruncatedError for the frame that they belong to."""
        data = os.pread(self._fd, count, offset)
        while len(data) < count:
            # the kernel may return less than asked for; nothing at all means the end
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                raise TruncatedError(
                    self.path, "it has become shorter while it was read; copy it again", frame=frame
                )
            data += more
        return data

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

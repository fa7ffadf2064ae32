"""Headerless binary: the user says what the header would have said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from weft.errors import TruncatedError

__all__ = ["RawStack"]


class RawStack:
    """Frames of a headerless binary file, read one by one; thread-safe.

    Parameters
    ----------
    path : path-like
    shape : (ny, nx)
    dtype : dtype
        With its byte order.
    offset : int
        Bytes before the first frame.
    n_frames : int, optional
        By default as many as the file's length gives, which must come out even.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int],
        dtype: DTypeLike,
        *,
        offset: int = 0,
        n_frames: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.shape = shape
        self.stored = np.dtype(dtype)
        self.dtype = self.stored.newbyteorder("=")
        self.offset = offset
        size = self.path.stat().st_size
        if size == 0:
            raise TruncatedError(path, "the file is empty; copy it again")
        self._frame_bytes = shape[0] * shape[1] * self.stored.itemsize
        whole, rest = divmod(size - offset, self._frame_bytes)
        text = f"frames of {shape[1]} x {shape[0]} {self.stored.name} after {offset} bytes"
        if n_frames is None and (rest or whole <= 0):
            raise TruncatedError(
                path,
                f"its {size} bytes are not a whole number of {text}; it is still being written, "
                "or the stated size is wrong",
                frame=max(whole, 0),
            )
        if n_frames is not None and whole < n_frames:
            raise TruncatedError(
                path, f"its {size} bytes hold {max(whole, 0)} of {n_frames} {text}", frame=max(whole, 0)
            )
        self.note = ""
        if n_frames is not None and size - offset > n_frames * self._frame_bytes:
            self.note = f"{size - offset - n_frames * self._frame_bytes} bytes follow the last frame"
        self._n = whole if n_frames is None else n_frames

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> NDArray[Any]:
        """Frame ``index`` (ny, nx) in the machine's byte order."""
        if not 0 <= index < self._n:
            raise IndexError(index)
        count = self.shape[0] * self.shape[1]
        data = np.fromfile(self.path, self.stored, count, offset=self.offset + index * self._frame_bytes)
        if data.size < count:
            raise TruncatedError(self.path, "it has become shorter while it was read", frame=index)
        return data.reshape(self.shape).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Nothing is held open."""

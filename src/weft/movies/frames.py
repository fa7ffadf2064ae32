"""The frames of one movie as the science reads them: gain applied, bad pixels replaced.

Raw frames stay in memory in their own small type; each is made into single precision when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, GainError
from weft.formats.gain import gain_residual
from weft.movies.hot_pixels import find_outliers, good_neighbours
from weft.movies.source import MovieInfo, SourceSettings, open_movie

__all__ = ["Frames", "load_frames"]


class Frames:
    """Corrected frames, made from the raw ones on access.

    A bad pixel gets, in every frame, the value of another of its good neighbours, chosen at random but
    always the same for the same frame: the local mean and the local noise, and nothing that is alike
    from frame to frame for the alignment to lock onto.

    Parameters
    ----------
    raw : sequence of (ny, nx) arrays
        Kept, not copied.
    gain : (ny, nx) float32, optional
        Multiplier; zeros and what is not a number are defects.
    defects : (ny, nx) bool, optional
    find_hot : bool
        Look for hot and dead pixels in the sum of the frames.
    path : path-like
        For the messages.

    Attributes
    ----------
    n_hot, n_dead : int
        Pixels found by their counts, beside the known defects.
    hot_pixels : (n_hot, 2) int64
        Their x, y.
    bad : (ny, nx) bool, or None
        All pixels that are replaced.
    mean_counts : (n,) float64
        Mean raw count of each frame.
    info : MovieInfo or None
        What the file said, if the frames come from `load_frames`.

    Raises
    ------
    GainError
        A gain or defect map of another size, or without a good pixel.
    CorruptError
        A frame with numbers that are none.
    """

    def __init__(
        self,
        raw: Sequence[NDArray[Any]],
        gain: NDArray[Any] | None = None,
        defects: NDArray[np.bool_] | None = None,
        *,
        find_hot: bool = True,
        path: str | Path = "frames",
        info: MovieInfo | None = None,
    ) -> None:
        if not len(raw):
            raise FormatError(path, "there are no frames")
        self._raw = list(raw)
        self.info = info
        self._path = path
        ny, nx = self._raw[0].shape
        for index, frame in enumerate(self._raw):
            if frame.shape != (ny, nx):
                raise FormatError(
                    path, f"its shape is {frame.shape}, that of frame 0 {(ny, nx)}", frame=index
                )
        self._gain, bad = _known_defects((ny, nx), gain, defects, path)
        total = self._checked_sum()
        self.hot_pixels = np.zeros((0, 2), np.int64)
        self.n_dead = 0
        if find_hot:
            hot, dead = find_outliers(total, self._gain, bad)
            if hot.size + dead.size:
                bad = np.zeros((ny, nx), np.bool_) if bad is None else bad
                bad.reshape(-1)[hot] = True
                bad.reshape(-1)[dead] = True
            self.hot_pixels = np.stack([hot % nx, hot // nx], -1)
            self.n_dead = int(dead.size)
        self.n_hot = len(self.hot_pixels)
        self.bad = bad
        self._pixels = np.zeros(0, np.int64)
        self._neighbours = np.zeros((0, 1), np.int64)
        if bad is not None:
            self._pixels, self._neighbours = good_neighbours(bad)
            if len(self._neighbours) < len(self._pixels):
                raise GainError(f"{path}: gain and defects leave no good pixel")

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, ny, nx), as a tensor's."""
        return (len(self._raw), *self.frame_shape)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(ny, nx)"""
        ny, nx = self._raw[0].shape
        return ny, nx

    @property
    def device(self) -> torch.device:
        """The frames are made on the CPU."""
        return torch.device("cpu")

    def __getitem__(self, index: int) -> torch.Tensor:
        """Frame ``index``: (ny, nx) float32 tensor, new each time."""
        # numpy asks the system for huge pages, torch does not: a third of the time for a fresh picture
        return self.fill(index, torch.from_numpy(np.empty(self.frame_shape, np.float32)))

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(len(self)):
            yield self[index]

    def fill(self, index: int, out: torch.Tensor) -> torch.Tensor:
        """Write frame ``index`` into ``out``, (ny, nx) float32 on the CPU, perhaps a part of a larger
        tensor; saves the time that new memory costs. Returns ``out``."""
        index = range(len(self))[index]
        target = out.numpy()
        raw = self._raw[index]
        if self._gain is None:
            np.copyto(target, raw, casting="unsafe")
        else:
            np.multiply(raw, self._gain, out=target, dtype=np.float32, casting="unsafe")
        if self._pixels.size:
            pick = np.random.default_rng((index, 0x57EF7)).integers(
                0, self._neighbours.shape[1], self._pixels.size
            )
            chosen = self._neighbours[np.arange(self._pixels.size), pick]
            nx = raw.shape[1]
            target[self._pixels // nx, self._pixels % nx] = target[chosen // nx, chosen % nx]
        return out

    def raw(self, index: int) -> NDArray[Any]:
        """Frame ``index`` as read from the file."""
        return self._raw[index]

    def raw_sum(self) -> NDArray[Any]:
        """Sum of the raw frames: what `weft.formats.gain.best_orientation` compares a gain with."""
        total = _new_sum(self._raw)
        for frame in self._raw:
            np.add(total, frame, out=total, casting="unsafe")
        return total

    def gain_residual(self) -> tuple[float, float] | None:
        """How much of the gain's pattern is left, and its error: `weft.formats.gain.gain_residual`.

        None without a gain reference.
        """
        return None if self._gain is None else gain_residual(self._gain, self._raw, self.bad)

    def _checked_sum(self) -> NDArray[Any]:
        total = _new_sum(self._raw)
        means = []
        for index, frame in enumerate(self._raw):
            np.add(total, frame, out=total, casting="unsafe")
            # every eighth row is enough for a mean, and all would cost as much as the rest
            mean = float(frame[:: 8 if frame.shape[0] > 512 else 1].mean(dtype=np.float64))
            means.append(mean)
            if frame.dtype.kind == "f" and not np.isfinite(frame.sum(dtype=np.float64)):
                wrong = int(np.count_nonzero(~np.isfinite(frame)))
                raise CorruptError(
                    self._path,
                    f"{wrong} of {frame.size} pixels are not numbers; write the movie again",
                    frame=index,
                )
        self.mean_counts = np.array(means)
        return total


def load_frames(
    path: str | Path,
    options: SourceSettings | None = None,
    *,
    gain: NDArray[Any] | None = None,
    defects: NDArray[np.bool_] | None = None,
    find_hot: bool = True,
    threads: int | None = None,
) -> Frames:
    """Read a whole movie.

    Parameters
    ----------
    path : path-like
    options : SourceSettings, optional
    gain : (ny, nx), optional
        From `weft.formats.gain.load_gain`.
    defects : (ny, nx) bool, optional
        From `weft.formats.gain.load_defects`.
    find_hot : bool
    threads : int, optional
        That decode; by default two.

    Returns
    -------
    Frames
    """
    with open_movie(path, options) as source:
        # before the frames are decoded: a wrong gain should cost no time
        _known_defects(source.info.shape, gain, defects, path, check_only=True)
        raw = list(source.frames(threads))
        info = source.info
    return Frames(raw, gain, defects, find_hot=find_hot, path=path, info=info)


def _known_defects(
    shape: tuple[int, int],
    gain: NDArray[Any] | None,
    defects: NDArray[np.bool_] | None,
    path: str | Path,
    check_only: bool = False,
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    for name, image in (("gain reference", gain), ("defect map", defects)):
        if image is not None and image.shape != shape:
            raise GainError(
                f"{path}: the {name} is {image.shape[-1]} x {image.shape[0]} pixels, the frames are "
                f"{shape[1]} x {shape[0]}; give the one that was recorded with these frames"
            )
    if check_only:
        return None, None
    bad: NDArray[np.bool_] | None = None
    if defects is not None and defects.any():
        bad = defects.astype(np.bool_, copy=True)
    if gain is None:
        return None, bad
    gain = np.ascontiguousarray(gain, np.float32)
    wrong = np.logical_not(gain > 0)
    if not np.isfinite(gain.max()):
        wrong |= np.isinf(gain)
    if wrong.any():
        if np.any(gain[wrong] != 0):
            # copied only where it must be: a full gain is as large as four raw frames
            gain = np.where(wrong, np.float32(0), gain)
        bad = wrong if bad is None else bad | wrong
    return gain, bad


def _new_sum(raw: Sequence[NDArray[Any]]) -> NDArray[Any]:
    kind, size = raw[0].dtype.kind, raw[0].dtype.itemsize
    if kind == "f":
        return np.zeros(raw[0].shape, np.float32 if size < 8 else np.float64)
    # small sums are twice as fast to make and to search
    if kind == "u" and size == 1 and len(raw) <= 257:
        return np.zeros(raw[0].shape, np.uint16)
    if kind == "i" and size == 1 and len(raw) <= 256:
        return np.zeros(raw[0].shape, np.int16)
    return np.zeros(raw[0].shape, np.int32 if size <= 2 else np.int64)

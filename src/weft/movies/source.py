"""One way to read the frames of a movie, whatever its format.

`open_movie` looks at the file's first bytes, not only at its name, and returns a `MovieSource` that
says what it found. A file with fewer frames than it announces is an error, never a shorter movie.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, SettingsError, TruncatedError
from weft.formats.eer import COMPRESSIONS, EerMovie, Grouping
from weft.formats.em import EmStack
from weft.formats.mrc import MrcStack
from weft.formats.raw import RawStack
from weft.formats.tiff import TiffMovie
from weft.formats.tiff_layout import has_compression, is_tiff
from weft.settings import Settings, setting

__all__ = ["MovieInfo", "MovieSource", "SourceSettings", "open_movie"]


class SourceSettings(Settings):
    """How movie files are read."""

    eer_upsampling: Literal[1, 2, 4] = setting(
        1, "Grid on which the electrons of EER files are counted: 1 is the sensor's own, 2 and 4 are finer"
    )
    eer_groups: int = setting(
        40, "EER: add up the raw frames to this many frames, as equal as can be; all are used", ge=1, le=10000
    )
    eer_frames: int | None = setting(
        None, "EER: add up this many raw frames to a frame instead; what is left over is not used", ge=1
    )
    eer_dose: float | None = setting(
        None,
        "EER: add up raw frames to this dose a frame instead, if the file states its own",
        unit="e/Å²",
        gt=0,
    )
    expected_frames: int | None = setting(
        None, "Frames that every movie must have (EER: raw frames); another number is an error", ge=1
    )
    skip_first: int = setting(0, "Frames to leave out at the start", ge=0)
    skip_last: int = setting(0, "Frames to leave out at the end", ge=0)
    mrc_bytes: Literal["auto", "signed", "unsigned"] = setting(
        "auto", "MRC files of bytes: whether they are signed; auto goes by the header"
    )
    raw_width: int | None = setting(None, "Headerless binary: pixels in a row", unit="px", ge=1)
    raw_height: int | None = setting(None, "Headerless binary: rows of a frame", unit="px", ge=1)
    raw_type: Literal["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"] = setting(
        "uint8", "Headerless binary: type of a pixel"
    )
    raw_offset: int = setting(0, "Headerless binary: bytes before the first frame", ge=0)
    raw_frames: int | None = setting(
        None, "Headerless binary: number of frames; by default from the file's length", ge=1
    )
    raw_byte_order: Literal["little", "big"] = setting("little", "Headerless binary: order of the bytes")


@dataclass(frozen=True)
class MovieInfo:
    """What a movie file holds, after all checks that need no decoding.

    Attributes
    ----------
    path : Path
    format : str
        ``mrc``, ``tiff``, ``eer``, ``em`` or ``raw``.
    n_frames : int
        That `MovieSource` gives: groups for EER, without the skipped ones.
    shape : (ny, nx)
    dtype : numpy.dtype
        Of the frames that `MovieSource.read` gives.
    pixel_size : float or None
        Å, where the file states a plausible one.
    dose_per_frame : float or None
        e/Å², where the file states it (EER).
    stored_frames : int
        In the file: raw frames for EER, skipped ones included.
    note : str
        Anything that a careful user should know: how EER frames were grouped, what a broken header
        was taken for, what was left out. Empty if there is nothing.
    """

    path: Path
    format: str
    n_frames: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_size: float | None = None
    dose_per_frame: float | None = None
    stored_frames: int = 0
    note: str = ""


class _Reader(Protocol):
    """What a format must offer. ``read`` must be safe to call from several threads."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> NDArray[Any]: ...
    def close(self) -> None: ...


class MovieSource:
    """The frames of one movie. Use `open_movie`.

    Attributes
    ----------
    info : MovieInfo
    """

    def __init__(self, info: MovieInfo, reader: _Reader, first: int = 0) -> None:
        self.info = info
        self._reader = reader
        self._first = first

    def __len__(self) -> int:
        return self.info.n_frames

    def read(self, index: int) -> NDArray[Any]:
        """Frame ``index``, (ny, nx), in the file's own type; row 0 is what MRC stores first.

        Raises
        ------
        TruncatedError, CorruptError
            Naming the file and the frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} of {self.info.path}")
        frame = self._reader.read(index + self._first)
        if np.iscomplexobj(frame):
            raise FormatError(self.info.path, "its pixels are complex numbers; that is no movie", frame=index)
        return frame

    def frames(self, threads: int | None = None) -> Iterator[NDArray[Any]]:
        """All frames in order, decoded ahead.

        Parameters
        ----------
        threads : int, optional
            That decode; by default two, or one where there is one core. At most that many frames are
            decoded ahead of the one in hand.
        """
        if threads is None:
            threads = min(2, len(os.sched_getaffinity(0)))
        if threads <= 1 or len(self) == 1:
            for index in range(len(self)):
                yield self.read(index)
            return
        pool = ThreadPoolExecutor(threads, thread_name_prefix="weft-decode")
        waiting: deque[Future[NDArray[Any]]] = deque()
        following = 0
        try:
            while waiting or following < len(self):
                while following < len(self) and len(waiting) < threads + 1:
                    waiting.append(pool.submit(self.read, following))
                    following += 1
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> MovieSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_movie(path: str | Path, options: SourceSettings | None = None) -> MovieSource:
    """Open a movie of any supported format.

    Parameters
    ----------
    path : path-like
        MRC (``.mrc``, ``.mrcs``, ``.st``, packed with ``.gz`` or ``.bz2``), TIFF, EER, EM, or a
        headerless file that ``options.raw_width`` and ``raw_height`` describe.
    options : SourceSettings, optional

    Returns
    -------
    MovieSource

    Raises
    ------
    TruncatedError
        Shorter than its header says, or than ``options.expected_frames``; still being written.
    CorruptError
        A header that makes no sense; more frames than expected.
    FormatError
        Not a format that is known.
    SettingsError
        Nothing is left after the skipped frames.
    """
    path = Path(path)
    options = options or SourceSettings()
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise FormatError(path, "there is no such file") from error
    except OSError as error:
        raise CorruptError(path, f"it cannot be read ({error.strerror})") from error
    if not head:
        raise TruncatedError(path, "the file is empty; copy it again")
    info, reader = _open(path, head, options)
    try:
        info = _check_count(info, options)
    except Exception:
        reader.close()
        raise
    return MovieSource(info, reader, options.skip_first)


def _open(path: Path, head: bytes, options: SourceSettings) -> tuple[MovieInfo, _Reader]:
    suffix = path.suffix.lower()
    known = suffix in (".mrc", ".mrcs", ".st", ".map", ".rec", ".tif", ".tiff", ".eer", ".em", ".gz", ".bz2")
    if options.raw_width is not None and options.raw_height is not None and not known:
        return _open_raw(path, options.raw_width, options.raw_height, options)
    if is_tiff(head):
        if suffix == ".eer" or has_compression(path, COMPRESSIONS):
            return _open_eer(path, options)
        return _open_tiff(path, options)
    if suffix in (".tif", ".tiff", ".eer"):
        raise FormatError(path, "its name says TIFF, its first bytes do not; copy it again")
    if suffix == ".em":
        return _open_em(path)
    if suffix in (".dat", ".raw", ".bin"):
        raise FormatError(path, "a headerless file: state its raw_width, raw_height and raw_type")
    return _open_mrc(path, options)


def _open_mrc(path: Path, options: SourceSettings) -> tuple[MovieInfo, _Reader]:
    signed = {"auto": None, "signed": True, "unsigned": False}[options.mrc_bytes]
    stack = MrcStack(path, signed_bytes=signed)
    n, ny, nx = stack.info.shape
    if stack.info.dtype.kind == "c":
        raise FormatError(path, "its pixels are complex numbers; that is no movie")
    note = "; ".join(stack.info.notes)
    dtype = stack.info.dtype.newbyteorder("=")
    return MovieInfo(path, "mrc", n, (ny, nx), dtype, stack.info.pixel_size, None, n, note), stack


def _open_tiff(path: Path, options: SourceSettings) -> tuple[MovieInfo, _Reader]:
    movie = TiffMovie(path, allow_tail=options.expected_frames is not None)
    n = len(movie)
    return MovieInfo(path, "tiff", n, movie.shape, movie.dtype, movie.pixel_size, None, n), movie


def _open_eer(path: Path, options: SourceSettings) -> tuple[MovieInfo, _Reader]:
    movie = EerMovie(
        path,
        upsampling=options.eer_upsampling,
        grouping=Grouping(options.eer_groups, options.eer_frames, options.eer_dose),
        expected_frames=options.expected_frames,
    )
    info = MovieInfo(
        path,
        "eer",
        len(movie),
        movie.shape,
        movie.dtype,
        movie.pixel_size,
        movie.dose_per_frame,
        movie.raw_frames,
        movie.note,
    )
    return info, movie


def _open_em(path: Path) -> tuple[MovieInfo, _Reader]:
    stack = EmStack(path)
    n, ny, nx = stack.info.shape
    if stack.info.dtype.kind == "c":
        raise FormatError(path, "its pixels are complex numbers; that is no movie")
    dtype = stack.info.dtype.newbyteorder("=")
    return MovieInfo(path, "em", n, (ny, nx), dtype, stack.info.pixel_size, None, n), stack


def _open_raw(path: Path, nx: int, ny: int, options: SourceSettings) -> tuple[MovieInfo, _Reader]:
    dtype = np.dtype(options.raw_type).newbyteorder("<" if options.raw_byte_order == "little" else ">")
    stack = RawStack(path, (ny, nx), dtype, offset=options.raw_offset, n_frames=options.raw_frames)
    n = len(stack)
    return MovieInfo(path, "raw", n, (ny, nx), stack.dtype, None, None, n, stack.note), stack


def _check_count(info: MovieInfo, options: SourceSettings) -> MovieInfo:
    expected = options.expected_frames
    if expected is not None and info.stored_frames < expected:
        raise TruncatedError(
            info.path,
            f"it holds {info.stored_frames} frames where {expected} are expected; it is still being written, "
            "or must be copied again",
            frame=info.stored_frames,
        )
    if expected is not None and info.stored_frames > expected:
        raise CorruptError(info.path, f"it holds {info.stored_frames} frames where {expected} are expected")
    skipped = options.skip_first + options.skip_last
    if skipped >= info.n_frames:
        raise SettingsError(
            f"{info.path}: skipping {options.skip_first} frames at the start and {options.skip_last} at the "
            f"end leaves nothing of {info.n_frames}"
        )
    if not skipped:
        return info
    note = f"{skipped} of {info.n_frames} frames are skipped"
    return replace(info, n_frames=info.n_frames - skipped, note="; ".join(filter(None, (info.note, note))))

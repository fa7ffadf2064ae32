"""MRC images, stacks and volumes: reading them whole, section by section or mapped; writing them.

Arrays are [section, row, column] with row 0 as stored first. `read` gives a 2D array for a file of
one section. Files that end in ``.gz`` or ``.bz2`` are unpacked in memory.
"""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike, DTypeLike, NDArray

from weft.errors import CorruptError, TruncatedError
from weft.formats.atomic import atomic_write
from weft.formats.mrc_header import HEADER_BYTES, MODES, MrcInfo, parse_header

__all__ = [
    "MrcInfo",
    "MrcStack",
    "SectionWriter",
    "read",
    "read_header",
    "stack_writer",
    "write",
    "write_stack",
]

_PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}


def read_header(path: str | Path, *, signed_bytes: bool | None = None, check_length: bool = True) -> MrcInfo:
    """What an MRC file says about itself; see `weft.formats.mrc_header.parse_header`."""
    path = Path(path)
    if path.suffix in _PACKED:
        data = _unpack(path)
        return parse_header(
            path, data[:HEADER_BYTES], len(data), signed_bytes=signed_bytes, check_length=check_length
        )
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    size = path.stat().st_size
    return parse_header(path, header, size, signed_bytes=signed_bytes, check_length=check_length)


def read(
    path: str | Path, *, mmap: bool = False, signed_bytes: bool | None = None
) -> tuple[NDArray[Any], MrcInfo]:
    """Read an MRC file.

    Parameters
    ----------
    path : path-like
    mmap : bool
        Map the file instead of reading it; the array is read-only, in the file's byte order.
        Not possible for 4-bit data and packed files, which are read.
    signed_bytes : bool, optional
        How to take mode 0; by default as the header says.

    Returns
    -------
    data : ndarray, (y, x) for one section, else (z, y, x)
        In the file's type, the machine's byte order; 4-bit data as uint8.
    info : MrcInfo

    Raises
    ------
    TruncatedError, FormatError, CorruptError
    """
    with MrcStack(path, signed_bytes=signed_bytes) as stack:
        info = stack.info
        if mmap and info.mode != 101 and Path(path).suffix not in _PACKED:
            data: NDArray[Any] = np.memmap(path, info.dtype, "r", info.data_offset, info.shape)
        elif info.mode == 101:
            data = np.stack([stack.read(i) for i in range(len(stack))])
        else:
            data = stack.read_all()
    return (data[0] if info.shape[0] == 1 else data), info


class MrcStack:
    """The sections of an MRC file, read one by one.

    Reading is thread-safe: every call seeks in its own file handle. Nothing is mapped, so that a file
    cut short while it is read costs an error and not the process.
    """

    def __init__(self, path: str | Path, *, signed_bytes: bool | None = None) -> None:
        self.path = Path(path)
        self._data: bytes | None = _unpack(self.path) if self.path.suffix in _PACKED else None
        if self._data is None:
            self.info = read_header(path, signed_bytes=signed_bytes)
        else:
            header = self._data[:HEADER_BYTES]
            self.info = parse_header(self.path, header, len(self._data), signed_bytes=signed_bytes)

    def __len__(self) -> int:
        return self.info.shape[0]

    def read(self, index: int) -> NDArray[Any]:
        """Section ``index`` (y, x) in the machine's byte order."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        _, ny, nx = self.info.shape
        raw = self._bytes(index, 1)
        if self.info.mode == 101:
            return unpack_4bit(raw.reshape(ny, -1), nx)
        return _native(raw.view(self.info.dtype)).reshape(ny, nx)

    def read_all(self) -> NDArray[Any]:
        """All sections (z, y, x); not for 4-bit data."""
        return _native(self._bytes(0, len(self)).view(self.info.dtype)).reshape(self.info.shape)

    def _bytes(self, first: int, count: int) -> NDArray[np.uint8]:
        size = self.info.section_bytes
        start = self.info.data_offset + first * size
        out = np.empty(count * size, np.uint8)
        if self._data is not None:
            out[:] = np.frombuffer(self._data, np.uint8, out.size, start)
            return out
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            got = _read_into(file, memoryview(out.data))
        if got < out.size:
            raise TruncatedError(
                self.path, "it has become shorter while it was read; copy it again", frame=first + got // size
            )
        return out

    def close(self) -> None:
        """Nothing is held open; here so that every source looks the same."""
        self._data = None

    def __enter__(self) -> MrcStack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def unpack_4bit(rows: NDArray[np.uint8], nx: int) -> NDArray[np.uint8]:
    """Two pixels a byte, the first in the low half: (ny, ceil(nx/2)) -> (ny, nx)."""
    out = np.empty((rows.shape[0], rows.shape[1] * 2), np.uint8)
    np.bitwise_and(rows, 15, out=out[:, 0::2])
    np.right_shift(rows, 4, out=out[:, 1::2])
    return out if out.shape[1] == nx else np.ascontiguousarray(out[:, :nx])


def write(
    path: str | Path,
    data: ArrayLike,
    pixel_size: float | Sequence[float],
    *,
    dtype: DTypeLike | None = None,
    volume: bool | None = None,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    labels: Sequence[str] = (),
    sync: bool = True,
) -> None:
    """Write an array as MRC, atomically.

    Parameters
    ----------
    path : path-like
    data : array or tensor, (y, x) or (z, y, x)
    pixel_size : float or (x, y, z)
        Å.
    dtype : optional
        Type to write: float32, float16 (mode 12), int8, uint8, int16, uint16, complex64. By default
        the array's own, where MRC has it: wider floats and integers become float32, and bytes above
        127 uint16, because MRC's bytes are signed. With ``dtype="u1"`` they stay bytes, in IMOD's way.
    volume : bool, optional
        A volume rather than a stack of images; by default True for three dimensions.
    origin : (x, y, z)
        Å.
    labels : sequence of str
        At most nine, of 80 characters.
    """
    array = np.asarray(data)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an MRC file holds 2 or 3 dimensions, none of them empty, not {array.shape}")
    sections = array[None] if array.ndim == 2 else array
    write_stack(
        path,
        sections,
        pixel_size,
        dtype=_best_dtype(array) if dtype is None else dtype,
        volume=array.ndim == 3 if volume is None else volume,
        origin=origin,
        labels=labels,
        sync=sync,
    )


def write_stack(
    path: str | Path,
    sections: Iterable[ArrayLike],
    pixel_size: float | Sequence[float],
    *,
    dtype: DTypeLike = np.float32,
    volume: bool = False,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    labels: Sequence[str] = (),
    sync: bool = True,
) -> int:
    """Write images as they come, atomically; returns how many. See `write` for the parameters."""
    given: dict[str, Any] = {"volume": volume, "origin": origin, "labels": labels, "sync": sync}
    with stack_writer(path, pixel_size, dtype=dtype, **given) as writer:
        for section in sections:
            writer.append(section)
    return writer.count


@contextmanager
def stack_writer(
    path: str | Path,
    pixel_size: float | Sequence[float],
    *,
    dtype: DTypeLike = np.float32,
    volume: bool = False,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    labels: Sequence[str] = (),
    sync: bool = True,
) -> Iterator[SectionWriter]:
    """Write a file section by section; it takes its name when the block ends. See `write` for the parameters.

    Raises
    ------
    ValueError
        When no section was written, or one has another shape than those before it.
    """
    target = np.dtype(dtype).newbyteorder("<")
    with atomic_write(path, sync=sync) as file:
        file.write(bytes(HEADER_BYTES))
        writer = SectionWriter(path, file, target)
        yield writer
        if writer.count == 0:
            raise ValueError(f"no sections to write to {path}")
        shape, stats = (writer.count, *writer.shape), writer.statistics
        header = _make_header(shape, writer.mode, target, pixel_size, volume, origin, labels, stats)
        file.seek(0)
        file.write(header)


class SectionWriter:
    """Takes the sections of a file one after the other; made by `stack_writer`.

    Attributes
    ----------
    count : int
        Sections so far.
    shape : tuple
        y, x, of each.
    """

    def __init__(self, path: str | Path, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.count = 0
        self.shape: tuple[int, ...] = ()
        self.mode = _mode_of(dtype)
        self._path, self._file, self._dtype = path, file, dtype
        self._sums, self._limits = [0.0, 0.0], [math.inf, -math.inf]

    def append(self, section: ArrayLike) -> None:
        """Write one section (y, x)."""
        image = np.ascontiguousarray(_checked_cast(self._path, np.asarray(section), self._dtype, self.count))
        if image.ndim != 2 or (self.count and image.shape != self.shape):
            raise ValueError(
                f"section {self.count} of {self._path} has the shape {image.shape}, "
                f"not {self.shape or '(y, x)'}"
            )
        self.shape = image.shape
        self._file.write(image.data if image.size else b"")
        if self.mode != 4:
            # in double precision a mean of 1e8 pixels keeps its digits
            low, high = self._limits
            self._limits = [min(low, float(image.min())), max(high, float(image.max()))]
            self._sums[0] += float(image.sum(dtype=np.float64))
            self._sums[1] += _sum_of_squares(image)
        self.count += 1

    @property
    def statistics(self) -> tuple[float, float, float, float]:
        """Minimum, maximum, mean, standard deviation of all that was written."""
        size = self.count * self.shape[0] * self.shape[1]
        mean = self._sums[0] / size
        low, high = self._limits
        return low, high, mean, math.sqrt(max(self._sums[1] / size - mean * mean, 0.0))


def _sum_of_squares(image: NDArray[Any]) -> float:
    total = 0.0
    for rows in np.array_split(image.reshape(-1), max(1, image.size >> 20)):
        part = rows.astype(np.float64)
        total += float(part @ part)
    return total


def _make_header(
    shape: tuple[int, ...],
    mode: int,
    dtype: np.dtype[Any],
    pixel_size: float | Sequence[float],
    volume: bool,
    origin: Sequence[float],
    labels: Sequence[str],
    stats: tuple[float, float, float, float],
) -> bytes:
    nz, ny, nx = shape
    sizes = (
        [float(pixel_size)] * 3 if isinstance(pixel_size, (int, float)) else [float(v) for v in pixel_size]
    )
    header = np.zeros((), HEADER_DTYPE)
    for name, value in (("nx", nx), ("ny", ny), ("nz", nz), ("mode", mode), ("mx", nx), ("my", ny)):
        header[name] = value
    # in a stack mz = 1: every section is an image of its own (MRC2014)
    header["mz"] = nz if volume else 1
    header["cella"] = (nx * sizes[0], ny * sizes[1], int(header["mz"]) * sizes[2])
    header["cellb"] = (90.0, 90.0, 90.0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    if mode == 4:
        # "not determined" in MRC2014: maximum below minimum, mean below both, rms negative
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0.0, -1.0, -2.0, -1.0
    else:
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = stats
    header["ispg"] = 1 if volume else 0
    header["nversion"] = 20141
    header["origin"] = tuple(float(v) for v in origin)
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    # ten labels in all, and none too many to be read by old programs
    texts = ["Weft", *labels][:10]
    header["nlabl"] = len(texts)
    for i, text in enumerate(texts):
        header["label"][i] = text.encode("ascii", "replace")[:80].ljust(80)
    raw = bytearray(header.tobytes())
    if mode == 0:
        # IMOD's stamp says whether bytes are signed, which the standard leaves to habit
        raw[152:160] = np.array([1146047817, int(dtype.kind == "i")], "<i4").tobytes()
    return bytes(raw)


def _best_dtype(array: NDArray[Any]) -> np.dtype[Any]:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return np.dtype("i1")
    if kind == "u" and size == 1:
        # up to 127 all readers agree, whatever they think of the sign
        return np.dtype("u2") if int(array.max()) > 127 else np.dtype("u1")
    if (kind, size) in (("i", 1), ("i", 2), ("u", 2), ("f", 2)):
        return array.dtype
    if kind == "c":
        return np.dtype("c8")
    if kind in "iuf":
        return np.dtype("f4")
    raise ValueError(f"MRC has no mode for {array.dtype}")


def _mode_of(dtype: np.dtype[Any]) -> int:
    modes = {name: mode for mode, (name, _) in MODES.items() if mode != 101}
    modes["u1"] = 0
    key = f"{dtype.kind}{dtype.itemsize}"
    if key not in modes:
        raise ValueError(f"MRC has no mode for {dtype}")
    return modes[key]


def _checked_cast(path: str | Path, image: NDArray[Any], target: np.dtype[Any], index: int) -> NDArray[Any]:
    if image.dtype == target:
        return image
    if target.kind in "iu" and image.size:
        limits = np.iinfo(target)
        if image.dtype.kind == "f" or image.min() < limits.min or image.max() > limits.max:
            raise ValueError(f"section {index} of {path} does not fit {target}; write float32 instead")
    # float16 ends at 65504: an overflow would write infinities into a file that looks right
    half = target == np.dtype("<f2") and image.size > 0
    if half and max(abs(float(image.min())), abs(float(image.max()))) > 65504.0:
        raise ValueError(f"section {index} of {path} has values that float16 cannot hold; use float32")
    return image.astype(target)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.isnative:
        return array
    return array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


def _read_into(file: Any, view: memoryview) -> int:
    got = 0
    while got < len(view):
        n = file.readinto(view[got:])
        if not n:
            break
        got += n
    return got


def _unpack(path: Path) -> bytes:
    try:
        with _PACKED[path.suffix](path, "rb") as file:
            return bytes(file.read())
    except EOFError as error:
        raise TruncatedError(path, "the compressed file ends too early; copy it again") from error
    except (OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CorruptError(path, f"it cannot be decompressed ({error}); copy it again") from error

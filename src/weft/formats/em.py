"""EM files, as TOM, PyTom, Dynamo and Warp's older tools write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write

__all__ = ["EmInfo", "EmStack", "read_em", "write_em"]

HEADER_BYTES = 512
_TYPES = {1: "i1", 2: "i2", 4: "i4", 5: "f4", 8: "c8", 9: "f8"}
_BIG_ENDIAN_MACHINES = (0, 3, 5)
_PC = 6


@dataclass(frozen=True)
class EmInfo:
    """Shape (nz, ny, nx), type as stored, and the pixel size (Å, or None) of an EM file."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pixel_size: float | None
    comment: str


class EmStack:
    """The sections of an EM file, read one by one; thread-safe."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        self.info = _parse(self.path, header, self.path.stat().st_size)

    def __len__(self) -> int:
        return self.info.shape[0]

    def read(self, index: int) -> NDArray[Any]:
        """Section ``index`` (y, x) in the machine's byte order."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        _, ny, nx = self.info.shape
        offset = HEADER_BYTES + index * ny * nx * self.info.dtype.itemsize
        data = np.fromfile(self.path, self.info.dtype, ny * nx, offset=offset)
        if data.size < ny * nx:
            raise TruncatedError(self.path, "it has become shorter while it was read", frame=index)
        return data.reshape(ny, nx).astype(self.info.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Nothing is held open."""


def read_em(path: str | Path) -> tuple[NDArray[Any], EmInfo]:
    """Read a whole EM file: (y, x) for one section, else (z, y, x)."""
    stack = EmStack(path)
    sections = [stack.read(i) for i in range(len(stack))]
    return (sections[0] if len(sections) == 1 else np.stack(sections)), stack.info


def write_em(path: str | Path, data: ArrayLike, pixel_size: float | None = None) -> None:
    """Write an array (y, x) or (z, y, x) as EM, little-endian, atomically.

    Types that EM has not become float32.
    """
    array = np.asarray(data)
    if array.ndim not in (2, 3):
        raise ValueError(f"an EM file holds 2 or 3 dimensions, not {array.ndim}")
    names = {name: code for code, name in _TYPES.items()}
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in names:
        array, kind = array.astype(np.float32), "f4"
    shape = array.shape if array.ndim == 3 else (1, *array.shape)
    header = bytearray(HEADER_BYTES)
    header[0], header[3] = _PC, names[kind]
    header[4:16] = np.array(shape[::-1], "<i4").tobytes()
    if pixel_size is not None:
        # parameter 7 is the pixel in pm: nm x 1000
        header[96 + 6 * 4 : 96 + 7 * 4] = np.array([round(pixel_size * 100)], "<i4").tobytes()
    with atomic_write(path) as file:
        file.write(bytes(header))
        file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def _parse(path: Path, header: bytes, size: int) -> EmInfo:
    if size == 0:
        raise TruncatedError(path, "the file is empty; copy it again")
    if len(header) < HEADER_BYTES:
        raise TruncatedError(path, f"{size} bytes are too few for an EM header of {HEADER_BYTES}")
    machine, code = header[0], header[3]
    if code not in _TYPES:
        raise FormatError(path, f"not an EM file, or an unknown data type ({code})")
    order = ">" if machine in _BIG_ENDIAN_MACHINES else "<"
    sizes: list[int] = []
    for candidate in (order, "<" if order == ">" else ">"):
        sizes = [int(v) for v in np.frombuffer(header, candidate + "i4", 3, 4)]
        if all(0 < n <= 1 << 20 for n in sizes):
            order = candidate
            break
    else:
        raise CorruptError(path, f"its header states the size {' x '.join(map(str, sizes))}, which none has")
    nx, ny, nz = sizes
    dtype = np.dtype(order + _TYPES[code])
    section = nx * ny * dtype.itemsize
    if size < HEADER_BYTES + nz * section:
        whole = (size - HEADER_BYTES) // section
        raise TruncatedError(
            path,
            f"it has {size} bytes where its header says {HEADER_BYTES + nz * section}: only {whole} of {nz} "
            "sections are complete; it is still being written, or must be copied again",
            frame=whole,
        )
    stored = int(np.frombuffer(header, order + "i4", 40, 96)[6]) / 100.0
    return EmInfo(
        path=path,
        shape=(nz, ny, nx),
        dtype=dtype,
        pixel_size=stored if 0.05 < stored < 200.0 else None,
        comment=header[16:96].decode("latin-1").strip("\0 "),
    )

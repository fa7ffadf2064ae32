"""The MRC header: what a file says about itself, and what it must mean.

MRC2014 is the rule; IMOD's flags, headers older than the standard, and headers that contradict
themselves but leave only one possible reading are taken too, with a note of what was assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from weft.errors import CorruptError, FormatError, TruncatedError

__all__ = ["HEADER_BYTES", "MrcInfo", "frame_bytes", "parse_header"]

HEADER_BYTES = 1024

#: Mode -> (dtype of the samples, bits of one sample as stored)
MODES: dict[int, tuple[str, int]] = {
    0: ("i1", 8),
    1: ("i2", 16),
    2: ("f4", 32),
    4: ("c8", 64),
    6: ("u2", 16),
    12: ("f2", 16),
    101: ("u1", 4),
}
_HEADERS = {"<": HEADER_DTYPE, ">": HEADER_DTYPE.newbyteorder(">")}
_KNOWN_UNSUPPORTED = {3: "complex 16-bit integers", 16: "RGB"}

_IMOD_STAMP = 1146047817  # "IMOD" at bytes 152..155
_IMOD_SIGNED = 1
_IMOD_PACKED_4BIT = 16

#: Larger than any detector or volume; a dimension beyond it is a broken header, not a big image.
_MAX_DIMENSION = 1 << 20


@dataclass(frozen=True)
class MrcInfo:
    """What an MRC file holds.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        (nz, ny, nx): sections, rows, columns.
    mode : int
        0, 1, 2, 4, 6, 12 or 101.
    dtype : numpy.dtype
        Of one sample as stored (for mode 101: uint8, after unpacking).
    voxel_size : (x, y, z) in Å, or None where the header gives none
    is_stack : bool
        A stack of images rather than a volume.
    origin : (x, y, z) in Å
    start : (x, y, z) in pixels: nxstart ...
    axes : (mapc, mapr, maps), which of 1 = x, 2 = y, 3 = z the columns, rows, sections are
    minimum, maximum, mean, rms : float
        As the header states them, true or not.
    data_offset : int
        Bytes from the file's start to the first section.
    file_bytes : int
    extended_type : str
        ``SERI``, ``FEI1``, ``AGAR``, ``CCP4``, ``MRCO`` or empty.
    labels : tuple of str
    notes : tuple of str
        What had to be assumed; empty for a header in order.
    """

    path: Path
    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None
    is_stack: bool
    origin: tuple[float, float, float]
    start: tuple[int, int, int]
    axes: tuple[int, int, int]
    minimum: float
    maximum: float
    mean: float
    rms: float
    data_offset: int
    file_bytes: int
    extended_type: str = ""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def pixel_size(self) -> float | None:
        """Å a pixel along x; None where the header gives none."""
        return None if self.voxel_size is None else self.voxel_size[0]

    @property
    def section_bytes(self) -> int:
        """Bytes of one section in the file."""
        return frame_bytes(self.shape[1], self.shape[2], self.mode)


def frame_bytes(ny: int, nx: int, mode: int) -> int:
    """Bytes that one section takes in a file: rows of 4-bit data are padded to whole bytes."""
    return ny * ((nx * MODES[mode][1] + 7) // 8)


def parse_header(
    path: str | Path,
    header: bytes,
    file_bytes: int,
    *,
    signed_bytes: bool | None = None,
    check_length: bool = True,
) -> MrcInfo:
    """Read the first 1024 bytes of an MRC file.

    Parameters
    ----------
    path : path-like
        For the messages.
    header : bytes
        The first 1024 bytes, or fewer when there are no more.
    file_bytes : int
        Length of the whole file.
    signed_bytes : bool, optional
        How to read mode 0; by default as the header says (IMOD's flag, else the stated maximum,
        else signed, which is MRC2014's rule).
    check_length : bool
        Raise if the file is too short for what its header says.

    Returns
    -------
    MrcInfo

    Raises
    ------
    TruncatedError
        Shorter than its header, or than its header says.
    FormatError
        Not MRC, or a mode that is not supported.
    CorruptError
        Dimensions that no file can have.
    """
    path = Path(path)
    if file_bytes == 0:
        raise TruncatedError(path, "the file is empty; copy it again")
    if len(header) < HEADER_BYTES:
        raise TruncatedError(
            path, f"{len(header)} bytes are too few for an MRC header of {HEADER_BYTES}; copy it again"
        )
    notes: list[str] = []
    order = _byte_order(path, header, notes)
    h = np.frombuffer(header, _HEADERS[order], 1)[0]
    mode = int(h["mode"])
    nx, ny, nz = int(h["nx"]), int(h["ny"]), int(h["nz"])
    _check_dimensions(path, nx, ny, nz)

    imod, flags = (int(v) for v in np.frombuffer(header, order + "i4", 2, 152))
    flags = flags if imod == _IMOD_STAMP else 0
    dtype = np.dtype(order + MODES[mode][0])
    if mode == 0:
        if flags & _IMOD_PACKED_4BIT:
            notes.append("4-bit data in bytes, as SerialEM packs them: the width is doubled")
            mode, nx, dtype = 101, nx * 2, np.dtype("u1")
        elif not _bytes_are_signed(h, imod == _IMOD_STAMP, flags, signed_bytes):
            dtype = np.dtype("u1")

    # a header's cell may be nonsense in files that only ever were images: then there is no pixel size
    voxel = _voxel_size(h)
    extended = int(h["nsymbt"])
    data_bytes = nz * frame_bytes(ny, nx, mode)
    offset = HEADER_BYTES + extended
    if file_bytes == HEADER_BYTES + data_bytes and extended != 0:
        notes.append(f"an extended header of {extended} bytes is announced, but the file has none")
        offset = HEADER_BYTES
    elif extended < 0:
        raise CorruptError(path, f"its header announces an extended header of {extended} bytes")
    if offset + data_bytes > file_bytes:
        if check_length:
            raise _too_short(path, file_bytes, offset, data_bytes, (nz, ny, nx), mode)
        notes.append("the file is shorter than its header says")
    elif offset + data_bytes < file_bytes:
        notes.append(f"{file_bytes - offset - data_bytes} bytes follow the last section")

    axes = (int(h["mapc"]), int(h["mapr"]), int(h["maps"]))
    if sorted(axes) != [1, 2, 3]:
        if axes != (0, 0, 0):
            notes.append(
                f"the axis order {axes} makes no sense: columns, rows, sections are taken as x, y, z"
            )
        axes = (1, 2, 3)
    n_labels = min(max(int(h["nlabl"]), 0), 10)
    labels = tuple(bytes(v).decode("latin-1").strip("\0 ") for v in h["label"][:n_labels])
    exttyp = bytes(h["exttyp"]).decode("latin-1").strip("\0 ")
    return MrcInfo(
        path=path,
        shape=(nz, ny, nx),
        mode=mode,
        dtype=dtype,
        voxel_size=voxel,
        is_stack=int(h["ispg"]) == 0,
        origin=(float(h["origin"]["x"]), float(h["origin"]["y"]), float(h["origin"]["z"])),
        start=(int(h["nxstart"]), int(h["nystart"]), int(h["nzstart"])),
        axes=axes,
        minimum=float(h["dmin"]),
        maximum=float(h["dmax"]),
        mean=float(h["dmean"]),
        rms=float(h["rms"]),
        data_offset=offset,
        file_bytes=file_bytes,
        extended_type=exttyp if exttyp.isalnum() else "",
        labels=labels,
        notes=tuple(notes),
    )


def _byte_order(path: Path, header: bytes, notes: list[str]) -> str:
    """``<`` or ``>``: by the machine stamp where it is right, else the one reading that makes sense."""
    stamp = header[212:214]
    stated = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}.get(stamp)
    plausible = [order for order in "<>" if _plausible(header, order)]
    if stated is not None and (stated in plausible or not plausible):
        chosen = stated
    elif plausible:
        chosen = plausible[0]
        what = "is missing" if stated is None else "is wrong"
        notes.append(f"the machine stamp {what}: read as {'little' if chosen == '<' else 'big'}-endian")
    else:
        chosen = "<"
    if header[208:211] != b"MAP":
        if not plausible:
            raise FormatError(path, "not an MRC file: neither its header's numbers nor its stamp make sense")
        notes.append("no MAP stamp: a header older than the standard")
    mode = int(np.frombuffer(header, chosen + "i4", 1, 12)[0])
    if mode not in MODES:
        name = _KNOWN_UNSUPPORTED.get(mode, "unknown")
        raise FormatError(path, f"MRC mode {mode} ({name}) is not supported; convert it to mode 2")
    return chosen


def _plausible(header: bytes, order: str) -> bool:
    nx, ny, nz, mode = (int(v) for v in np.frombuffer(header, order + "i4", 4))
    sizes_fit = all(0 < n <= _MAX_DIMENSION for n in (nx, ny, nz))
    return sizes_fit and (mode in MODES or mode in _KNOWN_UNSUPPORTED)


def _check_dimensions(path: Path, nx: int, ny: int, nz: int) -> None:
    if min(nx, ny, nz) <= 0 or max(nx, ny, nz) > _MAX_DIMENSION:
        raise CorruptError(path, f"its header states the size {nx} x {ny} x {nz}, which no image has")


def _bytes_are_signed(header: Any, imod: bool, flags: int, wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    if imod:
        return bool(flags & _IMOD_SIGNED)
    # the standard says signed, but a stated maximum above 127 can only be of unsigned bytes
    return not (float(header["dmin"]) >= 0.0 and 127.0 < float(header["dmax"]) <= 255.0)


def _voxel_size(header: Any) -> tuple[float, float, float] | None:
    sizes = []
    for cell, grid in (("x", "mx"), ("y", "my"), ("z", "mz")):
        length, n = float(header["cella"][cell]), int(header[grid])
        sizes.append(length / n if n > 0 and math.isfinite(length) and length > 0 else 0.0)
    x, y, z = sizes
    if not (x > 0 and y > 0) or x > 1e5:
        return None
    return x, y, z if z > 0 else x


def _too_short(
    path: Path, file_bytes: int, offset: int, data_bytes: int, shape: tuple[int, int, int], mode: int
) -> TruncatedError:
    section = frame_bytes(shape[1], shape[2], mode)
    whole = max(0, file_bytes - offset) // section
    return TruncatedError(
        path,
        f"it has {file_bytes} bytes where its header says {offset + data_bytes}: only {whole} of {shape[0]} "
        "sections are complete; it is still being written, or must be copied again",
        frame=whole,
    )

"""The bit stream of one EER frame.

Electrons are listed in the order of the pixels, row by row. Each is a run length (how many empty
pixels to skip) and a position inside the pixel; a run of all ones skips that many pixels and has no
electron. Bits come lowest first. The run lengths must lead exactly to the end of the sensor: that is
how a stream that was cut short, which decodes without complaint, is told from a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

__all__ = ["EerBits", "StreamError", "add_frame", "decode_buffer", "encode_frame"]


class StreamError(Exception):
    """The stream does not describe a whole frame; ``short`` if it ends too early."""

    def __init__(self, message: str, *, short: bool) -> None:
        super().__init__(message)
        self.short = short


@dataclass(frozen=True)
class EerBits:
    """Widths of the codes: run length, horizontal and vertical position inside the pixel.

    ``wasteful`` is the prototype's way (compression 65000): a run of all ones is followed by position
    bits that mean nothing, so that all codes have the same length.
    """

    skip: int = 7
    horizontal: int = 2
    vertical: int = 2
    wasteful: bool = False

    @property
    def escape(self) -> int:
        """The run length without an electron."""
        return (1 << self.skip) - 1

    @property
    def decodable(self) -> bool:
        """Whether imagecodecs, or the code for the wasteful way, can decode it."""
        return self.wasteful or (self.skip + self.position >= 9 and min(self.horizontal, self.vertical) > 0)

    @property
    def position(self) -> int:
        """Bits of the position inside the pixel."""
        return self.horizontal + self.vertical


def decode_buffer(shape: tuple[int, int], level: int, most: int) -> NDArray[Any]:
    """Zeros to add up frames in, with a few sensor rows more than the picture (see `add_frame`).

    Parameters
    ----------
    shape : (ny, nx) of the sensor
    level : int
        0, 1, 2 for the sensor's grid, 2x, 4x.
    most : int
        How many frames will be added: a pixel counts at most once in each.
    """
    ny, nx = shape
    # room for what a few kilobytes of padding can become; on finer grids imagecodecs wants multiples of 4
    rows = ny + 4096 // nx + 1
    rows += -rows % 4
    return np.zeros((rows << level, nx << level), np.uint8 if most < 256 else np.uint16)


def add_frame(data: bytes, buffer: NDArray[Any], shape: tuple[int, int], bits: EerBits, level: int) -> None:
    """Decode one frame and add its electrons to ``buffer`` (of `decode_buffer`, for the same ``shape``).

    Raises
    ------
    StreamError
        The run lengths do not end where the sensor ends.
    """
    if bits.wasteful:
        try:
            _add_fixed(data, buffer, shape, bits, level)
        except StreamError as error:
            # FEI's later library reads the same tag without waste; only one of the two can end exactly
            try:
                _add_variable(data, buffer, shape, replace(bits, wasteful=False), level)
            except StreamError:
                raise error from None
    else:
        _add_variable(data, buffer, shape, bits, level)


def _add_variable(
    data: bytes, buffer: NDArray[Any], shape: tuple[int, int], bits: EerBits, level: int
) -> None:
    # imagecodecs does not say where it ended. Zeros after the stream are electrons in consecutive pixels:
    # behind a whole stream they fall into the extra rows, behind a short one they do not. Two bytes are
    # one to three electrons, so a stream that lacks more than the last three pixels is found.
    kept = data + bytes(2 + len(data) % 2)
    try:
        imagecodecs.eer_decode(
            kept, buffer.shape, bits.skip, bits.horizontal, bits.vertical, superres=level, out=buffer
        )
    except (RuntimeError, ValueError) as error:
        raise StreamError("its run lengths lead beyond the end of the sensor", short=False) from error
    extra = buffer[shape[0] << level :]
    hits = np.nonzero(extra)
    extra[...] = 0
    if hits[0].size == 0:
        raise StreamError("its run lengths end before the end of the sensor", short=True)
    first = int(np.min((hits[0] >> level) * shape[1] + (hits[1] >> level)))
    # padding may hold one code of rubbish, not more
    if first > bits.escape:
        raise StreamError("its run lengths do not end at the end of the sensor", short=False)


def _add_fixed(data: bytes, buffer: NDArray[Any], shape: tuple[int, int], bits: EerBits, level: int) -> None:
    ny, nx = shape
    codes = _fixed_codes(data, bits.skip + bits.position)
    skip = codes & bits.escape
    hit = skip != bits.escape
    # where the pointer stands after the run, before the electron's own pixel is passed
    reached = np.cumsum(skip + hit) - hit
    end = int(np.searchsorted(reached, ny * nx))
    if end == len(reached):
        total = int(reached[-1] + hit[-1]) if len(reached) else 0
        if total != ny * nx:
            raise StreamError("its run lengths end before the end of the sensor", short=True)
    elif int(reached[end]) != ny * nx and not (end > 0 and int(reached[end - 1] + hit[end - 1]) == ny * nx):
        raise StreamError("its run lengths do not end at the end of the sensor", short=False)
    hit[end:] = False
    where = reached[hit]
    position = codes[hit] >> bits.skip
    x = _subpixel(where % nx, position & ((1 << bits.horizontal) - 1), bits.horizontal, level)
    y = _subpixel(where // nx, position >> bits.horizontal, bits.vertical, level)
    # at most one electron a pixel of the sensor, so no place occurs twice
    buffer[y, x] += 1


def _subpixel(pixel: NDArray[Any], sub: NDArray[Any], width: int, level: int) -> NDArray[Any]:
    # the position is stored as a signed number: its highest bit is inverted
    return (pixel << level) | ((sub ^ (1 << (width - 1))) >> (width - level))


def _fixed_codes(data: bytes, width: int) -> NDArray[np.int64]:
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    n = stream.size // width
    table = stream[: n * width].reshape(n, width).astype(np.int64)
    return np.asarray(table @ (1 << np.arange(width, dtype=np.int64)), np.int64)


def encode_frame(image: NDArray[Any], bits: EerBits, level: int = 0) -> bytes:
    """The stream of a frame with at most one electron in every pixel of the sensor.

    Parameters
    ----------
    image : (ny << level, nx << level)
        0 or 1; with ``level`` > 0 on the finer grid.
    """
    rows, columns = np.nonzero(image)
    ny, nx = image.shape[0] >> level, image.shape[1] >> level
    where = (rows >> level).astype(np.int64) * nx + (columns >> level)
    order = np.argsort(where, kind="stable")
    where, rows, columns = where[order], rows[order], columns[order]
    if where.size > 1 and not np.all(np.diff(where) > 0):
        raise ValueError("an EER frame holds at most one electron in a pixel of the sensor")
    fraction = (1 << level) - 1
    sub = _stored(columns & fraction, bits.horizontal, level)
    sub |= _stored(rows & fraction, bits.vertical, level) << bits.horizontal

    gaps = np.diff(where, prepend=-1, append=ny * nx) - 1
    escapes, rest = np.divmod(gaps, bits.escape)
    n_codes = escapes + 1
    codes = np.full(int(n_codes.sum()), bits.escape, np.int64)
    widths = np.full(codes.size, bits.skip + bits.position * bits.wasteful, np.int64)
    last = np.cumsum(n_codes) - 1
    codes[last] = rest
    codes[last[:-1]] |= sub << bits.skip
    widths[last[:-1]] = bits.skip + bits.position
    # the run after the last electron has no position, and is left out when nothing remains to skip
    widths[last[-1]] = 0 if rest[-1] == 0 else widths[last[-1]]
    width = bits.skip + bits.position
    table = ((codes[:, None] >> np.arange(width)) & 1).astype(np.uint8)
    stream = table[np.arange(width)[None, :] < widths[:, None]]
    data = np.packbits(stream, bitorder="little").tobytes()
    # detectors write whole 16-bit words
    return data + bytes(len(data) % 2)


def _stored(fine: NDArray[Any], width: int, level: int) -> NDArray[Any]:
    # on a coarser grid than the stored one, electrons are put just past the middle of their pixel
    shift = width - level
    value = (fine << shift) | ((1 << shift) >> 1)
    return np.asarray(value ^ (1 << (width - 1)), np.int64)

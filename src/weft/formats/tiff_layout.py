"""Where the pixels of a TIFF file lie, and proof that all of them are there.

tifffile reads a movie that was cut short as a shorter movie, with no more than a log message. This
walk over the chain of image directories raises instead: on a link, a tag, or a strip that lies beyond
the end of the file, and on data after the last directory, which is what a movie looks like while it
is still being written.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from weft.errors import CorruptError, FormatError, InputFileError, TruncatedError

__all__ = ["TiffLayout", "TiffPage", "has_compression", "is_tiff", "read_layout"]

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f"}
_TYPES |= {12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}

# the tags that Weft uses; others are only stepped over
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _DESCRIPTION = 256, 257, 258, 259, 270
_OFFSETS, _SAMPLES, _ROWS, _COUNTS, _XRES, _PLANAR = 273, 277, 278, 279, 282, 284
_RESUNIT, _PREDICTOR, _TILE_X, _TILE_Y, _TILE_OFFSETS, _TILE_COUNTS = 296, 317, 322, 323, 324, 325
_SUBFILE, _FORMAT, _FILL_ORDER = 254, 339, 266
#: Tags of EER files: the acquisition's XML, the bit widths of compression 65002
EER_XML, EER_SKIP_BITS, EER_HORIZONTAL_BITS, EER_VERTICAL_BITS = 65001, 65007, 65008, 65009
_USED = {
    _WIDTH, _LENGTH, _BITS, _COMPRESSION, _DESCRIPTION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _XRES, _PLANAR,
    _RESUNIT, _PREDICTOR, _TILE_X, _TILE_Y, _TILE_OFFSETS, _TILE_COUNTS, _SUBFILE, _FORMAT, _FILL_ORDER,
    EER_XML, EER_SKIP_BITS, EER_HORIZONTAL_BITS, EER_VERTICAL_BITS,
}  # fmt: skip

#: Unreferenced bytes at the end that are taken for padding and not for a part of a frame.
_TAIL_ALLOWED = 1024


@dataclass(frozen=True)
class TiffPage:
    """One image of a TIFF file.

    Attributes
    ----------
    shape : (ny, nx)
    bits : int
        Of one sample.
    kind : str
        ``u``, ``i`` or ``f``.
    compression, predictor : int
        As in the file's tags.
    block : (ny, nx)
        Of one strip or tile.
    tiled : bool
    offsets, counts : tuple of int
        Of every strip or tile, bytes.
    reduced : bool
        A thumbnail.
    tags : dict
        The tags that Weft knows, by number.
    """

    shape: tuple[int, int]
    bits: int
    kind: str
    compression: int
    predictor: int
    block: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    reduced: bool
    tags: dict[int, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class TiffLayout:
    """A TIFF file's byte order (``<`` or ``>``) and pages."""

    path: Path
    order: Literal["<", ">"]
    pages: tuple[TiffPage, ...]


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins like this is a TIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_layout(path: str | Path, *, allow_tail: bool = False) -> TiffLayout:
    """Walk over all image directories of a TIFF or BigTIFF file.

    Parameters
    ----------
    path : path-like
    allow_tail : bool
        Accept bytes after the last directory: the caller knows how many frames there must be.

    Raises
    ------
    TruncatedError
        Cut short, or still being written.
    FormatError
        Not TIFF, or a kind of image that is not supported.
    CorruptError
        A chain of directories that makes no sense.
    """
    path = Path(path)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return _Walker(path, file.fileno(), size).walk(allow_tail)


def has_compression(path: str | Path, wanted: tuple[int, ...]) -> bool:
    """Whether one of the first two images has one of these compressions; False for broken files.

    The first image of an EER file may be the sum of all frames, uncompressed.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            walker = _Walker(path, file.fileno(), os.fstat(file.fileno()).st_size)
            offset = walker.first
            for frame in range(2):
                if not offset:
                    break
                tags, offset = walker.directory(offset, frame)
                if tags.get(_COMPRESSION, (1,))[0] in wanted:
                    return True
    except InputFileError:
        return False
    return False


class _Walker:
    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.fd, self.size = path, fd, size
        if size == 0:
            raise TruncatedError(path, "the file is empty; copy it again")
        head = os.pread(fd, 16, 0)
        if len(head) < 8 or (is_tiff(head) and head[2] + head[3] == 43 and len(head) < 16):
            raise TruncatedError(path, f"{size} bytes are too few for a TIFF file; copy it again")
        if not is_tiff(head):
            raise FormatError(path, "not a TIFF file")
        self.order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        self.big = head[2] + head[3] == 43
        self.word = "Q" if self.big else "I"
        self.first = int(self._unpack(self.word, head[8:16] if self.big else head[4:8])[0])
        # the end of everything that a directory refers to
        self.extent = 16 if self.big else 8

    def _unpack(self, form: str, data: bytes) -> tuple[Any, ...]:
        return struct.unpack(self.order + form, data)

    def _bytes(self, offset: int, count: int, frame: int, what: str) -> bytes:
        if offset + count > self.size:
            raise TruncatedError(
                self.path,
                f"{what} lies beyond the end of the file at byte {self.size}; "
                "it is still being written, or must be copied again",
                frame=frame,
            )
        self.extent = max(self.extent, offset + count)
        data = os.pread(self.fd, count, offset)
        if len(data) < count:
            raise TruncatedError(self.path, f"{what} cannot be read", frame=frame)
        return data

    def walk(self, allow_tail: bool) -> TiffLayout:
        if self.first == 0:
            raise TruncatedError(self.path, "no frame is complete yet; it is still being written", frame=0)
        pages: list[TiffPage] = []
        seen: set[int] = set()
        offset = self.first
        while offset:
            if offset in seen:
                raise CorruptError(self.path, "its chain of frames is a loop", frame=len(pages))
            seen.add(offset)
            tags, offset = self.directory(offset, len(pages))
            pages.append(self._page(tags, len(pages)))
        if len(pages) == 1:
            pages = self._expand(pages[0])
        for index, page in enumerate(pages):
            self._check_data(page, index)
        tail = self.size - self.extent
        if tail > _TAIL_ALLOWED and not allow_tail and self._tail_has_data():
            raise TruncatedError(
                self.path,
                f"{tail} bytes follow its {len(pages)} complete frames: it is still being written, or must "
                "be copied again; if all is there, state the number of frames expected",
                frame=len(pages),
            )
        return TiffLayout(self.path, self.order, tuple(pages))

    def directory(self, offset: int, frame: int) -> tuple[dict[int, Any], int]:
        entry, count_form, link = (20, "Q", 8) if self.big else (12, "H", 4)
        what = "the directory of this frame"
        head = struct.calcsize(count_form)
        n = int(self._unpack(count_form, self._bytes(offset, head, frame, what))[0])
        if not 0 < n < 4096:
            raise CorruptError(self.path, f"{what} claims to have {n} entries", frame=frame)
        block = self._bytes(offset + head, n * entry + link, frame, what)
        tags: dict[int, Any] = {}
        for i in range(n):
            raw = block[i * entry : (i + 1) * entry]
            tag, kind = self._unpack("HH", raw[:4])
            value = self._value(tag, kind, raw[4:], frame)
            if value is not None:
                tags[tag] = value
        return tags, int(self._unpack(self.word, block[n * entry :])[0])

    def _value(self, tag: int, kind: int, raw: bytes, frame: int) -> Any:
        inline = 8 if self.big else 4
        count = int(self._unpack(self.word, raw[:inline])[0])
        form = _TYPES.get(kind)
        if form is None:
            return None
        nbytes = count * struct.calcsize("=" + form)
        if tag not in _USED:
            # private tags of sloppy writers are not worth an error, but what they hold is no tail
            if nbytes > inline:
                end = int(self._unpack(self.word, raw[inline:])[0]) + nbytes
                self.extent = max(self.extent, end) if end <= self.size else self.extent
            return None
        if nbytes <= inline:
            data = raw[inline : inline + nbytes]
        else:
            where = int(self._unpack(self.word, raw[inline:])[0])
            data = self._bytes(where, nbytes, frame, f"tag {tag} of this frame")
        if form == "s":
            return data.rstrip(b"\0")
        return self._unpack(f"{count * len(form)}{form[0]}", data)

    def _page(self, tags: dict[int, Any], frame: int) -> TiffPage:
        def number(tag: int, default: int | None = None) -> int:
            value = tags.get(tag)
            if not value or not isinstance(value, tuple):
                if default is None:
                    raise CorruptError(self.path, f"the required tag {tag} is missing", frame=frame)
                return default
            return int(value[0])

        nx, ny = number(_WIDTH), number(_LENGTH)
        if not (0 < nx < 1 << 20 and 0 < ny < 1 << 20):
            raise CorruptError(self.path, f"the size {nx} x {ny} is no image's", frame=frame)
        bits, samples = number(_BITS, 1), number(_SAMPLES, 1)
        kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(number(_FORMAT, 1), "?")
        if samples != 1:
            raise FormatError(self.path, f"it has {samples} colours; movies have one", frame=frame)
        if number(_FILL_ORDER, 1) != 1:
            raise FormatError(self.path, "its bits are in reverse order, which is not supported", frame=frame)
        tiled = _TILE_OFFSETS in tags
        if tiled:
            block = (number(_TILE_Y), number(_TILE_X))
        else:
            block = (min(number(_ROWS, ny) or ny, ny), nx)
        if min(block) <= 0:
            raise CorruptError(self.path, f"its strips have the size {block}", frame=frame)
        offsets = tags.get(_TILE_OFFSETS if tiled else _OFFSETS, ())
        counts = tags.get(_TILE_COUNTS if tiled else _COUNTS, ())
        n_blocks = math.ceil(ny / block[0]) * math.ceil(nx / block[1])
        compression = number(_COMPRESSION, 1)
        if compression == 1 and len(offsets) == n_blocks == 1 and not counts:
            counts = ((nx * bits + 7) // 8 * ny,)
        eer = compression in (65000, 65001, 65002)
        if len(offsets) != len(counts) or (not eer and len(offsets) != n_blocks) or not offsets:
            raise CorruptError(
                self.path,
                f"{len(offsets)} strips with {len(counts)} lengths where {n_blocks} are needed",
                frame=frame,
            )
        return TiffPage(
            shape=(ny, nx),
            bits=bits,
            kind=kind,
            compression=compression,
            predictor=number(_PREDICTOR, 1),
            block=block,
            tiled=tiled,
            offsets=tuple(int(v) for v in offsets),
            counts=tuple(int(v) for v in counts),
            reduced=bool(number(_SUBFILE, 0) & 1),
            tags=tags,
        )

    def _check_data(self, page: TiffPage, index: int) -> None:
        for strip, (offset, count) in enumerate(zip(page.offsets, page.counts)):
            if count == 0 or offset == 0:
                raise TruncatedError(
                    self.path, f"strip {strip} was never written; it is still being written", frame=index
                )
            if offset + count > self.size:
                raise TruncatedError(
                    self.path,
                    f"strip {strip} ends at byte {offset + count}, but the file at byte {self.size}; "
                    "it is still being written, or must be copied again",
                    frame=index,
                )
            self.extent = max(self.extent, offset + count)

    def _expand(self, page: TiffPage) -> list[TiffPage]:
        """ImageJ and tifffile write big uncompressed stacks with one directory and all the data after it."""
        text = page.tags.get(_DESCRIPTION, b"").decode("latin-1")
        n = 1
        if match := re.search(r"\AImageJ=.*^images=(\d+)", text, re.S | re.M):
            n = int(match.group(1))
        elif '"truncated": true' in text and (match := re.search(r'"shape": \[([\d, ]+)\]', text)):
            sizes = [int(v) for v in match.group(1).split(",")]
            n = math.prod(sizes) // (page.shape[0] * page.shape[1])
        if n <= 1 or page.compression != 1 or page.tiled:
            return [page]
        size = sum(page.counts)
        return [replace(page, offsets=tuple(o + i * size for o in page.offsets)) for i in range(n)]

    def _tail_has_data(self) -> bool:
        """Whether anything but zeros follows: preallocated or padded files end in zeros."""
        read: Callable[[int], bytes] = lambda at: os.pread(self.fd, 1 << 20, at)  # noqa: E731
        at = self.extent
        while at < self.size:
            data = read(at)
            if not data:
                break
            if np.frombuffer(data, np.uint8).any():
                return True
            at += len(data)
        return False

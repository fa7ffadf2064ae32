"""TIFF images and movies, rows flipped.

TIFF's first row is the top of the picture, MRC's the bottom; the array that `TiffMovie.read` returns
has MRC's row 0 first, as IMOD, SerialEM, RELION, MotionCor and Warp do it (docs/conventions.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.atomic import atomic_write
from weft.formats.open_file import OpenFile
from weft.formats.tiff_layout import TiffLayout, TiffPage, read_layout

__all__ = ["TiffMovie", "page_dtype", "read_tiff", "write_tiff"]

_DECODERS: dict[int, Callable[..., Any]] = {
    5: imagecodecs.lzw_decode,
    8: imagecodecs.zlib_decode,
    32946: imagecodecs.zlib_decode,
    32773: imagecodecs.packbits_decode,
    50000: imagecodecs.zstd_decode,
    34926: imagecodecs.zstd_decode,
}
_COMPRESSIONS = {"none": None, "lzw": "lzw", "deflate": "zlib", "zstd": "zstd"}


class TiffMovie(OpenFile):
    """The images of a TIFF file, decoded one by one; reading is thread-safe.

    Parameters
    ----------
    path : path-like
    flip : bool
        Flip the rows, so that row 0 is what MRC stores first. False only for gains of EER data.
    allow_tail : bool
        Accept unexplained bytes at the end of the file (see `read_layout`).
    first_only : bool
        The file is one picture: whatever follows the first is ignored.

    Attributes
    ----------
    shape : (ny, nx)
    dtype : numpy.dtype
    pixel_size : float or None
        Å, where the resolution tags hold a plausible one.
    """

    def __init__(
        self, path: str | Path, *, flip: bool = True, allow_tail: bool = False, first_only: bool = False
    ) -> None:
        path = self.path = Path(path)
        self.flip = flip
        layout = read_layout(self.path, allow_tail=allow_tail)
        self._order: Literal["<", ">"] = layout.order
        self._pages = _movie_pages(replace(layout, pages=layout.pages[:1]) if first_only else layout)
        self.shape = self._pages[0].shape
        self.dtype = page_dtype(self.path, self._pages[0])
        self.pixel_size = _pixel_size(self._pages[0])
        super().__init__(path)

    def __len__(self) -> int:
        return len(self._pages)

    def read(self, index: int) -> NDArray[Any]:
        """Image ``index`` (ny, nx)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        page = self._pages[index]
        out = np.empty(page.shape, self.dtype)
        # decoding straight into the flipped picture saves a second pass over it
        view = out[::-1] if self.flip else out
        across = math.ceil(page.shape[1] / page.block[1])
        for block, (offset, count) in enumerate(zip(page.offsets, page.counts)):
            y, x = (block // across) * page.block[0], (block % across) * page.block[1]
            data = self.read_bytes(offset, count, index)
            rows = page.block[0] if page.tiled else min(page.block[0], page.shape[0] - y)
            part = self._decode(page, data, (rows, page.block[1]), index, block)
            target = view[y : y + rows, x : x + page.block[1]]
            target[...] = part[: target.shape[0], : target.shape[1]]
        return out

    def _decode(
        self, page: TiffPage, data: bytes, shape: tuple[int, int], index: int, block: int
    ) -> NDArray[Any]:
        row_bytes = (shape[1] * page.bits + 7) // 8
        size = shape[0] * row_bytes
        if page.compression == 1:
            raw: Any = data
        else:
            out, trouble = np.empty(size, np.uint8), ""
            try:
                raw = _DECODERS[page.compression](data, out=out)
            except (RuntimeError, ValueError) as error:
                trouble = str(error)
            if trouble:  # out here it has no cause: the decoders' own errors cannot travel between processes
                text = f"strip {block} cannot be decoded ({trouble}); copy the file again"
                raise CorruptError(self.path, text, frame=index)
        if len(raw) < size:
            raise CorruptError(
                self.path,
                f"strip {block} holds {len(raw)} of {size} bytes; copy the file again",
                frame=index,
            )
        if page.bits < 8:
            pixels = imagecodecs.packints_decode(bytes(raw[:size]), np.uint8, page.bits, runlen=shape[1])
            return np.asarray(pixels).reshape(shape)
        stored = self.dtype.newbyteorder(self._order)
        array = np.frombuffer(raw, np.uint8, size).view(stored).reshape(shape)
        if page.predictor == 2:
            native = array.astype(self.dtype, copy=False)
            return np.asarray(imagecodecs.delta_decode(np.ascontiguousarray(native), axis=-1))
        if page.predictor == 3:
            return np.asarray(imagecodecs.floatpred_decode(np.ascontiguousarray(array), axis=-1))
        return array


def read_tiff(path: str | Path, *, flip: bool = True) -> NDArray[Any]:
    """All images of a TIFF file: (ny, nx) for one, else (n, ny, nx)."""
    with TiffMovie(path, flip=flip) as movie:
        images = [movie.read(i) for i in range(len(movie))]
    return images[0] if len(images) == 1 else np.stack(images)


def write_tiff(
    path: str | Path,
    frames: ArrayLike | Iterable[ArrayLike],
    *,
    compression: str = "lzw",
    pixel_size: float | None = None,
    rows_per_strip: int | None = None,
    flip: bool = True,
    bigtiff: bool = False,
) -> None:
    """Write images as TIFF, rows flipped, atomically.

    Parameters
    ----------
    path : path-like
    frames : (n, ny, nx) or (ny, nx) array, or an iterable of (ny, nx) arrays
    compression : {"lzw", "deflate", "zstd", "none"}
    pixel_size : float, optional
        Å; goes into the resolution tags.
    rows_per_strip : int, optional
        By default strips of about 256 kB.
    flip : bool
        Write row 0 as the last row, as the convention of the field has it.
    bigtiff : bool
        Needed above 4 GB.
    """
    if compression not in _COMPRESSIONS:
        raise ValueError(f"no TIFF compression {compression!r}: one of {', '.join(_COMPRESSIONS)}")
    if isinstance(frames, np.ndarray) and frames.ndim == 2:
        frames = [frames]
    extra: dict[str, Any] = {}
    if pixel_size is not None:
        extra = {"resolution": (1e8 / pixel_size, 1e8 / pixel_size), "resolutionunit": "CENTIMETER"}
    with atomic_write(path) as file, tifffile.TiffWriter(file, bigtiff=bigtiff) as writer:
        count = 0
        for frame in frames:  # type: ignore[union-attr]
            image = np.asarray(frame)
            if image.ndim != 2:
                raise ValueError(f"frame {count} has the shape {image.shape}, not (y, x)")
            writer.write(
                np.ascontiguousarray(image[::-1] if flip else image),
                compression=_COMPRESSIONS[compression],
                photometric="minisblack",
                rowsperstrip=rows_per_strip,
                metadata=None,
                contiguous=False,
                **extra,
            )
            count += 1
        if count == 0:
            raise ValueError(f"no frames to write to {path}")


def page_dtype(path: Path, page: TiffPage) -> np.dtype[Any]:
    """Type of the pixels in memory; FormatError where there is none."""
    if page.compression != 1 and page.compression not in _DECODERS:
        raise FormatError(
            path,
            f"TIFF compression {page.compression} is not supported; use LZW, deflate, zstd or none",
        )
    if page.kind == "u" and page.bits in (4, 2, 1):
        return np.dtype("u1")
    allowed = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
    if page.bits not in allowed.get(page.kind, ()):
        raise FormatError(path, f"{page.bits}-bit samples of kind {page.kind!r} are not supported")
    if page.predictor not in (1, 2, 3) or (page.predictor == 3 and page.kind != "f"):
        raise FormatError(path, f"TIFF predictor {page.predictor} is not supported")
    return np.dtype(f"{page.kind}{page.bits // 8}")


def _movie_pages(layout: TiffLayout) -> tuple[TiffPage, ...]:
    pages = tuple(page for page in layout.pages if not page.reduced) or layout.pages
    first = pages[0]
    for index, page in enumerate(pages):
        same = (page.shape, page.bits, page.kind) == (first.shape, first.bits, first.kind)
        if not same:
            raise FormatError(
                layout.path,
                f"it is {page.shape[1]} x {page.shape[0]} of {page.bits} bits, but frame 0 is "
                f"{first.shape[1]} x {first.shape[0]} of {first.bits}; a movie's frames are all alike",
                frame=index,
            )
        page_dtype(layout.path, page)
    return pages


def _pixel_size(page: TiffPage) -> float | None:
    resolution, unit = page.tags.get(282), page.tags.get(296, (2,))
    if not resolution or len(resolution) != 2 or 0 in resolution:
        return None
    unit_angstrom = {2: 2.54e8, 3: 1e8}.get(int(unit[0]))
    if unit_angstrom is None:
        return None
    size = unit_angstrom * resolution[1] / resolution[0]
    # 72 dots an inch and the like say nothing about a specimen
    return float(size) if 0.01 < size < 200.0 else None

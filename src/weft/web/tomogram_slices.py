"""Sections of tomograms as pictures: of a file of gigabytes, what a section needs is read.

Nothing is mapped into memory, so that a file cut short while it is looked at costs an error and not the
server. Sections along x touch all of a file; so columns are kept for the slider's next places, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from weft.errors import TruncatedError
from weft.formats import mrc
from weft.web.images import Kept, png

__all__ = ["Axis", "Levels", "Picture", "Tomograms"]

Axis = Literal["x", "y", "z"]
Picture = Literal["jpeg", "png"]

_KEPT_PICTURES = 48 << 20  # bytes of encoded sections
_KEPT_COLUMNS = 192 << 20  # bytes of columns
_COLUMNS = 32  # that are read together
_SAMPLED = 7  # sections that the grey scale is made from
_SAMPLE = 1 << 18  # voxels of each of them
#: Percentiles: the grey scale's ends at most, and what is black and white at first.
_ENDS, _SHOWN = (0.02, 99.98), (0.5, 99.5)
_QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Levels:
    """The grey scale of a map, the same for all of its sections.

    Attributes
    ----------
    low, high : float
        Densities of grey values 0 and 255.
    black, white : int
        Grey values to be shown black and white at first.
    """

    low: float
    high: float
    black: int
    white: int

    def eight_bits(self, section: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Densities as grey values."""
        shown = np.nan_to_num((section - self.low) * (255.0 / (self.high - self.low)), nan=0.0)
        return np.asarray(np.clip(shown, 0.0, 255.0).round(), dtype=np.uint8)

    def stretched(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Grey values with the contrast that is proposed."""
        span = max(self.white - self.black, 1)
        return np.asarray(
            np.clip((grey.astype(np.float32) - self.black) * (255.0 / span), 0, 255), dtype=np.uint8
        )


class _Volume:
    """An open MRC volume that is read piece by piece."""

    def __init__(self, path: Path) -> None:
        self.info = mrc.read_header(path)
        if self.info.mode not in (0, 1, 2, 6, 12):
            raise ValueError(f"{path.name} holds no real numbers (mode {self.info.mode})")
        self._path = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def close(self) -> None:
        os.close(self._file)

    def rows(self, section: int, first: int, count: int) -> NDArray[np.float32]:
        """Some rows of a section: (count, nx)."""
        _, ny, nx = self.info.shape
        width = nx * self.info.dtype.itemsize
        start = self.info.data_offset + (section * ny + first) * width
        data = os.pread(self._file, count * width, start)
        if len(data) < count * width:
            raise TruncatedError(self._path, "it is shorter than its header says; make it again")
        return np.frombuffer(data, self.info.dtype).astype(np.float32).reshape(count, nx)


@contextmanager
def _opened(path: Path) -> Iterator[_Volume]:
    volume = _Volume(path)
    try:
        yield volume
    finally:
        volume.close()


class Tomograms:
    """Makes pictures of sections, and keeps those that were asked for last. Safe in several threads."""

    def __init__(self) -> None:
        self._levels: Kept[Levels] = Kept(1000, lambda levels: 1)
        self._highest: Kept[float] = Kept(1000, lambda value: 1)
        self._pictures: Kept[bytes] = Kept(_KEPT_PICTURES, len)
        self._columns: Kept[NDArray[np.uint8]] = Kept(_KEPT_COLUMNS, lambda block: block.nbytes)

    def levels(self, path: Path) -> Levels:
        """The grey scale of a map, from sections about its middle.

        Raises
        ------
        InputFileError, OSError, ValueError
            When the file cannot be read.
        """
        key = _identity(path)
        known = self._levels.get(key)
        if known is None:
            known = _measured(path)
            self._levels.put(key, known)
        return known

    def highest(self, path: Path) -> float:
        """The highest value of a map; −∞ where none is finite.

        Raises
        ------
        InputFileError, OSError, ValueError
            When the file cannot be read.
        """
        key = _identity(path)
        known = self._highest.get(key)
        if known is None:
            with _opened(path) as volume:
                nz, ny, _ = volume.info.shape
                known = max(_top(volume.rows(z, 0, ny)) for z in range(nz))
            self._highest.put(key, known)
        return known

    def describe(self, path: Path) -> dict[str, Any]:
        """Size and grey scale of a map, as `weft.web.series_models.Tomogram` has them.

        Raises
        ------
        InputFileError, OSError, ValueError
            When the file cannot be read.
        """
        info, levels = mrc.read_header(path), self.levels(path)
        return {
            "shape": list(info.shape),
            "pixel_size": info.voxel_size[0] if info.voxel_size else None,
            "low": levels.low,
            "high": levels.high,
            "black": levels.black,
            "white": levels.white,
        }

    def section(
        self,
        path: Path,
        axis: Axis,
        index: int | None = None,
        *,
        thickness: int = 1,
        longest: int = 1024,
        stretched: bool = False,
        form: Picture = "png",
        levels: Levels | None = None,
    ) -> bytes:
        """A section as a picture.

        Parameters
        ----------
        path : Path
            An MRC volume.
        axis : {"x", "y", "z"}
            That the section is perpendicular to. Rows run along y and columns along x in z sections; along z
            and x in y sections; along y and z in x sections: the three fit together at their edges.
        index : int, optional
            The middle by default.
        thickness : int
            Sections that are averaged, about `index`.
        longest : int
            Pixels of the tomogram's longest side at most; whole numbers of voxels are averaged for it.
        stretched : bool
            With the contrast proposed, instead of the whole grey scale.
        form : {"png", "jpeg"}
        levels : Levels, optional
            The grey scale; by default that of the map.

        Raises
        ------
        IndexError
            When the volume has no such section.
        InputFileError, OSError, ValueError
            When the file cannot be read.
        """
        identity = _identity(path)
        key: Any = (identity, axis, index, thickness, longest, stretched, form, levels)
        found = self._pictures.get(key)
        if found is not None:
            return found
        levels = levels or self.levels(path)
        with _opened(path) as volume:
            shape = volume.info.shape
            length = shape["zyx".index(axis)]
            at = length // 2 if index is None else index
            if not 0 <= at < length:
                raise IndexError(f"{path.name} has sections 0 to {length - 1} along {axis}, there is no {at}")
            first = max(0, at - (thickness - 1) // 2)
            last = min(length, at + thickness // 2 + 1)
            if axis == "x":
                grey = self._across(volume, identity, levels, first, last)
            else:
                grey = levels.eight_bits(_along(volume, axis, first, last))
        grey = _reduced(grey, -(-max(shape) // longest))
        if stretched:
            grey = levels.stretched(grey)
        picture = png(grey) if form == "png" else bytes(imagecodecs.jpeg8_encode(grey, level=_QUALITY))
        self._pictures.put(key, picture)
        return picture

    def _across(
        self, volume: _Volume, identity: Any, levels: Levels, first: int, last: int
    ) -> NDArray[np.uint8]:
        """The mean of sections first … last−1 along x: (y, z)."""
        total = np.zeros((volume.info.shape[1], volume.info.shape[0]), np.uint32)
        for x in range(first, last):
            total += self._block(volume, identity, levels, x // _COLUMNS)[x % _COLUMNS]
        count = last - first
        return ((total + count // 2) // count).astype(np.uint8)

    def _block(self, volume: _Volume, identity: Any, levels: Levels, number: int) -> NDArray[np.uint8]:
        """Neighbouring sections along x: (sections, y, z)."""
        key = (identity, number, levels)
        block = self._columns.get(key)
        if block is None:
            nz, ny, nx = volume.info.shape
            start = number * _COLUMNS
            block = np.empty((min(_COLUMNS, nx - start), ny, nz), np.uint8)
            for z in range(nz):
                rows = volume.rows(z, 0, ny)[:, start : start + _COLUMNS]
                block[:, :, z] = levels.eight_bits(rows).T
            self._columns.put(key, block)
        return block


def _identity(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino


def _top(values: NDArray[np.float32]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else float("-inf")


def _along(volume: _Volume, axis: Axis, first: int, last: int) -> NDArray[np.float32]:
    """The mean of sections first … last−1 along z, (y, x), or along y, (z, x)."""
    nz, ny, nx = volume.info.shape
    if axis == "z":
        total = np.zeros((ny, nx), np.float32)
        for z in range(first, last):
            total += volume.rows(z, 0, ny)
        return total / np.float32(last - first)
    out = np.empty((nz, nx), np.float32)
    for z in range(nz):
        out[z] = volume.rows(z, first, last - first).mean(0)
    return out


def _reduced(grey: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of factor × factor pixels; what is left over at the far edges is cut off."""
    if factor <= 1:
        return grey
    rows, columns = max(1, grey.shape[0] // factor), max(1, grey.shape[1] // factor)
    high, wide = min(factor, grey.shape[0]), min(factor, grey.shape[1])
    whole = grey[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    return np.asarray(whole.mean((1, 3), dtype=np.float32).round(), dtype=np.uint8)


def _measured(path: Path) -> Levels:
    with _opened(path) as volume:
        nz, ny, nx = volume.info.shape
        step = max(1, round((ny * nx / _SAMPLE) ** 0.5))
        places = sorted({round(nz * (0.2 + 0.6 * i / (_SAMPLED - 1))) for i in range(_SAMPLED)})
        parts = [volume.rows(min(z, nz - 1), 0, ny)[::step, ::step].ravel() for z in places]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return Levels(0.0, 1.0, 0, 255)
    low, black, white, high = (
        float(v) for v in np.percentile(values, (_ENDS[0], _SHOWN[0], _SHOWN[1], _ENDS[1]))
    )
    if high <= low:
        return Levels(low - 0.5, low + 0.5, 0, 255)
    # gold shines far beyond the rest: the grey values are for what lies about the contrast that is shown
    span = white - black
    low, high = max(low, black - span), min(high, white + span)
    scale = 255.0 / (high - low)
    dark, light = round((black - low) * scale), round((white - low) * scale)
    return Levels(low, high, dark, max(light, dark + 1))

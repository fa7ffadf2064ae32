"""Volumes as OME-Zarr, for napari, Neuroglancer and Python: in chunks, at several resolutions.

OME-NGFF 0.4 on Zarr version 2, which is what all viewers read: a folder that ends in ``.zarr`` with one array
for each level, 0 the finest, and each half as large as that before it. Voxels of a level are the means of
2×2×2 of the one before; where a size is odd, the last ones are means of what is there. Translations are those
of the first voxels' centres, so that all levels lie in the same place.

A volume is written section by section, all levels at once: what is held is one layer of chunks of each.
Writing needs the package zarr (``pip install 'weft[zarr]'``).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from weft.errors import SettingsError
from weft.formats.atomic import TEMPORARY_SUFFIX

__all__ = ["PyramidWriter", "require_zarr", "volume_writer"]

CHUNK = 64
_DTYPES = ("<f4", "<f2")


def require_zarr() -> Any:
    """The package zarr; to be called before long work whose end needs it.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise SettingsError(
            "writing OME-Zarr needs the package zarr: pip install 'weft[zarr]', or write MRC only"
        ) from error
    return zarr


@contextmanager
def volume_writer(
    path: str | Path,
    shape: tuple[int, int, int],
    pixel_size: float | Sequence[float],
    *,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: DTypeLike = np.float32,
    name: str = "",
    chunk: int = CHUNK,
    sync: bool = True,
) -> Iterator[PyramidWriter]:
    """Write a volume section by section; the folder takes its name when the block ends without an error.

    A folder that was there before is replaced.

    Parameters
    ----------
    path : path-like
        The destination, by custom ``*.zarr``; the folder that it is in must exist.
    shape : (int, int, int)
        z, y, x.
    pixel_size : float or (x, y, z)
        Å.
    origin : (x, y, z)
        Å, of the first voxel's centre.
    dtype : optional
        float32 or float16.
    name : str, optional
        What viewers call the volume; by default the folder's name without ``.zarr`` and the like.
    chunk : int
        Voxels along each side of a chunk; levels are made until one chunk holds the whole volume.
    sync : bool
        Wait until the bytes are on the disk. Switch off only for what can be made again.

    Yields
    ------
    PyramidWriter

    Raises
    ------
    SettingsError
        If the package zarr is not installed.
    ValueError
        If fewer or more sections were written than `shape` says, or one does not fit.
    """
    zarr = require_zarr()
    path = Path(path)
    target = np.dtype(dtype).newbyteorder("<")
    if target.str not in _DTYPES:
        raise ValueError(f"{path}: volumes are written as float32 or float16, not {np.dtype(dtype)}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: a volume has three dimensions, none of them empty, not {shape}")
    sizes = [float(v) for v in np.broadcast_to(np.asarray(pixel_size, np.float64), 3)]
    place = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    place.mkdir()
    try:
        shapes = _level_shapes(shape, chunk)
        group = zarr.open_group(place, mode="a", zarr_format=2)
        group.attrs["multiscales"] = [
            _multiscales(name or path.name.split(".zarr")[0], len(shapes), sizes[::-1], [*origin][::-1])
        ]
        levels = [
            _Level(path, _array(zarr, place, number, of_level, chunk, target), chunk)
            for number, of_level in enumerate(shapes)
        ]
        writer = PyramidWriter(path, place, levels)
        yield writer
        writer.finish()
        if sync:
            _sync_tree(place)
        _take_place(place, path)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    if sync:
        _sync_folder(path.parent)


class PyramidWriter:
    """Takes the sections of a volume one after the other; made by `volume_writer`.

    Attributes
    ----------
    count : int
        Sections so far.
    """

    def __init__(self, path: Path, place: Path, levels: list[_Level]) -> None:
        self.count = 0
        self._path, self._place, self._levels = path, place, levels
        self._waiting: list[NDArray[np.float32] | None] = [None] * len(levels)

    @property
    def shape(self) -> tuple[int, ...]:
        """z, y, x of the finest level."""
        return self._levels[0].shape

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self._levels)

    def append(self, section: ArrayLike) -> None:
        """Write one section (y, x), an array or a tensor on the CPU."""
        image = np.asarray(section, np.float32)
        if self.count >= self.shape[0]:
            raise ValueError(f"{self._path}: more than the {self.shape[0]} sections that it was made for")
        if image.shape != self.shape[1:]:
            raise ValueError(
                f"section {self.count} of {self._path} has the shape {image.shape}, not {self.shape[1:]}"
            )
        self.count += 1
        self._push(0, image)
        # what is written to is no leftover, but a folder's time does not change with the files below it
        os.utime(self._place)

    def finish(self) -> None:
        """Write what is still held; `volume_writer` does it."""
        if self.count != self.shape[0]:
            raise ValueError(f"{self._path}: {self.count} sections of {self.shape[0]} were written")
        for number in range(len(self._levels)):
            last, self._waiting[number] = self._waiting[number], None
            if last is not None:
                self._push(number + 1, last)
            self._levels[number].flush()

    def _push(self, number: int, image: NDArray[np.float32]) -> None:
        self._levels[number].append(image)
        if number + 1 == len(self._levels):
            return
        small, before = _halved(image), self._waiting[number]
        if before is None:
            self._waiting[number] = small
        else:
            self._waiting[number] = None
            self._push(number + 1, 0.5 * (before + small))


class _Level:
    """One resolution: an array, and the layer of its chunks that is being filled."""

    def __init__(self, path: Path, array: Any, chunk: int) -> None:
        self.path, self.array = path, array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.written = self.held = 0
        self.layer = np.empty((min(chunk, self.shape[0]), *self.shape[1:]), array.dtype)

    def append(self, image: NDArray[np.float32]) -> None:
        # float16 ends at 65504: an overflow would write infinities into a file that looks right
        if self.layer.dtype.itemsize == 2 and max(abs(float(image.min())), abs(float(image.max()))) > 65504.0:
            raise ValueError(
                f"section {self.written + self.held} of {self.path} has values that float16 cannot hold; "
                "use float32"
            )
        self.layer[self.held] = image
        self.held += 1
        if self.held == len(self.layer):
            self.flush()

    def flush(self) -> None:
        if self.held:
            self.array[self.written : self.written + self.held] = self.layer[: self.held]
        self.written, self.held = self.written + self.held, 0


def _level_shapes(shape: tuple[int, ...], chunk: int) -> list[tuple[int, ...]]:
    shapes = [tuple(shape)]
    while max(shapes[-1]) > chunk:
        shapes.append(tuple((n + 1) // 2 for n in shapes[-1]))
    return shapes


def _halved(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2×2 pixels; of what is there at the end of an odd size."""
    for axis in (0, 1):
        if image.shape[axis] % 2:
            image = np.concatenate([image, image.take([-1], axis=axis)], axis=axis)
    sums = image[0::2] + image[1::2]
    return (sums[:, 0::2] + sums[:, 1::2]) * np.float32(0.25)


def _array(
    zarr: Any, place: Path, number: int, shape: tuple[int, ...], chunk: int, dtype: np.dtype[Any]
) -> Any:
    from numcodecs import Blosc

    return zarr.create_array(
        place,
        name=str(number),
        shape=shape,
        # a chunk never is larger than its array, or every small level would be padded to 64³
        chunks=tuple(min(chunk, n) for n in shape),
        dtype=dtype,
        zarr_format=2,
        compressors=Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0.0,
    )


def _multiscales(name: str, levels: int, sizes: list[float], origin: list[float]) -> dict[str, Any]:
    """OME-NGFF 0.4's description; `sizes` and `origin` in the order z, y, x."""
    datasets = []
    for number in range(levels):
        factor = 2**number
        translation = [float(o) + 0.5 * (factor - 1) * size for o, size in zip(origin, sizes)]
        transformations = [
            {"type": "scale", "scale": [factor * size for size in sizes]},
            {"type": "translation", "translation": translation},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": transformations})
    return {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "Written by Weft: means of 2×2×2 voxels"},
    }


def _take_place(place: Path, path: Path) -> None:
    """Rename a folder to `path`, where another may be: that is moved aside for the moment, then deleted."""
    if not path.is_symlink() and path.is_dir():
        aside = place.with_name(place.name.removesuffix(TEMPORARY_SUFFIX) + f".old{TEMPORARY_SUFFIX}")
        path.rename(aside)
        try:
            place.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        place.rename(path)


def _sync_tree(folder: Path) -> None:
    for where, _, files in os.walk(folder):
        for file in files:
            with (Path(where) / file).open("rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(Path(where))


def _sync_folder(folder: Path) -> None:
    # some network file systems refuse to sync a folder
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

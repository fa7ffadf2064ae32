"""Pictures made on demand: averages reduced to the size of the screen, deconvolved, eight bits deep.

Reading and reducing a micrograph takes tenths of a second, all that follows hundredths; so the
reduced images are kept, and a slider on the page is answered from them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from weft.formats import mrc
from weft.micrographs.comparison import comparison
from weft.micrographs.deconvolution import DeconvolutionSettings, deconvolve
from weft.physics.fourier import resize
from weft.physics.optics import Optics

__all__ = ["Deconvolution", "Gone", "Kept", "Viewer", "comparison_png", "mask_png", "png"]

V = TypeVar("V")

_WORKERS = 2
_KEPT_IMAGES = 160 << 20  # bytes of reduced images
_KEPT_PICTURES = 48 << 20  # bytes of encoded pictures
_STRETCH = (0.5, 99.5)  # percentiles that become black and white
_MASKED = (148, 62, 222, 120)  # violet: the image stays visible below


class Gone(Exception):
    """Who asked has gone away: a slider that moves on leaves pictures behind that nobody wants."""


class Kept(Generic[V]):
    """The values used last, up to so many bytes. Safe in several threads."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """The value, which counts as used now; None where it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value in place of those that were used longest ago."""
        with self._lock:
            old = self._values.pop(key, None)
            self._total += self._size(value) - (0 if old is None else self._size(old))
            self._values[key] = value
            while self._total > self._limit and len(self._values) > 1:
                self._total -= self._size(self._values.popitem(last=False)[1])


@dataclass(frozen=True)
class Deconvolution:
    """How a view is deconvolved.

    Attributes
    ----------
    defocus : (float, float, float)
        U, V (Å) and angle (degrees).
    optics : Optics
        `pixel_size` is that of the average.
    phase_shift : float
        Degrees.
    settings : DeconvolutionSettings
    """

    defocus: tuple[float, float, float]
    optics: Optics
    phase_shift: float
    settings: DeconvolutionSettings


@dataclass(frozen=True)
class _Reduced:
    image: torch.Tensor
    scale: float  # old pixels in a new one


def png(image: NDArray[np.uint8]) -> bytes:
    """An eight-bit picture as PNG, packed quickly rather than tightly: it travels over a short way."""
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(image), level=1))


def _stretched(image: torch.Tensor) -> NDArray[np.uint8]:
    values = image.numpy()
    finite = values[np.isfinite(values)] if not np.isfinite(values).all() else values
    low, high = np.percentile(finite, _STRETCH) if finite.size else (0.0, 1.0)
    span = high - low if high > low else 1.0
    shown = np.nan_to_num((values - low) * (255.0 / span), nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(shown, 0.0, 255.0).round().astype(np.uint8)


def _reduced_size(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _load(path: Path, longest: int, section: int | None) -> _Reduced:
    if section is None:
        data, _ = mrc.read(path)
    else:
        with mrc.MrcStack(path) as stack:
            data = stack.read(section)
    if data.ndim != 2:
        raise ValueError(f"{path.name} holds {data.ndim} dimensions, a micrograph has two")
    image = torch.from_numpy(np.asarray(data, dtype=np.float32))
    small = resize(image, _reduced_size((image.shape[0], image.shape[1]), longest))
    return _Reduced(small, max(image.shape) / max(small.shape))


def comparison_png(before: Path, after: Path, factor: float, crop: int) -> bytes:
    """Two micrographs and their power spectra; see :func:`weft.micrographs.comparison.comparison`."""
    images = [torch.from_numpy(np.asarray(mrc.read(path)[0], dtype=np.float32)) for path in (before, after)]
    return png(comparison(images[0], images[1], factor, crop))


def mask_png(path: Path, longest: int = 1024) -> bytes:
    """A mask as a picture to lay over the micrograph: transparent where nothing is masked."""
    data, _ = mrc.read(path)
    if data.ndim != 2:
        raise ValueError(f"it holds {data.ndim} dimensions, a mask has two")
    ny, nx = data.shape
    my, mx = _reduced_size((ny, nx), longest)
    rows = (np.arange(my) * ny) // my
    columns = (np.arange(mx) * nx) // mx
    picture = np.zeros((my, mx, 4), dtype=np.uint8)
    picture[np.asarray(data)[np.ix_(rows, columns)] != 0] = _MASKED
    return png(picture)


class Viewer:
    """Renders views in a few threads of its own, so that nothing else waits for them."""

    def __init__(self, workers: int = _WORKERS) -> None:
        self._workers = workers
        self._images: Kept[_Reduced] = Kept(_KEPT_IMAGES, lambda kept: kept.image.nbytes)
        self._pictures: Kept[bytes] = Kept(_KEPT_PICTURES, len)

    def start(self) -> None:
        """Make the threads; called on the event loop."""
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="weft-view")
        self._slots = asyncio.Semaphore(self._workers)

    def close(self) -> None:
        """End the threads; what has not begun is not begun any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], V], gone: Callable[[], Awaitable[bool]]) -> V:
        """Do something slow in turn.

        Raises
        ------
        Gone
            When, by its turn, `gone` says that nobody waits for it any more.
        """
        async with self._slots:
            if await gone():
                raise Gone
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def render(
        self, path: Path, longest: int, how: Deconvolution | None, section: int | None = None
    ) -> bytes:
        """A micrograph as PNG.

        Parameters
        ----------
        path : Path
            An MRC file of one image.
        longest : int
            Pixels of the picture's longer side; an image is never enlarged.
        how : Deconvolution, optional
        section : int, optional
            Of a stack, which alone is read.

        Raises
        ------
        InputFileError, OSError, ValueError
            When the file cannot be read.
        """
        stat = path.stat()
        identity = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino, longest, section)
        key: Any = (identity, how)
        picture = self._pictures.get(key)
        if picture is not None:
            return picture
        reduced = self._images.get(identity)
        if reduced is None:
            reduced = _load(path, longest, section)
            self._images.put(identity, reduced)
        image = reduced.image
        if how is not None:
            optics = how.optics.at_pixel_size(how.optics.pixel_size * reduced.scale)
            image = deconvolve(image, how.defocus, optics, how.settings, how.phase_shift)
        picture = png(_stretched(image))
        self._pictures.put(key, picture)
        return picture

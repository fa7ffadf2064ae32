"""Pixels that cannot be true, and what to put in their place.

Xmipp calls a pixel bad when it lies more than so many standard deviations from the mean. Bad pixels
raise that standard deviation themselves: when a few percent of an image are bad, none of them is found.
Here centre and spread are the median and 1.4826 times the median absolute deviation, which half of the
pixels cannot move far; they are the mean and the standard deviation of what is good, where noise is
Gaussian.

A bad pixel becomes the median of the good pixels in the 5×5 around it. Where there are none it waits for
its neighbours, so that large spots are filled from their edges.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError

__all__ = ["fill", "fill_in_raster_order", "moments", "outliers", "robust_spread"]

#: Half the width of the neighbourhood that a bad pixel is filled from.
REACH = 2
_MAD_TO_SIGMA = 1.4826022185056018  # of a normal distribution
#: Spread is estimated again without the outliers while this fraction of the pixels is found anew.
_MANY = 1e-3


def _middle(flat: torch.Tensor, centre: float | None = None) -> float:
    """The middle one of all values, the lower of two; or that of their distances from a centre."""
    rank = (flat.numel() - 1) // 2
    if flat.device.type == "cpu":
        return float(_selected(flat.numpy(), rank, np.float32(centre or 0.0), centre is not None))
    values = flat if centre is None else (flat - centre).abs_()
    return float(values.kthvalue(rank + 1).values)


@numba.njit(nogil=True, cache=True)
def _keys(
    flat: NDArray[np.float32],
    first: int,
    count: int,
    centre: np.float32,
    distances: bool,
    out: NDArray[np.uint32],
) -> None:  # pragma: no cover - compiled
    """Whole numbers in the order of the values: the bits of a float, mirrored where it is negative."""
    values = out.view(np.float32)
    for i in range(count):
        value = flat[first + i]
        values[i] = abs(value - centre) if distances else value
    for i in range(count):
        bits = out[i]
        out[i] = bits ^ (np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else np.uint32(0x80000000))


@numba.njit(nogil=True, cache=True)
def _selected(
    flat: NDArray[np.float32], rank: int, centre: np.float32, distances: bool
) -> np.float32:  # pragma: no cover - compiled
    """The value of a rank among all, found digit by digit: two passes over the image, and no copy of it."""
    chunk = 8192
    keys = np.empty(chunk, np.uint32)
    upper = np.uint32(0)
    left = rank
    for digit in range(2):
        counts = np.zeros(65536, np.int64)
        for first in range(0, flat.size, chunk):
            n = min(chunk, flat.size - first)
            _keys(flat, first, n, centre, distances, keys)
            if digit == 0:
                for i in range(n):
                    counts[keys[i] >> np.uint32(16)] += 1
            else:
                for i in range(n):
                    if keys[i] >> np.uint32(16) == upper:
                        counts[keys[i] & np.uint32(0xFFFF)] += 1
        place = 0
        while left >= counts[place]:
            left -= counts[place]
            place += 1
        if digit == 0:
            upper = np.uint32(place)
        else:
            key = (upper << np.uint32(16)) | np.uint32(place)
            keys[0] = key ^ (np.uint32(0x80000000) if key >> np.uint32(31) else np.uint32(0xFFFFFFFF))
    return np.float32(keys.view(np.float32)[0])


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation in double precision, the same for any number of threads."""
    flat = values.reshape(-1)
    if flat.device.type == "cpu":
        mean, variance = _moments(flat.numpy())
        return float(mean), math.sqrt(variance)
    deviation, centre = torch.std_mean(flat.double(), correction=0)
    return float(centre), float(deviation)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _moments(flat: NDArray[np.float32]) -> tuple[float, float]:  # pragma: no cover - compiled
    """Each run of pixels around its own mean, so that nothing cancels; runs are merged (Chan et al. 1979)."""
    count, mean, squares = 0, 0.0, 0.0
    for first in range(0, flat.size, 4096):
        n = min(4096, flat.size - first)
        total = 0.0
        for i in range(first, first + n):
            total += flat[i]
        own = total / n
        around = 0.0
        for i in range(first, first + n):
            around += (flat[i] - own) ** 2
        step = own - mean
        squares += around + step * step * count * n / (count + n)
        mean += step * n / (count + n)
        count += n
    return mean, squares / count


def robust_spread(values: torch.Tensor) -> tuple[float, float]:
    """Median, and the standard deviation that the median absolute deviation speaks for.

    Where more than half of the values are the same (counts of very few electrons), their absolute
    deviation says nothing, and the ordinary standard deviation stands in.
    """
    flat = values.reshape(-1)
    centre = _middle(flat)
    deviation = _middle(flat, centre)
    if deviation == 0.0:
        return centre, moments(flat)[1]
    return centre, deviation * _MAD_TO_SIGMA


def outliers(image: torch.Tensor, multiple: float, *, plain: bool = False) -> torch.Tensor:
    """Which pixels lie too far from the others; what is not a finite number always does.

    Parameters
    ----------
    image : (y, x) float32
    multiple : float
        Of the standard deviation.
    plain : bool
        Xmipp's way: mean and standard deviation of all pixels, once.

    Returns
    -------
    (n,) int64
        Their places in the flattened image, ascending.

    Raises
    ------
    ItemError
        When no pixel is a finite number.
    """
    flat = image.reshape(-1)
    good = flat if bool(torch.isfinite(flat.sum())) else flat[torch.isfinite(flat)]
    if good.numel() == 0:
        raise ItemError("no pixel of the image is a finite number; make it again")
    if plain:
        centre, sigma = moments(good)
        return _outside(flat, centre, multiple * sigma)
    found = 0
    while True:
        centre, sigma = robust_spread(good)
        bad = _outside(flat, centre, multiple * sigma)
        if len(bad) - found <= _MANY * flat.numel() or len(bad) == flat.numel():
            return bad
        found = len(bad)
        keep = torch.ones(flat.numel(), dtype=torch.bool, device=flat.device)
        keep[bad] = False
        good = flat[keep]


def _outside(flat: torch.Tensor, centre: float, reach: float) -> torch.Tensor:
    low, high = np.float32(centre - reach), np.float32(centre + reach)
    if flat.device.type == "cpu":
        return torch.from_numpy(_places_outside(flat.numpy(), low, high))
    return torch.nonzero(~((flat >= float(low)) & (flat <= float(high)))).reshape(-1)


@numba.njit(nogil=True, cache=True)
def _places_outside(
    flat: NDArray[np.float32], low: np.float32, high: np.float32
) -> NDArray[np.int64]:  # pragma: no cover - compiled
    count = 0
    for i in range(flat.size):
        if not (low <= flat[i] <= high):
            count += 1
    places = np.empty(count, np.int64)
    count = 0
    for i in range(flat.size):
        if not (low <= flat[i] <= high):
            places[count] = i
            count += 1
    return places


def fill(image: torch.Tensor, bad: torch.Tensor) -> None:
    """Put the median of the good neighbours in the place of bad pixels, from the edges of spots inwards.

    No value depends on the order in which pixels are visited, and good pixels stay as they are.

    Parameters
    ----------
    image : (y, x) float32
        Changed in place.
    bad : (n,) int64
        Places in the flattened image, ascending, each once.

    Raises
    ------
    ItemError
        When all pixels are bad.
    """
    if len(bad) == 0:
        return
    if len(bad) == image.numel():
        raise ItemError("all pixels of the image are bad; there is nothing to fill them from")
    good = torch.ones(image.shape, dtype=torch.bool, device=image.device)
    good.view(-1)[bad] = False
    if image.device.type == "cpu":
        _fill_layers(image.numpy(), good.numpy(), bad.numpy().copy())
    else:
        fill_plain(image, good, bad)


@numba.njit(nogil=True, cache=True)
def _median_around(
    image: NDArray[np.float32], good: NDArray[np.bool_], place: int, values: NDArray[np.float32]
) -> float:  # pragma: no cover - compiled
    ny, nx = image.shape
    y, x = place // nx, place % nx
    n = 0
    for j in range(max(0, y - REACH), min(ny, y + REACH + 1)):
        for i in range(max(0, x - REACH), min(nx, x + REACH + 1)):
            if good[j, i]:
                # kept in order while they are collected
                k = n
                v = image[j, i]
                while k > 0 and values[k - 1] > v:
                    values[k] = values[k - 1]
                    k -= 1
                values[k] = v
                n += 1
    if n == 0:
        return np.nan
    if n % 2:
        return float(values[n // 2])
    return 0.5 * float(values[n // 2 - 1] + values[n // 2])


@numba.njit(nogil=True, cache=True)
def _fill_layers(
    image: NDArray[np.float32], good: NDArray[np.bool_], bad: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    nx = image.shape[1]
    values = np.empty((2 * REACH + 1) ** 2, np.float32)
    filled = np.empty(bad.size, np.float32)
    left = bad.size
    while left:
        for n in range(left):
            filled[n] = _median_around(image, good, bad[n], values)
        waiting = 0
        for n in range(left):
            if np.isnan(filled[n]):
                bad[waiting] = bad[n]
                waiting += 1
            else:
                image[bad[n] // nx, bad[n] % nx] = filled[n]
                good[bad[n] // nx, bad[n] % nx] = True
        left = waiting


def fill_plain(image: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> None:
    """What :func:`fill` does, in plain torch; `good` is changed, too."""
    ny, nx = image.shape
    steps = torch.arange(-REACH, REACH + 1, device=image.device)
    dy, dx = (d.reshape(-1) for d in torch.meshgrid(steps, steps, indexing="ij"))
    while len(bad):
        waiting = []
        results = []
        for part in torch.split(bad, 1 << 20):
            y, x = (part // nx)[:, None] + dy, (part % nx)[:, None] + dx
            inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
            y, x = y.clamp(0, ny - 1), x.clamp(0, nx - 1)
            usable = inside & good[y, x]
            ordered = torch.where(usable, image[y, x], torch.inf).sort(dim=1).values
            n = usable.sum(1, keepdim=True)
            lower = ordered.gather(1, ((n - 1) // 2).clamp(min=0))
            upper = ordered.gather(1, (n // 2).clamp(max=ordered.shape[1] - 1))
            some = n[:, 0] > 0
            results.append((part[some], (0.5 * (lower + upper))[some, 0]))
            waiting.append(part[~some])
        for places, values in results:
            image.view(-1)[places] = values
            good.view(-1)[places] = True
        bad = torch.cat(waiting)


def fill_in_raster_order(image: torch.Tensor, bad: torch.Tensor) -> None:
    """As :func:`fill`, but Xmipp's way: a filled pixel counts as good for the next one at once."""
    if len(bad) == image.numel() and len(bad):
        raise ItemError("all pixels of the image are bad; there is nothing to fill them from")
    array = image.cpu()
    places = bad.cpu().numpy()
    good = np.ones(array.shape, dtype=np.bool_)
    good.reshape(-1)[places] = False
    _fill_raster(array.numpy(), good, places)
    image.copy_(array)


@numba.njit(nogil=True, cache=True)
def _fill_raster(
    image: NDArray[np.float32], good: NDArray[np.bool_], bad: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    nx = image.shape[1]
    values = np.empty((2 * REACH + 1) ** 2, np.float32)
    left = True
    while left:
        left = False
        for n in range(bad.size):
            y, x = bad[n] // nx, bad[n] % nx
            if not good[y, x]:
                value = _median_around(image, good, bad[n], values)
                if np.isnan(value):
                    left = True
                else:
                    image[y, x] = value
                    good[y, x] = True

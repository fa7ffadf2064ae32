"""Pixels that count wrongly: finding them in the summed frames, and good neighbours to replace them.

A pixel is judged by what Poisson statistics allow it to differ from its neighbours, not by a multiple
of the picture's standard deviation: that finds hot pixels in dark places and leaves bright features
alone. A feature of the specimen is wider than a pixel, so a hot pixel must also stand out from the
third highest of its eight neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_outliers", "good_neighbours"]

BLOCK = 16
#: Standard deviations from the local mean: chance gives less than one in 10^7 pixels.
SIGNIFICANCE = 5.5
#: From the third highest (lowest) of the eight neighbours.
CONTRAST = 3.5
#: More than this multiple of the local mean is no feature of a specimen, even in a cluster of four.
CLUSTER_RATIO = 3.0

_RING = [(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y, x) != (0, 0)]
_NEAREST = [i for i, (y, x) in enumerate(_RING) if max(abs(y), abs(x)) == 1]


def find_outliers(
    total: NDArray[Any], gain: NDArray[np.float32] | None = None, bad: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hot and dead pixels of summed raw frames.

    Parameters
    ----------
    total : (ny, nx)
        Sum of the raw frames.
    gain : (ny, nx), optional
        Multiplier.
    bad : (ny, nx) bool, optional
        Known defects: neither judged nor asked as neighbours.

    Returns
    -------
    hot, dead : (n,) int64
        Flat indices, sorted.
    """
    corrected = np.empty(total.shape, np.float32)
    if gain is None:
        corrected[...] = total
    else:
        np.multiply(total, gain, out=corrected, dtype=np.float32, casting="unsafe")
    usable = np.ones(total.shape, np.bool_) if bad is None else ~bad
    empty = np.zeros(0, np.int64)
    if min(total.shape) < 5 or not usable.any():
        return empty, empty
    if bad is not None:
        corrected[bad] = 0.0
    hot: list[NDArray[np.int64]] = []
    dead: list[NDArray[np.int64]] = []
    scale: float | None = None
    # what is found first may have hidden its neighbours
    for _ in range(3):
        mean, counts = _block_means(corrected, usable)
        scale = scale or _variance_to_mean(corrected, mean, counts)
        if scale is None:
            break
        h, d = _search(corrected, gain, usable, mean, scale)
        if h.size + d.size == 0:
            break
        hot.append(h)
        dead.append(d)
        for found in (h, d):
            usable.reshape(-1)[found] = False
            corrected.reshape(-1)[found] = 0.0
    return np.sort(np.concatenate([empty, *hot])), np.sort(np.concatenate([empty, *dead]))


def _search(
    corrected: NDArray[np.float32],
    gain: NDArray[np.float32] | None,
    usable: NDArray[np.bool_],
    mean: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    empty = np.zeros(0, np.int64)
    index = _candidates(corrected, mean, scale)
    index = index[usable.reshape(-1)[index]]
    if index.size == 0:
        return empty, empty

    ny, nx = corrected.shape
    y, x = np.divmod(index, nx)
    values = np.full((index.size, len(_RING)), np.nan, np.float32)
    for k, (dy, dx) in enumerate(_RING):
        yy, xx = y + dy, x + dx
        inside = (yy >= 0) & (yy < ny) & (xx >= 0) & (xx < nx)
        inside[inside] = usable[yy[inside], xx[inside]]
        values[inside, k] = corrected[yy[inside], xx[inside]]
    known = np.isfinite(values)
    enough = (known.sum(1) >= 8) & (known[:, _NEAREST].sum(1) >= 3)
    index, y, x, values = index[enough], y[enough], x[enough], values[enough]
    if index.size == 0:
        return empty, empty
    value = corrected.reshape(-1)[index].astype(np.float64)
    local = _trimmed_mean(values)
    size = min(BLOCK, *corrected.shape)
    by = np.minimum(y // size, mean.shape[0] - 1)
    bx = np.minimum(x // size, mean.shape[1] - 1)
    # where next to nothing is counted, the neighbours alone know too little
    reference = np.maximum(local, 0.5 * mean[by, bx])
    # one electron in a pixel of high gain weighs more
    unit = scale * (1.0 if gain is None else gain.reshape(-1)[index] / _typical(gain))

    nearest = np.sort(values[:, _NEAREST], axis=1)
    n_near = np.isfinite(nearest).sum(1)
    rows = np.arange(index.size)
    third_high = np.maximum(nearest[rows, n_near - 3], reference)
    fifth_high = np.maximum(nearest[rows, np.maximum(n_near - 5, 0)], reference)
    third_low = np.minimum(nearest[rows, 2], local)

    stands_out = _deviation(value, third_high, unit) > CONTRAST
    cluster = (value > CLUSTER_RATIO * reference) & (_deviation(value, fifth_high, unit) > CONTRAST)
    hot = (_deviation(value, reference, unit) > SIGNIFICANCE) & (stands_out | cluster)
    dead = (_deviation(value, local, unit) < -SIGNIFICANCE) & (_deviation(value, third_low, unit) < -CONTRAST)
    return index[hot], index[dead]


def _block_means(
    image: NDArray[np.float32], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of blocks of 16 x 16 usable pixels, and how many of them there are; the rest at the last
    rows and columns is left out. Unusable pixels are 0 in ``image``."""
    total, counts = _block_sums(image), _block_sums(usable)
    mean = np.divide(total, counts, out=np.zeros_like(total), where=counts > 0)
    if (counts == 0).any():
        mean[counts == 0] = float(total.sum() / max(counts.sum(), 1.0))
    return mean, counts


def _block_sums(image: NDArray[Any]) -> NDArray[np.float64]:
    size = min(BLOCK, *image.shape)
    ny, nx = image.shape[0] // size, image.shape[1] // size
    kind = np.float32 if image.dtype.kind == "f" else np.uint8
    # rows first, because whole rows are added at the speed of the memory
    rows = image[: ny * size].reshape(ny, size, image.shape[1]).sum(1, dtype=kind)
    return np.asarray(rows[:, : nx * size].reshape(ny, nx, size).sum(2, dtype=np.float64))


def _variance_to_mean(
    image: NDArray[np.float32], mean: NDArray[np.float64], counts: NDArray[np.float64]
) -> float | None:
    """Median over blocks of variance / mean: 1 for counted electrons, else what one electron weighs."""
    size = min(BLOCK, *image.shape)
    ratios = []
    for row in range(0, mean.shape[0], max(1, mean.shape[0] // 12)):
        strip = image[row * size : (row + 1) * size, : mean.shape[1] * size]
        blocks = strip.reshape(size, -1, size).transpose(1, 0, 2).reshape(-1, size * size)
        level = mean[row]
        whole = (counts[row] >= size * size * 0.9) & (level > 0)
        blocks, level = blocks[whole], level[whole]
        if blocks.size:
            # one hot pixel must not make a block noisy: the highest are cut
            top = np.partition(blocks, -3, axis=1)[:, -3]
            ratios.append(np.minimum(blocks, top[:, None]).var(axis=1) / level)
    found = np.concatenate(ratios) if ratios else np.zeros(0)
    if found.size == 0:
        return None
    ratio = float(np.median(found))
    # an image without noise (a constant, a simulation of signal only) has no outliers to speak of
    return ratio if ratio > 1e-6 else None


def _candidates(image: NDArray[np.float32], mean: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """Flat indices of pixels that differ from their block by more than about 4 standard deviations."""
    nx = image.shape[1]
    sigma = np.sqrt(np.maximum(mean, 0.0) * scale)
    # the last term is the skewness of Poisson's law
    size = min(BLOCK, *image.shape)
    high = (mean + 4.0 * sigma + 2.5 * scale).astype(np.float32)
    low = (mean - 4.0 * sigma).astype(np.float32)
    widths = np.full(mean.shape[1], size)
    widths[-1] = nx - size * (mean.shape[1] - 1)
    found = []
    for row in range(mean.shape[0]):
        top = row * size
        bottom = top + size if row < mean.shape[0] - 1 else image.shape[0]
        strip = image[top:bottom]
        wrong = strip > np.repeat(high[row], widths)
        if float(low[row].max()) > 0:
            wrong |= strip < np.repeat(low[row], widths)
        found.append(np.flatnonzero(wrong) + top * nx)
    return np.concatenate(found)


def _trimmed_mean(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of each row without its highest and lowest sixth; NaN are ignored."""
    ordered = np.sort(values, axis=1).astype(np.float64)
    n = np.isfinite(ordered).sum(1)
    cut = n // 6
    place = np.arange(values.shape[1])[None, :]
    keep = (place >= cut[:, None]) & (place < (n - cut)[:, None])
    return np.asarray(np.where(keep, ordered, 0.0).sum(1) / keep.sum(1))


def _deviation(value: NDArray[Any], mean: NDArray[Any], unit: NDArray[Any] | float) -> NDArray[np.float64]:
    """Signed root of the Poisson deviance: standard deviations, right for small counts too."""
    x = np.maximum(np.asarray(value, np.float64) / unit, 0.0)
    m = np.maximum(np.asarray(mean, np.float64) / unit, 1e-3)
    with np.errstate(divide="ignore", invalid="ignore"):
        term = np.where(x > 0, x * np.log(x / m), 0.0)
    return np.asarray(np.sign(x - m) * np.sqrt(np.maximum(2.0 * (m - x + term), 0.0)))


def _typical(gain: NDArray[np.float32]) -> float:
    part = gain[:: max(1, gain.shape[0] // 64)]
    positive = part[part > 0]
    return float(np.median(positive)) if positive.size else 1.0


def good_neighbours(bad: NDArray[np.bool_], count: int = 16) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every bad pixel, near pixels that are good.

    Parameters
    ----------
    bad : (ny, nx) bool
    count : int
        Neighbours for each; repeated where fewer are near.

    Returns
    -------
    pixels : (n,) int64
        Flat indices of the bad pixels.
    neighbours : (n, count) int64
        Flat indices of good ones, nearest first; empty (0, count) if no pixel is good.
    """
    ny, nx = bad.shape
    pixels = np.flatnonzero(bad)
    result = np.zeros((pixels.size, count), np.int64)
    if pixels.size == ny * nx:
        return pixels, np.zeros((0, count), np.int64)
    rng = np.random.default_rng(0)
    left = np.arange(pixels.size)
    radius = 2
    while left.size and radius < 2 * max(ny, nx):
        offsets = _offsets(radius, rng)
        unsolved = []
        for part in np.array_split(left, max(1, left.size * len(offsets) >> 22)):
            y, x = np.divmod(pixels[part], nx)
            yy, xx = y[:, None] + offsets[:, 0], x[:, None] + offsets[:, 1]
            good = (yy >= 0) & (yy < ny) & (xx >= 0) & (xx < nx)
            good[good] = ~bad[yy[good], xx[good]]
            n = np.minimum(good.sum(1), count)
            order = np.argsort(~good, axis=1, kind="stable")[:, :count]
            enough = n >= 4 if radius < max(ny, nx) else n >= 1
            column = np.arange(count)[None, :] % np.maximum(n, 1)[:, None]
            chosen = np.take_along_axis(order, column, 1)[enough]
            line = np.flatnonzero(enough)[:, None]
            result[part[enough]] = yy[line, chosen] * nx + xx[line, chosen]
            unsolved.append(part[~enough])
        left = np.concatenate(unsolved)
        radius *= 3
    if left.size:
        # only in pictures that are almost wholly bad
        result[left] = rng.choice(np.flatnonzero(~bad.reshape(-1)), (left.size, count))
    return pixels, result


def _offsets(radius: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(dy, dx) within a radius, nearest first; at most 160 of them, spread over the disc."""
    if radius <= 6:
        side = np.arange(-radius, radius + 1)
        grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
        grid = grid[np.any(grid != 0, axis=1)]
    else:
        r = radius * np.sqrt(rng.random(160))
        angle = 2 * np.pi * rng.random(160)
        grid = np.stack([r * np.sin(angle), r * np.cos(angle)], -1).round().astype(np.int64)
    return np.asarray(grid[np.argsort((grid**2).sum(1), kind="stable")], np.int64)

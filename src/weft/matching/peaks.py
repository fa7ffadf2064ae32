"""Peaks of score maps: local maxima, those of them that are sharp, and which exclude which."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import generate_binary_structure, white_tophat
from scipy.spatial import cKDTree

from weft.errors import ItemError

__all__ = ["TOPHAT_RANGE", "TopHat", "score_peaks", "suppressed", "tophat_cut_off"]

#: Voxels of a map that are in memory at a time.
_SLAB_VOXELS = 1 << 22
#: Peaks that compete with each other at a time; memory and exactness do not depend on it.
_BLOCK = 20000
_TOPHAT_RESOLUTION = 8192
#: Top-hat values are counted up to this many standard deviations of the scores.
TOPHAT_RANGE = 60.0
_NEIGHBOURS = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]


@dataclass(frozen=True)
class TopHat:
    """A white top-hat filter: what stands out of a map's morphological opening.

    Attributes
    ----------
    connectivity : int
        Of the structuring element: 1 is a voxel and its 6 neighbours, 3 all 26.
    bins : int
        Points of the histogram that the cut-off is extrapolated from.
    false_positives : float
        So many voxels of background may exceed it.
    top : float
        Largest value that is counted.
    """

    connectivity: int
    bins: int
    false_positives: float
    top: float


def _slabs(scores: NDArray[Any], halo: int) -> Iterator[tuple[int, NDArray[np.float32], slice]]:
    """First section of each slab, its scores with the halo around it, and which sections are its own."""
    deep = max(1, _SLAB_VOXELS // max(1, scores.shape[1] * scores.shape[2]))
    for start in range(0, len(scores), deep):
        end = min(len(scores), start + deep)
        first = max(0, start - halo)
        slab = np.array(scores[first : end + halo], np.float32)
        yield start, slab, slice(start - first, end - first)


def score_peaks(
    scores: NDArray[Any],
    theta: float,
    box: list[tuple[int, int]],
    mask: NDArray[Any] | None = None,
    tophat: TopHat | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Local maxima of a score map: voxels that none of their 26 neighbours exceeds.

    Parameters
    ----------
    scores : (z, y, x) array
        It may be a memory map, of which slabs are read; NaN where nothing is known.
    theta : float
        The lowest that counts.
    box : list of (int, int)
        First and end of the voxels that may be maxima, along z, y, x.
    mask : (z, y, x) array, optional
        They are where it is above 0.5.
    tophat : TopHat, optional
        Keep sharp ones only.

    Returns
    -------
    (n,) int64 array, (n,) float32 array
        Flat indices, and scores.

    Raises
    ------
    ItemError
        No score is finite, or the map is too small for the filter.
    """
    footprint = generate_binary_structure(3, tophat.connectivity) if tophat else None
    sharp: list[NDArray[np.float32]] = []
    index: list[NDArray[np.int64]] = []
    value: list[NDArray[np.float32]] = []
    histogram, found = np.zeros(_TOPHAT_RESOLUTION, np.int64), False
    (z0, z1), (y0, y1), (x0, x1) = box
    plane = scores.shape[1] * scores.shape[2]
    for start, slab, own in _slabs(scores, 2 if tophat else 1):
        unknown = ~np.isfinite(slab)
        found = found or not unknown[own].all()
        slab[unknown] = -np.inf if not tophat else min(0.0, theta)
        low, high = max(own.start, own.start + z0 - start), min(own.stop, own.start + z1 - start)
        hats = None
        if tophat is not None:
            hats = white_tophat(slab, footprint=footprint, mode="nearest")
            known = hats[own][~unknown[own]]
            histogram += np.histogram(np.minimum(known, tophat.top), _TOPHAT_RESOLUTION, (0.0, tophat.top))[0]
        if low >= high or y0 >= y1 or x0 >= x1:
            continue
        inner = slab[low:high, y0:y1, x0:x1]
        high_enough = inner >= theta
        for axis in range(3):
            # most fall by their nearest neighbours, which whole arrays tell fastest
            a, b = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            high_enough[a] &= inner[a] >= inner[b]
            high_enough[b] &= inner[b] >= inner[a]
        z, y, x = np.nonzero(high_enough)
        z, y, x = z + low, y + y0, x + x0
        if mask is not None and len(z):
            z, y, x = (c[np.asarray(mask[z - own.start + start, y, x]) > 0.5] for c in (z, y, x))
        for dz, dy, dx in _NEIGHBOURS:
            there = tuple(
                np.clip(c + d, 0, n - 1) for c, d, n in zip((z, y, x), (dz, dy, dx), slab.shape, strict=True)
            )
            best = slab[z, y, x] >= slab[there]
            z, y, x = z[best], y[best], x[best]
        index.append((z - own.start + start) * plane + y * scores.shape[2] + x)
        value.append(slab[z, y, x])
        if hats is not None:
            sharp.append(hats[z, y, x])
    if not found:
        raise ItemError("the score map holds no finite score")
    if not index:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    peaks, values = np.concatenate(index), np.concatenate(value)
    if tophat is not None:
        keep = np.concatenate(sharp) >= tophat_cut_off(histogram, tophat)
        peaks, values = peaks[keep], values[keep]
    return peaks, values


def tophat_cut_off(histogram: NDArray[np.int64], tophat: TopHat) -> float:
    """The top-hat value that as many background voxels as expected false positives exceed.

    The share of voxels above a value t falls for smooth noise nearly as exp(a + b t + c t²); this is fitted
    to the logarithm of that share between the median and its 99th percentile, where true peaks are too few
    to count, and extrapolated.

    Parameters
    ----------
    histogram : (bins,) array
        Of top-hat values from 0 to `tophat.top`.
    tophat : TopHat
    """
    total = int(histogram.sum())
    above = np.append(np.cumsum(histogram[::-1])[::-1], 0)
    edges = np.linspace(0.0, tophat.top, len(histogram) + 1)
    # many voxels are no maximum in any sense and have the value 0: of the others
    positive = above[1]
    if positive < 1000:
        raise ItemError("the score map is too small for a top-hat filter: leave it out")
    first = int(np.searchsorted(-above, -0.5 * positive))
    last = int(np.searchsorted(-above, -0.01 * positive))
    if last - first < 3:
        raise ItemError("the score map's top-hat values are too much alike: leave the filter out")
    points = np.unique(np.linspace(first, last, tophat.bins).round().astype(int))
    t, share = edges[points], np.log(above[points] / total)
    wanted = np.log(min(0.5, tophat.false_positives / total))
    c, b, a = np.polyfit(t, share, 2, w=np.sqrt(above[points].astype(np.float64)))
    if c >= 0.0:
        b, a = np.polyfit(t, share, 1, w=np.sqrt(above[points].astype(np.float64)))
        return float((wanted - a) / b)
    return float((-b - np.sqrt(b * b - 4.0 * c * (a - wanted))) / (2.0 * c))


def suppressed(xyz: ArrayLike, distance: float, number: int | None = None) -> NDArray[np.int64]:
    """Which of a list of places, best first, are left when each excludes all later ones that are nearer.

    Parameters
    ----------
    xyz : (n, 3) array
    distance : float
        In the unit of `xyz`; what is exactly as far stays.
    number : int, optional
        Most that are kept.

    Returns
    -------
    (kept,) array
        Indices, ascending.
    """
    places = np.asarray(xyz, np.float64).reshape(-1, 3)
    radius, kept = distance * (1.0 - 1e-9), np.zeros(0, np.int64)
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        alive = np.ones(len(block), bool)
        if len(kept):
            alive &= cKDTree(places[kept]).query(block, distance_upper_bound=radius)[0] >= radius
        tree, chosen = cKDTree(block), []
        for i in range(len(block)):
            if alive[i]:
                chosen.append(start + i)
                if number is not None and len(kept) + len(chosen) >= number:
                    return np.concatenate([kept, np.array(chosen, np.int64)])
                alive[tree.query_ball_point(block[i], radius)] = False
        kept = np.concatenate([kept, np.array(chosen, np.int64)])
    return kept

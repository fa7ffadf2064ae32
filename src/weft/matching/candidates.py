"""What a search has found: places, orientations and scores.

A score map's background is, far from its centre, as good as Gaussian; of S scores that were looked at
(voxels × rotations × templates) as many as N lie by chance above

    θ = σ √2 erfc⁻¹(2 N / S)

(Chaillet et al. 2023, Int. J. Mol. Sci. 24, 13375, eq. 4). Candidates are taken greedily: the best local
maximum above θ, then the best that is far enough from it, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import generate_binary_structure, white_tophat
from scipy.spatial import cKDTree
from scipy.special import erfcinv

from weft.errors import ItemError
from weft.settings import Settings, setting

__all__ = [
    "CandidateSettings",
    "Candidates",
    "SearchStatistics",
    "cut_off",
    "extract_candidates",
    "false_alarm_threshold",
    "merge_candidates",
    "suppressed",
    "tophat_cut_off",
]

#: Voxels of a map that are in memory at a time.
_SLAB_VOXELS = 1 << 22
#: Peaks that compete with each other at a time; memory and exactness do not depend on it.
_BLOCK = 20000
_TOPHAT_RESOLUTION = 8192
#: Top-hat values are counted up to this many standard deviations.
_TOPHAT_RANGE = 60.0
_NEIGHBOURS = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]


class CandidateSettings(Settings):
    """Which of a search's scores become candidates."""

    number: int = setting(1000, "Most candidates of one tomogram.", ge=1, le=10_000_000)
    false_positives: float = setting(
        1.0,
        "So many candidates may lie above the cut-off by chance, in one tomogram; it decides the cut-off.",
        gt=0.0,
        le=1e9,
    )
    cut_off: float = setting(
        0.0, "Lowest score of a candidate; 0 has it follow from the expected false positives.", ge=0.0, le=1.0
    )
    particle_diameter: float = setting(
        0.0, "Of the particle; 0 is what the search was told.", unit="Å", ge=0.0, le=100000.0
    )
    distance: float = setting(
        0.5, "Smallest distance between two candidates, in particle diameters.", gt=0.0, le=10.0
    )
    margin: float = setting(
        0.5, "Smallest distance from the faces of the tomogram, in particle diameters.", ge=0.0, le=10.0
    )
    tophat: bool = setting(
        False,
        "Keep only sharp peaks, as particles make them and membranes and gold do not: those that stand out "
        "of the score map's morphological opening (white top-hat).",
    )
    tophat_connectivity: int = setting(
        1, "Of the top-hat's structuring element: 1 is a voxel and its 6 neighbours, 3 all 26.", ge=1, le=3
    )
    tophat_bins: int = setting(
        50, "Points of the top-hat's histogram that its own cut-off is extrapolated from.", ge=10, le=1000
    )


@dataclass(frozen=True)
class SearchStatistics:
    """Of all scores that a search has looked at, maxima or not.

    Attributes
    ----------
    search_space : int
        Voxels times rotations times templates.
    mean, std : float
    """

    search_space: int
    mean: float
    std: float


@dataclass(frozen=True)
class Candidates:
    """Places where a template may be, best first.

    Attributes
    ----------
    xyz : (n, 3) float64
        Å from the centre of the full volume's first voxel.
    euler : (n, 3) float64
        rot, tilt, psi, degrees: M(rot, tilt, psi) takes coordinates of the template to those of the tomogram.
    score : (n,) float64
        The correlation, LCC_max.
    template : (n,) int64
        Which of the competing templates it is.
    """

    xyz: NDArray[np.float64]
    euler: NDArray[np.float64]
    score: NDArray[np.float64]
    template: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)

    def select(self, which: ArrayLike) -> Candidates:
        """Some of them: by indices, in their order, or by a mask."""
        chosen = np.arange(len(self))[np.asarray(which)]
        return Candidates(self.xyz[chosen], self.euler[chosen], self.score[chosen], self.template[chosen])


def false_alarm_threshold(sigma: float, search_space: float, false_positives: float = 1.0) -> float:
    """The score above which so many of all that a search looked at lie by chance.

    Parameters
    ----------
    sigma : float
        Standard deviation of all scores.
    search_space : float
        Their number.
    false_positives : float
        How many may lie above it.

    Raises
    ------
    ValueError
        Unless 0 < false_positives < search_space.
    """
    if not 0.0 < false_positives < search_space:
        raise ValueError(f"{false_positives:g} false positives of {search_space:g} scores are not possible")
    return float(sigma * np.sqrt(2.0) * erfcinv(2.0 * false_positives / search_space))


def cut_off(statistics: SearchStatistics, settings: CandidateSettings) -> float:
    """The lowest score of a candidate: as set, or from the false positives that are expected."""
    if settings.cut_off > 0.0:
        return settings.cut_off
    if not statistics.std > 0.0:
        raise ItemError("the search's scores have no standard deviation: give a cut-off")
    theta = false_alarm_threshold(statistics.std, statistics.search_space, settings.false_positives)
    return statistics.mean + theta


def extract_candidates(
    scores: ArrayLike,
    angles: ArrayLike,
    rotations: ArrayLike,
    *,
    voxel_size: float,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    statistics: SearchStatistics,
    settings: CandidateSettings | None = None,
    diameter: float = 0.0,
    volume_size: Sequence[float] | None = None,
    mask: ArrayLike | None = None,
    template: ArrayLike | None = None,
) -> Candidates:
    """Take candidates from the maps of a search.

    A candidate is a voxel whose score is not below its 26 neighbours' and not below the cut-off.

    Parameters
    ----------
    scores : (z, y, x) array
        Best score of each voxel; it may be a memory map, of which slabs are read. NaN where nothing was
        searched.
    angles : (z, y, x) array
        Which of the rotations it belongs to.
    rotations : (n, 3) array
        rot, tilt, psi, degrees.
    voxel_size : float
        Å.
    origin : (3,)
        x, y, z, Å: the first voxel from that of the full volume.
    statistics : SearchStatistics
    settings : CandidateSettings, optional
    diameter : float
        Å, of the particle, where the settings do not say it.
    volume_size : (3,), optional
        x, y, z, Å, of the full volume, from whose faces the margin is counted; by default the map's.
    mask : (z, y, x) array, optional
        Candidates are taken where it is above 0.5.
    template : (z, y, x) array, optional
        Which of the templates each score is of; 0 without.

    Raises
    ------
    ItemError
        Maps of unequal size, no finite score, an angle that the rotations do not have, no diameter.
    """
    settings = settings or CandidateSettings()
    maps = {"scores": _array(scores), "angles": _array(angles)}
    maps |= {name: _array(m) for name, m in (("mask", mask), ("templates", template)) if m is not None}
    shape = maps["scores"].shape
    for name, values in maps.items():
        if values.ndim != 3 or values.shape != shape:
            raise ItemError(
                f"the map of {name} has the shape {values.shape}, that of scores {shape} (z, y, x)"
            )
    across = settings.particle_diameter or diameter
    if not across > 0.0:
        raise ItemError("the particle's diameter is not known: give particle_diameter")
    theta = cut_off(statistics, settings)
    box = _inside(shape, voxel_size, origin, volume_size, settings.margin * across)
    top = _TOPHAT_RANGE * statistics.std if statistics.std > 0.0 else 1.0
    peaks, values = _peaks(maps["scores"], theta, box, maps.get("mask"), settings, top)
    order = np.lexsort((peaks, -values))
    peaks, values = peaks[order], values[order]
    zyx = np.stack(np.unravel_index(peaks, shape), axis=1)
    xyz = zyx[:, ::-1] * voxel_size + np.asarray(origin, np.float64)
    kept = suppressed(xyz, settings.distance * across, settings.number)
    z, y, x = zyx[kept].T
    which = np.rint(np.asarray(maps["angles"][z, y, x], np.float64)).astype(np.int64)
    table = np.asarray(_array(rotations), np.float64)
    if len(which) and (which.min() < 0 or which.max() >= len(table)):
        raise ItemError(
            f"the angle map names rotation {int(which.max())}, but there are {len(table)}: "
            "the maps and the rotations are of different searches"
        )
    of = maps["templates"][z, y, x] if "templates" in maps else np.zeros(len(kept))
    return Candidates(
        np.asarray(xyz[kept], np.float64),
        table[which],
        values[kept].astype(np.float64),
        np.rint(of).astype(np.int64),
    )


def _array(values: Any) -> NDArray[Any]:
    """A tensor as the array it lies in; memory maps stay what they are."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return values if isinstance(values, np.ndarray) else np.asarray(values)


def _inside(
    shape: Sequence[int],
    voxel_size: float,
    origin: Sequence[float],
    volume_size: Sequence[float] | None,
    margin: float,
) -> list[tuple[int, int]]:
    """First and end of the voxels, z, y, x, that are as far from the volume's faces."""
    box = []
    for axis, n in enumerate(shape):
        start = origin[2 - axis] if volume_size is not None else 0.0
        size = volume_size[2 - axis] if volume_size is not None else n * voxel_size
        low = int(np.ceil((margin - start) / voxel_size - 1e-6))
        high = int(np.floor((size - voxel_size - margin - start) / voxel_size + 1e-6))
        box.append((max(0, low), min(n, high + 1)))
    return box


def _slabs(scores: NDArray[Any], halo: int) -> Iterator[tuple[int, NDArray[np.float32], slice]]:
    """First section of each slab, its scores with the halo around it, and which sections are its own."""
    deep = max(1, _SLAB_VOXELS // max(1, scores.shape[1] * scores.shape[2]))
    for start in range(0, len(scores), deep):
        end = min(len(scores), start + deep)
        first = max(0, start - halo)
        slab = np.array(scores[first : end + halo], np.float32)
        yield start, slab, slice(start - first, end - first)


def _peaks(
    scores: NDArray[Any],
    theta: float,
    box: list[tuple[int, int]],
    mask: NDArray[Any] | None,
    settings: CandidateSettings,
    top: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices and scores of local maxima from the cut-off up."""
    footprint = generate_binary_structure(3, settings.tophat_connectivity)
    sharp: list[NDArray[np.float32]] = []
    index: list[NDArray[np.int64]] = []
    value: list[NDArray[np.float32]] = []
    histogram, found = np.zeros(_TOPHAT_RESOLUTION, np.int64), False
    (z0, z1), (y0, y1), (x0, x1) = box
    plane = scores.shape[1] * scores.shape[2]
    for start, slab, own in _slabs(scores, 2 if settings.tophat else 1):
        unknown = ~np.isfinite(slab)
        found = found or not unknown[own].all()
        slab[unknown] = -np.inf if not settings.tophat else min(0.0, theta)
        low, high = max(own.start, own.start + z0 - start), min(own.stop, own.start + z1 - start)
        hats = None
        if settings.tophat:
            hats = white_tophat(slab, footprint=footprint, mode="nearest")
            known = hats[own][~unknown[own]]
            histogram += np.histogram(np.minimum(known, top), _TOPHAT_RESOLUTION, (0.0, top))[0]
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
    if settings.tophat:
        keep = np.concatenate(sharp) >= tophat_cut_off(histogram, top, settings)
        peaks, values = peaks[keep], values[keep]
    return peaks, values


def tophat_cut_off(histogram: NDArray[np.int64], top: float, settings: CandidateSettings) -> float:
    """The top-hat value that as many background voxels as expected false positives exceed.

    The share of voxels above a value t falls for smooth noise nearly as exp(a + b t + c t²); this is fitted
    to the logarithm of that share between the median and its 99th percentile, where true peaks are too few
    to count, and extrapolated.

    Parameters
    ----------
    histogram : (bins,) array
        Of top-hat values from 0 to `top`.
    """
    total = int(histogram.sum())
    above = np.append(np.cumsum(histogram[::-1])[::-1], 0)
    edges = np.linspace(0.0, top, len(histogram) + 1)
    # many voxels are no maximum in any sense and have the value 0: of the others
    positive = above[1]
    if positive < 1000:
        raise ItemError("the score map is too small for a top-hat filter: leave it out")
    first = int(np.searchsorted(-above, -0.5 * positive))
    last = int(np.searchsorted(-above, -0.01 * positive))
    if last - first < 3:
        raise ItemError("the score map's top-hat values are too much alike: leave the filter out")
    points = np.unique(np.linspace(first, last, settings.tophat_bins).round().astype(int))
    t, share = edges[points], np.log(above[points] / total)
    wanted = np.log(min(0.5, settings.false_positives / total))
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


def merge_candidates(parts: Sequence[Candidates], distance: float) -> Candidates:
    """One list of several of the same tomogram; of two nearer than `distance` (Å) the better stays.

    A candidate's template stays the number that it has in its own list.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    joined = Candidates(
        np.concatenate([part.xyz for part in parts]),
        np.concatenate([part.euler for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.template for part in parts]),
    )
    ranked = joined.select(np.argsort(-joined.score, kind="stable"))
    return ranked.select(suppressed(ranked.xyz, distance))

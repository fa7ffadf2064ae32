"""What a search has found: places, orientations and scores.

A score map's background is, far from its centre, as good as Gaussian; of S scores that were looked at
(voxels × rotations × templates) as many as N lie by chance above

    θ = σ √2 erfc⁻¹(2 N / S)

(Chaillet et al. 2023, Int. J. Mol. Sci. 24, 13375, eq. 4). Candidates are taken greedily: the best local
maximum above θ, then the best that is far enough from it, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfcinv

from weft.errors import ItemError
from weft.matching.peaks import TOPHAT_RANGE, TopHat, score_peaks, suppressed
from weft.settings import Settings, setting

__all__ = [
    "CandidateSettings",
    "Candidates",
    "SearchStatistics",
    "cut_off",
    "extract_candidates",
    "false_alarm_threshold",
    "merge_candidates",
]


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
    false_discoveries: float = setting(
        0.0,
        "Raise that cut-off until no more than this part of the candidates are estimated to be wrong: where "
        "streaks and edges score above noise; 0 does not.",
        ge=0.0,
        le=0.5,
    )
    particle_diameter: float = setting(
        0.0, "Of the particle; 0 is what the search was told.", unit="Å", ge=0.0, le=100000.0
    )
    separation: float = setting(
        0.5, "Smallest distance between two candidates, in particle diameters.", gt=0.0, le=10.0
    )
    margin: float = setting(
        0.5, "Smallest distance from the faces of the tomogram, in particle diameters.", ge=0.0, le=10.0
    )
    beads: bool = setting(True, "Leave out what lies on gold beads that the alignment has followed.")
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
    tophat = None
    if settings.tophat:
        top = TOPHAT_RANGE * statistics.std if statistics.std > 0.0 else 1.0
        tophat = TopHat(settings.tophat_connectivity, settings.tophat_bins, settings.false_positives, top)
    peaks, values = score_peaks(maps["scores"], theta, box, maps.get("mask"), tophat)
    order = np.lexsort((peaks, -values))
    peaks, values = peaks[order], values[order]
    zyx = np.stack(np.unravel_index(peaks, shape), axis=1)
    xyz = zyx[:, ::-1] * voxel_size + np.asarray(origin, np.float64)
    kept = suppressed(xyz, settings.separation * across, settings.number)
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

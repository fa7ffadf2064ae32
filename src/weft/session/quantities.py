"""What micrographs are judged by: metrics as people name them, in the units of screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "QUANTITIES",
    "Metrics",
    "Quantity",
    "astigmatism_vectors",
    "shown_values",
    "values_of",
    "vector_spread",
]

#: Items and their metrics, as records hold them.
Metrics = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Quantity:
    """A metric as people name it.

    Attributes
    ----------
    metric : str
        Its name in records.
    unit : str
        Of screens.
    scale : float
        From the record's unit to that of screens.
    label : str
        A few words, for axes.
    description : str
        One line, for help.
    among_all : bool
        Whether it depends on the other items, too: take it from `shown_values`.
    """

    metric: str
    unit: str
    scale: float
    label: str
    description: str
    among_all: bool = False


#: What can be filtered by, in the order of screens.
QUANTITIES: Mapping[str, Quantity] = {
    "defocus": Quantity("defocus", "µm", 1e-4, "Defocus", "Mean defocus"),
    "astigmatism": Quantity("astigmatism", "µm", 1e-4, "Astigmatism", "Astigmatism (defocus_u − defocus_v)"),
    "astigmatism_sigma": Quantity(
        "astigmatism",
        "σ",
        1.0,
        "Astigmatism, from the mean",
        "Distance of the astigmatism, as a vector, from the mean of all items, in their standard deviation",
        among_all=True,
    ),
    "phase": Quantity("phase_shift", "°", 1.0, "Phase shift", "Phase shift"),
    "resolution": Quantity("resolution", "Å", 1.0, "Resolution", "Resolution to which the CTF fits"),
    "score": Quantity("ctf_score", "", 1.0, "CTF score", "Correlation of the power spectrum with the CTF"),
    "evidence": Quantity("ctf_evidence", "", 1.0, "CTF evidence", "Evidence for rings; none below 25"),
    "tilt": Quantity("tilt", "°", 1.0, "Tilt", "Tilt of the plane of defocus"),
    "ice": Quantity("ice_ring", "", 1.0, "Ice ring", "Density of the ice ring"),
    "motion": Quantity("motion_total", "Å", 1.0, "Motion", "Accumulated motion"),
    "early_motion": Quantity(
        "motion_early", "Å", 1.0, "Early motion", "Accumulated motion in the first 4 e/Å²"
    ),
    "contrast": Quantity(
        "contrast", "%", 100.0, "Contrast", "Standard deviation from 20 to 500 Å, of the mean"
    ),
    "masked": Quantity("masked", "%", 100.0, "Masked", "Part of the image that is masked"),
    "particles": Quantity("particles", "", 1.0, "Particles", "Number of picked particles"),
    "artefacts": Quantity(
        "artefacts", "%", 100.0, "Artefacts", "Part of the field with other things than ice and particles"
    ),
    "frames": Quantity("frames", "", 1.0, "Frames", "Number of frames"),
}


def _column(rows: Sequence[Mapping[str, Any]], metric: str) -> NDArray[np.float64]:
    """One metric of all items; NaN where it is not a number."""
    values = [row.get(metric) for row in rows]
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)


def _vectors(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    size = _column(rows, "astigmatism") * QUANTITIES["astigmatism"].scale
    angle = np.deg2rad(2.0 * _column(rows, "astigmatism_angle"))
    return np.stack([size * np.cos(angle), size * np.sin(angle)], -1)


def astigmatism_vectors(metrics: Metrics) -> NDArray[np.float64]:
    """Astigmatism as (a·cos 2θ, a·sin 2θ), (items, 2), µm; NaN where it was not measured.

    Directions that differ by 180° are the same, so the angle is doubled: vectors can be averaged.
    """
    return _vectors(list(metrics.values()))


def vector_spread(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centre of a cloud of vectors, and the standard deviation of the distance from it.

    Both leave outliers out: the centre is the mean of what lies within three deviations of the median, the
    deviation is made from the median distance, as for a round normal cloud. Without outliers they are
    Warp's mean, and its root of the mean squared distance.

    Parameters
    ----------
    vectors : (n, 2)
        NaN are left out.

    Returns
    -------
    centre : (2,)
    deviation : float
        0 for fewer than two vectors.
    """
    known = vectors[np.isfinite(vectors).all(-1)]
    if not len(known):
        return np.zeros(2), 0.0
    centre = np.median(known, axis=0)
    for _ in range(2):
        distance = np.linalg.norm(known - centre, axis=1)
        # of a round normal cloud: the median distance is sqrt(2 ln 2) σ, its mean square 2 σ²
        deviation = float(np.median(distance)) / np.sqrt(np.log(2.0))
        centre = known[distance <= 3.0 * deviation].mean(0) if deviation > 0 else centre
    distance = np.linalg.norm(known - centre, axis=1)
    return centre, float(np.median(distance) / np.sqrt(np.log(2.0)))


#: µm; what is nearer than this to the mean astigmatism is at it, however little the others scatter.
_SAME = 1e-4


def values_of(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """As `shown_values`, of metrics without the names of their items."""
    quantity = QUANTITIES[name]
    if not quantity.among_all:
        return _column(rows, quantity.metric) * quantity.scale
    vectors = _vectors(rows)
    centre, deviation = vector_spread(vectors)
    out: NDArray[np.float64] = np.linalg.norm(vectors - centre, axis=1) / max(deviation, _SAME)
    return out


def shown_values(metrics: Metrics, quantity: str) -> NDArray[np.float64]:
    """A quantity of all items in the unit of screens; NaN where it was not measured."""
    return values_of(list(metrics.values()), quantity)

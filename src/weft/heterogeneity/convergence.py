"""Has a training come to rest? What still changes between the epochs that were kept.

A latent space may turn, stretch and mirror while it means the same, so that epochs are compared after the
closest similarity (orthogonal Procrustes: Schönemann 1966, Psychometrika 31, 1), by who is whose neighbour,
and by the clusters they give; volumes by correlation and Fourier shell correlation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from weft.heterogeneity.clusters import adjusted_rand_index, k_means
from weft.heterogeneity.neighbours import nearest
from weft.particles.fsc import crossing, shell_correlation

__all__ = [
    "LossTrend",
    "Movement",
    "VolumeAgreement",
    "aligned",
    "latent_movement",
    "loss_trend",
    "volume_agreement",
]

Array = NDArray[np.float64]

#: Part of a training over which its end is judged, and the fewest epochs for that.
_END = 0.2
_FEWEST = 4
#: Particles whose neighbours are compared.
_COMPARED = 5000


@dataclass(frozen=True)
class Movement:
    """What changed in the latent space from one kept epoch to the next.

    Attributes
    ----------
    before, after : int
        Epochs.
    moved : float
        Root mean square distance that particles moved, after alignment, in units of the spread.
    neighbours : float
        Part of every particle's nearest neighbours that it keeps.
    chance : float
        The same for neighbours drawn at random.
    agreement : float
        Adjusted Rand index of the clusters of both; NaN without clusters.
    """

    before: int
    after: int
    moved: float
    neighbours: float
    chance: float
    agreement: float


@dataclass(frozen=True)
class VolumeAgreement:
    """How alike volumes of the same particle are in two epochs.

    Attributes
    ----------
    before, after : int
        Epochs.
    correlation : float
        Under the mask.
    resolution : float
        Å, where the Fourier shell correlation falls below 0.5; infinite where it is nowhere above.
    """

    before: int
    after: int
    correlation: float
    resolution: float


@dataclass(frozen=True)
class LossTrend:
    """The end of a training.

    Attributes
    ----------
    fallen : float
        By how much the loss fell since the first epoch.
    recent : float
        Which part of that was in the last fifth of the epochs, along a straight line through them; negative
        where it rose.
    certain : bool
        The slope is more than twice its standard error.
    rising : bool
        The loss of the validation particles rose in that time, more than twice its standard error, and the
        others' did not.
    epochs : int
        In the last fifth.
    """

    fallen: float
    recent: float
    certain: bool
    rising: bool
    epochs: int


def aligned(moving: Array, fixed: Array) -> Array:
    """Points after the shift, turn or mirror, and scale that bring them closest to others.

    Parameters
    ----------
    moving, fixed : (n, d)

    Returns
    -------
    (n, d)
    """
    a, b = moving - moving.mean(0), fixed - fixed.mean(0)
    size = float((a**2).sum())
    if size == 0.0:
        return np.broadcast_to(fixed.mean(0), fixed.shape).copy()
    turn, stretch = orthogonal_procrustes(a, b)
    return np.asarray(a @ turn * (stretch / size) + fixed.mean(0))


def latent_movement(
    before: Array, after: Array, epochs: tuple[int, int], clusters: int = 1, *, seed: int = 0
) -> Movement:
    """Compare the latent coordinates of two epochs.

    Parameters
    ----------
    before, after : (n, d)
        Of the same particles.
    epochs : (int, int)
    clusters : int
        Found in the last epoch; 1 is none.
    seed : int
    """
    n = len(after)
    spread = float(np.sqrt(((after - after.mean(0)) ** 2).sum(1).mean()))
    rest = float(np.sqrt(((aligned(before, after) - after) ** 2).sum(1).mean()))
    moved = rest / spread if spread > 0.0 else 0.0
    some = np.arange(n) if n <= _COMPARED else np.random.default_rng(seed).choice(n, _COMPARED, replace=False)
    count = min(max(1, min(20, round(0.05 * len(some)))), len(some) - 1)
    kept, chance = float("nan"), float("nan")
    if count > 0:
        one, two = nearest(before[some], count)[1], nearest(after[some], count)[1]
        kept = float((one[:, :, None] == two[:, None, :]).any(2).mean())
        chance = count / (len(some) - 1)
    agreement = float("nan")
    if clusters > 1:
        first, second = (k_means(points, clusters, seed=seed).label for points in (before, after))
        agreement = adjusted_rand_index(first, second)
    return Movement(*epochs, moved, kept, chance, agreement)


def volume_agreement(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    epochs: tuple[int, int],
    pixel_size: float,
    mask: NDArray[np.float32],
) -> VolumeAgreement:
    """Compare volumes of two epochs.

    Parameters
    ----------
    before, after : (n, n, n) float32
    epochs : (int, int)
    pixel_size : float
        Å.
    mask : (n, n, n) float32
        Soft; its own shape counts as common signal, so it should be wide.
    """
    inside = mask > 0.5
    a, b = before[inside] - before[inside].mean(), after[inside] - after[inside].mean()
    size = float(np.sqrt((a.astype(np.float64) ** 2).sum() * (b.astype(np.float64) ** 2).sum()))
    correlation = float((a.astype(np.float64) * b).sum()) / size if size > 0.0 else 0.0
    curve = shell_correlation(torch.from_numpy(before * mask), torch.from_numpy(after * mask))
    k = torch.arange(len(curve), dtype=torch.float64) / (len(before) * pixel_size)
    return VolumeAgreement(*epochs, correlation, crossing(k, curve, 0.5))


def loss_trend(history: Sequence[Mapping[str, Any]]) -> LossTrend | None:
    """What the loss did towards the end.

    Parameters
    ----------
    history : sequence of dict
        One an epoch: ``reconstruction`` (or ``loss``), and ``validation`` where there is one.

    Returns
    -------
    LossTrend or None
        None for a training too short to tell.
    """
    values = _column(history, "reconstruction")
    if np.isnan(values).any():
        values = _column(history, "loss")
    epochs = max(_FEWEST, round(_END * len(values)))
    if len(values) < epochs + 2 or not np.isfinite(values).all():
        return None
    slope, error = _slope(values[-epochs:])
    fallen = float(values[0] - values[-epochs:].mean())
    recent = -slope * epochs / fallen if fallen > 0.0 else 0.0
    checked = _column(history, "validation")[-epochs:]
    rising = False
    if np.isfinite(checked).all():
        up, doubt = _slope(checked)
        rising = up > 2.0 * doubt and slope <= 0.0
    return LossTrend(fallen, recent, abs(slope) > 2.0 * error, rising, epochs)


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Array:
    found = [line.get(name) for line in history]
    return np.array([np.nan if value is None else float(value) for value in found], np.float64)


def _slope(values: Array) -> tuple[float, float]:
    """Of a straight line, with its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2.0
    slope = float(x @ values / (x @ x))
    rest = values - values.mean() - slope * x
    return slope, float(np.sqrt((rest @ rest) / max(len(values) - 2, 1) / (x @ x)))

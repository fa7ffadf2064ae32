"""How likely candidates are to be particles, and the threshold that follows.

What a network calls probable depends on the micrographs that it was taught with: in one that shows less
than most of them, true particles get small values, and so does the noise of one that shows more. Two things
tell them apart. One is how the best candidates of the same micrograph fare. The other is a decoy: an image
with the power spectrum of the micrograph but random phases has its noise and none of its particles, so
whatever the network finds there is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics import fourier

__all__ = ["Chances", "Peaks", "best_threshold", "decoy", "fit_chances"]

_Array = NDArray[np.float64]

#: Standard deviations beyond which a pixel tells nothing about the noise.
_OUTLIER = 5.0
#: Of the logarithm of how many more candidates there are than in the decoy.
_EXCESS = (-2.0, 3.0)
_EDGE = 1e-3


@dataclass(frozen=True)
class Peaks:
    """Candidates of one micrograph.

    Attributes
    ----------
    values : (n,) array
        The greatest probability of each candidate's pixels.
    decoys : (m,) array
        The same of what was found in the decoy.
    share : float
        Area of the decoy as a part of the micrograph's.
    """

    values: _Array
    decoys: _Array
    share: float

    def features(self) -> _Array:
        """(n, 4): 1, how probable, how probable the best tenth is, how many more than in the decoy."""
        if not len(self.values):
            return np.zeros((0, 4))
        top = float(np.quantile(self.values, 0.9))
        # as many or more, here and there
        here = len(self.values) - np.searchsorted(np.sort(self.values), self.values)
        there = len(self.decoys) - np.searchsorted(np.sort(self.decoys), self.values)
        excess = np.log((here * self.share + 0.5) / (there + 0.5)).clip(*_EXCESS)
        one = np.ones(len(self.values))
        return np.stack([one, _logit(self.values), one * _logit(np.array([top])), excess], axis=1)


@dataclass(frozen=True)
class Chances:
    """A logistic regression on :meth:`Peaks.features`.

    Attributes
    ----------
    coefficients : (float, float, float, float)
    """

    coefficients: tuple[float, ...]

    def of(self, peaks: Peaks) -> _Array:
        """(n,): that each candidate is a particle; never less for one that is more probable."""
        chance = 1.0 / (1.0 + np.exp(-peaks.features() @ np.array(self.coefficients)))
        order = np.argsort(peaks.values, kind="stable")
        chance[order] = np.maximum.accumulate(chance[order])
        return np.asarray(chance, dtype=np.float64)


def fit_chances(peaks: list[Peaks], right: list[NDArray[np.bool_]], rounds: int = 50) -> Chances:
    """Learn from candidates of which it is known whether they are particles.

    Every micrograph counts the same, however many candidates it has. Newton's method; a small penalty keeps
    coefficients finite where everything can be told apart.
    """
    rows = np.concatenate([p.features() for p in peaks])
    truth = np.concatenate(right).astype(np.float64)
    weight = np.concatenate([np.full(len(r), 1.0 / max(1, len(r))) for r in right])
    penalty = 1e-3 * np.diag([0.0, 1.0, 1.0, 1.0])
    beta = np.zeros(rows.shape[1])
    for _ in range(rounds):
        chance = 1.0 / (1.0 + np.exp(-rows @ beta))
        slope = rows.T @ (weight * (truth - chance)) - penalty @ beta
        curvature = (rows * (weight * chance * (1.0 - chance))[:, None]).T @ rows + penalty + 1e-9 * np.eye(4)
        step = np.linalg.solve(curvature, slope)
        beta += step * min(1.0, 5.0 / max(1e-9, float(np.abs(step).max())))
    return Chances(tuple(round(float(b), 4) for b in beta))


def decoy(image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """An image ``(y, x)`` with the power spectrum of another one, and random phases."""
    generator = torch.Generator().manual_seed(seed)
    size = (image.shape[0], image.shape[1])
    noise = fourier.rfft2(torch.randn(size, generator=generator))
    noise = (noise / noise.abs().clamp(min=1e-12)).to(image.device)
    spectrum = fourier.rfft2(image.clamp(-_OUTLIER, _OUTLIER))
    return fourier.irfft2(spectrum.abs() * noise, size)


def best_threshold(values: _Array, chances: _Array, least: float) -> float:
    """The threshold at which picks are expected to have the greatest F1.

    Of candidates whose chances to be particles are q, those above a threshold are picked: F1 is expected to
    be 2 Σ q (picked) / (number picked + Σ q (all)). It is greatest where the last one that is picked has
    half of that as its chance, so a weak micrograph gets a lower threshold than a clear one.

    Parameters
    ----------
    values : (n,) array
        Greatest probability of each candidate's pixels.
    chances : (n,) array
        That it is a particle.
    least : float
        Candidates that are less likely than this to be particles are never picked.

    Returns
    -------
    float
        1 where there is nothing to pick.
    """
    order = np.argsort(-values, kind="stable")
    values, chances = values[order], chances[order]
    likely = int((chances >= least).sum())
    if not likely:
        return 1.0
    expected = 2.0 * np.cumsum(chances) / (np.arange(1, len(values) + 1) + chances.sum())
    best = int(np.argmax(expected[:likely]))
    # between the last one that is picked and the next
    below = values[best + 1] if best + 1 < len(values) else 0.9 * values[best]
    return float(0.5 * (values[best] + below))


def _logit(p: _Array) -> _Array:
    p = np.clip(p, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(p / (1.0 - p)), dtype=np.float64)

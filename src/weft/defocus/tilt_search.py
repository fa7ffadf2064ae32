"""Exhaustive search for the defocus of every tilt.

The log-likelihood is linear in the power, so for all patches and defoci of a tilt it is one matrix
product; patches are then added up with the offsets of defocus that the geometry gives them. The
average defocus of the series comes first, from all tilts together (the paper, "Contrast transfer function
estimation in tilt series"); each tilt's own is then sought in its own profile, with a prior around the
series' median that lets single tilts be far away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.likelihood import TEXTURE
from weft.defocus.tilt_model import TiltCurves, ring_contrast
from weft.defocus.tilt_spectra import TiltSpectra
from weft.physics.ctf import ctf_phase
from weft.physics.optics import Optics

__all__ = ["Found", "SeriesPrior", "profiles", "search"]

FINEST = 8.0  # Å: rings of higher frequency are left to the fit
STEPS = 15.0  # of the search in the defocus that turns 2χ once at the highest frequency
FREEDOM = 3.0  # degrees of freedom of the prior (Student's t): tilts far off are rare but there
SCATTER = (400.0, 4000.0)  # Å: least and greatest scatter of a series' defoci that is believed
WIDE = 2500.0  # Å: scatter supposed at first


@dataclass(frozen=True)
class SeriesPrior:
    """What the series says about the defocus of a tilt: Student's t around `centre`."""

    centre: float
    scatter: float

    def log(self, defocus: NDArray[np.float64]) -> NDArray[np.float64]:
        t = (defocus - self.centre) / self.scatter
        return np.asarray(-0.5 * (FREEDOM + 1.0) * np.log1p(t * t / FREEDOM))

    def pull(self, defocus: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivative of the logarithm, and an inverse variance that bounds its curvature."""
        off = defocus - self.centre
        precision = (FREEDOM + 1.0) / (FREEDOM * self.scatter**2 + off**2)
        return np.asarray(-precision * off), np.asarray(precision)

    @classmethod
    def of(cls, defocus: NDArray[np.float64]) -> SeriesPrior:
        """From the defoci found: their median, and their median absolute deviation."""
        centre = float(np.median(defocus))
        spread = 1.4826 * float(np.median(np.abs(defocus - centre)))
        return cls(centre, min(max(spread, SCATTER[0]), SCATTER[1]))


@dataclass(frozen=True)
class Found:
    """Where a fit shall start.

    Attributes
    ----------
    defocus : (tilts,) float64
        Å.
    phase : float
        Radians.
    prior : SeriesPrior
    grid : (n,) float64
        Defoci searched, Å.
    profile : (tilts, n) float64
        Log-likelihood gained by rings of each defocus.
    score : float
        Of all tilts together at their defoci, log-likelihood.
    """

    defocus: NDArray[np.float64]
    phase: float
    prior: SeriesPrior
    grid: NDArray[np.float64]
    profile: NDArray[np.float64]
    score: float


def profiles(
    spectra: TiltSpectra,
    optics: Optics,
    curves: TiltCurves,
    offsets: NDArray[np.float64],
    grid: NDArray[np.float64],
    phase: float = 0.0,
) -> NDArray[np.float64]:
    """Log-likelihood gained by rings, for every tilt and defocus of its volume's centre.

    Parameters
    ----------
    offsets : (sets, tilts, patches) array
        Of the patches' defocus to the tilt's, Å; each set is one supposition (two hands, for example).
    grid : (n,) array
        Defoci, Å, evenly spaced.

    Returns
    -------
    (sets, tilts, n) array
    """
    step = float(grid[1] - grid[0])
    margin = math.ceil(float(np.abs(offsets).max()) / step) + 2
    wide = grid[0] + step * np.arange(-margin, len(grid) + margin)
    k = torch.as_tensor(spectra.k)
    chi = ctf_phase((k * k)[None], torch.as_tensor(wide)[:, None], optics, math.degrees(phase))
    rings = -ring_contrast(k, torch.as_tensor(wide), spectra.side, optics) * torch.cos(2.0 * chi)
    rings = rings.float().to(spectra.power.device)
    counts = spectra.counts.sum(0)
    mean = (spectra.power * spectra.counts).sum(2) / counts.clamp_min(1e-9)  # (tilts, patches, rings)
    b, e = (torch.as_tensor(c, device=mean.device).float()[:, None] for c in curves.at(spectra.k))
    smooth = b + 0.5 * e
    weight = counts / (1.0 + TEXTURE * (0.5 * e / smooth) ** 2)
    table = np.empty((*mean.shape[:2], len(wide)))
    for t in range(len(mean)):
        expected = smooth[t] + 0.5 * e[t] * rings  # (defoci, rings)
        ratio = smooth[t] / expected
        gained = ((mean[t] / smooth[t] - 1.0) * weight[t]) @ (1.0 - ratio).T
        gained += (weight[t] * (torch.log(ratio) + 1.0 - ratio)).sum(1)
        table[t] = (gained * spectra.shares[:, None]).cpu().numpy()
    out = np.zeros((*offsets.shape[:2], len(grid)))
    for s, t, p in np.ndindex(*offsets.shape):
        if not spectra.used[t]:
            continue
        place = margin + offsets[s, t, p] / step
        i = math.floor(place)
        row, part = table[t, p], place - i
        out[s, t] += (1.0 - part) * row[i : i + len(grid)] + part * row[i + 1 : i + 1 + len(grid)]
    return out


def search(
    spectra: TiltSpectra,
    optics: Optics,
    curves: TiltCurves,
    offsets: NDArray[np.float64],
    limits: tuple[float, float],
    phases: tuple[float, ...],
) -> list[Found]:
    """The best start for every set of offsets.

    Parameters
    ----------
    offsets : (sets, tilts, patches) array
        See :func:`profiles`.
    limits : (float, float)
        Defoci searched, Å.
    phases : tuple of float
        Phase shifts tried, radians.
    """
    band = spectra.within(0.0, 1.0 / FINEST)
    highest = float(band.k[-1])
    step = min(1.0 / (STEPS * optics.wavelength * highest**2), 0.25 * (limits[1] - limits[0]))
    grid = np.arange(limits[0], limits[1] + step, step)
    best: list[Found] = []
    for phase in phases:
        gained = profiles(band, optics, curves, offsets, grid, phase)
        for i, profile in enumerate(gained):
            defocus, prior = choose(grid, profile, spectra.used)
            at = np.argmin(np.abs(grid[None] - defocus[:, None]), axis=1)
            score = float(
                profile[np.arange(len(profile)), at][spectra.used].sum()
                + prior.log(defocus[spectra.used]).sum()
            )
            found = Found(defocus, phase, prior, grid, profile, score)
            if len(best) <= i:
                best.append(found)
            elif score > best[i].score:
                best[i] = found
    return best


def choose(
    grid: NDArray[np.float64], profile: NDArray[np.float64], used: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], SeriesPrior]:
    """Each tilt's defocus from its profile and a prior that the series' defoci give each other."""
    together = profile[used].sum(0)
    defocus = np.full(len(profile), float(grid[int(together.argmax())]))
    prior = SeriesPrior(float(defocus[0]), WIDE)
    for _ in range(4):
        total = profile + prior.log(grid)[None]
        defocus = grid[np.argmax(total, axis=1)]
        prior = SeriesPrior.of(defocus[used])
    defocus = np.where(used, defocus, prior.centre)
    return defocus, prior

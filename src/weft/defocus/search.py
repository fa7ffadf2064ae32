"""Exhaustive searches for where to start: defocus, phase, astigmatism and the tilt of the specimen.

Each patch's spectrum is reduced to radial profiles in a few sectors. The normalised correlation of every
profile with every defocus is one matrix product; any combination of defocus, astigmatism and tilt is
then a sum of entries of that table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from weft.defocus.spectra import Spectra
from weft.physics.ctf import ctf
from weft.physics.optics import Optics
from weft.physics.splines import spline_matrix

__all__ = ["Start", "radial_profiles", "search"]

SECTORS = 12
BACKGROUND_POINTS = 4
ASTIGMATISM = (0.0, 150.0, 400.0, 800.0, 1400.0, 2200.0)  # Å, half of U − V
SLOPES = (0.0, 0.12, 0.27, 0.45, 0.7, 1.0, 1.4, 2.0)  # tangent of the specimen's tilt


@dataclass(frozen=True)
class Start:
    """A place to start from: defocus (Å), its slopes, astigmatism components (Å), phase (radians), score."""

    defocus: float
    slope_x: float
    slope_y: float
    astigmatism: tuple[float, float]
    phase: float
    score: float

    def resembles(self, other: Start) -> bool:
        """Whether a fit from the other place would end where one from here does."""
        return (
            abs(self.defocus - other.defocus) <= 800
            and math.hypot(self.slope_x - other.slope_x, self.slope_y - other.slope_y) <= 0.5
            and abs(self.phase - other.phase) <= 0.4
        )


def radial_profiles(spectra: Spectra) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Profiles of every patch in every sector, background divided out.

    Returns
    -------
    profiles : (patches, sectors, r)
    k : (r,) 1/Å
    azimuths : (sectors,) radians
    """
    k = spectra.k.cpu().numpy()
    used = spectra.multiplicity.cpu().numpy() > 0
    shell = np.rint(k / spectra.dk).astype(int)
    lowest, highest = shell[used].min(), shell[used].max()
    n_r = highest - lowest + 1
    azimuth = spectra.azimuth.cpu().numpy()
    sector = np.floor((azimuth + math.pi / 2) / (math.pi / SECTORS)).astype(int).clip(0, SECTORS - 1)
    index = (sector * n_r + shell - lowest)[used]
    weight = spectra.multiplicity.cpu().numpy()[used]
    count = np.bincount(index, weight, minlength=SECTORS * n_r)
    power = spectra.power.cpu().numpy()
    sums = np.stack([np.bincount(index, p[used] * weight, minlength=SECTORS * n_r) for p in power])
    profiles = (sums / np.maximum(count, 1e-9)).reshape(len(power), SECTORS, n_r)
    counts = count.reshape(SECTORS, n_r)
    total = (sums.sum(0).reshape(SECTORS, n_r).sum(0) / counts.sum(0)) / len(power)
    basis = spline_matrix(BACKGROUND_POINTS, np.linspace(0, 1, n_r))
    background = np.exp(basis @ np.linalg.lstsq(basis, np.log(total), rcond=None)[0])
    profiles = np.where(counts > 0, profiles / background - 1.0, 0.0)
    # where a sector has no sample of a ring (the smallest rings), its neighbours' mean stands in
    profiles[:, counts <= 0] = 0.0
    azimuths = -math.pi / 2 + (np.arange(SECTORS) + 0.5) * math.pi / SECTORS
    return profiles, (np.arange(n_r) + lowest) * spectra.dk, azimuths


def _templates(
    k: NDArray[np.float64], defoci: NDArray[np.float64], optics: Optics, phase: float
) -> NDArray[np.float64]:
    """CTF² without its slow part, unit norm, (defoci, r)."""
    k2 = torch.as_tensor(k**2)
    c = ctf(k2[None], torch.as_tensor(defoci)[:, None], optics, math.degrees(phase)).numpy() ** 2
    basis = spline_matrix(BACKGROUND_POINTS, np.linspace(0, 1, len(k)))
    c = c - (c @ np.linalg.pinv(basis).T) @ basis.T
    return np.asarray(c / np.linalg.norm(c, axis=1, keepdims=True).clip(1e-9))


def _peaks(score: NDArray[np.float64], count: int, apart: int) -> list[int]:
    out: list[int] = []
    left = score.copy()
    while len(out) < count and np.isfinite(left).any():
        i = int(np.nanargmax(left))
        if not np.isfinite(left[i]) or left[i] == -np.inf:
            break
        out.append(i)
        left[max(0, i - apart) : i + apart + 1] = -np.inf
    return out


def search(
    spectra: Spectra,
    optics: Optics,
    defocus_range: tuple[float, float],
    *,
    phases: tuple[float, ...] = (0.0,),
    tilt: bool = True,
    count: int = 4,
) -> list[Start]:
    """Likely starting points, from several ways to look.

    Parameters
    ----------
    spectra : Spectra
        Restricted to the band of the search.
    defocus_range : (float, float)
        Å.
    phases : tuple of float
        Phase shifts to try, radians.
    tilt : bool
        Also try tilted specimens (needs at least four patches).
    count : int
        Starting points wanted from each way to look.
    """
    profiles, k, azimuths = radial_profiles(spectra)
    step = 1.0 / (10.0 * optics.wavelength * k[-1] ** 2)
    low, high = defocus_range
    margin = ASTIGMATISM[-1] + (SLOPES[-1] * max(spectra.extent) / 2 if tilt else 0.0)
    n_steps = int((high - low + 2 * margin) / step) + 2
    defoci = low - margin + step * np.arange(n_steps)
    inside = np.flatnonzero((defoci >= low) & (defoci <= high))
    centre = np.array(spectra.extent) / 2
    starts: list[Start] = []
    for phase in phases:
        templates = _templates(k, defoci, optics, phase)
        mean = profiles.mean(0)
        by_sector = mean @ templates.T  # (sectors, defoci)
        scale = max(float(np.linalg.norm(mean.mean(0))), 1e-9)
        z = np.arange(n_steps)
        for amount in ASTIGMATISM:
            angles = np.arange(8) * math.pi / 8 if amount else [0.0]
            for angle in angles:
                shift = amount * np.cos(2 * (azimuths - angle)) / step
                score = sum(
                    map_coordinates(row, [z + s], order=1, mode="nearest") for row, s in zip(by_sector, shift)
                )
                score = np.asarray(score)[inside] / SECTORS / scale
                components = (amount * math.cos(2 * angle), amount * math.sin(2 * angle))
                for i in _peaks(score, count, round(1500 / step)):
                    starts.append(Start(defoci[inside[i]], 0.0, 0.0, components, phase, float(score[i])))
        if tilt and len(profiles) >= 4:
            by_patch = profiles.mean(1) @ templates.T
            norm = max(float(np.sqrt((profiles.mean(1) ** 2).sum(1)).mean()), 1e-9)
            offsets = spectra.centers - centre
            for amount in SLOPES[1:]:
                for angle in np.arange(16) * math.pi / 8:
                    sx, sy = amount * math.cos(angle), amount * math.sin(angle)
                    shift = (offsets[:, 0] * sx + offsets[:, 1] * sy) / step
                    score = np.mean(
                        [
                            map_coordinates(row, [z + s], order=1, mode="nearest")[inside]
                            for row, s in zip(by_patch, shift)
                        ],
                        axis=0,
                    )
                    i = int(score.argmax())
                    starts.append(Start(defoci[inside[i]], sx, sy, (0.0, 0.0), phase, float(score[i] / norm)))
    flat = [s for s in starts if s.slope_x == 0 and s.slope_y == 0]
    tilted = [s for s in starts if s.slope_x != 0 or s.slope_y != 0]
    return [
        s
        for group in (_distinct(flat, count), _distinct(tilted, count))
        for s in group
        if s.score > 0.5 * group[0].score
    ]


def _distinct(starts: list[Start], count: int) -> list[Start]:
    """The best of them, no two alike in defocus, slope and phase."""
    out: list[Start] = []
    for s in sorted(starts, key=lambda s: -s.score):
        if len(out) == count:
            break
        if not any(s.resembles(o) for o in out):
            out.append(s)
    return out

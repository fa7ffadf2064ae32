"""Spectra of a tilt series for the eye: one curve for each tilt, and all of them brought to one defocus.

Single tilts are noisy. Stretched so that all show the same CTF (the paper, "Contrast transfer function
estimation in tilt series"), the spectra of all patches of all tilts show together what the fit is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from weft.defocus.quality import Curve, agreement
from weft.defocus.tilt_fit import TiltSolution
from weft.defocus.tilt_model import ring_contrast
from weft.defocus.tilt_spectra import SECTORS, TiltSpectra
from weft.physics.ctf import ctf_phase, matching_frequency
from weft.physics.optics import Optics

__all__ = ["TiltCurve", "series_average", "series_picture", "tilt_curves"]

SIDE = 512  # pixels of the picture
SMOOTHED = 12.0  # degrees along the rings, standard deviation


@dataclass(frozen=True)
class TiltCurve:
    """One tilt's rotational average, its patches brought to the tilt's own defocus.

    Attributes
    ----------
    k : (rings,) float64
        1/Å.
    measured, model : (rings,) float64
        Power; the model with background, envelope and the contrast that its rings can have.
    smooth : (rings,) float64
        The model without rings.
    """

    k: NDArray[np.float64]
    measured: NDArray[np.float64]
    model: NDArray[np.float64]
    smooth: NDArray[np.float64]

    def score(self, low: float, high: float) -> float:
        """Correlation of the rings measured and modelled between two frequencies (1/Å)."""
        part = (self.k >= low) & (self.k <= high)
        a = ((self.measured - self.model) / self.smooth)[part]
        b = ((self.model - self.smooth) / self.smooth)[part]
        # rings as the model has them, and what is left beside them
        both = a + b
        norm = math.sqrt(float((both**2).sum() * (b**2).sum()))
        return float((both * b).sum()) / norm if norm > 0.0 else 0.0


def _accumulate(
    place: NDArray[np.float64], values: NDArray[np.float64], weights: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Weighted sums of values, and of weights, in bins around fractional places: (2, size)."""
    known = np.isfinite(place)
    place = np.where(known, place, -1.0)
    below = np.floor(place).astype(np.int64)
    part = place - below
    out = np.zeros((2, size))
    for index, share in ((below, 1.0 - part), (below + 1, part)):
        inside = known & (index >= 0) & (index < size)
        w = (weights * share)[inside]
        out[0] += np.bincount(index[inside], w * values[inside], minlength=size)
        out[1] += np.bincount(index[inside], w, minlength=size)
    return out


def _match(
    k: NDArray[np.float64], defocus: NDArray[np.float64], target: NDArray[np.float64] | float, optics: Optics
) -> NDArray[np.float64]:
    return np.asarray(
        matching_frequency(
            torch.as_tensor(k), torch.as_tensor(defocus), torch.as_tensor(target), optics
        ).numpy()
    )


def _lobes(solution: TiltSolution, azimuth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Defocus along each sector minus the mean, (tilts, sectors)."""
    a = solution.freedom.weights @ solution.astigmatism
    return np.asarray(a[:, :1] * np.cos(2 * azimuth) + a[:, 1:] * np.sin(2 * azimuth))


def tilt_curves(spectra: TiltSpectra, optics: Optics, solution: TiltSolution) -> list[TiltCurve]:
    """Every tilt's curve; the places of all patches, and astigmatism, are taken out."""
    waves = solution.waves(spectra)
    k = spectra.k
    cell_k = np.sqrt(spectra.k2.cpu().numpy().astype(np.float64))
    lobes = _lobes(solution, spectra.azimuth.cpu().numpy().astype(np.float64))
    weights = spectra.counts.cpu().numpy() * spectra.shares.cpu().numpy()[:, None, None]
    phase = solution.freedom.weights @ solution.phase
    b, e = solution.curves.at(k)
    out = []
    first = float(k[0] / spectra.dk)
    for t in range(len(waves.defocus)):
        z = waves.defocus[t][:, None] + lobes[t][None]  # (patches, sectors)
        at = _match(cell_k[None], z[..., None], float(solution.defocus[t]), optics) / spectra.dk - first
        power = spectra.power[t].cpu().numpy().astype(np.float64)
        sums = _accumulate(at.ravel(), power.ravel(), weights.ravel(), len(k))
        smooth = b[t] + 0.5 * e[t]
        measured = np.where(sums[1] > 1e-6, sums[0] / sums[1].clip(1e-9), smooth)
        target = torch.tensor([float(solution.defocus[t])])
        chi = ctf_phase(torch.as_tensor(k**2), target, optics, math.degrees(phase[t])).numpy()
        contrast = ring_contrast(torch.as_tensor(k), target, spectra.side, optics)[0].numpy()
        out.append(TiltCurve(k, measured, smooth - 0.5 * e[t] * contrast * np.cos(2 * chi), smooth))
    return out


def series_average(
    curves: list[TiltCurve], optics: Optics, solution: TiltSolution, trusted: NDArray[np.bool_]
) -> tuple[Curve, float]:
    """All tilts' curves at one defocus, compared with the CTF there; and this defocus (Å).

    Each counts by the square of its rings' strength to its noise, as it does in the fit.
    """
    chosen = np.flatnonzero(trusted) if trusted.any() else np.arange(len(curves))
    target = float(np.mean(solution.defocus[chosen]))
    k = curves[0].k
    step = float(np.median(np.diff(k)))
    sums = np.zeros((2, len(k)))
    phase = float(np.mean(solution.freedom.weights @ solution.phase))
    for t in chosen:
        at = _match(k, np.full_like(k, solution.defocus[t]), target, optics)
        strength = float(np.abs((curves[t].model - curves[t].smooth) / curves[t].smooth).mean())
        relative = curves[t].measured / curves[t].smooth
        weight = np.full(len(k), max(strength, 1e-4) ** 2)
        sums += _accumulate((at - k[0]) / step, relative, weight, len(k))
    mean = sums[0] / sums[1].clip(1e-12)
    mean = np.where(sums[1] > 1e-3 * sums[1].max(), mean, 1.0)
    return agreement(k, mean, target, math.degrees(phase), optics), target


def series_picture(
    spectra: TiltSpectra, optics: Optics, solution: TiltSolution, trusted: NDArray[np.bool_], highest: float
) -> NDArray[np.uint8]:
    """All spectra at one defocus (left half) beside the CTF² fitted (right half), (512, 512) uint8.

    Every ring has the same contrast, and the left half is smoothed along the rings, not across them.

    Parameters
    ----------
    highest : float
        Frequency at the edge, 1/Å.
    """
    chosen = np.flatnonzero(trusted) if trusted.any() else np.arange(len(solution.defocus))
    waves = solution.waves(spectra)
    target = float(np.mean(solution.defocus[chosen]))
    azimuth = spectra.azimuth.cpu().numpy().astype(np.float64)
    lobes = _lobes(solution, azimuth)
    mean_lobe = lobes[chosen].mean(0)
    cell_k = np.sqrt(spectra.k2.cpu().numpy().astype(np.float64))
    n_r = int(highest / spectra.dk) + 2
    weights = spectra.counts.cpu().numpy() * spectra.shares.cpu().numpy()[:, None, None]
    b, e = solution.curves.at(spectra.k)
    sums = np.zeros((2, SECTORS * n_r))
    row = np.arange(SECTORS)[None, :, None] * n_r
    for t in chosen:
        z = waves.defocus[t][:, None] + lobes[t][None]
        # to the mean defocus with the mean astigmatism taken out again: rings are circles
        at = _match(cell_k[None], z[..., None], target, optics) / spectra.dk
        at = np.where(at < n_r - 1.001, at, np.nan) + row
        smooth = b[t] + 0.5 * e[t]
        power = spectra.power[t].cpu().numpy() / smooth - 1.0
        weight = weights * (0.5 * e[t] / smooth) ** 2
        sums += _accumulate(at.ravel(), power.ravel(), weight.ravel(), SECTORS * n_r)
    polar = (sums[0] / sums[1].clip(1e-12)).reshape(SECTORS, n_r)
    polar = polar - gaussian_filter1d(polar.mean(0), 6.0, mode="nearest")
    polar = gaussian_filter1d(polar, SMOOTHED * SECTORS / 180.0, axis=0, mode="wrap")
    spread = np.sqrt(gaussian_filter1d((polar**2).mean(0), 6.0, mode="nearest"))
    polar /= spread.clip(1e-6)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    shown = np.hypot(x, y) * (highest / (SIDE // 2))
    angle = np.arctan2(y, x)
    turn = np.mod((angle + math.pi / 2) / math.pi, 1.0) * SECTORS - 0.5
    lobe = map_coordinates(mean_lobe, [turn], order=1, mode="grid-wrap")
    radius = _match(shown, target + lobe, target, optics)
    radius = np.where(np.isfinite(radius), radius, shown) / spectra.dk
    data = map_coordinates(polar, [turn, radius.clip(0, n_r - 1)], order=1, mode="grid-wrap")
    phase = math.degrees(float(np.mean(solution.freedom.weights @ solution.phase)))
    fit = (
        np.sin(ctf_phase(torch.as_tensor(shown**2), torch.as_tensor(target + lobe), optics, phase).numpy())
        ** 2
    )
    picture = np.where(x < 0, 0.5 + data / 3.0, fit)
    picture[(shown > highest) | (shown < float(spectra.k[0]))] = 0.0
    return np.asarray(np.clip(picture * 255.0, 0, 255), dtype=np.uint8)

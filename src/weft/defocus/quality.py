"""How far a CTF fit can be trusted: spectra brought to one defocus, their agreement, ice rings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.spectra import Spectra
from weft.physics.ctf import ctf, ctf_phase, matching_frequency
from weft.physics.optics import Optics

__all__ = ["Curve", "agreement", "ice_ring_density", "rescaled_average", "resolution"]

THRESHOLD = 0.3  # of the correlation, below which rings no longer count (the paper, "Resolution estimation")
FIRST_RINGS = 0.1  # 1/Å: up to here the first rings are looked for
CONVINCING = 0.6  # correlation that noise does not reach by itself
ICE_RING = (0.25, 0.28)  # 1/Å
LEAST_WINDOW = 16  # samples


@dataclass(frozen=True)
class Curve:
    """Rotational average of all spectra, brought to one defocus.

    Attributes
    ----------
    k : (n,) float64
        1/Å.
    power : (n,) float64
        Background not removed.
    background : (n,) float64
        Through the troughs and peaks' middle, by a moving average over a Thon ring.
    fit : (n,) float64
        CTF² at the common defocus.
    correlation : (n,) float64
        Of power and fit in a window that slides along k.
    """

    k: NDArray[np.float64]
    power: NDArray[np.float64]
    background: NDArray[np.float64]
    fit: NDArray[np.float64]
    correlation: NDArray[np.float64]


def rescaled_average(
    spectra: Spectra,
    optics: Optics,
    defocus: NDArray[np.float64],
    astigmatism: NDArray[np.float64],
    limit: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], float]:
    """Average of the patches' spectra with frequencies stretched so that all show the same CTF.

    Parameters
    ----------
    defocus : (patches,) array
        Å.
    astigmatism : (2,) array
        Components along cos 2θ and sin 2θ, Å.
    limit : int
        At most this many patches are used (evenly chosen).

    Returns
    -------
    image : (ky, kx) float32
        Half-plane; the mean defocus with the fitted astigmatism.
    k, power : (n,) float64
        Rotational average at the mean defocus without astigmatism.
    target : float
        The mean defocus, Å.
    """
    target = float(np.mean(defocus))
    chosen = np.unique(np.linspace(0, len(defocus) - 1, min(limit, len(defocus))).astype(int))
    ky, kx = spectra.ky, spectra.kx
    k, azimuth = spectra.k, spectra.azimuth
    lobe = float(astigmatism[0]) * torch.cos(2 * azimuth) + float(astigmatism[1]) * torch.sin(2 * azimuth)
    used = (spectra.multiplicity > 0).reshape(-1)
    n_y, n_x = len(ky), len(kx)
    step_y, step_x = float(ky[1] - ky[0]), spectra.dk
    radial = torch.zeros(2, n_x + 1, dtype=torch.float64, device=k.device)
    plane = torch.zeros(2, n_y * n_x, dtype=torch.float64, device=k.device)
    weight = spectra.multiplicity.reshape(-1).double()
    same = float(np.ptp(defocus)) < 1.0
    flat_index = torch.arange(n_y * n_x, device=k.device)
    for p in chosen:
        power = spectra.power[p].reshape(-1).double()
        z = defocus[p] + lobe
        k_radial = matching_frequency(k, z, target, optics).reshape(-1)
        k_radial = torch.where(
            torch.isfinite(k_radial), k_radial, torch.full_like(k_radial, 2 * float(kx[-1]))
        )
        bins = (k_radial / step_x).clamp(max=n_x)
        below = bins.long()
        part = (bins - below).double()
        for index, share in ((below, 1.0 - part), ((below + 1).clamp(max=n_x), part)):
            radial[0] += torch.bincount(index, weight * share * power, minlength=n_x + 1)
            radial[1] += torch.bincount(index, weight * share, minlength=n_x + 1)
        if same:
            index, keep = flat_index, used
        else:
            stretched = matching_frequency(k, z, target + lobe, optics)
            ratio = torch.where(k > 0, stretched / k.clamp_min(1e-9), torch.ones_like(k))
            y = torch.round(ky[:, None] * ratio / step_y)
            x = torch.round(kx[None, :] * ratio / step_x)
            keep = used & (torch.isfinite(ratio) & (y.abs() < n_y // 2) & (x < n_x)).reshape(-1)
            index = (
                torch.nan_to_num(y).long() % n_y * n_x + torch.nan_to_num(x).long().clamp(0, n_x - 1)
            ).reshape(-1)
        plane[0] += torch.bincount(index[keep], power[keep], minlength=n_y * n_x)
        plane[1] += torch.bincount(index[keep], minlength=n_y * n_x)
    mean = (radial[0] / radial[1].clamp_min(1e-9))[:n_x]
    image = (plane[0] / plane[1].clamp_min(1e-9)).reshape(n_y, n_x)
    # the few cells that no sample fell into take the ring's mean
    ring = torch.round(k / step_x).long().clamp(max=n_x - 1)
    image = torch.where(plane[1].reshape(n_y, n_x) > 0, image, mean[ring])
    return (
        image.float().cpu().numpy(),
        np.arange(n_x, dtype=np.float64) * step_x,
        mean.cpu().numpy(),
        target,
    )


def agreement(
    k: NDArray[np.float64], power: NDArray[np.float64], defocus: float, phase: float, optics: Optics
) -> Curve:
    """Compare a rotational average with the CTF it should show.

    The window is two Thon rings wide (between zeros of the CTF) and at least 16 samples (the paper,
    "Resolution estimation").

    Parameters
    ----------
    phase : float
        Of a phase plate, degrees.
    """
    k2 = torch.as_tensor(k**2)
    fit = ctf(k2, defocus, optics, phase).numpy() ** 2
    angle = ctf_phase(k2, defocus, optics, phase).numpy()
    rings = np.abs(np.gradient(angle)) / math.pi  # Thon rings a sample
    half = np.maximum(np.ceil(1.0 / np.maximum(rings, 1e-6)), LEAST_WINDOW / 2).astype(int)
    correlation = np.zeros(len(k))
    background = np.zeros(len(k))
    for i in range(len(k)):
        a, b = max(0, i - half[i]), min(len(k), i + half[i] + 1)
        x = np.arange(a, b) - i
        # a slope is taken out of both, so that the falling background does not count as (dis)agreement
        basis = np.stack([np.ones(len(x)), x], axis=1)
        both = np.stack([power[a:b], fit[a:b]], axis=1)
        left = both - basis @ np.linalg.lstsq(basis, both, rcond=None)[0]
        norm = math.sqrt(float((left[:, 0] ** 2).sum() * (left[:, 1] ** 2).sum()))
        correlation[i] = float((left[:, 0] * left[:, 1]).sum()) / norm if norm > 0 else 0.0
        background[i] = power[a:b].mean()
    return Curve(k, power, background, fit, correlation)


def resolution(curve: Curve, low: float, high: float) -> float:
    """Resolution (Å) at which the correlation falls below 0.3.

    Looked for upwards from the best agreement among the first rings: below it the shape of the particles
    themselves, which is no ring of the CTF, may disturb the correlation. Where not even the first rings
    agree convincingly, the answer is the start of the range.

    Parameters
    ----------
    low, high : float
        1/Å.
    """
    inside = np.flatnonzero((curve.k >= low) & (curve.k <= high))
    first = inside[curve.k[inside] <= max(FIRST_RINGS, 2.0 * low)]
    start = int(first[np.argmax(curve.correlation[first])])
    if curve.correlation[start] < CONVINCING:
        return float(1.0 / curve.k[inside[0]])
    for i in range(start, int(inside[-1]) + 1):
        if curve.correlation[i] < THRESHOLD:
            return float(1.0 / curve.k[max(i - 1, int(inside[0]))])
    return float(1.0 / curve.k[inside[-1]])


def ice_ring_density(k: NDArray[np.float64], power: NDArray[np.float64]) -> float | None:
    """Excess of power in the ring of crystalline ice (0.25–0.28 1/Å) over its surroundings, 0 for none.

    None where the ring lies beyond the spectrum.
    """
    if k[-1] < ICE_RING[1] + 0.02:
        return None
    ring = (k >= ICE_RING[0]) & (k <= ICE_RING[1])
    around = ((k >= ICE_RING[0] - 0.03) & (k < ICE_RING[0])) | ((k > ICE_RING[1]) & (k <= ICE_RING[1] + 0.03))
    line = np.polynomial.Polynomial.fit(k[around], power[around], 1)
    return float(power[ring].mean() / line(k[ring]).mean() - 1.0)

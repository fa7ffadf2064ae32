"""Power spectra for the eye."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from weft.defocus.quality import Curve
from weft.defocus.spectra import Spectra
from weft.physics.ctf import ctf, matching_frequency
from weft.physics.optics import Optics

__all__ = ["spectrum_pictures"]

SIDE = 512  # pixels of the pictures
AZIMUTHS = 180
SMOOTHED = 12.0  # degrees along the rings, standard deviation


def spectrum_pictures(
    spectra: Spectra,
    optics: Optics,
    image: NDArray[np.float32],
    curve: Curve,
    defocus: float,
    astigmatism: NDArray[np.float64],
    phase: float,
    limit: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A measured spectrum and its fit as pictures that can be compared by eye.

    The background is taken out, every ring gets the same contrast, and the measured spectrum is smoothed
    along the rings (not across), whose shape the fitted astigmatism gives: where the fit is wrong,
    smoothing washes the rings out.

    Parameters
    ----------
    spectra : Spectra
        For its frequencies.
    image : (ky, kx) float32
        Half-plane: the average at one defocus (`quality.rescaled_average`).
    curve : Curve
        Its rotational average.
    defocus : float
        Å.
    astigmatism : (2,) array
        Components along cos 2θ and sin 2θ, Å.
    phase : float
        Of a phase plate, degrees.
    limit : float
        Frequency at the edge of the pictures, 1/Å.

    Returns
    -------
    data, fit : (512, 512) float32
        Zero frequency in the middle; the fit is CTF².
    """
    k = spectra.k.cpu().numpy()
    ring = (k / spectra.dk).clip(0, len(curve.k) - 1)
    flat = image / np.maximum(np.interp(ring, np.arange(len(curve.k)), curve.background), 1e-9) - 1.0
    shell = ring.astype(int).ravel()
    spread = np.sqrt(np.bincount(shell, flat.ravel() ** 2) / np.bincount(shell).clip(1))
    flat /= np.maximum(np.interp(ring, np.arange(len(spread)), spread), 1e-6)

    # polar coordinates in which rings are straight: azimuth, and the frequency of like phase without
    # astigmatism
    n_r = int(limit / spectra.dk) + 2
    azimuth = (np.arange(AZIMUTHS) + 0.5) * math.pi / AZIMUTHS - math.pi / 2
    lobe = astigmatism[0] * np.cos(2 * azimuth) + astigmatism[1] * np.sin(2 * azimuth)
    at = _same_phase(np.arange(n_r) * spectra.dk, defocus, defocus + lobe[:, None], optics)
    rows = at * np.sin(azimuth)[:, None] / spectra.dk
    columns = at * np.cos(azimuth)[:, None] / spectra.dk
    order = np.argsort(spectra.ky.cpu().numpy(), kind="stable")
    zero_row = int(np.searchsorted(spectra.ky.cpu().numpy()[order], 0.0))
    step = float(spectra.ky[1] - spectra.ky[0]) / spectra.dk
    polar = map_coordinates(flat[order], [rows / step + zero_row, columns], order=1, mode="nearest")
    polar = gaussian_filter1d(polar, SMOOTHED * AZIMUTHS / 180.0, axis=0, mode="wrap")
    polar = polar / np.maximum(gaussian_filter1d(polar.std(0), 6.0, mode="nearest"), 1e-6)

    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    shown = np.hypot(x, y) * (limit / (SIDE // 2))
    angle = np.arctan2(y, x)
    local = defocus + astigmatism[0] * np.cos(2 * angle) + astigmatism[1] * np.sin(2 * angle)
    radius = _same_phase(shown, local, np.full_like(local, defocus), optics) / spectra.dk
    turn = np.mod((angle + math.pi / 2) / math.pi, 1.0) * AZIMUTHS - 0.5
    data = map_coordinates(polar, [turn, np.minimum(radius, n_r - 1)], order=1, mode="grid-wrap")
    fit = ctf(torch.as_tensor(shown**2), torch.as_tensor(local), optics, phase).numpy() ** 2
    outside = shown > limit
    data[outside], fit[outside] = data[~outside].min(), 0.0
    return data.astype(np.float32), fit.astype(np.float32)


def _same_phase(
    k: NDArray[np.floating],
    defocus: NDArray[np.float64] | float,
    target: NDArray[np.float64],
    optics: Optics,
) -> NDArray[np.float64]:
    """Frequencies where `target` has the phase that `defocus` has at `k`; `k` where there is none."""
    k = np.array(np.broadcast_to(k, np.broadcast_shapes(np.shape(k), np.shape(target))), dtype=np.float64)
    found = matching_frequency(
        torch.as_tensor(k), torch.as_tensor(defocus), torch.as_tensor(target), optics
    ).numpy()
    return np.where(np.isfinite(found), found, k)

"""The expected power spectra of a tilt series and their likelihood.

In the cell (sector, ring) of patch p of tilt t the expected power is

    M = B_t(k) + s_tp E_t(k) ½ (1 − D cos 2χ),        χ = χ(k; z_t + depth_p, astigmatism, phase)

which is `likelihood`'s B + s E CTF² but for D ≤ 1: the loss of contrast of the rings because a patch is
small (its spectrum is blurred), because a cell is as wide as a Fourier pixel, and because defocus varies
across a patch of a tilted specimen. All three are known beforehand, so tilted images are not mistaken for
weak ones. The mean of n exponentially scattered coefficients in a cell has the log-likelihood −n (log M + P /
M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.likelihood import TEXTURE
from weft.defocus.tilt_spectra import TiltSpectra
from weft.physics.optics import Optics
from weft.physics.splines import spline_matrix, spline_penalty

__all__ = ["Slopes", "TiltCurves", "Waves", "evaluate", "initial_curves", "update_curves"]

BACKGROUND_SPACING = 0.035  # 1/Å between control points of the background, as for single micrographs
ENVELOPE_SPACING = 0.012  # 1/Å: finer, since many tilts of different defocus see it (the paper)
OWN_POINTS = 3  # of a tilt's own deviation from the common background
OWN_SPREAD = 0.15  # of its logarithm, standard deviation
STRENGTH_SPREAD = 1.0  # of the logarithm of a tilt's strength
DAMAGE_SPREAD = 60.0  # Å²: of a tilt's own fall-off exp(−b k²)
PATCH_PRIOR = 10.0  # inverse variance of patches' strengths around one
STIFFNESS = 2.0  # inverse variance of second differences of log B
ENVELOPE_STIFFNESS = 4.0  # the same of log E, which is that of a specimen and of many forms
LARGEST = 0.7  # change of a logarithm in one step
CHUNK = 4_000_000  # cells in one go


@dataclass(frozen=True)
class TiltCurves:
    """Background and envelope of every tilt.

    Attributes
    ----------
    background, envelope : (points,) float64
        Splines of log B and log E that all tilts have in common, over `low` to `high` (1/Å).
    own : (tilts, 3) float64
        Spline of a tilt's own addition to log B.
    strength : (tilts, 2) float64
        A tilt's own log E = common + strength[0] − strength[1] k².
    patches : (tilts, patches) float32
        Strength of each patch around one.
    """

    background: NDArray[np.float64]
    envelope: NDArray[np.float64]
    own: NDArray[np.float64]
    strength: NDArray[np.float64]
    low: float
    high: float
    patches: torch.Tensor

    def select(self, tilts: NDArray[np.int64]) -> TiltCurves:
        """The same for some of the tilts."""
        chosen = torch.as_tensor(tilts, device=self.patches.device)
        return replace(self, own=self.own[tilts], strength=self.strength[tilts], patches=self.patches[chosen])

    def bases(self, k: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """What log B, log E and the tilts' own parts depend on: (rings, points) for each."""
        u = ((k - self.low) / (self.high - self.low)).clip(0.0, 1.0)
        own = np.column_stack([np.ones(len(k)), -(k**2)])
        return (
            spline_matrix(len(self.background), u),
            spline_matrix(len(self.envelope), u),
            spline_matrix(self.own.shape[1], u),
            own,
        )

    def at(self, k: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """B and E at frequencies k (1/Å), (tilts, rings) each."""
        on_b, on_e, on_own, on_s = self.bases(k)
        log_b = (on_b @ self.background)[None] + self.own @ on_own.T
        log_e = (on_e @ self.envelope)[None] + self.strength @ on_s.T
        return np.exp(log_b.clip(-20, 20)), np.exp(log_e.clip(-20, 20))


@dataclass(frozen=True)
class Waves:
    """The optical state of every patch of a tilt series.

    Attributes
    ----------
    defocus : (tilts, patches) float64
        Å.
    slopes : (tilts, 2) float64
        Gradient of defocus along the image's x and y.
    astigmatism : (tilts, 2) float64
        Å along cos 2θ and sin 2θ: half of (U − V) times cosine and sine of twice the angle.
    phase : (tilts,) float64
        Of a phase plate, radians.
    """

    defocus: NDArray[np.float64]
    slopes: NDArray[np.float64]
    astigmatism: NDArray[np.float64]
    phase: NDArray[np.float64]

    def select(self, part: slice) -> Waves:
        return Waves(self.defocus[part], self.slopes[part], self.astigmatism[part], self.phase[part])

    def chi(self, spectra: TiltSpectra, optics: Optics) -> torch.Tensor:
        """CTF phase, (tilts, patches, sectors, rings), radians."""
        k2, wl = spectra.k2, optics.wavelength
        device = k2.device
        twice = 2.0 * spectra.azimuth
        a = torch.as_tensor(self.astigmatism, dtype=torch.float32, device=device)
        lobe = a[:, :1] * torch.cos(twice) + a[:, 1:] * torch.sin(twice)  # (tilts, sectors)
        constant = torch.as_tensor(self.phase, dtype=torch.float32, device=device) + optics.amplitude_phase
        scaled = (math.pi * wl) * k2
        fixed = scaled * (lobe[:, :, None] - (0.5 * optics.cs_angstrom * wl**2) * k2)
        fixed = fixed + constant[:, None, None]
        z = torch.as_tensor(self.defocus, dtype=torch.float32, device=device)
        return torch.addcmul(fixed[:, None], scaled[None, None], z[:, :, None, None])

    def contrast(self, spectra: TiltSpectra, optics: Optics) -> torch.Tensor:
        """D, (tilts, patches, 1, rings)."""
        k = torch.as_tensor(spectra.k, device=spectra.power.device)
        z = torch.as_tensor(self.defocus.mean(1), device=k.device)
        rings = ring_contrast(k, z, spectra.side, optics)
        variance = (self.slopes[:, None] ** 2 * spectra.spread[None]).sum(-1)
        spread = torch.as_tensor(variance, device=k.device)[..., None]
        across = torch.exp(-2.0 * (math.pi * optics.wavelength * k * k) ** 2 * spread)
        return (rings[:, None] * across).float()[:, :, None]


def ring_contrast(k: torch.Tensor, defocus: torch.Tensor, side: float, optics: Optics) -> torch.Tensor:
    """Contrast left to rings by patches of `side` Å and rings of cells 1/side wide, (defoci, rings).

    Where cos 2χ(k) turns by 2π l Δk within Δk, l (Å) is how far apart the two beams meet in the image; the
    window's autocorrelation at l is what is left of the oscillation, and averaging over a cell leaves a sinc.
    """
    wl = optics.wavelength
    apart = 2.0 * wl * k * (defocus[:, None] - optics.cs_angstrom * wl**2 * k * k)
    part = (apart.abs() / side).clamp(max=1.0)
    window = (1.0 - part) * torch.cos(math.pi * part) + torch.sin(math.pi * part) / math.pi
    return window * torch.sinc(apart / side)


@dataclass(frozen=True)
class Slopes:
    """First derivatives and Fisher information of every patch's own four parameters.

    They are its defocus, the two components of astigmatism (Å) and the phase (radians).

    Attributes
    ----------
    gradient : (tilts, patches, 4) float64
    information : (tilts, patches, 4, 4) float64
    log_likelihood : (tilts, patches) float64
    """

    gradient: NDArray[np.float64]
    information: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]


def _parts(spectra: TiltSpectra) -> list[slice]:
    tilts, rest = spectra.power.shape[0], max(int(np.prod(spectra.power.shape[1:])), 1)
    step = max(1, CHUNK // rest)
    return [slice(i, min(i + step, tilts)) for i in range(0, tilts, step)]


def _expected(spectra: TiltSpectra, curves: TiltCurves, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """B (tilts, 1, 1, rings) and ½ s E (tilts, patches, 1, rings)."""
    b, e = (
        torch.as_tensor(c[part], dtype=torch.float32, device=spectra.power.device)
        for c in curves.at(spectra.k)
    )
    return b[:, None, None], 0.5 * curves.patches[part][:, :, None, None] * e[:, None, None]


def evaluate(
    spectra: TiltSpectra,
    optics: Optics,
    curves: TiltCurves,
    waves: Waves,
    *,
    rings: bool = True,
    slopes: bool = True,
) -> Slopes:
    """Log-likelihood with its derivatives and expected information.

    Parameters
    ----------
    rings : bool
        False: of the same smooth curves without any rings (D = 0).
    slopes : bool
        False: only the log-likelihood; the rest is zero.
    """
    device = spectra.power.device
    n_t, n_p = spectra.power.shape[:2]
    k2 = (math.pi * optics.wavelength) * spectra.k2
    twice = 2.0 * spectra.azimuth[:, None]
    d = torch.stack([k2, k2 * torch.cos(twice), k2 * torch.sin(twice), torch.ones_like(k2)]).reshape(4, -1)
    first = d.T.contiguous()
    second = (d[:, None] * d[None]).reshape(16, -1).T.contiguous()
    gradient = np.zeros((n_t, n_p, 4))
    information = np.zeros((n_t, n_p, 16))
    total = np.zeros((n_t, n_p))
    used = torch.as_tensor(spectra.used, device=device).float()
    for part in _parts(spectra):
        b, half = _expected(spectra, curves, part)
        state = waves.select(part)
        if rings:
            twice_chi = 2.0 * state.chi(spectra, optics)
            contrast = half * state.contrast(spectra, optics)
            signal = half - contrast * torch.cos(twice_chi)
        else:
            signal = half.expand(-1, -1, spectra.counts.shape[0], -1)
        expected = b + signal
        ratio = spectra.power[part] / expected
        weight = used[part, None] * spectra.shares
        flat = (ratio + torch.log(expected)).reshape(*ratio.shape[:2], -1)
        total[part] = -((flat @ spectra.counts.reshape(-1)) * weight).double().cpu().numpy()
        if not slopes or not rings:
            continue
        inverse = 1.0 / expected
        slope = contrast * 2.0 * torch.sin(twice_chi) * inverse
        share = spectra.counts / (1.0 + TEXTURE * (signal * inverse).square())
        shape = (*ratio.shape[:2], -1)
        weighted = slope * share
        g = ((ratio - 1.0) * weighted).reshape(shape) @ first
        i = (weighted * slope).reshape(shape) @ second
        gradient[part] = (g * weight[..., None]).double().cpu().numpy()
        information[part] = (i * weight[..., None]).double().cpu().numpy()
    return Slopes(gradient, information.reshape(n_t, n_p, 4, 4), total)


def initial_curves(spectra: TiltSpectra) -> TiltCurves:
    """A start: the background is the level at the end of the band, the envelope twice what is above it."""
    k = spectra.k
    low, high = float(k[0]), float(k[-1])
    counts = spectra.counts.sum(0).cpu().numpy()
    weight = (
        spectra.counts
        * (torch.as_tensor(spectra.used, device=spectra.power.device).float())[:, None, None, None]
    )
    weight = weight * spectra.shares[:, None, None]
    mean = ((spectra.power * weight).sum((0, 1, 2)) / weight.sum((0, 1, 2)).clamp_min(1e-9)).cpu().numpy()
    last = k > high - 0.25 * (high - low)
    level = float((mean * counts)[last].sum() / counts[last].sum())
    u = (k - low) / (high - low)
    n_b = max(4, round((high - low) / BACKGROUND_SPACING) + 1)
    n_e = max(4, round((high - low) / ENVELOPE_SPACING) + 1)
    above = np.log(2.0 * np.maximum(mean - level, 0.01 * level))
    basis = spline_matrix(n_e, u)
    penalty = ENVELOPE_STIFFNESS * spline_penalty(n_e)
    envelope = np.linalg.solve(basis.T @ basis + penalty + 1e-9 * np.eye(n_e), basis.T @ above)
    n_t, n_p = spectra.power.shape[:2]
    return TiltCurves(
        np.full(n_b, math.log(max(level, 1e-6))),
        np.asarray(envelope, dtype=np.float64),
        np.zeros((n_t, OWN_POINTS)),
        np.zeros((n_t, 2)),
        low,
        high,
        torch.ones(n_t, n_p, device=spectra.power.device),
    )


def update_curves(
    spectra: TiltSpectra, optics: Optics, curves: TiltCurves, waves: Waves, *, patches: bool = True
) -> TiltCurves:
    """A scoring step each for the common curves, the tilts' own parts and the patches' strengths."""
    moments, strengths = _moments(spectra, optics, curves, waves)
    g_b, g_e, i_bb, i_be, i_ee = moments  # (tilts, rings) each
    on_b, on_e, on_own, on_s = curves.bases(spectra.k)
    n_b, n_e = len(curves.background), len(curves.envelope)
    # the common curves
    both = np.zeros((n_b + n_e, n_b + n_e))
    both[:n_b, :n_b] = STIFFNESS * spline_penalty(n_b)
    both[n_b:, n_b:] = ENVELOPE_STIFFNESS * spline_penalty(n_e)
    value = np.concatenate([curves.background, curves.envelope])
    matrix = _normal(on_b, on_e, i_bb.sum(0), i_be.sum(0), i_ee.sum(0))
    rhs = np.concatenate([on_b.T @ g_b.sum(0), on_e.T @ g_e.sum(0)]) - both @ value
    step = np.linalg.solve(matrix + both + 1e-3 * np.eye(n_b + n_e), rhs)
    value = value + np.clip(step, -LARGEST, LARGEST)
    # the tilts' own: what the common step explains is taken off first
    common_b, common_e = on_b @ step[:n_b], on_e @ step[n_b:]
    g_b, g_e = g_b - i_bb * common_b - i_be * common_e, g_e - i_be * common_b - i_ee * common_e
    n_own = on_own.shape[1]
    prior = np.diag([1.0 / OWN_SPREAD**2] * n_own + [1.0 / STRENGTH_SPREAD**2, 1.0 / DAMAGE_SPREAD**2])
    own = np.concatenate([curves.own, curves.strength], axis=1)
    for t in np.flatnonzero(spectra.used):
        matrix = _normal(on_own, on_s, i_bb[t], i_be[t], i_ee[t]) + prior
        rhs = np.concatenate([on_own.T @ g_b[t], on_s.T @ g_e[t]]) - prior @ own[t]
        step = np.linalg.solve(matrix, rhs)
        limit = np.full(len(step), LARGEST)
        limit[-1] *= 100.0
        own[t] += np.clip(step, -limit, limit)
    new = curves.patches
    if patches and new.shape[1] >= 4:
        new = (new + strengths).clamp(0.2, 5.0)
        new = new / new.mean(1, keepdim=True)
    return replace(
        curves,
        background=value[:n_b],
        envelope=value[n_b:],
        own=own[:, :n_own],
        strength=own[:, n_own:],
        patches=new,
    )


def _normal(
    on_b: NDArray[np.float64],
    on_e: NDArray[np.float64],
    i_bb: NDArray[np.float64],
    i_be: NDArray[np.float64],
    i_ee: NDArray[np.float64],
) -> NDArray[np.float64]:
    return np.block(
        [
            [on_b.T @ (i_bb[:, None] * on_b), on_b.T @ (i_be[:, None] * on_e)],
            [on_e.T @ (i_be[:, None] * on_b), on_e.T @ (i_ee[:, None] * on_e)],
        ]
    )


def _moments(
    spectra: TiltSpectra, optics: Optics, curves: TiltCurves, waves: Waves
) -> tuple[NDArray[np.float64], torch.Tensor]:
    """Derivatives by log B and log E summed over each tilt's rings, and steps of the patches' strengths."""
    n_t, n_r = spectra.power.shape[0], spectra.power.shape[3]
    device = spectra.power.device
    out = np.zeros((5, n_t, n_r))
    steps = torch.zeros_like(curves.patches)
    used = torch.as_tensor(spectra.used, device=device).float()
    for part in _parts(spectra):
        b, half = _expected(spectra, curves, part)
        state = waves.select(part)
        signal = half * (1.0 - state.contrast(spectra, optics) * torch.cos(2.0 * state.chi(spectra, optics)))
        inverse = 1.0 / (b + signal)
        counts = spectra.counts * (used[part, None] * spectra.shares)[:, :, None, None]
        # coefficients where the signal is strong scatter more: see `likelihood`
        counts = counts / (1.0 + TEXTURE * (signal * inverse).square())
        residual = (spectra.power[part] * inverse - 1.0) * counts
        from_b, from_e = b * inverse, signal * inverse
        terms = (
            residual * from_b,
            residual * from_e,
            counts * from_b * from_b,
            counts * from_b * from_e,
            counts * from_e * from_e,
        )
        for i, term in enumerate(terms):
            out[i, part] = term.sum((1, 2)).double().cpu().numpy()
        s = curves.patches[part]
        numerator = terms[1].sum((2, 3)) / s + PATCH_PRIOR * (1.0 - s)
        denominator = terms[4].sum((2, 3)) / s**2 + PATCH_PRIOR
        steps[part] = (numerator / denominator).clamp(-0.2, 0.2)
    return out, steps

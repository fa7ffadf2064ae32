"""Likelihood of power spectra under a CTF, and one step of its maximisation.

The expected power at frequency k in patch p is

    M = B(|k|) + s_p E(|k|) CTF²(k; defocus at p, astigmatism, phase)

and a periodogram scatters around its expectation exponentially, so the log-likelihood is Whittle's,
−Σ (log M + P / M). Compared with the paper's normalised correlation (which this replaces), every
coefficient counts by what it can tell: where noise dominates the weight falls off as the square of the
signal-to-noise ratio, and strong low-resolution rings are not drowned by it. The background B and
envelope E are smooth curves fitted along with the rest, s_p is the strength of each patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.spectra import Spectra
from weft.physics.optics import Optics
from weft.physics.splines import spline_matrix, spline_penalty

__all__ = ["Curves", "Slopes", "evaluate", "initial_curves", "model_power", "update_curves"]

CHUNK = 32  # patches in one go: a few MB, which stay in the cache
POINT_SPACING = 0.035  # 1/Å between control points of background and envelope: wider than Thon rings
STIFFNESS = 2.0  # inverse variance of second differences between points of the logarithms
DEVIATION = 0.7  # of the logarithm of the envelope from a Gaussian fall-off, standard deviation
FALL_OFF = (75.0, 75.0)  # of the envelope in power, exp(−b k²): mean and standard deviation of b, Å²
STRENGTH_PRIOR = 10.0  # inverse variance of patches' strengths around one
TEXTURE = 3.0  # extra relative variance of the signal; particles that cover a third of the field give this
CELL = 6  # Fourier pixels: checkerboard cells of the two halves used for cross-validation


@dataclass(frozen=True)
class Curves:
    """Background and envelope by their logarithms, and the strength of each patch.

    Attributes
    ----------
    background : (points,) float64
        Spline values at evenly spaced frequencies between `low` and `high` (1/Å).
    envelope : (2 + points,) float64
        Height and fall-off b of a Gaussian exp(−b k²), and spline values of the deviation from it.
        Where the data say nothing the Gaussian is continued, so that noise is not taken for signal.
    strength : (patches,) float32
    """

    background: NDArray[np.float64]
    envelope: NDArray[np.float64]
    low: float
    high: float
    strength: torch.Tensor

    def at(self, k: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Background and envelope at frequencies (1/Å)."""
        on_b, on_e = self.bases(np.asarray(k, dtype=np.float64).reshape(-1))
        shape = np.shape(k)
        return np.exp(on_b @ self.background).reshape(shape), np.exp(on_e @ self.envelope).reshape(shape)

    def bases(self, k: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivatives of the two logarithms with respect to their parameters."""
        u = ((k - self.low) / (self.high - self.low)).clip(0.0, 1.0)
        deviation = spline_matrix(len(self.envelope) - 2, u)
        return spline_matrix(len(self.background), u), np.column_stack([np.ones(len(k)), -(k**2), deviation])


@dataclass(frozen=True)
class Slopes:
    """First derivatives and Fisher information of every patch.

    The four parameters of a patch are its defocus, the two components of astigmatism (Å along cos 2θ
    and sin 2θ) and the phase (radians). The leading axis is: all coefficients, first half, second half.

    Attributes
    ----------
    gradient : (3, patches, 4) float64
    information : (3, patches, 4, 4) float64
    log_likelihood : float
        Of all coefficients.
    """

    gradient: torch.Tensor
    information: torch.Tensor
    log_likelihood: float


def _phase(
    spectra: Spectra, optics: Optics, defocus: torch.Tensor, astigmatism: NDArray[np.float64], phase: float
) -> torch.Tensor:
    """CTF phase, (patches, ky, kx); `defocus` is (patches,), `astigmatism` (2,), `phase` in radians."""
    k2 = spectra.k**2
    azimuth = spectra.azimuth
    wl = optics.wavelength
    fixed = float(astigmatism[0]) * torch.cos(2 * azimuth) + float(astigmatism[1]) * torch.sin(2 * azimuth)
    fixed = math.pi * wl * k2 * (fixed - 0.5 * optics.cs_angstrom * wl**2 * k2)
    fixed = fixed + (phase + optics.amplitude_phase)
    return fixed[None] + (math.pi * wl * k2)[None] * defocus.to(k2)[:, None, None]


def _radial(spectra: Spectra, curves: Curves) -> tuple[torch.Tensor, torch.Tensor]:
    b, e = curves.at(spectra.k.cpu().numpy())
    return (
        torch.as_tensor(b, dtype=torch.float32, device=spectra.power.device),
        torch.as_tensor(e, dtype=torch.float32, device=spectra.power.device),
    )


def model_power(
    spectra: Spectra,
    optics: Optics,
    curves: Curves,
    defocus: torch.Tensor,
    astigmatism: NDArray[np.float64],
    phase: float,
) -> torch.Tensor:
    """Expected power M, (patches, ky, kx)."""
    b, e = _radial(spectra, curves)
    c = torch.sin(_phase(spectra, optics, defocus, astigmatism, phase))
    return b + curves.strength[:, None, None] * e * c * c


def _halves(spectra: Spectra) -> torch.Tensor:
    """Multiplicities of two sets of coefficients in alternating cells with a guard line, (2, ky, kx)."""
    rows = torch.round(spectra.ky / spectra.dk).long()
    columns = torch.round(spectra.kx / spectra.dk).long()
    color = (torch.div(rows, CELL, rounding_mode="floor")[:, None] + (columns // CELL)[None, :]) % 2
    guard = (rows % CELL != 0)[:, None] & (columns % CELL != 0)[None, :]
    return torch.stack([spectra.multiplicity * ((color == h) & guard) for h in (0, 1)])


def evaluate(
    spectra: Spectra,
    optics: Optics,
    curves: Curves,
    defocus: torch.Tensor,
    astigmatism: NDArray[np.float64],
    phase: float,
) -> Slopes:
    """Log-likelihood, its derivatives and its expected information at given parameters.

    Parameters
    ----------
    defocus : (patches,) tensor
        Å.
    astigmatism : (2,) array
        Å along cos 2θ and sin 2θ: half of (U − V) times the cosine and sine of twice the angle.
    phase : float
        Of a phase plate, radians.
    """
    device = spectra.power.device
    sets = torch.cat([spectra.multiplicity[None], _halves(spectra)])
    k2 = math.pi * optics.wavelength * spectra.k**2
    azimuth = spectra.azimuth
    d = torch.stack([k2, k2 * torch.cos(2 * azimuth), k2 * torch.sin(2 * azimuth), torch.ones_like(k2)])
    d = d.reshape(4, -1)
    first = (sets.reshape(3, 1, -1) * d).reshape(12, -1).T.contiguous()
    second = (sets.reshape(3, 1, 1, -1) * (d[:, None] * d[None, :])).reshape(48, -1).T.contiguous()
    b, e = _radial(spectra, curves)
    weight = sets[0]
    n = len(spectra.power)
    gradient = torch.empty(n, 12, device=device)
    information = torch.empty(n, 48, device=device)
    total = 0.0
    for start in range(0, n, CHUNK):
        part = slice(start, min(start + CHUNK, n))
        sub = replace(spectra, power=spectra.power[part])
        chi = _phase(sub, optics, defocus[part], astigmatism, phase)
        envelope = curves.strength[part, None, None] * e
        c = torch.sin(chi)
        inverse = 1.0 / (b + envelope * c * c)
        ratio = sub.power * inverse
        total -= float(((ratio - torch.log(inverse)) * weight).sum((-2, -1)) @ spectra.independence[part])
        slope = envelope * torch.sin(2.0 * chi) * inverse
        share = 1.0 / (1.0 + TEXTURE * (envelope * c * c * inverse).square())
        gradient[part] = ((ratio - 1.0) * slope * share).reshape(len(chi), -1) @ first
        information[part] = (slope * slope * share).reshape(len(chi), -1) @ second
    gradient *= spectra.independence[:, None]
    information *= spectra.independence[:, None]
    return Slopes(
        gradient.reshape(n, 3, 4).permute(1, 0, 2).double(),
        information.reshape(n, 3, 4, 4).permute(1, 0, 2, 3).double(),
        total,
    )


def initial_curves(spectra: Spectra, low: float, high: float) -> Curves:
    """A start for background and envelope: the radial mean, and a tenth of it falling off."""
    k = spectra.k
    weight = spectra.multiplicity
    shells = torch.round(k / spectra.dk).long().reshape(-1)
    count = torch.bincount(shells, weight.reshape(-1))
    mean = torch.bincount(
        shells,
        (
            torch.tensordot(spectra.independence, spectra.power, 1) / spectra.independence.sum() * weight
        ).reshape(-1),
    ) / count.clamp_min(1e-9)
    used = (count > 1).cpu().numpy()
    shell_k = np.arange(len(count))[used] * spectra.dk
    level = np.log(mean.cpu().numpy()[used].clip(1e-6))
    u = ((shell_k - low) / (high - low)).clip(0, 1)
    points = max(4, round((high - low) / POINT_SPACING) + 1)
    background = np.linalg.lstsq(spline_matrix(points, u), level, rcond=None)[0]
    envelope = np.zeros(2 + points)
    envelope[:2] = np.log(0.3) + level.mean(), FALL_OFF[0]
    strength = torch.ones(len(spectra.power), device=spectra.power.device)
    return Curves(background, envelope, low, high, strength)


def update_curves(
    spectra: Spectra,
    optics: Optics,
    curves: Curves,
    defocus: torch.Tensor,
    astigmatism: NDArray[np.float64],
    phase: float,
    *,
    strengths: bool = True,
) -> Curves:
    """One scoring step for background and envelope, and for the patches' strengths."""
    b, e = _radial(spectra, curves)
    weight = spectra.multiplicity
    device = spectra.power.device
    moments = torch.zeros(5, *b.shape, device=device)
    new_strength = torch.empty_like(curves.strength)
    for start in range(0, len(spectra.power), CHUNK):
        part = slice(start, min(start + CHUNK, len(spectra.power)))
        sub = replace(spectra, power=spectra.power[part])
        c2 = torch.sin(_phase(sub, optics, defocus[part], astigmatism, phase)).square()
        s = curves.strength[part, None, None]
        inverse = 1.0 / (b + s * e * c2)
        residual = (sub.power * inverse - 1.0) * inverse
        signal = s * c2 * e
        inverse2 = inverse * inverse
        independent = spectra.independence[part]
        for moment, term in zip(
            moments,
            (
                residual * b,
                residual * signal,
                inverse2 * b * b,
                inverse2 * b * signal,
                inverse2 * signal * signal,
            ),
        ):
            moment += torch.tensordot(independent, term, 1)
        numerator = (residual * e * c2 * weight).sum((-2, -1)) * independent
        denominator = (inverse2 * (e * c2).square() * weight).sum((-2, -1)) * independent
        # strengths scatter around one; small steps, because background and envelope move at the same time
        step = (numerator + STRENGTH_PRIOR * (1.0 - curves.strength[part])) / (denominator + STRENGTH_PRIOR)
        new_strength[part] = curves.strength[part] + step.clamp(-0.2, 0.2)
    shells = torch.round(spectra.k / spectra.dk).long().reshape(-1)
    sums = torch.stack([torch.bincount(shells, (m * weight).reshape(-1).double()) for m in moments])
    shell_k = np.arange(sums.shape[1]) * spectra.dk
    on_b, on_e = curves.bases(np.asarray(shell_k, dtype=np.float64))
    g_b, g_e, i_bb, i_be, i_ee = sums.cpu().numpy()
    rhs = np.concatenate([on_b.T @ g_b, on_e.T @ g_e])
    matrix = np.block(
        [
            [on_b.T @ (i_bb[:, None] * on_b), on_b.T @ (i_be[:, None] * on_e)],
            [on_e.T @ (i_be[:, None] * on_b), on_e.T @ (i_ee[:, None] * on_e)],
        ]
    )
    nb = len(curves.background)
    prior, centre = _curve_prior(curves)
    value = np.concatenate([curves.background, curves.envelope])
    change = np.linalg.solve(matrix + prior, rhs - prior @ (value - centre))
    change[nb + 1] /= 100.0  # Å² against logarithms: bring to like size before limiting
    change = np.clip(change, -0.7, 0.7)
    change[nb + 1] *= 100.0
    value = value + change
    if not strengths or len(new_strength) < 4:
        new_strength = curves.strength
    else:
        new_strength = new_strength.clamp(0.1, 5.0)
        new_strength = new_strength / new_strength.mean()
    return replace(curves, background=value[:nb], envelope=value[nb:], strength=new_strength)


def _curve_prior(curves: Curves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse covariance and centre of the parameters of background and envelope."""
    nb, ne = len(curves.background), len(curves.envelope)
    prior = 1e-3 * np.eye(nb + ne)
    centre = np.concatenate([curves.background, curves.envelope])
    centre[nb + 1 :] = 0.0
    centre[nb + 1] = FALL_OFF[0]
    prior[:nb, :nb] += STIFFNESS * spline_penalty(nb)
    centre[:nb] = curves.background.mean()
    prior[nb + 1, nb + 1] = 1.0 / FALL_OFF[1] ** 2
    points = np.arange(nb + 2, nb + ne)
    prior[np.ix_(points, points)] += STIFFNESS * spline_penalty(ne - 2) + np.eye(ne - 2) / DEVIATION**2
    return prior, centre

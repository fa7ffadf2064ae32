"""The joint fit of a tilt series: defocus of every tilt, astigmatism and phase over time, inclination.

Scoring steps with the likelihood's analytic derivatives, as for single micrographs (`fit`). The series' own
prior (`tilt_search.SeriesPrior`) keeps tilts without signal where the others are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from weft.defocus.tilt_model import Slopes, TiltCurves, Waves, evaluate, update_curves
from weft.defocus.tilt_planes import depth, gradients, level_derivatives
from weft.defocus.tilt_search import SeriesPrior
from weft.defocus.tilt_spectra import TiltSpectra
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.physics.splines import spline_matrix

__all__ = ["Freedom", "TiltSolution", "refine", "rescan"]

ASTIGMATISM_SPREAD = 1000.0  # Å, of its mean over the series (half of U − V)
ASTIGMATISM_DRIFT = 60.0  # Å, of control points around the mean
PHASE_DRIFT = math.radians(30.0)  # of control points around the mean
SMALL = 3.0  # Å: a round that changes no defocus by more is the last,
SETTLED = 0.1  # or no parameter by more than this part of its error
LARGEST_LEVEL = 4.0  # degrees in one round
SCANNED = 12000.0  # Å on either side
SCAN_STEPS = 15.0  # in the defocus that turns 2χ once at the highest frequency that is scanned
SCAN_FINEST = 10.0  # Å
ANOTHER = 3.0  # log-likelihood units by which another peak must be better


@dataclass(frozen=True)
class Freedom:
    """What is fitted.

    Attributes
    ----------
    time : (tilts,) float64
        Place of each tilt between the first and the last exposure, 0 to 1.
    points : int
        Control points of astigmatism (and phase) over time; 0 for no astigmatism.
    fit_phase : bool
    level_spread : float
        Degrees: prior standard deviation of the inclination's correction; 0: it is not fitted.
    """

    time: NDArray[np.float64]
    points: int
    fit_phase: bool
    level_spread: float

    @property
    def weights(self) -> NDArray[np.float64]:
        """(tilts, points) of the control points."""
        return spline_matrix(max(self.points, 1), self.time)


@dataclass(frozen=True)
class TiltSolution:
    """A fitted tilt series.

    Attributes
    ----------
    defocus, defocus_error : (tilts,) float64
        Å, at the volume's centre; the fit's own expected standard deviation.
    astigmatism : (points, 2) float64
        Å along cos 2θ and sin 2θ, half of U − V.
    phase : (points,) float64
        Radians.
    level, level_error : (2,) float64
        Correction of level_x and level_y, degrees.
    level_covariance : (2, 2) float64
    astigmatism_error : float
        Of a component at a control point, Å.
    log_likelihood, evidence : (tilts,) float64
        The second is the gain over a spectrum without rings.
    """

    geometry: TiltGeometry
    freedom: Freedom
    curves: TiltCurves
    defocus: NDArray[np.float64]
    astigmatism: NDArray[np.float64]
    phase: NDArray[np.float64]
    level: NDArray[np.float64]
    defocus_error: NDArray[np.float64]
    level_error: NDArray[np.float64]
    astigmatism_error: float
    log_likelihood: NDArray[np.float64]
    evidence: NDArray[np.float64]

    @classmethod
    def start(
        cls,
        geometry: TiltGeometry,
        freedom: Freedom,
        curves: TiltCurves,
        defocus: NDArray[np.float64],
        phase: float,
    ) -> TiltSolution:
        n, m = len(defocus), max(freedom.points, 1)
        none = np.zeros(n)
        return cls(
            geometry,
            freedom,
            curves,
            defocus.copy(),
            np.zeros((m, 2)),
            np.full(m, phase),
            np.zeros(2),
            none,
            np.zeros(2),
            0.0,
            none,
            none,
        )

    def waves(self, spectra: TiltSpectra) -> Waves:
        """The optical state of every patch."""
        slopes = gradients(self.geometry, self.level)
        weights = self.freedom.weights
        return Waves(
            self.defocus[:, None] + depth(self.geometry, slopes, spectra.centers),
            slopes,
            weights @ self.astigmatism,
            weights @ self.phase,
        )


def _equations(
    spectra: TiltSpectra, solution: TiltSolution, slopes: Slopes
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normal matrix, and right sides of every patch's place (patches, parameters).

    The parameters are (defoci, astigmatism 1 and 2, phase points, level_x, level_y).
    """
    weights = solution.freedom.weights
    n_t, m = weights.shape
    by_level = np.stack(
        [
            depth(solution.geometry, d, spectra.centers)
            for d in np.moveaxis(level_derivatives(solution.geometry, solution.level), -1, 0)
        ],
        axis=-1,
    )  # (tilts, patches, 2)
    n_p = by_level.shape[1]
    local = np.zeros((n_t, n_p, 4, 6))
    local[..., :4, :4] = np.eye(4)
    local[..., 0, 4:] = by_level
    h = np.einsum("tpai,tpab,tpbj->tij", local, slopes.information, local, optimize=True)
    g = np.einsum("tpai,tpa->tpi", local, slopes.gradient, optimize=True)
    size = n_t + 3 * m + 2
    to_all = np.zeros((n_t, 6, size))
    tilts = np.arange(n_t)
    to_all[tilts, 0, tilts] = 1.0
    for i in range(3):
        to_all[:, 1 + i, n_t + i * m : n_t + (i + 1) * m] = weights
    to_all[:, 4, -2] = to_all[:, 5, -1] = 1.0
    matrix = np.einsum("tiu,tij,tjv->uv", to_all, h, to_all, optimize=True)
    return matrix, np.einsum("tiu,tpi->pu", to_all, g, optimize=True)


def _prior(
    solution: TiltSolution, prior: SeriesPrior, anchor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse covariance, and its pull on the parameters as they are; `anchor` is the phase started from."""
    freedom = solution.freedom
    n_t, m = len(solution.defocus), len(solution.phase)
    pull_z, precision_z = prior.pull(solution.defocus)
    matrix = np.zeros((n_t + 3 * m + 2,) * 2)
    pull = np.zeros(len(matrix))
    matrix[np.arange(n_t), np.arange(n_t)] = precision_z
    pull[:n_t] = pull_z
    mean, around = np.full((m, m), 1.0 / m), np.eye(m) - np.full((m, m), 1.0 / m)
    astigmatism = m * mean / ASTIGMATISM_SPREAD**2 + around / ASTIGMATISM_DRIFT**2
    if freedom.points == 0:
        astigmatism = np.eye(m) * 1e6
    phase = around / PHASE_DRIFT**2 + 1e-4 * mean if freedom.fit_phase else np.eye(m) * 1e12
    for i, (block, value) in enumerate(
        (
            (astigmatism, solution.astigmatism[:, 0]),
            (astigmatism, solution.astigmatism[:, 1]),
            (phase, solution.phase - anchor),
        )
    ):
        part = slice(n_t + i * m, n_t + (i + 1) * m)
        matrix[part, part] = block
        pull[part] = -block @ value
    precision = 1.0 / freedom.level_spread**2 if freedom.level_spread > 0.0 else 1e12
    for i in (-2, -1):
        matrix[i, i] = precision
        pull[i] = -precision * solution.level[i]
    return matrix, pull


def refine(
    spectra: TiltSpectra,
    optics: Optics,
    solution: TiltSolution,
    prior: SeriesPrior,
    *,
    rounds: int,
    settle: int = 0,
) -> TiltSolution:
    """Scoring rounds until no tilt's defocus changes any more.

    Parameters
    ----------
    spectra : TiltSpectra
        Restricted to the fitted range.
    rounds : int
        At most.
    settle : int
        Rounds of the curves alone at first.
    """
    for i in range(settle):
        curves = update_curves(
            spectra, optics, solution.curves, solution.waves(spectra), patches=i >= settle // 2
        )
        solution = replace(solution, curves=curves)
    n_t, m = len(solution.defocus), len(solution.phase)
    largest = 1.0 / (3.0 * optics.wavelength * float(spectra.k[-1]) ** 2)
    anchor = float(solution.phase.mean())
    for round_ in range(rounds):
        slopes = evaluate(spectra, optics, solution.curves, solution.waves(spectra))
        matrix, rhs = _equations(spectra, solution, slopes)
        stiff, pull = _prior(solution, prior, anchor)
        step = np.linalg.solve(matrix + stiff, rhs.sum(0) + pull)
        z = np.clip(step[:n_t], -largest, largest)
        a = step[n_t : n_t + 2 * m].reshape(2, m).T
        a = a * min(1.0, largest / max(float(np.hypot(a[:, 0], a[:, 1]).max()), 1e-9))
        solution = replace(
            solution,
            defocus=solution.defocus + z,
            astigmatism=solution.astigmatism + a,
            phase=solution.phase + np.clip(step[n_t + 2 * m : n_t + 3 * m], -0.3, 0.3),
            level=solution.level + np.clip(step[-2:], -LARGEST_LEVEL, LARGEST_LEVEL),
        )
        curves = update_curves(spectra, optics, solution.curves, solution.waves(spectra))
        solution = replace(solution, curves=curves)
        # a change that the data could not tell from none is none
        error = 1.0 / np.sqrt(np.diag(matrix + stiff))
        scale = np.maximum(SETTLED * error, np.where(np.arange(len(step)) < n_t + 2 * m, SMALL, 0.0))
        if round_ > 1 and bool((np.abs(step) <= scale).all()):
            break
    return judged(spectra, optics, solution, prior)


def judged(spectra: TiltSpectra, optics: Optics, solution: TiltSolution, prior: SeriesPrior) -> TiltSolution:
    """The same with its likelihood, evidence and expected errors brought up to date."""
    waves = solution.waves(spectra)
    slopes = evaluate(spectra, optics, solution.curves, waves)
    without = evaluate(spectra, optics, solution.curves, waves, rings=False)
    matrix, rhs = _equations(spectra, solution, slopes)
    stiff, _ = _prior(solution, prior, float(solution.phase.mean()))
    covariance = np.linalg.inv(matrix + stiff)
    variance = np.maximum(np.diag(covariance), _between_patches(spectra, covariance @ rhs.T))
    n_t, m = len(solution.defocus), len(solution.phase)
    return replace(
        solution,
        defocus_error=np.sqrt(variance[:n_t]),
        level_error=np.sqrt(variance[-2:]),
        astigmatism_error=float(np.sqrt(variance[n_t : n_t + 2 * m].mean())),
        log_likelihood=slopes.log_likelihood.sum(1),
        evidence=(slopes.log_likelihood - without.log_likelihood).sum(1),
    )


def _between_patches(spectra: TiltSpectra, influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variances from how much the patches disagree, (parameters,).

    What is in a patch lies at some depth, which all tilts see in the same place: an error that the statistics
    of a coefficient knows nothing of. The patches' pulls on the parameters, (parameters, patches), are added
    up as clusters (White's "sandwich"), neighbours that share pixels with a weight of one half (Bartlett's
    window).
    """
    apart = np.abs(spectra.places[:, None] - spectra.places[None]) / spectra.side
    together = np.clip(1.0 - apart, 0.0, 1.0).prod(-1)
    variance = np.einsum("ip,pq,iq->i", influence, together, influence, optimize=True)
    # a plane has taken its part of the disagreement
    independent = max(float(spectra.shares.sum()), 4.0)
    return np.asarray(variance * independent / (independent - 3.0))


def rescan(
    spectra: TiltSpectra,
    optics: Optics,
    solution: TiltSolution,
    prior: SeriesPrior,
    limits: tuple[float, float],
) -> tuple[TiltSolution, NDArray[np.float64], NDArray[np.float64]]:
    """Look once more at every tilt's whole profile, everything else held; tilts move to better peaks.

    Returns
    -------
    solution : TiltSolution
    offsets : (n,) float64
        Å.
    profile : (tilts, n) float64
        Log-likelihood with each tilt's defocus changed by an offset, minus that without change.
    """
    band = spectra.within(0.0, 1.0 / SCAN_FINEST)
    step = 1.0 / (SCAN_STEPS * optics.wavelength * float(band.k[-1]) ** 2)
    half = int(min(SCANNED, limits[1] - limits[0]) / step)
    offsets = np.asarray(step * np.arange(-half, half + 1), dtype=np.float64)
    waves = solution.waves(band)
    rows = []
    for offset in offsets:
        moved = replace(waves, defocus=waves.defocus + offset)
        value = evaluate(band, optics, solution.curves, moved, slopes=False).log_likelihood.sum(1)
        place = solution.defocus + offset
        outside = (place < limits[0]) | (place > limits[1])
        rows.append(np.where(outside & (offset != 0.0), -np.inf, value))
    values = np.stack(rows, axis=1)
    profile = np.asarray(values - values[:, half : half + 1], dtype=np.float64)
    total = profile + prior.log(solution.defocus[:, None] + offsets) - prior.log(solution.defocus)[:, None]
    best = np.argmax(total, axis=1)
    better = (total[np.arange(len(best)), best] > ANOTHER) & spectra.used
    defocus = np.where(better, solution.defocus + offsets[best], solution.defocus)
    return replace(solution, defocus=defocus), offsets, profile

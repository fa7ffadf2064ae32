"""The fit of one field of view: defocus surface, astigmatism, phase, background and envelope together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.likelihood import Curves, Slopes, evaluate, initial_curves, update_curves
from weft.defocus.search import Start
from weft.defocus.spectra import Spectra
from weft.physics.optics import Optics
from weft.physics.splines import evaluate_grid, spline_matrix

__all__ = ["Freedom", "Solution", "evidence", "refine", "refine_phase", "wrap_phase"]

TILT_SCALES = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 5000.0)  # Å of defocus from centre to edge; 0: flat
BEND_SCALES = (0.0, 10.0, 30.0, 100.0, 300.0)  # Å, deviations of control points from the plane; 0: a plane
PHASE_SPREAD = math.radians(30.0)  # of the phase within one exposure
ONE_ERROR = 1.0  # log-likelihood units
ASTIGMATISM_SCALES = (30.0, 1500.0)  # Å: next to none, or free


@dataclass(frozen=True)
class Freedom:
    """Prior standard deviations (Å) of the tilt, of the bending and of astigmatism."""

    tilt: float
    bend: float
    astigmatism: float


@dataclass(frozen=True)
class Solution:
    """A fitted field of view.

    Attributes
    ----------
    parameters : (3 + n + 3,) float64
        Defocus at the centre; defocus at the right and at the lower edge minus that; deviations of the
        control points; two components of astigmatism (all Å); phase (radians).
    grid : (int, int)
        Control points in x and y.
    errors : (3 + n + 3,) float64
        Expected standard deviations of the parameters.
    """

    parameters: NDArray[np.float64]
    grid: tuple[int, int]
    curves: Curves
    freedom: Freedom
    log_likelihood: float
    errors: NDArray[np.float64]

    @property
    def astigmatism(self) -> NDArray[np.float64]:
        return self.parameters[-3:-1]

    @property
    def phase(self) -> float:
        return float(self.parameters[-1])

    def control_points(self) -> NDArray[np.float64]:
        """Defocus at the control points, (y, x) Å; a plane is straight lines through two of them."""
        nx, ny = self.grid
        x, y = np.meshgrid(
            np.linspace(-1, 1, nx) if nx > 1 else [0.0], np.linspace(-1, 1, ny) if ny > 1 else [0.0]
        )
        plane = self.parameters[0] + self.parameters[1] * x + self.parameters[2] * y
        return np.asarray(plane + self.parameters[3:-3].reshape(ny, nx))


def _design(spectra: Spectra, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Defocus of every patch from the parameters of the surface, (patches, 3 + n)."""
    nx, ny = grid
    u = spectra.centers / np.array(spectra.extent)
    bend = np.einsum("pi,pj->pij", spline_matrix(ny, u[:, 1]), spline_matrix(nx, u[:, 0]))
    plane = np.stack([np.ones(len(u)), 2 * u[:, 0] - 1, 2 * u[:, 1] - 1], axis=1)
    return np.concatenate([plane, bend.reshape(len(u), -1)], axis=1)


def _equations(
    design: NDArray[np.float64], slopes: Slopes, half: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    g, i = slopes.gradient[half].cpu().numpy(), slopes.information[half].cpu().numpy()
    cross = design.T @ i[:, 0, 1:]
    matrix = np.block([[design.T @ (i[:, 0, 0, None] * design), cross], [cross.T, i[:, 1:, 1:].sum(0)]])
    return matrix, np.concatenate([design.T @ g[:, 0], g[:, 1:].sum(0)])


def _prior(freedom: Freedom, n_bend: int, fit_phase: bool) -> NDArray[np.float64]:
    def precision(scale: float) -> float:
        return 1.0 / max(scale, 1e-3) ** 2

    return np.diag(
        [1e-12, precision(freedom.tilt), precision(freedom.tilt)]
        + [precision(freedom.bend)] * n_bend
        + [precision(freedom.astigmatism)] * 2
        + [1e-4 if fit_phase else 1e12]
    )


def _choose(
    halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    parameters: NDArray[np.float64],
    anchor: NDArray[np.float64],
    candidates: list[Freedom],
    fit_phase: bool,
) -> Freedom:
    """The least freedom under which each half of the coefficients predicts the other as well as under any.

    As well: within `ONE_ERROR` of the best score (the "one standard error" rule of cross-validation).
    """
    scores, effective = [], []
    for freedom in candidates:
        prior = _prior(freedom, len(parameters) - 6, fit_phase)
        score = 0.0
        for (matrix, rhs), (other_matrix, other_rhs) in (halves, halves[::-1]):
            step = np.linalg.solve(matrix + prior, rhs - prior @ (parameters - anchor))
            score += float(other_rhs @ step - 0.5 * step @ other_matrix @ step)
        both = halves[0][0] + halves[1][0]
        scores.append(score)
        effective.append(float(np.trace(np.linalg.solve(both + prior, both))))
    good = [i for i, s in enumerate(scores) if s >= max(scores) - ONE_ERROR]
    return candidates[min(good, key=lambda i: effective[i])]


def candidates_for(grid: tuple[int, int], n_patches: int) -> list[Freedom]:
    """Freedoms to choose from: those that the wanted grid and the number of patches allow."""
    tilts = TILT_SCALES if max(grid) > 1 and n_patches >= 4 else (0.0,)
    bends = BEND_SCALES if max(grid) > 2 and n_patches >= 9 else (0.0,)
    return [Freedom(t, b, a) for a in ASTIGMATISM_SCALES for b in bends for t in tilts if b == 0.0 or t > 0.0]


def refine(
    spectra: Spectra,
    optics: Optics,
    start: Start | Solution,
    grid: tuple[int, int],
    band: tuple[float, float],
    *,
    rounds: int,
    fit_phase: bool = False,
    freedom: Freedom | None = None,
) -> Solution:
    """Scoring rounds from a starting point.

    Parameters
    ----------
    spectra : Spectra
        Restricted to `band`.
    start : Start or Solution
    grid : (int, int)
        Control points of the defocus surface in x and y; (1, 1) is one defocus, (2, 2) a plane.
    band : (float, float)
        1/Å.
    rounds : int
        At most; ends when no patch's defocus changes by more than 2 Å.
    freedom : Freedom, optional
        Fixed; by default chosen in every round by predicting left-out coefficients.
    """
    design = _design(spectra, grid)
    n_bend = design.shape[1] - 3
    device = spectra.power.device
    parameters = np.zeros(3 + n_bend + 3)
    curves = initial_curves(spectra, *band)
    if isinstance(start, Start):
        parameters[:3] = (
            start.defocus,
            start.slope_x * spectra.extent[0] / 2,
            start.slope_y * spectra.extent[1] / 2,
        )
        parameters[-3:] = (*start.astigmatism, start.phase)
    else:
        parameters[:3], parameters[-3:] = start.parameters[:3], start.parameters[-3:]
        if start.grid == grid:
            parameters[3:-3] = start.parameters[3:-3]
    fixed_phase = parameters[-1]
    candidates = candidates_for(grid, len(design)) if freedom is None else [freedom]

    def surface() -> torch.Tensor:
        return torch.as_tensor(design @ parameters[:-3], device=device)

    for i in range(8):
        curves = update_curves(
            spectra, optics, curves, surface(), parameters[-3:-1], parameters[-1], strengths=i > 5
        )
    k_top = band[1]
    # a step may change the phase at the top of the band by a third of a half-wave at most
    largest = 1.0 / (3.0 * optics.wavelength * k_top**2)
    anchor = np.zeros_like(parameters)
    anchor[-1] = fixed_phase
    for round_ in range(rounds):
        anchor[0] = parameters[0]
        slopes = evaluate(spectra, optics, curves, surface(), parameters[-3:-1], parameters[-1])
        equations = [_equations(design, slopes, h) for h in range(3)]
        chosen = (
            candidates[0]
            if len(candidates) == 1
            else _choose(equations[1:], parameters, anchor, candidates, fit_phase)
        )
        prior = _prior(chosen, n_bend, fit_phase)
        matrix, rhs = equations[0]
        step = np.linalg.solve(matrix + prior, rhs - prior @ (parameters - anchor))
        change = np.abs(design @ step[:-3]).max() + np.hypot(*step[-3:-1])
        if change > largest:
            step *= largest / change
        parameters = parameters + step
        curves = update_curves(spectra, optics, curves, surface(), parameters[-3:-1], parameters[-1])
        if change < 2.0 and round_ > 1:
            break
    return Solution(
        parameters,
        grid,
        curves,
        chosen,
        slopes.log_likelihood,
        np.sqrt(np.diag(np.linalg.inv(matrix + prior))),
    )


def _defocus_of_patches(spectra: Spectra, solution: Solution) -> torch.Tensor:
    u = spectra.centers / np.array(spectra.extent)
    return torch.as_tensor(
        evaluate_grid(solution.control_points(), u[:, 1], u[:, 0]), device=spectra.power.device
    )


def evidence(spectra: Spectra, optics: Optics, solution: Solution) -> float:
    """Log-likelihood of the fit minus that of a smooth spectrum without any rings.

    Some ten units are what an exhaustive search finds in pure noise.

    Parameters
    ----------
    spectra : Spectra
        Restricted to the band of `solution`.
    """
    z = _defocus_of_patches(spectra, solution)
    at = (z, solution.astigmatism, solution.phase)
    without = solution.curves.envelope.copy()
    without[0] -= 40.0
    curves = replace(solution.curves, envelope=without)
    for _ in range(5):
        curves = update_curves(spectra, optics, curves, *at, strengths=False)
        curves = replace(curves, envelope=without)
    full = evaluate(spectra, optics, solution.curves, *at).log_likelihood
    return full - evaluate(spectra, optics, curves, *at).log_likelihood


def refine_phase(spectra: Spectra, optics: Optics, solution: Solution, rounds: int = 6) -> float:
    """The phase shift (radians) of other spectra of the same field, everything else held.

    A prior of 30° around the solution's phase keeps weak spectra in place.

    Parameters
    ----------
    spectra : Spectra
        Restricted to the band of `solution`; the same patches.
    """
    z = _defocus_of_patches(spectra, solution)
    phase, precision = solution.phase, 1.0 / PHASE_SPREAD**2
    curves = initial_curves(spectra, solution.curves.low, solution.curves.high)
    for i in range(6 + rounds):
        curves = update_curves(spectra, optics, curves, z, solution.astigmatism, phase, strengths=False)
        if i < 6:
            continue
        slopes = evaluate(spectra, optics, curves, z, solution.astigmatism, phase)
        gradient = float(slopes.gradient[0, :, 3].sum()) - precision * (phase - solution.phase)
        step = gradient / (float(slopes.information[0, :, 3, 3].sum()) + precision)
        phase += float(np.clip(step, -0.3, 0.3))
    return phase


def wrap_phase(phase: float) -> float:
    """Into 0 ≤ phase < π: CTF² cannot tell more."""
    return math.fmod(math.fmod(phase, math.pi) + math.pi, math.pi)

"""Tracks as splines, and the choice of how much freedom the data can pay for.

A track is a global shift of every frame plus a local part on a coarse grid of control points in time, y
and x (the paper, "Motion model"). Two priors keep both from following noise: the global shift
accelerates little from frame to frame, local control points are small. How little and how small is not
set by hand: each candidate pair of strengths is fitted to one half of the Fourier coefficients and
asked to predict the other half, and the pair that predicts best is used. "No local motion" is one of
the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.splines import spline_matrix

__all__ = ["Strengths", "TrackBasis", "choose_strengths", "expected_error", "normal_equations", "solve_step"]

GLOBAL_STRENGTHS = tuple(10.0 ** (0.5 * i) for i in range(-3, 7))  # 1/(Å/frame²)²
LOCAL_STRENGTHS = (
    *(10.0 ** (0.5 * i) for i in range(-4, 5)),
    float("inf"),
)  # 1/Å²; infinite: no local motion
OFF = 1e9  # stands for infinity in the equations


@dataclass(frozen=True)
class Strengths:
    """Prior strengths: inverse variances of the global acceleration and of the local control points."""

    smooth: float
    local: float


@dataclass(frozen=True)
class TrackBasis:
    """How parameters make tracks: ``track = time @ global + local_time @ local @ space``.

    Attributes
    ----------
    time : (frames, g) float64
        Spline weights of the global control points; the identity when every frame has its own.
    local_time : (frames, t) float64
    space : (patches, s) float64
    """

    time: NDArray[np.float64]
    local_time: NDArray[np.float64]
    space: NDArray[np.float64]

    @classmethod
    def at(
        cls,
        n_frames: int,
        places: NDArray[np.float64],
        extent: tuple[float, float],
        grid_time: int,
        grid_local: tuple[int, int, int],
    ) -> TrackBasis:
        """Basis for tracks at `places` (n, 2; x, y in Å) in a field of `extent` (width, height in Å).

        `grid_time` is the number of global control points (0: one a frame), `grid_local` that of the
        local ones in x, y and time.
        """
        u = np.arange(n_frames) / max(n_frames - 1, 1)
        nx, ny, nt = grid_local
        x = spline_matrix(nx, places[:, 0] / extent[0])
        y = spline_matrix(ny, places[:, 1] / extent[1])
        return cls(
            time=np.eye(n_frames) if grid_time in (0, n_frames) else spline_matrix(grid_time, u),
            local_time=spline_matrix(min(nt, n_frames), u),
            space=np.einsum("pi,pj->pij", y, x).reshape(len(places), ny * nx),
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of global and of local parameters, per axis."""
        return self.time.shape[1], self.local_time.shape[1] * self.space.shape[1]

    def tracks(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """(places, frames, 2) Å from ``(parameters, 2)``."""
        n_global, _ = self.sizes
        local = parameters[n_global:].reshape(self.local_time.shape[1], self.space.shape[1], 2)
        moved = np.einsum("ft,ps,tsd->pfd", self.local_time, self.space, local, optimize=True)
        return np.asarray((self.time @ parameters[:n_global])[None] + moved)

    def prior(self, strengths: Strengths) -> NDArray[np.float64]:
        """Inverse covariance of the parameters."""
        n_global, n_local = self.sizes
        out = np.zeros((n_global + n_local, n_global + n_local))
        acceleration = np.diff(self.time, n=2, axis=0)
        out[:n_global, :n_global] = strengths.smooth * acceleration.T @ acceleration + 1e-6 * np.eye(n_global)
        local = min(strengths.local, OFF)
        out[range(n_global, len(out)), range(n_global, len(out))] = local
        return out


def normal_equations(
    basis: TrackBasis, gradient: torch.Tensor, information: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Information matrix and right-hand side for the parameters.

    Parameters
    ----------
    gradient : (patches, frames, 2)
    information : (patches, frames, frames)

    Returns
    -------
    (n, n) and (n, 2) float64 arrays
        Both axes of the image share the matrix.
    """
    g, i = gradient.cpu().numpy(), information.cpu().numpy()
    time, local_time, space = basis.time, basis.local_time, basis.space
    n_global, n_local = basis.sizes
    i_local = i @ local_time
    matrix = np.empty((n_global + n_local, n_global + n_local))
    matrix[:n_global, :n_global] = time.T @ i.sum(0) @ time
    cross = np.tensordot(np.einsum("fg,pft->pgt", time, i_local, optimize=True), space, axes=(0, 0))
    matrix[:n_global, n_global:] = cross.reshape(n_global, n_local)
    matrix[n_global:, :n_global] = matrix[:n_global, n_global:].T
    both = np.einsum("fu,pft->put", local_time, i_local, optimize=True)
    matrix[n_global:, n_global:] = np.einsum("put,ps,pr->ustr", both, space, space, optimize=True).reshape(
        n_local, n_local
    )
    rhs = np.concatenate(
        [
            time.T @ g.sum(0),
            np.einsum("pfd,ft,ps->tsd", g, local_time, space, optimize=True).reshape(n_local, 2),
        ]
    )
    return matrix, rhs


def solve_step(
    matrix: NDArray[np.float64],
    rhs: NDArray[np.float64],
    prior: NDArray[np.float64],
    parameters: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The step that maximises the quadratic model of likelihood plus prior."""
    return np.linalg.solve(matrix + prior, rhs - prior @ parameters)


def choose_strengths(
    basis: TrackBasis,
    halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    parameters: NDArray[np.float64],
    local: list[float],
) -> tuple[Strengths, dict[float, float]]:
    """The prior strengths under which each half of the coefficients best predicts the other.

    Parameters
    ----------
    halves : two (matrix, rhs)
        Normal equations of the two halves at `parameters`.
    local : list of float
        Candidates for the local strength; infinite is "no local motion".

    Returns
    -------
    strengths : Strengths
    scores : dict
        Best predicted log-likelihood for every local strength, relative to the best global-only model.
    """
    best, winner = -np.inf, Strengths(GLOBAL_STRENGTHS[-1], np.inf)
    by_local: dict[float, float] = {}
    for local_strength in local:
        for smooth in GLOBAL_STRENGTHS:
            strengths = Strengths(smooth, local_strength)
            prior = basis.prior(strengths)
            score = 0.0
            for (matrix, rhs), (other_matrix, other_rhs) in (halves, halves[::-1]):
                step = solve_step(matrix, rhs, prior, parameters)
                score += float((other_rhs * step).sum() - 0.5 * (step * (other_matrix @ step)).sum())
            by_local[local_strength] = max(by_local.get(local_strength, -np.inf), score)
            if score > best:
                best, winner = score, strengths
    reference = by_local.get(np.inf, best)
    return winner, {k: v - reference for k, v in by_local.items()}


def expected_error(basis: TrackBasis, matrix: NDArray[np.float64], prior: NDArray[np.float64]) -> float:
    """RMS error (Å, both axes, mean over frames removed) that the fit expects of its own tracks."""
    n_frames = basis.time.shape[0]
    covariance = np.linalg.inv(matrix + prior)
    centre = np.eye(n_frames) - 1.0 / n_frames
    time, local_time = centre @ basis.time, centre @ basis.local_time
    total = 0.0
    for s in basis.space:
        b = np.concatenate([time, np.einsum("ft,s->fts", local_time, s).reshape(n_frames, -1)], axis=1)
        total += float(np.einsum("fi,ij,fj->", b, covariance, b, optimize=True)) / n_frames
    return float(np.sqrt(2.0 * total / len(basis.space)))

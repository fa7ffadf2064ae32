"""Tracks as splines, and the choice of how much freedom the data can pay for.

A track is a global shift of every frame plus a local part on a coarse grid of control points in time, y
and x (the paper, "Motion model"). Priors keep both from following noise: the global shift accelerates
little from frame to frame; local motion is small, and similar at neighbouring places. How little, how
small and how similar, and how soon local motion relaxes, is not set by hand: each candidate is fitted to
one half of the Fourier coefficients and asked to predict the other half, and the one that predicts best
is used. "No local motion" is one of the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from weft.physics.splines import spline_matrix

__all__ = ["Equations", "Freedom", "TrackBasis", "choose", "expected_error", "normal_equations", "time_axis"]

ACCELERATIONS = tuple(10.0 ** (-0.25 * i) for i in range(-3, 6))  # Å/frame², standard deviation
AMPLITUDES = (
    0.0,
    *(10.0 ** (0.25 * i) for i in range(-4, 5)),
)  # Å, of local control points; 0: no local motion
LENGTHS = (0.15, 0.5, 1.0)  # of the field, over which local motion is alike
RELAXATIONS = (np.inf, 12.0, 5.0, 2.0)  # frames, after which local motion slows down; infinite: never
OFF = 1e9  # stands for infinity in the equations


@dataclass(frozen=True)
class Freedom:
    """What tracks are expected to be like.

    Attributes
    ----------
    acceleration : float
        Standard deviation of the global shift's second differences, Å/frame².
    amplitude : float
        Standard deviation of local control points, Å; 0 is no local motion.
    length : float
        Fraction of the field over which local motion is alike.
    relaxation : float
        Frames after which local motion slows down: its control points are evenly spaced on the axis
        log(1 + frame / relaxation).
    """

    acceleration: float = 0.3
    amplitude: float = 1.0
    length: float = 0.5
    relaxation: float = np.inf


def time_axis(n_frames: int, relaxation: float) -> NDArray[np.float64]:
    """Place of every frame on the local motion's time axis, 0 to 1."""
    f = np.arange(n_frames) / max(n_frames - 1, 1)
    if not np.isfinite(relaxation):
        return f
    scale = relaxation / max(n_frames - 1, 1)
    return np.asarray(np.log1p(f / scale) / np.log1p(1.0 / scale))


@dataclass(frozen=True)
class TrackBasis:
    """How parameters make tracks: ``track = time @ global + local_time @ local @ space``.

    Attributes
    ----------
    time : (frames, g) float64
        Spline weights of the global control points; the identity when every frame has its own.
    local_time : (frames, t) float64
    space : (patches, s) float64
    grid : (int, int)
        Local control points in x and y.
    """

    time: NDArray[np.float64]
    local_time: NDArray[np.float64]
    space: NDArray[np.float64]
    grid: tuple[int, int]

    @classmethod
    def at(
        cls,
        n_frames: int,
        places: NDArray[np.float64],
        extent: tuple[float, float],
        grid_time: int,
        grid_local: tuple[int, int, int],
        relaxation: float = np.inf,
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
            local_time=spline_matrix(min(nt, n_frames), time_axis(n_frames, relaxation)),
            space=np.einsum("pi,pj->pij", y, x).reshape(len(places), ny * nx),
            grid=(nx, ny),
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

    def prior(self, freedom: Freedom) -> NDArray[np.float64]:
        """Inverse covariance of the parameters."""
        n_global, n_local = self.sizes
        out = np.zeros((n_global + n_local, n_global + n_local))
        acceleration = np.diff(self.time, n=2, axis=0) / freedom.acceleration
        out[:n_global, :n_global] = acceleration.T @ acceleration + 1e-6 * np.eye(n_global)
        if freedom.amplitude == 0.0:
            out[range(n_global, len(out)), range(n_global, len(out))] = OFF
            return out
        nx, ny = self.grid
        places = np.stack(np.meshgrid(np.linspace(0, 1, nx), np.linspace(0, 1, ny)), axis=-1).reshape(-1, 2)
        squared = ((places[:, None] - places[None, :]) ** 2).sum(-1)
        alike = np.exp(-0.5 * squared / freedom.length**2) + 1e-3 * np.eye(len(places))
        space = np.linalg.inv(alike) / freedom.amplitude**2
        out[n_global:, n_global:] = np.kron(np.eye(self.local_time.shape[1]), space)
        return out


@dataclass(frozen=True)
class Equations:
    """Quadratic model of the log-likelihood in the parameters: rhs·x − ½ x·matrix·x, for both axes."""

    matrix: NDArray[np.float64]
    rhs: NDArray[np.float64]

    def value(self, parameters: NDArray[np.float64]) -> float:
        """Log-likelihood of ``(n, 2)`` parameters, up to a constant."""
        return float((self.rhs * parameters).sum() - 0.5 * (parameters * (self.matrix @ parameters)).sum())

    def solve(self, prior: NDArray[np.float64]) -> NDArray[np.float64]:
        """Most probable parameters, ``(n, 2)``."""
        return np.asarray(scipy.linalg.solve(self.matrix + prior, self.rhs, assume_a="pos"))


def normal_equations(
    basis: TrackBasis, tracks: NDArray[np.float64], gradient: torch.Tensor, information: torch.Tensor
) -> Equations:
    """The quadratic model around given tracks.

    Parameters
    ----------
    tracks : (patches, frames, 2)
        Å, where `gradient` was taken; they need not be representable in `basis`.
    gradient : (patches, frames, 2)
    information : (patches, frames, frames)
    """
    i = information.cpu().numpy()
    g = gradient.cpu().numpy() + i @ tracks
    time, local_time, space = basis.time, basis.local_time, basis.space
    n_global, n_local = basis.sizes
    i_local = i @ local_time
    matrix = np.empty((n_global + n_local, n_global + n_local))
    matrix[:n_global, :n_global] = time.T @ i.sum(0) @ time
    cross = np.einsum("fg,fst->gts", time, np.tensordot(space, i_local, axes=(0, 0)).transpose(1, 0, 2))
    matrix[:n_global, n_global:] = cross.reshape(n_global, n_local)
    matrix[n_global:, :n_global] = matrix[:n_global, n_global:].T
    both = np.einsum("fu,pft->put", local_time, i_local, optimize=True)
    matrix[n_global:, n_global:] = np.einsum("put,ps,pr->ustr", both, space, space, optimize=True).reshape(
        n_local, n_local
    )
    local = np.einsum("pfd,ft,ps->tsd", g, local_time, space, optimize=True)
    return Equations(matrix, np.concatenate([time.T @ g.sum(0), local.reshape(n_local, 2)]))


def _predicted(halves: list[Equations], prior: NDArray[np.float64]) -> float:
    """Log-likelihood of each half under the parameters that the other half gives."""
    return halves[1].value(halves[0].solve(prior)) + halves[0].value(halves[1].solve(prior))


def choose(
    bases: dict[float, TrackBasis],
    halves: dict[float, list[Equations]],
    start: Freedom,
    local: str,
) -> tuple[Freedom, float]:
    """The freedom under which each half of the coefficients best predicts the other.

    Parameters
    ----------
    bases, halves : dict
        For every relaxation to be tried, the basis and the equations of the two halves.
    start : Freedom
        Each property is varied in turn from here, twice.
    local : {"auto", "on", "off"}
        Whether "no local motion" is a candidate, excluded or the only one.

    Returns
    -------
    freedom : Freedom
    gain : float
        Predicted log-likelihood with local motion minus that without.
    """
    known: dict[Freedom, float] = {}

    def score(f: Freedom) -> float:
        if f not in known:
            known[f] = _predicted(halves[f.relaxation], bases[f.relaxation].prior(f))
        return known[f]

    without = replace(start, amplitude=0.0)
    without = max((replace(without, acceleration=a) for a in ACCELERATIONS), key=score)
    if local == "off":
        return without, 0.0
    best = replace(start, amplitude=start.amplitude or 0.3)
    for _ in range(2):
        best = max((replace(best, amplitude=a) for a in AMPLITUDES[1:]), key=score)
        best = max((replace(best, acceleration=a) for a in ACCELERATIONS), key=score)
        best = max((replace(best, relaxation=r) for r in bases), key=score)
        best = max((replace(best, length=v) for v in LENGTHS), key=score)
    gain = score(best) - score(without)
    return (best if gain > 0.0 or local == "on" else without), gain


def expected_error(basis: TrackBasis, matrix: NDArray[np.float64], prior: NDArray[np.float64]) -> float:
    """RMS error (Å, both axes, mean over frames removed) that the fit expects of its own tracks."""
    n_frames = basis.time.shape[0]
    covariance = np.linalg.inv(matrix + prior)
    centre = np.eye(n_frames) - 1.0 / n_frames
    time, local_time = centre @ basis.time, centre @ basis.local_time
    total = 0.0
    for s in basis.space:
        b = np.concatenate([time, np.einsum("ft,s->fts", local_time, s).reshape(n_frames, -1)], axis=1)
        total += float((b @ covariance * b).sum()) / n_frames
    return float(np.sqrt(2.0 * total / len(basis.space)))

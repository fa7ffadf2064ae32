"""Bundle adjustment: cameras of all tilts and markers in three dimensions from where markers were seen.

Levenberg-Marquardt with analytic derivatives (:mod:`weft.tilts.equations`) inside iteratively re-weighted
least squares: Huber's loss until it is stable, then Tukey's biweight, which gives gross errors no weight at
all. The noise's scale is estimated from the residuals, so that what is known beforehand about angles and
axis weighs against the data as it should. docs/science/alignment.md has the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from weft.errors import FitError
from weft.settings import Settings, setting
from weft.tilts.cameras import Cameras, Tracks
from weft.tilts.equations import PARAMETERS, Equations, block_diagonal, jacobians, projected

__all__ = ["BundleSettings", "BundleSolution", "Cameras", "Tracks", "solve_bundle"]

HUBER = 1.345  # 95 % efficient for normal noise, as is
RAYLEIGH = 1.17741  # the median length of a 2D normal vector of unit variance per axis
FLOOR = 1e-3  # Å: nothing is known better than this
MAGNIFICATION_PRIOR = 0.01  # how far from 1, where it is refined at all
FAR = 1e6  # Å: shifts of tilts whose observations have all lost their weight stay where they are
LEAST_FREEDOM = 0.5  # with fewer observations for each unknown, none can be told to be wrong
SCALE_STEPS = 20  # of a stage in which the noise is estimated anew
EXPECTED_POINTS = 48  # of the markers at which the expected error is computed


class BundleSettings(Settings):
    """What bundle adjustment may change, and how firmly it believes what it was told."""

    refine_angles: bool = setting(True, "Refine every tilt's angle.")
    angle_prior: float = setting(
        0.3, "How far tilt angles are believed to lie from the stage's readings.", unit="deg", gt=0.0, le=5.0
    )
    rotation_prior: float = setting(
        0.2, "How far every tilt's axis is believed to lie from the common one.", unit="deg", gt=0.0, le=5.0
    )
    outlier_threshold: float = setting(
        4.7,
        "Observations farther from the model than this have no part in the fit; those that come near lose "
        "their weight gradually (Tukey's biweight).",
        unit="σ",
        ge=2.5,
        le=50.0,
    )
    iterations: int = setting(100, "At most as many steps in each stage of the fit.", ge=1, le=10000)


@dataclass(frozen=True)
class BundleSolution:
    """What bundle adjustment found.

    Attributes
    ----------
    cameras : Cameras
        The specimen's origin is at the depth of the markers' mean, and in the middle of the image of least
        tilt.
    markers : (n, 3)
        Å relative to that origin, before levelling.
    residuals : (m, 2)
        Observed minus predicted, Å.
    weights : (m,)
        Of the robust loss, from 0 (no part in the result) to 1.
    sigma : float
        The noise: what the tracks' own sigma have to be multiplied by.
    tilt_rms, marker_rms : (tilts,) and (n,)
        Å, of residuals weighted by `weights`; NaN where there is none.
    expected_error : (tilts,)
        Å: how far points at the markers' places are expected to be seen from where the cameras say, each
        after its own best place in the specimen has been found; NaN for tilts without observations.
    missing : (tilts,) bool
        No observation of weight: axis, angle and shift come from the neighbours.
    converged : bool
    """

    cameras: Cameras
    markers: torch.Tensor
    residuals: torch.Tensor
    weights: torch.Tensor
    sigma: float
    tilt_rms: torch.Tensor
    marker_rms: torch.Tensor
    expected_error: torch.Tensor
    missing: torch.Tensor
    converged: bool


@dataclass(frozen=True)
class _Prior:
    """Quadratic knowledge of the cameras: angles from the stage, one axis, magnification 1."""

    matrix: torch.Tensor
    centre: torch.Tensor

    @classmethod
    def of(cls, cameras: Cameras, settings: BundleSettings, magnification: bool, stiffness: float) -> _Prior:
        n, k = len(cameras), PARAMETERS
        axis = math.radians(settings.rotation_prior) / stiffness
        angle = math.radians(settings.angle_prior if settings.refine_angles else 1e-4) / stiffness
        mag = (MAGNIFICATION_PRIOR if magnification else 1e-7) / stiffness
        matrix = torch.zeros(n, k, n, k, dtype=torch.float64)
        every = torch.arange(n)
        # towards the mean of all axes, which itself is free
        matrix[:, 2, :, 2] = (torch.eye(n, dtype=torch.float64) - 1.0 / n) / axis**2
        matrix[every, 0, every, 0] = matrix[every, 1, every, 1] = FAR**-2
        matrix[every, 3, every, 3] = angle**-2
        matrix[every, 4, every, 4] = mag**-2
        centre = cameras.parameters().clone()
        centre[:, 2] = centre[:, 2].mean()
        centre[:, 4] = 1.0
        return cls(matrix.reshape(n * k, n * k), centre)

    def slope(self, p: torch.Tensor) -> torch.Tensor:
        return self.matrix @ (self.centre - p).reshape(-1)

    def cost(self, p: torch.Tensor) -> float:
        d = (self.centre - p).reshape(-1)
        return float(d @ self.matrix @ d)


def solve_bundle(
    tracks: Tracks,
    cameras0: Cameras,
    settings: BundleSettings | None = None,
    *,
    magnification: bool = False,
) -> BundleSolution:
    """Fit cameras and markers to tracks.

    Parameters
    ----------
    tracks : Tracks
    cameras0 : Cameras
        Where to start from. Its angles are what the prior believes; its axis need only be right to within
        some degrees, and its shifts to within what tracks were found with.
    settings : BundleSettings, optional
    magnification : bool
        Refine every tilt's magnification too. A tilt geometry has none: this is for judging a series.

    Returns
    -------
    BundleSolution

    Raises
    ------
    FitError
        With fewer than 3 tilts that see markers which others see too.
    """
    settings = settings or BundleSettings()
    useful = _useful(tracks, len(cameras0))
    seen = torch.zeros(len(cameras0), dtype=torch.bool)
    seen[tracks.tilt[useful]] = True
    if int(seen.sum()) < 3:
        raise FitError(
            f"markers were followed through {int(seen.sum())} of {len(cameras0)} tilts; an alignment needs "
            "at least 3"
        )
    number = torch.cumsum(seen, 0) - 1
    part = tracks.select(useful)
    fit = _Fit(replace(part, tilt=number[part.tilt]), cameras0.select(seen), tracks.markers)
    # shifts and the common axis first; then what is nearly known
    stages: list[tuple[float, float | None]] = [(1000.0, None), (1.0, None)]
    if fit.freedom >= LEAST_FREEDOM:
        stages.append((1.0, settings.outlier_threshold))
    for stiffness, cut in stages:
        fit.prior = _Prior.of(fit.start, settings, magnification, stiffness)
        fit.run(cut, settings.iterations)
    return _solution(tracks, useful, cameras0, seen, fit)


def _useful(tracks: Tracks, tilts: int) -> torch.Tensor:
    """Observations (a mask) of markers that are seen in two or more tilts."""
    n = tracks.markers
    table = torch.zeros(n, tilts, dtype=torch.bool)
    table[tracks.marker, tracks.tilt] = True
    good: torch.Tensor = (table.sum(1) >= 2)[tracks.marker]
    return good


def _noise(residual: torch.Tensor, sigma: torch.Tensor, freedom: float) -> float:
    """How many times `sigma` residuals are, by their median; `freedom` is the share that was not fitted."""
    lengths = residual.norm(dim=-1) / sigma
    found = float(lengths.median()) / RAYLEIGH / math.sqrt(max(freedom, 0.1))
    return max(found, FLOOR / float(sigma.median()))


class _Fit:
    """Cameras and points on their way to the least cost."""

    def __init__(self, tracks: Tracks, start: Cameras, markers: int) -> None:
        self.tracks, self.start = tracks, start
        self.p = start.parameters()
        self.points = start.triangulate(tracks, markers)
        self.weight = torch.ones(len(tracks), dtype=torch.float64)
        self.scale, self.converged = 1.0, False
        self.prior: _Prior
        seen = len(torch.unique(tracks.marker))
        self.freedom = 1.0 - (2.0 * len(start) + 3.0 * seen) / (2.0 * len(tracks))

    def difference(self, p: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(m, 2): observed minus predicted, Å."""
        return self.tracks.xy - projected(p[self.tracks.tilt], points[self.tracks.marker])

    def equations(self, residual: torch.Tensor, damping: float) -> Equations:
        """Where the fit stands now."""
        w = self.weight / (self.tracks.sigma * self.scale) ** 2
        t, prior = self.tracks, self.prior
        slope = prior.slope(self.p)
        return Equations.at(self.p, self.points, t.marker, t.tilt, residual, w, prior.matrix, slope, damping)

    def run(self, cut: float | None, iterations: int) -> None:
        """Re-weighted steps until nothing moves: Huber's loss, or Tukey's with its `cut`."""
        residual, damping = self.difference(self.p, self.points), 1e-4
        self.converged = False
        for number in range(iterations):
            if number < SCALE_STEPS:  # a scale that follows for ever may never settle
                self.scale = _noise(residual, self.tracks.sigma, self.freedom)
            self.weight = _loss_weight(residual.norm(dim=-1) / (self.tracks.sigma * self.scale), cut)
            before = self._cost(self.p, residual)
            while True:
                step, moved = self.equations(residual, damping).step()
                p, points = self.p + step, self.points + moved
                tried = self.difference(p, points)
                if self._cost(p, tried) <= before or damping > 1e6:
                    break
                damping *= 10.0
            if not self._cost(p, tried) <= before:
                self.converged = True  # not even the smallest step leads down
                return
            damping = max(damping * 0.1, 1e-12)
            change = float((tried - residual).norm(dim=-1).max())
            self.p, self.points, residual = p, points, tried
            if change < 1e-3 * float(self.tracks.sigma.median()) * self.scale:
                self.converged = True
                return

    def _cost(self, p: torch.Tensor, residual: torch.Tensor) -> float:
        w = self.weight / (self.tracks.sigma * self.scale) ** 2
        return float((w * residual.square().sum(-1)).sum()) + self.prior.cost(p)

    def expected(self) -> torch.Tensor:
        """(tilts,): error of cameras at the places of markers, less what a point's own place takes up."""
        covariance = self.equations(self.difference(self.p, self.points), 0.0).covariance()
        count = torch.zeros(len(self.points), dtype=torch.float64)
        count.index_add_(0, self.tracks.marker, self.weight)
        chosen = self.points[torch.argsort(count, descending=True)[:EXPECTED_POINTS]]
        t = len(self.p)
        total = torch.zeros(t, dtype=torch.float64)
        for point in chosen:
            a, b = jacobians(self.p, point.expand(t, 3))
            place = torch.linalg.qr(b.reshape(2 * t, 3)).Q
            camera = block_diagonal(a)
            seen = camera - place @ (place.T @ camera)
            variance = ((seen @ covariance) * seen).sum(-1)
            total += variance.reshape(t, 2).sum(-1)
        return (total / len(chosen)).clamp_min(0.0).sqrt()


def _loss_weight(ratio: torch.Tensor, cut: float | None) -> torch.Tensor:
    if cut is None:
        return torch.clamp(HUBER / ratio.clamp_min(1e-12), max=1.0)
    return (1.0 - (ratio / cut).square()).clamp_min(0.0).square()


def _solution(
    tracks: Tracks, useful: torch.Tensor, cameras0: Cameras, seen: torch.Tensor, fit: _Fit
) -> BundleSolution:
    """Put all tilts and markers together again, in a frame with its origin in the middle."""
    held = torch.zeros(int(seen.sum()), dtype=torch.float64).index_add_(0, fit.tracks.tilt, fit.weight)
    expected = torch.full((len(seen),), float("nan"), dtype=torch.float64)
    expected[seen] = fit.expected()
    good = torch.zeros_like(seen)
    good[seen] = held > 0.0
    expected[~good] = float("nan")
    found, points = _centred(Cameras.from_parameters(fit.p[good[seen]]), fit.points, fit.tracks, fit.weight)
    cameras = _completed(cameras0, good, found)
    residual = tracks.xy - cameras.predict(points, tracks)
    weights = torch.zeros(len(tracks), dtype=torch.float64)
    weights[useful] = fit.weight
    return BundleSolution(
        cameras,
        points,
        residual,
        weights,
        fit.scale,
        _rms(residual, weights, tracks.tilt, len(seen)),
        _rms(residual, weights, tracks.marker, len(points)),
        expected,
        ~good,
        fit.converged,
    )


def _rms(residual: torch.Tensor, weight: torch.Tensor, which: torch.Tensor, n: int) -> torch.Tensor:
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, which, weight * residual.square().sum(-1))
    return (total / torch.zeros(n, dtype=torch.float64).index_add_(0, which, weight)).sqrt()


def _completed(cameras0: Cameras, good: torch.Tensor, found: Cameras) -> Cameras:
    """All tilts; those without observations take what lies between their neighbours by angle."""
    order = torch.argsort(cameras0.angles[good], stable=True)
    at = cameras0.angles[good][order]

    def between(values: torch.Tensor) -> torch.Tensor:
        known = values[order]
        high = torch.searchsorted(at, cameras0.angles.contiguous()).clamp(1, len(at) - 1)
        low = high - 1
        width = (at[high] - at[low]).clamp_min(1e-9)
        share = ((cameras0.angles - at[low]) / width).clamp(0.0, 1.0)
        result = known[low] + (known[high] - known[low]) * share
        result[good] = values
        return result

    angles = cameras0.angles + between(found.angles - cameras0.angles[good])
    angles[good] = found.angles
    shift = torch.stack([between(found.shift[:, 0]), between(found.shift[:, 1])], dim=-1)
    return Cameras(angles, between(found.axis), shift, between(found.magnification))


def _centred(
    cameras: Cameras, points: torch.Tensor, tracks: Tracks, weight: torch.Tensor
) -> tuple[Cameras, torch.Tensor]:
    """Move the origin to the mean depth of well-seen markers and to the middle of the least tilted image."""
    count = torch.zeros(len(points), dtype=torch.float64).index_add_(0, tracks.marker, weight)
    trusted = count >= 0.25 * count.max()
    least = int(cameras.angles.abs().argmin())
    matrix = cameras.matrices[least]
    # (x, y) for which the centre at depth z is seen at the middle of that image
    z = points[trusted, 2].mean()
    target = -cameras.shift[least] / cameras.magnification[least] - matrix[:2, 2] * z
    by = torch.cat([torch.linalg.solve(matrix[:2, :2], target), z[None]])
    return cameras.moved(by), points - by

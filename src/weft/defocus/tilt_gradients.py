"""The gradient of defocus across the tilt axis, measured in every tilt by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.defocus.tilt_planes import across_axis, depth, gradients
from weft.defocus.tilt_search import profiles
from weft.defocus.tilt_series import TiltCTF
from weft.defocus.tilt_spectra import TiltSpectra
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics

__all__ = ["Gradients", "measure_gradients"]

STEEPEST = 3.0  # Å/Å: gradients up to that of a tilt by 72° are tried
GRADIENT_STEP = 0.05
AROUND = 2000.0  # Å of defocus around the fitted one
DEFOCUS_STEP = 100.0  # Å
FINEST = 8.0  # Å


@dataclass(frozen=True)
class Gradients:
    """Gradients of defocus across the tilt axis.

    Attributes
    ----------
    angles : (tilts,) float64
        Degrees.
    predicted : (tilts,) float64
        By the geometry with hand +1 (Å/Å): the tangent of tilt and level_y.
    measured, error : (tilts,) float64
        The best one in each tilt by itself, and its expected standard deviation; NaN-free: where there is
        nothing to measure the error is the whole range tried.
    used : (tilts,) bool
    """

    angles: NDArray[np.float64]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    error: NDArray[np.float64]
    used: NDArray[np.bool_]

    def slope(self) -> tuple[float, float]:
        """Slope of measured against predicted with its error; a constant is fitted along.

        The errors are those of how much the tilts scatter around the line, where this is more than expected.
        """
        x, y, s = self.predicted[self.used], self.measured[self.used], self.error[self.used]
        if len(x) < 3 or float(np.ptp(x)) < 1e-6:
            return 0.0, STEEPEST
        design = np.column_stack([x, np.ones(len(x))])
        weight = 1.0 / s**2
        # an outlier of one tilt counts as little as Student's t lets it
        for _ in range(10):
            matrix = design.T @ (weight[:, None] * design)
            solution = np.linalg.solve(matrix, design.T @ (weight * y))
            left = (y - design @ solution) / s
            weight = (1.0 / s**2) * 5.0 / (4.0 + left**2)
        scatter = float((weight * s**2 * left**2).sum()) / (len(x) - 2)
        return float(solution[0]), math.sqrt(float(np.linalg.inv(matrix)[0, 0]) * max(scatter, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {
            n: np.round(getattr(self, n), 5).tolist() for n in ("angles", "predicted", "measured", "error")
        } | {"used": self.used.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Gradients:
        """Inverse of :meth:`to_dict`."""

        def array(name: str) -> NDArray[np.float64]:
            return np.asarray(data[name], dtype=np.float64)

        used = np.asarray(data["used"], dtype=bool)
        return cls(array("angles"), array("predicted"), array("measured"), array("error"), used)


def measure_gradients(
    spectra: TiltSpectra, geometry: TiltGeometry, optics: Optics, fit: TiltCTF, used: NDArray[np.bool_]
) -> Gradients:
    """Try every gradient in every tilt, with the best defocus for each.

    Parameters
    ----------
    geometry : TiltGeometry
        For the tilt axis and the images' shifts; the hand does not matter.
    fit : TiltCTF
        For the defocus around which is searched, and for background and envelope.
    used : (tilts,) bool
    """
    direction = across_axis(geometry)
    tried = np.arange(-STEEPEST, STEEPEST + GRADIENT_STEP / 2, GRADIENT_STEP)
    band = spectra.within(0.0, 1.0 / FINEST)
    predicted = (gradients(replace(geometry, hand=1.0), np.zeros(2)) * direction).sum(1)
    measured, error = np.zeros(len(predicted)), np.full(len(predicted), STEEPEST)
    assert fit.solution is not None
    phase = fit.solution.freedom.weights @ fit.solution.phase
    for t in np.flatnonzero(used):
        one = geometry.select(torch.tensor([t]))
        offsets = np.stack([depth(one, g * direction[t : t + 1], spectra.centers[t : t + 1]) for g in tried])
        grid = fit.defocus[t] + np.arange(-AROUND, AROUND + DEFOCUS_STEP / 2, DEFOCUS_STEP)
        single = band.select(np.array([t]))
        gained = profiles(single, optics, fit.solution.curves.select(np.array([t])), offsets, grid, phase[t])
        profile = gained[:, 0].max(1)
        measured[t], error[t] = _peak(tried, profile)
    return Gradients(geometry.angles.numpy().astype(np.float64), predicted, measured, error, used.copy())


def _peak(x: NDArray[np.float64], profile: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation from a log-likelihood at evenly spaced places."""
    p = np.exp(profile - profile.max())
    best = float(x[int(profile.argmax())])
    # around the best place: another peak far away shall widen the error, not move the place
    spread = math.sqrt(float((p * (x - best) ** 2).sum() / p.sum()))
    near = np.abs(x - best) <= max(2.0 * spread, 2.0 * float(x[1] - x[0]))
    mean = float((p * x)[near].sum() / p[near].sum())
    return mean, max(spread, float(x[1] - x[0]) / 3.0)

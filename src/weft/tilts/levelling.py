"""The specimen's inclination to the stage, from places in it or from a coarse reconstruction.

Beads lie on one surface of the ice or on both; particles and other structure fill it. Each is a model of how
the distances from a plane are distributed: a normal distribution, two of them, or an even one with soft ends.
The inclination that makes the places most likely is far better determined by the ends of a slab, and by two
surfaces, than by a plane through the middle of all: its error goes like 1/n instead of 1/√n.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.special
import torch
from numpy.typing import NDArray

from weft.tilts.alignment import Levelling

__all__ = ["inclination_of", "level_markers"]

Array = NDArray[np.float64]

FEWEST = 6  # markers; fewer do not tell a slope from their own scatter
STEEPEST = 25.0  # degrees
STRAY = 0.03  # share of places that belong to nothing
GROUPS = 10  # of the jackknife
CLEARLY = 6.0  # twice the difference of log likelihoods: the richer model must be better by this
THINNEST = 15.0  # Å: no surface is flatter than that over a field


def inclination_of(slope_x: float, slope_y: float) -> tuple[float, float]:
    """level_x and level_y (degrees) that make the plane z = slope_x · x + slope_y · y horizontal.

    The plane is in the frame of the bundle adjustment, where y is along the tilt axis: the specimen's z axis
    is M(0, level_y, 0) · Rx(level_x) · (0, 0, 1) there.
    """
    length = math.sqrt(1.0 + slope_x**2 + slope_y**2)
    return math.degrees(math.asin(slope_y / length)), math.degrees(math.atan2(slope_x, 1.0))


def level_markers(markers: torch.Tensor, *, what: str = "markers") -> Levelling:
    """The inclination of a specimen in which these places lie.

    Parameters
    ----------
    markers : (n, 3) tensor
        x, y, z, Å, in the frame of the bundle adjustment, before levelling.
    what : str
        What they are, for `how`.

    Returns
    -------
    Levelling
        With an estimate of its error from leaving out a tenth of the places at a time. Fewer than 6 places,
        or places along a line, are not levelled by: `how` says so.
    """
    xyz = np.asarray(markers.detach().cpu().double().numpy())
    xyz = xyz[np.isfinite(xyz).all(1)]
    if len(xyz) < FEWEST:
        return Levelling(how=f"not levelled: only {len(xyz)} {what}")
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(xyz[:, :2].T)))
    if spread[0] < 0.1 * spread[1]:
        return Levelling(how=f"not levelled: the {what} lie along a line")
    fits = {name: _fit(xyz, model, None) for name, model in _MODELS.items()}
    name = "plane"
    for other in ("slab", "surfaces"):
        if 2.0 * (fits[other][1] - fits[name][1]) > CLEARLY:
            name = other
    best = fits[name][0]
    level = np.array(inclination_of(best[0], best[1]))
    left_out = []
    for group in range(GROUPS):
        rest = xyz[np.arange(len(xyz)) % GROUPS != group]
        if len(rest) >= FEWEST:
            found = _fit(rest, _MODELS[name], best)[0]
            left_out.append(inclination_of(found[0], found[1]))
    moves = np.array(left_out) - level
    n = len(moves)
    error = float(np.sqrt((n - 1) / n * (moves**2).sum(0)).max()) if n > 1 else math.nan
    thickness = 0.0 if name == "plane" else 2.0 * abs(float(best[3]))
    where = {"plane": "on one plane", "surfaces": "on two surfaces", "slab": "that fill a slab"}[name]
    return Levelling(
        float(level[0]),
        float(level[1]),
        (0.0, 0.0, float(best[2])),
        thickness,
        error,
        f"{len(xyz)} {what} {where}",
    )


def _plane(d: Array, half: float, width: float) -> Array:
    return np.exp(-0.5 * (d / width) ** 2) / (width * math.sqrt(2 * math.pi))


def _surfaces(d: Array, half: float, width: float) -> Array:
    upper, lower = _plane(d - half, 0.0, width), _plane(d + half, 0.0, width)
    share = np.clip(upper.sum() / (upper.sum() + lower.sum() + 1e-300), 0.05, 0.95)
    return np.asarray(share * upper + (1 - share) * lower)


def _slab(d: Array, half: float, width: float) -> Array:
    inside = scipy.special.ndtr((d + half) / width) - scipy.special.ndtr((d - half) / width)
    return np.asarray(inside / (2.0 * half))


_MODELS: dict[str, Callable[[Array, float, float], Array]] = {
    "plane": _plane,
    "slab": _slab,
    "surfaces": _surfaces,
}


def _fit(
    xyz: Array, model: Callable[[Array, float, float], Array], start: Array | None
) -> tuple[Array, float]:
    """slope_x, slope_y, offset, half thickness and width that make the places likeliest; log likelihood."""
    x, y, z = xyz.T
    reach = float(np.ptp(z)) + 200.0
    steepest = math.tan(math.radians(STEEPEST))

    def cost(p: Array) -> float:
        # scaled so that all unknowns change by about 1
        half, width = abs(p[3]) * 100.0 + 1.0, abs(p[4]) * 100.0 + THINNEST
        beyond = max(0.0, float(np.hypot(p[0], p[1])) / 10.0 - steepest)
        d = z - (p[0] * x + p[1] * y) / 10.0 - p[2] * 100.0
        likely = (1.0 - STRAY) * model(d, half, width) + STRAY / reach
        return float(-np.log(likely).sum()) + 1e4 * beyond

    def unscaled(p: Array) -> Array:
        return np.array([p[0] / 10, p[1] / 10, p[2] * 100, abs(p[3]) * 100 + 1, abs(p[4]) * 100 + THINNEST])

    if start is not None:
        scale = np.array([10.0, 10.0, 0.01, 0.01, 0.01])
        starts = [start * scale - np.array([0, 0, 0, 0.01, 0.01 * THINNEST])]
    else:
        starts = []
        ones = np.ones_like(x)
        for power in (2.0, 8.0):  # through the middle; between the ends
            s = np.linalg.lstsq(np.stack([x, y, ones], 1), z, rcond=None)[0]
            if power > 2.0:
                s = _ends(x, y, z, s, power)
            d = z - s[0] * x - s[1] * y - s[2]
            half = float(np.percentile(np.abs(d), 80))
            for width in (0.2, 1.0):
                starts.append(np.array([s[0] * 10, s[1] * 10, s[2] / 100, half / 100, width]))
    best: tuple[Array, float] | None = None
    for s in starts:
        found = scipy.optimize.minimize(
            cost, s, method="Nelder-Mead", options={"maxiter": 600, "xatol": 1e-3, "fatol": 1e-3}
        )
        if best is None or -found.fun > best[1]:
            best = (unscaled(found.x), -float(found.fun))
    assert best is not None
    return best


def _ends(x: Array, y: Array, z: Array, start: Array, power: float) -> Array:
    """The plane with the smallest sum of a high power of distances: halfway between the ends of a slab."""
    scale = float(np.std(z)) + 1.0

    def cost(p: Array) -> float:
        d = (z - (p[0] * x + p[1] * y) / 10.0 - p[2] * 100.0) / scale
        return float((np.abs(np.clip(d, -3, 3)) ** power).sum() ** (1 / power))

    first = np.array([start[0] * 10, start[1] * 10, start[2] / 100])
    found = scipy.optimize.minimize(cost, first, method="Nelder-Mead").x
    return np.array([found[0] / 10, found[1] / 10, found[2] * 100])

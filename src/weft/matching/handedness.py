"""The hand of the defocus gradient, told from two searches.

A search with the wrong hand expects every particle at a defocus that is wrong by twice its offset, which
grows with its distance from the tilt axis, so that its score falls short of that of the right hand more and
more towards both edges, and not at all at the axis (the benchmark of pytom-match-pick: Chaillet 2024,
doi 10.5281/zenodo.10728422). Of every place that both searches have found,

    d = (s₊ − s₋) / σ = a + b x + c (x / X)²        with X the largest distance from the axis,

and c is the evidence: c > 0 for hand +1. Its two other terms take what is no evidence: an error of the mean
defocus together with specimen that does not lie at the volume's centre (a), and tilts whose two sides do not
weigh alike (b). The standard error of c is White's, in the form HC3 (MacKinnon & White 1985), as scores
scatter more at some places than at others.

Where the same places can be scored again with the CTF that either hand gives them there
(:func:`judge_places`), the defocus itself, not the distance from the axis, says how much the hand matters,
depth along the beam included; that tells the hand from a fraction of the particles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.stats import t as student

from weft.errors import FitError
from weft.matching.candidates import Candidates, SearchStatistics
from weft.physics.geometry import TiltGeometry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "HandVerdict",
    "QuadraticFit",
    "compare_hands",
    "defocus_leverage",
    "hand_figure",
    "judge_hand",
    "judge_places",
    "paired",
]

_Array = NDArray[np.float64]
#: A verdict needs a p-value below this.
SIGNIFICANCE = 0.01
_FEWEST = 30


@dataclass(frozen=True)
class QuadraticFit:
    """A least-squares parabola y = c₀ + c₁ x + c₂ x².

    Attributes
    ----------
    coefficients : (3,)
    covariance : (3, 3)
        Robust to scatter that varies with x (HC3).
    freedom : int
        Degrees of freedom.
    """

    coefficients: _Array
    covariance: _Array
    freedom: int

    def __call__(self, x: ArrayLike) -> _Array:
        return _design(np.asarray(x, np.float64)) @ self.coefficients

    def band(self, x: ArrayLike, confidence: float = 0.95) -> tuple[_Array, _Array]:
        """Lower and upper limit of the curve's confidence band."""
        design = _design(np.asarray(x, np.float64))
        error = np.sqrt(np.einsum("ni,ij,nj->n", design, self.covariance, design))
        half = error * student.ppf(0.5 + 0.5 * confidence, self.freedom)
        middle = design @ self.coefficients
        return middle - half, middle + half


@dataclass(frozen=True)
class HandVerdict:
    """What two searches say about the hand.

    Attributes
    ----------
    hand : int
        +1 or −1; 0 where there is no difference that counts (p ≥ 0.01).
    p : float
        Two-sided: the chance of so great a difference if there is none.
    difference : float
        c: how much better, in σ, hand +1 scores at the edge than at the axis; negative for hand −1.
    error : float
        Standard error of it.
    n : int
        Places compared.
    x : (n,)
        Å from the tilt axis.
    plus, minus : (n,)
        Scores over σ.
    fit_plus, fit_minus, fit_difference : QuadraticFit
        Over x in Å.
    """

    hand: int
    p: float
    difference: float
    error: float
    n: int
    x: _Array
    plus: _Array
    minus: _Array
    fit_plus: QuadraticFit
    fit_minus: QuadraticFit
    fit_difference: QuadraticFit

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        where = f"{abs(self.difference):.2g} σ at the edges, {self.n} places, p = {self.p:.2g}"
        if self.hand == 0:
            return f"no difference between the hands ({where})"
        return f"hand {self.hand:+d} ({where})"


def _design(x: _Array) -> _Array:
    return np.stack([np.ones_like(x), x, x * x], axis=1)


def _parabola(x: _Array, y: _Array) -> QuadraticFit:
    # in units in which all columns are alike in size, so that nothing is lost to rounding
    scale = float(np.abs(x).max())
    design = _design(x / scale)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ (design.T @ y)
    leverage = np.einsum("ni,ij,nj->n", design, inverse, design)
    weight = ((y - design @ coefficients) / np.maximum(1.0 - leverage, 1e-6)) ** 2
    covariance = inverse @ (design.T * weight @ design) @ inverse
    unit = scale ** -np.arange(3.0)
    return QuadraticFit(coefficients * unit, covariance * np.outer(unit, unit), len(x) - 3)


def paired(
    plus: Candidates, minus: Candidates, distance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which candidates of two searches are the same places.

    Each is the other's nearest and no farther than `distance` (Å), of the same template. Both lists are
    complete down to the higher of their two lowest scores only: what is below it in either is left out, so
    that both hands have been chosen by the same rule.

    Returns
    -------
    (n,), (n,) arrays
        Indices into `plus` and into `minus`.
    """
    if not len(plus) or not len(minus):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    of_plus = cKDTree(plus.xyz).query(minus.xyz, distance_upper_bound=distance * (1.0 + 1e-9))
    of_minus = cKDTree(minus.xyz).query(plus.xyz, distance_upper_bound=distance * (1.0 + 1e-9))
    i = np.flatnonzero(np.isfinite(of_minus[0]))
    j = of_minus[1][i]
    mutual = of_plus[1][j] == i
    i, j = i[mutual], j[mutual]
    lowest = max(float(plus.score.min()), float(minus.score.min()))
    keep = (plus.score[i] >= lowest) & (minus.score[j] >= lowest) & (plus.template[i] == minus.template[j])
    return i[keep].astype(np.int64), j[keep].astype(np.int64)


def judge_hand(x: ArrayLike, plus: ArrayLike, minus: ArrayLike) -> HandVerdict:
    """Judge by scores of the same places.

    Parameters
    ----------
    x : (n,) array
        Å from the tilt axis. Places of several tomograms can be put together.
    plus, minus : (n,) arrays
        Scores over σ of the searches with hand +1 and −1; σ should be the same for both.

    Raises
    ------
    FitError
        Too few places, or all at one distance from the axis.
    """
    place, good, bad = (np.asarray(v, np.float64) for v in (x, plus, minus))
    if not len(place) == len(good) == len(bad):
        raise ValueError(f"{len(place)} places with {len(good)} and {len(bad)} scores")
    known = np.isfinite(place) & np.isfinite(good) & np.isfinite(bad)
    place, good, bad = place[known], good[known], bad[known]
    n = len(place)
    if n < _FEWEST:
        raise FitError(
            f"only {n} places have been found with both hands, {_FEWEST} are needed: take more candidates"
        )
    if np.unique(np.abs(place)).size < 4:
        raise FitError("all places are at the same distances from the tilt axis, so that the hand makes none")
    fit = _parabola(place, good - bad)
    edge = float(np.abs(place).max()) ** 2
    difference = float(fit.coefficients[2]) * edge
    error = float(np.sqrt(fit.covariance[2, 2])) * edge
    if error > 0.0:
        p = float(2.0 * student.sf(abs(difference) / error, fit.freedom))
    else:
        p = 1.0 if difference == 0.0 else 0.0
    hand = int(np.sign(difference)) if p < SIGNIFICANCE else 0
    return HandVerdict(
        hand, p, difference, error, n, place, good, bad, _parabola(place, good), _parabola(place, bad), fit
    )


def defocus_leverage(geometry: TiltGeometry, xyz: ArrayLike, weight: ArrayLike) -> tuple[_Array, _Array]:
    """How much the hand matters at places: mean square and mean of the defocus that it adds, over the tilts.

    With the wrong hand tilt t is off by 2 h_t, h_t being the place's depth along the beam; to first order
    that costs a score in proportion to the mean of h_t², and, where the mean defocus is off, to that of h_t.

    Parameters
    ----------
    geometry : TiltGeometry
    xyz : (n, 3) array
        Å from the volume's first voxel.
    weight : (tilts,) array
        What each tilt counts.

    Returns
    -------
    (n,), (n,) arrays
        Å², Å.
    """
    places = torch.as_tensor(np.asarray(xyz, np.float64))
    turned = (places - 0.5 * geometry.volume_size) @ geometry.matrices[:, 2].T
    share = np.asarray(weight, np.float64) / float(np.sum(weight))
    depth = turned.numpy()
    return (depth**2) @ share, depth @ share


def judge_places(
    x: ArrayLike, plus: ArrayLike, minus: ArrayLike, square: ArrayLike, mean: ArrayLike
) -> HandVerdict:
    """Judge by scores of the same places with the CTF of either hand, each computed at the place itself.

    At the volume's centre both hands are one, so the difference of scores is fitted without a constant,
    d = c · q + b · h, with q and h of :func:`defocus_leverage`; its noise grows with q. c is tested with
    errors that need not be equal (White 1980; MacKinnon & White 1985, HC3).

    Parameters
    ----------
    x : (n,) array
        Å from the tilt axis, for the picture.
    plus, minus : (n,) arrays
        Scores over σ with hand +1 and −1.
    square, mean : (n,) arrays
        Of :func:`defocus_leverage`.

    Raises
    ------
    FitError
        Too few places.
    """
    place, good, bad, q, h = (np.asarray(v, np.float64) for v in (x, plus, minus, square, mean))
    known = np.isfinite(good) & np.isfinite(bad)
    place, good, bad, q, h = place[known], good[known], bad[known], q[known], h[known]
    n = len(place)
    if n < _FEWEST:
        raise FitError(f"only {n} places can be scored with both hands, {_FEWEST} are needed")
    d, most = good - bad, float(q.max())
    design = np.stack([q / most, h / max(float(np.abs(h).max()), 1e-9)], axis=1)
    scale = 1.0 / np.sqrt(0.05 + q / most)
    rows, values = design * scale[:, None], d * scale
    inverse = np.linalg.pinv(rows.T @ rows)
    fit = inverse @ rows.T @ values
    influence = np.einsum("ij,jk,ik->i", rows, inverse, rows)
    left = (values - rows @ fit) / np.clip(1.0 - influence, 1e-6, None)
    covariance = inverse @ (rows.T * left**2) @ rows @ inverse
    difference, error = float(fit[0]), float(np.sqrt(covariance[0, 0]))
    p = float(2.0 * student.sf(abs(difference) / error, n - 2)) if error > 0.0 else float(difference == 0.0)
    hand = int(np.sign(difference)) if p < SIGNIFICANCE else 0
    curves = (_parabola(place, good), _parabola(place, bad), _parabola(place, d))
    return HandVerdict(hand, p, difference, error, n, place, good, bad, *curves)


def compare_hands(
    plus: Candidates,
    minus: Candidates,
    statistics: tuple[SearchStatistics, SearchStatistics],
    *,
    volume_size: Sequence[float],
    distance: float,
) -> HandVerdict:
    """Judge by the candidates of two searches of one tomogram.

    Parameters
    ----------
    plus, minus : Candidates
        Of the searches with hand +1 and −1; taken with the same settings.
    statistics : (SearchStatistics, SearchStatistics)
        Of both. Scores are divided by the mean of their σ, so that a difference of those is no evidence.
    volume_size : (3,)
        x, y, z, Å; the tilt axis runs along y through its centre.
    distance : float
        Å, within which two candidates are the same place: less than half the particle's diameter.
    """
    i, j = paired(plus, minus, distance)
    sigma = 0.5 * (statistics[0].std + statistics[1].std)
    if not sigma > 0.0:
        raise FitError("the searches' scores have no standard deviation, by which they are compared")
    x = 0.5 * (plus.xyz[i, 0] + minus.xyz[j, 0]) - 0.5 * volume_size[0]
    return judge_hand(x, plus.score[i] / sigma, minus.score[j] / sigma)


def hand_figure(verdict: HandVerdict, title: str = "") -> Figure:
    """Left every place's scores over x, right the parabolas with their 95 % bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    span = np.linspace(verdict.x.min(), verdict.x.max(), 200)
    sides = (
        ("hand +1", "tab:blue", verdict.plus, verdict.fit_plus),
        ("hand −1", "tab:orange", verdict.minus, verdict.fit_minus),
    )
    for label, colour, scores, fit in sides:
        left.scatter(verdict.x / 10.0, scores, s=8, color=colour, alpha=0.6, linewidths=0, label=label)
        right.plot(span / 10.0, fit(span), color=colour, label=label)
        right.fill_between(span / 10.0, *fit.band(span), color=colour, alpha=0.2, linewidth=0)
    for axis in (left, right):
        axis.set_xlabel("distance from the tilt axis (nm)")
        axis.set_ylabel("score / σ")
        axis.legend(fontsize="small")
    figure.suptitle(f"{title}: {verdict.sentence}" if title else verdict.sentence, fontsize="medium")
    return figure

"""How many of a list's candidates are particles, and which cut-off serves best.

The scores of the best candidates, from the lowest that was taken up, are a mixture of two: those of the
background, each the highest of many looks at noise, and those of particles, which scatter about a mean,

    f(s) = (1 − w) m φ(s/σ) Φ(s/σ)^(m−1) / σ  +  w N(s; μ, τ),        both cut off at the lowest score,

with m looks a candidate and the known σ of the search, which may be off by a factor that is fitted too, as
the background of real tomograms is not quite Gaussian. The parameters have the greatest likelihood; whether
there are particles at all (w > 0) is judged by Schwarz's criterion. From them follow for every cut-off the
recall (the share of all particles that are above it) and the false discovery rate (the share of background
among what is above it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_ndtr, logsumexp

from weft.errors import FitError
from weft.matching.candidates import SearchStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RecallEstimate", "estimate_recall", "recall_figure"]

_Array = NDArray[np.float64]
_FEWEST = 30
#: The background's σ may be this much narrower or wider than that of all scores.
_SIGMA_RANGE = (0.7, 2.5)
_GRID = 400


@dataclass(frozen=True)
class RecallEstimate:
    """A fitted mixture, in the scores' own unit.

    Attributes
    ----------
    particles : float
        Estimated number of all particles, those below the lowest score included.
    background : float
        Estimated number of background candidates in the list.
    mean, spread : float
        μ and τ of the particles' scores; NaN where there are none.
    sigma : float
        Of the background.
    looks : float
        m.
    lowest : float
        Score from which on the list is complete.
    cut_offs, recall, false_discovery : (k,) arrays
        Ascending cut-offs, and what each gives.
    """

    particles: float
    background: float
    mean: float
    spread: float
    sigma: float
    looks: float
    lowest: float
    cut_offs: _Array
    recall: _Array
    false_discovery: _Array

    @property
    def f1(self) -> _Array:
        """(k,): the harmonic mean of recall and precision."""
        precision = 1.0 - self.false_discovery
        total = self.recall + precision
        return np.where(total > 0.0, 2.0 * self.recall * precision / np.where(total > 0.0, total, 1.0), 0.0)

    @property
    def best(self) -> float:
        """The cut-off with the highest F1; infinite where there are no particles."""
        return float(self.cut_offs[int(self.f1.argmax())]) if self.particles > 0.0 else math.inf

    def cut_off_for(self, false_discovery: float) -> float:
        """The lowest cut-off from which on the false discovery rate is no greater; infinite where none is."""
        bad = np.flatnonzero(self.false_discovery > false_discovery)
        if self.particles <= 0.0 or (len(bad) and bad[-1] == len(self.cut_offs) - 1):
            return math.inf
        return float(self.cut_offs[bad[-1] + 1 if len(bad) else 0])

    def at(self, cut_off: float) -> tuple[float, float]:
        """Recall and false discovery rate of a cut-off; NaN below the lowest score."""
        if cut_off < self.lowest:
            return math.nan, math.nan
        return (
            float(np.interp(cut_off, self.cut_offs, self.recall)),
            float(np.interp(cut_off, self.cut_offs, self.false_discovery)),
        )


def estimate_recall(scores: ArrayLike, statistics: SearchStatistics) -> RecallEstimate:
    """Fit the mixture to the scores of a search's best candidates.

    Parameters
    ----------
    scores : (n,) array
        Of the best candidates, taken without a cut-off, or with one so low that background is among them.
    statistics : SearchStatistics

    Raises
    ------
    FitError
        Too few scores, or no standard deviation.
    """
    given = np.sort(np.asarray(scores, np.float64))
    if len(given) < _FEWEST or not np.isfinite(given).all():
        raise FitError(
            f"{len(given)} finite scores are too few for an estimate of recall: {_FEWEST} are needed"
        )
    if not statistics.std > 0.0:
        raise FitError("the search's scores have no standard deviation, which an estimate of recall needs")
    unit = statistics.std
    s = (given - statistics.mean) / unit
    lowest = float(s[0])
    most = math.log(max(statistics.search_space, 10.0))
    alone = _best(s, lowest, most, [])
    spread = max(float(s[-1]) - lowest, 1e-3)
    starts = [
        (share, lowest + at * spread, width * spread)
        for share in (0.05, 0.3, 0.7)
        for at, width in ((0.3, 0.15), (0.6, 0.15), (0.8, 0.08))
    ]
    both = _best(s, lowest, most, starts)
    # Schwarz: three parameters more must be worth it
    if alone[0] - both[0] < 1.5 * math.log(len(s)):
        (log_m, log_a), particles = alone[1], None
    else:
        log_m, log_a, *rest = both[1]
        particles = (1.0 / (1.0 + math.exp(-rest[0])), rest[1], math.exp(rest[2]))
    a = math.exp(log_a)
    grid = np.linspace(lowest, float(s[-1]), _GRID)
    background_above = np.exp(_log_above(grid, log_m, a) - _log_above(np.array([lowest]), log_m, a))
    if particles is None:
        false = np.ones(_GRID)
        return RecallEstimate(
            0.0, float(len(s)), math.nan, math.nan, a * unit, math.exp(log_m), float(given[0]),
            grid * unit + statistics.mean, np.zeros(_GRID), false,
        )  # fmt: skip
    w, mu, tau = particles
    above = np.exp(log_ndtr((mu - grid) / tau))
    total = w * len(s) / above[0]
    true, wrong = total * above, (1.0 - w) * len(s) * background_above
    return RecallEstimate(
        float(total),
        float((1.0 - w) * len(s)),
        mu * unit + statistics.mean,
        tau * unit,
        a * unit,
        math.exp(log_m),
        float(given[0]),
        grid * unit + statistics.mean,
        above,
        wrong / np.maximum(true + wrong, 1e-300),
    )


def _log_above(s: _Array, log_m: float, a: float) -> _Array:
    """ln of the chance that the highest of m looks is above s."""
    all_below = math.exp(log_m) * log_ndtr(s / a)
    return np.asarray(np.log(-np.expm1(np.minimum(all_below, -1e-300))))


def _log_background(s: _Array, lowest: float, log_m: float, a: float) -> _Array:
    x = s / a
    density = log_m - 0.5 * x * x - 0.5 * math.log(2.0 * math.pi) - math.log(a)
    density = density + (math.exp(log_m) - 1.0) * log_ndtr(x)
    return np.asarray(density - _log_above(np.array([lowest]), log_m, a))


def _cost(p: _Array, s: _Array, lowest: float) -> float:
    background = _log_background(s, lowest, p[0], math.exp(p[1]))
    if len(p) == 2:
        return float(-background.sum())
    logit, mu, tau = p[2], p[3], math.exp(p[4])
    x = (s - mu) / tau
    particle = -0.5 * x * x - 0.5 * math.log(2.0 * math.pi) - p[4] - log_ndtr((mu - lowest) / tau)
    log_w, log_rest = -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))
    return float(-logsumexp(np.stack([particle + log_w, background + log_rest]), axis=0).sum())


def _best(
    s: _Array, lowest: float, most: float, starts: list[tuple[float, float, float]]
) -> tuple[float, list[float]]:
    """Cost and parameters of the best of several fits; without starts of the background alone."""
    bounds: list[tuple[float, float]] = [(0.0, most), (math.log(_SIGMA_RANGE[0]), math.log(_SIGMA_RANGE[1]))]
    begin = [min(0.5 * most, 0.5 * max(lowest, 1.0) ** 2), 0.0]
    first: list[list[float]] = [begin]
    if starts:
        span = max(float(s[-1]) - lowest, 1e-3)
        # a peak of particles that lies wholly below the list cannot be told from its background
        bounds += [(-8.0, 8.0), (lowest, float(s[-1])), (math.log(0.02 * span), math.log(span))]
        first = [[*begin, math.log(w / (1.0 - w)), mu, math.log(tau)] for w, mu, tau in starts]
    best: tuple[float, list[float]] = (math.inf, begin)
    for start in first:
        fit = minimize(_cost, np.array(start), args=(s, lowest), method="L-BFGS-B", bounds=bounds)
        if fit.fun < best[0]:
            best = (float(fit.fun), [float(v) for v in fit.x])
    if not math.isfinite(best[0]):
        raise FitError("the scores of candidates have a distribution that no mixture fits")
    return best


def recall_figure(
    scores: ArrayLike, estimate: RecallEstimate, cut_off: float | None = None, title: str = ""
) -> Figure:
    """Left the scores and the mixture, right recall and false discovery rate over the cut-off."""
    from matplotlib.figure import Figure

    given = np.asarray(scores, np.float64)
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.histogram_bin_edges(given, min(80, max(10, len(given) // 20)))
    left.hist(given, bins=bins, color="0.8", label="candidates")
    middle = 0.5 * (bins[1:] + bins[:-1])
    below = np.interp(bins, estimate.cut_offs, estimate.recall)
    particles = estimate.particles * -np.diff(below)
    true = estimate.particles * estimate.recall
    fdr = estimate.false_discovery
    # what is above a cut-off: background = particles · FDR / (1 − FDR)
    wrong = np.where(fdr < 1.0, true * fdr / np.maximum(1.0 - fdr, 1e-12), estimate.background)
    background = -np.diff(np.interp(bins, estimate.cut_offs, wrong))
    left.plot(middle, background, color="tab:orange", label="background")
    if estimate.particles > 0.0:
        left.plot(middle, particles, color="tab:blue", label=f"particles ({estimate.particles:.0f})")
    left.set_yscale("symlog", linthresh=1.0)
    left.set_xlabel("score")
    left.set_ylabel("candidates")
    right.plot(estimate.cut_offs, estimate.recall, color="tab:blue", label="recall")
    right.plot(estimate.cut_offs, fdr, color="tab:orange", label="false discovery rate")
    right.plot(estimate.cut_offs, estimate.f1, color="0.6", label="F1")
    right.set_ylim(0.0, 1.02)
    right.set_xlabel("cut-off")
    for axis in (left, right):
        if cut_off is not None:
            axis.axvline(cut_off, color="black", linestyle="--", linewidth=1.0, label="cut-off")
        axis.legend(fontsize="small")
    if title:
        figure.suptitle(title)
    return figure

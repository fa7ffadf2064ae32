"""Which side of the specimen comes closer to the source when the stage tilts: the handedness of a series.

Two witnesses. The series is fitted with both hands and the likelihoods are compared (Tegunov & Cramer 2019,
"Contrast transfer function estimation in tilt series", end); and in every tilt by itself the gradient of
defocus across the tilt axis is measured, and all gradients are compared with those that hand +1 predicts:
their slope is +1 or −1, and an inclined specimen only adds a constant. Where the two do not agree, or tilts
are too small or rings too few, there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from weft.defocus.tilt_gradients import Gradients, measure_gradients
from weft.defocus.tilt_series import TiltCTF, TiltCTFSettings, fit_tilt_ctf, series_spectra
from weft.defocus.tilt_spectra import TiltSpectra
from weft.errors import FitError
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics

__all__ = ["Handedness", "SessionHand", "determine_hand", "session_hand"]

CERTAIN = 4.5  # standard errors of both witnesses together
BOTH = 2.0  # what each of them must have for certainty
LIKELY = 2.5
AGAINST = 1.0  # standard errors by which one witness may contradict the other
SMALL_RANGE = 15.0  # degrees between the least and the greatest tilt: less cannot be told from an inclination
NEIGHBOURS = 1  # tilts on either side whose errors are alike: they show the same particles

Verdict = Literal["certain", "likely", "undecidable"]


@dataclass(frozen=True)
class Handedness:
    """The verdict on one series.

    Attributes
    ----------
    hand : float
        +1 or −1, or 0 where it cannot be decided: what `TiltGeometry.hand` should be.
    verdict : {"certain", "likely", "undecidable"}
    reason : str
        One sentence.
    scores : (float, float)
        Log-likelihoods of the fits with hand +1 and −1, each minus the lower of the two.
    by_tilt : (tilts,) float64
        Log-likelihood with +1 minus that with −1, of each tilt.
    significance : float
        Of the difference of the scores, in standard errors (from how much the tilts agree); positive for +1.
    slope, slope_error : float
        Of measured against predicted gradients (hand +1).
    log_odds : float
        The difference of the scores, brought down to what the tilts' agreement supports; series add up.
    gradients : Gradients
        Measured and predicted, of each tilt: the picture.
    fits : tuple of two TiltCTF
        With hand +1 and −1; empty when read back from a record.
    """

    hand: float
    verdict: Verdict
    reason: str
    scores: tuple[float, float]
    by_tilt: NDArray[np.float64]
    significance: float
    slope: float
    slope_error: float
    log_odds: float
    gradients: Gradients
    fits: tuple[TiltCTF, ...] = field(default=(), repr=False)

    @property
    def best(self) -> TiltCTF:
        """The fit with the hand that scores better."""
        return self.fits[0 if self.scores[0] >= self.scores[1] else 1]

    def metrics(self) -> dict[str, float | str]:
        """Numbers for a table."""
        return {
            "hand": self.hand,
            "hand_verdict": self.verdict,
            "hand_score_plus": self.scores[0],
            "hand_score_minus": self.scores[1],
            "hand_significance": self.significance,
            "hand_slope": self.slope,
            "hand_slope_error": self.slope_error,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers; the two fits are kept elsewhere."""
        return {
            "hand": self.hand,
            "verdict": self.verdict,
            "reason": self.reason,
            "scores": [round(s, 3) for s in self.scores],
            "by_tilt": np.round(self.by_tilt, 3).tolist(),
            "significance": round(self.significance, 3),
            "slope": round(self.slope, 4),
            "slope_error": round(self.slope_error, 4),
            "log_odds": round(self.log_odds, 3),
            "gradients": self.gradients.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Handedness:
        """Inverse of :meth:`to_dict`."""
        return cls(
            hand=float(data["hand"]),
            verdict=data["verdict"],
            reason=data["reason"],
            scores=(float(data["scores"][0]), float(data["scores"][1])),
            by_tilt=np.asarray(data["by_tilt"], dtype=np.float64),
            significance=float(data["significance"]),
            slope=float(data["slope"]),
            slope_error=float(data["slope_error"]),
            log_odds=float(data["log_odds"]),
            gradients=Gradients.from_dict(data["gradients"]),
        )


def determine_hand(
    images: torch.Tensor | Sequence[torch.Tensor] | TiltSpectra,
    geometry: TiltGeometry,
    optics: Optics,
    dose: ArrayLike | None = None,
    settings: TiltCTFSettings | None = None,
    include: ArrayLike | None = None,
) -> Handedness:
    """Fit a series with both hands and judge.

    Parameters
    ----------
    images, geometry, optics, dose, settings, include
        As for :func:`weft.defocus.tilt_series.fit_tilt_ctf`; the hand in `geometry` does not matter.

    Raises
    ------
    FitError
        As for the fit.
    """
    settings = settings or TiltCTFSettings()
    spectra = images if isinstance(images, TiltSpectra) else series_spectra(images, optics, settings, include)
    plus, minus = (
        fit_tilt_ctf(spectra, replace(geometry, hand=hand), optics, dose, settings) for hand in (1.0, -1.0)
    )
    by_tilt = np.where(spectra.used, plus.tilt_likelihood - minus.tilt_likelihood, 0.0)
    trusted = plus.fitted | minus.fitted
    difference = float(by_tilt[trusted].sum())
    significance = _agreement(by_tilt[trusted], geometry.angles.numpy()[trusted])
    gradients = measure_gradients(spectra, geometry, optics, plus if difference >= 0.0 else minus, trusted)
    slope, slope_error = gradients.slope()
    hand, verdict, reason = _judge(
        difference, significance, slope, slope_error, geometry.angles.numpy()[trusted], len(by_tilt)
    )
    total = (plus.log_likelihood, minus.log_likelihood)
    calibrated = math.copysign(min(abs(difference), 0.5 * significance**2), difference)
    return Handedness(
        hand=hand,
        verdict=verdict,
        reason=reason,
        scores=(total[0] - min(total), total[1] - min(total)),
        by_tilt=by_tilt,
        significance=significance,
        slope=slope,
        slope_error=slope_error,
        log_odds=calibrated,
        gradients=gradients,
        fits=(plus, minus),
    )


def _agreement(differences: NDArray[np.float64], angles: NDArray[np.float64]) -> float:
    """Sum of the tilts' differences over its standard error, 0 where there are too few tilts.

    The error is that of how much the tilts scatter; neighbours count as alike (Bartlett's window). With few
    tilts it is itself uncertain: Student's t is turned into the normal deviate of the same probability, which
    is not allowed to be more than the likelihoods themselves say.
    """
    n = len(differences)
    if n < 3:
        return 0.0
    total = float(differences.sum())
    d = (differences - differences.mean())[np.argsort(angles, kind="stable")]
    variance = float(d @ d)
    for lag in range(1, NEIGHBOURS + 1):
        variance += 2.0 * (1.0 - lag / (NEIGHBOURS + 1.0)) * max(float(d[lag:] @ d[:-lag]), 0.0)
    variance *= n / (n - 1.0)
    if variance <= 0.0:
        return 0.0
    deviate = float(stats.norm.isf(max(float(stats.t.sf(abs(total) / math.sqrt(variance), n - 1)), 1e-300)))
    return math.copysign(min(deviate, math.sqrt(2.0 * abs(total))), total)


def _judge(
    difference: float,
    significance: float,
    slope: float,
    slope_error: float,
    angles: NDArray[np.float64],
    n_tilts: int,
) -> tuple[float, Verdict, str]:
    if len(angles) < 3:
        return 0.0, "undecidable", f"only {len(angles)} of {n_tilts} tilts show rings"
    span = float(np.ptp(angles))
    if span < SMALL_RANGE:
        return (
            0.0,
            "undecidable",
            f"tilts span only {span:.0f}°, in which an inclined specimen looks like either hand",
        )
    hand = 1.0 if difference >= 0.0 else -1.0
    single = hand * slope / max(slope_error, 1e-9)
    scores = hand * significance
    other = f"{abs(difference):.0f} log-likelihood units better than hand {-hand:+.0f}"
    own = f"gradients of single tilts have a slope of {slope:+.2f} ± {slope_error:.2f}"
    if single < -AGAINST:
        return 0.0, "undecidable", f"the fits favour hand {hand:+.0f}, but {own}"
    # both see the same data: the sum of two independent witnesses would be too sure
    together = max(scores, single)
    if together >= CERTAIN and min(scores, single) >= BOTH:
        return hand, "certain", f"hand {hand:+.0f} is {other}, and {own}"
    if together >= LIKELY and min(scores, single) >= AGAINST:
        return hand, "likely", f"hand {hand:+.0f} is {other}, and {own}"
    return 0.0, "undecidable", f"too few rings: hand {hand:+.0f} is only {other}, and {own}"


@dataclass(frozen=True)
class SessionHand:
    """The verdict on all series of a session, which one microscope recorded in one way.

    Attributes
    ----------
    hand, verdict, reason
        As for one series.
    log_odds : float
        Sum over the series, positive for +1.
    votes : (int, int)
        Series that by themselves decide for +1 and for −1.
    contradicting : tuple of int
        Series (places in the list) that decide against the verdict.
    """

    hand: float
    verdict: Verdict
    reason: str
    log_odds: float
    votes: tuple[int, int]
    contradicting: tuple[int, ...]


def session_hand(series: Sequence[Handedness]) -> SessionHand:
    """Combine the verdicts of all series of a session: the sum of their log-odds.

    Raises
    ------
    FitError
        If there is no series.
    """
    if not series:
        raise FitError("no tilt series has been fitted: there is no handedness to judge")
    # a series that cannot decide for a reason of principle says nothing; a weak one counts for what it has
    odds = np.array(
        [s.log_odds if s.verdict != "undecidable" or s.slope * s.log_odds > 0 else 0.0 for s in series]
    )
    total = float(odds.sum())
    hand = 1.0 if total >= 0.0 else -1.0
    votes = (sum(s.hand > 0 for s in series), sum(s.hand < 0 for s in series))
    against = tuple(i for i, s in enumerate(series) if s.hand == -hand)
    strength = math.sqrt(2.0 * abs(total))
    counted = f"series for +1: {votes[0]}, for −1: {votes[1]}, undecidable: {len(series) - sum(votes)}"
    if any(series[i].verdict == "certain" for i in against):
        return SessionHand(
            0.0,
            "undecidable",
            f"{counted}: they contradict each other, so tilt angles or images of some are likely mirrored",
            total,
            votes,
            against,
        )
    # log-odds are one of two witnesses: a series that is certain by both is enough
    sure = any(s.hand == hand and s.verdict == "certain" for s in series) and not against
    if strength < LIKELY and not sure:
        return SessionHand(0.0, "undecidable", f"{counted}: not enough to judge", total, votes, against)
    verdict: Verdict = "certain" if sure or (strength >= CERTAIN and not against) else "likely"
    return SessionHand(hand, verdict, counted, total, votes, against)

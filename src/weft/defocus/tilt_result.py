"""What is known of a tilt series' CTF after the fit, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weft.defocus.quality import Curve, agreement, resolution
from weft.defocus.tilt_display import TiltCurve, series_average, series_picture, tilt_curves
from weft.defocus.tilt_fit import TiltSolution
from weft.defocus.tilt_model import evaluate
from weft.defocus.tilt_search import SeriesPrior
from weft.defocus.tilt_spectra import TiltSpectra
from weft.physics.optics import Optics

__all__ = ["TiltCTF", "judge"]

LEAST_EVIDENCE = 12.0  # log-likelihood units of one tilt; noise alone reaches 5 (docs/science/tilt-ctf.md)
LARGEST_ERROR = 800.0  # Å: a tilt that is known less well than this is not known
AMBIGUOUS = 3.0  # log-likelihood units between the best peak of a tilt and another one
GOOD_SHARE, DOUBTFUL_SHARE = 0.8, 0.4  # of tilts whose own fit holds
GOOD_SCORE = 0.5  # of the series' mean curve
GOOD_ERROR = 300.0  # Å, the median of the tilts'


@dataclass(frozen=True)
class TiltCTF:
    """The contrast transfer function of every tilt of a series. Å and degrees.

    Attributes
    ----------
    defocus : (tilts,) float64
        Mean of defocus_u and defocus_v at the volume's centre.
    delta : (tilts,) float64
        defocus_u − defocus_v, never negative: defocus_u = defocus + delta / 2.
    angle : (tilts,) float64
        Direction of defocus_u from +x, counter-clockwise.
    phase : (tilts,) float64
        Of a phase plate.
    level_x, level_y : float
        Inclination of the specimen that the CTF sees, as a correction to be *added* to the geometry's.
    level_error : (float, float)
        Expected standard deviations of these two.
    hand : float
        +1 or −1, of the geometry that was fitted with.
    resolution : (tilts,) float64
        To which a tilt's own rings agree with the fit.
    quality : (tilts,) float64
        Correlation of a tilt's own rings with the fit, 0 to 1; 0 where the fit of the tilt failed.
    defocus_error : (tilts,) float64
        Expected standard deviation; the series' scatter where the fit of the tilt failed.
    evidence : (tilts,) float64
        Log-likelihood gained by rings.
    fitted : (tilts,) bool
        False where the tilt was excluded or failed, and has the value of its neighbours.
    fit_range : (float, float)
        As used in the end.
    series_resolution, score : float
        Of all spectra brought to one defocus: where rings end, and their mean correlation with the fit.
    tilt_likelihood : (tilts,) float64
        Log-likelihood over the whole range asked for; only differences between fits have a meaning.
    curves : tuple of TiltCurve
        One for each tilt.
    mean_curve : Curve
        All spectra at the mean defocus, relative to their smooth part.
    picture : (512, 512) uint8 or None
        The same in two dimensions (left) beside the fitted CTF² (right).
    verdict : {"good", "doubtful", "bad"}
    notes : tuple of str
        What a person should know.
    solution : TiltSolution or None
        The fit itself with its curves; None when read back from a record.
    """

    defocus: NDArray[np.float64]
    delta: NDArray[np.float64]
    angle: NDArray[np.float64]
    phase: NDArray[np.float64]
    level_x: float
    level_y: float
    level_error: tuple[float, float]
    hand: float
    resolution: NDArray[np.float64]
    quality: NDArray[np.float64]
    defocus_error: NDArray[np.float64]
    evidence: NDArray[np.float64]
    fitted: NDArray[np.bool_]
    fit_range: tuple[float, float]
    series_resolution: float
    score: float
    tilt_likelihood: NDArray[np.float64]
    verdict: Literal["good", "doubtful", "bad"]
    notes: tuple[str, ...] = ()
    curves: tuple[TiltCurve, ...] = ()
    mean_curve: Curve | None = None
    picture: NDArray[np.uint8] | None = field(default=None, repr=False)
    solution: TiltSolution | None = field(default=None, repr=False)

    @property
    def log_likelihood(self) -> float:
        """Of the whole series."""
        return float(self.tilt_likelihood.sum())

    @property
    def defocus_u(self) -> NDArray[np.float64]:
        """(tilts,) Å, along `angle`."""
        return np.asarray(self.defocus + 0.5 * self.delta)

    @property
    def defocus_v(self) -> NDArray[np.float64]:
        """(tilts,) Å, across `angle`."""
        return np.asarray(self.defocus - 0.5 * self.delta)

    def level_beside(self, alignment_error: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The inclination's correction where the alignment's is right to within `alignment_error` (degrees).

        Returns
        -------
        correction, error : (level_x, level_y), degrees
            Means of the two findings weighted by their precision.
        """
        own = alignment_error**2
        parts = [own / (own + e**2) for e in self.level_error]
        corrections = (parts[0] * self.level_x, parts[1] * self.level_y)
        errors = (math.sqrt(parts[0]) * self.level_error[0], math.sqrt(parts[1]) * self.level_error[1])
        return corrections, errors

    def metrics(self) -> dict[str, float | str]:
        """Numbers by which series are judged and selected."""
        return {
            "defocus": float(np.median(self.defocus)),
            "defocus_range": float(np.ptp(self.defocus[self.fitted])) if self.fitted.any() else 0.0,
            "defocus_error": float(np.median(self.defocus_error)),
            "astigmatism": float(self.delta.mean()),
            "phase_shift": float(self.phase.mean()),
            "resolution": self.series_resolution,
            "ctf_score": self.score,
            "ctf_evidence": float(self.evidence.sum()),
            "ctf_level_x": self.level_x,
            "ctf_level_y": self.level_y,
            "ctf_level_error": float(max(self.level_error)),
            "tilts_fitted": int(self.fitted.sum()),
            "ctf_verdict": self.verdict,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, with curves but without the picture."""
        out: dict[str, Any] = {
            name: np.round(getattr(self, name), digits).tolist() for name, digits in _ARRAYS.items()
        }
        out |= {name: round(float(getattr(self, name)), 5) for name in _NUMBERS}
        out["fitted"] = self.fitted.tolist()
        out["fit_range"] = [round(r, 4) for r in self.fit_range]
        out["level_error"] = [round(e, 4) for e in self.level_error]
        out["verdict"], out["notes"] = self.verdict, list(self.notes)
        out["curves"] = {
            "k": np.round(self.curves[0].k, 6).tolist() if self.curves else [],
            **{
                name: [np.round(getattr(c, name), 4).tolist() for c in self.curves]
                for name in ("measured", "model", "smooth")
            },
        }
        mean = self.mean_curve
        out["mean_curve"] = (
            None if mean is None else {n: np.round(getattr(mean, n), 5).tolist() for n in _CURVE}
        )
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TiltCTF:
        """Inverse of :meth:`to_dict`."""
        k = np.asarray(data["curves"]["k"], dtype=np.float64)
        curves = tuple(
            TiltCurve(k, *(np.asarray(row, dtype=np.float64) for row in rows))
            for rows in zip(*(data["curves"][name] for name in ("measured", "model", "smooth")))
        )
        mean = data["mean_curve"]
        plain: dict[str, Any] = {name: np.asarray(data[name], dtype=np.float64) for name in _ARRAYS}
        plain |= {name: float(data[name]) for name in _NUMBERS}
        return cls(
            **plain,
            fitted=np.asarray(data["fitted"], dtype=bool),
            fit_range=(float(data["fit_range"][0]), float(data["fit_range"][1])),
            level_error=(float(data["level_error"][0]), float(data["level_error"][1])),
            verdict=data["verdict"],
            notes=tuple(data["notes"]),
            curves=curves,
            mean_curve=None if mean is None else Curve(*(np.asarray(mean[n]) for n in _CURVE)),
        )


_ARRAYS = {
    "defocus": 2,
    "delta": 2,
    "angle": 3,
    "phase": 3,
    "resolution": 3,
    "quality": 4,
    "defocus_error": 2,
    "evidence": 2,
    "tilt_likelihood": 2,
}
_NUMBERS = ("level_x", "level_y", "hand", "series_resolution", "score")
_CURVE = ("k", "power", "background", "fit", "correlation")


def judge(
    spectra: TiltSpectra,
    band: TiltSpectra,
    optics: Optics,
    solution: TiltSolution,
    prior: SeriesPrior,
    offsets: NDArray[np.float64],
    profile: NDArray[np.float64],
    limits: tuple[float, float],
) -> TiltCTF:
    """Decide tilt by tilt what the fit is worth, and fill the gaps.

    Parameters
    ----------
    spectra, band : TiltSpectra
        Of the whole range asked for, and of that which was fitted.
    prior : SeriesPrior
        Of the last fit.
    offsets, profile : (n,), (tilts, n) arrays
        From `tilt_fit.rescan`: the likelihood of every tilt at other defoci.
    limits : (float, float)
        Of the search, Å.
    """
    low, high = float(band.k[0]), float(band.k[-1])
    notes: list[str] = []
    # over the whole range, so that fits of different ranges can be compared
    whole = evaluate(spectra, optics, solution.curves, solution.waves(spectra), slopes=False).log_likelihood
    # a peak elsewhere that is nearly as good: half a ring away at the highest frequency at least
    ring = 0.5 / (optics.wavelength * high**2)
    total = profile + prior.log(solution.defocus[:, None] + offsets) - prior.log(solution.defocus)[:, None]
    other = np.where(np.abs(offsets) > ring, total, -np.inf).max(1)
    # how likely it is the true one adds to the error
    chance = np.where(np.abs(offsets) > ring, np.exp(np.minimum(total, 0.0)), 0.0)
    elsewhere = (chance * offsets**2).sum(1) / np.exp(np.minimum(total, 0.0)).sum(1)
    trusted = (
        spectra.used
        & (solution.evidence >= LEAST_EVIDENCE)
        & (solution.defocus_error <= LARGEST_ERROR)
        & (other < -AMBIGUOUS)
    )
    defocus, error = solution.defocus.copy(), solution.defocus_error.copy()
    angles = solution.geometry.angles.numpy()
    for t in np.flatnonzero(~trusted) if trusted.any() else ():
        reason = (
            "was left out or holds no contrast"
            if not spectra.used[t]
            else "shows no rings"
            if solution.evidence[t] < LEAST_EVIDENCE
            else "fits at two defoci"
            if other[t] >= -AMBIGUOUS
            else "is too uncertain"
        )
        notes.append(f"tilt {t} ({angles[t]:.1f}°) {reason}: its defocus is that of its neighbours")
    if trusted.any():
        order = np.flatnonzero(trusted)[np.argsort(angles[trusted], kind="stable")]
        defocus[~trusted] = np.interp(angles[~trusted], angles[order], defocus[order])
        error = np.sqrt(error**2 + elsewhere)
        error[~trusted] = math.hypot(prior.scatter, float(error[trusted].mean()))
    else:
        # nothing was seen: the middle of what was searched, and all of it as the error
        defocus[:] = 0.5 * (limits[0] + limits[1])
        error[:] = (limits[1] - limits[0]) / math.sqrt(12.0)
    curves = tilt_curves(spectra, optics, solution)
    mean, _ = series_average(curves, optics, solution, trusted)
    end = float(spectra.k[-1])
    reached = resolution(mean, low, end)
    inside = (mean.k >= low) & (mean.k <= high)
    score = float(mean.correlation[inside].mean())
    a = solution.freedom.weights @ solution.astigmatism
    level, level_error = solution.level, solution.level_error
    if not trusted.any():
        reached, score, a, level = 1.0 / low, 0.0, np.zeros_like(a), np.zeros(2)
        level_error = np.full(2, solution.freedom.level_spread)
    phase = np.degrees(solution.freedom.weights @ solution.phase)
    own_resolution, own_quality = np.full(len(defocus), 1.0 / low), np.zeros(len(defocus))
    for t in np.flatnonzero(trusted):
        own = agreement(curves[t].k, curves[t].measured, solution.defocus[t], phase[t], optics)
        own_resolution[t] = resolution(own, low, end)
        own_quality[t] = max(curves[t].score(low, high), 0.0)
    share = float(trusted.sum()) / max(int(spectra.used.sum()), 1)
    verdict: Literal["good", "doubtful", "bad"] = (
        "good"
        if share >= GOOD_SHARE and score >= GOOD_SCORE and float(np.median(error)) <= GOOD_ERROR
        else "doubtful"
        if share >= DOUBTFUL_SHARE
        else "bad"
    )
    outside = trusted & ((defocus < limits[0]) | (defocus > limits[1]))
    if outside.any():
        notes.append(
            f"{int(outside.sum())} tilts have their defocus outside of the searched {limits[0] / 1e4:g} to "
            f"{limits[1] / 1e4:g} µm: search further"
        )
    if not trusted.any():
        notes.append("no tilt shows rings that can be fitted: the values mean nothing")
    elif verdict == "bad":
        notes.insert(
            0, f"only {int(trusted.sum())} of {int(spectra.used.sum())} tilts show rings that can be fitted"
        )
    return TiltCTF(
        defocus=defocus,
        delta=2.0 * np.hypot(a[:, 0], a[:, 1]),
        angle=np.degrees(0.5 * np.arctan2(a[:, 1], a[:, 0])),
        phase=np.mod(np.round(phase, 6), 180.0),
        level_x=float(level[0]),
        level_y=float(level[1]),
        level_error=(float(level_error[0]), float(level_error[1])),
        hand=float(solution.geometry.hand),
        resolution=own_resolution,
        quality=own_quality,
        defocus_error=error,
        evidence=np.where(spectra.used, solution.evidence, 0.0),
        fitted=trusted,
        fit_range=(1.0 / low, 1.0 / high),
        series_resolution=reached,
        score=score,
        tilt_likelihood=np.where(spectra.used, whole.sum(1), 0.0),
        verdict=verdict,
        notes=tuple(notes),
        curves=tuple(curves),
        mean_curve=mean,
        picture=series_picture(spectra, optics, solution, trusted, min(1.3 / reached, end)),
        solution=solution,
    )

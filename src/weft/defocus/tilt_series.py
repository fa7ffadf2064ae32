"""CTF of a tilt series.

The steps follow Tegunov & Cramer 2019 ("Contrast transfer function estimation in tilt series"): spectra of
patches of all tilts, an exhaustive search for the defocus, then one fit of all tilts' defoci, astigmatism and
phase at a few points over the series, and the specimen's inclination, with the geometry of the alignment; again
over a shorter range where rings do not reach the end; and all spectra brought to one defocus for the eye. As for
single micrographs the fit is by maximum likelihood (`tilt_model`), and every tilt is searched on its own.

docs/science/tilt-ctf.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from weft.defocus import quality
from weft.defocus.tilt_display import TiltCurve, series_average, series_picture, tilt_curves
from weft.defocus.tilt_fit import Freedom, TiltSolution, refine, rescan
from weft.defocus.tilt_model import Waves, evaluate, initial_curves, update_curves
from weft.defocus.tilt_planes import depth, gradients
from weft.defocus.tilt_search import Found, SeriesPrior, search
from weft.defocus.tilt_spectra import TiltSpectra, tilt_spectra
from weft.errors import FitError
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["TiltCTF", "TiltCTFSettings", "fit_tilt_ctf", "series_spectra"]

SETTLING = 6  # rounds of the curves between two searches
ROUNDS = 20
USED_NYQUIST = 0.95
LEAST_EVIDENCE = 12.0  # log-likelihood units of one tilt; noise alone reaches 5 (docs/science/tilt-ctf.md)
LARGEST_ERROR = 800.0  # Å: a tilt that is known less well than this is not known
AMBIGUOUS = 3.0  # log-likelihood units between the best peak of a tilt and another one
GOOD_SHARE, DOUBTFUL_SHARE = 0.8, 0.4  # of tilts whose own fit holds
GOOD_SCORE = 0.5  # of the series' mean curve


class TiltCTFSettings(Settings):
    """How the contrast transfer function of a tilt series is fitted."""

    range_min: float = setting(
        40.0, "Lowest spatial frequency fitted, as a resolution.", unit="Å", gt=8, le=100
    )
    range_max: float = setting(
        5.0,
        "Highest spatial frequency fitted, as a resolution; less is used where pixels or rings do not reach it.",
        unit="Å",
        ge=1.0,
        le=20.0,
    )
    defocus_min: float = setting(0.5, "Least defocus searched.", unit="µm", ge=0.0, le=20.0)
    defocus_max: float = setting(8.0, "Greatest defocus searched.", unit="µm", gt=0.0, le=20.0)
    patch: float = setting(
        1000.0,
        "Side of the patches whose spectra are taken: smaller ones see gradients of defocus better, larger ones "
        "finer rings.",
        unit="Å",
        ge=200.0,
        le=10000.0,
    )
    astigmatism_points: int = setting(
        3, "Control points of astigmatism (and of a fitted phase) over the series; 0: no astigmatism.", ge=0, le=9
    )
    fit_phase: bool = setting(False, "Also fit the phase shift of a phase plate.")
    phase_shift: float = setting(
        0.0, "Phase shift of a phase plate, where it is not fitted.", unit="deg", ge=0.0, le=180.0
    )
    fit_level: bool = setting(True, "Also fit the inclination of the specimen.")
    level_spread: float = setting(
        15.0,
        "How far the specimen's inclination may be from that of the alignment, as a standard deviation.",
        unit="deg",
        gt=0.0,
        le=45.0,
    )

    @model_validator(mode="after")
    def _consistent(self) -> TiltCTFSettings:
        if self.range_max >= self.range_min:
            raise ValueError("range_max must be a finer resolution (a smaller number) than range_min")
        if self.defocus_max <= self.defocus_min:
            raise ValueError("defocus_max must be greater than defocus_min")
        return self


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
    mean_curve : quality.Curve
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
    mean_curve: quality.Curve | None = None
    picture: NDArray[np.uint8] | None = field(default=None, repr=False)
    solution: TiltSolution | None = field(default=None, repr=False)

    @property
    def log_likelihood(self) -> float:
        """Of the whole series."""
        return float(self.tilt_likelihood.sum())

    def level_beside(self, alignment_error: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The inclination's correction when the alignment's own is right to within `alignment_error` (degrees).

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
        out["mean_curve"] = None if mean is None else {n: np.round(getattr(mean, n), 5).tolist() for n in _CURVE}
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
        return cls(
            **{name: np.asarray(data[name], dtype=np.float64) for name in _ARRAYS},
            **{name: float(data[name]) for name in _NUMBERS},
            fitted=np.asarray(data["fitted"], dtype=bool),
            fit_range=(float(data["fit_range"][0]), float(data["fit_range"][1])),
            level_error=(float(data["level_error"][0]), float(data["level_error"][1])),
            verdict=data["verdict"],
            notes=tuple(data["notes"]),
            curves=curves,
            mean_curve=None if mean is None else quality.Curve(*(np.asarray(mean[n]) for n in _CURVE)),
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


def series_spectra(
    images: torch.Tensor | Sequence[torch.Tensor],
    optics: Optics,
    settings: TiltCTFSettings | None = None,
    include: ArrayLike | None = None,
) -> TiltSpectra:
    """What the fit keeps of the images: compute it once where several fits are made.

    Parameters
    ----------
    images : (tilts, y, x) float32, or a sequence of (y, x) or (n, y, x) tensors
        Motion-corrected averages, one at a time; n images of a tilt (halves) are added up.
    optics : Optics
        `pixel_size` is that of the images.
    include : (tilts,) bool, optional
    """
    settings = settings or TiltCTFSettings()
    wanted = np.ones(len(images), dtype=bool) if include is None else np.asarray(include, dtype=bool).copy()
    if len(wanted) != len(images):
        raise FitError(f"include names {len(wanted)} tilts, but there are {len(images)} images")
    highest = min(1.0 / settings.range_max, USED_NYQUIST * 0.5 / optics.pixel_size)
    if highest < 2.0 / settings.range_min:
        raise FitError(
            f"pixels of {optics.pixel_size:.2f} Å leave only {settings.range_min:.0f} to {1 / highest:.1f} Å to "
            "fit; raise range_min or use less binning"
        )
    return tilt_spectra(images, optics.pixel_size, settings.patch, highest, wanted).within(
        1.0 / settings.range_min, highest
    )


def fit_tilt_ctf(
    images: torch.Tensor | Sequence[torch.Tensor] | TiltSpectra,
    geometry: TiltGeometry,
    optics: Optics,
    dose: ArrayLike | None = None,
    settings: TiltCTFSettings | None = None,
    include: ArrayLike | None = None,
) -> TiltCTF:
    """Fit the CTF of a tilt series with the geometry of its alignment.

    Parameters
    ----------
    images : (tilts, y, x) float32, a sequence of images, or TiltSpectra
        See :func:`series_spectra`.
    geometry : TiltGeometry
        Of the same tilts, in Å; its defocus is not used, its hand is believed.
    optics : Optics
        `pixel_size` is that of the images.
    dose : (tilts,) array, optional
        Accumulated exposure, which tells the order of acquisition; without it tilts count as acquired in order.
    settings : TiltCTFSettings, optional
    include : (tilts,) bool, optional
        Tilts to fit; the others get values from their neighbours.

    Raises
    ------
    FitError
        If no tilt can be used, or images are too small or too coarse.
    """
    settings = settings or TiltCTFSettings()
    spectra = images if isinstance(images, TiltSpectra) else series_spectra(images, optics, settings, include)
    n = len(spectra.power)
    if len(geometry) != n:
        raise FitError(f"the geometry has {len(geometry)} tilts, but there are {n} images")
    if not spectra.used.any():
        raise FitError("no tilt of the series holds any contrast (every pixel of an image has the same value)")
    order = np.arange(n) if dose is None else np.asarray(dose, dtype=np.float64)
    if order.shape != (n,):
        raise FitError(f"dose has {order.size} values, but there are {n} tilts")
    time = (order - order.min()) / max(float(np.ptp(order)), 1e-9)
    freedom = Freedom(
        time, settings.astigmatism_points, settings.fit_phase, settings.level_spread if settings.fit_level else 0.0
    )
    limits = (settings.defocus_min * 1e4, settings.defocus_max * 1e4)
    solution, found = _searched(spectra, geometry, optics, freedom, settings, limits)
    solution = refine(spectra, optics, solution, found.prior, rounds=ROUNDS, settle=4)
    solution, _, _ = rescan(spectra, optics, solution, found.prior, limits)
    low, high = float(spectra.k[0]), float(spectra.k[-1])
    band, prior = spectra, found.prior
    for attempt in range(3):
        prior = SeriesPrior.of(solution.defocus[spectra.used])
        solution = refine(band, optics, solution, prior, rounds=ROUNDS)
        curves = tilt_curves(spectra, optics, solution)
        mean, _ = series_average(curves, optics, solution, spectra.used)
        reached = 1.0 / quality.resolution(mean, low, high)
        if reached >= 0.97 * float(band.k[-1]) or attempt == 2 or float(band.k[-1]) <= 2.2 * low:
            break
        # rings do not reach the end of the range: fit what they do reach, and a little more
        band = spectra.within(0.0, max(1.1 * reached, 2.0 * low))
    _, offsets, profile = rescan(band, optics, solution, prior, limits)
    return _result(spectra, band, optics, solution, prior, offsets, profile, limits)


def _searched(
    spectra: TiltSpectra,
    geometry: TiltGeometry,
    optics: Optics,
    freedom: Freedom,
    settings: TiltCTFSettings,
    limits: tuple[float, float],
) -> tuple[TiltSolution, Found]:
    """Search with supposed curves, fit the curves, and search again."""
    phases = (
        tuple(math.radians(p) for p in range(0, 180, 15))
        if settings.fit_phase
        else (math.radians(settings.phase_shift),)
    )
    slopes = gradients(geometry, np.zeros(2))
    offsets = depth(geometry, slopes, spectra.centers)
    curves = initial_curves(spectra)
    n = len(slopes)
    for attempt in range(3):
        found = search(spectra, optics, curves, offsets[None], limits, phases)[0]
        if attempt == 2:
            break
        waves = Waves(found.defocus[:, None] + offsets, slopes, np.zeros((n, 2)), np.full(n, found.phase))
        for _ in range(SETTLING):
            curves = update_curves(spectra, optics, curves, waves, patches=False)
    return TiltSolution.start(geometry, freedom, curves, found.defocus, found.phase), found


def _result(
    spectra: TiltSpectra,
    band: TiltSpectra,
    optics: Optics,
    solution: TiltSolution,
    prior: SeriesPrior,
    offsets: NDArray[np.float64],
    profile: NDArray[np.float64],
    limits: tuple[float, float],
) -> TiltCTF:
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
    reached = quality.resolution(mean, low, end)
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
        own = quality.agreement(curves[t].k, curves[t].measured, solution.defocus[t], phase[t], optics)
        own_resolution[t] = quality.resolution(own, low, end)
        own_quality[t] = max(curves[t].score(low, high), 0.0)
    share = float(trusted.sum()) / max(int(spectra.used.sum()), 1)
    verdict: Literal["good", "doubtful", "bad"] = (
        "good"
        if share >= GOOD_SHARE and score >= GOOD_SCORE
        else "doubtful"
        if share >= DOUBTFUL_SHARE
        else "bad"
    )
    if not trusted.any():
        notes.append("no tilt shows rings that can be fitted: the values mean nothing")
    elif verdict == "bad":
        notes.insert(0, f"only {int(trusted.sum())} of {int(spectra.used.sum())} tilts show rings that can be fitted")
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

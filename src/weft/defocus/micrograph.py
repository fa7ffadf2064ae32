"""Local CTF of a micrograph.

The steps follow Tegunov & Cramer 2019 ("Contrast transfer function estimation in micrographs"): spectra of
overlapping patches, an exhaustive search, a fit of a defocus surface, astigmatism and phase to all
patches in 2D, a resolution estimate from spectra brought to one defocus, and a second fit over a shorter
range where the first one's rings do not reach the end of the range. The fit itself is by maximum
likelihood (`likelihood`), and the freedom of the surface is chosen from the data (`fit`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from weft.defocus import quality
from weft.defocus.display import spectrum_pictures
from weft.defocus.fit import Solution, evidence, refine, refine_phase, wrap_phase
from weft.defocus.search import Start, search
from weft.defocus.spectra import Spectra, averaged_spectrum, patch_spectra
from weft.errors import FitError
from weft.physics.optics import Optics
from weft.physics.splines import evaluate_grid
from weft.settings import Settings, setting

__all__ = ["CTFModel", "CTFSettings", "fit_ctf", "fit_spectrum"]

SEARCH_BANDS = ((100.0, 8.0), (14.0, 5.0))  # Å: where rings are strong; and where they are many
COMPARED_LIMIT = 5.0  # Å: starting points are compared up to here
COMPARED_PATCHES = 40
LEAST_EVIDENCE = 25.0  # log-likelihood units; noise alone reaches 15, a weak movie 50, a good one hundreds
SHOWN_BEYOND = 1.3  # the picture ends where frequencies are this much higher than the resolution
SHOWN_PATCHES = 64  # enough for the averages that are shown and judged
UNKNOWN_AVERAGED = 100.0  # periodograms supposed in a spectrum that somebody else averaged


class CTFSettings(Settings):
    """How the contrast transfer function is fitted."""

    range_min: float = setting(
        30.0, "Lowest spatial frequency fitted, as a resolution.", unit="Å", gt=8, le=100
    )
    range_max: float = setting(
        4.0,
        "Highest spatial frequency fitted, as a resolution; less is used where rings do not reach it.",
        unit="Å",
        ge=1.0,
        le=15.0,
    )
    defocus_min: float = setting(0.3, "Least defocus searched.", unit="µm", ge=0.0, le=20.0)
    defocus_max: float = setting(5.0, "Greatest defocus searched.", unit="µm", gt=0.0, le=20.0)
    window: int = setting(512, "Side of the patches whose spectra are taken.", unit="px", ge=64, le=4096)
    grid: tuple[int, int] = setting(
        (5, 5),
        "Control points of the defocus surface in x and y: 1 1 is one defocus, 2 2 a plane. As much of "
        "this is used as predicts data that were left out of the fit.",
    )
    fit_phase: bool = setting(False, "Also fit the phase shift of a phase plate.")
    phase_time: int = setting(
        1,
        "Parts of the exposure for each of which the phase shift is fitted anew; needs fit_phase and the "
        "movie as source.",
        ge=1,
        le=20,
    )
    phase_shift: float = setting(
        0.0, "Phase shift of a phase plate, where it is not fitted.", unit="deg", ge=0.0, le=180.0
    )
    source: Literal["average", "movie"] = setting(
        "average",
        "Fit to spectra of the aligned average (best), or to the mean spectra of the single frames.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CTFSettings:
        if self.range_max >= self.range_min:
            raise ValueError("range_max must be a finer resolution (a smaller number) than range_min")
        if self.defocus_max <= self.defocus_min:
            raise ValueError("defocus_max must be greater than defocus_min")
        if self.phase_time > 1 and not (self.fit_phase and self.source == "movie"):
            raise ValueError("phase_time above 1 needs fit_phase = true and source = 'movie'")
        if not all(1 <= g <= 9 for g in self.grid):
            raise ValueError("grid is two numbers from 1 to 9")
        return self


@dataclass(frozen=True)
class CTFModel:
    """The contrast transfer function everywhere in a micrograph.

    Attributes
    ----------
    surface : (y, x) float64
        Defocus at the control points, Å.
    extent : (float, float)
        Width and height of the field, Å.
    astigmatism, angle : float
        U − V (Å, never negative) and the direction of U from +x, counter-clockwise (degrees).
    phase_shift : float
        Degrees.
    resolution : float
        Å, to which rings agree with the fit.
    fit_range : (float, float)
        Å, that the fit used in the end.
    score : float
        Mean, over the fitted range, of the correlation of the rotational average with the CTF.
    errors : dict
        Expected standard deviations: defocus and astigmatism (Å).
    ice_ring : float or None
        Excess power in the ring of crystalline ice.
    evidence : float
        Log-likelihood of the fit against that of no rings at all; below 25 there is nothing to see, and
        `resolution` is the start of the range.
    phase_over_time : tuple of float
        Phase shift in equal parts of the exposure, degrees; empty unless `phase_time` asked for it.
    spectrum, model : (y, x) float32
        Centred power spectrum for display, and the CTF² fitted to it: see `display.spectrum_pictures`.
    curve : Curve
        The rotational average.
    """

    surface: NDArray[np.float64]
    extent: tuple[float, float]
    astigmatism: float
    angle: float
    phase_shift: float
    resolution: float
    fit_range: tuple[float, float]
    score: float
    errors: dict[str, float] = field(default_factory=dict)
    ice_ring: float | None = None
    evidence: float = 0.0
    phase_over_time: tuple[float, ...] = ()
    spectrum: NDArray[np.float32] | None = None
    model: NDArray[np.float32] | None = None
    curve: quality.Curve | None = None

    @property
    def defocus(self) -> float:
        """Mean over the field, Å."""
        u = (np.arange(9) + 0.5) / 9
        y, x = np.meshgrid(u, u)
        return float(evaluate_grid(self.surface, y.ravel(), x.ravel()).mean())

    def at(self, xy: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Local CTF.

        Parameters
        ----------
        xy : (n, 2) array
            x, y in Å.

        Returns
        -------
        defocus_u, defocus_v, angle : (n,) float64 arrays
            Å, Å, degrees.
        """
        places = np.atleast_2d(np.asarray(xy, dtype=np.float64))
        u = np.clip(places / np.array(self.extent), 0.0, 1.0)
        mean = evaluate_grid(self.surface, u[:, 1], u[:, 0])
        half = 0.5 * self.astigmatism
        return mean + half, mean - half, np.full(len(places), self.angle)

    @property
    def mean(self) -> tuple[float, float, float]:
        """defocus_u, defocus_v (Å) and angle (degrees) of the field: what one filter for all of it takes."""
        half = 0.5 * self.astigmatism
        return self.defocus + half, self.defocus - half, self.angle

    def plane(self) -> tuple[float, float]:
        """Tilt of the specimen (degrees) and direction of its axis from +x, counter-clockwise (degrees)."""
        ny, nx = self.surface.shape
        x, y = np.meshgrid(np.linspace(0, self.extent[0], nx), np.linspace(0, self.extent[1], ny))
        design = np.column_stack([np.ones(x.size), x.ravel(), y.ravel()])
        _, sx, sy = np.linalg.lstsq(design, self.surface.ravel(), rcond=None)[0]
        tilt = math.degrees(math.atan(math.hypot(sx, sy)))
        # the axis is where defocus does not change
        axis = math.degrees(math.atan2(sx, -sy)) % 180.0 if tilt > 0 else 0.0
        return tilt, axis

    def metrics(self) -> dict[str, float | None]:
        """Numbers by which micrographs are judged and selected."""
        tilt, axis = self.plane()
        return {
            "defocus": self.defocus,
            "defocus_range": round(float(np.ptp(self.surface)), 3),
            "astigmatism": self.astigmatism,
            "astigmatism_angle": self.angle,
            "phase_shift": self.phase_shift,
            "resolution": self.resolution,
            "ctf_score": self.score,
            "tilt": round(tilt, 3),
            "tilt_axis": round(axis, 3),
            "ice_ring": self.ice_ring,
            "ctf_evidence": self.evidence,
            "defocus_error": self.errors.get("defocus"),
            "astigmatism_error": self.errors.get("astigmatism"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for a record; spectra and curves are kept in their own files."""
        return {
            "surface": np.round(self.surface, 2).tolist(),
            "extent": list(self.extent),
            "astigmatism": round(self.astigmatism, 2),
            "angle": round(self.angle, 3),
            "phase_shift": round(self.phase_shift, 3),
            "resolution": round(self.resolution, 4),
            "fit_range": list(self.fit_range),
            "score": round(self.score, 5),
            "errors": {k: round(v, 2) for k, v in self.errors.items()},
            "ice_ring": None if self.ice_ring is None else round(self.ice_ring, 5),
            "evidence": round(self.evidence, 2),
            "phase_over_time": [round(p, 3) for p in self.phase_over_time],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CTFModel:
        """Inverse of :meth:`to_dict`."""
        plain = {
            k: data[k]
            for k in ("astigmatism", "angle", "phase_shift", "resolution", "score", "ice_ring", "evidence")
        }
        return cls(
            surface=np.asarray(data["surface"], dtype=np.float64),
            extent=(float(data["extent"][0]), float(data["extent"][1])),
            fit_range=(float(data["fit_range"][0]), float(data["fit_range"][1])),
            errors=dict(data["errors"]),
            phase_over_time=tuple(data["phase_over_time"]),
            **plain,
        )

    def picture(self) -> NDArray[np.uint8]:
        """Left half the measured spectrum, right half the fit; (y, x) uint8.

        Raises
        ------
        FitError
            The model was read back from a record and carries no spectrum.
        """
        if self.spectrum is None or self.model is None:
            raise FitError("this CTF was read from a record, which holds no spectrum to draw")
        data, fit = self.spectrum, self.model
        y, x = (np.arange(n) - n // 2 for n in data.shape)
        radius = np.hypot(y[:, None], x[None, :]) / (data.shape[1] // 2)
        # the bright centre and the corners must not set the contrast
        low, high = np.percentile(data[(radius > 0.25) & (radius < 1.0)], [5.0, 95.0])
        shown = (data - low) / max(high - low, 1e-9)
        out = np.where(np.arange(data.shape[1]) < data.shape[1] // 2, shown, fit)
        return np.asarray(np.clip(out * 255.0, 0, 255), dtype=np.uint8)


def fit_ctf(
    image_or_frames: torch.Tensor | Sequence[torch.Tensor],
    optics: Optics,
    settings: CTFSettings | None = None,
) -> CTFModel:
    """Fit the local CTF of a micrograph.

    Parameters
    ----------
    image_or_frames : (y, x) float32 tensor, or frames
        The aligned average; or several images of the same field, whose spectra are averaged.
    optics : Optics
        `pixel_size` is that of the images.
    settings : CTFSettings, optional

    Returns
    -------
    CTFModel

    Raises
    ------
    FitError
        The image is too small, holds no contrast, or its pixels are too large for the fitted range.
    """
    settings = settings or CTFSettings()
    single = isinstance(image_or_frames, torch.Tensor) and image_or_frames.ndim == 2
    first = image_or_frames if single else image_or_frames[0]
    assert isinstance(first, torch.Tensor)
    if min(first.shape) < 128:
        raise FitError(f"the image is {first.shape[1]}×{first.shape[0]} pixels; a CTF fit needs at least 128")
    if not float(first.std()) > 0.0:
        raise FitError("the image holds no contrast at all (every pixel has the same value)")
    spectra = patch_spectra(image_or_frames, optics.pixel_size, settings.window)
    model, solution = _fit(spectra, optics, settings)
    if settings.phase_time == 1:
        return model
    if single or len(image_or_frames) < settings.phase_time:
        raise FitError(
            f"the phase shift over time was asked for in {settings.phase_time} parts, which needs as many "
            "frames; set ctf.phase_time = 1"
        )
    curves = solution.curves
    over_time = []
    for members in np.array_split(np.arange(len(image_or_frames)), settings.phase_time):
        images = [image_or_frames[int(i)] for i in members]
        part = patch_spectra(images, optics.pixel_size, settings.window).within(curves.low, curves.high)
        over_time.append(math.degrees(refine_phase(part, optics, solution)))
    return replace(model, phase_over_time=tuple(over_time))


def fit_spectrum(power: torch.Tensor, optics: Optics, settings: CTFSettings | None = None) -> CTFModel:
    """Fit the CTF to one power spectrum that another program computed.

    Parameters
    ----------
    power : (n, n) float32
        Centred; power or amplitude.
    optics : Optics
        `pixel_size` is that of the image behind the spectrum.
    settings : CTFSettings, optional
    """
    settings = settings or CTFSettings()
    return _fit(averaged_spectrum(power, optics.pixel_size, UNKNOWN_AVERAGED), optics, settings)[0]


def _fit(spectra: Spectra, optics: Optics, settings: CTFSettings) -> tuple[CTFModel, Solution]:
    nyquist = 0.5 / optics.pixel_size
    low, high = 1.0 / settings.range_min, min(1.0 / settings.range_max, 0.95 * nyquist)
    if high < 2.0 * low:
        raise FitError(
            f"pixels of {optics.pixel_size:.2f} Å leave only {1 / low:.0f} to {1 / high:.1f} Å to fit; "
            "raise ctf.range_min or use less binning"
        )
    solution, high = _solve(spectra, optics, settings, low, high)
    for attempt in range(3):
        model = _judged(spectra, optics, solution, low, high, 0.98 * nyquist)
        reached = 1.0 / model.resolution
        if reached >= 0.97 * high or high <= 2.2 * low or attempt == 2:
            break
        # rings do not reach the end of the range: fit what they do reach, and a little more
        high = max(1.1 * reached, 2.0 * low)
        band = spectra.within(low, high)
        solution = refine(
            band,
            optics,
            solution,
            settings.grid,
            (low, high),
            rounds=10,
            fit_phase=settings.fit_phase,
        )
    found = evidence(spectra.within(low, high), optics, solution)
    if found < LEAST_EVIDENCE:
        # the best of many fits to noise always agrees with some of it: say that nothing was seen
        model = replace(model, resolution=1.0 / low)
    return replace(model, evidence=found), solution


def _solve(
    spectra: Spectra, optics: Optics, settings: CTFSettings, low: float, high: float
) -> tuple[Solution, float]:
    """Search, compare the best starting points, and fit the best of them."""
    phases = (
        tuple(math.radians(p) for p in range(0, 180, 20))
        if settings.fit_phase
        else (math.radians(settings.phase_shift),)
    )
    plane = (min(settings.grid[0], 2), min(settings.grid[1], 2))
    limits = (settings.defocus_min * 1e4, settings.defocus_max * 1e4)
    starts: list[Start] = []
    for first, last in SEARCH_BANDS:
        band = (max(low, 1.0 / first), min(high, 1.0 / last))
        if band[1] >= 1.6 * band[0]:
            found = search(spectra.within(*band), optics, limits, phases=phases, tilt=max(plane) > 1)
            starts += [s for s in found if not any(s.resembles(o) for o in starts)]
    # rings between 8 and 5 Å are so many that the shape of particles cannot imitate them
    compared_high = min(high, 1.0 / COMPARED_LIMIT)
    some = spectra.some(COMPARED_PATCHES).within(low, compared_high)
    compared = [
        refine(some, optics, s, plane, (low, compared_high), rounds=4, fit_phase=settings.fit_phase)
        for s in starts
    ]
    allowed = [s for s in compared if limits[0] - 500.0 <= s.parameters[0] <= limits[1] + 500.0]
    best = max(allowed or compared, key=lambda s: s.log_likelihood)
    fine = spectra.within(low, high)
    fitted = refine(fine, optics, best, settings.grid, (low, high), rounds=12, fit_phase=settings.fit_phase)
    return fitted, high


def _judged(
    spectra: Spectra, optics: Optics, solution: Solution, low: float, high: float, end: float
) -> CTFModel:
    """The model with its quality, looking as far as `end` (1/Å)."""
    surface = solution.control_points()
    u = spectra.centers / np.array(spectra.extent)
    defocus = evaluate_grid(surface, u[:, 1], u[:, 0])
    shown = spectra.within(0.0, end)
    # held in place by a prior, which lets it move by less than the wrapping should see
    phase = math.degrees(wrap_phase(round(solution.phase, 6)))
    image, k, power, target = quality.rescaled_average(
        shown, optics, defocus, solution.astigmatism, SHOWN_PATCHES
    )
    curve = quality.agreement(k, power, target, phase, optics)
    resolution = quality.resolution(curve, low, end)
    inside = (curve.k >= low) & (curve.k <= high)
    score = float(curve.correlation[inside].mean())
    half = float(np.hypot(*solution.astigmatism))
    data, fit = spectrum_pictures(
        shown, optics, image, curve, target, solution.astigmatism, phase, min(SHOWN_BEYOND / resolution, end)
    )
    return CTFModel(
        surface=surface,
        extent=spectra.extent,
        astigmatism=2.0 * half,
        angle=math.degrees(0.5 * math.atan2(solution.astigmatism[1], solution.astigmatism[0])),
        phase_shift=phase,
        resolution=resolution,
        fit_range=(1.0 / low, 1.0 / high),
        score=score,
        errors={
            "defocus": float(solution.errors[0]),
            "astigmatism": 2.0 * float(solution.errors[-3:-1].mean()),
        },
        ice_ring=quality.ice_ring_density(curve.k, curve.power),
        spectrum=data,
        model=fit,
        curve=curve,
    )

"""CTF of a tilt series.

The steps follow Tegunov & Cramer 2019 ("Contrast transfer function estimation in tilt series"): spectra of
patches of all tilts, an exhaustive search for the defocus, then one fit of all tilts' defoci, astigmatism and
phase at a few points over the series, and the specimen's inclination, with the geometry of the alignment;
again over a shorter range where rings do not reach the end; and all spectra brought to one defocus for the
eye. As for single micrographs the fit is by maximum likelihood (`tilt_model`), and every tilt is searched on
its own.

docs/science/tilt-ctf.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import model_validator

from weft.defocus import quality
from weft.defocus.tilt_display import series_average, tilt_curves
from weft.defocus.tilt_fit import Freedom, TiltSolution, refine, rescan
from weft.defocus.tilt_model import Waves, initial_curves, update_curves
from weft.defocus.tilt_planes import depth, gradients
from weft.defocus.tilt_result import TiltCTF, judge
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


class TiltCTFSettings(Settings):
    """How the contrast transfer function of a tilt series is fitted."""

    range_min: float = setting(
        40.0, "Lowest spatial frequency fitted, as a resolution.", unit="Å", gt=8, le=100
    )
    range_max: float = setting(
        5.0,
        "Highest spatial frequency fitted, as a resolution; less is used where pixels or rings end before.",
        unit="Å",
        ge=1.0,
        le=20.0,
    )
    defocus_min: float = setting(0.5, "Least defocus searched.", unit="µm", ge=0.0, le=20.0)
    defocus_max: float = setting(8.0, "Greatest defocus searched.", unit="µm", gt=0.0, le=20.0)
    patch: float = setting(
        1000.0,
        "Side of the patches whose spectra are taken: smaller ones see gradients of defocus better, larger "
        "ones finer rings.",
        unit="Å",
        ge=200.0,
        le=10000.0,
    )
    astigmatism_points: int = setting(
        3,
        "Control points of astigmatism (and of a fitted phase) over the series; 0: no astigmatism.",
        ge=0,
        le=9,
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
            f"pixels of {optics.pixel_size:.2f} Å leave only {settings.range_min:.0f} to {1 / highest:.1f} Å "
            "to fit; raise range_min or use less binning"
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
        Accumulated exposure, which tells the order of acquisition; without it tilts count as acquired in
        order.
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
        raise FitError(
            "no tilt of the series holds any contrast (every pixel of an image has the same value)"
        )
    order = np.arange(n) if dose is None else np.asarray(dose, dtype=np.float64)
    if order.shape != (n,):
        raise FitError(f"dose has {order.size} values, but there are {n} tilts")
    time = (order - order.min()) / max(float(np.ptp(order)), 1e-9)
    freedom = Freedom(
        time,
        settings.astigmatism_points,
        settings.fit_phase,
        settings.level_spread if settings.fit_level else 0.0,
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
    return judge(spectra, band, optics, solution, prior, offsets, profile, limits)


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

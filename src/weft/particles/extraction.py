"""Particles cut out of the frames of a movie, or of its average.

As Warp does (Tegunov & Cramer 2019, "Export of corrected data"), the whole image of a particle is moved in
every frame by the track at the particle's centre. In an aligned average every pixel moves by a track of its
own, which would distort the CTF within a particle's box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import field_validator

from weft.errors import ItemError
from weft.movies.drift import FrameStack
from weft.particles.background import Ground, normalise_background, outside_circle
from weft.particles.box import even_box, particle_diameter
from weft.particles.frame_sums import FrameSums
from weft.particles.local_ctf import LocalCTF
from weft.particles.resampling import at_pixels
from weft.particles.windows import WindowPlan, undistorted
from weft.physics import fourier
from weft.physics.dose import DoseWeighting
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["Extracted", "ExtractionSettings", "extract_particles", "sort_out"]


class ExtractionSettings(Settings):
    """How particles are cut out of micrographs."""

    box: int = setting(256, "Side of the box; even.", unit="px", ge=16, le=4096)
    pixel_size: float | None = setting(
        None,
        "Pixel size of what is written, by cropping in Fourier space; none is that of the average.",
        unit="Å",
        gt=0.1,
        le=200.0,
    )
    source: Literal["movie", "average"] = setting(
        "movie",
        "Cut from the frames, each moved as a whole by the track at the particle's centre, so that the CTF "
        "stays true; or from the average, which is faster.",
    )
    dose_weighting: DoseWeighting | None = setting(
        None,
        "Down-weighting of late frames: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure of "
        "Grant & Grigorieff 2015 (grant), or none. By default as for the average.",
    )
    border: Literal["fill", "skip"] = setting(
        "fill", "Boxes that reach over the micrograph's border: fill with their mean, or leave them out."
    )
    normalise: bool = setting(
        True, "Bring the background of every particle to mean 0 and standard deviation 1."
    )
    diameter: float = setting(
        0.0,
        "Diameter of the particle: what lies outside is background. 0 is three quarters of the box.",
        unit="Å",
        ge=0.0,
        le=20000.0,
    )
    ramp: bool = setting(True, "Subtract a plane from the background, not just its mean.")
    invert: bool = setting(True, "Make particles light on a dark ground, as RELION expects them.")
    dust: float | None = setting(
        None,
        "Replace what is so many standard deviations of the background away from its mean by noise.",
        usual=5.0,
        ge=2.0,
        le=100.0,
    )
    ctf: Literal["none", "flip", "premultiply"] = setting(
        "none", "Leave the CTF in the images, flip its negative phases, or multiply by it; of each place."
    )
    padding: float = setting(
        2.0,
        "With flip or premultiply, windows are so many times as large as the box until they are cropped.",
        ge=1.0,
        le=4.0,
    )
    halves: bool = setting(False, "Also write particles of the even and of the odd frames.")
    float16: bool = setting(False, "Write 16-bit floats (MRC mode 12) instead of 32-bit ones.")

    _even = field_validator("box")(even_box)

    def background_diameter(self, pixel_size: float) -> float:
        """Å: the one that is given, or that of a particle for which a box of this size is meant."""
        return particle_diameter(self.diameter, self.box, pixel_size)

    def window(self) -> int:
        """Pixels of the output that are worked on before they are cropped to the box."""
        if self.ctf == "none":
            return self.box
        return 2 * math.ceil(0.5 * self.padding * self.box - 1e-6)


@dataclass(frozen=True)
class Extracted:
    """Some particles.

    Attributes
    ----------
    rows : (m,) int64 array
        Which of the given places they are; those whose window holds no contrast at all are missing.
    images : (m, box, box) float32
    even, odd : (m, box, box) float32, or None
    """

    rows: NDArray[np.int64]
    images: torch.Tensor
    even: torch.Tensor | None = None
    odd: torch.Tensor | None = None


def sort_out(
    xy: ArrayLike, extent: tuple[float, float], settings: ExtractionSettings, pixel_size: float
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which particles can be cut out, and why others cannot.

    Parameters
    ----------
    xy : (n, 2) array
        Å from the centre of the first pixel.
    extent : (float, float)
        Width and height of the micrograph, Å.
    settings : ExtractionSettings
    pixel_size : float
        Å, of the output.

    Returns
    -------
    (n,) bool array, and a dict of reasons with counts
    """
    places = np.asarray(xy, np.float64).reshape(-1, 2)
    keep = np.ones(len(places), bool)
    skipped: dict[str, int] = {}

    def leave(good: Any, why: str) -> None:
        nonlocal keep
        lost = int((keep & ~good).sum())
        if lost:
            skipped[why] = lost
        keep = keep & good

    size, half = np.asarray(extent), 0.5 * settings.box * pixel_size
    leave(np.isfinite(places).all(axis=1), "with coordinates that are not numbers")
    fits = bool((2.0 * half <= size + 1e-6).all())
    leave(np.full(len(places), fits), "of which the box is larger than the micrograph")
    at = np.where(np.isfinite(places), places, 0.0)
    leave(((at >= 0.0) & (at <= size)).all(1), "outside the micrograph")
    if settings.border == "skip":
        leave(((at >= half) & (at <= size - half)).all(1), "whose box reaches over the border")
    return keep, skipped


def extract_particles(
    frames: FrameStack,
    xy: ArrayLike,
    track: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None,
    optics: Optics,
    settings: ExtractionSettings | None = None,
    *,
    ctf: LocalCTF | None = None,
    distortion: torch.Tensor | None = None,
    seed: int = 0,
) -> Iterator[Extracted]:
    """Cut particles out of a movie.

    Memory stays bounded: of many particles as many as fit are summed over all frames, then the next ones.

    Parameters
    ----------
    frames : (frames, y, x) float32 tensor, or anything that gives frames one by one
    xy : (n, 2) array
        Places in the aligned average, Å from the centre of the first pixel.
    track : callable or None
        From (n, 2) places in Å to (frames, n, 2): :meth:`weft.movies.motion.MotionModel.track`. None: no
        motion.
    optics : Optics
        Of the frames.
    settings : ExtractionSettings, optional
        `source` has no meaning here; an average is a movie of one frame. Without `pixel_size` the output
        has the frames' own, without `dose_weighting` that of Warp.
    ctf : LocalCTF, optional
        Needed to flip or to multiply.
    distortion : (2, 2) tensor, optional
        Anisotropic magnification that the average is corrected for: frames show at centre + distortion · d
        what the average shows at centre + d.
    seed : int
        Of the noise that replaces dust.

    Yields
    ------
    Extracted
        In the order of the places.

    Raises
    ------
    ItemError
        Pixels smaller than the frames', a motion of another number of frames, places that are no numbers.
    """
    settings = settings or ExtractionSettings()
    places = np.asarray(xy, np.float64).reshape(-1, 2)
    if not np.isfinite(places).all():
        raise ItemError("there are particles with coordinates that are not numbers")
    if settings.ctf != "none" and ctf is None:
        raise ItemError(f"the CTF must be known to {settings.ctf} it")
    shape = (int(frames.shape[-2]), int(frames.shape[-1]))
    plan = WindowPlan.of(
        shape, optics.pixel_size, settings.pixel_size or optics.pixel_size, settings.window()
    )
    middle = np.array([shape[1] // 2, shape[0] // 2]) * optics.pixel_size
    if distortion is not None:
        places = middle + (places - middle) @ distortion.numpy().T
    tracks = np.zeros((len(frames), len(places), 2)) if track is None else track(places)
    if len(tracks) != len(frames):
        raise ItemError(f"the motion is of {len(tracks)} frames, the movie has {len(frames)}")
    groups = 2 if settings.halves and len(frames) > 1 else 1
    sums = FrameSums(plan, optics, len(frames), settings.dose_weighting or "warp", groups)
    finisher = _Finisher(plan, settings, optics, sums.scales(), distortion)
    for first in range(0, len(places), sums.batch):
        rows = np.arange(first, min(first + sums.batch, len(places)))
        spectra = sums.summed(frames, (places[rows] + tracks[:, rows]) / plan.pixel)
        yield from finisher.particles(spectra, rows, places[rows] / plan.pixel, ctf, seed)


@dataclass(frozen=True)
class _Finisher:
    """What makes particles of the sums of their windows."""

    plan: WindowPlan
    settings: ExtractionSettings
    optics: Optics
    scales: tuple[torch.Tensor, ...]  # of the sum over all groups and, if there are several, of each
    distortion: torch.Tensor | None

    def particles(
        self,
        sums: torch.Tensor,
        rows: NDArray[np.int64],
        at: NDArray[np.float64],
        ctf: LocalCTF | None,
        seed: int,
    ) -> Iterator[Extracted]:
        """From sums of windows to particles; `at` (n, 2): where they lie, pixels."""
        scales = [scale.to(sums.device) for scale in self.scales]
        for first in range(0, len(rows), self.plan.batch):
            part = slice(first, min(first + self.plan.batch, len(rows)))
            ground = self._ground(at[part], sums.device)
            local = rows[part]
            wanted = [sums[:, part].sum(0)]
            if len(scales) > 1:
                wanted += [group[part] for group in sums]
            images, good = [], np.ones(len(local), bool)
            for spectra, scale in zip(wanted, scales, strict=True):
                made = self._image(spectra * scale, local, ctf)
                if self.settings.invert:
                    made.neg_()
                if self.settings.normalise:
                    flat = normalise_background(
                        made, ground, ramp=self.settings.ramp, dust=self.settings.dust, seed=seed + first
                    )
                    good &= ~flat.cpu().numpy()
                images.append(made)
            yield Extracted(local[good], *(made[torch.from_numpy(good)] for made in images))

    def _ground(self, at: NDArray[np.float64], device: torch.device) -> Ground:
        settings, plan = self.settings, self.plan
        radius = 0.5 * settings.background_diameter(plan.output) / plan.output
        offset = torch.arange(settings.box) - settings.box // 2
        shown = []
        for axis, size in ((1, plan.shape[0]), (0, plan.shape[1])):
            place = torch.as_tensor(at[:, axis])[:, None] + offset * (plan.output / plan.pixel[axis])
            shown.append((place >= -0.5) & (place <= size - 0.5))
        inside = shown[0][:, :, None] & shown[1][:, None]
        if bool(inside.all()):
            return Ground(outside_circle(settings.box, radius, device))
        return Ground(outside_circle(settings.box, radius, device), inside.to(device))

    def _image(self, spectra: torch.Tensor, rows: NDArray[np.int64], local: LocalCTF | None) -> torch.Tensor:
        """(n, box, box) from what was summed."""
        plan, settings = self.plan, self.settings
        if self.distortion is not None:
            spectra = fourier.rfft2(undistorted(fourier.irfft2(spectra, plan.window), plan, self.distortion))
        if settings.ctf != "none":
            assert local is not None
            transfer = local.transfer(rows, *plan.frequencies(), self.optics)
            spectra = spectra * (transfer.sign() if settings.ctf == "flip" else transfer).to(spectra.device)
        images = plan.resampled(spectra, settings.box)
        if images is None:
            half = plan.window[1] // 2, plan.window[0] // 2
            at = torch.tensor([half], dtype=torch.float64).expand(len(spectra), 2)
            ratio = (plan.output / plan.pixel[0], plan.output / plan.pixel[1])
            images = at_pixels(fourier.irfft2(spectra, plan.window), at, settings.box, ratio)
        return images

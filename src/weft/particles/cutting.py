"""Particles cut out of the images of their tilt series.

A particle is looked up in every image of its tilt series, at the place that the alignment says. Around it a
patch is cut, and evaluated at the pixels of the output (:mod:`weft.particles.resampling`), so that the
particle's centre comes exactly onto pixel n//2. The patch is larger than the box where its values are
multiplied by the CTF, because the CTF brings signal from outside back into the box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import field_validator

from weft.errors import ItemError, RequestError
from weft.particles.box import even_box, particle_diameter
from weft.particles.image_series import ImageSeries, series_transfer
from weft.particles.resampling import at_pixels
from weft.physics import fourier
from weft.physics.dose import DoseWeighting
from weft.physics.geometry import TiltGeometry, euler_matrix
from weft.settings import Settings, setting
from weft.tilts.gridding import TiltContrast

__all__ = ["ImageSeriesSettings", "image_series_batches", "tilt_weights", "visible_tilts"]

MARGIN = 8  # pixels of a patch beyond the output's, on all sides: its Fourier series wraps around there
LEAST_GROUND = 0.02  # part of the box that must be background for its noise to be known
BATCH_VALUES = 1 << 25  # that a batch may hold, kernels and transforms included


class ImageSeriesSettings(Settings):
    """How particles are cut out of tilt images."""

    box: int = setting(64, "Side of the box; even.", unit="px", ge=8, le=2048)
    pixel_size: float = setting(8.0, "Pixel size of what is written.", unit="Å", gt=0.1, le=200.0)
    diameter: float = setting(
        0.0,
        "Diameter of the particle. What lies outside is background, to which images are normalised; tilts "
        "that do not show all of it are left out. 0 is three quarters of the box.",
        unit="Å",
        ge=0.0,
        le=20000.0,
    )
    premultiply: bool = setting(
        False, "Multiply images by their CTF and by their weights of dose and tilt, as RELION 4 and 5 expect."
    )
    normalise: bool = setting(True, "Bring the background of every image to mean 0 and standard deviation 1.")
    dose_weighting: DoseWeighting = setting(
        "warp",
        "What the dose leaves of the signal: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure "
        "of Grant & Grigorieff 2015 (grant, as RELION 5 assumes), or all of it (none).",
    )
    tilt_weighting: Literal["cosine", "counts", "none"] = setting(
        "cosine",
        "What the tilt leaves of the signal where the noise is one: the cosine of the tilt angle, as RELION "
        "and Warp assume, the square root of the electrons that came through, or all of it.",
    )
    padding: float = setting(
        2.0,
        "Patches are so many times as large as the box while they are multiplied by the CTF or brought into "
        "three dimensions.",
        ge=1.0,
        le=4.0,
    )
    invert: bool = setting(True, "Make density positive: light particles on a dark ground.")

    _even = field_validator("box")(even_box)

    @property
    def particle_diameter(self) -> float:
        """Å, the one that is given or the one that a box of this size is meant for."""
        return particle_diameter(self.diameter, self.box, self.pixel_size)

    def padded(self, size: int) -> int:
        """Pixels of a patch for a box of `size`."""
        return fourier.fast_size(max(size, math.ceil(self.padding * size - 1e-6)))


def visible_tilts(places: torch.Tensor, image_size: torch.Tensor, diameter: float) -> torch.Tensor:
    """Which images show all of a particle.

    Parameters
    ----------
    places : (tilts, n, 2 or more) tensor
        x, y of its centre, Å from the centre of the first pixel.
    image_size : (2,) tensor
        x, y, Å.
    diameter : float
        Å.

    Returns
    -------
    (n, tilts) bool
    """
    at = places[..., :2]
    inside = (at >= 0.5 * diameter) & (at <= image_size - 0.5 * diameter)
    return inside.all(-1).T


def tilt_weights(
    geometry: TiltGeometry,
    contrast: TiltContrast,
    settings: ImageSeriesSettings,
    means: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the tilt leaves of the signal in each image, RELION's rlnCtfScalefactor: (tilts,) float64.

    `means` are the electrons of the images, for weights by counts; without them those are by cosine.
    """
    if settings.tilt_weighting == "none":
        return contrast.weight
    if settings.tilt_weighting == "counts" and means is not None:
        return contrast.weight * (means.double().cpu().clamp(min=0.0) / float(means.max())).sqrt()
    return contrast.weight * geometry.matrices[:, 2, 2].abs()


def image_series_batches(
    images: torch.Tensor,
    pixel_size: float | tuple[float, float],
    geometry: TiltGeometry,
    contrast: TiltContrast,
    xyz: torch.Tensor,
    euler: torch.Tensor,
    settings: ImageSeriesSettings | None = None,
    *,
    means: torch.Tensor | None = None,
    half: torch.Tensor | None = None,
    group: int = 0,
    distortion: torch.Tensor | None = None,
    uncropped: bool = False,
) -> Iterator[ImageSeries]:
    """Cut particles of one tilt series out of its images, a few at a time, in their order.

    Memory stays bounded however many there are; :meth:`ImageSeries.join` makes them one.

    Parameters
    ----------
    images : (tilts, y, x) float32
        Counts or contrast, protein dark. They may be memory-mapped: only patches are read.
    pixel_size : float or (float, float)
        Of the images, Å; x, y.
    geometry : TiltGeometry
        With defocus and hand.
    contrast : TiltContrast
    xyz : (n, 3) tensor
        Å from the centre of the volume's first voxel.
    euler : (n, 3) tensor
        rot, tilt, psi, degrees.
    settings : ImageSeriesSettings, optional
    means : (tilts,) tensor, optional
        Electrons in the images, for the weights by counts; without, those are by cosine.
    half : (n,) tensor, optional
        0 or 1; by default every second particle.
    group : int
        Number of the tomogram.
    distortion : (2, 2) tensor, optional
        Anisotropic magnification: the image shows at centre + distortion · d what lies at d. Particles are
        found with it; within a particle it is neglected.
    uncropped : bool
        Give images the size of the padded patches, ``settings.padded(settings.box)``.

    Yields
    ------
    ImageSeries
        Of one or more particles; with none given, one empty series.

    Raises
    ------
    ItemError
        Numbers of tilts that do not agree, places that are not finite, or pixels smaller than the images'.
    """
    settings = settings or ImageSeriesSettings()
    cutter = _Cutter.of(images, pixel_size, geometry, contrast, settings, means, distortion, uncropped)
    xyz = torch.as_tensor(xyz, dtype=torch.float64).reshape(-1, 3)
    euler = torch.as_tensor(euler, dtype=torch.float64).reshape(-1, 3)
    n = len(xyz)
    if len(euler) != n:
        raise ItemError(f"{n} particles and {len(euler)} orientations: there must be one for each")
    if half is None:
        half = torch.arange(n) % 2
    if len(half) != n:
        raise ItemError(f"{n} particles and {len(half)} half-sets: there must be one for each")
    wrong = int((~torch.isfinite(torch.cat([xyz, euler], 1)).all(1)).sum())
    if wrong:
        raise ItemError(f"{wrong} of {n} particles have coordinates or angles that are not numbers")
    step = cutter.batch
    for first in range(0, max(n, 1), step):
        part = slice(first, min(first + step, n))
        yield cutter.cut(xyz[part], euler[part], half[part].long(), group)


@dataclass(frozen=True)
class _Cutter:
    """What all particles of a series share."""

    images: torch.Tensor
    pixel: torch.Tensor  # (2,) x, y
    geometry: TiltGeometry
    contrast: TiltContrast
    settings: ImageSeriesSettings
    scale: torch.Tensor  # (tilts,): weights of tilt and image
    distortion: torch.Tensor
    kept: int  # pixels of what is returned
    size: int  # and before it is cropped to that

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        pixel_size: float | tuple[float, float],
        geometry: TiltGeometry,
        contrast: TiltContrast,
        settings: ImageSeriesSettings,
        means: torch.Tensor | None,
        distortion: torch.Tensor | None,
        uncropped: bool,
    ) -> _Cutter:
        if not len(images) == len(geometry) == len(contrast.dose):
            raise ItemError(
                f"{len(images)} tilt images, an alignment for {len(geometry)} and exposures for "
                f"{len(contrast.dose)}: they must be those of the same tilts"
            )
        pixel = torch.tensor(
            pixel_size if isinstance(pixel_size, tuple) else (pixel_size, pixel_size), dtype=torch.float64
        )
        if settings.pixel_size < float(pixel.max()) * (1.0 - 1e-3):
            raise ItemError(
                f"particles cannot have pixels of {settings.pixel_size:g} Å where the tilt images have "
                f"{float(pixel.max()):g} Å; ask for larger ones"
            )
        if settings.particle_diameter > settings.box * settings.pixel_size:
            raise RequestError(
                f"a particle of {settings.particle_diameter:g} Å does not fit into a box of {settings.box} × "
                f"{settings.pixel_size:g} Å; take a larger box"
            )
        scale = tilt_weights(geometry, contrast, settings, means)
        patch = settings.padded(settings.box)
        return cls(
            images,
            pixel,
            geometry,
            contrast,
            settings,
            scale,
            torch.eye(2, dtype=torch.float64) if distortion is None else distortion.double().cpu(),
            patch if uncropped else settings.box,
            patch if uncropped or settings.premultiply else settings.box,
        )

    @property
    def _patch(self) -> tuple[int, int]:
        """Pixels of what is read from the images: x, y."""
        span = self.size * self.settings.pixel_size / self.pixel
        x, y = (2 * math.ceil(0.5 * float(v) - 1e-6) + 2 * MARGIN for v in span)
        return x, y

    @property
    def batch(self) -> int:
        """How many particles fit into memory at a time."""
        nx, ny = self._patch
        one = 4 * nx * ny + 8 * self.size**2
        return max(1, min(64, BATCH_VALUES // (len(self.images) * one)))

    def cut(self, xyz: torch.Tensor, euler: torch.Tensor, half: torch.Tensor, group: int) -> ImageSeries:
        settings, contrast, n, tilts = self.settings, self.contrast, len(xyz), len(self.images)
        found = self.geometry.project(xyz)
        middle = 0.5 * self.geometry.image_size
        places = (found[..., :2] - middle) @ self.distortion.T + middle
        seen = visible_tilts(places, self.geometry.image_size, settings.particle_diameter)
        weight = self.scale * seen
        rotation = self.geometry.matrices @ euler_matrix(*euler.T)[:, None]
        device = self.images.device

        def of_tilt(value: torch.Tensor) -> torch.Tensor:
            return value.float().expand(n, tilts).to(device)

        series = ImageSeries(
            torch.zeros(n, tilts, self.kept, self.kept, device=device),
            torch.zeros(n, tilts, 2, device=device),
            rotation.float().to(device),
            found[..., 2].T.float().to(device),
            of_tilt(contrast.astigmatism),
            of_tilt(contrast.angle),
            of_tilt(contrast.phase_shift),
            of_tilt(contrast.dose),
            weight.float().to(device),
            torch.full((n,), group, dtype=torch.int64),
            half,
            settings.pixel_size,
            contrast.optics.voltage,
            contrast.optics.cs,
            contrast.optics.amplitude,
            settings.premultiply,
        )
        which = (weight > 0.0).nonzero()
        # a tilt of a particle is one image; they are worked on all together
        values = self._resampled(places.transpose(0, 1)[which[:, 0], which[:, 1]], which[:, 1])
        if settings.premultiply and len(which):
            transfer = series_transfer(series, self.size, settings.dose_weighting, which)
            size = (self.size, self.size)
            values = fourier.irfft2(fourier.rfft2(values) * transfer, size)
        inner = slice(self.size // 2 - self.kept // 2, self.size // 2 + self.kept // 2)
        series.images[which[:, 0], which[:, 1]] = values[:, inner, inner]
        return series

    def _resampled(self, places: torch.Tensor, tilt: torch.Tensor) -> torch.Tensor:
        """Normalised images (i, size, size) of places (i, 2; Å) in tilts (i)."""
        device = self.images.device
        at = places / self.pixel
        nx, ny = self._patch
        start = at.round().long() - torch.tensor([nx // 2, ny // 2])
        height, width = self.images.shape[1:]
        columns = (start[:, :1] + torch.arange(nx)).to(device)
        rows = (start[:, 1:] + torch.arange(ny)).to(device)
        in_x, in_y = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
        where = (rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None])
        patches = self.images[(tilt.to(device)[:, None, None], *where)].float()
        inside = in_y[:, :, None] & in_x[:, None]
        # what lies outside an image is as bright as the rest of the patch
        count = inside.sum((1, 2)).clamp(min=1)
        mean = (patches * inside).sum((1, 2)) / count
        patches = (patches - mean[:, None, None]) * inside
        ratio = self.settings.pixel_size / self.pixel
        values = at_pixels(patches, at - start, self.size, (float(ratio[0]), float(ratio[1])))
        if self.settings.invert:
            values.neg_()
        if self.settings.normalise:
            self._normalise(values, at, ratio, (width, height))
        return values

    def _normalise(
        self, values: torch.Tensor, at: torch.Tensor, ratio: torch.Tensor, limits: tuple[int, int]
    ) -> None:
        """Background of mean 0 and standard deviation 1, in place; 0 outside the image."""
        settings, size = self.settings, self.size
        offset = torch.arange(size) - size // 2
        # of the box that is kept in the end: what is further away may be something else
        box = (offset >= -(settings.box // 2)) & (offset < settings.box // 2)
        away = torch.hypot(offset[:, None].float(), offset[None].float()) * settings.pixel_size
        ground = (away > 0.5 * settings.particle_diameter) & box & box[:, None]
        x, y = (at[:, i, None] + offset * ratio[i] for i in (0, 1))
        in_x, in_y = (x >= -0.5) & (x < limits[0] - 0.5), (y >= -0.5) & (y < limits[1] - 0.5)
        inside = (in_y[:, :, None] & in_x[:, None]).to(values.device)
        chosen = inside & ground.to(values.device)
        few = chosen.sum((1, 2)) < LEAST_GROUND * settings.box**2
        chosen[few] = (inside & (box & box[:, None]).to(values.device))[few]
        count = chosen.sum((1, 2)).clamp(min=2)
        mean = (values * chosen).sum((1, 2)) / count
        values -= mean[:, None, None]
        variance = (values.square() * chosen).sum((1, 2)) / count
        values *= inside / variance.sqrt().clamp(min=1e-12)[:, None, None]

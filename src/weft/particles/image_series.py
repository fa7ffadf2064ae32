"""Series of tilt images: every particle as a small stack of two-dimensional images.

A particle is looked up in every image of its tilt series, at the place that the alignment says. Around it a
patch is cut, and evaluated at the pixels of the output by its own Fourier series, cut off at the output's
Nyquist frequency: that shifts the particle's centre exactly onto pixel n//2, changes the pixel size by any
factor, and filters against aliasing, in one step that interpolates nothing. The patch is larger than the box
where its values are multiplied by the CTF, because the CTF brings signal from outside back into the box.

The weights follow RELION's heuristic for tilt series (Bharat et al. 2015): images are brought to noise of one
standard deviation, and their signal is taken to be the CTF, times what the dose has left of it, times the
cosine of the tilt angle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from pydantic import field_validator

from weft.errors import ItemError, RequestError
from weft.physics import fourier
from weft.physics.dose import dose_weight
from weft.physics.geometry import TiltGeometry, euler_matrix
from weft.physics.optics import Optics
from weft.settings import Settings, setting
from weft.tilts.gridding import TiltContrast

__all__ = [
    "ImageSeries",
    "ImageSeriesSettings",
    "cut_image_series",
    "image_series_batches",
    "series_transfer",
    "tilt_weights",
    "visible_tilts",
]

DIAMETER = 0.75  # of the box: the particle, where nothing is said about it
MARGIN = 8  # pixels of a patch beyond the output's, on all sides: its Fourier series wraps around there
LEAST_GROUND = 0.02  # part of the box that must be background for its noise to be known
BATCH_VALUES = 1 << 25  # that a batch may hold, kernels and transforms included

DoseModel = Literal["warp", "grant", "none"]


@dataclass(frozen=True)
class ImageSeries:
    """Particles in the images of their tilt series.

    Attributes
    ----------
    images : (particles, tilts, n, n) float32
        Density positive, normalised background; 0 where a tilt does not show the particle. The particle's
        centre is at pixel n//2 plus `shift`.
    shift : (particles, tilts, 2) float32
        x, y, Å: where the particle's centre lies relative to the centre of pixel n//2.
    rotation : (particles, tilts, 3, 3) float32
        From the particle's map to the image: (matrix of the tilt) · M(rot, tilt, psi).
    defocus : (particles, tilts) float32
        Å, at the particle: mean of both axes.
    astigmatism, angle, phase_shift, dose : (particles, tilts) float32
        U − V (Å), direction of U (degrees), of a phase plate (degrees), e/Å² before or by the end as in
        :class:`~weft.tilts.gridding.TiltContrast`.
    weight : (particles, tilts) float32
        Further weight of each image; 0 where it is not visible.
    group : (particles,) int64
        Which tomogram each comes from.
    half : (particles,) int64
        0 or 1: the half-set.
    pixel_size : float
        Å.
    voltage, cs, amplitude : float
        kV, mm.
    premultiplied : bool
        Whether images have been multiplied by their CTF.
    """

    images: torch.Tensor
    shift: torch.Tensor
    rotation: torch.Tensor
    defocus: torch.Tensor
    astigmatism: torch.Tensor
    angle: torch.Tensor
    phase_shift: torch.Tensor
    dose: torch.Tensor
    weight: torch.Tensor
    group: torch.Tensor
    half: torch.Tensor
    pixel_size: float
    voltage: float
    cs: float
    amplitude: float
    premultiplied: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def join(cls, parts: Sequence[ImageSeries]) -> ImageSeries:
        """Several of the same pixel size and number of tilts as one."""
        if not parts:
            raise ValueError("there is nothing to join")
        names = [f.name for f in fields(cls) if isinstance(getattr(parts[0], f.name), torch.Tensor)]
        joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        return replace(parts[0], **joined)


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
    dose_weighting: DoseModel = setting(
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

    @field_validator("box")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"a box has an even number of pixels, not {value}")
        return value

    @property
    def particle_diameter(self) -> float:
        """Å, the one that is given or the one that a box of this size is meant for."""
        return self.diameter or DIAMETER * self.box * self.pixel_size

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


def cut_image_series(
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
) -> ImageSeries:
    """Cut particles of one tilt series out of its images.

    All of them are in memory at once; :func:`image_series_batches` takes the same arguments and gives a few
    at a time.

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

    Raises
    ------
    ItemError
        Numbers of tilts that do not agree, places that are not finite, or pixels smaller than the images'.
    """
    parts = list(
        image_series_batches(
            *(images, pixel_size, geometry, contrast, xyz, euler, settings),
            means=means,
            half=half,
            group=group,
            distortion=distortion,
        )
    )
    return ImageSeries.join(parts)


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
    """:func:`cut_image_series` for a few particles at a time, in their order.

    Memory stays bounded however many there are. With `uncropped` the images have the size of the padded
    patches, ``settings.padded(settings.box)``.

    Yields
    ------
    ImageSeries
        Of one or more particles; with none given, one empty series.
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
        values = _evaluated(patches, at - start, self.size, (float(ratio[0]), float(ratio[1])))
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


def _evaluated(
    patches: torch.Tensor, at: torch.Tensor, size: int, ratio: tuple[float, float]
) -> torch.Tensor:
    """The Fourier series of patches, from the output's Nyquist frequency on cut off, at the output's pixels.

    Parameters
    ----------
    patches : (i, y, x) float32
    at : (i, 2) float64
        x, y, px: where the output's pixel size//2 lies in a patch.
    ratio : (float, float)
        x, y: the output's pixels in those of the patch.

    Returns
    -------
    (i, size, size) float32
    """
    device = patches.device
    ny, nx = patches.shape[1:]
    (kx, to_x), (ky, to_y) = (
        _series(size, n, r, both, device) for n, r, both in ((nx, ratio[0], False), (ny, ratio[1], True))
    )
    turn = 2.0 * math.pi * at.to(device)
    phase_x = (turn[:, :1] * kx / nx).float()
    phase_y = (turn[:, 1:] * ky / ny).float()
    spectra = fourier.rfft2(patches)[:, ky % ny][:, :, kx]
    spectra = spectra * torch.polar(torch.ones_like(phase_y), phase_y)[:, :, None]
    spectra *= torch.polar(torch.ones_like(phase_x), phase_x)[:, None]
    return (to_y @ spectra @ to_x.T).real.contiguous()


def _series(
    size: int, length: int, ratio: float, both: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies that are kept, periods per patch, and the matrix (size, frequencies) that sums them."""
    below = math.ceil(0.5 * length / ratio - 1e-9) - 1
    highest = length // 2 if ratio < 1.0 + 1e-9 else below
    k = torch.arange(-highest if both else 0, highest + 1, device=device)
    place = (torch.arange(size, dtype=torch.float64, device=device) - size // 2) * ratio
    angle = 2.0 * math.pi / length * place[:, None] * k
    # a real image: negative frequencies are the mates of positive ones
    count = torch.ones(len(k), dtype=torch.float64, device=device) if both else 2.0 - (k == 0).double()
    # both signs of the images' own Nyquist frequency are one coefficient
    count = torch.where((2 * k.abs() == length), 0.5 * count, count)
    return k, torch.polar(count.expand_as(angle) / length, angle).to(torch.complex64)


def series_transfer(
    series: ImageSeries,
    size: int,
    dose_model: DoseModel = "warp",
    which: torch.Tensor | None = None,
    *,
    signed: bool = True,
) -> torch.Tensor:
    """What the signal of each image has been multiplied by: CTF × dose × weight.

    Parameters
    ----------
    series : ImageSeries
    size : int
        Of the images whose transform this multiplies; at the series' pixel size.
    dose_model : {"warp", "grant", "none"}
    which : (i, 2) int64 tensor, optional
        Particle and tilt of the images that are asked for; by default all.
    signed : bool
        False leaves the CTF's sign out: its modulus.

    Returns
    -------
    (i, size, size//2+1) or (particles, tilts, size, size//2+1) float32
    """
    device = series.images.device

    def of(value: torch.Tensor) -> torch.Tensor:
        chosen = value.reshape(-1) if which is None else value[which[:, 0], which[:, 1]]
        return chosen.to(device)[:, None, None]

    optics = Optics(
        pixel_size=series.pixel_size, voltage=series.voltage, cs=series.cs, amplitude=series.amplitude
    )
    ky, kx = fourier.frequencies((size, size), series.pixel_size, device)
    k2 = kx * kx + ky * ky
    azimuth = torch.atan2(ky, kx)
    defocus = of(series.defocus) + 0.5 * of(series.astigmatism) * torch.cos(
        2.0 * (azimuth - torch.deg2rad(of(series.angle)))
    )
    wavelength = optics.wavelength
    spherical = 0.5 * optics.cs_angstrom * wavelength * wavelength
    phase = (math.pi * wavelength) * k2 * (defocus - spherical * k2)
    phase += torch.deg2rad(of(series.phase_shift)) + optics.amplitude_phase
    out = phase.sin_() if signed else phase.sin_().abs_()
    if dose_model != "none":
        out *= dose_weight(k2.sqrt(), of(series.dose), series.voltage, dose_model)
    out *= of(series.weight)
    if which is not None:
        return out
    return out.reshape(*series.weight.shape, size, size // 2 + 1)

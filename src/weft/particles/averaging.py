"""A map from particle images with known poses, as two independent halves.

Every image of every tilt is a central section of the particle's transform S, multiplied by H = CTF × dose ×
weight, and noise of the same power in all images:

    S(K) = Σ H F / (Σ H² + 1/τ²),      1/τ² = ⟨Σ H²⟩ (1 − FSC) / FSC

where the sums are over all coefficients that fall on K (Scheres 2012, J. Struct. Biol. 180:519, eq. 4, with
the tilts of a particle as separate images: Zivanov et al. 2022, eLife 11:e83724), ⟨⟩ is the mean of a shell,
and 2 FSC replaces the FSC below the line for the map of both halves. Premultiplied images are H F already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch

from weft.errors import ItemError
from weft.particles.fourier_volume import PADDING, Sums, insert, real_space
from weft.particles.fsc import FSC, half_map_fsc, last_signal, soft_sphere
from weft.particles.image_series import ImageSeries
from weft.particles.spectra import Band, chunks, spectra, transfer
from weft.physics.symmetry import symmetry_operators
from weft.settings import Settings, setting

__all__ = ["Average", "AveragingSettings", "HalfSums", "average", "batches", "fsc_mask"]

#: Coefficients of images that are held at a time.
_BATCH = 4_000_000
#: Weights below this share of their shell's mean are raised to it: next to nothing has been seen there.
_LEAST_WEIGHT = 0.2
#: FSC beyond the last signal, for the Wiener filter.
_NO_SIGNAL = 1e-3


class AveragingSettings(Settings):
    """How particle images are averaged."""

    symmetry: str = setting(
        "C1", "Point group: C1, C2 ..., D2 ..., T, O, I1 or I2 with RELION's axes; it is applied to the map."
    )
    dose_weighting: Literal["warp", "grant", "none"] = setting(
        "warp",
        "What the dose leaves of the signal: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure "
        "of Grant & Grigorieff 2015 (grant), or all of it (none); of premultiplied images it must be what "
        "they were multiplied by.",
    )
    mask_diameter: float = setting(
        0.0,
        "Diameter of the soft sphere under which half maps are compared; 0 is 80 % of the box.",
        unit="Å",
        ge=0.0,
        le=10000.0,
    )
    mask_edge: float = setting(
        5.0, "Width of the sphere's soft edge, outside of its diameter.", unit="px", ge=1.0, le=50.0
    )


@dataclass(frozen=True)
class Average:
    """A map and its halves.

    Attributes
    ----------
    halves : (2, n, n, n) float32
        Not filtered. Density positive, in units of the images' grey values: an image is the sum along
        the beam.
    map : (n, n, n) float32
        Of both, filtered by the FSC.
    weights : (shells,) float64
        Mean of Σ H² in each shell, both halves together.
    fsc : FSC
    particles : (int, int)
        In either half.
    sums : HalfSums
        What they were made from.
    """

    halves: torch.Tensor
    map: torch.Tensor
    weights: torch.Tensor
    fsc: FSC
    particles: tuple[int, int]
    sums: HalfSums


def batches(series: ImageSeries, coefficients: int, copies: int = 1) -> Iterator[torch.Tensor]:
    """Indices of particles, so many at a time that their coefficients fit into memory."""
    each = series.images.shape[1] * coefficients * copies
    yield from chunks(len(series), max(1, _BATCH // max(each, 1)))


def fsc_mask(size: int, pixel_size: float, settings: AveragingSettings) -> torch.Tensor:
    """The soft sphere of the settings, (size, size, size) float32.

    Raises
    ------
    ItemError
        If it does not fit into the box.
    """
    diameter = settings.mask_diameter / pixel_size if settings.mask_diameter else 0.8 * size
    if diameter > size:
        raise ItemError(
            f"a mask of {settings.mask_diameter:g} Å does not fit into a box of {size} px of "
            f"{pixel_size:g} Å: choose a larger box or a smaller mask"
        )
    return soft_sphere(size, diameter, min(settings.mask_edge, max(1.0, 0.5 * (size - diameter))))


class HalfSums:
    """Sums of both halves, to which particles are added batch by batch.

    Parameters
    ----------
    size : int
        Box, pixels.
    settings : AveragingSettings
    device : torch.device
    """

    def __init__(self, size: int, settings: AveragingSettings, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.settings = settings
        self.halves = (Sums.empty(size, device), Sums.empty(size, device))
        self.particles = [0, 0]
        self._operators = symmetry_operators(settings.symmetry).float().to(device)

    def add(self, series: ImageSeries) -> None:
        """Add all images of some particles; :func:`batches` says how many at a time."""
        band = Band.of(self.size, series.pixel_size, device=series.images.device)
        weight = transfer(series, band, self.settings.dose_weighting)
        values = spectra(series, band)
        if not series.premultiplied:
            values *= weight
        weight = weight.square_()
        which, tilt = (series.weight > 0).nonzero(as_tuple=True)
        images = series.rotation[which, tilt, :2], values[which, tilt], weight[which, tilt]
        self.add_sections(band, *images, series.half[which.to(series.half.device)])
        self.count(series.half)

    def count(self, half: torch.Tensor) -> None:
        """Note particles that have been added: 0 or 1 for each, (particles,)."""
        for which in (0, 1):
            self.particles[which] += int((half == which).sum())

    def add_sections(
        self,
        band: Band,
        rows: torch.Tensor,
        values: torch.Tensor,
        weights: torch.Tensor,
        half: torch.Tensor,
    ) -> None:
        """Add central sections to their halves.

        Parameters
        ----------
        band : Band
            The c coefficients that they consist of.
        rows : (images, 2, 3) float32
            The first two rows of each image's rotation.
        values : (images, c) complex64
            H F.
        weights : (images, c) float32
            H².
        half : (images,) int64
            0 or 1.
        """

        def one(which: int) -> None:
            mine = (half == which).nonzero()[:, 0].to(values.device)
            if len(mine) == 0:
                return
            chosen = band.ux, band.uy, values[mine], weights[mine]
            for operator in self._operators:
                insert(self.halves[which], rows[mine] @ operator, *chosen)

        if values.device.type != "cpu" or torch.get_num_threads() == 1:
            one(0)
            one(1)
            return
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, (0, 1)))

    def shell_weights(self, which: int | None = None) -> torch.Tensor:
        """(shells,) float64: mean weight of the places in each shell; of one half, or of both."""
        sums = (self.halves[0] + self.halves[1]) if which is None else self.halves[which]
        return _shell_mean(sums.complete().weight)

    def map(
        self, which: int | None = None, fsc: torch.Tensor | None = None, constant: float = 0.0
    ) -> torch.Tensor:
        """One half, or both together.

        Parameters
        ----------
        which : 0, 1 or None
        fsc : (shells,) tensor, optional
            Of the two halves: filters the map. Without, what has not been seen is damped and no more.
        constant : float
            Filters the map, too: 1/τ² as a share of ⟨Σ H²⟩ over all shells, the same everywhere.

        Returns
        -------
        (n, n, n) float32
        """
        sums = ((self.halves[0] + self.halves[1]) if which is None else self.halves[which]).complete()
        m, n = PADDING * self.size, self.size
        radius = _radius(m, sums.weight.device)
        mean = _shell_mean(sums.weight).to(sums.weight.device)
        per_place = mean.float()[radius.round().long().clamp(max=len(mean) - 1)]
        weight = sums.weight
        if fsc is not None:
            ratio = (1.0 - fsc) / ((2.0 if which is None else 1.0) * fsc)
            extra = (mean * ratio.to(mean.device)).float()
            weight = weight + extra[radius.round().long().clamp(max=len(extra) - 1)]
        if constant > 0.0:
            weight = weight + constant * float(sums.weight[radius <= n // 2 - 0.5].mean())
        spectrum = sums.data / torch.maximum(weight, _LEAST_WEIGHT * per_place).clamp(min=1e-20)
        spectrum *= radius <= n // 2 - 0.5
        return real_space(spectrum, n)

    def finish(
        self, pixel_size: float, mask: torch.Tensor | None = None, constant: float | None = None
    ) -> Average:
        """Make the maps and compare the halves under `mask`, by default the settings' sphere.

        The map of both halves is filtered by the FSC or, where one is given, by a `constant` (:meth:`map`).

        Raises
        ------
        ItemError
            If a half has no particles.
        """
        if not all(self.particles):
            raise ItemError(
                f"the half-sets have {self.particles[0]} and {self.particles[1]} particles: an average needs "
                "at least one in each"
            )
        if mask is None:
            mask = fsc_mask(self.size, pixel_size, self.settings)
        halves = torch.stack([self.map(0), self.map(1)])
        fsc = half_map_fsc(halves[0], halves[1], pixel_size, mask.to(halves.device))
        both = self.map(None, usable(fsc)) if constant is None else self.map(None, constant=constant)
        counts = (self.particles[0], self.particles[1])
        return Average(halves, both, self.shell_weights(), fsc, counts, self)


def usable(fsc: FSC) -> torch.Tensor:
    """The corrected curve for a Wiener filter: between 0 and 1, and nothing beyond the last signal."""
    curve = fsc.corrected.clamp(_NO_SIGNAL, 0.999).clone()
    curve[last_signal(curve) + 1 :] = _NO_SIGNAL
    return curve


def _radius(m: int, device: torch.device) -> torch.Tensor:
    """(m, m, m//2+1) float32: radius in periods over the unpadded box, z and y centred."""
    k = (torch.arange(m, device=device, dtype=torch.float32) - m // 2) / PADDING
    x = torch.arange(m // 2 + 1, device=device, dtype=torch.float32) / PADDING
    return torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x * x)


def _shell_mean(weight: torch.Tensor) -> torch.Tensor:
    m = len(weight)
    count = m // PADDING // 2
    shells = _radius(m, weight.device).round().long().clamp(max=count).reshape(-1)
    total = torch.bincount(shells, weight.reshape(-1).double(), count + 1)
    return (total / torch.bincount(shells, minlength=count + 1))[:count]


def average(
    series: ImageSeries,
    settings: AveragingSettings | None = None,
    mask: torch.Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Average:
    """Average particles as their poses say.

    Parameters
    ----------
    series : ImageSeries
        The device of its images does the work. Images may be mapped from a file: they are read in batches.
    settings : AveragingSettings, optional
    mask : (n, n, n) float32, optional
        For the FSC; by default a soft sphere.
    progress : callable, optional
        Takes how many particles are done, of how many.

    Raises
    ------
    ItemError
        If a half-set is empty, the mask does not fit, or no image shows a particle.
    """
    settings = settings or AveragingSettings()
    if len(series) == 0 or not bool((series.weight > 0).any()):
        raise ItemError("there is no image that shows a particle, so there is nothing to average")
    size = series.images.shape[-1]
    sums = HalfSums(size, settings, series.images.device)
    done = 0
    for part in batches(series, size * size // 2):
        sums.add(series.select(part))
        done += len(part)
        if progress is not None:
            progress(done, len(series))
    return sums.finish(series.pixel_size, mask)

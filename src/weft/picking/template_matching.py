"""Where in a micrograph a known structure is: projections of a template, with the local CTF, against tiles.

Tegunov & Cramer 2019, "Template matching in micrographs and tomograms": the micrograph is cut into tiles; for
each, projections of the template at even angular steps are multiplied by the tile's own CTF; and of each
position the best score and its orientation are kept. The score is the correlation under a round mask m,

    CC(x) = Σ_r m(r) (T(r) − T̄) V(x + r) / (Σ m · σ_T · σ_V(x))

with means and standard deviations under the mask (Roseman 2003, Ultramicroscopy 94, 225): it lies between −1
and 1 and knows nothing of the local brightness and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import ItemError
from weft.matching.density import find_particle
from weft.matching.weights import tile_length
from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.optics import Optics
from weft.picking.template_filters import LOW_PASS_EDGE, PreparedMicrograph, prepare_micrograph
from weft.picking.template_projections import (
    Orientations,
    Projector,
    centred_images,
    template_orientations,
)
from weft.settings import Settings, setting

__all__ = [
    "LocalCTF",
    "TemplateMatchingSettings",
    "TemplateScores",
    "disc_mask",
    "match_template",
    "template_diameter",
]

_SAMPLING = 3.0  # pixels in the resolution: peaks of the correlation are then wider than two of them
_LARGEST_WINDOW = 512  # px; longer transforms do not stay in a CPU's cache
_BATCH_PIXELS = 1 << 20
_BATCH_PIXELS_GPU = 1 << 25
_SOFT = 1.0  # px, of the mask's edge to either side
_LEAST_SEEN = 0.6  # of the mask that must lie in the image, outside artefacts: a straight edge leaves 0.5
_SAMPLES = 1 << 20  # scores that the background is judged by
_GRADIENT_GRID = 5


class TemplateMatchingSettings(Settings):
    """How micrographs are searched for a template."""

    particle_diameter: float = setting(
        0.0,
        "Of the particle, along its longest side; 0 measures it in the template.",
        unit="Å",
        ge=0.0,
        le=10000.0,
    )
    angular_step: float = setting(15.0, "Step between orientations.", unit="deg", ge=1.0, le=90.0)
    low_pass: float = setting(
        15.0,
        "Leave out what is finer. Coarser than what the particles shall be refined to, lest noise be picked "
        "that looks like the template; it decides the pixels that are worked with, and so the time.",
        unit="Å",
        ge=2.0,
        le=200.0,
    )
    symmetry: str = setting("C1", "Of the template: C1, C2 ..., D2 ..., T, O, I1, I2.")
    invert: bool = setting(
        False, "For templates that are dark on light; maps of the EMDB and from models are not."
    )
    whiten: bool = setting(
        True, "Divide by the micrograph's own amplitude spectrum, so that no frequency outvotes the others."
    )
    ctf: Literal["local", "mean", "none"] = setting(
        "local",
        "What projections are multiplied by: the CTF of each tile's own defocus; that of the micrograph's "
        "centre; nothing.",
    )
    phase_error: float = setting(
        0.25,
        "Tiles may be so large that the CTF's phase is off by this much at their corners, at the resolution "
        "of low_pass.",
        unit="rad",
        ge=0.01,
        le=3.0,
    )


class LocalCTF(Protocol):
    """What is known of a micrograph's CTF; :class:`weft.defocus.micrograph.CTFModel` is one."""

    @property
    def phase_shift(self) -> float:
        """Degrees."""

    def at(self, xy: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """defocus_u, defocus_v (Å) and angle (degrees), each (n,), at places (n, 2) in Å."""


@dataclass(frozen=True)
class TemplateScores:
    """Of every position the best score among all orientations.

    Attributes
    ----------
    cc : (y, x) float32
        The correlation, −1 to 1; −1 where nothing was compared.
    number : (y, x) int64
        The orientation that has it: a row of `orientations.euler`.
    allowed : (y, x) bool
        What was compared.
    orientations : Orientations
    mean, sigma : float
        Of all scores that noise makes in all orientations: median, and 1.4826 times the median distance from
        it, of a sample of them.
    pixel_size : (float, float)
        Å, along x and y; pixel p lies at p times it.
    diameter : float
        Of the particle, Å.
    tiles : int
    """

    cc: torch.Tensor
    number: torch.Tensor
    allowed: torch.Tensor
    orientations: Orientations
    mean: float
    sigma: float
    pixel_size: tuple[float, float]
    diameter: float
    tiles: int

    @property
    def search_space(self) -> int:
        """How many scores were looked at."""
        return int(self.allowed.sum()) * len(self.orientations)


def template_diameter(volume: torch.Tensor, voxel_size: float) -> float:
    """Å, of the sphere about the box's centre that holds 99.5 % of a template's density.

    Raises
    ------
    ItemError
        There is no density.
    """
    middle = torch.full((3,), float(volume.shape[0] // 2), dtype=torch.float64)
    return 2.0 * voxel_size * find_particle(volume.cpu()).radius(middle)


def disc_mask(box: int, radius: float, soft: float = _SOFT, device: Any = "cpu") -> torch.Tensor:
    """A disc about the pixel box//2, its edge a cosine from `soft` px inside to as many outside."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    away = (axis[:, None] ** 2 + axis**2).sqrt() - radius
    return 0.5 - 0.5 * torch.sin(0.5 * math.pi * (away / soft).clamp(-1.0, 1.0))


def match_template(
    image: torch.Tensor,
    optics: Optics,
    template: torch.Tensor,
    voxel_size: float,
    ctf_model: LocalCTF | None,
    settings: TemplateMatchingSettings | None = None,
    *,
    excluded: torch.Tensor | None = None,
    progress: Callable[[float], None] | None = None,
) -> TemplateScores:
    """Search a micrograph for a template.

    Parameters
    ----------
    image : (y, x) float
        The micrograph, protein dark. The search runs on its device.
    optics : Optics
        `pixel_size` is that of the image.
    template : (n, n, n) float
        Density positive, unless `settings.invert`; it turns about the voxel n//2.
    voxel_size : float
        Of the template, Å.
    ctf_model : LocalCTF, optional
        Needed unless `settings.ctf` is ``"none"``.
    settings : TemplateMatchingSettings, optional
    excluded : (any y, any x) bool tensor, optional
        True on artefacts: a picture of the whole micrograph at any pixel size.
    progress : callable, optional
        Takes the fraction that is done.

    Returns
    -------
    TemplateScores

    Raises
    ------
    ItemError
        A template or an image that cannot be compared.
    """
    settings = settings or TemplateMatchingSettings()
    if settings.ctf == "none":
        ctf_model = None
    elif ctf_model is None:
        raise ItemError("its CTF is not known: fit it first, or match without (ctf = none)")
    diameter = settings.particle_diameter or template_diameter(template, voxel_size)
    # a template has no more detail than its voxels, an image than its pixels
    resolution = max(settings.low_pass, 2.0 * (1.0 + LOW_PASS_EDGE) * optics.pixel_size, 2.0 * voxel_size)
    prepared = prepare_micrograph(
        image,
        optics.pixel_size,
        resolution / _SAMPLING,
        resolution,
        whiten=settings.whiten,
        excluded=excluded,
    )
    orientations = template_orientations(settings.angular_step, settings.symmetry)
    search = _Search.of(
        prepared, optics, template.to(image.device), voxel_size, ctf_model, settings, diameter, orientations
    )
    return search.run(progress)


@dataclass(frozen=True)
class _Search:
    """All that the tiles have in common."""

    prepared: PreparedMicrograph
    projector: Projector
    mask: torch.Tensor
    gain: torch.Tensor  # (box, box//2+1), of the filter and the sign of contrast
    orientations: Orientations
    ctf: LocalCTF | None
    optics: Optics
    diameter: float
    core: int
    window: int
    ctf_place: tuple[float, float] | None  # one place's CTF for all tiles

    @classmethod
    def of(
        cls,
        prepared: PreparedMicrograph,
        optics: Optics,
        template: torch.Tensor,
        voxel_size: float,
        ctf_model: LocalCTF | None,
        settings: TemplateMatchingSettings,
        diameter: float,
        orientations: Orientations,
    ) -> _Search:
        pixel = prepared.mean_pixel_size
        ny, nx = prepared.image.shape
        size = (nx * prepared.pixel_size[0], ny * prepared.pixel_size[1])
        resolution = prepared.gain.resolution * pixel
        defocus, gradient = _defocus_range(ctf_model, size)
        radius = 0.5 * diameter / pixel + _SOFT
        reach = math.ceil(radius + _SOFT)
        if 2 * reach + 1 > min(ny, nx):
            raise ItemError(
                f"a particle of {diameter:.0f} Å does not fit into a micrograph of {size[0]:.0f} × "
                f"{size[1]:.0f} Å: is the template's voxel size right?"
            )
        # a CTF spreads the particle; the box must hold what reaches the mask from either side
        finest = (1.0 + LOW_PASS_EDGE) / resolution
        spread = min(optics.wavelength * defocus * finest, 2.0 * diameter) / pixel
        box = fourier.fast_size(max(2 * reach + 1, math.ceil(2.0 * radius + spread)), even=False)
        while box % 2 == 0:
            box = fourier.fast_size(box + 1, even=False)
        projector = Projector.of(template, voxel_size, pixel, box, 1.0 / finest)
        ky, kx = fourier.frequencies((box, box), 1.0, template.device)
        sign = 1.0 if settings.invert else -1.0  # protein is dark in micrographs
        gain = sign * prepared.gain.at((ky * ky + kx * kx).sqrt())
        mask = disc_mask(2 * reach + 1, radius, device=template.device)
        longest = float("inf")
        if settings.ctf == "local" and gradient > 0.0:
            longest = tile_length(1.0 / resolution, optics.wavelength, settings.phase_error) / gradient
        core = math.ceil(min(longest / pixel, max(ny, nx), _LARGEST_WINDOW - 2 * reach))
        # tiles smaller than the template would be all overlap
        core = max(core, 2 * reach + 1)
        # as many tiles as needed, all alike
        count = math.ceil(max(ny, nx) / core)
        window = fourier.fast_size(math.ceil(max(ny, nx) / count) + 2 * reach)
        place = (0.5 * size[0], 0.5 * size[1]) if settings.ctf == "mean" else None
        return cls(
            prepared,
            projector,
            mask,
            gain,
            orientations,
            ctf_model,
            optics.at_pixel_size(pixel),
            diameter,
            window - 2 * reach,
            window,
            place,
        )

    @property
    def reach(self) -> int:
        return len(self.mask) // 2

    def run(self, progress: Callable[[float], None] | None = None) -> TemplateScores:
        image, allowed, reach, core = self.prepared.image, self.prepared.allowed, self.reach, self.core
        ny, nx = image.shape
        rows, columns = (math.ceil(n / core) for n in (ny, nx))
        padded = image.new_zeros(rows * core + 2 * reach, columns * core + 2 * reach)
        padded[reach : reach + ny, reach : reach + nx] = image
        visible = torch.zeros_like(padded)
        visible[reach : reach + ny, reach : reach + nx] = allowed.float()
        cc = image.new_full((rows * core, columns * core), -1.0)
        number = torch.zeros(cc.shape, dtype=torch.int64, device=image.device)
        compared = torch.zeros(cc.shape, dtype=torch.bool, device=image.device)
        inside = torch.zeros_like(compared)
        inside[:ny, :nx] = allowed
        samples = []
        tiles = [(y * core, x * core) for y in range(rows) for x in range(columns)]
        for done, (y, x) in enumerate(tiles):
            part = slice(y, y + core), slice(x, x + core)
            window = slice(y, y + self.window), slice(x, x + self.window)
            inverse = self._inverse_deviation(padded[window], visible[window]) * inside[part]
            if bool((inverse > 0.0).any()):
                middle = (0.5 * (min(y + core, ny) + y - 1), 0.5 * (min(x + core, nx) + x - 1))
                sections = self._kernels_at(middle)
                best, which, sample = self._correlate(padded[window], sections, inverse, len(tiles))
                cc[part] = torch.where(inverse > 0.0, best * inverse, cc[part])
                number[part], compared[part] = which, inverse > 0.0
                samples.append(sample)
            if progress is not None:
                progress((done + 1) / len(tiles))
        if not samples:
            raise ItemError("artefacts leave no place where the template could be compared")
        mean, sigma = _background(torch.cat(samples))
        return TemplateScores(
            cc[:ny, :nx].contiguous(),
            number[:ny, :nx].contiguous(),
            compared[:ny, :nx].contiguous(),
            self.orientations,
            mean,
            sigma,
            self.prepared.pixel_size,
            self.diameter,
            len(tiles),
        )

    def _kernels_at(self, middle: tuple[float, float]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Makes what tiles about a place (y, x; px) are correlated with, of orientations (r, 3)."""
        factor = self.gain
        if self.ctf is not None:
            x_size, y_size = self.prepared.pixel_size
            place = self.ctf_place or (middle[1] * x_size, middle[0] * y_size)
            u, v, angle = (float(value[0]) for value in self.ctf.at(np.array([place])))
            box = self.projector.box
            ky, kx = fourier.frequencies((box, box), self.optics.pixel_size, factor.device)
            defocus = astigmatic_defocus(u, v, angle, torch.atan2(ky, kx))
            factor = factor * ctf(ky * ky + kx * kx, defocus, self.optics, self.ctf.phase_shift)
        start = self.projector.box // 2 - self.reach
        part = slice(start, start + len(self.mask))
        area = self.mask.sum()

        def kernels(euler: torch.Tensor) -> torch.Tensor:
            images = centred_images(self.projector.sections(euler) * factor, self.projector.box)
            images = images[:, part, part]
            images = images - (images * self.mask).sum((-2, -1), keepdim=True) / area
            power = (images.square() * self.mask).sum((-2, -1), keepdim=True)
            return images * self.mask / (area * power).sqrt().clamp(min=1e-30)

        return kernels

    def _inverse_deviation(self, window: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """1/σ_V under the mask around each place of a tile's core; 0 where nothing can be said."""
        size = (self.window, self.window)
        mask = fourier.rfft2(self.mask, size).conj()
        stack = torch.stack([window, window.square(), visible])
        sums = fourier.irfft2(fourier.rfft2(stack) * mask, size)[:, : self.core, : self.core]
        mean, square, seen = sums / self.mask.sum()
        variance = square - mean.square()
        # the image as a whole has the variance 1
        return torch.where((variance > 1e-4) & (seen > _LEAST_SEEN), variance.clamp(min=1e-4).rsqrt(), 0.0)

    def _correlate(
        self,
        window: torch.Tensor,
        kernels: Callable[[torch.Tensor], torch.Tensor],
        inverse: torch.Tensor,
        tiles: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each place of the core the best score before its division by σ_V, its orientation; a sample."""
        size, core = (self.window, self.window), self.core
        computed, turned = self.orientations.computed, self.orientations.turned
        spectrum = fourier.rfft2(window.contiguous())
        # a kernel turned by 180° about its middle has the conjugate transform, 2 · reach px away
        away = torch.tensor(2.0 * self.reach, device=window.device)
        ky, kx = fourier.frequencies(size, 1.0, window.device)
        spectrum_of_turned = spectrum * fourier.shift_phases(ky, kx, away, away)
        best = window.new_full((core, core), -torch.inf)
        number = torch.zeros(core, core, dtype=torch.int64, device=window.device)
        room = _BATCH_PIXELS if window.device.type == "cpu" else _BATCH_PIXELS_GPU
        batch = max(1, room // self.window**2)
        batches = math.ceil(len(computed) / batch)
        places = (inverse > 0.0).reshape(-1).nonzero()[:, 0]
        stride = max(1, math.ceil(len(places) * batches * tiles / _SAMPLES))
        scale = inverse.reshape(-1)
        samples = []
        for start in range(0, len(computed), batch):
            mine = computed[start : start + batch]
            made = fourier.rfft2(kernels(self.orientations.euler[mine]).contiguous(), size)
            pairs = [(spectrum * made.conj(), mine)]
            if len(turned):
                pairs.append((spectrum_of_turned * made, turned[start : start + batch]))
            for product, numbers in pairs:
                found = fourier.irfft2(product, size)[:, :core, :core]
                top, at = found.max(dim=0)
                better = top > best
                best = torch.where(better, top, best)
                number = torch.where(better, numbers.to(at.device)[at], number)
            some = places[(start // batch) % stride :: stride]
            samples.append(found[0].reshape(-1)[some] * scale[some])
        return best, number, torch.cat(samples)


def _defocus_range(model: LocalCTF | None, size: tuple[float, float]) -> tuple[float, float]:
    """Greatest defocus (Å), and by how much it changes at most over a distance (Å/Å)."""
    if model is None:
        return 0.0, 0.0
    axes = [np.linspace(0.0, length, _GRADIENT_GRID) for length in size]
    x, y = np.meshgrid(*axes)
    u, v, _ = model.at(np.column_stack([x.ravel(), y.ravel()]))
    mean = (0.5 * (u + v)).reshape(x.shape)
    along_y, along_x = np.gradient(mean, axes[1], axes[0])
    return float(np.abs(u).max()), float(np.hypot(along_x, along_y).max())


def _background(scores: torch.Tensor) -> tuple[float, float]:
    """Median, and the standard deviation that the median distance from it stands for."""
    middle = scores.median()
    sigma = 1.4826 * float((scores - middle).abs().median())
    if not sigma > 0.0:
        raise ItemError("the template scores the same everywhere: is it flat?")
    return float(middle), sigma

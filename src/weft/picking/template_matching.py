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
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import ItemError
from weft.matching.density import find_particle
from weft.matching.weights import tile_length
from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.optics import Optics
from weft.picking.local_correlation import SOFT, LocalCorrelation, disc_mask
from weft.picking.template_filters import LOW_PASS_EDGE, PreparedMicrograph, prepare_micrograph
from weft.picking.template_projections import (
    Orientations,
    Projector,
    centred_images,
    template_orientations,
)
from weft.picking.template_scores import TemplateScores, background
from weft.settings import Settings, setting

__all__ = [
    "LocalCTF",
    "TemplateMatchingSettings",
    "match_template",
    "template_diameter",
]

_SAMPLING = 3.0  # pixels in the resolution: peaks of the correlation are then wider than two of them
_LARGEST_WINDOW = 512  # px; longer transforms do not stay in a CPU's cache
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


def template_diameter(volume: torch.Tensor, voxel_size: float) -> float:
    """Å, of the sphere about the box's centre that holds 99.5 % of a template's density.

    Raises
    ------
    ItemError
        There is no density.
    """
    middle = torch.full((3,), float(volume.shape[0] // 2), dtype=torch.float64)
    return 2.0 * voxel_size * find_particle(volume.cpu()).radius(middle)


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
    gain: torch.Tensor  # (box, box//2+1), of the filter and the sign of contrast
    correlation: LocalCorrelation
    ctf: LocalCTF | None
    optics: Optics
    diameter: float
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
        radius = 0.5 * diameter / pixel + SOFT
        reach = math.ceil(radius + SOFT)
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
            gain,
            LocalCorrelation(mask, orientations, window),
            ctf_model,
            optics.at_pixel_size(pixel),
            diameter,
            place,
        )

    def run(self, progress: Callable[[float], None] | None = None) -> TemplateScores:
        image, allowed, correlation = self.prepared.image, self.prepared.allowed, self.correlation
        reach, core, whole = correlation.reach, correlation.core, correlation.window
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
            window = slice(y, y + whole), slice(x, x + whole)
            inverse = correlation.inverse_deviation(padded[window], visible[window]) * inside[part]
            if bool((inverse > 0.0).any()):
                middle = (0.5 * (min(y + core, ny) + y - 1), 0.5 * (min(x + core, nx) + x - 1))
                sections = self._kernels_at(middle)
                best, which, sample = correlation.best(padded[window], sections, inverse, len(tiles))
                cc[part] = torch.where(inverse > 0.0, best * inverse, cc[part])
                number[part], compared[part] = which, inverse > 0.0
                samples.append(sample)
            if progress is not None:
                progress((done + 1) / len(tiles))
        if not samples:
            raise ItemError("artefacts leave no place where the template could be compared")
        mean, sigma = background(torch.cat(samples))
        return TemplateScores(
            cc[:ny, :nx].contiguous(),
            number[:ny, :nx].contiguous(),
            compared[:ny, :nx].contiguous(),
            correlation.orientations,
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
        start = self.projector.box // 2 - self.correlation.reach
        part = slice(start, start + len(self.correlation.mask))

        def kernels(euler: torch.Tensor) -> torch.Tensor:
            images = centred_images(self.projector.sections(euler) * factor, self.projector.box)
            return self.correlation.kernels(images[:, part, part])

        return kernels


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

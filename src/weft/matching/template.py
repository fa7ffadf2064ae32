"""Templates for matching: a map at another voxel size, in another box, centred, filtered, mirrored.

Templates are light on dark, density positive, as Weft's tomograms are: a map of the EMDB or a model needs no
inversion against them. Tomograms of programs that leave particles dark need `invert`.

Arrays are [z, y, x]; the centre of a box of n voxels is index n//2 and stays where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import model_validator

from weft.errors import ItemError, SettingsError
from weft.matching.density import Particle, find_particle, solvent_level
from weft.physics import fourier
from weft.settings import Settings, setting

__all__ = [
    "Template",
    "TemplateSettings",
    "band_pass",
    "band_pass_gain",
    "create_template",
    "mirrored",
    "resample",
]

# of the thresholded density: less than this outside the box is a loss nobody sees
_VISIBLE = 0.01
# voxel sizes that differ by less are the same: headers keep them in single precision
_SAME_VOXEL = 1e-5


class TemplateSettings(Settings):
    """How a template is made from a map."""

    voxel_size: float = setting(..., "Size of the template's voxels.", unit="Å", gt=0.05, le=200.0)
    box: int = setting(..., "Side of the template.", unit="px", ge=4, le=2048)
    low_pass: float | None = setting(
        None,
        "Resolution at which the low-pass filter halves amplitudes; without one the template keeps all that "
        "its voxels can show.",
        unit="Å",
        gt=0.0,
        le=10000.0,
    )
    high_pass: float | None = setting(
        None, "Resolution at which the high-pass filter halves amplitudes.", unit="Å", gt=0.0, le=100000.0
    )
    filter_shape: Literal["cosine", "gaussian"] = setting(
        "cosine",
        "cosine: from all to nothing over `filter_edge`; gaussian: a Gaussian of frequency, 1/2 there.",
    )
    filter_edge: float = setting(
        0.2,
        "Half width of the cosine edge as a part of its frequency: 0.2 is from all at 0.8 to nothing at 1.2 "
        "of it.",
        gt=0.0,
        le=0.9,
    )
    center: bool = setting(False, "Move the centre of mass of the density to the centre of the box.")
    invert: bool = setting(
        False,
        "Make the template dark on light. Weft's tomograms and maps of the EMDB are both light on dark and "
        "need it not; tomograms of programs that leave particles dark do.",
    )
    mirror: bool = setting(
        False, "Mirror the template along x: for maps of the wrong hand, and as a null test."
    )
    normalise: bool = setting(True, "Scale the template to a standard deviation of 1, its solvent to 0.")

    @model_validator(mode="after")
    def _band(self) -> TemplateSettings:
        if self.low_pass is not None and self.low_pass < 2.0 * self.voxel_size * (1.0 - 1e-6):
            raise ValueError(
                f"a low-pass of {self.low_pass:g} Å is finer than voxels of {self.voxel_size:g} Å can show "
                f"({2.0 * self.voxel_size:g} Å): give at least that, or smaller voxels"
            )
        if self.high_pass is not None and self.high_pass <= (self.low_pass or 2.0 * self.voxel_size):
            raise ValueError(
                f"a high-pass of {self.high_pass:g} Å must be coarser than the low-pass of "
                f"{self.low_pass or 2.0 * self.voxel_size:g} Å"
            )
        return self


@dataclass(frozen=True)
class Template:
    """A template and what is known about it.

    Attributes
    ----------
    map : (box, box, box) float32
    voxel_size : float
        Å.
    diameter : float
        Å; of the sphere about the centre of the box that holds 99.5 % of the density.
    offset : (x, y, z)
        Å; how far the particle's centre of mass is from the centre of the box.
    dark : bool
        Whether the density is darker than the solvent.
    """

    map: torch.Tensor
    voxel_size: float
    diameter: float
    offset: tuple[float, float, float]
    dark: bool


def create_template(map_: torch.Tensor, voxel_size: float, settings: TemplateSettings) -> Template:
    """Make a template from a map.

    Parameters
    ----------
    map_ : (n, n, n) float
    voxel_size : float
        Å; the map's.
    settings : TemplateSettings

    Returns
    -------
    Template

    Raises
    ------
    ItemError
        The map is not cubic, has values that are no numbers, or is the same everywhere.
    SettingsError
        Its particle is larger than the box.
    """
    if map_.ndim != 3 or len(set(map_.shape)) != 1:
        raise ItemError(
            f"the map is not a cube, it has {' × '.join(map(str, map_.shape))} voxels (z, y, x): pad it"
        )
    bad = int((~torch.isfinite(map_)).sum())
    if bad:
        raise ItemError(
            f"{bad} of the map's {map_.numel()} voxels are not finite numbers: repair the map first"
        )
    if voxel_size <= 0.0:
        raise ItemError("the map's voxel size is not known: give it with --input-voxel-size")
    map_ = map_.float()
    particle = find_particle(map_)
    centre = particle.centre if settings.center else torch.full((3,), float(map_.shape[0] // 2)).double()
    _check_room(particle, centre, voxel_size, settings)
    made = resample(map_ - particle.solvent, voxel_size, settings.voxel_size, settings.box, centre)
    made = band_pass(made, settings)
    if settings.mirror:
        made = mirrored(made)
    if settings.invert:
        made = -made
    if settings.normalise:
        made = made / made.std()
    # away from the filter's ripples, the diameter is that of the map
    scale = voxel_size * (-1.0 if settings.mirror else 1.0), voxel_size, voxel_size
    offset = [
        factor * value for factor, value in zip(scale, (particle.centre - centre).tolist()[::-1], strict=True)
    ]
    return Template(
        map=made,
        voxel_size=settings.voxel_size,
        diameter=2.0 * voxel_size * particle.radius(centre),
        offset=(offset[0], offset[1], offset[2]),
        dark=(particle.sign < 0) != settings.invert,
    )


def _check_room(
    particle: Particle, centre: torch.Tensor, voxel_size: float, settings: TemplateSettings
) -> None:
    """Raise if the box would visibly cut the particle."""
    ratio = settings.voxel_size / voxel_size
    before, after = settings.box // 2 + 0.5, settings.box - settings.box // 2 - 0.5

    def held_about(middle: torch.Tensor) -> float:
        return particle.part_within(middle - before * ratio, middle + after * ratio)

    held = held_about(centre)
    if held < 1.0 - _VISIBLE:
        needed = 2 * math.ceil(particle.half_side(centre, 1.0 - 0.1 * _VISIBLE) / ratio + 0.5)
        hint = ", or centre it with --center" if held_about(particle.centre) >= 1.0 - _VISIBLE else ""
        raise SettingsError(
            f"a box of {settings.box} voxels of {settings.voxel_size:g} Å cuts away "
            f"{100 * (1.0 - held):.0f} % of the particle's density: it needs a box of {needed}{hint}."
        )


def resample(
    map_: torch.Tensor,
    voxel_size: float,
    new_voxel_size: float,
    box: int,
    centre: torch.Tensor | None = None,
) -> torch.Tensor:
    """A map at another voxel size in another box, exact for every ratio of voxel sizes.

    Along each axis the map's trigonometric polynomial, cut off at the coarser Nyquist frequency, is evaluated
    at the new voxels' places: a Fourier crop where the ratio allows one, and without its rounding of voxel
    sizes where it does not. Places outside the map get the solvent's level.

    Parameters
    ----------
    map_ : (n, n, n) float32
    voxel_size, new_voxel_size : float
        Å.
    box : int
        Side of the result.
    centre : (3,) tensor, optional
        z, y, x, voxels of the map: the place, between voxels too, that comes to index box//2; by default the
        map's own centre n//2.

    Returns
    -------
    (box, box, box) float32
        Grey values are kept.
    """
    n = map_.shape[0]
    ratio = new_voxel_size / voxel_size
    if abs(ratio - 1.0) < _SAME_VOXEL:
        ratio = 1.0
    from_centre = (torch.arange(box, dtype=torch.float64, device=map_.device) - box // 2) * ratio
    origin = [float(n // 2)] * 3 if centre is None else centre.tolist()
    level = solvent_level(map_)
    weights = [_interpolation(from_centre + c, n, ratio).float() for c in origin]
    out = torch.einsum("zyx,kx->zyk", map_ - level, weights[2])
    out = torch.einsum("zyk,jy->zjk", out, weights[1])
    return torch.einsum("zjk,iz->ijk", out, weights[0]) + level


def _interpolation(places: torch.Tensor, n: int, ratio: float) -> torch.Tensor:
    """What each of n periodic samples adds to the band-limited function at places (m,): (m, n) float64.

    Frequencies up to 1/2 cycle a new voxel are kept, if the samples have them; one exactly there counts half,
    as it stands for both signs.
    """
    limit = n / (2.0 * max(ratio, 1.0))
    last = math.floor(limit + 1e-9)
    at_limit = abs(last - limit) < 1e-9
    k = torch.arange(1, last + 1, dtype=torch.float64, device=places.device)
    strength = torch.full_like(k, 2.0)
    if at_limit and last > 0:
        strength[-1] = 1.0
    phase = (2.0 * math.pi / n) * k
    samples = torch.arange(n, dtype=torch.float64, device=places.device)
    # cos(a - b) by its two products: two small matrix products instead of m n k cosines
    at, of = places[:, None] * phase, samples[:, None] * phase
    weights = (at.cos() * strength) @ of.cos().T + (at.sin() * strength) @ of.sin().T
    inside = (places > -0.5 - 1e-9) & (places < n - 0.5 + 1e-9)
    return (weights + 1.0) / n * inside[:, None]


def band_pass_gain(k: torch.Tensor, settings: TemplateSettings) -> torch.Tensor:
    """What the filters leave of an amplitude at the frequency k, 1/Å; 1/2 at their resolutions."""
    gain = torch.ones_like(k)
    if settings.low_pass is not None:
        gain = gain * _low_pass(k, settings.low_pass, settings)
    if settings.high_pass is not None:
        gain = gain * (1.0 - _low_pass(k, settings.high_pass, settings))
    return gain


def _low_pass(k: torch.Tensor, resolution: float, settings: TemplateSettings) -> torch.Tensor:
    if settings.filter_shape == "gaussian":
        return torch.exp2(-((k * resolution) ** 2))
    return fourier.cosine_low_pass(k, resolution, settings.filter_edge)


def band_pass(map_: torch.Tensor, settings: TemplateSettings) -> torch.Tensor:
    """Filter a map ``(n, n, n)`` of `settings.voxel_size`."""
    if settings.low_pass is None and settings.high_pass is None:
        return map_
    n = map_.shape[0]
    k = fourier.radius_3d((n, n, n), settings.voxel_size, map_.device)
    return fourier.irfft3(fourier.rfft3(map_) * band_pass_gain(k, settings), (n, n, n))


def mirrored(map_: torch.Tensor) -> torch.Tensor:
    """A map ``(z, y, x)`` mirrored along x about index n//2.

    In an even box index 0 has no partner and keeps its value.
    """
    turned = map_.flip(-1)
    return turned.roll(1, dims=-1) if map_.shape[-1] % 2 == 0 else turned

"""Tomograms from aligned tilt images.

Tegunov & Cramer 2019, "Tomogram reconstruction": the volume is made of small cubes that overlap by half.
For each, patches are taken from all images at its projected place, with the defocus that it has there;
their Fourier coefficients are weighted by CTF, dose and tilt, and divided by the sum of the weights |CTF|
of all that fall on the same place of Fourier space. What differs here: the weights are gridded at the
places of the data (:mod:`weft.tilts.gridding`), and the data are summed exactly, in real space
(:mod:`weft.tilts.backprojection`), so that no coefficient is ever interpolated in Fourier space.

docs/science/tomograms.md has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import field_validator

from weft.errors import ItemError
from weft.micrographs.deconvolution import DeconvolutionSettings, supposed_snr
from weft.physics.geometry import TiltGeometry
from weft.settings import Settings, setting
from weft.tilts.backprojection import OVERSAMPLING, backproject, filtered_images
from weft.tilts.gridding import TiltContrast, radial_transfer
from weft.tilts.images import TiltImages
from weft.tilts.subvolumes import SubVolumes
from weft.tilts.volumes import MapSummary, SlabWriter, Spectator, VolumeGrid, covered

__all__ = [
    "ReconstructionSettings",
    "TomogramDeconvolutionSettings",
    "deconvolution_gain",
    "magnification",
    "reconstruct",
]

SLAB_VOXELS = 1 << 27  # of whole-image back-projection: half a gigabyte


class ReconstructionSettings(Settings):
    """How tomograms are reconstructed."""

    pixel_size: float = setting(10.0, "Size of the tomogram's voxels.", unit="Å", gt=0.1, le=200.0)
    method: Literal["local", "wbp", "wbp_flipped", "sirt"] = setting(
        "local",
        "local: overlapping cubes, each with its own CTF, dose and tilt weights; wbp: weighted "
        "back-projection of whole images; wbp_flipped: the same with phases flipped by one CTF a tilt; "
        "sirt: back-projection filtered as SIRT would.",
    )
    cube: int = setting(
        64,
        "Side of the cubes that the volume is made of; their central halves are joined.",
        unit="px",
        ge=16,
        le=512,
    )
    ctf_weights: Literal["amplitude", "power", "none"] = setting(
        "power",
        "What weighted data are divided by: the sum of CTF² (corrects its amplitude too, a Wiener filter), "
        "the sum of |CTF| (keeps the CTF's amplitude, as Warp does); none leaves the CTF alone.",
    )
    regularisation: float = setting(
        0.1,
        "Added to the sum of weights, in units of one perfect image: more suppresses what only weak "
        "coefficients know.",
        ge=0.0,
        le=100.0,
    )
    dose_weighting: Literal["warp", "grant", "none"] = setting(
        "warp",
        "Down-weighting of late images: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure of "
        "Grant & Grigorieff 2015 (grant), or none.",
    )
    tilt_weighting: Literal["counts", "cosine", "none"] = setting(
        "counts",
        "Down-weighting of tilted images: by the electrons that came through (the cosine where images are "
        "not counts), by the cosine of the tilt angle as Warp and RELION do, or none.",
    )
    filter_thickness: float = setting(
        0.0,
        "Thickness that the weights against oversampling suppose; 0 is that of the cubes, or of the whole "
        "volume where whole images are back-projected. Less means a longer ramp.",
        unit="Å",
        ge=0.0,
        le=100000.0,
    )
    sirt_iterations: int = setting(
        10, "sirt: as many iterations as the filter shall look like.", ge=1, le=1000
    )
    invert: bool = setting(True, "Make density positive: light particles on a dark ground.")
    covered_only: bool = setting(False, "Keep only voxels that every image shows; others become 0.")
    halves: Literal["none", "frames", "tilts"] = setting(
        "none", "Also write two independent half maps: from odd and even frames, or from every second tilt."
    )
    region: tuple[float, ...] = setting(
        (),
        "Only a part of the volume: first and last place along x, along y and along z, six numbers; empty is "
        "all of it.",
        unit="Å",
    )
    ome_zarr: bool = setting(
        False, "Also write an OME-Zarr copy for napari and Neuroglancer; needs `pip install 'weft[zarr]'`."
    )
    anisotropy: float = setting(
        0.0,
        "Anisotropic magnification to be corrected: how much larger pixels are along the angle below than "
        "across it. Leave it at 0 if the averages have been corrected.",
        unit="%",
        ge=-20.0,
        le=20.0,
    )
    anisotropy_angle: float = setting(
        0.0, "Direction in which pixels are largest, from +x, counter-clockwise.", unit="deg", ge=-180, le=180
    )

    @field_validator("region")
    @classmethod
    def _six_places(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (len(value) != 6 or any(a >= b for a, b in zip(value[::2], value[1::2]))):
            raise ValueError("a region is six numbers: first and last place along x, y and z, in order")
        return value

    @property
    def box(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None:
        """The region as pairs; None for all of the volume."""
        if not self.region:
            return None
        x0, x1, y0, y1, z0, z1 = self.region
        return (x0, x1), (y0, y1), (z0, z1)


class TomogramDeconvolutionSettings(DeconvolutionSettings):
    """How tomograms are deconvolved for viewing."""

    write: bool = setting(True, "Write a deconvolved copy of every tomogram, for viewing and segmentation.")
    falloff: float = setting(
        1.5,
        "How fast the signal-to-noise ratio falls with frequency: a tomogram's voxel has seen fewer "
        "electrons than a micrograph's pixel.",
        ge=0.0,
        le=10.0,
    )


def magnification(percent: float, angle: float) -> torch.Tensor:
    """Where an anisotropic magnification shows things.

    Pixels that are p % larger along `angle` (degrees from +x, counter-clockwise) than across it show at
    centre + A · d what lies at d.

    Returns
    -------
    (2, 2) float64
        A; for x, y.
    """
    a = torch.deg2rad(torch.tensor(float(angle), dtype=torch.float64))
    turn = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
    delta = 0.005 * percent
    scale = torch.tensor([1.0 / (1.0 + delta), 1.0 / (1.0 - delta)], dtype=torch.float64)
    return turn @ torch.diag(scale) @ turn.T


def deconvolution_gain(
    k: torch.Tensor, transfer: torch.Tensor, settings: DeconvolutionSettings
) -> torch.Tensor:
    """The paper's Wiener-like filter t / (t² + 1/SNR) for what keeps `transfer` t of its amplitude."""
    snr = supposed_snr(k, settings)
    return transfer * snr / (transfer * transfer * snr + 1.0)


@dataclass(frozen=True)
class _Task:
    """All that a reconstruction is made from, checked."""

    images: TiltImages
    geometry: TiltGeometry
    contrast: TiltContrast
    grid: VolumeGrid
    settings: ReconstructionSettings
    distortion: torch.Tensor
    deconvolution: DeconvolutionSettings | None

    @property
    def by_cosine(self) -> bool:
        """Whether the tilt angle alone decides on an image's weight."""
        chosen = self.settings.tilt_weighting
        return chosen == "cosine" or (chosen == "counts" and not self.images.in_counts)

    @property
    def density_scale(self) -> float:
        """From a sum over images to density per voxel, with the sign that is asked for."""
        return -self.grid.pixel_size if self.settings.invert else self.grid.pixel_size


def reconstruct(
    images: TiltImages,
    geometry: TiltGeometry,
    contrast: TiltContrast,
    grid: VolumeGrid,
    write: SlabWriter,
    settings: ReconstructionSettings | None = None,
    deconvolution: DeconvolutionSettings | None = None,
    picture_thickness: float = 0.0,
) -> Mapping[str, MapSummary]:
    """Reconstruct a tomogram, or a part of one.

    Half maps are two calls: with images from either half of the frames, or with either half of the tilts
    (``images``, ``geometry`` and ``contrast`` have ``select``; :func:`~weft.tilts.images.half_tilts`).

    Parameters
    ----------
    images : TiltImages
        The device that they are on does the work.
    geometry : TiltGeometry
        Its tilts are those of `images`.
    contrast : TiltContrast
    grid : VolumeGrid
        ``VolumeGrid.of(geometry.volume_size, settings.pixel_size)``, or with a box.
    write : callable
        Takes ("map" or "deconvolved", first section, (z, y, x) float32), in the order of sections.
    settings : ReconstructionSettings, optional
    deconvolution : DeconvolutionSettings, optional
        Where given, and if its `write` is true, a deconvolved copy is made at the same time.
    picture_thickness : float
        Å, how much is averaged in each of the central slices; 0 is one section.

    Returns
    -------
    mapping
        The summary and central slices of "map" and, where made, "deconvolved".
    """
    settings = settings or ReconstructionSettings(pixel_size=grid.pixel_size)
    if not len(images) == len(geometry) == len(contrast.dose):
        raise ItemError(
            f"{len(images)} tilt images, an alignment for {len(geometry)} and exposures for "
            f"{len(contrast.dose)}: they must be those of the same tilts"
        )
    if deconvolution is not None and not deconvolution.write:
        deconvolution = None
    if settings.tilt_weighting == "counts" and settings.method == "local" and images.in_counts:
        contrast = replace(contrast, weight=contrast.weight * images.means / images.means.max())
    distortion = magnification(settings.anisotropy, settings.anisotropy_angle)
    task = _Task(images, geometry, contrast, grid, settings, distortion, deconvolution)
    thickness = max(1, round(picture_thickness / grid.pixel_size))
    spectators: dict[str, Spectator] = {}

    def watched(name: str, first: int, slab: torch.Tensor) -> None:
        if settings.covered_only:
            ny, nx = images.images.shape[1:]
            extent = ((nx - 1) * images.pixel_size[0], (ny - 1) * images.pixel_size[1])
            for z in range(len(slab)):
                seen = covered(geometry, grid, first + z, 1, extent, distortion)
                slab[z] *= seen[0].to(slab.device)
        if name not in spectators:
            spectators[name] = Spectator(grid.shape, thickness)
        spectators[name].see(first, slab)
        write(name, first, slab)

    if settings.method == "local":
        _local(task, watched)
    else:
        _whole(task, watched)
    return {name: spectator.summary() for name, spectator in spectators.items()}


def _local(task: _Task, write: SlabWriter) -> None:
    settings = task.settings
    gains = {}
    work = SubVolumes.of(
        task.images,
        task.geometry,
        task.contrast,
        task.grid,
        cube=settings.cube,
        power={"amplitude": 1, "power": 2, "none": 0}[settings.ctf_weights],
        regularisation=settings.regularisation,
        dose_model=settings.dose_weighting,
        cosine=task.by_cosine,
        thickness=settings.filter_thickness,
        distortion=task.distortion,
        scale=task.density_scale,
    )
    k = work.sections.k.float()
    gains["map"] = torch.ones_like(k)
    if task.deconvolution is not None:
        gains["deconvolved"] = _gain(task, k)
    work.run(gains, write)


def _gain(task: _Task, k: torch.Tensor) -> torch.Tensor:
    """The deconvolution's gain at `k` of any shape."""
    assert task.deconvolution is not None
    flat = k.reshape(-1)
    method, weights = task.settings.method, task.settings.ctf_weights
    if method == "local" and weights == "power":
        transfer = torch.ones_like(flat)  # nothing is left to be undone
    else:
        flipped = method == "wbp_flipped" or (method == "local" and weights == "amplitude")
        transfer = radial_transfer(flat, task.geometry, task.contrast, flipped=flipped)
    return deconvolution_gain(flat, transfer, task.deconvolution).reshape(k.shape)


def _whole(task: _Task, write: SlabWriter) -> None:
    """Weighted back-projection of whole images, in slabs of bounded size."""
    images, geometry, grid, settings = task.images, task.geometry, task.grid, task.settings
    device = images.images.device
    p = torch.tensor(images.pixel_size, dtype=torch.float64)
    spacing = grid.pixel_size

    def transfer(tilt: int, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
        one = torch.tensor([tilt])
        contrast = task.contrast.select(one)
        k = torch.hypot(kx, ky)
        factor = contrast.reliability(k, geometry.select(one), settings.dose_weighting, False)[0]
        if settings.method == "wbp_flipped":
            constant, slope = contrast.phase(kx, ky)
            factor = factor * torch.sign(torch.sin(constant[0] + slope * float(geometry.defocus[tilt])))
        return factor

    make = filtered_images(
        images.images,
        images.pixel_size,
        geometry.matrices.to(device),
        task.distortion,
        settings.filter_thickness or grid.full[0] * spacing,
        0.5 / spacing,
        kind="sirt" if settings.method == "sirt" else "exact",
        iterations=settings.sirt_iterations,
        transfer=transfer,
        gains=None if task.deconvolution is None else lambda k: _gain(task, k),
    )
    # from voxels to pixels of the finer images
    linear = OVERSAMPLING * (task.distortion @ geometry.matrices[:, :2]) / p[:, None]
    step = (linear * spacing).transpose(1, 2)
    centre = (geometry.shift @ task.distortion.T + 0.5 * geometry.image_size) * OVERSAMPLING / p
    nz, ny, nx = grid.shape
    names = ["map"] if task.deconvolution is None else ["map", "deconvolved"]
    sections = max(1, min(nz, SLAB_VOXELS // (ny * nx * len(names))))
    buffer = torch.empty(len(names), sections, ny, nx, device=device)
    for z in range(0, nz, sections):
        slabs = buffer[:, : min(sections, nz - z)].zero_()
        corner = torch.tensor(grid.origin, dtype=torch.float64)
        corner[2] += z * spacing
        first = centre + (linear @ (corner - 0.5 * geometry.volume_size))
        for t in range(len(images)):
            for slab, image in zip(slabs, make(t), strict=True):
                backproject(slab, image[None], first[t : t + 1], step[t : t + 1])
        slabs *= task.density_scale
        for name, slab in zip(names, slabs, strict=True):
            write(name, z, slab)

"""What a search is asked for, and the pieces that its work is cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from weft.errors import ItemError
from weft.matching.angles import angular_step, rotation_grid
from weft.matching.parts import Block, blocks
from weft.matching.weights import Imaging, tile_length
from weft.settings import Settings, setting

__all__ = ["Plan", "SearchSettings", "Template", "mask_reach", "plan_search"]

_MOST_ROTATIONS = 1 << 24  # numbers that a map of single precision holds exactly
_BYTES = 4 * 10  # for each voxel of a part, about
_MORE_BYTES = 4 * 6  # where masks turn, or random phases are compared


class SearchSettings(Settings):
    """How tomograms are searched for templates."""

    angular_step: float = setting(
        0.0,
        "Step between orientations; 0 takes what the particle's diameter and the resolution ask for.",
        unit="deg",
        ge=0.0,
        le=120.0,
    )
    low_pass: float = setting(
        0.0, "Leave out what is finer; 0 goes to the voxels' limit.", unit="Å", ge=0.0, le=1000.0
    )
    high_pass: float = setting(0.0, "Leave out what is coarser; 0 keeps it.", unit="Å", ge=0.0, le=5000.0)
    weighting: Literal["ctf", "wedge", "none"] = setting(
        "ctf",
        "What the template is multiplied by: the local 3D CTF with dose and tilt weights; the missing wedge "
        "alone; nothing.",
    )
    hand: Literal["auto", "1", "0", "-1"] = setting(
        "auto",
        "Which way defocus goes with the tilt: auto takes what the session has found; 0 gives all places the "
        "same defocus.",
    )
    phase_error: float = setting(
        0.25,
        "A part of the tomogram that is given one CTF may be so large that its phase is off by this much at "
        "its corners, at the resolution's limit.",
        unit="rad",
        ge=0.01,
        le=3.0,
    )
    whiten_noise: bool = setting(
        True, "Make the noise that tilts, dose and CTF leave equally strong in all directions."
    )
    whiten: bool = setting(
        True, "Divide by the tomogram's own amplitude spectrum, so that no frequency outvotes the others."
    )
    random_phase: bool = setting(
        False,
        "Subtract what the template scores with random phases: against dense, high-contrast surroundings.",
    )
    mask_turns: bool = setting(
        False,
        "Turn the mask with the template; for masks that are no spheres. Takes about three times as long.",
    )
    region: tuple[float, ...] = setting(
        (),
        "Search only a part: first and last place along x, along y and along z, six numbers; empty searches "
        "all.",
        unit="Å",
    )
    memory: float = setting(4.0, "Memory that the search may take.", unit="GB", ge=0.1, le=1000.0)
    refine: int = setting(
        500,
        "Refine the position and orientation of so many of the best places beyond the grid; 0 refines none.",
        ge=0,
        le=100000,
    )
    seed: int = setting(0, "Of the random phases.", ge=0)


@dataclass(frozen=True)
class Template:
    """What is looked for.

    Attributes
    ----------
    volume : (n, n, n) float32
        Of the tomogram's voxel size; density has the sign that it has in the tomogram.
    mask : (n, n, n) float32
        Between 0 and 1.
    diameter : float
        Of the particle, Å.
    symmetry : str
    """

    volume: torch.Tensor
    mask: torch.Tensor
    diameter: float
    symmetry: str = "C1"


@dataclass(frozen=True)
class Plan:
    """All that is fixed before the first comparison.

    Attributes
    ----------
    steps : list of float
    rotations, owner
        See :class:`SearchResult`.
    region : ((z, y, x), (z, y, x))
        First place and number of places.
    parts : list of Block
    """

    steps: list[float]
    rotations: torch.Tensor
    owner: torch.Tensor
    region: tuple[tuple[int, int, int], tuple[int, int, int]]
    parts: list[Block]
    reach: int


def plan_search(
    shape: tuple[int, int, int],
    voxel_size: float,
    templates: Sequence[Template],
    imaging: Imaging | None,
    settings: SearchSettings,
    threads: int = 1,
) -> Plan:
    """Cut the work into pieces.

    Raises
    ------
    ItemError
        A template that does not fit, masks of another size, a region outside.
    """
    for template in templates:
        n = template.volume.shape[0]
        if template.volume.ndim != 3 or len(set(template.volume.shape)) != 1:
            raise ItemError(f"a template of {tuple(template.volume.shape)} voxels is not a cube")
        if template.mask.shape != template.volume.shape:
            raise ItemError(
                f"the mask has {tuple(template.mask.shape)} voxels and the template "
                f"{tuple(template.volume.shape)}: make both with the same --box"
            )
        if n > min(shape):
            raise ItemError(
                f"the template is {n} voxels wide and the tomogram only {min(shape)} along one axis: use a "
                "smaller box, or a thicker tomogram"
            )
        if n != templates[0].volume.shape[0]:
            raise ItemError("templates that compete must have boxes of one size")
        if not bool((template.mask > 0).any()):
            raise ItemError("the mask is empty")
        shown = template.volume[template.mask > 0.5 * template.mask.max()]
        if float(shown.max() - shown.min()) <= 1e-6 * float(shown.abs().max()):
            raise ItemError("the template is flat under its mask: nothing can be compared with it")
    resolution = max(settings.low_pass, 2.0 * voxel_size)
    steps = [settings.angular_step or angular_step(t.diameter, resolution) for t in templates]
    grids = [rotation_grid(step, t.symmetry) for step, t in zip(steps, templates, strict=True)]
    if sum(map(len, grids)) > _MOST_ROTATIONS:
        raise ItemError(
            f"{sum(map(len, grids))} orientations at a step of {min(steps):.3g}° are more than the map of "
            "angles can count: search at a larger --angular-step, the best places are refined beyond it"
        )
    owner = torch.cat([torch.full((len(grid),), i) for i, grid in enumerate(grids)])
    start, count = [0, 0, 0], list(shape)
    if settings.region:
        if len(settings.region) != 6:
            raise ItemError(f"a region has six numbers, not {len(settings.region)}: x, x, y, y, z, z in Å")
        for axis, (low, high) in enumerate(zip(settings.region[4::-2], settings.region[5::-2], strict=True)):
            first, last = max(0, math.ceil(low / voxel_size)), min(shape[axis] - 1, int(high / voxel_size))
            if last < first:
                raise ItemError(
                    f"the region from {low:g} to {high:g} Å along {'zyx'[axis]} is outside the tomogram of "
                    f"{shape[axis] * voxel_size:g} Å"
                )
            start[axis], count[axis] = first, last - first + 1
    region = ((start[0], start[1], start[2]), (count[0], count[1], count[2]))
    reach = max(mask_reach(t.mask, settings.mask_turns) for t in templates)
    longest = float("inf")
    if imaging is not None and settings.weighting == "ctf" and imaging.geometry.hand != 0.0:
        wavelength = imaging.contrast.optics.wavelength
        limit = 1.0 / resolution
        longest = max(1.0, tile_length(limit, wavelength, settings.phase_error) / voxel_size)
    per_voxel = _BYTES + _MORE_BYTES * (settings.mask_turns or settings.random_phase)
    parts = blocks(region, shape, reach, longest, 0.8e9 * settings.memory / threads, per_voxel)
    return Plan(steps, torch.cat(grids), owner, region, parts, reach)


def mask_reach(mask: torch.Tensor, turns: bool = False) -> int:
    """Voxels from the centre n//2 to the outermost that is not 0: along any axis, or in any direction."""
    c = mask.shape[0] // 2
    away = ((mask > 1e-3 * float(mask.max())).nonzero() - c).abs().double()
    reach = math.ceil(float(away.norm(dim=1).max())) + 1 if turns else int(away.max())
    return max(1, min(reach, c if mask.shape[0] % 2 else c - 1))

"""What a search is made of: settings, templates and masks from files, and how the tomogram came to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.matching.mask import MaskSettings, create_mask
from weft.matching.matcher import Matcher
from weft.matching.plan import SearchSettings, Template
from weft.matching.weights import Imaging
from weft.session.step import inside
from weft.session.tomogram_source import TomogramSource
from weft.settings import setting

__all__ = ["MatchingSettings", "imaging_of", "load_templates", "matcher_of"]

#: Voxel sizes that differ by less than this fraction are one.
_SAME = 0.01


class MatchingSettings(SearchSettings):
    """Which templates tomograms are searched for, and how."""

    template: tuple[str, ...] = setting(
        (), "Maps to look for, made by `weft template create`; several compete for the same places."
    )
    mask: str = setting(
        "",
        "Mask of the templates, made by `weft mask create`; by default a sphere of the particle's diameter.",
    )
    particle_diameter: float = setting(
        0.0, "Of the particle, along its longest side.", unit="Å", ge=0.0, le=10000.0
    )
    symmetry: str = setting("C1", "Of the templates: C1, C2 ..., D2 ..., T, O, I1, I2.")
    binning: int = setting(
        1,
        "Search at voxels so many times as large, with as many times the step, and refine the best places at "
        "full resolution; 2 takes about a fiftieth of the time.",
        ge=1,
        le=8,
    )
    tomogram_mask: str = setting(
        "",
        "Map of the tomogram's size: search only where it is above 0.5. {name} stands for the item's name.",
    )


def load_templates(
    settings: MatchingSettings, root: Path, voxel_size: float, density_positive: bool
) -> list[Template]:
    """Templates with their mask, as the tomogram would show them.

    Raises
    ------
    RequestError
        Nothing is to be looked for, or the diameter is not known.
    ItemError
        A voxel size or a box that does not fit.
    """
    if not settings.template:
        raise RequestError("which structure? Give --template FILE; `weft template create` makes one.")
    if not settings.particle_diameter > 0.0:
        raise RequestError("the particle's diameter is needed: --particle-diameter, in Å.")
    out = []
    for given in settings.template:
        path = inside(root, given)
        volume = _cube(path, voxel_size, "template")
        n = len(volume)
        if settings.mask:
            mask = _cube(inside(root, settings.mask), voxel_size, "mask")
            if not (mask.min() >= -1e-3 and 0.0 < mask.max() <= 1.001):
                raise ItemError(f"{settings.mask}: a mask's values lie between 0 and 1")
        else:
            radius = 0.5 * settings.particle_diameter / voxel_size
            if 2.0 * radius + 2.0 > n:
                raise ItemError(
                    f"{path.name}: a box of {n} voxels ({n * voxel_size:.0f} Å) is too small for a particle "
                    f"of {settings.particle_diameter:g} Å: make the template with a larger --box"
                )
            mask = create_mask(MaskSettings(box=n, radius=radius, soft=1.0)).numpy()
        signed = volume if density_positive else -volume
        out.append(
            Template(
                torch.from_numpy(signed.astype(np.float32)),
                torch.from_numpy(mask.astype(np.float32)).clamp(0.0, 1.0),
                settings.particle_diameter,
                settings.symmetry,
            )
        )
    return out


def _cube(path: Path, voxel_size: float, what: str) -> NDArray[Any]:
    if not path.is_file():
        raise RequestError(f"there is no {what} {path}.")
    volume, info = mrc.read(path)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ItemError(
            f"{path.name}: a {what} is a cube, this has {'×'.join(map(str, volume.shape[::-1]))} voxels"
        )
    if not np.isfinite(volume).all():
        raise ItemError(f"{path.name}: the {what} holds values that are not finite")
    written = (info.voxel_size or (0.0,))[0]
    if written > 0.0 and abs(written / voxel_size - 1.0) > _SAME:
        raise ItemError(
            f"{path.name} has voxels of {written:g} Å and the tomogram of {voxel_size:g} Å: make the {what} "
            f"again with --voxel-size {voxel_size:g}"
        )
    return np.asarray(volume, dtype=np.float32)


def imaging_of(source: TomogramSource, settings: SearchSettings) -> Imaging:
    """What is known about how a tomogram came to be.

    Raises
    ------
    ItemError
        The CTF is to be used and not known.
    """
    if settings.weighting == "ctf" and not source.has_ctf:
        raise ItemError(
            f"{source.name}: its defocus is not known: give it (--defocus), or match with --weighting wedge"
        )
    geometry = source.geometry
    if settings.hand != "auto":
        geometry = replace(geometry, hand=float(settings.hand))
    return Imaging(
        geometry,
        source.contrast,
        source.method,
        source.has_ctf,
        source.dose_weighted,
        source.cosine,
        source.regularisation,
        source.dose_model,
    )


def matcher_of(
    source: TomogramSource, settings: MatchingSettings, root: Path, device: str = "cpu"
) -> Matcher:
    """A tomogram and its templates, read and checked.

    Raises
    ------
    RequestError, ItemError
    """
    templates = load_templates(settings, root, source.voxel_size, source.density_positive)
    volume, _ = mrc.read(source.path, mmap=True)
    return Matcher.of(
        volume,
        source.voxel_size,
        templates,
        imaging_of(source, settings),
        settings,
        origin=source.origin,
        device=device,
    )

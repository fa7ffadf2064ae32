"""Masks for template matching: spheres, ellipsoids, and what a map's density takes up, with soft edges.

Inside a mask is 1. Outside, at the distance d (voxels) from its surface, it is exp(-(d/s)²) with the
softness s, and 0 from where three standard deviations (s/√2 each) are reached, at 2.12 s: the profile by
which pytom-match-pick's masks can be reproduced.

Arrays are [z, y, x]. The centre is the voxel of index n//2, which rotations of templates keep in place.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import model_validator
from scipy import ndimage

from weft.errors import ItemError, SettingsError
from weft.matching.density import find_particle
from weft.settings import Settings, setting

__all__ = ["MaskSettings", "create_mask", "ellipsoid_mask", "map_mask", "soft_edge"]

_CUT_OFF = 3.0 / math.sqrt(2.0)  # of the softness
_NEWTON_STEPS = 12


class MaskSettings(Settings):
    """The shape of a mask."""

    box: int = setting(..., "Side of the mask, that of the template.", unit="px", ge=4, le=2048)
    radius: float | None = setting(
        None, "Radius of the sphere, or of the ellipsoid along x.", unit="px", gt=0.0, le=1024.0
    )
    radius_minor1: float | None = setting(
        None, "Radius of the ellipsoid along y.", unit="px", gt=0.0, le=1024.0
    )
    radius_minor2: float | None = setting(
        None, "Radius of the ellipsoid along z; as along y if it is not given.", unit="px", gt=0.0, le=1024.0
    )
    soft: float = setting(
        0.0,
        "Softness s of the edge, which falls off outside the surface as exp(-(d/s)²) to d = 2.12 s; 0 is a "
        "hard edge.",
        unit="px",
        ge=0.0,
        le=256.0,
    )
    centre: Literal["voxel", "box"] = setting(
        "voxel",
        "voxel: the centre is the voxel of index n//2, about which templates are turned; box: the middle "
        "(n-1)/2 of the box, half a voxel from it where n is even, as pytom-match-pick's masks have it.",
    )
    threshold: float | None = setting(
        None, "With a map: density counts from this value; without, the map's histogram decides."
    )
    extend: float = setting(
        0.0, "With a map: how far the mask reaches beyond its density.", unit="Å", ge=0.0, le=1000.0
    )

    @model_validator(mode="after")
    def _minor_needs_radius(self) -> MaskSettings:
        minor = self.radius_minor1 is not None or self.radius_minor2 is not None
        if minor and (self.radius is None or self.radius_minor1 is None):
            raise ValueError("an ellipsoid needs radius (along x) and radius_minor1 (along y)")
        return self

    @property
    def radii(self) -> tuple[float, float, float]:
        """Along x, y and z, voxels.

        Raises
        ------
        SettingsError
            There is none.
        """
        if self.radius is None:
            raise SettingsError("a mask needs a radius, or a map.")
        y = self.radius_minor1 or self.radius
        return self.radius, y, self.radius_minor2 or y


def create_mask(settings: MaskSettings) -> torch.Tensor:
    """A sphere or an ellipsoid.

    Returns
    -------
    (box, box, box) float32
        Between 0 and 1.

    Raises
    ------
    SettingsError
        No radius, or one that the box does not hold.
    """
    n, radii = settings.box, settings.radii
    largest = max(radii)
    room = (n - 1) / 2 if settings.centre == "box" else (n - 1) // 2
    if largest > room:
        raise SettingsError(
            f"a radius of {largest:g} voxels does not fit into a box of {n}: make the box at least "
            f"{2 * math.ceil(largest) + 1}, or the radius at most {room:g}."
        )
    return ellipsoid_mask(n, radii, settings.soft, (n - 1) / 2 if settings.centre == "box" else float(n // 2))


def ellipsoid_mask(
    box: int, radii: tuple[float, float, float], soft: float, centre: float | None = None
) -> torch.Tensor:
    """An ellipsoid with a soft edge by the true distance to its surface.

    Parameters
    ----------
    box : int
    radii : (x, y, z)
        Voxels.
    soft : float
        Voxels.
    centre : float, optional
        Along every axis; the index n//2 by default.

    Returns
    -------
    (box, box, box) float32
    """
    i = torch.arange(box, dtype=torch.float64) - (box // 2 if centre is None else centre)
    z, y, x = torch.meshgrid(i, i, i, indexing="ij")
    squares = torch.tensor(radii, dtype=torch.float64) ** 2
    level = x**2 / squares[0] + y**2 / squares[1] + z**2 / squares[2]
    mask = (level <= 1.0).float()
    reach = 1.0 + _CUT_OFF * soft / min(radii)
    shell = (level > 1.0) & (level <= reach**2)
    if soft > 0.0 and bool(shell.any()):
        points = torch.stack([x[shell], y[shell], z[shell]], dim=1)
        mask[shell] = soft_edge(_distance_outside(points, squares), soft)
    return mask


def soft_edge(distance: torch.Tensor, soft: float) -> torch.Tensor:
    """What a mask is at a distance ≥ 0 outside its surface, both in voxels; float32."""
    if soft <= 0.0:
        return (distance <= 0.0).float()
    value = torch.exp(-((distance / soft) ** 2))
    return torch.where(distance < _CUT_OFF * soft, value, 0.0).float()


def _distance_outside(points: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Distance of points (n, 3) outside an ellipsoid to its surface.

    The closest point of the surface is y = a² x / (a² + t) for the t at which y lies on it. The equation for
    t is convex and falls: Newton's method from t = 0 never overshoots (Eberly, "Distance from a point to an
    ellipse, an ellipsoid, or a hyperellipsoid", 2013).
    """
    t = points.new_zeros(len(points), 1)
    for _ in range(_NEWTON_STEPS):
        shares = squares * points**2 / (squares + t) ** 2
        value = shares.sum(dim=1, keepdim=True) - 1.0
        slope = -2.0 * (shares / (squares + t)).sum(dim=1, keepdim=True)
        t = t - value / slope
    distance: torch.Tensor = (t * points / (squares + t)).norm(dim=1)
    return distance


def map_mask(map_: torch.Tensor, voxel_size: float, settings: MaskSettings) -> torch.Tensor:
    """What the density of a map takes up, extended, with a soft edge.

    Parameters
    ----------
    map_ : (n, n, n) float
        The template, light on dark, or dark on light where no threshold is given.
    voxel_size : float
        Å.
    settings : MaskSettings
        `threshold`, `extend` and `soft` are used; `box` must be the map's.

    Returns
    -------
    (n, n, n) float32
        Distances are those to the nearest voxel of the density, between voxels' centres.

    Raises
    ------
    ItemError
        The map is not of the box's size.
    SettingsError
        Nothing or everything is density.
    """
    if tuple(map_.shape) != (settings.box,) * 3:
        raise ItemError(
            f"the map has {' × '.join(map(str, map_.shape))} voxels, not {settings.box} in each direction: "
            "make it by `weft template create`, or give its own box"
        )
    if settings.threshold is None:
        inside = find_particle(map_, largest=None).density > 0
    else:
        inside = map_ >= settings.threshold
    if not bool(inside.any()):
        raise SettingsError(
            f"no voxel of the map reaches the threshold {settings.threshold:g}: its maximum is "
            f"{float(map_.max()):g}; give a lower one."
        )
    if bool(inside.all()):
        raise SettingsError("every voxel of the map counts as density: give a higher threshold.")
    away = torch.from_numpy(ndimage.distance_transform_edt((~inside).cpu().numpy())).to(map_.device)
    return soft_edge((away - settings.extend / voxel_size).clamp_min(0.0), settings.soft)

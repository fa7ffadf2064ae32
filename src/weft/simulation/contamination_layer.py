"""A layer on the specimen that scatters strongly: its phase, loss and masks, and shapes to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

__all__ = [
    "CARBON",
    "GOLD",
    "ICE",
    "Contamination",
    "Material",
    "anywhere",
    "outline",
    "polygon",
    "smooth_field",
    "widen",
    "window",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Material:
    """Scattering of a solid.

    Attributes
    ----------
    potential : float
        Scattering factor at zero angle in an Å^3 of it, Å; times wavelength and mass ratio it is the phase
        for each Å of thickness.
    free_path : float
        Å of thickness that leave 37 % of the electrons in the image at 300 kV.
    """

    potential: float
    free_path: float


# potential: density x scattering factor (Peng 1996); free paths: energy-filtered or stopped by the aperture
ICE = Material(0.0945, 3200.0)
CARBON = Material(0.25, 1700.0)
GOLD = Material(0.62, 130.0)


@dataclass
class Contamination:
    """What the contaminants of a field add up to; all arrays ``(y, x)`` of the padded field.

    Attributes
    ----------
    phase : float32
        Scattering factor at zero angle along the beam, Å/Å^2 (multiply by wavelength and mass ratio).
    loss : float32
        Thickness over mean free path: the intensity falls by exp(-loss).
    shadow : float32
        Transmission of what is not in the plane of the specimen (apertures, grid bars).
    ice : float32
        Whether there is ice: 1, or 0 in holes.
    carbon : bool
        Where the support is.
    mask : bool
        Where any of it is visible.
    kinds : dict
        Mask of each kind of contaminant.
    """

    phase: Array
    loss: Array
    shadow: Array
    ice: Array
    carbon: Array
    mask: Array
    kinds: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Contamination:
        """A clean field."""
        zero, one = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        nothing = np.zeros(shape, bool)
        return cls(zero, zero.copy(), one, one.copy(), nothing, nothing.copy())

    def add(self, kind: str, rows: slice, columns: slice, thickness: Array, material: Material) -> None:
        """Put a patch of `thickness` Å of a material on the field; it is visible where it is thick."""
        self.phase[rows, columns] += (thickness * material.potential).astype(np.float32)
        self.loss[rows, columns] += (thickness / material.free_path).astype(np.float32)
        self.mark(kind, rows, columns, thickness > 0.0)

    def mark(self, kind: str, rows: slice, columns: slice, where: Array) -> None:
        """Set the masks."""
        own = self.kinds.setdefault(kind, np.zeros(self.mask.shape, bool))
        own[rows, columns] |= where
        self.mask[rows, columns] |= where


def widen(contamination: Contamination, pixel_size: float) -> None:
    """Masks reach 16 Å over the objects' edges: the first Fresnel fringe belongs to the object."""
    steps = round(16.0 / pixel_size)
    if steps == 0:
        return
    y, x = np.mgrid[-steps : steps + 1, -steps : steps + 1]
    disc = np.hypot(y, x) <= steps + 0.3
    for kind, own in contamination.kinds.items():
        boxes = scipy.ndimage.find_objects(own.astype(np.int8))
        if not boxes or boxes[0] is None:
            continue
        rows, columns = (
            slice(max(0, b.start - steps), min(n, b.stop + steps))
            for b, n in zip(boxes[0], own.shape, strict=True)
        )
        if kind != "shadow":
            part = own[rows, columns]
            inverse = scipy.ndimage.distance_transform_edt(~part) <= steps + 0.3 if steps > 3 else None
            own[rows, columns] = scipy.ndimage.binary_dilation(part, disc) if inverse is None else inverse
        contamination.mask |= own


def smooth_field(shape: tuple[int, int], length: float, rng: np.random.Generator) -> Array:
    """A random field of variance about one whose details are about `length` px wide, float32."""
    coarse = max(1.0, length / 3.0)
    small = tuple(max(4, math.ceil(n / coarse) + 4) for n in shape)
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal(small).astype(np.float32), 1.2)
    noise *= 2.0 * 1.2 * math.sqrt(math.pi)
    if coarse == 1.0:
        return np.asarray(noise[: shape[0], : shape[1]])
    y = np.arange(shape[0], dtype=np.float32)[:, None] / coarse + 1.0
    x = np.arange(shape[1], dtype=np.float32)[None, :] / coarse + 1.0
    # bilinear interpolation, one axis after the other
    row, column = y[:, 0].astype(np.int64), x[0].astype(np.int64)
    part = (y[:, 0] - row)[:, None].astype(np.float32)
    rows = noise[row] * (1.0 - part) + noise[row + 1] * part
    part = (x[0] - column)[None, :].astype(np.float32)
    return np.asarray(rows[:, column] * (1.0 - part) + rows[:, column + 1] * part)


def window(shape: tuple[int, int], centre: Array, reach: float) -> tuple[slice, slice, Array, Array] | None:
    """The part of a field within `reach` px of a place (y, x), with y and x from the place."""
    low = np.maximum(0, np.floor(centre - reach)).astype(int)
    high = np.minimum(shape, np.ceil(centre + reach) + 1).astype(int)
    if (high <= low).any():
        return None
    y = (np.arange(low[0], high[0]) - centre[0]).astype(np.float32)[:, None]
    x = (np.arange(low[1], high[1]) - centre[1]).astype(np.float32)[None, :]
    return slice(low[0], high[0]), slice(low[1], high[1]), y, x


def anywhere(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    return np.asarray(rng.uniform(0.0, 1.0, 2) * np.array(shape))


def outline(y: Array, x: Array, radius: float, harmonics: Array, phases: Array) -> Array:
    """Distance inside of a wavy circle, px; negative outside."""
    azimuth = np.arctan2(y, x)
    wavy = np.ones_like(azimuth)
    for order, (height, phase) in enumerate(zip(harmonics, phases, strict=True), start=2):
        wavy += np.float32(height) * np.cos(order * azimuth + np.float32(phase))
    result: Array = radius * wavy - np.hypot(y, x)
    return result


def polygon(y: Array, x: Array, corners: int, radius: float, rng: np.random.Generator, even: bool) -> Array:
    """Distance inside of a convex polygon, px, negative outside."""
    if even:
        normals = 2.0 * math.pi * np.arange(corners) / corners + rng.uniform(0.0, 2.0 * math.pi)
        reach = radius * rng.uniform(0.85, 1.1, corners)
    else:
        normals = np.sort(rng.uniform(0.0, 2.0 * math.pi, corners))
        normals = 0.6 * normals + 0.4 * 2.0 * math.pi * np.arange(corners) / corners
        reach = radius * rng.uniform(0.5, 1.1, corners)
    inside: Array | None = None
    for angle, distance in zip(normals, reach, strict=True):
        side = np.float32(distance) - (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)))
        inside = side if inside is None else np.minimum(inside, side)
    assert inside is not None
    return inside

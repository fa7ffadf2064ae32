"""What a picking network learns from: images on its grid, and what each of their pixels is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.physics import fourier
from weft.picking.network import ARTEFACT, BACKGROUND, PARTICLE

__all__ = ["Example", "Targets", "label_radius", "normalised", "on_grid", "targets"]

#: Values beyond so many robust standard deviations are all the same: very dark.
_CLIP = 10.0
#: Smallest disc of a particle, px: less would be lost among pixels.
_SMALLEST_DISC = 2.5
#: What counts less: the ring between a particle's disc and its outline, where either answer will do.
_RING_WEIGHT = 0.3


@dataclass(frozen=True, eq=False)
class Example:
    """One micrograph whose particles are known.

    Attributes
    ----------
    image : (y, x) array
        On the network's grid. Of a simulation the intensity relative to the illumination, less 1, without
        shot noise; otherwise what :func:`normalised` makes of a micrograph.
    size : (float, float)
        Of the field, x and y, Å: pixels are these divided by the shape.
    xy : (n, 2) array
        Centres of particles, Å from the centre of the first pixel.
    diameter : float
        Å, of the particles.
    artefact : (y, x) bool array
        Where something else than ice and particles is.
    unknown : (m, 3) array
        Discs that teach nothing: x, y and radius, Å.
    exposure : float
        e/Å² of a simulation, whose shot noise is drawn anew each time; infinite for an image that has its
        noise.
    name : str
    """

    image: NDArray[np.floating]
    size: tuple[float, float]
    xy: NDArray[np.floating]
    diameter: float
    artefact: NDArray[np.bool_]
    unknown: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 3)))
    exposure: float = math.inf
    name: str = ""


@dataclass(frozen=True)
class Targets:
    """Classes of pixels, and how much each counts.

    Attributes
    ----------
    classes : (y, x) uint8
    weight : (y, x) float16
    """

    classes: torch.Tensor
    weight: torch.Tensor


def on_grid(image: torch.Tensor, pixel_size: float, grid: float) -> torch.Tensor:
    """A micrograph on the network's grid: cut in Fourier space to whole pixels nearest to `grid` Å.

    Raises
    ------
    ItemError
        When it holds values that are not finite, or is too small to hold a particle.
    """
    if not bool(torch.isfinite(image).all()):
        raise ItemError("the micrograph holds values that are not finite; repair it first")
    ny, nx = (max(1, round(n * pixel_size / grid)) for n in image.shape)
    if min(ny, nx) < 16:
        raise ItemError(
            f"the micrograph of {image.shape[1]}×{image.shape[0]} px at {pixel_size:g} Å is smaller than "
            f"{16 * grid:g} Å; check its pixel size"
        )
    if ny > image.shape[0] or nx > image.shape[1]:
        raise ItemError(
            f"pixels of {pixel_size:g} Å are coarser than the {grid:g} Å that the network knows; give "
            "micrographs with smaller ones"
        )
    return fourier.resize(image.float(), (ny, nx))


def normalised(image: torch.Tensor) -> torch.Tensor:
    """A micrograph ``(..., y, x)`` with the median 0 and a robust standard deviation of 1, its extremes cut
    off.

    The median and its absolute deviations do not follow what covers less than half of the field.

    Raises
    ------
    ItemError
        When it is the same everywhere.
    """
    flat = image.flatten(-2)
    median = flat.median(-1).values[..., None, None]
    deviation = 1.4826 * (flat - median.flatten(-2)).abs().median(-1).values[..., None, None]
    if bool((deviation <= 0.0).any()):
        raise ItemError("the micrograph is the same in half of its pixels or more: nothing can be seen in it")
    return ((image - median) / deviation).clamp(-_CLIP, _CLIP)


def label_radius(diameter: float, pixel_size: float, scale: float) -> float:
    """Of the disc that stands for a particle, Å."""
    return max(_SMALLEST_DISC * pixel_size, 0.5 * scale * diameter)


def targets(example: Example, label_scale: float) -> Targets:
    """What the pixels of an example are.

    Parameters
    ----------
    label_scale : float
        Radius of a particle's disc relative to the particle: less than 1, so that neighbours stay apart.
    """
    ny, nx = example.image.shape
    x = torch.arange(nx, dtype=torch.float64) * (example.size[0] / nx)
    y = torch.arange(ny, dtype=torch.float64) * (example.size[1] / ny)
    step = example.size[0] / nx
    classes = torch.full((ny, nx), BACKGROUND, dtype=torch.uint8)
    weight = torch.ones(ny, nx, dtype=torch.float16)
    artefact = torch.from_numpy(np.ascontiguousarray(example.artefact))
    inner = label_radius(example.diameter, step, label_scale)
    outer = max(inner, 0.5 * example.diameter)
    near = torch.full((ny, nx), math.inf, dtype=torch.float64)
    for px, py in np.asarray(example.xy, dtype=np.float64).reshape(-1, 2).tolist():
        rows, columns = _around(py, outer, y), _around(px, outer, x)
        distance = torch.hypot(y[rows, None] - py, x[None, columns] - px)
        near[rows, columns] = torch.minimum(near[rows, columns], distance)
    weight[(near <= outer) & (near > inner)] = _RING_WEIGHT
    classes[near <= inner] = PARTICLE
    classes[artefact] = ARTEFACT
    weight[artefact] = 1.0
    for px, py, radius in np.asarray(example.unknown, dtype=np.float64).reshape(-1, 3).tolist():
        rows, columns = _around(py, radius, y), _around(px, radius, x)
        inside = torch.hypot(y[rows, None] - py, x[None, columns] - px) <= radius
        weight[rows, columns] = torch.where(inside, 0.0, weight[rows, columns])
    return Targets(classes, weight)


def _around(centre: float, radius: float, places: torch.Tensor) -> slice:
    step = float(places[1])
    first = max(0, math.floor((centre - radius) / step))
    return slice(first, max(first, min(len(places), math.ceil((centre + radius) / step) + 1)))

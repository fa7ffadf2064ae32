"""Made-up macromolecules of every size and shape, for teaching a network what a particle may look like.

A body is a field over a jittered lattice of residue-sized cells; the cells where the field is highest are
taken until the mass is reached, so a structure has exactly its mass and the density of folded protein,
1.35 g/cm^3 (0.81 Da/Å^3), whatever its outline.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from weft.errors import SettingsError
from weft.simulation.phantom_shapes import BUILDERS, CELL, Kind, smooth_waves
from weft.simulation.specimen import Specimen

__all__ = ["KINDS", "Kind", "coarsened", "fragment", "mass_of", "mean_diameter", "random_structure"]

Array = NDArray[Any]

KINDS: tuple[Kind, ...] = get_args(Kind)

_DALTON_PER_VOLUME = 0.81  # folded protein of 1.35 g/cm^3, Da in an Å^3
_STRENGTH = 23.4  # Å: the 7.8 heavy atoms of a residue with a hydrogen on each
_BLUR = 100.0
_SMALLEST, _LARGEST = 52.0, 355.0  # Å, mean diameter
_LIGHTEST, _HEAVIEST = 60e3, 4e6  # Da

_LEAST_MASS: dict[Kind, float] = {
    "globule": 60e3,
    "lobes": 60e3,
    "domains": 80e3,
    "rod": 60e3,
    "cyclic": 70e3,
    "dihedral": 80e3,
    "cubic": 200e3,
    "cage": 200e3,
    "ring": 120e3,
    "arms": 100e3,
    "membrane": 100e3,
    "ribosome": 600e3,
}
_MOST_MASS: dict[Kind, float] = {"rod": 1.5e6, "arms": 1e6, "membrane": 1e6, "ring": 2.5e6}


def random_structure(
    rng: np.random.Generator, kind: Kind | None = None, mass: float | None = None
) -> Specimen:
    """A made-up macromolecule.

    Parameters
    ----------
    rng : numpy Generator
    kind : str, optional
        One of :data:`KINDS`; by default any.
    mass : float, optional
        Da. By default log-uniform from what suits the kind, at least 60 kDa, to 4 MDa.

    Returns
    -------
    Specimen
        Residue-sized points about their centre of scattering; the mean diameter is 52 to 355 Å unless a
        mass was asked for that does not allow it.

    Raises
    ------
    SettingsError
        For a kind that is none of these.
    """
    if kind is not None and kind not in KINDS:
        raise SettingsError(f"{kind!r} is no kind of phantom: it is one of {', '.join(KINDS)}")
    for _ in range(20):
        # the mass first: light and heavy structures are equally many whatever their kind
        wanted = mass or math.exp(rng.uniform(math.log(_LIGHTEST), math.log(_HEAVIEST)))
        if kind is None:
            fits = [k for k in KINDS if _LEAST_MASS[k] <= wanted <= _MOST_MASS.get(k, _HEAVIEST)]
            of_kind: Kind = fits[int(rng.integers(len(fits)))] if fits else "globule"
        else:
            of_kind = kind
            if mass is None:
                low, high = math.log(_LEAST_MASS[kind]), math.log(_MOST_MASS.get(kind, _HEAVIEST))
                wanted = math.exp(rng.uniform(low, high))
        cells = max(8, round(wanted / _DALTON_PER_VOLUME / CELL))
        points, contrast = BUILDERS[of_kind](cells, rng)
        specimen = _specimen(points, contrast)
        if mass is not None or _SMALLEST <= mean_diameter(specimen) <= _LARGEST:
            break
    return specimen


def mean_diameter(specimen: Specimen) -> float:
    """Mean caliper diameter, Å: the extent along a direction, averaged over all directions.

    The extent leaves 0.2 % of the points out at either end, so that a loose tail counts little, and adds the
    5 Å of a residue. A sphere has its diameter; an ellipsoid about the mean of its axes.
    """
    i = np.arange(48) + 0.5
    z = 1.0 - i / 48.0
    azimuth = math.pi * (1.0 + math.sqrt(5.0)) * i
    rho = np.sqrt(1.0 - z * z)
    directions = np.stack([rho * np.cos(azimuth), rho * np.sin(azimuth), z])
    step = max(1, len(specimen.points) // 6000)
    along = np.einsum("ni,ij->nj", specimen.points[::step].astype(np.float32), directions.astype(np.float32))
    along = np.sort(along, axis=0)
    tail = int(0.002 * len(along))
    return float((along[len(along) - 1 - tail] - along[tail]).mean()) + 5.0


def mass_of(specimen: Specimen) -> float:
    """Da of protein that would displace and scatter as much; nucleic acid counts 1.4 times."""
    return float(len(specimen.points) * specimen.volume * _DALTON_PER_VOLUME)


def coarsened(specimen: Specimen, spacing: float) -> Specimen:
    """The same specimen with the points of each cube of `spacing` Å replaced by one at their centre.

    Strength, displaced volume and centre are conserved. What changes is detail finer than the spacing.
    """
    cell = np.floor(specimen.points / spacing).astype(np.int64)
    cell -= cell.min(axis=0)
    size = cell.max(axis=0) + 1
    _, index = np.unique((cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2], return_inverse=True)
    index = index.ravel()
    n = int(index.max()) + 1
    if n > 0.8 * len(specimen.points):
        return specimen
    strengths = np.bincount(index, specimen.strengths, n)
    weights = np.maximum(strengths, 1e-9)
    points = np.stack(
        [np.bincount(index, specimen.strengths * specimen.points[:, a], n) / weights for a in range(3)],
        axis=1,
    )
    volume = specimen.volume * len(specimen.points) / n
    return Specimen(points, strengths, volume=volume, blur=specimen.blur)


def fragment(specimen: Specimen, part: float, rng: np.random.Generator) -> Specimen:
    """What is left of a broken particle: `part` of its points, on one side of a curved cut, loosened."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    radius = specimen.radius
    along = specimen.points @ direction + 0.25 * radius * smooth_waves(rng, 6, (radius, 3.0 * radius))(
        specimen.points
    )
    keep = np.argsort(along)[: max(4, round(part * len(along)))]
    points = specimen.points[keep]
    points = points + rng.normal(scale=rng.uniform(0.0, 0.08) * radius, size=points.shape)
    points = points - points.mean(axis=0)
    return Specimen(points, specimen.strengths[keep], volume=specimen.volume, blur=specimen.blur)


def _specimen(points: Array, contrast: Array) -> Specimen:
    """Points whose contrast against ice is `contrast` times a protein's, with helix-sized unevenness."""
    # the solvent that particle_amplitude subtracts is in proportion to the strength: contrasts then are too
    strengths = _STRENGTH * contrast
    points = points - np.average(points, axis=0, weights=strengths)
    volume = CELL * float(contrast.mean())
    return Specimen(points, strengths, volume=volume, blur=_BLUR)

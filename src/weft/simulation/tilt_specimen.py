"""What is in the ice of a simulated tilt series, and where: particles, membranes, gold, the ice itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import SettingsError
from weft.simulation.membrane import HALF_THICKNESS, Membrane, random_sheet, random_vesicle
from weft.simulation.specimen import (
    Specimen,
    load_conformations,
    load_specimen,
    phantom,
    projection_matrix,
    random_orientations,
)
from weft.simulation.tilt_settings import TiltSimulationSettings

__all__ = ["TiltSpecimen", "random_specimen"]

Array = NDArray[Any]

_TRIES = 2000  # for one particle, bead or membrane before the ice counts as full
_SMALLEST_VESICLE = 150.0  # Å


@dataclass(frozen=True)
class TiltSpecimen:
    """Everything but the ice; lengths in Å from the specimen's centre, before any tilt.

    Attributes
    ----------
    particle : Specimen
    other : Specimen or None
        The other conformation, in the coordinates of the first.
    classes : ``(n,)`` int array
        Of each particle: 0, or 1 for the other conformation.
    particles : ``(n, 3)`` array
        Centres.
    eulers : ``(n, 3)`` array
        rot, tilt, psi, degrees; M = Rz(psi) Ry(tilt) Rz(rot) takes the particle to the specimen.
    beads : ``(n, 3)`` array
        Centres.
    membranes : tuple of Membrane
    points : ``(n, 3)`` array
        All points of particles and membranes.
    strengths : ``(n,)`` float32 array
        Their scattering factors at zero angle, Å.
    """

    particle: Specimen
    other: Specimen | None
    classes: Array
    particles: Array
    eulers: Array
    beads: Array
    membranes: tuple[Membrane, ...]
    points: Array
    strengths: Array

    @property
    def radius(self) -> float:
        """Å, of the larger particle."""
        return _radius(self.particle, self.other)


def random_specimen(settings: TiltSimulationSettings, seed: np.random.SeedSequence) -> TiltSpecimen:
    """Fill the ice; each kind draws from its own child of the seed.

    Raises
    ------
    SettingsError
        What was asked for has no room, or the particle cannot be loaded.
    FormatError
        The particle's file is no structure.
    """
    for_beads, for_membranes, for_particles, for_lipids, for_classes = (
        np.random.default_rng(c) for c in seed.spawn(5)
    )
    half = 0.5 * settings.field * min(settings.width, settings.height) * settings.pixel_size
    half_ice = 0.5 * settings.thickness
    particle, other = _kinds(settings)
    beads = _beads(settings, half, for_beads)
    membranes = _membranes(settings, half, for_membranes)
    centres = _particles(settings, half, _radius(particle, other), beads, membranes, for_particles)
    eulers = random_orientations(len(centres), for_particles)
    classes = np.zeros(len(centres), int)
    if other is not None:
        classes[for_classes.permutation(len(centres))[: round(settings.other_share * len(centres))]] = 1
    kinds = [other if of_other and other is not None else particle for of_other in classes]
    parts = [
        kind.points @ projection_matrix(*e).T + c for kind, e, c in zip(kinds, eulers, centres, strict=True)
    ]
    strengths = [kind.strengths for kind in kinds]
    residue = float(phantom("globule").strengths[0])
    for membrane in membranes:
        lipids, worth = membrane.points(half_ice, for_lipids)
        parts.append(lipids)
        strengths.append(worth * residue)
    points = np.concatenate(parts) if parts else np.empty((0, 3))
    weights = np.concatenate(strengths) if strengths else np.empty(0)
    strength = np.asarray(weights, np.float32)
    return TiltSpecimen(particle, other, classes, centres, eulers, beads, membranes, points, strength)


def _kinds(settings: TiltSimulationSettings) -> tuple[Specimen, Specimen | None]:
    """The particle, and its other conformation if there is one."""
    if settings.other_specimen:
        return load_conformations(settings.specimen, settings.other_specimen)
    return load_specimen(settings.specimen), None


def _radius(particle: Specimen, other: Specimen | None) -> float:
    return particle.radius if other is None else max(particle.radius, other.radius)


def _filled(number: int, what: str, draw: Callable[[], Array], fits: Callable[[Array, Array], bool]) -> Array:
    """`number` places that fit with each other, ``(number, 3)``."""
    places = np.empty((0, 3))
    for _ in range(number):
        for _ in range(_TRIES):
            candidate = draw()
            if fits(candidate, places):
                places = np.concatenate([places, candidate[None]])
                break
        else:
            raise SettingsError(
                f"only {len(places)} of {number} {what} fit into the ice; ask for fewer, for thicker ice or "
                "for a larger field"
            )
    return places


def _beads(settings: TiltSimulationSettings, half: float, rng: np.random.Generator) -> Array:
    radius = 0.5 * settings.bead_diameter
    if settings.beads and settings.thickness < 2.0 * radius:
        raise SettingsError(
            f"beads of {2.0 * radius:g} Å do not fit into {settings.thickness:g} Å of ice; take smaller ones"
        )
    surface = 0.5 * settings.thickness - radius
    count = 0

    def draw() -> Array:
        side = -1.0 if count % 2 == 0 else 1.0
        return np.array([*rng.uniform(-half, half, 2), side * surface])

    def fits(candidate: Array, others: Array) -> bool:
        nonlocal count
        # apart in the untilted image, too
        clear = ((others[:, :2] - candidate[:2]) ** 2).sum(axis=1) > (3.0 * radius) ** 2
        count += int(clear.all())
        return bool(clear.all())

    return _filled(settings.beads, "beads", draw, fits)


def _membranes(
    settings: TiltSimulationSettings, half: float, rng: np.random.Generator
) -> tuple[Membrane, ...]:
    half_ice = 0.5 * settings.thickness
    needed = _SMALLEST_VESICLE + HALF_THICKNESS
    if settings.vesicles and (half_ice <= needed or half <= needed):
        raise SettingsError(
            f"vesicles need ice and a field of more than {2.0 * needed:g} Å; "
            f"they are {settings.thickness:g} and {2.0 * half:g} Å"
        )
    found: list[Membrane] = [random_sheet(half, half_ice, rng) for _ in range(settings.sheets)]
    vesicles: list[Membrane] = []

    def draw() -> Array:
        vesicles.append(random_vesicle(half, half_ice, rng))
        return vesicles[-1].centre

    def fits(candidate: Array, others: Array) -> bool:
        new = vesicles[-1]
        clear = all(
            np.linalg.norm(candidate - v.centre) > new.radius + v.radius + 2.0 * HALF_THICKNESS
            for v in vesicles[:-1]
        )
        if not clear:
            vesicles.pop()
        return clear

    _filled(settings.vesicles, "vesicles", draw, fits)
    return tuple(found + vesicles)


def _particles(
    settings: TiltSimulationSettings,
    half: float,
    radius: float,
    beads: Array,
    membranes: tuple[Membrane, ...],
    rng: np.random.Generator,
) -> Array:
    room = 0.5 * settings.thickness - radius
    if settings.particles and room < 0.0:
        raise SettingsError(
            f"particles of {2.0 * radius:.0f} Å do not fit into {settings.thickness:g} Å of ice; "
            "make it thicker"
        )
    from_bead = radius + 0.5 * settings.bead_diameter

    def draw() -> Array:
        return np.array([*rng.uniform(-half, half, 2), rng.uniform(-room, room)])

    def fits(candidate: Array, others: Array) -> bool:
        return (
            bool((((others - candidate) ** 2).sum(axis=1) > (2.0 * radius) ** 2).all())
            and bool((((beads - candidate) ** 2).sum(axis=1) > from_bead**2).all())
            and all(float(m.distance(candidate[None])[0]) > radius + HALF_THICKNESS for m in membranes)
        )

    return _filled(settings.particles, "particles", draw, fits)

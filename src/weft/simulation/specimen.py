"""What is in the ice: particles as points that scatter, from a structure file or made up.

A point's strength is its electron scattering factor at zero angle, in Å (carbon 2.5).  Built-in
phantoms are made of helices of residue-sized points, so that they have protein-like detail from the
outline down to the pitch of a helix, and need no download:

=========== ================================================================================
``barrel``  28 subunits in four rings of seven, D7, 110 x 150 Å (the 20S proteasome's outline)
``shell``   24 subunits on a hollow sphere of 125 Å, octahedral rotations (apoferritin's outline)
``globule`` one lobed body of about 150 Å without symmetry
``clamp``   1.3 MDa: a lobed body of 9,000 residues and an arm of 3,000 beside it, 200 Å
=========== ================================================================================

The clamp has two other conformations, in its own coordinates: ``clamp-open``, whose arm is turned by 40°
about a hinge in the body, and ``clamp-core``, which has no arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from weft.errors import FormatError, SettingsError

__all__ = [
    "CONFORMATIONS",
    "PHANTOMS",
    "Specimen",
    "load_conformations",
    "load_specimen",
    "phantom",
    "projection_matrix",
    "random_orientations",
]

Array = NDArray[Any]

PHANTOMS = ("barrel", "shell", "globule", "clamp")
#: Of the clamp, in its coordinates.
CONFORMATIONS = ("clamp-open", "clamp-core")

# a residue: 7.8 heavy atoms of 2.5 Å with a hydrogen of 0.53 Å on each; 135 Å^3 in a folded protein
_RESIDUE_STRENGTH = 7.8 * 3.0
_RESIDUE_VOLUME = 135.0
_ATOM_VOLUME = 17.3  # Å^3 of a heavy atom with its hydrogens


@dataclass(frozen=True)
class Specimen:
    """Points that scatter.

    Attributes
    ----------
    points : ``(n, 3)`` array
        x, y, z in Å from the particle's centre.
    strengths : ``(n,)`` array
        Scattering factor at zero angle, Å.
    volume : float
        Å^3 of solvent that one point displaces.
    blur : float
        B-factor in Å^2 that stands for a point's own size and disorder.
    """

    points: Array
    strengths: Array
    volume: float
    blur: float

    @cached_property
    def radius(self) -> float:
        """Å, from the centre to the outermost point, and no less than an atom's 2 Å."""
        return max(2.0, float(np.sqrt((self.points**2).sum(axis=1)).max()))


def load_specimen(source: str) -> Specimen:
    """A built-in phantom by its name, or the atoms of a PDB or mmCIF file.

    Hydrogens may be missing from the file; every heavy atom then carries the strength of one.  The first
    model is used, water and alternative conformations other than the first are left out.

    Raises
    ------
    SettingsError
        Neither a phantom's name nor a file.
    FormatError
        A file that is not a structure, or has no atoms.
    """
    found, centre = _loaded(source)
    return replace(found, points=found.points - centre)


def load_conformations(first: str, other: str) -> tuple[Specimen, Specimen]:
    """Two specimens as :func:`load_specimen` takes them, about the centre of the first.

    They have to be of one kind, since all points of a simulation have one form factor.

    Raises
    ------
    SettingsError
        A phantom and a file, or a file with hydrogens and one without; and as :func:`load_specimen`.
    FormatError
        As :func:`load_specimen`.
    """
    (one, centre), (two, _) = _loaded(first), _loaded(other)
    if (one.volume, one.blur) != (two.volume, two.blur):
        raise SettingsError(
            f"specimens {first!r} and {other!r} cannot be simulated together; give two phantoms or two "
            "files, both with or both without hydrogens"
        )
    return replace(one, points=one.points - centre), replace(two, points=two.points - centre)


def _loaded(source: str) -> tuple[Specimen, Array]:
    """A specimen in the coordinates of its source, and its centre in them."""
    if source in PHANTOMS or source in CONFORMATIONS:
        return phantom(source), np.zeros(3)
    path = Path(source)
    if not path.is_file():
        names = ", ".join((*PHANTOMS, *CONFORMATIONS))
        raise SettingsError(
            f"specimen {source!r} is neither a structure file that exists nor one of the phantoms {names}"
        )
    try:
        structure = gemmi.read_structure(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise FormatError(path, f"cannot be read as PDB or mmCIF ({error}); give a structure file") from error
    if len(structure) == 0:
        raise FormatError(path, "has no model; give a PDB or mmCIF file with atoms")
    structure.setup_entities()
    places: list[tuple[float, float, float]] = []
    strengths: list[float] = []
    hydrogens = False
    for atom in _scatterers(structure[0]):
        if atom.element.is_hydrogen:
            hydrogens = True
        places.append((atom.pos.x, atom.pos.y, atom.pos.z))
        strengths.append(_zero_angle_strength(atom.element) * atom.occ)
    if not places:
        raise FormatError(path, "has no atoms; give a PDB or mmCIF file with atoms")
    points = np.asarray(places)
    weights = np.asarray(strengths)
    volume = _ATOM_VOLUME
    if hydrogens:
        # hydrogens are points of their own: one volume is shared by a heavy atom and its hydrogen
        volume = 0.5 * _ATOM_VOLUME
    else:
        weights = weights + _zero_angle_strength(gemmi.Element("H"))
    centre: Array = np.average(places, axis=0, weights=weights)
    return Specimen(points, weights, volume=volume, blur=20.0), centre


@lru_cache
def phantom(name: str) -> Specimen:
    """One of :data:`PHANTOMS` or :data:`CONFORMATIONS`; always the same points for the same name."""
    if name == "barrel":
        points = _barrel(np.random.default_rng(7))
    elif name == "shell":
        points = _shell(np.random.default_rng(24))
    elif name == "globule":
        points = _globule(np.random.default_rng(1))
    elif name == "clamp" or name in CONFORMATIONS:
        points = _clamp(name)
    else:
        names = ", ".join((*PHANTOMS, *CONFORMATIONS))
        raise SettingsError(f"no phantom is called {name!r}: it is one of {names}")
    if name not in CONFORMATIONS:
        points = points - points.mean(axis=0)
    return Specimen(points, np.full(len(points), _RESIDUE_STRENGTH), volume=_RESIDUE_VOLUME, blur=100.0)


def random_orientations(n: int, rng: np.random.Generator) -> Array:
    """Euler angles rot, tilt, psi in degrees, ``(n, 3)``, evenly spread over all orientations."""
    rot = rng.uniform(0.0, 360.0, n)
    tilt = np.degrees(np.arccos(rng.uniform(-1.0, 1.0, n)))
    psi = rng.uniform(0.0, 360.0, n)
    return np.stack([rot, tilt, psi], axis=1)


def projection_matrix(rot: float, tilt: float, psi: float) -> Array:
    """The matrix that takes map coordinates to the projection's, Rz(psi) Ry(tilt) Rz(rot), ``(3, 3)``.

    Angles in degrees; the rotations are those of the Xmipp form, which turn the coordinate axes.
    """

    def about_z(angle: float) -> Array:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    about_y = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    result: Array = about_z(psi) @ about_y @ about_z(rot)
    return result


def _scatterers(model: gemmi.Model) -> list[gemmi.Atom]:
    """The atoms that scatter: no water, and of alternative conformations the first."""
    atoms = []
    for chain in model:
        for residue in chain:
            if residue.is_water():
                continue
            atoms += [a for a in residue if a.altloc in ("\0", "A") or a.altloc == _first_altloc(residue, a)]
    return atoms


def _first_altloc(residue: gemmi.Residue, atom: gemmi.Atom) -> str:
    return min(a.altloc for a in residue if a.name == atom.name)


def _zero_angle_strength(element: gemmi.Element) -> float:
    """Electron scattering factor at zero angle, Å (Peng 1996, by gemmi)."""
    coefficients = element.c4322
    if coefficients is None:
        return 2.5  # an element that the table lacks scatters as carbon
    return float(coefficients.calculate_sf(0.0))


def _helix(n: int, rng: np.random.Generator) -> Array:
    """An alpha helix of `n` residues along z, centred: backbone radius 2.3 Å, side chains further out."""
    i = np.arange(n)
    phase = np.radians(100.0) * i + rng.uniform(0.0, 2.0 * math.pi)
    radius = 2.3 + rng.uniform(0.0, 2.5, n)  # the residue's centre of mass, side chain included
    return np.stack([radius * np.cos(phase), radius * np.sin(phase), 1.5 * (i - 0.5 * (n - 1))], axis=1)


def _random_rotation(rng: np.random.Generator) -> Array:
    return projection_matrix(*random_orientations(1, rng)[0])


def _fill(n: int, inside: Any, box: Array, rng: np.random.Generator, axis: Array | None = None) -> Array:
    """`n` residues in helices where `inside(points)` is true, different helices about 3.4 Å or more apart.

    With `axis`, helices lie within about 20 degrees of it; without, in every direction.
    """
    points: Array = np.empty((0, 3))
    spacing, misses = 3.4, 0
    while len(points) < n:
        turn = _random_rotation(rng)
        if axis is not None:
            tilted = np.array([0.0, 0.0, 1.0]) + rng.normal(scale=0.2, size=3)
            turn = _rotation_between(tilted, axis)
        candidate = _helix(int(rng.integers(9, 24)), rng) @ turn.T + rng.uniform(-1.0, 1.0, 3) * box
        keep = candidate[inside(candidate)]
        if len(points) and len(keep):
            keep = keep[cdist(keep, points).min(axis=1) > spacing]
        # a remnant of a helix is a loop; single residues are not worth a try until it gets crowded
        if len(keep) < 4 and misses < 200:
            misses += 1
            continue
        misses = 0 if len(keep) >= 4 else misses
        if not len(keep):
            spacing *= 0.999
        points = np.concatenate([points, keep])
    return points[:n]


def _rotation_between(first: Array, second: Array) -> Array:
    """A rotation that takes the direction of `first` to that of `second`."""
    a, b = first / np.linalg.norm(first), second / np.linalg.norm(second)
    v, c = np.cross(a, b), float(a @ b)
    cross = np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
    result: Array = np.eye(3) + cross + cross @ cross / max(1.0 + c, 1e-9)
    return result


def _turn_z(angle: float) -> Array:
    return projection_matrix(-angle, 0.0, 0.0)


def _barrel(rng: np.random.Generator) -> Array:
    """8008 residues with D7 symmetry: two inner and two outer rings of seven subunits."""
    rings = []
    for height in (19.0, 56.0):

        def inside(p: Array) -> Array:
            result: Array = ((p / np.array([15.0, 17.5, 18.5])) ** 2).sum(axis=1) < 1.0
            return result

        unit = _fill(286, inside, np.array([13.0, 15.0, 16.0]), rng)
        centre = np.array([38.0 if height < 30.0 else 36.0, 0.0, height])
        rings.append(unit + centre)
    half = np.concatenate(rings)
    ring = np.concatenate([half @ _turn_z(360.0 / 7 * i).T for i in range(7)])
    two_fold = np.diag([1.0, -1.0, -1.0])
    return np.concatenate([ring, ring @ two_fold.T])


def _shell(rng: np.random.Generator) -> Array:
    """4200 residues: a bundle of helices, repeated by the 24 rotations of a cube."""
    direction = np.array([1.0, 0.42, 0.2])
    direction /= np.linalg.norm(direction)
    along = np.cross(direction, [0.0, 0.0, 1.0])
    along /= np.linalg.norm(along)
    across = np.cross(along, direction)

    def inside(p: Array) -> Array:
        result: Array = (p @ along / 25.0) ** 2 + (p @ across / 14.0) ** 2 + (p @ direction / 13.0) ** 2 < 1.0
        return result

    unit = _fill(175, inside, np.array([20.0, 20.0, 20.0]), rng, axis=along) + 50.0 * direction
    rotations = []
    for permutation in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        for signs in np.ndindex(2, 2, 2):
            matrix = np.eye(3)[list(permutation)] * (1.0 - 2.0 * np.array(signs))[:, None]
            if np.linalg.det(matrix) > 0.0:
                rotations.append(matrix)
    return np.concatenate([unit @ r.T for r in rotations])


def _globule(rng: np.random.Generator) -> Array:
    """3600 residues in four overlapping lobes of different sizes, with a cleft."""
    centres = np.array([[0.0, 0.0, 0.0], [46.0, 13.0, 8.0], [-24.0, 40.0, -19.0], [-8.0, -35.0, 38.0]])
    radii = np.array([46.0, 34.0, 30.0, 26.0])

    def inside(p: Array) -> Array:
        near = ((p[:, None, :] - centres) ** 2).sum(axis=2) < radii**2
        cleft = ((p - np.array([27.0, -24.0, -8.0])) ** 2).sum(axis=1) < 17.0**2
        result: Array = near.any(axis=1) & ~cleft
        return result

    return _fill(3600, inside, np.array([82.0, 82.0, 66.0]), rng)


def _clamp(name: str) -> Array:
    """One of the clamp's conformations, about the centre of the closed one."""
    body, arm = _clamp_parts()
    closed = np.concatenate([body, arm])
    if name == "clamp-core":
        points = body
    elif name == "clamp-open":
        points = np.concatenate([body, (arm - _HINGE) @ _OPENING.T + _HINGE])
    else:
        points = closed
    return np.asarray(points - closed.mean(axis=0))


_HINGE = np.array([0.0, 58.0, 36.0])  # Å
_COS, _SIN = math.cos(math.radians(40.0)), math.sin(math.radians(40.0))
_OPENING = np.array([[1.0, 0.0, 0.0], [0.0, _COS, _SIN], [0.0, -_SIN, _COS]])  # lifts what lies towards -y


@lru_cache
def _clamp_parts() -> tuple[Array, Array]:
    """9000 residues of the body, and 3000 of the arm that lies over it from the hinge towards -y."""
    rng = np.random.default_rng(5)
    centres = np.array([[0.0, 0.0, -28.0], [26.0, 46.0, -16.0], [-30.0, -46.0, -24.0], [34.0, -30.0, -6.0]])
    radii = np.array([62.0, 46.0, 42.0, 36.0])
    middle, half = _HINGE + np.array([0.0, -54.0, 10.0]), np.array([29.0, 72.0, 31.0])

    def within(p: Array, border: float = 0.0) -> Array:
        result: Array = (((p - middle) / (half + border)) ** 2).sum(axis=1) < 1.0
        return result

    def inside(p: Array) -> Array:
        near = (((p[:, None, :] - centres) / radii[:, None]) ** 2).sum(axis=2).min(axis=1) < 1.0
        # room for the arm, as it is and turned
        result: Array = near & ~within(p, 3.0) & ~within((p - _HINGE) @ _OPENING + _HINGE, 3.0)
        return result

    body = _fill(9000, inside, np.array([82.0, 98.0, 92.0]), rng)
    arm = _fill(3000, lambda p: within(p + middle), half, rng) + middle
    return body, arm

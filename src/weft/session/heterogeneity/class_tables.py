"""Tables of particles with their places in tomograms and their classes.

``SESSION/heterogeneity/NAME.star`` is what a session's page shows of a training. Its particles have RELION's
columns, and weftX/Y/ZAngst, which count from the centre of the tomogram's first voxel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, RequestError, WeftError
from weft.formats.particle_star import ANGLES, CENTRED, NAME, euler_angles
from weft.formats.star import Table, read_star, write_star

__all__ = [
    "FOLDER",
    "ClassPlaces",
    "SessionClasses",
    "check_own",
    "read_class_table",
    "session_table",
    "write_class_table",
]

Array = NDArray[np.float64]

FOLDER = "heterogeneity"
TRAINING, DIAMETER = "weftTraining", "weftParticleDiameter"
PARTICLE, CLASS = "rlnTomoParticleName", "rlnClassNumber"
PLACE = ("weftXAngst", "weftYAngst", "weftZAngst")


@dataclass(frozen=True)
class ClassPlaces:
    """Particles with their places and classes.

    Attributes
    ----------
    run : Path
        The training.
    diameter : float
        Å, of the particles.
    particle, tomogram : (n) lists of str
    label : (n) int64
        Classes, from 1.
    place : (n, 3) float64
        Å from the centre of the tomogram's first voxel; from its centre where `centred`.
    matrix : (n, 3, 3) float64
        From map to tomogram coordinates.
    centred : (n) bool
    mirrored : (n) bool
        The tomogram shows the mirror image of the class's volume.
    size : dict of str to (3,) float64
        Of tomograms: x, y, z, Å, where that is known.
    """

    run: Path
    diameter: float
    particle: list[str]
    tomogram: list[str]
    label: NDArray[np.int64]
    place: Array
    matrix: Array
    centred: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    size: dict[str, Array]

    def euler(self) -> Array:
        """(n, 3): rot, tilt, psi, degrees, of RELION."""
        return euler_angles(self.matrix)

    def select(self, which: NDArray[np.bool_]) -> ClassPlaces:
        """Some of them, by a mask."""
        at = np.flatnonzero(which)
        return ClassPlaces(
            self.run,
            self.diameter,
            [self.particle[i] for i in at],
            [self.tomogram[i] for i in at],
            self.label[at],
            self.place[at],
            self.matrix[at],
            self.centred[at],
            self.mirrored[at],
            self.size,
        )


@dataclass(frozen=True)
class SessionClasses:
    """A session's table of classes, as its page shows it.

    Attributes
    ----------
    training : str
        Its folder.
    diameter : float
        Å, of the particles.
    tomogram : (n) list of str
    place : (n, 3) float64
        Å from the centre of the tomogram's first voxel.
    label : (n) int64
        Classes, from 1.
    """

    training: str
    diameter: float
    tomogram: list[str]
    place: Array
    label: NDArray[np.int64]


def read_class_table(path: Path) -> SessionClasses:
    """Read what `write_class_table` has written.

    Raises
    ------
    FormatError
        Something of it is missing.
    CorruptError
        A number that is none.
    """
    blocks = read_star(path)
    general, table = blocks.get("general", Table()), blocks.get("particles", Table())
    missing = [label for label in (TRAINING, DIAMETER) if label not in general]
    missing += [label for label in (NAME, CLASS, *PLACE) if label not in table]
    if missing:
        raise FormatError(path, f"it is no table of classes: it has no {', '.join(missing)}")
    place = np.stack([table.floats(label) for label in PLACE], axis=1)
    if not np.isfinite(place).all():
        raise CorruptError(path, "a place is no finite number; run `weft vae map-back` again")
    return SessionClasses(
        general.value(TRAINING),
        float(general.floats(DIAMETER)[0]),
        table.strings(NAME),
        place,
        table.ints(CLASS),
    )


def session_table(root: Path, name: str) -> Path:
    """Where a session keeps the table of a training.

    Raises
    ------
    RequestError
        A name that no file can have.
    """
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise RequestError(f"--name {name!r}: use letters, digits, and . _ + - inside.")
    return root / FOLDER / f"{name}.star"


def check_own(path: Path, run: Path) -> None:
    """Complain if a session's table is another training's.

    Raises
    ------
    RequestError
    """
    if not path.exists():
        return
    try:
        other = read_star(path)["general"].value(TRAINING)
    except (KeyError, WeftError) as error:
        raise RequestError(f"{path} is no table of classes; give another --name.") from error
    if Path(other) != run.resolve():
        raise RequestError(f"{path} is of the training {other}; give this one another --name.")


def write_class_table(path: Path, places: ClassPlaces) -> None:
    """As RELION's columns, with the training that it is of."""
    general = Table({TRAINING: [str(places.run.resolve())], DIAMETER: [float(places.diameter)]}, loop=False)
    columns: dict[str, object] = {NAME: places.tomogram, PARTICLE: places.particle}
    sizes = [places.size.get(name) for name in places.tomogram]
    # whichever of the two can be said of all
    if all(size is not None or centred for size, centred in zip(sizes, places.centred, strict=True)):
        half = np.array(
            [
                np.zeros(3) if centred or size is None else 0.5 * size
                for size, centred in zip(sizes, places.centred, strict=True)
            ]
        ).reshape(-1, 3)
        columns |= dict(zip(CENTRED, (places.place - half).round(3).T, strict=True))
    if not places.centred.any():
        columns |= dict(zip(PLACE, places.place.round(3).T, strict=True))
    columns |= dict(zip(ANGLES, places.euler().round(4).T, strict=True))
    columns[CLASS] = places.label
    path.parent.mkdir(parents=True, exist_ok=True)
    write_star(path, {"general": general, "particles": Table(columns)})  # type: ignore[arg-type]

"""STAR files with particles in micrographs: RELION's columns, crYOLO's boxes, XMIPP's lists.

RELION's columns are written by many: RELION 3.0 to 5, Warp's BoxNet, Gautomatch, crYOLO, csparc2star.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star

__all__ = ["Coordinates", "NoCoordinatesError", "StarCoordinates", "number", "read_star_coordinates"]

_X, _Y, _Z = "rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"
_NAME, _IMAGE, _FILE, _TOMOGRAM = (
    "rlnMicrographName",
    "rlnImageName",
    "rlnMicrographCoordinates",
    "rlnTomoName",
)
_GROUP, _PIXEL = "rlnOpticsGroup", "rlnMicrographPixelSize"
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGINS, _ORIGIN_PIXELS = ("rlnOriginXAngst", "rlnOriginYAngst"), ("rlnOriginX", "rlnOriginY")
#: RELION's value of what a particle does not have; crYOLO's and pandas' text for it.
_NONE, _ABSENT = -999.0, ("<NA>", "None")
#: Blocks of a movie's motion whose coordinates are no particles.
_OF_MOTION = ("hot_pixels", "local_shift")
_Array = NDArray[np.float64]


class NoCoordinatesError(FormatError):
    """A STAR file about something else."""


@dataclass(frozen=True)
class Coordinates:
    """Particles of one micrograph in another program's terms.

    Attributes
    ----------
    micrograph : str
        As the file calls it; empty where only the file's own name can tell.
    xy : (n, 2) array
        Centres, in pixels of that micrograph; 0 is the centre of the first pixel of the first row that an
        MRC file stores. Not always finite.
    score : (n,) array
        NaN where there is none.
    box : float
        Side of the boxes in pixels; NaN where unknown.
    pixel_size : float, optional
        Å, of that micrograph.
    shape : (int, int), optional
        Its rows and columns.
    eulers : (n, 3) array, optional
        rot, tilt, psi, degrees.
    class_number : (n,) array of int, optional
    origin : (n, 2) array, optional
        Å, which refinement has found: the particle is at its coordinates minus this.
    """

    micrograph: str
    xy: _Array
    score: _Array
    box: float = math.nan
    pixel_size: float | None = None
    shape: tuple[int, int] | None = None
    eulers: _Array | None = None
    class_number: NDArray[np.int64] | None = None
    origin: _Array | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def of(self, micrograph: str) -> Coordinates:
        """The same for a micrograph of this name."""
        return replace(self, micrograph=micrograph)


@dataclass(frozen=True)
class StarCoordinates:
    """What a STAR file holds: coordinates, or pairs of a micrograph and the file with its coordinates."""

    program: str
    micrographs: tuple[Coordinates, ...] = ()
    files: tuple[tuple[str, str], ...] = field(default=())


def number(path: Path, where: str, text: Any) -> float:
    """A number of a text file, which may be NaN; CorruptError says where there is none."""
    try:
        return float(text)
    except ValueError:
        if str(text) in _ABSENT:
            return math.nan
        raise CorruptError(path, f"{where}: {str(text)[:40]!r} is no number") from None


def read_star_coordinates(path: Path) -> StarCoordinates:
    """Read RELION's, crYOLO's or XMIPP's STAR file of coordinates in micrographs.

    Raises
    ------
    FormatError
        No coordinates, or of particles in tomograms.
    TruncatedError, CorruptError
    """
    blocks = read_star(path)
    for name in sorted(blocks, key=lambda name: name != "particles"):
        table = blocks[name]
        if _FILE in table and _NAME in table:
            files = zip(table.strings(_NAME), table.strings(_FILE), strict=True)
            return StarCoordinates("relion", files=tuple(files))
        if _X in table and _Y in table and name not in _OF_MOTION:
            return StarCoordinates("relion", _relion(path, table, blocks.get("optics")))
        if "CoordinateX" in table and "Width" in table:
            return StarCoordinates("cryolo", (_cryolo(path, table),))
        if "xcoor" in table and "ycoor" in table:
            return StarCoordinates("xmipp", (_xmipp(path, table),))
    raise NoCoordinatesError(path, f"it has no columns _{_X} and _{_Y}; give a list of picks or particles")


def _column(path: Path, table: Table, label: str) -> _Array:
    values = table[label]
    return np.array([number(path, f"row {i} of _{label}", v) for i, v in enumerate(values, 1)], np.float64)


def _columns(path: Path, table: Table, labels: Sequence[str]) -> _Array:
    return np.stack([_column(path, table, label) for label in labels], axis=-1)


def _relion(path: Path, table: Table, optics: Table | None) -> tuple[Coordinates, ...]:
    # hundreds of thousands of rows are common: everything is read once and then shared out
    if _TOMOGRAM in table or (_Z in table and _column(path, table, _Z).any()):
        raise FormatError(path, "its particles are in tomograms, not in micrographs; see `weft candidates`")
    xy = _columns(path, table, (_X, _Y))
    score = np.full(len(xy), np.nan)
    if "rlnAutopickFigureOfMerit" in table:
        score = _column(path, table, "rlnAutopickFigureOfMerit")
        score = np.where(score == _NONE, np.nan, score)
    number_of = _whole(path, table, "rlnClassNumber")
    eulers, origin = _eulers(path, table), _origin(path, table, optics)
    sizes = _pixel_sizes(path, table, optics)
    out = []
    for name, rows in _by_micrograph(path, table).items():
        size = float(sizes[rows[0]])
        if (sizes[rows] != size).any() and not np.isnan(sizes[rows]).all():
            raise CorruptError(path, f"particles of {name} have micrographs of several pixel sizes")
        out.append(
            Coordinates(
                name,
                xy[rows],
                score[rows],
                pixel_size=None if math.isnan(size) else size,
                eulers=None if eulers is None else eulers[rows],
                class_number=None if number_of is None else number_of[rows],
                origin=None if origin is None else origin[rows],
            )
        )
    return tuple(out)


def _by_micrograph(path: Path, table: Table) -> Mapping[str, NDArray[np.intp]]:
    if _NAME in table:
        names = table.strings(_NAME)
    elif _IMAGE in table:
        names = [text.rpartition("@")[2] for text in table.strings(_IMAGE)]
    else:
        return {"": np.arange(len(table))}
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    codes = np.array([order[name] for name in names], np.intp)
    rows = np.split(
        np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(order)))[:-1]
    )
    return dict(zip(order, rows, strict=True)) if order else {}


def _whole(path: Path, table: Table, label: str) -> NDArray[np.int64] | None:
    if label not in table:
        return None
    try:
        return table.ints(label)
    except ValueError as error:
        raise CorruptError(path, str(error)) from None


def _eulers(path: Path, table: Table) -> _Array | None:
    """(n, 3) degrees; None where the file has no angle that says something."""
    if not any(label in table for label in _ANGLES):
        return None
    zero = np.zeros(len(table))
    angles = np.stack([_column(path, table, a) if a in table else zero for a in _ANGLES], axis=-1)
    angles[(angles == _NONE) | ~np.isfinite(angles)] = 0.0
    return angles if angles.any() else None


def _of_group(path: Path, table: Table, optics: Table | None, label: str) -> _Array | None:
    """(n,): a column, or what the optics table says of each particle's group."""
    if label in table:
        return _positive(path, label, _column(path, table, label))
    if optics is None or label not in optics:
        return None
    values = _positive(path, label, _column(path, optics, label))
    if _GROUP not in table or _GROUP not in optics:
        if len(set(values.tolist())) == 1:
            return np.full(len(table), values[0])
        raise FormatError(path, f"it has several optics groups but no column _{_GROUP} for particles")
    of = dict(zip(optics.strings(_GROUP), values, strict=True))
    groups = table.strings(_GROUP)
    absent = next((group for group in groups if group not in of), None)
    if absent is not None:
        raise CorruptError(path, f"its particles name the optics group {absent}, which it does not describe")
    return np.array([of[group] for group in groups], np.float64)


def _positive(path: Path, label: str, values: _Array) -> _Array:
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise CorruptError(path, f"row {bad[0] + 1} of _{label} is {values[bad[0]]:g}, which is no size")
    return values


def _pixel_sizes(path: Path, table: Table, optics: Table | None) -> _Array:
    """(n,) Å, of the micrographs; NaN where the file does not say it.

    rlnDetectorPixelSize of older tables is of no use: after an extraction it is the particle images'.
    """
    found = _of_group(path, table, optics, _PIXEL)
    return np.full(len(table), np.nan) if found is None else found


def _origin(path: Path, table: Table, optics: Table | None) -> _Array | None:
    if all(label in table for label in _ORIGINS):
        shift = _columns(path, table, _ORIGINS)
    elif all(label in table for label in _ORIGIN_PIXELS):
        shift = _columns(path, table, _ORIGIN_PIXELS)
        size = _of_group(path, table, optics, "rlnImagePixelSize")
        detector = _of_group(path, table, optics, "rlnDetectorPixelSize")
        magnification = _of_group(path, table, optics, "rlnMagnification")
        if size is None and detector is not None and magnification is not None:
            size = 1e4 * detector / magnification
        if size is None:
            return None
        shift = shift * size[:, None]
    else:
        return None
    return shift if shift.any() else None


def _cryolo(path: Path, table: Table) -> Coordinates:
    """Its boxes: the corner nearest to the origin, and the sides."""
    if "CoordinateZ" in table and np.nan_to_num(_column(path, table, "CoordinateZ")).any():
        raise FormatError(path, "its boxes are in a tomogram, not in a micrograph")
    if "CoordinateY" not in table or "Height" not in table:
        raise FormatError(path, "it has no columns _CoordinateY and _Height")
    sides = _columns(path, table, ("Width", "Height"))
    for i, label in enumerate(("Width", "Height")):
        _positive(path, label, sides[:, i])
    xy = _columns(path, table, ("CoordinateX", "CoordinateY")) + sides / 2
    score = _column(path, table, "Confidence") if "Confidence" in table else np.full(len(xy), np.nan)
    return Coordinates("", xy, score, box=float(np.median(sides)) if len(sides) else math.nan)


def _xmipp(path: Path, table: Table) -> Coordinates:
    xy = _columns(path, table, ("xcoor", "ycoor"))
    score = _column(path, table, "cost") if "cost" in table else np.full(len(xy), np.nan)
    return Coordinates("", xy, score)

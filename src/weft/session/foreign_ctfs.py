"""CTF and exposure of a tomogram's tilts, from files of other programs that have a line for each tilt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, RequestError
from weft.formats.ctffind import read_ctffind
from weft.formats.imod_defocus import read_defocus
from weft.formats.star import Table, read_star
from weft.formats.warp_xml import read_warp_xml

__all__ = ["TiltCtfs", "TiltLines", "finite_column", "read_column", "read_ctfs", "star_ctfs"]

Numbers = NDArray[np.float64]

_U, _V, _ANGLE, _PHASE = "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"


class TiltLines(Protocol):
    """The tilts that a file's lines are to belong to."""

    def of_lines(self, lines: int, path: Path, what: str) -> NDArray[np.int64]:
        """Which of a file's lines belong to the tilts, or a FormatError."""


@dataclass(frozen=True)
class TiltCtfs:
    """The CTF of every tilt; ``(tilts,)`` arrays.

    Attributes
    ----------
    defocus : array
        The mean of U and V, Å.
    astigmatism : array
        U - V, Å.
    angle : array
        Of U, in the images as recorded, degrees.
    phase_shift : array
        Degrees.
    """

    defocus: Numbers
    astigmatism: Numbers
    angle: Numbers
    phase_shift: Numbers

    def __len__(self) -> int:
        return len(self.defocus)

    def select(self, rows: NDArray[np.int64]) -> TiltCtfs:
        """The same for some of the tilts."""
        return TiltCtfs(self.defocus[rows], self.astigmatism[rows], self.angle[rows], self.phase_shift[rows])

    @classmethod
    def constant(cls, defocus: float, tilts: int) -> TiltCtfs:
        """One defocus (Å) for all."""
        nil = np.zeros(tilts)
        return cls(np.full(tilts, defocus), nil, nil, nil)

    @classmethod
    def of_axes(cls, u: Numbers, v: Numbers, angle: Numbers, phase_shift: Numbers) -> TiltCtfs:
        """From both axes of the defocus, Å."""
        return cls(0.5 * (u + v), u - v, angle, phase_shift)


def finite_column(path: Path, table: Table, label: str) -> Numbers:
    """A column of finite numbers, or a FormatError."""
    try:
        values = table.floats(label)
    except ValueError as error:
        raise FormatError(path, str(error)) from None
    if not np.isfinite(values).all():
        raise FormatError(path, f"the column _{label} has values that are not finite")
    return values


def star_ctfs(path: Path, table: Table) -> TiltCtfs:
    """The CTFs in a table of RELION, which has rlnDefocusU at least."""
    nil = np.zeros(len(table))
    u = finite_column(path, table, _U)
    v, angle, phase = (
        finite_column(path, table, label) if label in table else missing
        for label, missing in ((_V, u), (_ANGLE, nil), (_PHASE, nil))
    )
    return TiltCtfs.of_axes(u, v, angle, phase)


def read_column(path: Path, tilts: TiltLines, what: str) -> Numbers:
    """One number a line, not negative, for every tilt.

    Raises
    ------
    RequestError
        No such file.
    InputFileError
        Something else is in it, or another number of lines.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path} with the {what}.")
    values = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        text = line.strip().rstrip(",;")
        if not text or text.startswith("#"):
            continue
        try:
            value = float(text)
        except ValueError:
            raise FormatError(path, f"line {number}: {text[:40]!r} is not one number") from None
        if not (math.isfinite(value) and value >= 0.0):
            raise CorruptError(path, f"line {number}: {text[:40]} is none of the {what}")
        values.append(value)
    return np.array(values)[tilts.of_lines(len(values), path, what)]


def read_ctfs(path: Path, tilts: TiltLines) -> TiltCtfs:
    """Read the CTF of every tilt from a file of its own.

    Parameters
    ----------
    path : Path
        IMOD's ``.defocus``, a table of CTFFIND or AreTomo (``_CTF.txt``), a STAR file with rlnDefocusU, or
        an XML of Warp.
    tilts : TiltLines
        Whose CTFs they are.

    Raises
    ------
    RequestError
        No such file, or a kind that is not known.
    InputFileError
        It cannot be read, or is of other tilts.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path} with the defocus; a number is a defocus in µm.")
    readers: dict[str, Callable[[Path, TiltLines], TiltCtfs]] = {
        ".defocus": _imod_ctfs,
        ".txt": _ctffind_ctfs,
        ".star": _table_ctfs,
        ".xml": _warp_ctfs,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            f"{path}: defocus is read from {', '.join(readers)} files, not from "
            f"{path.suffix or 'such a file'}."
        )
    return reader(path, tilts)


def _imod_ctfs(path: Path, tilts: TiltLines) -> TiltCtfs:
    found = read_defocus(path)
    columns = np.array([(r.defocus_u, r.defocus_v, r.astigmatism_angle, r.phase_shift) for r in found.rows])
    last = max(row.last_view for row in found.rows)
    middle = np.array([0.5 * (row.first_view + row.last_view) for row in found.rows])
    views = np.arange(1, last + 1)
    rows = tilts.of_lines(last, path, "defocus")
    order = np.argsort(middle)
    middle, columns = middle[order], columns[order]
    if np.any(np.diff(middle) <= 0.0):
        raise FormatError(path, "it has two values of defocus for the same views")
    if all(row.first_view == row.last_view for row in found.rows) and len(middle) < last:
        missing = sorted(set(views.tolist()) - set(middle.astype(int).tolist()))
        raise FormatError(path, f"it has no defocus for view {missing[0]}")
    # a value found from several views is that of their middle, and others lie between
    double = 2.0 * np.radians(columns[:, 2])
    u, v, phase, cos, sin = (
        np.interp(views, middle, column)
        for column in (*columns[:, [0, 1, 3]].T, np.cos(double), np.sin(double))
    )
    angle = 0.5 * np.degrees(np.arctan2(sin, cos)) % 180.0
    return TiltCtfs.of_axes(u[rows], v[rows], angle[rows], phase[rows])


def _ctffind_ctfs(path: Path, tilts: TiltLines) -> TiltCtfs:
    found = read_ctffind(path)
    rows = tilts.of_lines(len(found), path, "CTFs")
    return TiltCtfs.of_axes(found.defocus_u, found.defocus_v, found.angle, found.phase_shift).select(rows)


def _table_ctfs(path: Path, tilts: TiltLines) -> TiltCtfs:
    tables = [table for table in read_star(path).values() if _U in table]
    if len(tables) != 1:
        raise FormatError(path, f"{len(tables)} of its tables have the column _{_U}, not one")
    found = star_ctfs(path, tables[0])
    return found.select(tilts.of_lines(len(found), path, "defocus"))


def _warp_ctfs(path: Path, tilts: TiltLines) -> TiltCtfs:
    series = read_warp_xml(path)
    half, angle = series.astigmatism.T
    found = TiltCtfs(series.defocus, 2.0 * half, angle, series.phase_shift)
    return found.select(tilts.of_lines(len(found), path, "defocus"))

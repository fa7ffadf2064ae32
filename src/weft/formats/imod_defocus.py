"""IMOD's ``.defocus`` files (ctfplotter, ctfphaseflip), versions 2 and 3.

Views are numbered from 1. Defocus is in nm and positive for underfocus. An older file without a version
number is refused: its numbering of views depends on the program that wrote it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_text

__all__ = ["ImodDefocus", "ImodDefocusRow", "read_defocus", "write_defocus"]

_ASTIGMATISM, _ANGLE_RADIANS, _PHASE, _PHASE_RADIANS, _INVERTED, _CUT_ON = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class ImodDefocusRow:
    """One fit.

    Attributes
    ----------
    first_view, last_view : int
        From 1.
    first_angle, last_angle : float
        Degrees.
    defocus_u, defocus_v : float
        Å; equal without astigmatism.
    astigmatism_angle : float
        Degrees, of the axis of defocus_u, as the file has it.
    phase_shift : float
        Degrees.
    cut_on : float
        Frequency at which a phase plate sets in, 1/Å; 0 for none.
    """

    first_view: int
    last_view: int
    first_angle: float
    last_angle: float
    defocus_u: float
    defocus_v: float
    astigmatism_angle: float = 0.0
    phase_shift: float = 0.0
    cut_on: float = 0.0


@dataclass(frozen=True)
class ImodDefocus:
    """A file: its rows, and whether the angles have the opposite sign of the stage's (flag 16)."""

    rows: tuple[ImodDefocusRow, ...]
    angles_inverted: bool = False

    def per_view(self, views: int) -> list[ImodDefocusRow]:
        """The row for every view, in order.

        Raises
        ------
        ValueError
            A view in no row, or in more than one with different values.
        """
        out: list[ImodDefocusRow] = []
        for view in range(1, views + 1):
            found = [row for row in self.rows if row.first_view <= view <= row.last_view]
            exact = [row for row in found if row.first_view == row.last_view] or found
            if len(exact) != 1:
                raise ValueError(f"view {view} has {len(exact)} values of defocus, not one")
            out.append(exact[0])
        return out


def read_defocus(path: str | Path) -> ImodDefocus:
    """Read a .defocus file.

    Raises
    ------
    FormatError
        No version, or an unknown one.
    CorruptError
        A line with the wrong number of values, or values that are no numbers.
    """
    path = Path(path)
    text = path.read_bytes().decode("latin-1")
    lines = [(i, line.split()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise TruncatedError(path, "the file is empty")
    for number, words in lines:
        try:
            finite = all(math.isfinite(float(w)) for w in words)
        except ValueError:
            raise FormatError(path, f"line {number}: not of a .defocus file: {words[0][:30]!r}") from None
        if not finite:
            raise CorruptError(path, f"line {number}: a value is not finite")
    first = lines[0][1]
    if len(first) != 6:
        raise FormatError(path, "it has no version number, so that the numbering of its views is not known")
    if first[5] == "2":
        flags, rows = 0, [(lines[0][0], first[:5]), *lines[1:]]
    elif first[5] == "3" and float(first[0]).is_integer():
        flags, rows = int(float(first[0])), lines[1:]
    else:
        raise FormatError(path, f"it is of version {first[5]}; 2 and 3 are known")
    if flags & ~63:
        raise FormatError(path, f"its flags {flags} are not all known")
    return ImodDefocus(tuple(_row(path, n, w, flags) for n, w in rows), bool(flags & _INVERTED))


def _row(path: Path, number: int, words: list[str], flags: int) -> ImodDefocusRow:
    count = 5 + 2 * bool(flags & _ASTIGMATISM) + bool(flags & _PHASE) + bool(flags & _CUT_ON)
    if len(words) != count:
        raise CorruptError(path, f"line {number}: {len(words)} values, not {count}")
    values = [float(w) for w in words]
    rest = iter(values[5:])
    u = v = values[4]
    angle = phase = 0.0
    if flags & _ASTIGMATISM:
        v, angle = next(rest), next(rest)
        angle = math.degrees(angle) if flags & _ANGLE_RADIANS else angle
    if flags & _PHASE:
        phase = next(rest)
        phase = math.degrees(phase) if flags & _PHASE_RADIANS else phase
    cut_on = next(rest) if flags & _CUT_ON else 0.0
    first, last = int(values[0]), int(values[1])
    if not 1 <= first <= last:
        raise CorruptError(path, f"line {number}: views {first} to {last}")
    return ImodDefocusRow(first, last, values[2], values[3], 10 * u, 10 * v, angle, phase, cut_on / 10)


def write_defocus(path: str | Path, defocus: ImodDefocus, *, sync: bool = True) -> None:
    """Write a .defocus file atomically: version 3, or 2 where nothing but defocus is to be said."""
    rows = defocus.rows
    flags = _INVERTED if defocus.angles_inverted else 0
    flags |= _ASTIGMATISM if any(r.defocus_u != r.defocus_v for r in rows) else 0
    flags |= _PHASE if any(r.phase_shift for r in rows) else 0
    flags |= _CUT_ON if any(r.cut_on for r in rows) else 0
    lines = [f"{flags}\t0\t0.0\t0.0\t0.0\t3"] if flags else []
    for row in rows:
        values = [row.defocus_u / 10]
        if flags & _ASTIGMATISM:
            values += [row.defocus_v / 10, row.astigmatism_angle]
        else:
            values = [float(np.mean([row.defocus_u, row.defocus_v])) / 10]
        if flags & _PHASE:
            values.append(row.phase_shift)
        line = f"{row.first_view}\t{row.last_view}\t{row.first_angle:.2f}\t{row.last_angle:.2f}"
        line += "".join(f"\t{v:.2f}" for v in values)
        lines.append(line + (f"\t{row.cut_on * 10:.5f}" if flags & _CUT_ON else ""))
    if not flags:
        lines[0] += "\t2"
    atomic_write_text(path, "\n".join(lines) + "\n", sync=sync)

"""Particles in micrographs, as other programs list them.

These are RELION, Warp, Gautomatch, crYOLO, EMAN, topaz, XMIPP and cryoSPARC. All count pixels of the
micrograph in the rows of the MRC file, as Weft does; what differs is the point that is meant (a corner of a
box, or its centre), the size of the pixels, and whether the file says which micrograph it is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats import cryosparc
from weft.formats.atomic import atomic_write_text
from weft.formats.coordinate_star import Coordinates, number, read_star_coordinates

__all__ = [
    "SUFFIXES",
    "CoordinateFile",
    "Coordinates",
    "read_box",
    "read_coordinates",
    "read_topaz",
    "write_box",
]

#: 5th column of EMAN's boxes where it is no score: plain boxes, ends of helices.
_EMAN_MARKS = {-1.0, -2.0, -3.0}


@dataclass(frozen=True)
class CoordinateFile:
    """What one file holds.

    Attributes
    ----------
    path : Path
    program : str
        ``"relion"`` (and all who write RELION's columns), ``"cryolo"``, ``"eman"``, ``"topaz"``,
        ``"xmipp"`` or ``"cryosparc"``.
    micrographs : tuple of Coordinates
        One for every micrograph, in the order of the file.
    missing : tuple of str
        Files with coordinates that it names and that are not there.
    """

    path: Path
    program: str
    micrographs: tuple[Coordinates, ...]
    missing: tuple[str, ...] = ()


def read_coordinates(path: str | Path) -> CoordinateFile:
    """Read particle coordinates; the file's ending says what it is (:data:`SUFFIXES`).

    Coordinates and scores that are not finite stay as they are, so that whoever uses them can count them.

    Raises
    ------
    FormatError
        An unknown ending, or no coordinates of particles in micrographs in it.
    TruncatedError, CorruptError
        It ends too early, or a row is not what it should be; the message names the row.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise FormatError(path, f"files of coordinates end with {known}, not with {path.suffix!r}")
    return reader(path)


def _read_star(path: Path) -> CoordinateFile:
    found = read_star_coordinates(path)
    if not found.files:
        return CoordinateFile(path, found.program, found.micrographs)
    micrographs: list[Coordinates] = []
    missing = []
    for micrograph, name in found.files:
        file = _beside(path, name)
        if file is None:
            missing.append(name)
            continue
        for coordinates in read_coordinates(file).micrographs:
            micrographs.append(coordinates.of(coordinates.micrograph or micrograph))
    return CoordinateFile(path, "relion", tuple(micrographs), tuple(missing))


def _beside(path: Path, name: str) -> Path | None:
    """A file that a STAR file names relative to its project, which is one of the folders above."""
    for folder in path.absolute().parents:
        if (folder / name).is_file():
            return folder / name
    return None


def _read_cs(path: Path) -> CoordinateFile:
    return CoordinateFile(path, "cryosparc", cryosparc.read_locations(path))


def read_box(path: str | Path) -> Coordinates:
    """EMAN's boxes: x and y of the corner at the origin, width, height, and perhaps a number more.

    The number is a score if Gautomatch has written it, or marks what kind of box it is (EMAN).

    Raises
    ------
    FormatError, TruncatedError, CorruptError
    """
    path = Path(path)
    rows: list[list[float]] = []
    lines = _lines(path)
    for line, text in lines:
        words = text.replace(",", " ").split()
        if len(words) not in (4, 5) or (rows and len(words) != len(rows[0])):
            if not rows and len(lines) == 1:
                raise FormatError(path, f"not a list of boxes: {text[:40]!r} instead of x, y, width, height")
            expected = len(rows[0]) if rows else 4
            error = TruncatedError if line == lines[-1][0] and len(words) < expected else CorruptError
            raise error(path, f"line {line}: {len(words)} values instead of {expected}: {text[:40]!r}")
        rows.append([number(path, f"line {line}", word) for word in words])
    table = np.array(rows, np.float64).reshape(len(rows), -1 if rows else 4)
    sides = table[:, 2:4]
    bad = np.flatnonzero(~(np.isfinite(sides) & (sides >= 0)).all(1))
    if len(bad):
        raise CorruptError(path, f"line {lines[bad[0]][0]}: a box of {sides[bad[0]].tolist()} pixels")
    score = np.full(len(table), np.nan)
    if table.shape[1] == 5 and not set(table[:, 4].tolist()) <= _EMAN_MARKS:
        score = table[:, 4]
    side = float(np.median(sides)) if len(sides) else math.nan
    return Coordinates("", table[:, :2] + sides / 2, score, box=side or math.nan)


def write_box(path: str | Path, xy: ArrayLike, box: float, score: ArrayLike | None = None) -> None:
    """Inverse of :func:`read_box`.

    Parameters
    ----------
    xy : (n, 2) array-like
        Centres, pixels.
    box : float
        Side of the boxes, pixels.
    score : (n,) array-like, optional
    """
    corners = np.asarray(xy, np.float64).reshape(-1, 2) - box / 2
    columns = [*corners.T, np.full(len(corners), box), np.full(len(corners), box)]
    if score is not None:
        columns.append(np.asarray(score, np.float64))
    rows = zip(*columns, strict=True)
    atomic_write_text(
        path, "".join("\t".join(f"{v:g}" if v == int(v) else f"{v:.3f}" for v in row) + "\n" for row in rows)
    )


def read_topaz(path: str | Path) -> tuple[Coordinates, ...]:
    """Topaz's table: ``image_name``, ``x_coord``, ``y_coord`` and perhaps ``score``, tabs between them.

    Raises
    ------
    FormatError, TruncatedError, CorruptError
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise TruncatedError(path, "the file is empty")
    separator = "\t" if "\t" in lines[0][1] else ("," if "," in lines[0][1] else None)
    head = [word.strip() for word in lines[0][1].split(separator)]
    wanted = ("image_name", "x_coord", "y_coord")
    absent = [label for label in wanted if label not in head]
    if absent:
        raise FormatError(path, f"not a table of topaz: its first line has no column {absent[0]}")
    places = [head.index(label) for label in wanted]
    scored = head.index("score") if "score" in head else None
    names, values = [], []
    for line, text in lines[1:]:
        words = text.split(separator)
        if len(words) != len(head):
            error = TruncatedError if line == lines[-1][0] and len(words) < len(head) else CorruptError
            raise error(path, f"line {line}: {len(words)} values instead of {len(head)}")
        names.append(words[places[0]].strip())
        row = [number(path, f"line {line}", words[i]) for i in places[1:]]
        row.append(math.nan if scored is None else number(path, f"line {line}", words[scored]))
        values.append(row)
    table = np.array(values, np.float64).reshape(-1, 3)
    return tuple(Coordinates(name, table[rows, :2], table[rows, 2]) for name, rows in _groups(names).items())


def _groups(names: Iterable[str]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        out.setdefault(name, []).append(row)
    return out


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines with something on them, and their numbers."""
    data = path.read_bytes()
    if b"\0" in data:
        raise CorruptError(path, "it holds zero bytes; it is no text, or was never completely written")
    text = data.decode("utf-8", errors="replace")
    found: Sequence[str] = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(i, line) for i, line in enumerate(found, 1) if line.strip() and line.strip()[0] != "#"]


_READERS: dict[str, Callable[[Path], CoordinateFile]] = {
    ".star": _read_star,
    ".cbox": _read_star,
    ".pos": _read_star,
    ".xmd": _read_star,
    ".box": lambda path: CoordinateFile(path, "eman", (read_box(path),)),
    ".txt": lambda path: CoordinateFile(path, "topaz", read_topaz(path)),
    ".tsv": lambda path: CoordinateFile(path, "topaz", read_topaz(path)),
    ".cs": _read_cs,
}
#: Endings of the files that can be read.
SUFFIXES = tuple(_READERS)

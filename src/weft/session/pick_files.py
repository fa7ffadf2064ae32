"""``picks/<picker>/<item>.star``: particles of one micrograph, in RELION's columns and pixels of the average.

There is one block, so that programs which expect a plain table of coordinates read it. What RELION has no
column for is in columns of Weft's own, which it keeps and ignores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star, write_star
from weft.picking.picks import Picks

__all__ = ["BY_HAND", "FOLDER", "MANUAL", "pick_path", "pickers", "read_picks", "write_picks"]

FOLDER = "picks"
#: The picker whose picks people have made or changed in the page.
MANUAL = "manual"
#: RELION's value of what a particle picked by hand does not have.
BY_HAND = -999.0

_X, _Y, _SCORE = "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_CLASS, _AREA = "rlnClassNumber", "weftPickArea"
_DIAMETER = "weftPickDiameter"


def pick_path(picker: str, item: str) -> str:
    """Of an item's picks, relative to the session."""
    return f"{FOLDER}/{picker}/{item}.star"


def pickers(root: Path) -> list[str]:
    """All that have picked something in a session."""
    folder = root / FOLDER
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.star")))


def read_picks(path: Path, pixel_size: float) -> Picks:
    """Read the picks of one micrograph.

    Positions that are no finite numbers stay as they are: who uses them counts and leaves them out.

    Parameters
    ----------
    pixel_size : float
        Å, of the average.

    Raises
    ------
    FileNotFoundError
    FormatError, CorruptError
        If it is no list of picks, or cannot be read.
    """
    blocks = read_star(path)
    table = next((table for table in blocks.values() if _X in table and _Y in table), None)
    if table is None:
        raise FormatError(path, f"it has no columns _{_X} and _{_Y}; give a list of picks")
    try:
        xy = np.stack([table.floats(_X), table.floats(_Y)], axis=-1) * pixel_size
        score = table.floats(_SCORE) if _SCORE in table else np.full(len(xy), np.nan)
        score = np.where(score == BY_HAND, np.nan, score)
        area = table.floats(_AREA) if _AREA in table else None
        eulers = None
        if all(label in table for label in _ANGLES):
            eulers = np.stack([table.floats(label) for label in _ANGLES], axis=-1)
        number = table.ints(_CLASS) if _CLASS in table else None
        sizes = table.floats(_DIAMETER) if _DIAMETER in table else np.zeros(0)
    except ValueError as error:
        raise CorruptError(path, str(error)) from None
    sizes = sizes[np.isfinite(sizes) & (sizes > 0.0)]
    diameter = float(np.median(sizes)) if len(sizes) else np.nan
    return Picks(xy.reshape(-1, 2), score, diameter, area, eulers, number)


def write_picks(path: Path, picks: Picks, pixel_size: float) -> None:
    """Inverse of :func:`read_picks`; the columns are those of RELION's own picker."""
    xy = picks.xy / pixel_size
    columns: dict[str, Any] = {_X: xy[:, 0].round(3), _Y: xy[:, 1].round(3)}
    columns[_SCORE] = np.where(np.isfinite(picks.score), picks.score, BY_HAND).round(5)
    number = picks.class_number
    columns[_CLASS] = np.zeros(len(picks), np.int64) if number is None else number
    if picks.eulers is None:
        columns[_ANGLES[2]] = np.zeros(len(picks))
    else:
        columns |= {label: picks.eulers[:, i].round(3) for i, label in enumerate(_ANGLES)}
    if picks.area is not None:
        columns[_AREA] = picks.area.round(1)
    if np.isfinite(picks.diameter):
        columns[_DIAMETER] = np.full(len(picks), round(picks.diameter, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_star(path, {"": Table(columns)})

"""picks/<item>.star: particles of one micrograph, in RELION's columns and pixels of the average.

What RELION has no column for stands in a second block, which it does not read: the diameter, and
whether people have changed the picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from weft.errors import InputFileError
from weft.formats.star import Table, read_star, write_star
from weft.web.files import check_folder, inside

__all__ = ["read_picks", "write_picks"]

_X, _Y = "rlnCoordinateX", "rlnCoordinateY"
_DIAMETER, _EDITED = "weftPickDiameter", "weftPicksEdited"
#: RELION's own values for a particle that was picked by hand.
_BY_HAND = "-999.0"
#: Pixels: two positions nearer than this are the same pick.
_SAME = 0.02


def _path(item: str) -> str:
    return f"picks/{item}.star"


def _tables(root: Path, item: str) -> tuple[Table | None, Table | None]:
    """The block of coordinates and the one of Weft's own."""
    try:
        blocks = read_star(inside(root, _path(item)))
    except FileNotFoundError:
        return None, None
    coordinates = next((table for table in blocks.values() if _X in table and _Y in table), None)
    return coordinates, blocks.get("weft")


def read_picks(root: Path, item: str, pixel_size: float) -> dict[str, Any]:
    """The picks of an item; none where there is no file.

    Parameters
    ----------
    pixel_size : float
        Å, of the average.

    Returns
    -------
    dict
        ``picks`` (x and y, Å from the centre of the first pixel), ``diameter`` (Å or None), ``edited``.

    Raises
    ------
    InputFileError, ValueError
        When the file cannot be read.
    Outside
        When it lies outside the session.
    """
    coordinates, own = _tables(root, item)
    picks = []
    if coordinates is not None:
        x, y = (coordinates.floats(label) * pixel_size for label in (_X, _Y))
        good = np.isfinite(x) & np.isfinite(y)
        places = np.stack([x[good], y[good]], axis=-1).round(3).tolist()
        picks = [{"x": px, "y": py} for px, py in places]
    diameter = float(own.value(_DIAMETER)) if own is not None and _DIAMETER in own else 0.0
    edited = own is not None and _EDITED in own and own.value(_EDITED) == "1"
    return {"picks": picks, "diameter": diameter if diameter > 0 else None, "edited": edited}


def write_picks(
    root: Path, item: str, pixel_size: float, places: Sequence[tuple[float, float]], diameter: float | None
) -> None:
    """Put picks that people have edited in place of what is there.

    What else the file said about picks that stay (their scores) is kept.

    Parameters
    ----------
    places : sequence of (x, y)
        Å from the centre of the first pixel.

    Raises
    ------
    Outside
        When the folder or the file lies outside the session.
    """
    xy = np.asarray(places, dtype=np.float64).reshape(-1, 2) / pixel_size
    columns: dict[str, Any] = {_X: xy[:, 0].round(3), _Y: xy[:, 1].round(3)}
    with suppress(InputFileError, ValueError):  # of what cannot be read, nothing can be kept
        columns |= _kept(_tables(root, item)[0], xy)
    path = root / _path(item)
    path.parent.mkdir(exist_ok=True)
    own: dict[str, Any] = {_DIAMETER: [diameter or 0.0], _EDITED: [1]}
    # the folder must be the session's own; the file itself is replaced, not followed
    check_folder(root, path.parent)
    write_star(path, {"": Table(columns), "weft": Table(own, loop=False)})


def _kept(before: Table | None, xy: NDArray[np.float64]) -> dict[str, Any]:
    """The other columns, for the new positions: as they were where a pick has stayed."""
    if before is None or not len(before):
        return {}
    others = {label: before.strings(label) for label in before.columns if label not in (_X, _Y)}
    old = np.stack([before.floats(_X), before.floats(_Y)], axis=-1)
    rows = cKDTree(old).query(xy, distance_upper_bound=_SAME)[1] if len(xy) else []
    return {
        label: [values[row] if row < len(old) else _BY_HAND for row in rows]
        for label, values in others.items()
    }

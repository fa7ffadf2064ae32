"""The picks of a micrograph, as the page sees and changes them: ``picks/<picker>/<item>.star``.

What people change is kept apart from what a picker has found: it goes to ``picks/manual``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from weft.errors import InputFileError
from weft.picking.picks import Picks
from weft.session.pick_files import FOLDER, MANUAL, pick_path, pickers, read_picks, write_picks
from weft.web.details import Missing
from weft.web.files import Outside, check_folder, inside

__all__ = ["chosen_picker", "pickers_in", "pickers_of", "save_picks", "shown_picks"]

#: Å: two positions nearer than this are the same pick.
_SAME = 0.05


def pickers_in(root: Path) -> list[str]:
    """Those that have picked something in a session; folders that lead elsewhere are none of its own.

    Raises
    ------
    Outside
        When the folder of all picks leads out of the session.
    """
    check_folder(root, root / FOLDER)
    found = []
    for name in pickers(root):
        with suppress(Outside):
            check_folder(root, root / FOLDER / name)
            found.append(name)
    return found


def pickers_of(root: Path, item: str) -> list[str]:
    """Those that have picked something in a micrograph.

    Raises
    ------
    Outside
        When the folder of all picks leads out of the session.
    """
    # a link in the place of a file is there, and refused when it is read
    return [name for name in pickers_in(root) if os.path.lexists(root / pick_path(name, item))]


def chosen_picker(root: Path, item: str, asked: str | None, configured: str) -> str:
    """The picker whose picks are shown.

    Parameters
    ----------
    asked : str, optional
        By name; otherwise people's own picks, or those of the model that is set, or whose there are.
    configured : str
        What the picks of the model that is set are filed under; empty for none.

    Raises
    ------
    Missing
        When somebody is asked for who has picked nothing in this session.
    """
    there = pickers_of(root, item)
    if asked is not None:
        # only names that a folder of the session has: nothing else becomes a path
        if asked not in (MANUAL, configured, *pickers_in(root)):
            raise Missing(f"nobody called {asked!r} has picked particles in this session")
        return asked
    return next((name for name in (MANUAL, configured, *there) if name in there), configured or MANUAL)


def shown_picks(root: Path, item: str, picker: str, pixel_size: float) -> dict[str, Any]:
    """The picks of one picker in a micrograph; none where there is no file.

    Parameters
    ----------
    pixel_size : float
        Å, of the average.

    Returns
    -------
    dict
        ``picks`` (x, y in Å from the centre of the first pixel, and the score or None), ``diameter`` (Å or
        None), ``picker`` and ``pickers``.

    Raises
    ------
    InputFileError, ValueError
        When the file cannot be read.
    Outside
        When it lies outside the session.
    """
    found = _picks(root, item, picker, pixel_size)
    places = found.xy.round(3).tolist()
    scores = found.score.round(5).tolist()
    picks = [
        {"x": x, "y": y, "score": score if math.isfinite(score) else None}
        for (x, y), score in zip(places, scores, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    diameter = found.diameter if math.isfinite(found.diameter) and found.diameter > 0.0 else None
    return {"picks": picks, "diameter": diameter, "picker": picker, "pickers": pickers_of(root, item)}


def save_picks(
    root: Path,
    item: str,
    pixel_size: float,
    places: Sequence[tuple[float, float]],
    diameter: float | None,
    picker: str,
) -> None:
    """Keep picks that people have made or changed as ``picks/manual/<item>.star``.

    What was known of picks that stay (scores, angles, classes) is kept.

    Parameters
    ----------
    places : sequence of (x, y)
        Å from the centre of the first pixel.
    diameter : float, optional
        Å
    picker : str
        Whose picks were changed.

    Raises
    ------
    Outside
        When the folder or the file lies outside the session.
    """
    xy = np.asarray(places, dtype=np.float64).reshape(-1, 2)
    before = Picks(np.zeros((0, 2)), np.zeros(0), math.nan)
    with suppress(InputFileError, ValueError, Outside):  # of what cannot be read, nothing can be kept
        before = _picks(root, item, picker, pixel_size)
    path = root / pick_path(MANUAL, item)
    # the folders must be the session's own; the file itself is replaced, not followed
    check_folder(root, root / FOLDER)
    check_folder(root, path.parent)
    write_picks(path, _kept(before, xy, math.nan if diameter is None else diameter), pixel_size)


def _picks(root: Path, item: str, picker: str, pixel_size: float) -> Picks:
    try:
        return read_picks(inside(root, pick_path(picker, item)), pixel_size)
    except FileNotFoundError:
        return Picks(np.zeros((0, 2)), np.zeros(0), math.nan)


def _kept(before: Picks, xy: NDArray[np.float64], diameter: float) -> Picks:
    """Picks at new positions, with all that was known where one has stayed."""
    rows = np.full(len(xy), -1)
    known = np.flatnonzero(np.isfinite(before.xy).all(axis=1))
    if len(known) and len(xy):
        distance, nearest = cKDTree(before.xy[known]).query(xy)
        rows = np.where(distance <= _SAME, known[np.minimum(nearest, len(known) - 1)], -1)
    stayed = rows >= 0

    def of(column: NDArray[Any] | None, missing: float) -> Any:
        if column is None:
            return None
        values = np.full((len(xy), *column.shape[1:]), missing, dtype=column.dtype)
        values[stayed] = column[rows[stayed]]
        return values

    return Picks(
        xy,
        of(before.score, math.nan),
        diameter,
        of(before.area, math.nan),
        of(before.eulers, 0.0),
        of(before.class_number, 0),
    )

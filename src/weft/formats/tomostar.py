"""Warp's ``.tomostar``: which movies make a tilt series, at which angles and after which dose.

Angles are Warp's: WarpTools' ``ts_import`` changes the sign of the stage's angles unless it is told
``--dont_invert``, and subtracts the angle of the brightest tilt. They are read and written as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star, write_star

__all__ = ["Tomostar", "read_tomostar", "write_tomostar"]

_MOVIE, _ANGLE, _AXIS, _DOSE = "wrpMovieName", "wrpAngleTilt", "wrpAxisAngle", "wrpDose"
_SHIFT = ("wrpAxisOffsetX", "wrpAxisOffsetY")
_INTENSITY, _MASKED = "wrpAverageIntensity", "wrpMaskedFraction"
_KNOWN = {_MOVIE, _ANGLE, _AXIS, _DOSE, *_SHIFT, _INTENSITY, _MASKED}


@dataclass
class Tomostar:
    """A tilt series as Warp imports it; every array has one value a tilt.

    Attributes
    ----------
    movies : list of str
        Paths relative to the folder of the .tomostar.
    angles : (tilts,) array
        Degrees, with Warp's sign.
    dose : (tilts,) array
        e/Å², accumulated before the exposure.
    axis : (tilts,) array, optional
        Tilt axis, degrees counter-clockwise from the image's y axis.
    shift : (tilts, 2) array, optional
        x, y, Å: ``wrpAxisOffsetX/Y``.
    average_intensity, masked_fraction : (tilts,) arrays, optional
        Counts in the average, and the part of its area that is masked.
    other : dict of str to list of str
        Further columns, kept as text.
    """

    movies: list[str]
    angles: NDArray[np.float64]
    dose: NDArray[np.float64]
    axis: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None
    average_intensity: NDArray[np.float64] | None = None
    masked_fraction: NDArray[np.float64] | None = None
    other: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.movies)

    def movie_paths(self, path: str | Path) -> list[Path]:
        """Where the movies are, if the .tomostar is at `path`."""
        return [Path(path).parent / movie.replace("\\", "/") for movie in self.movies]


def read_tomostar(path: str | Path) -> Tomostar:
    """Read a .tomostar.

    Raises
    ------
    FormatError
        No table with the columns of a tilt series.
    CorruptError
        A value that is no number; a movie that is named twice.
    """
    path = Path(path)
    tables = [table for table in read_star(path).values() if _MOVIE in table]
    if len(tables) != 1:
        raise FormatError(path, f"{len(tables)} of its tables have the column _{_MOVIE}, not one")
    table = tables[0]
    missing = [label for label in (_ANGLE, _DOSE) if label not in table]
    if missing:
        raise FormatError(path, f"it has no column _{missing[0]}")
    movies = table.strings(_MOVIE)
    double = next((m for i, m in enumerate(movies) if m in movies[:i]), None)
    if double is not None:
        raise CorruptError(path, f"it names the movie {double} twice")

    def numbers(label: str) -> NDArray[np.float64] | None:
        if label not in table:
            return None
        try:
            values = table.floats(label)
        except ValueError as error:
            raise CorruptError(path, str(error)) from error
        if not np.isfinite(values).all():
            raise CorruptError(path, f"the column _{label} has values that are not finite")
        return values

    x, y = (numbers(label) for label in _SHIFT)
    angles, dose = numbers(_ANGLE), numbers(_DOSE)
    assert angles is not None
    assert dose is not None
    return Tomostar(
        movies=movies,
        angles=angles,
        dose=dose,
        axis=numbers(_AXIS),
        shift=None if x is None or y is None else np.stack([x, y], axis=1),
        average_intensity=numbers(_INTENSITY),
        masked_fraction=numbers(_MASKED),
        other={label: table.strings(label) for label in table.columns if label not in _KNOWN},
    )


def write_tomostar(path: str | Path, series: Tomostar, *, sync: bool = True) -> None:
    """Write a .tomostar atomically, with WarpTools' columns.

    Raises
    ------
    ValueError
        Columns of unequal length.
    """
    columns: dict[str, object] = {_MOVIE: list(series.movies), _ANGLE: series.angles}
    if series.axis is not None:
        columns[_AXIS] = series.axis
    if series.shift is not None:
        columns[_SHIFT[0]], columns[_SHIFT[1]] = series.shift[:, 0], series.shift[:, 1]
    columns[_DOSE] = series.dose
    if series.average_intensity is not None:
        columns[_INTENSITY] = series.average_intensity
    if series.masked_fraction is not None:
        columns[_MASKED] = series.masked_fraction
    write_star(path, {"": Table({**columns, **series.other})}, sync=sync)  # type: ignore[dict-item]

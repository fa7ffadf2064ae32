"""Names for tilt series: they become items beside the movies, and keep their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.session.discovery import item_name
from weft.session.series_description import SeriesDescription
from weft.session.tilt_table import TiltTable

__all__ = ["name_series"]

_LONGEST = 210  # bytes, as for movies


def name_series(
    described: Sequence[SeriesDescription], movies: Mapping[str, Path], old: Mapping[str, TiltTable]
) -> list[str]:
    """A name for each that no other series and no movie has; series that had one keep it.

    The first of a stem gets the stem, another one ``stem__folder``, and where that is taken too,
    ``stem__hash``; ``stem__series`` where a movie has the stem.

    Parameters
    ----------
    described : sequence of SeriesDescription
    movies : mapping
        By item: their names are taken.
    old : mapping
        The tables as they are.

    Returns
    -------
    list of str
    """
    stems = [item_name(Path(f"{series.name}.series")) for series in described]
    names = [""] * len(described)
    taken: set[str] = set(movies)
    for exact in (True, False):
        for i, series in enumerate(described):
            for name, table in old.items():
                ours = name == stems[i] or name.startswith(f"{stems[i]}__")
                if not names[i] and ours and name not in taken and _same_origin(series, table, exact):
                    names[i] = name
                    taken.add(name)
    for i, series in enumerate(described):
        if not names[i]:
            folder = item_name(Path(f"{series.origin.parent.name}.d"))
            tail = hashlib.sha256(f"{series.origin}|{series.name}".encode(errors="surrogateescape"))
            stem = f"{stems[i]}__series" if stems[i] in movies else stems[i]
            choices = (stem, f"{stems[i]}__{folder}", f"{stems[i]}__{tail.hexdigest()[:8]}")
            names[i] = next(n for n in choices if n not in taken and len(n.encode()) <= _LONGEST)
            taken.add(names[i])
    return names


def _same_origin(series: SeriesDescription, table: TiltTable, exact: bool) -> bool:
    if exact:
        return table.origin == str(series.origin)
    # a stack and its mdoc, or an mdoc and its _override, lie beside each other
    beside = Path(table.origin).parent == series.origin.parent
    return beside and {table.form, series.form} <= {"mdoc", "stack"}

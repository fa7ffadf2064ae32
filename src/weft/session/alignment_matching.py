"""Which tilt of the session is meant by each view of an alignment made elsewhere.

By the names of the movies, where the other program keeps them; else by the numbers of the views in a stack
that has as many images and the same angles in the same order; else by the angles alone, where these leave no
doubt. Nothing else is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.session.alignment_reading import ForeignAlignment, View
from weft.session.series_matching import movie_key
from weft.session.tilt_table import TiltTable

__all__ = ["Assignment", "match_views"]

_Rows = tuple[int, ...]
#: How the names of stacks begin that nobody has seen.
_SUPPOSED = "a stack of "


@dataclass(frozen=True)
class Assignment:
    """Rows of the series' table, one a view, and how they were found, for people."""

    rows: _Rows
    how: str


def match_views(
    found: ForeignAlignment,
    table: TiltTable,
    stack_rows: Sequence[int] = (),
    *,
    tolerance: float = 1.0,
    angle_offset: float | None = None,
) -> Assignment:
    """Find the tilt of every view.

    Parameters
    ----------
    found : ForeignAlignment
    table : TiltTable
    stack_rows : sequence of int
        Rows of the table that are in Weft's own stack, in its order; empty while there is none.
    tolerance : float
        Degrees: how far a view's angle may be from the stage's.
    angle_offset : float, optional
        Degrees: what the alignment added to all angles of the stage. None: nothing, or what the comparison
        with all tilts of the series shows.

    Raises
    ------
    FormatError
        A view that belongs to no tilt, or could belong to several; it names the view.
    """
    assignment = _by_name(found, table)
    if assignment is None:
        if found.source.program == "warp" and any(view.section is None for view in found.views):
            # the sign of Warp's angles is not known, so that they tell nothing
            raise FormatError(
                found.source.file,
                f"its movies ({_shown(found.views[0].names)} ...) are none of those of {table.name}",
            )
        assignment = _by_number(found, table, stack_rows, tolerance, angle_offset)
    twice = next((row for row in assignment.rows if assignment.rows.count(row) > 1), None)
    if twice is not None:
        views = [i for i, row in enumerate(assignment.rows) if row == twice]
        raise FormatError(
            found.source.file,
            f"{_named(found, views[0])} and {_named(found, views[1])} both belong to the tilt at "
            f"{table.tilts[twice].angle:g}° of {table.name}",
        )
    return assignment


def _shown(names: tuple[str, ...]) -> str:
    return re.split(r"[\\/]", names[0])[-1] if names else "without names"


def _named(found: ForeignAlignment, view: int) -> str:
    section = found.views[view].section
    number = view if section is None else section
    return f"view {number + 1} ({found.views[view].angle:.2f}°)"


# ------------------------------------------------------------------------------------------------ by name


def _by_name(found: ForeignAlignment, table: TiltTable) -> Assignment | None:
    """By the movies' names; None if no view has a name that is known here."""
    keys: dict[str, set[int]] = {}
    for i, row in enumerate(table.tilts):
        names = [Path(row.movie).name, row.item]
        if row.image < 0:
            names.append(re.split(r"[\\/]", row.name)[-1])
        for name in names:
            if name:
                keys.setdefault(movie_key(name), set()).add(i)
    rows: list[int | None] = []
    for view in found.views:
        seen = [keys[k] for name in view.names if (k := movie_key(re.split(r"[\\/]", name)[-1])) in keys]
        options = seen[0] if seen else set()
        alive = {i for i in options if not table.tilts[i].left_out} or options
        if len(alive) > 1:
            raise FormatError(
                found.source.file, f"{_shown(view.names)} is the name of {len(alive)} tilts of {table.name}"
            )
        rows.append(next(iter(alive), None))
    if all(row is None for row in rows):
        return None
    if None in rows:
        view = found.views[rows.index(None)]
        raise FormatError(
            found.source.file,
            f"{_shown(view.names)} ({view.angle:.2f}°) is none of the movies of {table.name}, but others are",
        )
    known = tuple(row for row in rows if row is not None)
    angles = np.array([view.angle for view in found.views])
    stage = np.array([table.tilts[row].angle for row in known])
    opposite = len(known) > 1 and bool(np.sum((angles - angles.mean()) * (stage - stage.mean())) < 0.0)
    return Assignment(known, "by the movies' names" + (", angles of opposite sign" if opposite else ""))


# ---------------------------------------------------------------------------------- by number, by angle


def _stacks(table: TiltTable, stack_rows: Sequence[int]) -> Mapping[str, list[int]]:
    """The stacks that somebody may have aligned: name → rows in their order."""
    rows = range(len(table.tilts))
    by_angle = sorted(rows, key=lambda i: (table.tilts[i].angle, i))
    out = {"Weft's stack": list(stack_rows)}
    if table.stack:
        sections = {row.image: i for i, row in enumerate(table.tilts)}
        if set(sections) == set(range(len(sections))):
            out[Path(table.stack).name] = [sections[i] for i in range(len(sections))]
    # and what other programs make of the movies
    there = [i for i in by_angle if table.tilts[i].movie or table.tilts[i].image >= 0]
    alive = [i for i in by_angle if not table.tilts[i].left_out]
    out[f"{_SUPPOSED}all tilts in the order of their angles"] = by_angle
    out[f"{_SUPPOSED}the tilts with images in the order of their angles"] = there
    out[f"{_SUPPOSED}the tilts not left out in the order of their angles"] = alive
    out[f"{_SUPPOSED}all tilts in the order of acquisition"] = list(rows)
    return {name: stack for name, stack in out.items() if stack}


def _by_number(
    found: ForeignAlignment,
    table: TiltTable,
    stack_rows: Sequence[int],
    tolerance: float,
    angle_offset: float | None,
) -> Assignment:
    views = found.views
    angles = np.array([row.angle for row in table.tilts])
    steps = np.diff(np.unique(angles.round(1)))
    half_step = 0.5 * float(np.median(steps)) if len(steps) else tolerance
    sure: dict[_Rows, str] = {}
    shifted: dict[_Rows, tuple[str, float]] = {}
    for name, stack in _stacks(table, stack_rows).items():
        if sure and name.startswith(_SUPPOSED):
            break  # a stack that is there explains the numbers: no need to suppose one
        rows = _sections(views, stack, found.total)
        if rows is None:
            continue
        stage = angles[list(rows)]
        for seen in _angles(views, angle_offset):
            offset = float(np.median(seen - stage))
            if np.abs(seen - stage - offset).max() < half_step:
                if abs(offset) < half_step:
                    sure.setdefault(rows, name)
                else:
                    shifted.setdefault(rows, (name, offset))
    if len(sure) > 1:
        one, two = list(sure)[:2]
        view = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
        raise FormatError(
            found.source.file,
            f"{_named(found, view)} could be tilt {one[view]} or tilt {two[view]} of {table.name}, as it is "
            f"counted in {sure[one]} or in {sure[two]}: leave one of them out with `weft tilts exclude`",
        )
    if sure:
        rows, name = next(iter(sure.items()))
        return Assignment(rows, f"by number, in {name}")
    if shifted and angle_offset is None:
        (rows, (name, offset)), *more = shifted.items()
        if not more and (found.total or len(rows)) == len(table.tilts):
            # the series has no other tilts that they could be confused with
            return Assignment(rows, f"by number, in {name}; angles {offset:+.2f}° from the stage's")
    try:
        nearest = _by_angle(found, table, tolerance, angle_offset)
    except FormatError as error:
        raise FormatError(found.source.file, f"{error.message}{_hint(shifted)}") from None
    if any(rows != nearest.rows for rows in shifted):
        raise FormatError(
            found.source.file,
            f"by their angles, its views are other tilts of {table.name} than by number{_hint(shifted)}",
        )
    seen = _angles(views, angle_offset)[0]
    offset = float(np.median(seen - angles[list(nearest.rows)]))
    if abs(offset) > 0.5 * half_step:
        raise FormatError(
            found.source.file,
            f"its angles are {offset:+.2f}° from those of the nearest tilts of {table.name}, so "
            "that the next ones could be meant; say with --angle-offset by how much it turned the series",
        )
    return nearest


def _hint(shifted: Mapping[_Rows, tuple[str, float]]) -> str:
    if not shifted:
        return ""
    name, offset = next(iter(shifted.values()))
    return (
        f"; if it turned the whole series by {offset:.1f}°, as the order in {name} would have it, say "
        f"--angle-offset {offset:.1f}"
    )


def _sections(views: Sequence[View], stack: Sequence[int], total: int | None) -> _Rows | None:
    """The rows of the views in a stack; None if it has another number of images."""
    if total is not None and total != len(stack):
        return None
    numbers = [view.section for view in views]
    if any(number is None or not 0 <= number < len(stack) for number in numbers):
        return None
    return tuple(stack[number] for number in numbers if number is not None)


def _angles(views: Sequence[View], angle_offset: float | None) -> list[NDArray[np.float64]]:
    """What the stage's angles were, the best source first: as written, or from the solved ones."""
    solved = np.array([view.angle for view in views]) - (angle_offset or 0.0)
    if angle_offset is not None:
        return [solved]
    stage = [view.stage for view in views if view.stage is not None]
    return [np.array(stage), solved] if len(stage) == len(views) else [solved]


def _by_angle(
    found: ForeignAlignment, table: TiltTable, tolerance: float, angle_offset: float | None
) -> Assignment:
    """The tilt with the nearest angle, where there is one and no other is nearly as near."""
    alive = np.array([not row.left_out for row in table.tilts])
    angles = np.array([row.angle for row in table.tilts])
    seen = _angles(found.views, angle_offset)[0]
    rows, furthest = [], 0.0
    for i, angle in enumerate(seen):
        away = np.abs(angles - angle)
        # a tilt that was taken again counts only where the other is not there
        usable = away + np.where(alive, 0.0, 1e3) if (away[alive] <= tolerance).any() else away
        order = np.argsort(usable, kind="stable")
        first = float(usable[order[0]])
        if first > tolerance:
            raise FormatError(
                found.source.file,
                f"{_named(found, i)} is none of the tilts of {table.name}: the nearest is at "
                f"{angles[order[0]]:g}°, more than {tolerance:g}° away",
            )
        second = float(usable[order[1]]) if len(order) > 1 else np.inf
        if second <= tolerance and first > 0.5 * second - 1e-9:
            raise FormatError(
                found.source.file,
                f"{_named(found, i)} could be the tilt at {angles[order[0]]:g}° or that at "
                f"{angles[order[1]]:g}° of {table.name} (tilts {order[0]} and {order[1]})",
            )
        rows.append(int(order[0]))
        furthest = max(furthest, first)
    return Assignment(tuple(rows), f"by angle, within {furthest:.2f}°")

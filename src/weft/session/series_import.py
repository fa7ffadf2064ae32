"""Tilt series as the session knows them: their files' descriptions matched with the session's movies.

`import_series` is a function of files and movies: it writes nothing, and no bad file stops the others.
docs/howto/tilt-import.md tells the rules to those who use them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from weft.errors import WeftError
from weft.session.records import FileIdentity, Record
from weft.session.series_acquisition import AGAIN, REPEATED, doses, in_order, repeats
from weft.session.series_description import DescribedTilt, SeriesDescription, stack_beside
from weft.session.series_matching import NOT_THERE, Match, MovieIndex
from weft.session.series_names import name_series
from weft.session.series_origins import find_origins, why_no_origins
from weft.session.series_reading import read_origin, read_stack
from weft.session.tilt_table import EXCLUDED, TiltRow, TiltTable

__all__ = [
    "ImportResult",
    "completeness",
    "find_origins",
    "import_series",
    "why_no_origins",
    "with_motion",
]

#: With fewer tilts a series is hardly one.
_FEW = 3


@dataclass(frozen=True)
class ImportResult:
    """What files that describe tilt series came to.

    Attributes
    ----------
    tables : dict
        Series by name.
    problems : list of str
        What could not be understood, a sentence each.
    unmatched_movies : list of str
        Items that are in no series.
    """

    tables: dict[str, TiltTable] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unmatched_movies: list[str] = field(default_factory=list)


def import_series(
    origins: Sequence[Path],
    movies: Mapping[str, Path],
    old: Mapping[str, TiltTable] | None = None,
    *,
    frames_expected: bool = True,
) -> ImportResult:
    """Make the tables of tilt series.

    Parameters
    ----------
    origins : sequence of Path
        From :func:`find_origins`.
    movies : mapping
        Item → movie, of all movies.
    old : mapping, optional
        The tables as they are: series keep their names, what people decided, and imported alignments.
    frames_expected : bool
        Whether there are movies, or will be. If not, an mdoc that names movies stands for its stack.

    Returns
    -------
    ImportResult
        Never raises because of what is in the files.
    """
    old = old or {}
    problems: list[str] = []
    described: list[SeriesDescription] = []
    for path in origins:
        try:
            found, wrong = read_origin(path.absolute())
        except (WeftError, OSError, ValueError) as error:
            problems.append(_sentence(path, error))
            continue
        described += found
        problems += wrong
    index = MovieIndex(movies)
    tables: dict[str, TiltTable] = {}
    known: dict[tuple[object, ...], str] = {}
    for series, name in zip(described, name_series(described, movies, old), strict=True):
        ordered, notes = in_order(series)
        matches = _match(series, ordered, index)
        twin = known.setdefault((series.form, series.tilts, tuple(matches)), name)
        if twin != name and any(tilt.movie for tilt in series.tilts):
            text = f"{series.origin.name} in {series.origin.parent} says the same, and is left out"
            tables[twin] = replace(tables[twin], notes=(*tables[twin].notes, text))
            continue
        if not any(match.item for match in matches) and (stack := _stack_instead(series, frames_expected)):
            try:
                series = read_stack(stack)
                ordered, notes = in_order(series)
            except (WeftError, OSError, ValueError) as error:
                problems.append(_sentence(stack, error))
        if taken := index.items_at(series.stack):
            notes.append(f"its stack is also taken for the movie {taken[0]}: let frames leave it out")
        table = _table(series, ordered, notes, matches, name, movies)
        tables[name] = table.with_decisions_of(old.get(name))
    _note_relations(tables)
    used = {row.item for table in tables.values() for row in table.tilts}
    return ImportResult(tables, problems, [item for item in movies if item not in used])


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, WeftError):
        return " ".join(str(error).split())
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path}: cannot be read ({' '.join(reason.split())})"


def _match(series: SeriesDescription, ordered: Sequence[DescribedTilt], index: MovieIndex) -> list[Match]:
    out = [index.find(tilt, series.origin.parent) for tilt in ordered]
    if series.form != "mdoc":
        return out
    taken = [match.item for match in out if match.item]
    by_angle = index.by_angle(series.name, ordered, taken)
    for i, tilt in enumerate(ordered):
        if i in by_angle:
            out[i] = by_angle[i]
        elif not tilt.movie and tilt.angle is not None:
            what = f"its file names no movie, and no single one is called {series.name}_…_{tilt.angle:.1f}"
            out[i] = Match(reason=f"{what}: it {NOT_THERE}")
    return out


def _stack_instead(series: SeriesDescription, frames_expected: bool) -> Path | None:
    """The stack beside an mdoc that names no movies, or whose movies nobody has."""
    named = any(tilt.movie for tilt in series.tilts)
    return None if series.form != "mdoc" or (named and frames_expected) else stack_beside(series.origin)


def _table(
    series: SeriesDescription,
    ordered: Sequence[DescribedTilt],
    order_notes: Sequence[str],
    matches: Sequence[Match],
    name: str,
    movies: Mapping[str, Path],
) -> TiltTable:
    stack = series.form == "stack"
    if stack:
        matches = [Match()] * len(ordered)
    reasons, twice = _first_reasons(ordered, matches)
    images = [not reason and (stack or bool(m.item)) for reason, m in zip(reasons, matches, strict=True)]
    names = [tilt.movie_name or str(tilt.section) for tilt in ordered]
    exposures, priors, dose_notes = doses([t for i, t in enumerate(ordered) if i not in twice], series.form)
    for i in twice:
        # one exposure that is named twice has exposed the specimen once
        exposures.insert(i, 0.0)
        priors.insert(i, ordered[i].prior_dose)
    again, again_notes = repeats(ordered, images, [f"section {n}" if stack else n for n in names])
    for i, reason in again.items():
        reasons[i] = reason
        images[i] = False
    _mark_replaced(reasons, ordered, images, names)
    rows = tuple(
        TiltRow(
            angle=0.0 if tilt.angle is None else tilt.angle,
            movie=str(movies[match.item]) if match.item else "",
            item=match.item,
            image=tilt.image if stack else -1,
            name=names[i],
            exposure=exposures[i],
            prior_dose=priors[i],
            date=tilt.date.isoformat() if tilt.date else "",
            left_out=reasons[i],
        )
        for i, (tilt, match) in enumerate(zip(ordered, matches, strict=True))
    )
    notes = [*series.notes, *order_notes, *dose_notes, *again_notes, *_match_notes(rows, matches, images)]
    return TiltTable(
        name,
        str(series.origin),
        series.form,
        rows,
        series.tilt_axis,
        series.pixel_size,
        series.stack,
        _content(series.stack),
        notes=tuple(notes),
    )


def _content(stack: str) -> str:
    if not stack:
        return ""
    try:
        return FileIdentity.of(stack).content
    except OSError:
        return ""


def _first_reasons(ordered: Sequence[DescribedTilt], matches: Sequence[Match]) -> tuple[list[str], list[int]]:
    """Why tilts take no part, each looked at alone; and which name a movie that is another tilt's."""
    reasons: list[str] = []
    twice: list[int] = []
    first: dict[str, int] = {}
    for i, (tilt, match) in enumerate(zip(ordered, matches, strict=True)):
        reason = tilt.trouble or ("it has no tilt angle" if tilt.angle is None else match.reason)
        if match.item in first:
            twice.append(i)
            known = ordered[first[match.item]].angle
            where = "another tilt" if known is None else f"the tilt at {known:g}°"
            reason = reason or f"its movie is named twice: it is already {where}"
        elif match.item and not reason:
            first[match.item] = i
        reasons.append(reason)
    return reasons, twice


def _mark_replaced(
    reasons: list[str], ordered: Sequence[DescribedTilt], images: Sequence[bool], names: Sequence[str]
) -> None:
    """Say of a tilt without a movie that a later exposure stands for it: nobody need wait for that movie."""
    for i, reason in enumerate(reasons):
        if NOT_THERE in reason:
            angle = ordered[i].angle or 0.0
            for j in range(i + 1, len(reasons)):
                if images[j] and abs((ordered[j].angle or 0.0) - angle) <= REPEATED:
                    reasons[i] = f"{reason}; {AGAIN}, as {names[j]}"
                    break


def _match_notes(rows: Sequence[TiltRow], matches: Sequence[Match], images: Sequence[bool]) -> list[str]:
    notes = []
    missing = [row for row in rows if NOT_THERE in row.left_out and AGAIN not in row.left_out]
    if missing and not any(row.item for row in rows):
        notes.append(f"none of its {len(rows)} movies is among the frames")
    elif missing:
        notes.append(f"{len(missing)} of {len(rows)} movies missing")
    for by, how in (("stem", "their names without the endings"), ("angle", "the series' name and the angle")):
        found = [row for row, match in zip(rows, matches, strict=True) if match.item and match.by == by]
        if found:
            notes.append(f"{len(found)} movies were found by {how}, such as {Path(found[0].movie).name}")
    usable = sum(images)
    if 0 < usable < _FEW <= len(rows):
        notes.append(f"only {usable} of {len(rows)} tilts have an image")
    elif len(rows) < _FEW:
        notes.append(f"a series of only {len(rows)} tilt{'s' * (len(rows) != 1)}")
    return notes


def _note_relations(tables: dict[str, TiltTable]) -> None:
    """Add notes about series that share movies, and about two that may be the parts of one."""
    owners: dict[str, list[str]] = {}
    for name, table in tables.items():
        for item in dict.fromkeys(row.item for row in table.tilts if row.item):
            owners.setdefault(item, []).append(name)
    for name, table in tables.items():
        notes: dict[str, int] = {}
        for row in table.tilts:
            for other in owners.get(row.item, ()):
                if other != name:
                    text = f"shares movies with {other} ({tables[other].origin})"
                    notes[text] = notes.get(text, 0) + 1
        head, _, number = name.rpartition("_")
        if number.isdecimal() and head in tables and _halves(table, tables[head]):
            notes[f"may be the other part of {head}: if it is, join their mdocs"] = 1
        if notes:
            tables[name] = replace(table, notes=(*table.notes, *notes))


def _halves(a: TiltTable, b: TiltTable) -> bool:
    """Whether the angles of two series follow each other: two branches from one starting angle."""
    if min(len(a.tilts), len(b.tilts)) < _FEW:
        return False
    low, high = sorted((sorted(r.angle for r in t.tilts) for t in (a, b)), key=lambda angles: angles[0])
    step = max(y - x for angles in (low, high) for x, y in pairwise(angles))
    return -0.1 <= high[0] - low[-1] <= 1.5 * step


def with_motion(
    table: TiltTable,
    records: Mapping[str, Record],
    *,
    excluded: Collection[str] = (),
    given_up: Mapping[str, str] | None = None,
) -> TiltTable:
    """The table with the state of its movies' motion steps: fingerprints, and why there is none.

    Parameters
    ----------
    records : mapping
        By item; with or without what is long in them. What was made of a movie before it became a tilt does
        not count: its average is weighted by dose.
    excluded : collection of str
        Items that people excluded: their tilts are left out for as long as they are.
    given_up : mapping, optional
        Items that nobody works on any more → why.
    """
    given_up = given_up or {}
    rows = []
    for row in table.tilts:
        record = records.get(row.item) if row.item else None
        step = record.steps.get("motion") if record and record.kind == "tilt" else None
        done = step is not None and step.status == "done"
        failure = given_up.get(row.item, "") if row.item and not done else ""
        if step is not None and not done:
            failure = (step.error.message if step.error else "") or "its motion step failed"
        motion = step.fingerprint if step is not None and done else ""
        left_out = "" if row.left_out == EXCLUDED else row.left_out
        if row.item in excluded:
            left_out = left_out or EXCLUDED
        rows.append(replace(row, motion=motion, failure=failure, left_out=left_out))
    return replace(table, tilts=tuple(rows))


def completeness(
    table: TiltTable,
    *,
    still: float,
    quiet: float,
    deadline: float,
    to_come: Collection[str] | None = None,
) -> tuple[bool, str]:
    """Whether a series that is being recorded can be processed.

    Parameters
    ----------
    table : TiltTable
    still : float
        Seconds for which neither its origin has changed nor a movie of it has come.
    quiet : float
        Seconds of that after which a series without gaps is complete.
    deadline : float
        Seconds of that after which it is taken as it is.
    to_come : collection of str, optional
        Items that are sure to be processed still: of all others nobody knows, and they are waited for until
        the deadline only. All by default.

    Returns
    -------
    complete : bool
    reason : str
        What it waits for, or what is missing although it counts as complete; empty where nothing is.
    """
    n, waiting = len(table.tilts), table.waiting
    if any(to_come is None or row.item in to_come for row in waiting):
        return False, f"{len(waiting)} of its {n} movies are still to be processed"
    missing = [row for row in table.tilts if NOT_THERE in row.left_out and AGAIN not in row.left_out]
    lacks = []
    for rows, what in ((missing, "have not arrived"), (waiting, "have not been processed")):
        if rows:
            names = ", ".join(row.name for row in rows[:3]) + (" …" if len(rows) > 3 else "")
            lacks.append(f"{len(rows)} of its {n} movies {what}: {names}")
    lack = "; ".join(lacks)
    if still >= deadline:
        return True, f"{lack}; nothing has come for {still:.0f} s" if lack else ""
    if lack:
        return False, lack
    return (True, "") if still >= quiet else (False, "more tilts may come")

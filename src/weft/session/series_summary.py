"""Tables for people: which tilt series were imported, what matched, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.session.series_import import ImportResult
from weft.session.tilt_table import TiltRow, TiltTable

__all__ = ["SERIES_HEAD", "TILT_HEAD", "describe", "series_row", "summary_rows", "tilt_rows"]

SERIES_HEAD = ("series", "tilts", "range", "axis", "dose", "remarks")
TILT_HEAD = ("tilt", "angle", "movie", "prior dose", "dose", "date", "state")


def series_row(table: TiltTable) -> tuple[str, ...]:
    """One series, as texts under `SERIES_HEAD`: tilts with an image of all, degrees, e/Å², remarks."""
    used = [row for row in table.tilts if _takes_part(row)]
    angles = [row.angle for row in used]
    doses = [row.exposure for row in table.tilts]
    known = [dose for dose in doses if dose is not None]
    dose = f"{sum(known):.1f}" if known and len(known) == len(doses) else "–"
    last = max((row.prior_dose for row in table.tilts if row.prior_dose is not None), default=None)
    if dose == "–" and last is not None:
        dose = f"> {last:.1f}"
    left_out = [f"{row.angle:g}°: {row.left_out}" for row in table.tilts if row.left_out]
    if not used:
        left_out = left_out[:1]
    more = [f"and {len(left_out) - 3} more"] if len(left_out) > 3 else []
    return (
        table.name,
        f"{len(used)}/{len(table.tilts)}",
        f"{min(angles):.1f} … {max(angles):.1f}" if angles else "–",
        "–" if table.tilt_axis is None else f"{table.tilt_axis:.1f}",
        dose,
        "; ".join([*table.notes, *left_out[:3], *more]),
    )


def summary_rows(tables: Iterable[TiltTable]) -> list[tuple[str, ...]]:
    """One row a series under `SERIES_HEAD`."""
    return [series_row(table) for table in tables]


def tilt_rows(table: TiltTable) -> list[tuple[str, ...]]:
    """One row a tilt under `TILT_HEAD`, in the order of acquisition."""

    def dose(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return [
        (
            str(i),
            f"{row.angle:.2f}",
            row.item or row.name,
            dose(row.prior_dose),
            dose(row.exposure),
            row.date,
            _state(row),
        )
        for i, row in enumerate(table.tilts)
    ]


def describe(result: ImportResult, *, verbose: bool = False) -> str:
    """What an import came to, as plain text; `verbose` lists every tilt of every series."""
    parts = []
    if result.tables:
        parts.append(_aligned(SERIES_HEAD, summary_rows(result.tables.values())))
    if verbose:
        parts += [f"{name}\n{_aligned(TILT_HEAD, tilt_rows(table))}" for name, table in result.tables.items()]
    parts += [f"Not understood: {problem}" for problem in result.problems]
    if result.unmatched_movies:
        shown = ", ".join(result.unmatched_movies[:3]) + (" …" if len(result.unmatched_movies) > 3 else "")
        parts.append(f"{len(result.unmatched_movies)} movies belong to no series: {shown}")
    return "\n\n".join(parts) or "No tilt series."


def _takes_part(row: TiltRow) -> bool:
    return not row.left_out and row.decision is not False and (row.image >= 0 or bool(row.movie))


def _state(row: TiltRow) -> str:
    if row.left_out:
        return row.left_out
    if row.decision is not None:
        return "kept by hand" if row.decision else "left out by hand"
    if row.failure:
        return f"failed: {row.failure}"
    if row.image >= 0:
        return f"section {row.image}"
    return "processed" if row.motion else "to be processed"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to the longest entry, the last one as it is."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join(
            [*(f"{text:<{width}}" for text, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )

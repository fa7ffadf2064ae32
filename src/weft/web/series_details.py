"""What the pages of tilt series show, made from their tables and records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.defocus.tilt_series import TiltCTF
from weft.errors import SessionError
from weft.session.records import Record
from weft.session.tilt_table import TiltRow, TiltTable, read_table
from weft.tilts.alignment import TiltAlignment
from weft.web import details
from weft.web.listing import plain
from weft.web.series_heads import alignment_head

if TYPE_CHECKING:
    from weft.session.board import Entry

__all__ = [
    "alignment",
    "changes",
    "ctf",
    "notes",
    "result",
    "stack_indices",
    "table_of",
    "tilts",
]


@lru_cache(maxsize=4096)
def _read_table(path: Path, stamp: tuple[int, int]) -> TiltTable:
    return read_table(path)


def table_of(entry: Entry) -> TiltTable | None:
    """The table of a series as it is now; None where it is gone or cannot be read."""
    path = Path(entry.source)
    try:
        stat = path.stat()
        return _read_table(path, (stat.st_size, stat.st_mtime_ns))
    except (OSError, SessionError):
        return None


def result(record: Record | None, step: str, name: str) -> Any:
    """What a step of a series has found.

    Raises
    ------
    details.Missing
    """
    done = record.steps.get(step) if record else None
    if done is None or done.status != "done" or name not in done.results:
        raise details.Missing(f"there is no result of the {step} step")
    return done.results[name]


def notes(record: Record | None) -> list[str]:
    """What the stack step remarked about the series."""
    try:
        return [str(note) for note in result(record, "stack", "notes")]
    except details.Missing:
        return []


def _stack_rows(record: Record | None) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = result(record, "stack", "tilts")
    except details.Missing:
        return []
    return rows


def changes(record: Record | None, table: TiltTable | None) -> list[str]:
    """What has been decided about a series, or has come, since its stack was made; sentences."""
    rows = _stack_rows(record)
    if table is None or not rows:
        return []
    before = {(row["name"], row["angle"]): row for row in rows}
    out: list[str] = []
    for now in table.tilts:
        old = before.get((now.name, now.angle))
        if old is None:
            out.append(f"{_degrees(now.angle)} is new")
        elif old["by_hand"] != now.decision:
            words = {None: "left to Weft again", True: "to be kept", False: "to be left out"}
            out.append(f"{_degrees(now.angle)} is {words[now.decision]}")
        elif not old["used"] and now.usable and old["reason"] and not _still(old["reason"], now):
            out.append(f"{_degrees(now.angle)} can be used now")
    return out


def _still(reason: str, now: TiltRow) -> bool:
    """Whether what kept a tilt out of the stack was found in its image, and so may keep it out again."""
    return "has not been processed" not in reason and "its movie failed" not in reason


def _degrees(angle: float) -> str:
    return f"{angle:.1f}°".replace("-", "−")


def tilts(
    record: Record | None, table: TiltTable | None, motion: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """All exposures of a series with everything that was measured on them.

    Parameters
    ----------
    motion : mapping
        Item → metrics, of the movies.
    """
    rows = _stack_rows(record)
    table_rows = list(table.tilts) if table else []
    out = []
    for index in range(max(len(rows), len(table_rows))):
        done = rows[index] if index < len(rows) else None
        now = table_rows[index] if index < len(table_rows) else None
        if done is not None and now is not None and (done["name"], done["angle"]) != (now.name, now.angle):
            done = None  # the table has other tilts by now
        out.append(_tilt(index, done, now, motion, stacked=bool(rows)))
    used = sorted((t for t in out if t["position"] is not None), key=lambda t: t["position"])
    _add_alignment(record, used)
    _add_ctf(record, used)
    found: list[dict[str, Any]] = plain(out)
    return found


_UNMEASURED = (
    "defocus",
    "defocus_error",
    "astigmatism",
    "resolution",
    "fitted",
    "residual",
    "residual_max",
    "observations",
    "expected_error",
    "aligned",
)


def _tilt(
    index: int,
    done: Mapping[str, Any] | None,
    now: TiltRow | None,
    motion: Mapping[str, Mapping[str, Any]],
    *,
    stacked: bool,
) -> dict[str, Any]:
    row = done or {}
    item = now.item if now else str(row.get("item", ""))
    decision = now.decision if now else row.get("by_hand")
    moved = motion.get(item, {}).get("motion_total")
    return {
        "index": index,
        "item": item,
        "name": now.name if now else row.get("name", ""),
        "angle": now.angle if now else row.get("angle"),
        "date": now.date if now else row.get("date", ""),
        "exposure": row.get("exposure", now.exposure if now else None),
        "dose": row.get("dose", _dose(now)),
        "used": bool(row.get("used", now is not None and now.usable and not stacked)),
        "position": row.get("section"),
        "reason": row.get("reason", "") if done else _why_not(now),
        "doubt": row.get("doubt", ""),
        "decision": decision,
        "pending": done is not None and row.get("by_hand") != decision,
        "pictured": bool(row.get("thumbnail")) or bool(motion.get(item)),
        "counts": row.get("counts"),
        "relative_counts": row.get("relative_counts"),
        "motion": moved if isinstance(moved, int | float) else None,
        **dict.fromkeys(_UNMEASURED),
    }


def _dose(now: TiltRow | None) -> float | None:
    """What the specimen had received by the end of an exposure, as far as its origin tells."""
    if now is None or now.exposure is None or now.prior_dose is None:
        return None
    return now.prior_dose + now.exposure


def _why_not(now: TiltRow | None) -> str:
    """Why an exposure would take no part, before there is a stack."""
    if now is None or now.waiting:
        return ""
    if now.left_out:
        return now.left_out
    if now.decision is False:
        return "left out by hand"
    return f"its movie failed: {now.failure}" if now.failure else ""


def _add_alignment(record: Record | None, used: list[dict[str, Any]]) -> None:
    try:
        found = TiltAlignment.from_dict(dict(result(record, "align", "alignment")))
    except details.Missing:
        return
    if len(found) != len(used):
        return  # of another stack
    columns = {name: values.tolist() for name, values in found.per_tilt().items()}
    for i, row in enumerate(used):
        seen = int(columns["observations"][i])
        row["residual"] = columns["residual_mean"][i] if seen else None
        row["residual_max"] = columns["residual_max"][i] if seen else None
        row["observations"] = seen
        row["expected_error"] = columns["expected_error"][i]
        row["aligned"] = bool(columns["aligned"][i])


def _add_ctf(record: Record | None, used: list[dict[str, Any]]) -> None:
    try:
        found = result(record, "tilt_ctf", "ctf")
    except details.Missing:
        return
    if len(found["defocus"]) != len(used):
        return
    for i, row in enumerate(used):
        row["defocus"] = found["defocus"][i]
        row["defocus_error"] = found["defocus_error"][i]
        row["astigmatism"] = found["delta"][i]
        row["fitted"] = bool(found["fitted"][i])
        # where rings were not found their end is that of the fit's range, which says nothing
        row["resolution"] = found["resolution"][i] if found["fitted"][i] else None


def stack_indices(record: Record | None, count: int) -> list[int]:
    """The tilts' indices in the order of the stack.

    Raises
    ------
    details.Missing
        When the result belongs to another stack than is there.
    """
    used = sorted((row["section"], row["index"]) for row in _stack_rows(record) if row["section"] is not None)
    if len(used) != count:
        raise details.Missing("its tilts have changed since, and it is being made again")
    return [index for _, index in used]


_OF_TILTS = ("stage_angle", "angle", "axis", "shift_x", "shift_y")


def alignment(record: Record | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As `weft.web.series_models.AlignmentDetails` has it.

    Raises
    ------
    details.Missing
    """
    found = TiltAlignment.from_dict(dict(result(record, "align", "alignment")))
    indices = stack_indices(record, len(found))
    seen, geometry = found.observations, found.geometry
    places = (seen.observed + 0.5 * geometry.image_size).numpy().round(2)
    apart = seen.residuals.numpy().round(3)
    lengths, kept = np.linalg.norm(apart, axis=-1), seen.weight.numpy() > 0.0
    marker = seen.marker.numpy()
    count = np.bincount(marker[kept], minlength=len(found.markers))
    total = np.bincount(marker[kept], lengths[kept], minlength=len(found.markers))
    columns = found.per_tilt()
    out: dict[str, Any] = plain(
        {
            **(alignment_head(metrics) or {}),
            "method": found.method,
            "verdict": found.verdict,
            "markers": len(found.markers),
            "notes": list(found.notes),
            "levelling": found.levelling.how,
            "level_x": float(geometry.level_x),
            "level_y": float(geometry.level_y),
            "thickness": found.levelling.thickness or None,
            "pixel_size": found.pixel_size,
            "image_size": geometry.image_size.tolist(),
            "volume_size": geometry.volume_size.tolist(),
            "tilts": [
                {"index": index, "stage_angle": stage, "angle": angle, "axis": axis, "shift": [x, y]}
                for index, stage, angle, axis, x, y in zip(
                    indices,
                    *(columns[name].tolist() for name in _OF_TILTS),
                    strict=True,
                )
            ],
            "positions": [
                {"xyz": xyz, "observations": int(n), "residual": float(sum_ / n) if n else None}
                for xyz, n, sum_ in zip(found.markers.numpy().round(2).tolist(), count, total, strict=True)
            ],
            "observations": {
                "marker": marker.tolist(),
                "tilt": [indices[i] for i in seen.tilt.tolist()],
                "x": places[:, 0].tolist(),
                "y": places[:, 1].tolist(),
                "dx": apart[:, 0].tolist(),
                "dy": apart[:, 1].tolist(),
                "weight": seen.weight.numpy().round(3).tolist(),
            },
        }
    )
    return out


def ctf(record: Record | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As `weft.web.series_models.CtfDetails` has it.

    Raises
    ------
    details.Missing
    """
    found = TiltCTF.from_dict(dict(result(record, "tilt_ctf", "ctf")))
    mean = found.mean_curve
    out: dict[str, Any] = plain(
        {
            "defocus": float(np.median(found.defocus)),
            "resolution": found.series_resolution,
            "score": found.score,
            "verdict": found.verdict,
            "notes": list(found.notes),
            "fit_range": list(found.fit_range),
            "level_x": found.level_x,
            "level_y": found.level_y,
            "level_error": list(found.level_error),
            "fitted": int(found.fitted.sum()),
            "curve": None
            if mean is None
            else details.shown_curve(mean.k, mean.power, mean.background, mean.fit, mean.correlation),
        }
    )
    return out

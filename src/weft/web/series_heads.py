"""Tilt series in a line: what lists of them show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weft.session.tilt_table import TiltRow, TiltTable

if TYPE_CHECKING:
    from weft.session.board import Entry

__all__ = ["MAPS", "alignment_head", "hand_head", "head", "revision"]

#: What the page calls a map → the output of the reconstruct step.
MAPS = {"raw": "tomogram", "deconvolved": "tomogram_deconvolved", "denoised": "tomogram_denoised"}
#: What the plan says of a series whose table is another one than when its stack was made.


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None  # type: ignore[arg-type]


def _whole(metrics: Mapping[str, Any], name: str) -> int | None:
    value = _number(metrics, name)
    return None if value is None else round(value)


def alignment_head(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The alignment in a line; None before it is known."""
    if "alignment_method" not in metrics:
        return None
    return {
        "method": str(metrics["alignment_method"]),
        "verdict": metrics.get("alignment_verdict"),
        "axis": _number(metrics, "alignment_axis"),
        "residual": _number(metrics, "alignment_residual_mean"),
        "residual_px": _number(metrics, "alignment_residual_mean_px"),
        "expected_error": _number(metrics, "alignment_expected_error_median"),
        "markers": _whole(metrics, "alignment_markers"),
    }


def ctf_head(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The CTF in a line; None before it is known."""
    if "series_ctf_verdict" not in metrics:
        return None
    return {
        "defocus": _number(metrics, "series_defocus"),
        "resolution": _number(metrics, "series_resolution"),
        "score": _number(metrics, "series_ctf_score"),
        "verdict": metrics["series_ctf_verdict"],
    }


def hand_head(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The handedness in a line; None before it is known."""
    if "hand_verdict" not in metrics:
        return None
    return {
        "hand": _number(metrics, "hand"),
        "origin": metrics.get("hand_from"),
        "verdict": metrics["hand_verdict"],
        "significance": _number(metrics, "hand_significance"),
    }


def tomogram_head(entry: Entry) -> dict[str, Any] | None:
    """The volume in a line; None before it is there."""
    maps = [name for name, output in MAPS.items() if output in entry.outputs]
    if not maps:
        return None
    shape = [_whole(entry.metrics, f"tomogram_{axis}") for axis in "zyx"]
    return {
        "pixel_size": _number(entry.metrics, "tomogram_pixel_size"),
        "shape": None if None in shape else shape,
        "maps": maps,
    }


def revision(entry: Entry) -> str:
    """Changes with the record and with the table."""
    return f"{int((entry.processed or 0.0) * 1000):x}-{int(entry.mtime * 1000):x}"


def head(entry: Entry, table: TiltTable | None, waiting: str) -> dict[str, Any]:
    """One series as `weft.web.series_models.SeriesHead` has it."""
    rows: Sequence[TiltRow] = table.tilts if table else ()
    taking_part = [row for row in rows if not row.left_out and row.decision is not False]
    angles = [row.angle for row in taking_part]
    metrics = entry.metrics
    doses = [row.exposure for row in rows]
    dose = _number(metrics, "series_dose")
    if dose is None and doses and None not in doses:
        dose = float(sum(d for d in doses if d is not None))
    left = _whole(metrics, "tilts_left_out")
    used = _whole(metrics, "tilts")
    count = len(rows) or (used or 0) + (left or 0)
    idle = entry.state not in ("done", "processing")
    return {
        "id": entry.name,
        "name": entry.name,
        "state": entry.state,
        "reason": entry.reason,
        "step": entry.step,
        "waiting": waiting if idle else "",
        "time": entry.mtime,
        "processed": entry.processed,
        "revision": revision(entry),
        "tilts": count,
        "used": len(taking_part) if used is None else used,
        "to_come": sum(row.waiting for row in rows),
        "angle_min": _number(metrics, "tilt_min") if "tilt_min" in metrics else min(angles, default=None),
        "angle_max": _number(metrics, "tilt_max") if "tilt_max" in metrics else max(angles, default=None),
        "dose": dose,
        "alignment": alignment_head(metrics),
        "ctf": ctf_head(metrics),
        "hand": hand_head(metrics),
        "tomogram": tomogram_head(entry),
        "pictures": [name for name, path in entry.outputs.items() if path.endswith(".png")],
    }

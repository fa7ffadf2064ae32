"""Lists of items: filtered, searched, sorted, and all of them by column."""

from __future__ import annotations

import gzip
import math
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from weft.session.discovery import natural_key
from weft.session.quantities import QUANTITIES, shown_values

if TYPE_CHECKING:
    from weft.session.board import Board, Entry
    from weft.session.selection import Selection, Verdict

__all__ = [
    "STATES",
    "ColumnCache",
    "columns",
    "find",
    "item",
    "items",
    "json_bytes",
    "plain",
    "sort_names",
]

STATES = ("new", "processing", "done", "failed", "stale")

#: Metrics that plots need beside the quantities: name → (metric, label, unit, scale).
_FURTHER = {
    "astigmatism_angle": ("astigmatism_angle", "Direction of astigmatism", "°", 1.0),
    "tilt_axis": ("tilt_axis", "Direction of the tilt axis", "°", 1.0),
    "defocus_range": ("defocus_range", "Range of defocus over the field", "µm", 1e-4),
    "defocus_error": ("defocus_error", "Expected error of defocus", "µm", 1e-4),
    "late_motion": ("motion_late", "Late motion", "Å", 1.0),
    "local_motion": ("motion_local", "Local motion", "Å", 1.0),
}
#: Columns that an item's own metrics give: name → (metric, scale); the others depend on all items.
_OWN = {name: (one.metric, one.scale) for name, one in QUANTITIES.items() if not one.among_all}
_OWN |= {name: (metric, scale) for name, (metric, _, _, scale) in _FURTHER.items()}
_PACKING = 4  # gzip's level: most of what 9 gives, in a third of the time


def _text(value: str) -> str:
    """Text that can be sent: file names may hold bytes that are no characters."""
    return value.encode("utf-8", "replace").decode()


def plain(value: Any) -> Any:
    """A copy that JSON takes: no number that is none, no text that is no text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _manual(name: str, selection: Selection) -> str | None:
    return "exclude" if name in selection.exclude else "include" if name in selection.include else None


def _revision(entry: Entry) -> str:
    return "0" if entry.processed is None else f"{int(entry.processed * 1000):x}"


def _own_shown(entry: Entry) -> dict[str, float | None]:
    shown: dict[str, float | None] = dict.fromkeys(_OWN)
    if entry.kind == "series":
        return shown
    for name, (metric, scale) in _OWN.items():
        value = entry.metrics.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            shown[name] = float(f"{value * scale:.7g}")
    return shown


def item(
    entry: Entry, verdict: Verdict, selection: Selection, among: Mapping[str, float | None]
) -> dict[str, Any]:
    """One item as `weft.web.models.Item` has it.

    Parameters
    ----------
    among : mapping
        Its values of the quantities that depend on all items.
    """
    processed = entry.processed
    return {
        "id": entry.name,
        "name": entry.name,
        "kind": entry.kind,
        "state": entry.state,
        "reason": _text(entry.reason),
        "step": entry.step,
        "selected": verdict.selected,
        "reasons": [_text(reason) for reason in verdict.reasons],
        "manual": _manual(entry.name, selection),
        "time": entry.mtime,
        "processed": processed,
        "folder": _text(entry.folder),
        "metrics": plain(dict(entry.metrics)),
        "shown": _own_shown(entry) | dict(among),
        "outputs": list(entry.outputs),
        "revision": _revision(entry),
    }


def items(board: Board, names: Iterable[str]) -> list[dict[str, Any]]:
    """Some items; those that have gone meanwhile are left out."""
    entries, verdicts, selection = board.entries, board.verdicts, board.selection
    metrics = {name: entry.metrics for name, entry in entries.items() if entry.kind != "series"}
    among = {
        quantity: dict(zip(metrics, _rounded(shown_values(metrics, quantity)), strict=True))
        for quantity in QUANTITIES
        if quantity not in _OWN
    }
    return [
        item(
            entries[name],
            verdicts[name],
            selection,
            {quantity: plain(values.get(name)) for quantity, values in among.items()},
        )
        for name in names
        if name in entries
    ]


def sort_names() -> list[str]:
    """What lists can be sorted by, a minus before it for the other direction."""
    return ["name", "time", "processed", "state", "folder", "selected", *QUANTITIES, *_FURTHER]


def _sort_values(board: Board, found: list[Entry], by: str) -> list[Any]:
    """One value for each item, None where it has none."""
    if by in QUANTITIES or by in _FURTHER:
        # a quantity may depend on all items, whichever are shown
        entries = list(board.entries.values())
        values = dict(zip((e.name for e in entries), _shown(entries, by).tolist(), strict=True))
        return [value if math.isfinite(value) else None for value in (values[e.name] for e in found)]
    if by == "selected":
        verdicts = board.verdicts
        return [verdicts[entry.name].selected for entry in found]
    if by == "time":
        return [entry.mtime for entry in found]
    if by == "folder":
        return [natural_key(entry.folder) for entry in found]
    return [getattr(entry, by) for entry in found]


def find(
    board: Board,
    *,
    sort: str = "name",
    kinds: Collection[str] = (),
    states: Collection[str] = (),
    search: str = "",
    selected: bool | None = None,
) -> list[str]:
    """Names of the items that the filters leave, sorted; what has no value comes last either way.

    Parameters
    ----------
    sort : str
        One of `sort_names`, with a minus before it for falling order.
    kinds : collection of str
        Only items of these; all for none.
    states : collection of str
        Only items in these; all for none.
    search : str
        Text in the name, the folder or the reason; every word must be there.
    selected : bool, optional
        Only those that are (not) selected.
    """
    entries = board.entries
    found = list(entries.values())
    if kinds:
        found = [entry for entry in found if entry.kind in kinds]
    if states:
        found = [entry for entry in found if entry.state in states]
    if selected is not None:
        verdicts = board.verdicts
        found = [entry for entry in found if verdicts[entry.name].selected is selected]
    for word in search.casefold().split():
        found = [
            entry
            for entry in found
            if word in entry.name.casefold()
            or word in entry.folder.casefold()
            or word in entry.reason.casefold()
        ]
    by, falling = sort.removeprefix("-"), sort.startswith("-")
    if by == "name":  # as the board keeps them
        names = [entry.name for entry in found]
        return names[::-1] if falling else names
    values = _sort_values(board, found, by)
    known = [(value, i) for i, value in enumerate(values) if value is not None]
    # equal values stay in the order of names in both directions
    known.sort(key=lambda pair: pair[0], reverse=falling)
    unknown = [i for i, value in enumerate(values) if value is None]
    return [found[i].name for _, i in known] + [found[i].name for i in unknown]


def _shown(entries: Iterable[Entry], name: str) -> NDArray[np.float64]:
    """One column of items in the unit of screens; NaN where it was not measured."""
    # what a tilt series is measured by is called the same, and is not the same
    metrics = {entry.name: entry.metrics if entry.kind != "series" else {} for entry in entries}
    if name in QUANTITIES:
        return shown_values(metrics, name)
    metric, _, _, scale = _FURTHER[name]
    found = [row.get(metric) for row in metrics.values()]
    return np.array([v if isinstance(v, int | float) else np.nan for v in found], float) * scale


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """Seven digits, enough for a plot."""
    with np.errstate(all="ignore"):
        scale = 10.0 ** (6.0 - np.floor(np.log10(np.abs(values))))
        rounded = np.where(np.isfinite(scale), np.round(values * scale) / scale, values)
    out: list[float] = rounded.tolist()
    return out


def columns(board: Board) -> dict[str, Any]:
    """All movies by column, as `weft.web.models.Columns` has it; quantities that none has are left out.

    Tilt series are no rows of it: they have lists of their own.
    """
    version = board.version
    entries = [entry for entry in board.entries.values() if entry.kind != "series"]
    verdicts = board.verdicts
    named = {name: (quantity.label, quantity.unit) for name, quantity in QUANTITIES.items()}
    named |= {name: (label, unit) for name, (_, label, unit, _) in _FURTHER.items()}
    metrics = {}
    for name, (label, unit) in named.items():
        values = _shown(entries, name)
        if np.isfinite(values).any():
            metrics[name] = {"label": label, "unit": unit, "values": _rounded(values)}
    return {
        "version": version,
        "ids": [entry.name for entry in entries],
        "time": [entry.mtime for entry in entries],
        "state": [entry.state for entry in entries],
        "selected": [int(verdicts[entry.name].selected) for entry in entries],
        "kind": [entry.kind for entry in entries],
        "folder": [_text(entry.folder) for entry in entries],
        "reason": [_text(entry.reason) for entry in entries],
        "revision": [_revision(entry) for entry in entries],
        "metrics": metrics,
    }


def json_bytes(value: Any) -> bytes:
    """Compact JSON; numbers that are none become null."""
    return to_json(value, inf_nan_mode="null")


class ColumnCache:
    """The columns as JSON, plain and packed, made once for each version of the board."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version: int | None = None
        self._plain = self._packed = b""

    def get(self, board: Board, packed: bool) -> bytes:
        """The body of an answer; `packed` with gzip."""
        with self._lock:  # several browsers at once: one of them makes it
            if self._version != board.version:
                table = columns(board)
                self._plain = json_bytes(table)
                self._packed = gzip.compress(self._plain, _PACKING, mtime=0)
                self._version = table["version"]
            return self._packed if packed else self._plain

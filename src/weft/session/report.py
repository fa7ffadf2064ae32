"""`weft report`: what a session has given, in one file that can be sent, printed and kept."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weft.__about__ import __version__
from weft.formats.atomic import atomic_write_text
from weft.session.discovery import find_movies, name_items, natural_key
from weft.session.empiar import Images, image_sets, images_of
from weft.session.fields import describe_all, format_value
from weft.session.plan import Expectations, item_state, states_under
from weft.session.records import Record
from weft.session.selection import Judgement, Selection
from weft.session.tilt_table import current_input

if TYPE_CHECKING:
    from weft.session.config import SessionSettings
    from weft.session.session import Session

__all__ = ["Report", "Row", "SettingShown", "gather", "make_report"]

#: Packages whose versions can matter for a result.
_PACKAGES = ("torch", "numpy", "scipy", "numba", "mrcfile", "tifffile", "imagecodecs", "dask")


@dataclass(frozen=True)
class Row:
    """What the report needs of one item; records, with their tracks, are too large to keep.

    Attributes
    ----------
    name, source, state, reason : str
    time : float
        When the movie was recorded: its file's date, s.
    metrics, outputs : dict
    seconds : float
        That its steps took.
    """

    name: str
    source: str
    state: str
    reason: str = ""
    time: float = math.nan
    metrics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class SettingShown:
    """One setting as the report lists it."""

    key: str
    value: str
    unit: str
    changed: bool


@dataclass(frozen=True)
class Report:
    """Everything that the page is made from.

    Attributes
    ----------
    root : Path
    written : str
        When, with its time zone.
    rows : list of Row
        In the order of recording.
    selection : Selection
    judgement : Judgement
    settings : list of SettingShown
    versions : dict
        Program → version.
    imagesets : list of dict
        For EMPIAR.
    """

    root: Path
    written: str
    rows: list[Row]
    selection: Selection
    judgement: Judgement
    settings: list[SettingShown]
    versions: Mapping[str, str]
    imagesets: list[dict[str, Any]]

    @property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        """Item → metrics, in the order of the rows."""
        return {row.name: row.metrics for row in self.rows}

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Of each row."""
        return np.array([self.judgement.verdicts[row.name].selected for row in self.rows], dtype=np.bool_)

    @property
    def hours(self) -> NDArray[np.float64]:
        """When each row was recorded, in hours after the first."""
        times = np.array([row.time for row in self.rows], dtype=np.float64)
        first = times[np.isfinite(times)].min(initial=np.inf)
        return (times - first) / 3600.0 if np.isfinite(first) else times

    def numbers(self) -> dict[str, Any]:
        """The figures at the top; None where there is none."""
        states = Counter(row.state for row in self.rows)
        hours = self.hours[np.isfinite(self.hours)]
        span = float(hours.max(initial=0.0))
        seconds = [row.seconds for row in self.rows if row.state == "done" and row.seconds > 0]
        return {
            "movies": len(self.rows),
            **{state: states[state] for state in ("done", "failed", "stale", "new")},
            "selected": int(self.selected.sum()),
            "excluded": len(self.selection.exclude),
            "hours": round(span, 3),
            # n movies have n − 1 intervals between them
            "movies_per_hour": round((len(hours) - 1) / span, 1) if span > 0 else None,
            "seconds_per_movie": round(float(np.median(seconds)), 2) if seconds else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: numbers, filters, versions, EMPIAR image sets."""
        filters = {
            name: {"range": list(self.selection.ranges[name]), **vars(count)}
            for name, count in self.judgement.counts.items()
        }
        return {
            "session": str(self.root),
            "written": self.written,
            "numbers": self.numbers(),
            "filters": filters,
            "failed": {row.name: row.reason for row in self.rows if row.state == "failed"},
            "versions": dict(self.versions),
            "imagesets": self.imagesets,
        }


def gather(session: Session) -> Report:
    """Read a session for a report.

    Raises
    ------
    SessionError, SettingsError
    """
    settings = session.settings
    rows: list[Row] = []
    images: list[Images] = []
    known: dict[str, str] = {}
    expectations = Expectations(settings, session.root)
    for name in session.store.names():
        record = session.store.read(name)
        if record is None:
            continue
        known[record.input.path] = name
        rows.append(_row(record, expectations))
        found = images_of(record)
        if found is not None:
            images.append(found)
    have = set(known.values())
    for name, path in name_items(find_movies(settings.input, session.root), known).items():
        if name not in have:
            rows.append(Row(name, str(path), "new", time=_date(path)))
    rows.sort(key=lambda row: (math.inf if math.isnan(row.time) else row.time, natural_key(row.name)))
    selection = session.selection
    return Report(
        root=session.root,
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        rows=rows,
        selection=selection,
        judgement=selection.judgement({row.name: row.metrics for row in rows}),
        settings=_settings(settings),
        versions=_versions(),
        imagesets=image_sets(images, session.root.name),
    )


def _row(record: Record, expectations: Expectations) -> Row:
    states = states_under(expectations, record, current_input(record))
    state = item_state(states)
    outputs: dict[str, str] = {}
    for step in record.steps.values():
        outputs.update(step.outputs if step.status == "done" else {})
    return Row(
        name=record.item,
        source=record.input.path,
        state=state,
        reason=next((s.reason for s in states.values() if s.state == state and s.reason), ""),
        time=1e-9 * record.input.mtime_ns if record.input.mtime_ns else math.nan,
        metrics=record.metrics,
        outputs=outputs,
        seconds=sum(record.timings.values()),
    )


def _date(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return math.nan


def _settings(settings: SessionSettings) -> list[SettingShown]:
    out = []
    for section, values in settings.values.items():
        for doc in describe_all(type(values)):
            value = getattr(values, doc.name)
            shown = "none" if value is None else format_value(value)
            out.append(
                SettingShown(f"{section}.{doc.name}", shown, doc.unit, doc.required or value != doc.default)
            )
    return out


def _versions() -> dict[str, str]:
    out = {"weft": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    out["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return out


def make_report(session: Session, output: str | Path | None = None) -> tuple[Path, Report]:
    """Write a session's report: one HTML file that needs nothing else.

    Parameters
    ----------
    output : path-like, optional
        ``reports/report.html`` in the session by default.

    Returns
    -------
    Path, Report
    """
    from weft.session.report_page import page

    path = session.root / "reports" / "report.html" if output is None else Path(output)
    report = gather(session)
    text = page(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)
    return path, report

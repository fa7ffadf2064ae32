"""Which micrographs are good enough: ranges on their metrics, and decisions by hand that overrule them.

`Selection.judge` is the one place where this is decided, for all items at once: how far an item's
astigmatism is from that of the others can only be told among the others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import SessionError
from weft.formats.atomic import atomic_write_text
from weft.session.quantities import (
    QUANTITIES,
    Metrics,
    Quantity,
    astigmatism_vectors,
    shown_values,
    values_of,
    vector_spread,
)

__all__ = [
    "QUANTITIES",
    "FilterCount",
    "Judgement",
    "Quantity",
    "Selection",
    "Verdict",
    "astigmatism_vectors",
    "parse_range",
    "shown_values",
    "vector_spread",
]

Range = tuple[float | None, float | None]


def parse_range(text: str) -> Range:
    """``"0.3:5"``, ``":8"`` or ``"2:"``.

    Raises
    ------
    SessionError
    """
    low, colon, high = text.partition(":")
    try:
        if not colon:
            raise ValueError
        bounds = (float(low) if low.strip() else None, float(high) if high.strip() else None)
        if any(bound != bound for bound in bounds):
            raise ValueError
    except ValueError:
        raise SessionError(
            f"{text!r} is not a range; write LOW:HIGH, and leave out what has no limit."
        ) from None
    if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise SessionError(f"{text!r}: the lower limit is above the upper one.")
    return bounds


@dataclass(frozen=True)
class Verdict:
    """Whether an item is selected, and why not.

    Attributes
    ----------
    selected : bool
    reasons : tuple of str
        Every range that it lies outside of, or the decision by hand, or that nothing is measured yet.
    """

    selected: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilterCount:
    """What one range does.

    Attributes
    ----------
    passes : int
        Items within it, whatever the other ranges and decisions by hand say.
    rejects : int
        Items that were measured and lie outside.
    unmeasured : int
        Items without this metric that have others.
    only : int
        Items, not decided by hand, that this range leaves out and no other does.
    """

    passes: int
    rejects: int
    unmeasured: int
    only: int


@dataclass(frozen=True)
class Judgement:
    """What a selection says about all items.

    Attributes
    ----------
    verdicts : dict
        Item → verdict.
    counts : dict
        Quantity with a range → what the range does.
    measured : int
        Items of which anything is known.
    """

    verdicts: Mapping[str, Verdict]
    counts: Mapping[str, FilterCount]
    measured: int


_SELECTED = Verdict(True)
_INCLUDED = Verdict(True, ("included by hand",))
_EXCLUDED = Verdict(False, ("excluded by hand",))
_UNMEASURED = Verdict(False, ("not measured",))


@dataclass(frozen=True)
class Selection:
    """Ranges and decisions by hand: separate facts, kept in selection.json.

    Attributes
    ----------
    ranges : dict
        Quantity → (low, high) in the units of :data:`QUANTITIES`; None is no limit.
    include, exclude : frozenset of str
        Items decided by hand, whatever the ranges say.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()

    @classmethod
    def load(cls, root: Path) -> Selection:
        """The session's selection; an empty one where none was made.

        Raises
        ------
        SessionError
        """
        path = root / "selection.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            selection = cls({}, frozenset(data["include"]), frozenset(data["exclude"]))
            for name, (low, high) in data["ranges"].items():
                bounds = tuple(None if bound is None else float(bound) for bound in (low, high))
                selection = selection.with_range(name, *bounds)
            return selection
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, SessionError) as error:
            said = str(error).rstrip(".")
            raise SessionError(f"{path} is not a selection ({said}); delete it to start again.") from None

    def save(self, root: Path) -> None:
        """Write selection.json."""
        data = {
            "ranges": {name: list(bounds) for name, bounds in self.ranges.items()},
            "include": sorted(self.include),
            "exclude": sorted(self.exclude),
        }
        atomic_write_text(root / "selection.json", json.dumps(data, indent=1, ensure_ascii=False))

    def with_range(self, quantity: str, low: float | None, high: float | None) -> Selection:
        """The same with one range set; no limits at all removes it.

        Raises
        ------
        SessionError
        """
        if quantity not in QUANTITIES:
            raise SessionError(f"{quantity!r} cannot be filtered by; there are {', '.join(QUANTITIES)}.")
        ranges = {name: bounds for name, bounds in self.ranges.items() if name != quantity}
        if low is not None or high is not None:
            ranges[quantity] = (low, high)
        return replace(self, ranges=ranges)

    def decide(self, item: str, accept: bool | None) -> Selection:
        """The same with one item decided by hand; None leaves it to the ranges again."""
        return self.decide_all((item,), accept)

    def decide_all(self, items: Iterable[str], accept: bool | None) -> Selection:
        """The same with some items decided by hand; None leaves them to the ranges again."""
        names = frozenset(items)
        return replace(
            self,
            include=self.include | names if accept is True else self.include - names,
            exclude=self.exclude | names if accept is False else self.exclude - names,
        )

    def manual(self, item: str) -> bool | None:
        """What was decided by hand about an item: True, False, or None for nothing."""
        return False if item in self.exclude else True if item in self.include else None

    @property
    def among_all(self) -> bool:
        """Whether a verdict depends on the metrics of the other items."""
        return any(QUANTITIES[name].among_all for name in self.ranges)

    def judge(self, metrics: Metrics, beyond: Collection[str] = ()) -> dict[str, Verdict]:
        """Whether each item belongs to the selection.

        Parameters
        ----------
        metrics : mapping
            Item → its metrics as in records, of all items. One without any metric is not selected, because
            there is nothing to select yet, unless it was included by hand.
        beyond : collection of str
            Items that the ranges do not speak of: tilt series.
        """
        names, rows = list(metrics), list(metrics.values())
        out = {name: _SELECTED if row else _UNMEASURED for name, row in zip(names, rows, strict=True)}
        reasons: dict[int, list[str]] = {}
        for quantity, (low, high) in self.ranges.items():
            values = values_of(rows, quantity)
            shown = QUANTITIES[quantity].unit
            unit = f" {shown}" if shown else ""
            for i in np.flatnonzero(~_within(values, low, high)).tolist():
                value = float(values[i])
                if value != value:
                    reason = f"{quantity} not measured"
                elif low is not None and value < low:
                    reason = f"{quantity} {value:.3g}{unit} < {low:g}"
                else:
                    reason = f"{quantity} {value:.3g}{unit} > {high:g}"
                reasons.setdefault(i, []).append(reason)
        for i, found in reasons.items():
            if rows[i] and names[i] not in beyond:
                out[names[i]] = Verdict(False, tuple(found))
        out.update({name: _INCLUDED for name in self.include if name in out})
        out.update({name: _EXCLUDED for name in self.exclude if name in out})
        return out

    def judgement(self, metrics: Metrics) -> Judgement:
        """:meth:`judge` and :meth:`counts` in one."""
        return Judgement(self.judge(metrics), self.counts(metrics), sum(map(bool, metrics.values())))

    def counts(self, metrics: Metrics) -> dict[str, FilterCount]:
        """What each range does, by quantity.

        Parameters
        ----------
        metrics : mapping
            As for :meth:`judge`.
        """
        measured = {name: row for name, row in metrics.items() if row}
        rows = list(measured.values())
        values = {name: values_of(rows, name) for name in self.ranges}
        inside = {name: _within(values[name], *bounds) for name, bounds in self.ranges.items()}
        free = np.array([self.manual(name) is None for name in measured], dtype=np.bool_)
        failures = sum((~ok for ok in inside.values()), start=np.zeros(len(rows), np.int64))
        out = {}
        for name, ok in inside.items():
            passes, known = int(ok.sum()), int(np.isfinite(values[name]).sum())
            only = int((~ok & (failures == 1) & free).sum())
            out[name] = FilterCount(passes, known - passes, len(rows) - known, only)
        return out


def _within(values: NDArray[np.float64], low: float | None, high: float | None) -> NDArray[np.bool_]:
    """Which values lie in a range, its limits included; what was not measured does not."""
    inside = np.isfinite(values)
    if low is not None:
        inside &= values >= low
    if high is not None:
        inside &= values <= high
    return inside

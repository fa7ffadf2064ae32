"""Which micrographs are good enough: ranges on their metrics, and decisions by hand that overrule them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weft.errors import SessionError
from weft.formats.atomic import atomic_write_text
from weft.session.records import Record

__all__ = ["QUANTITIES", "Quantity", "Selection", "Verdict", "parse_range"]


@dataclass(frozen=True)
class Quantity:
    """A metric as people name it: `scale` takes the record's unit to the one of screens."""

    metric: str
    unit: str
    scale: float
    description: str


#: What `weft select` filters by.
QUANTITIES: Mapping[str, Quantity] = {
    "defocus": Quantity("defocus", "µm", 1e-4, "Mean defocus"),
    "astigmatism": Quantity("astigmatism", "µm", 1e-4, "Astigmatism (defocus_u − defocus_v)"),
    "phase": Quantity("phase_shift", "°", 1.0, "Phase shift"),
    "resolution": Quantity("resolution", "Å", 1.0, "Resolution to which the CTF fits"),
    "motion": Quantity("motion_total", "Å", 1.0, "Accumulated motion"),
    "ice": Quantity("ice_ring", "", 1.0, "Density of the ice ring"),
    "tilt": Quantity("tilt", "°", 1.0, "Tilt of the plane of defocus"),
}


def parse_range(text: str) -> tuple[float | None, float | None]:
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
        Every range that it lies outside of, or the decision by hand.
    """

    selected: bool
    reasons: tuple[str, ...] = ()


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

    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
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
            ranges = {name: (bounds[0], bounds[1]) for name, bounds in data["ranges"].items()}
            return cls(ranges, frozenset(data["include"]), frozenset(data["exclude"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise SessionError(f"{path} is not a selection ({error}); delete it to start again.") from None

    def save(self, root: Path) -> None:
        """Write selection.json."""
        data = {
            "ranges": {name: list(bounds) for name, bounds in self.ranges.items()},
            "include": sorted(self.include),
            "exclude": sorted(self.exclude),
        }
        atomic_write_text(root / "selection.json", json.dumps(data, indent=1, ensure_ascii=False))

    def with_range(self, quantity: str, low: float | None, high: float | None) -> Selection:
        """The same with one range set; no limits at all removes it."""
        if quantity not in QUANTITIES:
            raise SessionError(f"{quantity!r} cannot be filtered by; there are {', '.join(QUANTITIES)}.")
        ranges = {name: bounds for name, bounds in self.ranges.items() if name != quantity}
        if low is not None or high is not None:
            ranges[quantity] = (low, high)
        return replace(self, ranges=ranges)

    def decide(self, item: str, accept: bool | None) -> Selection:
        """The same with one item decided by hand; None leaves it to the ranges again."""
        return replace(
            self,
            include=self.include - {item} | ({item} if accept is True else set()),
            exclude=self.exclude - {item} | ({item} if accept is False else set()),
        )

    def verdict(self, record: Record) -> Verdict:
        """Whether an item belongs to the selection."""
        if record.item in self.exclude:
            return Verdict(False, ("excluded by hand",))
        if record.item in self.include:
            return Verdict(True, ("included by hand",))
        reasons = []
        metrics = record.metrics
        for name, (low, high) in self.ranges.items():
            quantity = QUANTITIES[name]
            value: Any = metrics.get(quantity.metric)
            unit = f" {quantity.unit}" if quantity.unit else ""
            if value is None:
                reasons.append(f"{name} not measured")
                continue
            shown = value * quantity.scale
            if low is not None and shown < low:
                reasons.append(f"{name} {shown:.3g}{unit} < {low:g}")
            elif high is not None and shown > high:
                reasons.append(f"{name} {shown:.3g}{unit} > {high:g}")
        return Verdict(not reasons, tuple(reasons))

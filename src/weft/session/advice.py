"""What to change at the microscope, said only where the numbers bear it; everything is off by default."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from weft.session.selection import Verdict
from weft.session.trends import Judged, by_time, median_error, robust_deviation, series, slope
from weft.settings import Settings, setting

__all__ = ["Advice", "AdviceSettings", "advise"]

#: Standard errors: what is said holds with 97.5 %.
_SURE = 1.96


class AdviceSettings(Settings):
    """Advice to the acquisition, from the newest items; no result depends on it."""

    skip: bool = setting(False, "Say when an area (a folder, a grid square) should be skipped.")
    refocus: bool = setting(False, "Say when to focus more often, less often, or elsewhere.")
    settle: bool = setting(False, "Say when to wait longer after moving the stage.")
    last: int = setting(20, "Newest items, of an area or of all, that advice rests on.", ge=5, le=1000)
    least: int = setting(8, "Fewer items than this give no advice.", ge=3, le=1000)
    area: str = setting(
        "",
        "Regular expression that finds the name of an area in a movie's path (its first group, or all of "
        "it); empty: the folder is the area.",
    )
    skip_rejected: float = setting(
        0.5, "Skip an area when surely more than this part of it is not selected.", ge=0.0, le=1.0
    )
    skip_ice: float | None = setting(
        None, "Skip an area when its median ice ring is surely above this; none asks nothing.", ge=0.0
    )
    skip_resolution: float | None = setting(
        None,
        "Skip an area when its median resolution is surely worse than this; none asks nothing.",
        unit="Å",
        gt=0.0,
    )
    defocus_targets: tuple[float, ...] = setting(
        (), "Defocus that is asked for; several where the acquisition goes through a list.", unit="µm"
    )
    defocus_tolerance: float = setting(0.2, "How far from the target defocus may be.", unit="µm", gt=0.0)
    early_motion: float = setting(
        5.0, "Median motion in the first 4 e/Å² above which to wait longer.", unit="Å", gt=0.0
    )
    file: str | None = setting(
        None, "Name of a JSON file in the session's folder that always holds the advice, such as advice.json."
    )
    webhook: str | None = setting(
        None, "Address (http or https) that gets the advice as a JSON POST whenever it changes."
    )
    webhook_timeout: float = setting(5.0, "How long to wait for that address.", unit="s", gt=0.0, le=60.0)

    @field_validator("area")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"it is not a regular expression ({error})") from None
        return value

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        # settings can be changed over the network: this must not become a way to overwrite files
        if value is not None and (
            not re.fullmatch(r"\w[\w.-]*\.json", value) or value.lower() == "selection.json"
        ):
            raise ValueError("it is a plain file name that ends in .json, and not selection.json")
        return value

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+\S*", value):
            raise ValueError("it starts with http:// or https:// and a host")
        return value

    @property
    def enabled(self) -> bool:
        """Whether any rule is on."""
        return self.skip or self.refocus or self.settle


@dataclass(frozen=True)
class Advice:
    """One thing to change at the microscope.

    Attributes
    ----------
    kind : str
        ``skip``, ``offset``, ``refocus_more``, ``refocus_less`` or ``settle``.
    folder : str
        The area that it is about; empty for the whole session.
    text : str
        For people.
    evidence : dict
        For programs: the numbers, their standard errors, how many items.
    grade : int
        How strong, coarsely: advice counts as changed when this changes, not with every item.
    """

    kind: str
    folder: str
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    grade: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """What has to differ for the advice to have changed."""
        return self.kind, self.folder, self.grade

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "kind": self.kind,
            "folder": self.folder,
            "text": self.text,
            "evidence": dict(self.evidence),
        }


def advise(
    entries: Iterable[Judged], verdicts: Mapping[str, Verdict], settings: AdviceSettings
) -> list[Advice]:
    """What to change, from the newest items.

    Parameters
    ----------
    entries : iterable of `weft.session.board.Entry`
        All items, in any order.
    verdicts : mapping
        Item → what `Selection.judge` says.
    settings : AdviceSettings
        Which rules are on.
    """
    if not settings.enabled:
        return []
    ordered = by_time(entry for entry in entries if entry.state in ("done", "failed"))
    found: list[Advice] = []
    if settings.skip:
        found += _skip(ordered, verdicts, settings)
    done = [entry for entry in ordered if entry.state == "done"]
    if settings.refocus:
        found += _refocus(done, settings)
    if settings.settle:
        found += _settle(done, settings)
    return found


def _areas(ordered: Sequence[Judged], settings: AdviceSettings) -> dict[str, list[Judged]]:
    """Areas that are being recorded now, with their newest items."""
    expression = re.compile(settings.area) if settings.area else None

    def area(entry: Judged) -> str:
        match = expression.search(entry.source) if expression else None
        if match is None:
            return entry.folder
        return (match.group(1) if match.re.groups else match.group(0)) or entry.folder

    newest = {area(entry) for entry in ordered[-settings.last :]}
    out: dict[str, list[Judged]] = {name: [] for name in sorted(newest)}
    for entry in reversed(ordered):
        items = out.get(area(entry))
        if items is not None and len(items) < settings.last:
            items.append(entry)
    return {name: items[::-1] for name, items in out.items()}


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """Limits between which a fraction surely lies (Wilson 1927)."""
    z2 = _SURE * _SURE
    centre = (successes + 0.5 * z2) / (n + z2)
    half = _SURE / (n + z2) * math.sqrt(successes * (n - successes) / n + 0.25 * z2)
    return centre - half, centre + half


def _skip(
    ordered: Sequence[Judged], verdicts: Mapping[str, Verdict], settings: AdviceSettings
) -> Iterator[Advice]:
    for area, entries in _areas(ordered, settings).items():
        reasons: list[str] = []
        evidence: dict[str, Any] = {}
        grade = 0
        # what failed says nothing about the specimen
        judged = [verdicts[e.name] for e in entries if e.state == "done" and e.name in verdicts]
        rejected = sum(not verdict.selected for verdict in judged)
        if len(judged) >= settings.least:
            low, high = _wilson(rejected, len(judged))
            if low > settings.skip_rejected:
                reasons.append(f"{rejected} of its last {len(judged)} micrographs are not selected")
                grade += 1
                evidence["rejected"] = {
                    "fraction": round(rejected / len(judged), 4),
                    "between": [round(low, 4), round(high, 4)],
                    "n": len(judged),
                }
        limits = (
            ("ice", "ice_ring", settings.skip_ice, "", "ice ring"),
            ("resolution", "resolution", settings.skip_resolution, " Å", "resolution"),
        )
        for bit, (name, metric, limit, unit, words) in enumerate(limits, 1):
            _, values = series(entries, metric)
            if limit is None or len(values) < settings.least:
                continue
            middle, error = float(np.median(values)), median_error(values)
            if middle - _SURE * error > limit:
                reasons.append(
                    f"its median {words} is {middle:.2f} ± {error:.2f}{unit}, above {limit:g}{unit}"
                )
                grade += 1 << bit
                evidence[name] = _number(middle, error, len(values), unit.strip(), limit=limit)
        if reasons:
            yield Advice("skip", area, f"Skip {area}: {' and '.join(reasons)}.", evidence, grade)


def _number(value: float, error: float, n: int, unit: str, **more: Any) -> dict[str, Any]:
    return {"value": round(value, 5), "error": round(error, 5), "n": n, "unit": unit, **more}


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _refocus(done: Sequence[Judged], settings: AdviceSettings) -> Iterator[Advice]:
    _, values = series(done[-settings.last :], "defocus")
    defocus = 1e-4 * values
    n = len(defocus)
    if n < settings.least:
        return
    tolerance, targets = settings.defocus_tolerance, np.array(settings.defocus_targets)
    offset, rest = _offset(defocus, targets)
    drift, drift_error = slope(rest)
    scatter = robust_deviation(rest - drift * (np.arange(n) - 0.5 * (n - 1)))
    error = median_error(rest)
    numbers: dict[str, Any] = {
        "drift_per_item": _number(drift, drift_error, n, "µm"),
        "scatter": _number(scatter, scatter / math.sqrt(2.0 * (n - 1)), n, "µm"),
        "tolerance": tolerance,
    }
    if len(targets):
        numbers["offset"] = _number(offset, error, n, "µm", targets=targets.tolist())
        if abs(offset) - _SURE * error > tolerance:
            text = (
                f"Change the defocus that is set by {_signed(-offset)} µm: in the last {n} items it is "
                f"{_signed(offset)} ± {error:.2f} µm off its target."
            )
            # said again when it has grown by another tolerance
            yield Advice("offset", "", text, numbers, round(offset / tolerance))
    drifts = abs(drift) - _SURE * drift_error > 0 and abs(drift) * n > tolerance
    if drifts or scatter > tolerance:
        if drifts:
            every = max(1, int(tolerance / abs(drift)))
            numbers = {**numbers, "every": every}
            text = (
                f"Focus more often, at least every {every} items: defocus drifts by {_signed(1e3 * drift)} "
                f"± {1e3 * drift_error:.2f} nm an item, {abs(drift) * n:.2f} µm over the last {n}."
            )
        else:
            text = (
                f"Focus more often: in the last {n} items defocus scatters by {scatter:.2f} µm (standard "
                f"deviation), more than the {tolerance:g} µm allowed."
            )
        yield Advice("refocus_more", "", text, numbers, int(drifts))
        return
    steady = scatter < 0.25 * tolerance and (abs(drift) + _SURE * drift_error) * n < 0.5 * tolerance
    if n >= settings.last and steady and abs(offset) < 0.5 * tolerance and len(targets):
        text = (
            f"You could focus less often: over the last {n} items defocus scattered by {scatter:.2f} µm "
            f"(standard deviation) about its target; {tolerance:g} µm are allowed."
        )
        yield Advice("refocus_less", "", text, numbers)


def _offset(defocus: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """How far defocus is off its targets on the whole, and what is left of each item beyond that."""
    if not len(targets):
        offset = float(np.median(defocus))
        return offset, defocus - offset
    # which target an item belongs to follows from the offset, and the offset from that
    grid = np.linspace(-np.ptp(targets), np.ptp(targets), 201) if np.ptp(targets) else np.zeros(1)
    middle = float(np.mean(defocus) - np.mean(targets))
    candidates = middle + 0.5 * grid
    distance = np.abs(defocus[:, None] - targets[None, :] - candidates[:, None, None]).min(-1)
    offset = float(candidates[int(np.argmin(distance.mean(-1) + 1e-3 * np.abs(candidates)))])
    for _ in range(3):
        nearest = targets[np.argmin(np.abs(defocus[:, None] - targets[None, :] - offset), axis=1)]
        offset = float(np.median(defocus - nearest))
    return offset, defocus - nearest - offset


def _settle(done: Sequence[Judged], settings: AdviceSettings) -> Iterator[Advice]:
    _, values = series(done[-settings.last :], "motion_early")
    if len(values) < settings.least:
        return
    middle, error = float(np.median(values)), median_error(values)
    if middle - _SURE * error > settings.early_motion:
        text = (
            f"Wait longer after moving the stage: in the last {len(values)} items the specimen moves by "
            f"{middle:.1f} ± {error:.1f} Å in the first 4 e/Å², more than {settings.early_motion:g} Å."
        )
        evidence = {
            "early_motion": _number(middle, error, len(values), "Å", limit=settings.early_motion),
        }
        _, total = series(done[-settings.last :], "motion_total")
        if len(total) == len(values) and float(np.median(total)) > 0:
            evidence["share_of_motion"] = {
                "value": round(float(np.median(values / np.maximum(total, 1e-9))), 3)
            }
        yield Advice("settle", "", text, evidence, int(math.log2(middle / settings.early_motion)))

"""What somebody should look at now, in plain words, with the items that show it.

Each rule compares the session with itself: the newest items with those before. A difference must be
certain (by ranks, whatever the distribution) and large enough to matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from weft.session.trends import Change, Judged, by_time, change, series
from weft.settings import Settings, setting

__all__ = ["Alert", "AlertSettings", "find_alerts"]

#: Standard deviations of the difference of ranks: chance exceeds it in 6 of 10^5 looks; the looks at a
#: growing series hang together, and the change must matter, so fewer come out (test_alerts.py counts them).
_CERTAIN = 4.0
#: What is wrong with the camera can make a later step fail: its metrics count all the same.
_ENDED = ("done", "failed")
#: At most so many items are named.
_NAMED = 50
#: Newest items without which nothing is said about the gain.
_GAIN_ITEMS = 3
#: Images in a row that are dark, and how dark they are against the session's median.
_DARK_ITEMS, _DARK = 3, 0.3


class AlertSettings(Settings):
    """When the session draws attention to itself; no result depends on it."""

    last: int = setting(20, "Newest items that are compared with those before them.", ge=5, le=1000)
    before: int = setting(100, "How many items before those they are compared with, at most.", ge=5, le=10000)
    defocus_drift: float = setting(0.2, "Change of the median defocus that matters.", unit="µm", ge=0.0)
    resolution_loss: float = setting(
        15.0, "Worsening of the median resolution (as a number of Å) that matters.", unit="%", ge=0.0
    )
    motion_rise: float = setting(
        50.0, "Rise of the median accumulated motion that matters.", unit="%", ge=0.0
    )
    dose_drop: float = setting(20.0, "Fall of the median counts that matters.", unit="%", ge=0.0, le=100.0)
    gain_residual: float = setting(
        0.25,
        "Part of the gain reference's pattern that may be left in the frames; a wrong one leaves 1.",
        ge=0.0,
        le=1.0,
    )
    failures: int = setting(
        5, "Failures in a row that matter; more where failures are common.", ge=2, le=1000
    )


@dataclass(frozen=True)
class Alert:
    """Something that needs attention.

    Attributes
    ----------
    id : str
        The rule: the same alert keeps its id while it lasts.
    level : ``"warning"`` or ``"error"``
        An error spoils data that come in now.
    text : str
        One or two sentences: what, how much, what to do.
    items : tuple of str
        Those that show it, newest last, at most 50.
    evidence : dict
        The numbers.
    """

    id: str
    level: Literal["warning", "error"]
    text: str
    items: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "id": self.id,
            "level": self.level,
            "text": self.text,
            "items": list(self.items),
            "evidence": dict(self.evidence),
        }


def find_alerts(entries: Iterable[Judged], settings: AlertSettings | None = None) -> list[Alert]:
    """All that needs attention, errors first.

    Parameters
    ----------
    entries : iterable of `weft.session.board.Entry`
        All items, in any order. Stale ones are left out: settings that differ are no drift.
    settings : AlertSettings, optional
    """
    ordered = by_time(entries)
    settings = settings or AlertSettings()
    found = [alert for rule in _RULES for alert in rule(ordered, settings)]
    return sorted(found, key=lambda alert: alert.level != "error")


def _names(entries: Sequence[Judged]) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries[-_NAMED:])


def _newest(
    entries: Sequence[Judged], metric: str, settings: AlertSettings, states: tuple[str, ...] = ("done",)
) -> tuple[Change | None, tuple[str, ...]]:
    """How the newest values of a metric differ, and whose they are."""
    # only the end of a long session matters
    found, values = series(_tail(entries, 4 * (settings.last + settings.before)), metric, states)
    return change(values, settings.last, settings.before), _names(found[-settings.last :])


def _tail(entries: Sequence[Judged], count: int) -> Sequence[Judged]:
    return entries[max(0, len(entries) - count) :]


def _evidence(found: Change, unit: str, scale: float = 1.0) -> dict[str, Any]:
    return {
        "before": round(found.before * scale, 4),
        "now": round(found.now * scale, 4),
        "error": round(found.error * scale, 4),
        "unit": unit,
        "significance": round(found.significance, 2),
        "n_before": found.n_before,
        "n_now": found.n_now,
    }


def _against(found: Change) -> str:
    return f"in the last {found.n_now} items, against the {found.n_before} before"


def _defocus(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    found, names = _newest(entries, "defocus", settings)
    if found is None or abs(found.significance) < _CERTAIN:
        return
    before, now = 1e-4 * found.before, 1e-4 * found.now
    if abs(now - before) >= settings.defocus_drift:
        way = "risen" if now > before else "fallen"
        text = f"Defocus has {way} from {before:.2f} to {now:.2f} µm (medians, {_against(found)})."
        yield Alert("defocus_drift", "warning", text, names, _evidence(found, "µm", 1e-4))


def _resolution(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    found, names = _newest(entries, "resolution", settings)
    if found is None or found.significance < _CERTAIN:
        return
    if found.ratio >= 1.0 + settings.resolution_loss / 100.0:
        text = (
            f"CTF fits reach only {found.now:.1f} Å, earlier {found.before:.1f} Å (medians, "
            f"{_against(found)}): ice, beam, drift or focus has become worse."
        )
        yield Alert("resolution_loss", "warning", text, names, _evidence(found, "Å"))


def _motion(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    found, names = _newest(entries, "motion_total", settings)
    if found is None or found.significance < _CERTAIN:
        return
    if found.ratio >= 1.0 + settings.motion_rise / 100.0:
        text = (
            f"Motion has risen from {found.before:.3g} to {found.now:.3g} Å (medians, {_against(found)}): "
            "look at the stage, the grid and the settling time."
        )
        yield Alert("motion_rise", "warning", text, names, _evidence(found, "Å"))


def _dose(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    recent = _tail(entries, 4 * (settings.last + settings.before))
    items, counts = series(recent, "counts", _ENDED)
    earlier = counts[:-_DARK_ITEMS]
    if len(earlier) >= settings.last:
        usual = float(np.median(earlier[-settings.before :]))
        dark = counts[-_DARK_ITEMS:]
        if dark.max() < _DARK * usual:
            run = len(counts) - int(np.flatnonzero(counts >= _DARK * usual)[-1]) - 1
            text = (
                f"The last {run} images are dark: {float(np.median(counts[-run:])) / usual:.0%} of the usual "
                "counts. Is the beam on, and the area not blocked?"
            )
            evidence = {"usual": usual, "now": float(np.median(counts[-run:])), "n_now": run}
            yield Alert("dark", "error", text, _names(items[-run:]), evidence)
            return
    found, names = _newest(entries, "counts", settings, _ENDED)
    if found is None or found.significance > -_CERTAIN:
        return
    if found.ratio <= 1.0 - settings.dose_drop / 100.0:
        text = (
            f"Images count {1.0 - found.ratio:.0%} less than before (medians, {_against(found)}): thicker "
            "specimen, or a weaker or shifted beam; the dose in the settings may no longer be right."
        )
        yield Alert("dose_drop", "warning", text, names, _evidence(found, "counts"))


def _gain(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    recent = _tail(entries, settings.last)
    items, residuals = series(recent, "gain_residual", _ENDED)
    _, errors = series(items, "gain_residual_error", _ENDED)
    if len(items) < _GAIN_ITEMS or len(errors) != len(items):
        return
    left = float(np.median(residuals))
    # each of them must be sure of it
    sure = float(np.median(np.abs(residuals) / np.maximum(errors, 1e-6)))
    if abs(left) < settings.gain_residual or sure < 6.0:
        return
    if left > 1.5:
        text = (
            "The gain reference doubles the camera's pattern instead of removing it: "
            "set input.gain_invert to the other value."
        )
    elif left > 0.7:
        text = (
            "The gain reference does not belong to these frames: its own pattern is printed into them. It is "
            "turned (input.gain_transpose, gain_flip_x, gain_flip_y), or of another camera."
        )
    else:
        text = (
            f"{abs(left):.0%} of the gain reference's pattern is left in the frames: it is out of date, or "
            "noisy. Record a new one."
        )
    evidence = {"residual": round(left, 4), "error": round(float(np.median(errors)), 4), "n": len(items)}
    yield Alert("gain", "error", text, _names(items), evidence)


def _frames(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    recent = _tail(entries, settings.last + settings.before)
    for metric in ("stored_frames", "frames"):
        items, counts = series(recent, metric, _ENDED)
        if len(items) < 5:
            continue
        usual, share = Counter(counts.tolist()).most_common(1)[0]
        odd = [(entry, count) for entry, count in zip(items, counts.tolist(), strict=True) if count != usual]
        if not odd or share <= 0.5 * len(items):
            return
        fewer = sum(count < usual for _, count in odd)
        what = "fewer" if fewer == len(odd) else "more" if not fewer else "fewer or more"
        shown = ", ".join(f"{entry.name} ({count:.0f})" for entry, count in odd[-3:])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        text = (
            f"{len(odd)} {'movie has' if len(odd) == 1 else 'movies have'} {what} frames than the usual "
            f"{usual:.0f}: {shown}{more}."
        )
        evidence = {"usual": int(usual), "n": len(items), "fewer": fewer, "more": len(odd) - fewer}
        yield Alert("frames", "warning", text, _names([entry for entry, _ in odd]), evidence)
        return


def _failures(entries: Sequence[Judged], settings: AlertSettings) -> Iterator[Alert]:
    ended = [entry for entry in entries if entry.state in ("done", "failed")]
    # newest first is how a live session works: the order of processing counts, not that of recording
    ended.sort(key=lambda entry: (entry.mtime if entry.processed is None else entry.processed, entry.name))
    run = 0
    while run < len(ended) and ended[-1 - run].state == "failed":
        run += 1
    before = ended[: len(ended) - run][-settings.before :]
    rate = (sum(entry.state == "failed" for entry in before) + 1) / (len(before) + 2)
    needed = max(settings.failures, math.ceil(math.log(1e-6) / math.log(rate)) if len(before) >= 5 else 0)
    if run < needed:
        return
    failed = ended[len(ended) - run :]
    reason, same = Counter(_without_names(entry) for entry in failed).most_common(1)[0]
    why = f" {'All' if same == run else same} of them: {reason}" if same > 1 else f" The last: {reason}"
    text = f"The last {run} items that were processed failed.{why.rstrip('.')}."
    yield Alert("failures", "error", text, _names(failed), {"n": run, "usual_rate": round(rate, 4)})


def _without_names(entry: Judged) -> str:
    """The reason of a failure, without what differs from item to item."""
    return entry.reason.replace(entry.source, "the file").replace(entry.name, "the item")


_RULES: tuple[Callable[[Sequence[Judged], AlertSettings], Iterator[Alert]], ...] = (
    _gain,
    _failures,
    _dose,
    _frames,
    _defocus,
    _resolution,
    _motion,
)

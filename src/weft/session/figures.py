"""Figures of a report as SVG: colours come from the page's style sheet, so that dark mode and print work.

Thousands of points are one path of dots, a dozen bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["astigmatism_figure", "metric_figure", "ticks"]

Array = NDArray[np.float64]
Bounds = tuple[float | None, float | None]

_LEFT, _TOP, _BOTTOM = 52, 24, 30
_SERIES, _HISTOGRAM, _GAP, _HEIGHT = 560, 120, 14, 132
#: Beyond this, in quartile distances from the quartiles, points are drawn at the edge.
_FAR = 4.0


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range, about so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(f for f in (1.0, 2.0, 5.0, 10.0) if span / (f * step) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _label(value: float, among: Sequence[float]) -> str:
    step = min((b - a for a, b in pairwise(among)), default=abs(value) or 1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:.{min(digits, 6)}f}".replace("-", "−")


def _span(values: Array, bounds: Bounds = (None, None)) -> tuple[float, float]:
    """The axis: all values but the wildest, and the range that is asked for where it is near."""
    low, high = (float(v) for v in np.quantile(values, (0.25, 0.75)))
    reach = _FAR * (high - low) if high > low else math.inf
    inside = values[(values >= low - reach) & (values <= high + reach)]
    low, high = float(inside.min()), float(inside.max())
    for bound in bounds:
        if bound is not None and low - (high - low) <= bound <= high + (high - low):
            low, high = min(low, bound), max(high, bound)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    bottom = low - margin
    return (0.0 if low >= 0.0 > bottom else bottom), high + margin


class _Axis:
    """From numbers to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, values: Array) -> Array:
        part = np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)
        return self.start + part * (self.end - self.start)

    def at(self, value: float) -> float:
        return float(self(np.array(value)))


def _dots(x: Array, y: Array, kind: str) -> str:
    if not len(x):
        return ""
    path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
    return f'<path class="{kind}" d="{path}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def _frame(width: float, height: float, parts: list[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def metric_figure(
    times: Array, values: Array, selected: NDArray[np.bool_], label: str, unit: str, bounds: Bounds
) -> str:
    """One metric over time with its histogram beside it, the filter's range drawn over both.

    Parameters
    ----------
    times : (n,)
        Hours.
    values : (n,)
        NaN is left out.
    selected : (n,) bool
        The others are drawn fainter.
    label, unit : str
    bounds : (low, high)
        None is no limit.
    """
    known = np.isfinite(values)
    times, values, selected = times[known], values[known], selected[known]
    low, high = _span(values, bounds)
    x = _Axis(*_time_span(times), _LEFT, _LEFT + _SERIES)
    y = _Axis(low, high, _TOP + _HEIGHT, _TOP)
    right = _LEFT + _SERIES + _GAP
    parts = [_text(_LEFT, 14, f"{label}, {unit}" if unit else label, "title")]
    tail = unit if unit == "°" else f" {unit}" if unit else ""
    median = f"median {_number(float(np.median(values)))}{tail}"
    parts.append(_text(right + _HISTOGRAM, 14, median, "right"))
    parts += _limits(bounds, y, (_LEFT, _SERIES), (right, _HISTOGRAM))
    marks = ticks(low, high, 4)
    for mark in marks:
        at = y.at(mark)
        parts.append(_line(_LEFT, at, _LEFT + _SERIES, at, "grid"))
        parts.append(_text(_LEFT - 6, at + 4, _label(mark, marks), "right"))
    hours = ticks(x.low, x.high, 8)
    for mark in hours:
        parts.append(_text(x.at(mark), _TOP + _HEIGHT + 14, _label(mark, hours), "middle"))
    parts.append(_text(_LEFT + _SERIES, _TOP + _HEIGHT + 27, "hours from the first movie", "right"))
    px, py = x(times), y(values)
    parts += [_dots(px[~selected], py[~selected], "dot out"), _dots(px[selected], py[selected], "dot")]
    parts += _histogram(values, selected, y, right)
    for start, width in ((_LEFT, _SERIES), (right, _HISTOGRAM)):
        parts.append(_line(start, _TOP + _HEIGHT, start + width, _TOP + _HEIGHT, "axis"))
    return _frame(right + _HISTOGRAM + 4, _TOP + _HEIGHT + _BOTTOM, parts, f"{label} over time")


def _time_span(times: Array) -> tuple[float, float]:
    low, high = float(times.min()), float(times.max())
    margin = 0.01 * (high - low) or 0.01
    return low - margin, high + margin


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _limits(bounds: Bounds, y: _Axis, *areas: tuple[float, float]) -> list[str]:
    """What lies outside the range is shaded, and the limits are lines."""
    parts = []
    for bound, edge in zip(bounds, (_TOP + _HEIGHT, _TOP), strict=True):
        if bound is None:
            continue
        at = y.at(bound)
        for start, width in areas:
            parts.append(_rect(start, min(at, edge), width, abs(at - edge), "outside"))
            parts.append(_line(start, at, start + width, at, "limit"))
    return parts


def _histogram(values: Array, selected: NDArray[np.bool_], y: _Axis, left: float) -> list[str]:
    bins = int(np.clip(2 * math.sqrt(len(values)), 8, 33))
    edges = np.linspace(y.low, y.high, bins + 1)
    clipped = np.clip(values, y.low, y.high)
    whole, _ = np.histogram(clipped, edges)
    chosen, _ = np.histogram(clipped[selected], edges)
    scale = _HISTOGRAM / max(int(whole.max()), 1)
    parts = []
    for i in range(bins):
        top, bottom = y.at(edges[i + 1]), y.at(edges[i])
        height = max(bottom - top - 1.0, 0.5)
        if whole[i]:
            parts.append(_rect(left, top, whole[i] * scale, height, "bar out"))
        if chosen[i]:
            parts.append(_rect(left, top, chosen[i] * scale, height, "bar"))
    return parts


def astigmatism_figure(
    vectors: Array,
    selected: NDArray[np.bool_],
    centre: Array,
    deviation: float,
    limits: tuple[float | None, float | None],
) -> str:
    """Astigmatism as vectors of twice its angle, with circles of standard deviations around their mean.

    Parameters
    ----------
    vectors : (n, 2)
        µm.
    selected : (n,) bool
    centre : (2,)
    deviation : float
        µm.
    limits : (float or None, float or None)
        Largest astigmatism, µm (about zero); largest distance from the mean, σ.
    """
    known = np.isfinite(vectors).all(-1)
    vectors, selected = vectors[known], selected[known]
    size = 300.0
    reach = np.abs(vectors).max(1)
    third = float(np.quantile(reach, 0.75))
    extent = float(reach[reach <= max(4.0 * third, 1e-3)].max()) * 1.12 or 0.01
    x = _Axis(-extent, extent, _LEFT, _LEFT + size)
    y = _Axis(-extent, extent, _TOP + size, _TOP)
    scale = size / (2.0 * extent)
    parts = [_text(_LEFT, 14, "Astigmatism vector, µm", "title")]
    marks = ticks(-extent, extent, 5)
    for mark in marks:
        kind = "axis" if mark == 0.0 else "grid"
        parts.append(_line(x.at(mark), _TOP, x.at(mark), _TOP + size, kind))
        parts.append(_line(_LEFT, y.at(mark), _LEFT + size, y.at(mark), kind))
        parts.append(_text(x.at(mark), _TOP + size + 14, _label(mark, marks), "middle"))
        parts.append(_text(_LEFT - 6, y.at(mark) + 4, _label(mark, marks), "right"))
    cx, cy = x.at(float(centre[0])), y.at(float(centre[1]))
    clip = f'<clipPath id="a"><rect x="{_LEFT}" y="{_TOP}" width="{size:g}" height="{size:g}"/></clipPath>'
    circles = []
    if limits[1] is None:
        circles += [(cx, cy, n * deviation, "sigma", f"{n} σ") for n in (1, 3)]
    else:
        circles.append((cx, cy, limits[1] * deviation, "limit", f"{limits[1]:g} σ"))
    if limits[0] is not None:
        circles.append((x.at(0.0), y.at(0.0), limits[0], "limit", f"{limits[0]:g} µm"))
    drawn = []
    for at_x, at_y, radius, kind, text in circles:
        r = radius * scale
        if r > 0:
            drawn.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="{r:.1f}" class="{kind} ring"/>')
            drawn.append(_text(at_x + 0.71 * r + 3, at_y - 0.71 * r, text, "small"))
    parts.append(f'{clip}<g clip-path="url(#a)">{"".join(drawn)}</g>')
    px, py = x(vectors[:, 0]), y(vectors[:, 1])
    parts += [_dots(px[~selected], py[~selected], "dot out"), _dots(px[selected], py[selected], "dot")]
    parts.append(f'<path class="cross" d="M{cx - 6:.1f} {cy:.1f}h12M{cx:.1f} {cy - 6:.1f}v12"/>')
    return _frame(_LEFT + size + 12, _TOP + size + 20, parts, "Astigmatism of all micrographs")

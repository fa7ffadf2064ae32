"""Figures of a landscape as SVG, in the colours of the page's style sheet (see "
":mod:`weft.session.figures`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from weft.session.figures import _Axis, _dots, _frame, _label, _line, _rect, _span, _text, ticks

__all__ = ["LEVELS", "bars_figure", "lines_figure", "scatter_figure"]

Array = NDArray[np.float64]

#: Shades of density.
LEVELS = 6
#: More dots than this only make the file large.
_DOTS = 6000
_LEFT, _TOP, _BOTTOM = 52, 24, 36
_SIDE = 380
_WIDTH, _HEIGHT = 430, 170


def scatter_figure(
    x: Array,
    y: Array,
    kind: NDArray[np.int64],
    title: str,
    names: tuple[str, str],
    *,
    prefix: str = "c",
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Particles in a plane.

    Parameters
    ----------
    x, y : (n,)
    kind : (n,) int64
        Decides the colour: dots have the class ``prefix`` + number. Higher ones are drawn on top.
    title : str
    names : (str, str)
        Of the axes.
    prefix : str
    marks : sequence of (x, y, text)
        Places with a word beside them.
    """
    if len(x) > _DOTS:
        some = np.random.default_rng(0).choice(len(x), _DOTS, replace=False)
        x, y, kind = x[some], y[some], kind[some]
    across = _Axis(*_span(x), _LEFT, _LEFT + _SIDE)
    up = _Axis(*_span(y), _TOP + _SIDE, _TOP)
    parts = [_text(_LEFT, 14, title, "title")]
    for axis, flat in ((across, True), (up, False)):
        values = ticks(axis.low, axis.high, 5)
        for value in values:
            at = axis.at(value)
            if flat:
                parts.append(_line(at, _TOP, at, _TOP + _SIDE, "grid"))
                parts.append(_text(at, _TOP + _SIDE + 14, _label(value, values), "middle"))
            else:
                parts.append(_line(_LEFT, at, _LEFT + _SIDE, at, "grid"))
                parts.append(_text(_LEFT - 6, at + 4, _label(value, values), "right"))
    parts.append(_text(_LEFT + _SIDE, _TOP + _SIDE + 29, names[0], "right"))
    parts.append(_text(_LEFT + 5, _TOP + 12, names[1]))
    px, py = across(x), up(y)
    size = "point" if len(x) < 1500 else "point small-point"
    for one in np.unique(kind):
        own = kind == one
        parts.append(_dots(px[own], py[own], f"{size} {prefix}{one}"))
    for mx, my, text in marks:
        at_x, at_y = across.at(mx), up.at(my)
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="9" class="mark"/>')
        parts.append(_text(at_x, at_y + 4, text, "middle mark-text"))
    return _frame(_LEFT + _SIDE + 8, _TOP + _SIDE + _BOTTOM, parts, title)


def lines_figure(
    title: str, x: Array, lines: Mapping[str, Array], across: str, *, from_zero: bool = False
) -> str:
    """Curves over the same axis, told apart by their classes ``line0``, ``line1`` ... and a legend.

    Parameters
    ----------
    title : str
    x : (n,)
    lines : dict
        Name → (n,) values; NaN is left out.
    across : str
        Of the axis below.
    from_zero : bool
        The axis starts at 0.
    """
    values = np.concatenate([line[np.isfinite(line)] for line in lines.values()])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = (0.0 if from_zero else low - margin), high + margin
    xs = _Axis(float(x.min()), float(x.max()) if np.ptp(x) else float(x.min()) + 1.0, _LEFT, _LEFT + _WIDTH)
    ys = _Axis(low, high, _TOP + _HEIGHT, _TOP)
    parts = [_text(_LEFT, 14, title, "title")]
    heights = ticks(low, high, 4)
    for value in heights:
        parts.append(_line(_LEFT, ys.at(value), _LEFT + _WIDTH, ys.at(value), "grid"))
        parts.append(_text(_LEFT - 6, ys.at(value) + 4, _label(value, heights), "right"))
    places = [value for value in ticks(xs.low, xs.high, 8) if value == round(value)]
    for value in places:
        parts.append(_text(xs.at(value), _TOP + _HEIGHT + 14, f"{value:.0f}", "middle"))
    parts.append(_text(_LEFT + _WIDTH, _TOP + _HEIGHT + 28, across, "right"))
    parts.append(_line(_LEFT, _TOP + _HEIGHT, _LEFT + _WIDTH, _TOP + _HEIGHT, "axis"))
    for i, line in enumerate(lines.values()):
        known = np.isfinite(line)
        px, py = xs(x[known]), ys(line[known])
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
        parts.append(f'<path class="curve line{i}" d="{path}"/>')
        if len(px) < 30:
            parts.append(_dots(px, py, f"knot line{i}"))
    if len(lines) > 1:
        start, below = float(_LEFT), _TOP + _HEIGHT + 28
        for i, name in enumerate(lines):
            parts.append(f'<path class="curve line{i}" d="M{start:.1f} {below - 4}h14"/>')
            parts.append(_text(start + 18, below, name))
            start += 6.2 * len(name) + 34
    return _frame(_LEFT + _WIDTH + 8, _TOP + _HEIGHT + _BOTTOM, parts, title)


def bars_figure(title: str, names: Sequence[str], values: Array, limit: float | None = None) -> str:
    """One bar for each name; those below `limit` are faint.

    Parameters
    ----------
    title : str
    names : sequence of str
    values : (n,)
        Not negative.
    limit : float, optional
    """
    ys = _Axis(0.0, max(float(values.max(initial=0.0)) * 1.08, limit or 0.0, 1e-9), _TOP + _HEIGHT, _TOP)
    parts = [_text(_LEFT, 14, title, "title")]
    heights = ticks(ys.low, ys.high, 4)
    for value in heights:
        parts.append(_line(_LEFT, ys.at(value), _LEFT + _WIDTH, ys.at(value), "grid"))
        parts.append(_text(_LEFT - 6, ys.at(value) + 4, _label(value, heights), "right"))
    edges = np.linspace(_LEFT, _LEFT + _WIDTH, len(values) + 1)
    every = max(1, round(len(values) / 16))
    for i, (a, b) in enumerate(pairwise(edges)):
        top = ys.at(float(values[i]))
        gap = 0.15 * (b - a)
        faint = limit is not None and values[i] < limit
        parts.append(
            _rect(a + gap, top, b - a - 2 * gap, _TOP + _HEIGHT - top, "bar out" if faint else "bar")
        )
        if i % every == 0:
            parts.append(_text(0.5 * (a + b), _TOP + _HEIGHT + 14, escape(names[i]), "middle"))
    parts.append(_line(_LEFT, _TOP + _HEIGHT, _LEFT + _WIDTH, _TOP + _HEIGHT, "axis"))
    return _frame(_LEFT + _WIDTH + 8, _TOP + _HEIGHT + _BOTTOM, parts, title)

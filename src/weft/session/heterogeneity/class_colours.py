"""The colours of classes, the same in pictures, in ChimeraX and in the page."""

from __future__ import annotations

import colorsys

__all__ = ["class_colour"]

#: Okabe & Ito's, which are told apart by every eye, and two more.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#8c6bb1")
#: Steps of the golden angle give hues that are far from those before.
_GOLDEN = 137.508 / 360.0


def class_colour(number: int) -> str:
    """``#rrggbb`` of a class, counted from 1."""
    i = number - 1
    if i < len(_COLOURS):
        return _COLOURS[i]
    parts = colorsys.hls_to_rgb(i * _GOLDEN % 1.0, 0.52, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)

"""The box around a particle: what every way of cutting particles says of it."""

from __future__ import annotations

__all__ = ["even_box", "particle_diameter"]

DIAMETER = 0.75  # of the box: the particle, where nothing is said about it


def even_box(value: int) -> int:
    """The side of a box; a validator of settings.

    Raises
    ------
    ValueError
        It is odd: then pixel n//2 would not be where RELION and Warp have the centre.
    """
    if value % 2:
        raise ValueError(f"a box has an even number of pixels, not {value}")
    return value


def particle_diameter(given: float, box: int, pixel_size: float) -> float:
    """Å: the diameter that is given, or where that is 0 that of a particle for which the box is meant."""
    return given or DIAMETER * box * pixel_size

"""Membranes of points: vesicles and sheets, with dense heads on both sides of light tails.

Strengths are those of a residue of the phantoms (weft.simulation.specimen): in a bilayer the heads scatter
more than water and the tails a little less, which makes the two dark lines of a defocused membrane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["HALF_THICKNESS", "Membrane", "random_sheet", "random_vesicle"]

Array = NDArray[Any]

HALF_THICKNESS = 25.0  # Å from the middle of a bilayer to its outermost parts
_HEAD_DEPTH = 19.0  # Å from the middle to the phosphates
_TAIL_DEPTH = 12.0  # Å: tails are spread from the middle to here
_LIPID_AREA = 65.0  # Å² of one leaflet
# residues' worth of contrast of a lipid's head, and of its tails
_HEAD, _TAILS = 2.0, -0.5


@dataclass(frozen=True)
class Membrane:
    """A bilayer.

    Attributes
    ----------
    kind : {"vesicle", "sheet"}
    centre : ``(3,)`` array
        Å, from the specimen's centre.
    radius : float
        Å; of a sheet half of its side.
    normal : ``(3,)`` array
        Of a sheet; of a vesicle zero.
    """

    kind: Literal["vesicle", "sheet"]
    centre: Array
    radius: float
    normal: Array

    def distance(self, xyz: Array) -> Array:
        """Å from the membrane's middle, ``(n, 3)`` -> ``(n,)``; of a sheet as if it had no end."""
        away = xyz - self.centre
        if self.kind == "vesicle":
            result: Array = np.abs(np.sqrt((away**2).sum(axis=1)) - self.radius)
        else:
            result = np.abs(away @ self.normal)
        return result

    def points(self, half_ice: float, rng: np.random.Generator) -> tuple[Array, Array]:
        """Places ``(n, 3)`` Å and strengths in residues ``(n,)`` of its lipids inside the ice."""
        parts, strengths = [], []
        for side in (-1.0, 1.0):
            head = self._leaflet(side * _HEAD_DEPTH, rng)
            tails = self._leaflet(side * rng.uniform(0.0, _TAIL_DEPTH, self._lipids(0.0)), rng)
            parts += [head, tails]
            strengths += [np.full(len(head), _HEAD), np.full(len(tails), _TAILS)]
        xyz, strength = np.concatenate(parts), np.concatenate(strengths)
        inside = np.abs(xyz[:, 2]) <= half_ice
        return xyz[inside], strength[inside]

    def _lipids(self, depth: float) -> int:
        if self.kind == "vesicle":
            return round(4.0 * math.pi * (self.radius + depth) ** 2 / _LIPID_AREA)
        return round((2.0 * self.radius) ** 2 / _LIPID_AREA)

    def _leaflet(self, depth: float | Array, rng: np.random.Generator) -> Array:
        """Lipids at random places at a depth (Å along the outward normal), one or one for each."""
        n = self._lipids(depth) if isinstance(depth, float) else len(depth)
        if self.kind == "vesicle":
            outward = rng.normal(size=(n, 3))
            outward /= np.sqrt((outward**2).sum(axis=1, keepdims=True))
            result: Array = self.centre + outward * (self.radius + np.broadcast_to(depth, n))[:, None]
            return result
        first = np.cross(self.normal, [0.0, 1.0, 0.0])
        first /= np.linalg.norm(first)
        second = np.cross(self.normal, first)
        u, v = rng.uniform(-self.radius, self.radius, (2, n, 1))
        result = self.centre + u * first + v * second + np.broadcast_to(depth, n)[:, None] * self.normal
        return result


def random_vesicle(half_field: float, half_ice: float, rng: np.random.Generator) -> Membrane:
    """A sphere of 150 to 350 Å, no larger than fits between the surfaces (`half_ice` from the middle)."""
    room = half_ice - HALF_THICKNESS
    radius = float(rng.uniform(150.0, min(350.0, room)))
    xy = rng.uniform(-1.0, 1.0, 2) * max(0.0, half_field - radius)
    z = rng.uniform(-1.0, 1.0) * (room - radius)
    return Membrane("vesicle", np.array([*xy, z]), radius, np.zeros(3))


def random_sheet(half_field: float, half_ice: float, rng: np.random.Generator) -> Membrane:
    """A square over the field through the middle half of the ice, inclined by up to 15 degrees."""
    slope, way = math.radians(float(rng.uniform(0.0, 15.0))), float(rng.uniform(0.0, 2.0 * math.pi))
    normal = np.array([math.sin(slope) * math.cos(way), math.sin(slope) * math.sin(way), math.cos(slope)])
    z = float(rng.uniform(-0.5, 0.5)) * half_ice
    return Membrane("sheet", np.array([0.0, 0.0, z]), half_field, normal)

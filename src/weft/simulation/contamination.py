"""What nobody wants in a micrograph: ice crystals, frost, gold, carbon, cracks, shadows; with exact masks.

Each object is a shape of finite thickness on the field.  Its material turns the phase of the beam by its mean
inner potential and takes electrons away (inelastic scattering, and elastic outside of the aperture), both
before the transfer of the microscope, so the fringe at its edge and the Thon rings of its grain are those of
the micrograph.  The mask is where an object is, widened by at most the first Fresnel fringe.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.simulation.contamination_layer import (
    CARBON,
    GOLD,
    ICE,
    Contamination,
    anywhere,
    outline,
    polygon,
    smooth_field,
    widen,
    window,
)

__all__ = ["CONTAMINANTS", "contaminate"]

Array = NDArray[Any]


def contaminate(
    shape: tuple[int, int], pixel_size: float, counts: dict[str, int], ice: float, rng: np.random.Generator
) -> Contamination:
    """Scatter contaminants over a field.

    Parameters
    ----------
    shape : (y, x), px
    pixel_size : float, Å
    counts : dict
        How many of each of :data:`CONTAMINANTS`.
    ice : float
        Thickness of the ice in Å, which is missing in cracks.
    rng : numpy Generator

    Returns
    -------
    Contamination
    """
    result = Contamination.none(shape)
    for kind, place in CONTAMINANTS.items():
        for _ in range(counts.get(kind, 0)):
            place(result, pixel_size, ice, rng)
    if result.kinds:
        widen(result, pixel_size)
    return result


def _blob(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """Frost or ethane: a rounded, dark, mottled drop of 300 to 3000 Å, or several beside each other."""
    shape = result.mask.shape
    centre = anywhere(shape, rng)
    diameter = math.exp(rng.uniform(math.log(300.0), math.log(3000.0)))
    height = min(diameter, 1500.0) * math.exp(rng.uniform(math.log(0.12), math.log(0.9)))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 5]))):
        radius = 0.5 * diameter / pixel_size
        found = window(shape, centre, 1.7 * radius)
        if found is not None:
            rows, columns, y, x = found
            wavy = rng.normal(scale=0.06, size=5) / np.arange(1, 6) ** 0.5
            inside = outline(y, x, radius, wavy, rng.uniform(0.0, 2.0 * math.pi, 5))
            # a drop: steep at its rim, flat in the middle
            rise = np.clip(inside / (rng.uniform(0.15, 0.9) * radius), 0.0, 1.0)
            texture = 1.0 + rng.uniform(0.03, 0.15) * smooth_field(
                inside.shape, rng.uniform(60.0, 250.0) / pixel_size, rng
            )
            texture += rng.uniform(0.0, 0.08) * smooth_field(inside.shape, 25.0 / pixel_size, rng)
            thick = height * np.sqrt(rise * (2.0 - rise)) * np.maximum(texture, 0.2)
            result.add("blob", rows, columns, np.where(inside > 0.0, np.maximum(thick, 40.0), 0.0), ICE)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        centre = centre + radius * rng.uniform(0.8, 1.6) * np.array([math.sin(angle), math.cos(angle)])
        diameter *= rng.uniform(0.5, 1.0)


def _speck(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """Small frost, no larger than particles are: dark, dense lumps of 60 to 350 Å, alone or a few."""
    shape = result.mask.shape
    centre = anywhere(shape, rng)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        diameter = math.exp(rng.uniform(math.log(60.0), math.log(350.0)))
        radius = 0.5 * diameter / pixel_size
        found = window(shape, centre, 1.8 * radius)
        if found is not None:
            rows, columns, y, x = found
            wavy = rng.normal(scale=0.12, size=4) / np.arange(1, 5) ** 0.5
            inside = outline(y, x, radius, wavy, rng.uniform(0.0, 2.0 * math.pi, 4))
            rise = np.clip(inside / (rng.uniform(0.2, 0.9) * radius), 0.0, 1.0)
            thick = rng.uniform(0.8, 2.0) * diameter * np.sqrt(rise * (2.0 - rise))
            result.add("speck", rows, columns, np.where(inside > 0.0, np.maximum(thick, 60.0), 0.0), ICE)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        centre = centre + radius * rng.uniform(1.0, 2.5) * np.array([math.sin(angle), math.cos(angle)])


def _crystal(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """Crystalline ice: facets, of which some diffract strongly and are dark, with bend contours."""
    shape = result.mask.shape
    radius = 0.5 * math.exp(rng.uniform(math.log(250.0), math.log(2500.0))) / pixel_size
    centre = anywhere(shape, rng)
    for _ in range(int(rng.integers(1, 6))):
        found = window(shape, centre, 1.5 * radius)
        if found is not None:
            rows, columns, y, x = found
            inside = polygon(y, x, int(rng.integers(4, 8)), radius, rng, even=False)
            slope = rng.uniform(-1.0, 1.0, 2) * rng.uniform(0.0, 0.6)
            wedge = 1.0 + slope[0] * y / radius + slope[1] * x / radius
            thick = math.exp(rng.uniform(math.log(60.0), math.log(900.0))) * np.clip(wedge, 0.3, 1.7)
            grain = smooth_field(inside.shape, rng.uniform(40.0, 150.0) / pixel_size, rng)
            thick = thick * np.maximum(1.0 + rng.uniform(0.05, 0.25) * grain, 0.2)
            thick = np.where(inside > 0.0, thick, 0.0)
            result.add("crystal", rows, columns, thick, ICE)
            # what a crystal diffracts outside of the aperture is missing: bands along its bend contours
            angle, period = rng.uniform(0.0, math.pi), rng.uniform(0.4, 2.0) * radius
            along = (x * math.cos(angle) + y * math.sin(angle)) / period
            bend = along + 0.5 * smooth_field(inside.shape, radius, rng)
            bands = np.maximum(np.cos(2.0 * math.pi * bend), 0.0) ** 4
            strength = rng.uniform(0.05, 0.6) * np.where(inside > 0.0, 1.0, 0.0)
            result.loss[rows, columns] += (strength * (0.4 + bands)).astype(np.float32)
            # lattice fringes: of basal or prism planes where the pixels resolve them
            spacing = float(rng.choice([3.9, 3.67, 3.44])) / pixel_size
            if spacing > 2.0:
                turn = rng.uniform(0.0, math.pi)
                lattice = np.cos(2.0 * math.pi / spacing * (x * math.cos(turn) + y * math.sin(turn)))
                result.phase[rows, columns] += (
                    ICE.potential * thick * rng.uniform(0.05, 0.3) * lattice
                ).astype(np.float32)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        centre = centre + radius * rng.uniform(0.5, 1.5) * np.array([math.sin(angle), math.cos(angle)])


def _plate(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """Hexagonal ice on the surface: a plate with a strong gradient of thickness."""
    shape = result.mask.shape
    radius = 0.5 * math.exp(rng.uniform(math.log(600.0), math.log(4000.0))) / pixel_size
    found = window(shape, anywhere(shape, rng), 1.4 * radius)
    if found is None:
        return
    rows, columns, y, x = found
    inside = polygon(y, x, 6, radius, rng, even=True)
    slope = rng.normal(size=2)
    slope *= rng.uniform(0.3, 0.9) / np.linalg.norm(slope)
    thick = math.exp(rng.uniform(math.log(100.0), math.log(1200.0))) * np.clip(
        1.0 + (slope[0] * y + slope[1] * x) / radius, 0.1, 2.0
    )
    terraces = int(rng.integers(0, 5))
    if terraces:
        step = thick.max() / terraces
        thick = 0.5 * thick + 0.5 * np.ceil(thick / step) * step
    result.add("plate", rows, columns, np.where(inside > 0.0, np.maximum(thick, 60.0), 0.0), ICE)


def _bead(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """A gold bead of 5 to 15 nm, or a small cluster of them."""
    shape = result.mask.shape
    radius = 0.5 * float(rng.choice([50.0, 100.0, 100.0, 150.0])) * rng.uniform(0.85, 1.15) / pixel_size
    centre = anywhere(shape, rng)
    for _ in range(int(rng.choice([1, 1, 1, 1, 2, 4]))):
        own = radius * rng.uniform(0.95, 1.05)
        found = window(shape, centre, own + 2.0)
        if found is not None:
            rows, columns, y, x = found
            half = np.sqrt(np.maximum(own**2 - y * y - x * x, 0.0)) * pixel_size
            result.add("bead", rows, columns, 2.0 * half, GOLD)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        centre = centre + 2.1 * radius * rng.uniform(1.0, 1.4) * np.array([math.sin(angle), math.cos(angle)])


def _crack(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """A crack or a hole in the ice: bright, with sharp edges."""
    shape = result.mask.shape
    missing: Array
    if rng.random() < 0.5:
        radius = 0.5 * math.exp(rng.uniform(math.log(500.0), math.log(3500.0))) / pixel_size
        found = window(shape, anywhere(shape, rng), 1.7 * radius)
        if found is None:
            return
        rows, columns, y, x = found
        wavy = rng.normal(scale=0.15, size=5) / np.arange(1, 6)
        missing = outline(y, x, radius, wavy, rng.uniform(0.0, 2.0 * math.pi, 5)) > 0.0
    else:
        rows, columns = slice(0, shape[0]), slice(0, shape[1])
        place, angle = anywhere(shape, rng), rng.uniform(0.0, math.pi)
        y = (np.arange(shape[0]) - place[0]).astype(np.float32)[:, None]
        x = (np.arange(shape[1]) - place[1]).astype(np.float32)[None, :]
        along = x * math.cos(angle) + y * math.sin(angle)
        across = -x * math.sin(angle) + y * math.cos(angle)
        reach = max(shape)
        nodes = np.linspace(-1.5 * reach, 1.5 * reach, 60)
        wander = np.cumsum(rng.normal(scale=60.0 / pixel_size, size=60))
        wander -= np.interp(0.0, nodes, wander)
        width = math.exp(rng.uniform(math.log(40.0), math.log(500.0))) / pixel_size
        widths = np.maximum(width * (1.0 + 0.4 * rng.standard_normal(60)), 3.0)
        ends = np.sort(rng.uniform(-1.3, 1.3, 2)) * 0.5 * reach + np.array([-0.3, 0.3]) * reach
        widths *= np.clip((ends[1] - nodes) / (0.2 * reach), 0.0, 1.0)
        widths *= np.clip((nodes - ends[0]) / (0.2 * reach), 0.0, 1.0)
        missing = np.abs(across - np.interp(along, nodes, wander)) < 0.5 * np.interp(along, nodes, widths)
    where = missing & (result.ice[rows, columns] > 0.0)
    result.phase[rows, columns] -= np.where(where, np.float32(ice * ICE.potential), np.float32(0.0))
    result.loss[rows, columns] -= np.where(where, np.float32(ice / ICE.free_path), np.float32(0.0))
    result.ice[rows, columns][where] = 0.0
    result.mark("crack", rows, columns, where)


def _carbon(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """The film around the hole: everything beyond an arc of 0.6 to 2 µm."""
    shape = result.mask.shape
    radius = rng.uniform(6000.0, 20000.0) / pixel_size
    # the edge cuts off a part of the field: its point next to the centre lies at this distance
    inwards = rng.uniform(0.1, 0.48) * min(shape)
    angle = rng.uniform(0.0, 2.0 * math.pi)
    middle = 0.5 * np.array(shape) - (radius - inwards) * np.array([math.sin(angle), math.cos(angle)])
    y = (np.arange(shape[0]) - middle[0]).astype(np.float32)[:, None]
    x = (np.arange(shape[1]) - middle[1]).astype(np.float32)[None, :]
    rough = (
        rng.uniform(5.0, 40.0) / pixel_size * smooth_field(shape, rng.uniform(100.0, 500.0) / pixel_size, rng)
    )
    beyond = np.hypot(y, x) - radius + rough
    thickness = math.exp(rng.uniform(math.log(50.0), math.log(350.0)))
    full = rng.uniform(5.0, 150.0) / pixel_size  # px from the edge to the full thickness
    profile = thickness * np.clip(0.4 + 0.6 * beyond / full, 0.0, 1.0)
    profile = profile * (1.0 + 0.05 * smooth_field(shape, 400.0 / pixel_size, rng))
    profile = np.where(beyond > 0.0, profile, 0.0)
    everything = slice(0, shape[0]), slice(0, shape[1])
    result.add("carbon", *everything, profile, CARBON)
    result.carbon |= beyond > 0.0
    # grain: the atoms' number varies by its root, less what short-range order takes, more by roughness
    atoms = np.sqrt(profile * 0.1 / pixel_size**2 * rng.uniform(0.6, 3.0))
    result.phase += (2.5 * atoms * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def _shadow(result: Contamination, pixel_size: float, ice: float, rng: np.random.Generator) -> None:
    """A grid bar or an aperture over a corner: dark, out of focus, without structure."""
    shape = result.mask.shape
    angle = rng.uniform(0.0, 2.0 * math.pi)
    outwards = np.array([math.sin(angle), math.cos(angle)])
    corner = 0.5 * np.array(shape) * (1.0 + np.sign(outwards))
    depth = rng.uniform(0.05, 0.35) * min(shape)
    radius = math.exp(rng.uniform(math.log(1.0), math.log(20.0))) * max(shape)
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    x = np.arange(shape[1], dtype=np.float32)[None, :]
    edge = corner - depth * outwards
    middle = edge - radius * outwards
    beyond = np.hypot(y - middle[0], x - middle[1]) - radius
    soft = math.exp(rng.uniform(math.log(15.0), math.log(250.0))) / pixel_size
    dark = rng.uniform(0.0, 0.4)
    result.shadow *= (1.0 - (1.0 - dark) * (0.5 + 0.5 * np.tanh(beyond / soft))).astype(np.float32)
    # visible from where a tenth of the beam is missing
    result.mark("shadow", slice(0, shape[0]), slice(0, shape[1]), beyond > -1.1 * soft)


CONTAMINANTS = {
    "crack": _crack,
    "carbon": _carbon,
    "blob": _blob,
    "speck": _speck,
    "crystal": _crystal,
    "plate": _plate,
    "bead": _bead,
    "shadow": _shadow,
}

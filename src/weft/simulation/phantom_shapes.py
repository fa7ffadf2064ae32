"""Shapes of made-up macromolecules: points of residues and their contrasts.

A body is a field over a jittered lattice of residue-sized cells; the cells where the field is highest are
taken until the mass is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weft.physics.symmetry import symmetry_operators
from weft.simulation.specimen import projection_matrix, random_orientations

__all__ = ["BUILDERS", "CELL", "Field", "Kind", "smooth_waves"]

Array = NDArray[Any]

Kind = Literal[
    "globule",
    "lobes",
    "domains",
    "rod",
    "cyclic",
    "dihedral",
    "cubic",
    "cage",
    "ring",
    "arms",
    "membrane",
    "ribosome",
]
Field = Callable[[Array], Array]

CELL = 135.8  # Å^3 of a residue of 110 Da
# contrast against ice in multiples of protein's
_NUCLEIC, _BELT = 1.4, 0.4


def smooth_waves(rng: np.random.Generator, n: int, wavelengths: tuple[float, float]) -> Field:
    """A smooth random field of variance one, with wavelengths in Å."""
    directions = rng.normal(size=(n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    length = np.exp(rng.uniform(math.log(wavelengths[0]), math.log(wavelengths[1]), n))
    vectors = (2.0 * math.pi * directions / length[:, None]).T.astype(np.float32)
    phases = rng.uniform(0.0, 2.0 * math.pi, n).astype(np.float32)
    norm = math.sqrt(2.0 / n)

    def field(p: Array) -> Array:
        result: Array = (
            np.cos(np.einsum("ni,ij->nj", p.astype(np.float32), vectors) + phases).sum(axis=1) * norm
        )
        return result

    return field


def _carve(cells: int, half: Array, field: Field, rng: np.random.Generator, rough: float = 1.0) -> Array:
    """The `cells` points of a jittered lattice in a box of half sizes `half` where `field` (Å) is highest."""
    edge = CELL ** (1.0 / 3.0)
    half = np.asarray(half, float)
    while True:
        axes = [np.arange(-h, h + edge, edge) + rng.uniform(-0.5, 0.5) * edge for h in half]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        if len(grid) >= 1.3 * cells:
            break
        half = half * 1.1
    grid = grid + rng.uniform(-0.35, 0.35, grid.shape) * edge
    height = field(grid)
    if rough > 0.0:
        height = height + rough * (
            2.5 * smooth_waves(rng, 10, (18.0, 60.0))(grid) + 1.5 * smooth_waves(rng, 8, (9.0, 18.0))(grid)
        )
    if len(height) > cells:
        chosen = np.argpartition(-height, cells)[:cells]
        grid = grid[chosen]
    return np.asarray(grid[:cells])


def _ball(cells: int) -> float:
    """Radius in Å of a solid sphere of so many cells."""
    return float((0.75 * cells * CELL / math.pi) ** (1.0 / 3.0))


def _protein(points: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points with contrasts that vary as secondary structure and loose parts make them."""
    uneven = (
        1.0
        + rng.uniform(0.1, 0.4) * smooth_waves(rng, 10, (9.0, 30.0))(points)
        + 0.08 * smooth_waves(rng, 4, (40.0, 100.0))(points)
    )
    return points, np.clip(uneven, 0.2, 1.8).astype(float)


def _ellipsoid(axes: Array) -> Field:
    scale = float(np.prod(axes)) ** (1.0 / 3.0)

    def field(p: Array) -> Array:
        result: Array = -scale * np.sqrt(((p / axes) ** 2).sum(axis=1))
        return result

    return field


def _body(cells: int, rng: np.random.Generator, stretch: float = 1.6) -> Array:
    """One compact body, an ellipsoid with axes up to `stretch` to one."""
    axes = np.exp(rng.uniform(-0.5, 0.5, 3) * math.log(stretch))
    axes *= _ball(cells) / float(np.prod(axes)) ** (1.0 / 3.0)
    return _carve(cells, axes + 12.0, _ellipsoid(axes), rng)


def _lobed(cells: int, rng: np.random.Generator, count: int) -> Array:
    """Overlapping balls, each next to one before it, with a cleft."""
    share = rng.dirichlet(np.full(count, 2.5))
    radii = np.array([_ball(max(6, int(cells * s))) for s in share]) * 1.05
    centres = np.zeros((count, 3))
    for i in range(1, count):
        beside = int(rng.integers(i))
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        centres[i] = centres[beside] + direction * (radii[i] + radii[beside]) * rng.uniform(0.6, 0.95)
    centres -= np.average(centres, axis=0, weights=radii**3)
    cleft = centres[int(rng.integers(count))] + rng.normal(size=3) * radii.mean() * 0.7
    width = rng.uniform(0.3, 0.7) * radii.mean()

    def field(p: Array) -> Array:
        inside = np.full(len(p), -np.inf)
        for centre, radius in zip(centres, radii, strict=True):
            inside = np.maximum(inside, radius - np.sqrt(((p - centre) ** 2).sum(axis=1)))
        carved: Array = np.minimum(inside, np.sqrt(((p - cleft) ** 2).sum(axis=1)) - width)
        return carved

    half = np.abs(centres).max(axis=0) + radii.max() + 8.0
    return _carve(cells, half, field, rng)


def _subunit(cells: int, rng: np.random.Generator) -> Array:
    points = _lobed(cells, rng, int(rng.integers(2, 5))) if rng.random() < 0.6 else _body(cells, rng, 2.0)
    turn = projection_matrix(*random_orientations(1, rng)[0])
    result: Array = points @ turn.T
    return result


def _repeated(points: Array, name: str) -> Array:
    """All copies of a subunit by a point group."""
    operators = symmetry_operators(name).numpy()
    return _alone(np.concatenate([points @ g.T for g in operators]))


def _alone(everything: Array) -> Array:
    """Of points that share a cell the first: two bodies cannot be in one place."""
    edge = 0.8 * CELL ** (1.0 / 3.0)
    cell = np.floor(everything / edge).astype(np.int64)
    cell -= cell.min(axis=0)
    size = cell.max(axis=0) + 1
    _, first = np.unique((cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2], return_index=True)
    return np.asarray(everything[np.sort(first)])


def _apart(points: Array, radius: float) -> float:
    """Distance of two subunits that touch, in multiples of the solid sphere's diameter, Å."""
    gyration = math.sqrt(float(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))
    return 0.5 * (2.0 * radius + 2.0 * 1.29 * gyration)


def _globule(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    return _protein(_body(cells, rng, 1.9), rng)


def _lobes(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    return _protein(_lobed(cells, rng, int(rng.integers(2, 7))), rng)


def _domains(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Compact domains with gaps between them, of different densities: lumps on flexible linkers."""
    count = int(rng.integers(4, 13))
    share = rng.dirichlet(np.full(count, 3.0))
    loose = rng.uniform(0.95, 1.35)
    parts: list[Array] = []
    weights = []
    centres = np.zeros((count, 3))
    radii = np.array([_ball(max(6, int(cells * s))) for s in share])
    for i in range(count):
        best = -np.inf
        # of a dozen places beside another domain the one that is nearest to the middle and free
        for _ in range(12 if i else 0):
            beside = int(rng.integers(i))
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            place = centres[beside] + direction * loose * (radii[i] + radii[beside])
            gap = (np.linalg.norm(place - centres[:i], axis=1) - radii[:i]).min() - radii[i]
            score = min(0.0, float(gap)) * 5.0 - 0.3 * float(np.linalg.norm(place))
            if score > best:
                best, centres[i] = score, place
        turn = projection_matrix(*random_orientations(1, rng)[0])
        parts.append(_body(max(6, int(cells * share[i])), rng, 1.5) @ turn.T + centres[i])
        weights.append(np.full(len(parts[-1]), rng.uniform(0.7, 1.4)))
    points, contrast = _protein(np.concatenate(parts), rng)
    return points, contrast * np.concatenate(weights)


def _rod(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """An elongated body of aspect 2 to 4, slightly bent."""
    aspect = rng.uniform(2.0, 4.0)
    short = _ball(cells) / aspect ** (1.0 / 3.0)
    axes = np.array([short, short * rng.uniform(0.8, 1.2), short * aspect])
    plain = _ellipsoid(axes)
    bend = rng.uniform(0.0, 0.6) * short / axes[2] ** 2

    def field(p: Array) -> Array:
        straight = p.copy()
        straight[:, 0] -= bend * (p[:, 2] ** 2 - axes[2] ** 2 / 3.0)
        return plain(straight)

    return _protein(_carve(cells, axes + np.array([short, 10.0, 12.0]), field, rng), rng)


def _cyclic(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    most = max(2, min(14, cells // 150))
    n = int(rng.integers(2, most + 1))
    unit = _subunit(max(8, cells // n), rng)
    reach = _apart(unit, _ball(max(8, cells // n)))
    radius = reach * rng.uniform(0.75, 1.0) / (2.0 * math.sin(math.pi / n))
    return _protein(_repeated(unit + np.array([radius, 0.0, 0.0]), f"C{n}"), rng)


def _dihedral(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    most = max(2, min(9, cells // 300))
    n = int(rng.integers(2, most + 1))
    unit = _subunit(max(8, cells // (2 * n)), rng)
    reach = _apart(unit, _ball(max(8, cells // (2 * n))))
    radius = reach * rng.uniform(0.75, 1.0) / (2.0 * math.sin(math.pi / n))
    twist = rng.uniform(0.0, math.pi / n)
    place = np.array(
        [radius * math.cos(twist), radius * math.sin(twist), 0.5 * reach * rng.uniform(0.7, 1.0)]
    )
    return _protein(_repeated(unit + place, f"D{n}"), rng)


def _cubic(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Subunits on a sphere by the rotations of a tetrahedron, an octahedron or an icosahedron: hollow."""
    names = [("T", 12), ("O", 24), ("I", 60)]
    name, order = names[int(rng.integers(3 if cells > 3000 else 2))]
    unit = _subunit(max(8, cells // order), rng)
    reach = _apart(unit, _ball(max(8, cells // order)))
    fill = rng.uniform(0.55, 0.95)
    radius = 0.5 * reach * math.sqrt(order / (4.0 * fill))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return _protein(_repeated(unit + radius * direction, name), rng)


def _cage(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A hollow shell with pores, sometimes with cargo."""
    cargo = rng.uniform(0.05, 0.4) if rng.random() < 0.25 else 0.0
    wall = int(cells * (1.0 - cargo))
    thickness = rng.uniform(18.0, 40.0)
    # 4 pi R^2 thickness = volume (a thin shell; the thickness gives way where it is not thin)
    radius = max(math.sqrt(wall * CELL / (4.0 * math.pi * thickness)), 0.9 * _ball(wall))
    axes = np.exp(rng.normal(scale=0.06, size=3)) if rng.random() < 0.5 else np.ones(3)
    pores = rng.normal(size=(int(rng.integers(0, 13)), 3))
    pores *= radius / np.linalg.norm(pores, axis=1, keepdims=True) if len(pores) else 1.0
    width = rng.uniform(0.08, 0.25) * radius

    def field(p: Array) -> Array:
        shell = -np.abs(np.sqrt(((p / axes) ** 2).sum(axis=1)) - radius)
        for pore in pores:
            away = np.sqrt(((p - pore) ** 2).sum(axis=1))
            shell = np.minimum(shell, away - width - 0.5 * thickness)
        return np.asarray(shell)

    points = _carve(wall, axes * (radius + thickness) + 6.0, field, rng)
    if cargo > 0.0:
        points = np.concatenate([points, _body(cells - wall, rng, 1.3) * 0.9])
    return _protein(points, rng)


def _ring(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A torus, or stacked rings that make a barrel, with a smooth or a notched rim."""
    height = rng.uniform(0.5, 3.5)  # of the wall over its thickness
    hole = rng.uniform(0.6, 2.5)  # mean radius over the wall's thickness
    # volume = 2 pi (hole t) (height t) t, with the elliptic cross-section's pi/4
    t = (cells * CELL / (2.0 * math.pi * hole * height * math.pi / 4.0)) ** (1.0 / 3.0)
    notches, depth = int(rng.integers(3, 13)), rng.uniform(0.0, 0.15)
    tiers, groove = int(rng.integers(1, 5)), rng.uniform(0.0, 0.12)

    def field(p: Array) -> Array:
        rho, azimuth = np.hypot(p[:, 0], p[:, 1]), np.arctan2(p[:, 1], p[:, 0])
        u, v = (rho - hole * t) / (0.5 * t), p[:, 2] / (0.5 * height * t)
        rim = depth * np.cos(notches * azimuth) + groove * np.cos(math.pi * tiers * (v + 1.0))
        result: Array = -0.5 * t * (np.sqrt(np.sqrt(u**4 + v**4)) + rim)
        return result

    outer = (hole + 0.7) * t + 8.0
    return _protein(_carve(cells, np.array([outer, outer, 0.6 * height * t + 12.0]), field, rng), rng)


def _arms(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Y, L and T shapes: two to four arms from a hinge, as antibodies and adaptors have."""
    count = int(rng.integers(2, 5))
    radius = _ball(max(8, cells // count))
    parts = []
    first = rng.normal(size=3)
    first /= np.linalg.norm(first)
    directions = [first]
    while len(directions) < count:
        candidate = rng.normal(size=3)
        candidate /= np.linalg.norm(candidate)
        if max(float(candidate @ d) for d in directions) < 0.35:
            directions.append(candidate)
    for direction in directions:
        axes = radius * np.array([0.75, 0.85, 1.55])
        arm = _carve(max(8, cells // count), axes + 8.0, _ellipsoid(axes), rng)
        helper = np.cross(direction, rng.normal(size=3))
        helper /= np.linalg.norm(helper)
        frame = np.stack([helper, np.cross(direction, helper), direction], axis=1)
        parts.append(arm @ frame.T + direction * 1.5 * radius * rng.uniform(0.9, 1.15))
    return _protein(_alone(np.concatenate(parts)), rng)


def _membrane(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A protein along z through a weaker belt of detergent or lipid, 25 to 45 Å high."""
    part = rng.uniform(0.35, 0.65)  # of the mass outside of the belt
    n = int(cells * rng.uniform(0.55, 0.8))
    inner = _ball(n)
    axes = np.array([1.0, rng.uniform(0.7, 1.3), 1.0 + part]) * inner / (1.0 + part) ** (1.0 / 3.0)
    protein, contrast = _protein(_carve(n, axes + 12.0, _ellipsoid(axes), rng), rng)
    half = rng.uniform(13.0, 22.0)
    height = rng.uniform(-0.5, 0.5) * axes[2]
    step = CELL ** (1.0 / 3.0)
    # the belt takes the rest of the mass around the protein's waist
    thick = float(np.sqrt(max(axes[0], axes[1]) ** 2 + (cells - n) * CELL / (2.0 * math.pi * half)))
    x = np.arange(-thick - 2.0 * step, thick + 2.0 * step, step)
    z = np.arange(-half, half, step)
    grid = np.stack(np.meshgrid(x, x, z, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid + rng.uniform(-0.35, 0.35, grid.shape) * step
    round_edge = np.hypot(grid[:, 0], grid[:, 1]) + 6.0 * (grid[:, 2] / half) ** 4
    grid[:, 2] += height
    occupied = (grid**2 / axes**2).sum(axis=1) < 1.05
    belt = grid[(round_edge < thick) & ~occupied]
    weak = np.full(len(belt), _BELT * rng.uniform(0.5, 1.5))
    return np.concatenate([protein, belt]), np.concatenate([contrast, weak])


def _ribosome(cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two unequal subunits of nucleic acid, denser, with protein on the outside and in patches."""
    large = int(cells * rng.uniform(0.55, 0.72))
    first, second = _lobed(large, rng, 3), _body(cells - large, rng, 2.0)
    gap = _ball(large) + _ball(cells - large)
    points = np.concatenate([first, second + gap * rng.uniform(0.75, 0.9) * np.array([1.0, 0.0, 0.0])])
    points, contrast = _protein(_alone(points), rng)
    nucleic = smooth_waves(rng, 8, (30.0, 90.0))(points) > rng.uniform(-0.6, 0.4)
    contrast[nucleic] *= _NUCLEIC
    return points, contrast


BUILDERS: dict[Kind, Callable[[int, np.random.Generator], tuple[Array, Array]]] = {
    "globule": _globule,
    "lobes": _lobes,
    "domains": _domains,
    "rod": _rod,
    "cyclic": _cyclic,
    "dihedral": _dihedral,
    "cubic": _cubic,
    "cage": _cage,
    "ring": _ring,
    "arms": _arms,
    "membrane": _membrane,
    "ribosome": _ribosome,
}

"""Particles with a stack of tilt images each, and a table of tomograms: WarpTools (``ts_export_particles
--2d``), RELION 5 and 4, and Weft's own of these kinds.

An image's orientation is the tilt's times the sub-tomogram's times the particle's. rlnOrigin moves the
particle in the sub-tomogram, so that in an image it lies at minus the projected origin. Its defocus is the
tilt's plus hand × its distance along the beam from the tomogram's centre; the hand is rlnTomoHand, but the
negative of it in tables of WarpTools itself. Without coordinates, or without rlnTomoSizeX for rlnCoordinateX,
nothing is known of depths, and the defocus is the tilt's.

A stack holds all tilts of its tomogram (WarpTools: 37 sections though rlnTomoVisibleFrames shows 34) or the
visible ones only (RELION): its number of sections tells. Tilts that are not visible are left out in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats import relion_tomo
from weft.formats.particle_star import ANGLES, CENTRED, ORIGINS, PIXELS, euler_matrices
from weft.formats.star import Table
from weft.formats.tilt_particles_data import TiltParticles
from weft.formats.tilt_particles_rows import IMAGE, Rows, half_sets, numeric_columns
from weft.formats.tilt_particles_series import SeriesTilts, read_series_tilts
from weft.formats.tilt_particles_stacks import StackFinder, Stacks, find_stacks

__all__ = ["read_particle_set"]

TOMOGRAM, PARTICLE, NUMBER = "rlnTomoName", "rlnTomoParticleName", "rlnTomoParticleId"
VISIBLE = "rlnTomoVisibleFrames"
PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
_OUTER = tuple(f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi"))
_PIXEL = ("rlnImagePixelSize",)
_MIRROR = np.diag([1.0, 1.0, -1.0])
_TILTS_PIXEL = "rlnTomoTiltSeriesPixelSize"
_WHAT = {
    "warptools": "a set of particles of WarpTools",
    "relion4": "a set of particles of RELION 4",
    "relion5": "a set of particles of RELION 5",
}


def read_particle_set(
    path: Path, blocks: dict[str, Table], block: str, tomograms: Path, project: Path, finder: StackFinder
) -> TiltParticles:
    """Read particles whose tilts are described in a table of tomograms.

    Parameters
    ----------
    path : Path
        The particles' STAR file.
    blocks : dict of str to Table
        What it holds.
    block : str
        The table of particles among them.
    tomograms : Path
    project : Path
        The folder from which names of files are counted.
    finder : StackFinder

    Raises
    ------
    FormatError, CorruptError, TruncatedError
    """
    table = blocks[block]
    rows = Rows(path, "a set of particles", table, blocks.get("optics"))
    rows.need(TOMOGRAM)
    names = rows.strings(TOMOGRAM)
    distinct = list(dict.fromkeys(names))
    series = relion_tomo.read_tilt_series(tomograms, names=distinct)
    flavour = _flavour(names, series)
    rows.what = _WHAT[flavour]
    rows.need(*ANGLES, IMAGE, _PIXEL)
    tilts = read_series_tilts(series, rows, flavour)
    particle = _particle_names(rows)
    rows.names = particle
    number = {name: i for i, name in enumerate(distinct)}
    of = np.fromiter((number[name] for name in names), np.int64, len(names))
    pixel = rows.one(rows.numbers(_PIXEL[0]), "pixel size")
    pose = _poses(rows, pixel)
    place, origin, centred = _places(rows, series, distinct, of, pixel, flavour)
    if place is not None:
        place = place - pose.offset
        centred = None if centred is None else centred - pose.offset
    images = _names_of_stacks(rows)
    stacks = find_stacks(finder, images)
    shown = _visible(rows, tilts, names)
    parts = [
        _images(rows, tilts[name], np.flatnonzero(of == i), shown, stacks, pose, centred)
        for i, name in enumerate(distinct)
    ]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["row"], kind="stable")
    found = {key: value[order] for key, value in joined.items()}
    row = found["row"].astype(np.int64)
    count = np.bincount(row, minlength=len(rows))
    every = np.arange(len(rows))
    return TiltParticles(
        path=path,
        flavour=flavour,
        particle=particle,
        tomogram=[name.removesuffix(".tomostar") for name in names],
        place=np.full((len(rows), 3), np.nan) if place is None else place,
        start=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        files=stacks.files,
        file=row,
        section=found["section"].astype(np.int64),
        rotation=found["rotation"],
        shift=found["shift"],
        defocus_u=found["u"],
        defocus_v=found["v"],
        angle=found["angle"],
        phase_shift=found["phase"],
        has_ctf=all(item.has_ctf for item in tilts.values()),
        dose=found["dose"],
        cos_tilt=found["scale"],
        voltage=found["voltage"],
        cs=found["cs"],
        amplitude=found["amplitude"],
        pixel_size=pixel,
        box=stacks.box,
        premultiplied=rows.flag(PREMULTIPLIED),
        half=half_sets(table, every),
        columns=numeric_columns(table, every),
        blocks=blocks,
        row=row,
        place_origin=origin,
        tomograms=tomograms,
        project=project,
    )


def _flavour(names: list[str], series: dict[str, relion_tomo.RelionTiltSeries]) -> str:
    if all(name.endswith(".tomostar") for name in names):
        return "warptools"
    own = all("rlnTomoProjX" in item.tilts for item in series.values())
    return "relion4" if own else "relion5"


def _particle_names(rows: Rows) -> list[str]:
    if PARTICLE in rows.table:
        names = rows.strings(PARTICLE)
    elif NUMBER in rows.table:
        pairs = zip(rows.strings(TOMOGRAM), rows.strings(NUMBER), strict=True)
        names = [f"{name.removesuffix('.tomostar')}/{number}" for name, number in pairs]
    else:
        names = [
            f"{name.removesuffix('.tomostar')}/row{row}" for row, name in enumerate(rows.strings(TOMOGRAM), 1)
        ]
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if seen.setdefault(name, row) != row:
            raise CorruptError(
                rows.path,
                f"rows {seen[name] + 1} and {row + 1} are both of the particle {name}; names must differ",
            )
    return names


def _names_of_stacks(rows: Rows) -> list[str]:
    names = rows.strings(IMAGE)
    row = next((row for row, name in enumerate(names) if "@" in name), None)
    if row is not None:
        raise FormatError(
            rows.path, f"{rows.where(row)} names the single image {names[row]}, not a stack of all its tilts"
        )
    return names


@dataclass(frozen=True)
class _Poses:
    """Of particles in their tomogram: ``matrix`` (p, 3, 3), and ``offset`` (p, 3) Å, rlnOrigin turned."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]


def _poses(rows: Rows, pixel: float) -> _Poses:
    def columns(labels: tuple[str, ...]) -> NDArray[np.float64]:
        return np.stack([rows.first([label], 0.0) for label in labels], axis=1)

    matrix = euler_matrices(columns(ANGLES))
    outer = None
    if any(label in rows for label in _OUTER):
        rows.need(*_OUTER)
        outer = euler_matrices(columns(_OUTER))
        matrix = outer @ matrix
    if any(label in rows for label in ORIGINS):
        origin = columns(ORIGINS)
    else:
        origin = pixel * columns(tuple(f"rlnOrigin{axis}" for axis in "XYZ"))
    return _Poses(matrix, origin if outer is None else np.einsum("pij,pj->pi", outer, origin))


def _places(
    rows: Rows,
    series: dict[str, relion_tomo.RelionTiltSeries],
    distinct: list[str],
    of: NDArray[np.int64],
    pixel: float,
    flavour: str,
) -> tuple[NDArray[np.float64] | None, str, NDArray[np.float64] | None]:
    """Places (p, 3) Å, what they count from, and the same from the centre where that is known."""
    if all(label in rows for label in CENTRED):
        place = np.stack([rows.numbers(label) for label in CENTRED], axis=1)
        return place, "centre", place
    if not all(label in rows for label in PIXELS):
        return None, "corner", None
    # WarpTools writes RELION's columns, but counts in the pixels of the images that it wrote
    size = np.full(len(rows), pixel)
    if flavour != "warptools":
        rows.need(_TILTS_PIXEL)
        size = rows.numbers(_TILTS_PIXEL)
    place = np.stack([rows.numbers(label) for label in PIXELS], axis=1) * size[:, None]
    sizes = [series[name].volume_size for name in distinct]
    if any(size is None for size in sizes):
        return place, "corner", None
    return place, "corner", place - 0.5 * np.array(sizes)[of]


def _visible(rows: Rows, tilts: dict[str, SeriesTilts], names: list[str]) -> list[NDArray[np.bool_]]:
    """(p) arrays (tilts,): what rlnTomoVisibleFrames says, or all."""
    if VISIBLE not in rows.table:
        all_of = {name: np.ones(len(item), np.bool_) for name, item in tilts.items()}
        return [all_of[name] for name in names]
    known: dict[str, NDArray[np.bool_]] = {}
    out = []
    for row, text in enumerate(rows.strings(VISIBLE)):
        if text not in known:
            values = text.strip("[]").split(",")
            if not set(values) <= {"0", "1"}:
                raise CorruptError(
                    rows.path,
                    f"{rows.where(row)} of the column _{VISIBLE} is {text[:40]}, not a list of 0 and 1",
                )
            known[text] = np.array(values) == "1"
        count = len(tilts[names[row]])
        if len(known[text]) != count:
            raise CorruptError(
                rows.path,
                f"{rows.where(row)} of the column _{VISIBLE} is about {len(known[text])} tilts, but "
                f"{names[row]} has {count}",
            )
        if not known[text].any():
            raise CorruptError(rows.path, f"{rows.where(row)} is visible in no tilt; take it out")
        out.append(known[text])
    return out


def _images(
    rows: Rows,
    tilts: SeriesTilts,
    mine: NDArray[np.int64],
    shown: list[NDArray[np.bool_]],
    stacks: Stacks,
    pose: _Poses,
    centred: NDArray[np.float64] | None,
) -> dict[str, NDArray[np.float64]]:
    """All images of the particles `mine`, which are of one tomogram."""
    visible = np.stack([shown[i] for i in mine.tolist()])
    number, seen = len(tilts), visible.sum(1)
    sections = stacks.sections[mine]
    whole = sections == number
    wrong = ~whole & (sections != seen)
    if wrong.any():
        at = int(wrong.argmax())
        raise FormatError(
            stacks.files[mine[at]],
            f"it has {sections[at]} images, but {rows.where(int(mine[at]))} needs one for each of the "
            f"{number} tilts of {tilts.name} or of the {seen[at]} of them in which it is visible",
        )
    section = np.where(whole[:, None], np.arange(number), np.cumsum(visible, axis=1) - 1)
    which, t = np.nonzero(visible)
    i: NDArray[np.int64] = mine[which]
    turn = tilts.matrices[t]
    u, v = tilts.u[t], tilts.v[t]
    if tilts.hand is not None and centred is not None:
        depth = tilts.hand * np.einsum("mj,mj->m", turn[:, 2], centred[i])
        u, v = u + depth, v + depth
    return {
        "row": i,
        "section": section[which, t],
        # maps have nature's hand, also where the specimen does not
        "rotation": _MIRROR @ turn @ pose.matrix[i] @ _MIRROR if tilts.mirrored else turn @ pose.matrix[i],
        "shift": -np.einsum("mkj,mj->mk", turn[:, :2], pose.offset[i]),
        "u": u,
        "v": v,
        "angle": tilts.angle[t],
        "phase": tilts.phase[t],
        "dose": tilts.dose[t],
        "scale": tilts.scale[t],
        "voltage": tilts.voltage[i],
        "cs": tilts.cs[i],
        "amplitude": tilts.amplitude[i],
    }

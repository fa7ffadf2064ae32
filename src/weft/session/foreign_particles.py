"""Particles that another program lists, for micrographs of a session.

They are cut again from the session's movies, or just their CTF is brought up to date. What the other program
has found out about them (angles, classes, half-sets) stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.formats.star import Column, Table, format_star, write_star
from weft.session.foreign_particle_list import (
    GROUP,
    NAME,
    ORIGIN_PIXELS,
    ORIGINS,
    ForeignParticleList,
    X,
    Y,
)
from weft.session.items import Item, Movie
from weft.session.particle_export import chosen_items
from weft.session.particle_report import ParticleReport
from weft.session.processed_micrograph import ctf_columns, done_step
from weft.session.wanted_particles import Wanted

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["ForeignParticles", "read_particles", "update_particles"]

_CTF = (
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"),
    *("rlnCtfMaxResolution", "rlnCtfFigureOfMerit"),
)
_PHYSICS = {"rlnVoltage": "voltage", "rlnSphericalAberration": "cs", "rlnAmplitudeContrast": "amplitude"}
#: Columns that older tables have for each particle and newer ones for each group.
_OF_GROUP = ("rlnBeamTiltX", "rlnBeamTiltY", "rlnMtfFileName")
#: What is said anew, or makes no sense for images that are cut again.
_REPLACED = {
    *(X, Y, NAME, GROUP, *_CTF, *ORIGINS, *ORIGIN_PIXELS, *_PHYSICS, *_OF_GROUP),
    *("rlnImageName", "rlnImageOriginalName", "rlnDetectorPixelSize", "rlnMagnification", "rlnCtfImage"),
    *("rlnBeamTiltClass", "rlnImagePixelSize", "rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"),
    *("rlnImageSize", "rlnImageDimensionality", "rlnPixelSize", "rlnReconstructImageName"),
}
_OPTICS_REPLACED = {
    *_PHYSICS,
    *("rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality", "rlnMicrographPixelSize"),
    *("rlnMicrographOriginalPixelSize", "rlnCtfDataAreCtfPremultiplied", GROUP),
}
_STRANGE = "in micrographs that the session does not have"
_NUMBERS = "with coordinates that are not numbers"


@dataclass
class ForeignParticles:
    """What a file lists.

    Attributes
    ----------
    wanted : dict
        Item → its particles.
    skipped : dict
        Why others were left out → how many.
    notes : list of str
    """

    wanted: dict[str, Wanted] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_particles(
    session: Session, path: str | Path, *, coordinate_pixel: float | None = None, recenter: bool = True
) -> ForeignParticles:
    """Particles to be cut again.

    Parameters
    ----------
    session : Session
    path : path-like
        A STAR file of RELION 3.0 or later, or of cryoSPARC's particles converted to one.
    coordinate_pixel : float, optional
        Å: of the pixels that coordinates count; by default what the file says, or those of the averages.
    recenter : bool
        Move coordinates by the shifts that a refinement has found; otherwise shifts stay beside them.

    Raises
    ------
    FormatError, CorruptError, TruncatedError
        The file, or a row of it, is not what it should be.
    RequestError
        The session has none of its micrographs.
    """
    listed = ForeignParticleList(Path(path))
    out = ForeignParticles()
    items = listed.items(session)
    known = session.items
    ready = listed.pixel_sizes(items, known)
    scale = listed.scale(ready, coordinate_pixel)
    out.notes.extend(listed.remarks(coordinate_pixel))
    pixels = listed.coordinates() * scale[:, None]
    origins = listed.origins()
    extra: dict[str, Column] = {k: v for k, v in listed.table.columns.items() if k not in _REPLACED}
    if recenter:
        pixels = pixels - origins / ready[:, None]
        origins = np.zeros_like(origins)
    text = {label: _cells(column) for label, column in extra.items()}
    for i, label in enumerate(ORIGINS):
        text[label] = [f"{value:.4f}" for value in origins[:, i]]
    groups = listed.groups[1]
    optics = _kept_optics(listed)
    strange = sum(not name for name in items)
    if strange:
        out.skipped[_STRANGE] = strange
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(items):
        if name:
            rows_of.setdefault(name, []).append(row)
    for name, rows in rows_of.items():
        out.wanted[name] = Wanted(
            pixels[rows],
            {label: [values[i] for i in rows] for label, values in text.items()},
            optics,
            tuple(int(groups[i]) for i in rows) if len(optics) > 1 else (),
        )
    return out


def _cells(column: Sequence[Any] | NDArray[Any]) -> list[str]:
    """Values as STAR writes them."""
    if not len(column):
        return []
    if all(_is_plain(str(value)) for value in column):
        return [str(value) for value in column]
    return [format_star({"": Table({"a": [value]})}).strip().splitlines()[-1].strip() for value in column]


def _is_plain(text: str) -> bool:
    return bool(text) and not any(c in text for c in " \t'\"#") and text[0] not in "_;$[]"


def _kept_optics(listed: ForeignParticleList) -> tuple[Mapping[str, Any], ...]:
    """What stays of the optics groups: their names, beam tilt, aberrations, MTF."""
    if listed.optics is None or not len(listed.optics):
        kept: dict[str, Any] = {}
        for label in _OF_GROUP:
            if label in listed.table and len(set(listed.table.strings(label))) == 1:
                kept[label] = listed.table.strings(label)[0]
        return (kept,)
    columns = {k: v for k, v in listed.optics.columns.items() if k not in _OPTICS_REPLACED}
    return tuple({k: str(v[i]) for k, v in columns.items()} for i in range(len(listed.optics)))


def update_particles(
    session: Session,
    path: str | Path,
    output: str | Path,
    *,
    only: str | None = None,
    coordinate_pixel: float | None = None,
) -> ParticleReport:
    """Bring CTF and optics of listed particles up to date, and leave their images as they are.

    The table keeps its order and its columns; particles whose CTF is not known, or whose micrographs are not
    selected, leave it.

    Parameters
    ----------
    output : path-like
        A folder, which gets ``particles.star``.

    Raises
    ------
    FormatError, CorruptError, TruncatedError, RequestError
        As :func:`read_particles`.
    """
    listed = ForeignParticleList(Path(path))
    report = ParticleReport()
    items = listed.items(session)
    chosen = chosen_items(session, only, report)
    keep = np.zeros(len(listed), bool)
    cells: dict[str, list[str]] = {label: ["0.0"] * len(listed) for label in _CTF}
    seen: set[str] = set()
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(items):
        rows_of.setdefault(name, []).append(row)
    pixel = listed.pixel_sizes(items, session.items)
    at = listed.coordinates()
    at = at * (listed.scale(pixel, coordinate_pixel) * pixel)[:, None] - listed.origins()
    good: NDArray[np.bool_] = np.asarray(np.isfinite(at).all(axis=1), np.bool_)
    report.notes.extend(listed.remarks(coordinate_pixel))
    for name, rows in rows_of.items():
        if name not in chosen:
            report.leave_out({_STRANGE if not name else "in micrographs that are not selected": len(rows)})
            continue
        usable = [row for row in rows if good[row]]
        try:
            columns = _ctf_of(chosen[name], at[usable])
        except ItemError as error:
            report.problems.append(str(error))
            continue
        if len(usable) < len(rows):
            report.leave_out({_NUMBERS: len(rows) - len(usable)})
        use = np.array(usable, np.int64)
        keep[use] = True
        report.written[name] = len(use)
        for label, values in columns.items():
            seen.add(label)
            for row, value in zip(use, values, strict=True):
                cells[label][row] = value
    if not keep.any():
        return report
    rows_kept = np.flatnonzero(keep)
    out = Path(output)
    out.mkdir(parents=True, exist_ok=True)
    report.path = out / "particles.star"
    write_star(report.path, _updated(session, listed, rows_kept, {k: cells[k] for k in _CTF if k in seen}))
    report.notes.append("images are those of the list, under the names that it has for them")
    return report


def _ctf_of(item: Item, at: NDArray[np.float64]) -> dict[str, list[str]]:
    """Columns for particles at places (n, 2; Å)."""
    if item.record is None:
        raise ItemError(f"{item.name}: it is not processed yet; `weft run` does it")
    done_step(item.record, "motion")
    done_step(item.record, "ctf")
    assert isinstance(item, Movie)
    return ctf_columns(item.ctf, item.metrics, at)


def _updated(
    session: Session, listed: ForeignParticleList, rows: NDArray[np.int64], ctf: Mapping[str, list[str]]
) -> dict[str, Table]:
    """The file's blocks with what is known now."""
    optics = session.settings.input.optics()
    physics = {label: str(getattr(optics, key)) for label, key in _PHYSICS.items()}
    particles: dict[str, Column] = {k: [v[i] for i in rows] for k, v in listed.table.columns.items()}
    particles |= {label: [values[i] for i in rows] for label, values in ctf.items()}
    blocks = {name: Table(dict(table.columns), table.loop) for name, table in listed.blocks.items()}
    for label, value in physics.items():
        if listed.optics is None or label in particles:
            particles[label] = [value] * len(rows)
        if listed.optics is not None:
            blocks["optics"].columns[label] = [value] * len(listed.optics)
    blocks[listed.block] = Table(particles)
    return blocks

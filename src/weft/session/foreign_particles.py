"""Particles that another program lists, for micrographs of a session.

They are cut again from the session's movies, or just their CTF is brought up to date. What the other program
has found out about them (angles, classes, half-sets) stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, ItemError, RequestError
from weft.formats.star import Column, Table, format_star, read_star, write_star
from weft.session.items import Item, Movie
from weft.session.micrograph_names import MicrographNames
from weft.session.particle_export import chosen_items
from weft.session.particle_extraction import Wanted, ctf_columns, done_step
from weft.session.particle_report import ParticleReport

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["ForeignParticles", "read_particles", "update_particles"]

_X, _Y, _NAME = "rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"
_GROUP = "rlnOpticsGroup"
_ORIGINS, _ORIGIN_PIXELS = ("rlnOriginXAngst", "rlnOriginYAngst"), ("rlnOriginX", "rlnOriginY")
_CTF = (
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"),
    *("rlnCtfMaxResolution", "rlnCtfFigureOfMerit"),
)
_PHYSICS = {"rlnVoltage": "voltage", "rlnSphericalAberration": "cs", "rlnAmplitudeContrast": "amplitude"}
#: Columns that older tables have for each particle and newer ones for each group.
_OF_GROUP = ("rlnBeamTiltX", "rlnBeamTiltY", "rlnMtfFileName")
#: What is said anew, or makes no sense for images that are cut again.
_REPLACED = {
    *(_X, _Y, _NAME, _GROUP, *_CTF, *_ORIGINS, *_ORIGIN_PIXELS, *_PHYSICS, *_OF_GROUP),
    *("rlnImageName", "rlnImageOriginalName", "rlnDetectorPixelSize", "rlnMagnification", "rlnCtfImage"),
    *("rlnBeamTiltClass", "rlnImagePixelSize", "rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"),
    *("rlnImageSize", "rlnImageDimensionality", "rlnPixelSize", "rlnReconstructImageName"),
}
_OPTICS_REPLACED = {
    *_PHYSICS,
    *("rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality", "rlnMicrographPixelSize"),
    *("rlnMicrographOriginalPixelSize", "rlnCtfDataAreCtfPremultiplied", _GROUP),
}
#: Pixel sizes that differ by less are two calibrations of the same pixel.
_CALIBRATION = 0.05
_NAMED = 6
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


class _List:
    """One STAR file of particles in micrographs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = read_star(path)
        self.optics = self.blocks.get("optics")
        order = sorted(self.blocks, key=lambda name: name != "particles")
        named = [n for n in order if n != "optics" and _X in self.blocks[n] and _Y in self.blocks[n]]
        if not named:
            raise FormatError(path, f"it has no table with the columns _{_X} and _{_Y}")
        self.block = named[0]
        self.table = self.blocks[self.block]
        if _NAME not in self.table:
            raise FormatError(path, f"it has no column _{_NAME} that says where particles are")

    def __len__(self) -> int:
        return len(self.table)

    def numbers(self, label: str, table: Table | None = None) -> NDArray[np.float64]:
        """A column; what is not finite stays, and what is no number at all is an error."""
        column = (self.table if table is None else table)[label]
        out = np.empty(len(column))
        for row, value in enumerate(column):
            try:
                out[row] = float(value)
            except ValueError:
                raise CorruptError(
                    self.path, f"row {row + 1} of the column _{label} is {value!r}, which is no number"
                ) from None
        return out

    @cached_property
    def groups(self) -> tuple[list[str], NDArray[np.int64]]:
        """Numbers of the optics groups, and of each particle which of them."""
        if self.optics is None or not len(self.optics):
            return ["1"], np.zeros(len(self), np.int64)
        numbers = (
            self.optics.strings(_GROUP)
            if _GROUP in self.optics
            else [str(i + 1) for i in range(len(self.optics))]
        )
        if _GROUP not in self.table:
            if len(numbers) > 1:
                raise FormatError(
                    self.path, f"it has several optics groups but no column _{_GROUP} of particles"
                )
            return numbers, np.zeros(len(self), np.int64)
        at = {number: i for i, number in enumerate(numbers)}
        given = self.table.strings(_GROUP)
        for row, number in enumerate(given):
            if number not in at:
                raise CorruptError(
                    self.path,
                    f"row {row + 1} names the optics group {number}, which the file does not describe",
                )
        return numbers, np.array([at[number] for number in given], np.int64)

    def of_group(self, label: str) -> NDArray[np.float64] | None:
        """(n,): a column, or what the table of optics says of each particle's group; positive."""
        if label in self.table:
            values = self.numbers(label)
        elif self.optics is not None and label in self.optics:
            values = self.numbers(label, self.optics)[self.groups[1]]
        else:
            return None
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise CorruptError(
                self.path, f"_{label} is {values[bad[0]]:g} for row {bad[0] + 1}, which is no size"
            )
        return values

    def image_pixel(self) -> NDArray[np.float64] | None:
        """(n,) Å: of the images of particles."""
        if (found := self.of_group("rlnImagePixelSize")) is not None:
            return found
        detector, magnification = self.of_group("rlnDetectorPixelSize"), self.of_group("rlnMagnification")
        return None if detector is None or magnification is None else 1e4 * detector / magnification

    def origins(self) -> NDArray[np.float64]:
        """(n, 2) Å: what is to be subtracted from coordinates; zeros where the file has none."""
        for labels in (_ORIGINS, _ORIGIN_PIXELS):
            if not all(label in self.table for label in labels):
                continue
            values = np.stack([self.numbers(label) for label in labels], axis=-1)
            if labels == _ORIGINS or not np.any(values):
                return values
            pixel = self.image_pixel()
            if pixel is None:
                raise FormatError(self.path, f"it says nowhere how large the pixels of _{labels[0]} are")
            return values * pixel[:, None]
        return np.zeros((len(self), 2))

    def items(self, session: Session) -> list[str]:
        """Of each particle the item; empty where the session has none.

        Raises
        ------
        RequestError
            A name that may mean several items, or none of all.
        """
        names = MicrographNames(item for item in session.items.values() if item.kind == "movie")
        given = self.table.strings(_NAME)
        found: dict[str, str] = {}
        for name in dict.fromkeys(given):
            items = names.find(name)
            if len(items) > 1:
                raise RequestError(
                    f"{self.path}: {name} may be any of {', '.join(items[:_NAMED])}; write their full names."
                )
            found[name] = items[0] if items else ""
        if given and not any(found.values()):
            shown = ", ".join(list(found)[:3])
            raise RequestError(
                f"{self.path}: its micrographs ({shown} ...) are none of those of {session.root}."
            )
        return [found[name] for name in given]

    @cached_property
    def micrograph_pixel(self) -> NDArray[np.float64] | None:
        """(n,) Å: of the micrographs whose pixels coordinates count; None where the file does not say it."""
        for label in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"):
            if (found := self.of_group(label)) is not None:
                return found
        return None

    def scale(self, averages: NDArray[np.float64], given: float | None) -> NDArray[np.float64]:
        """(n,): pixels of the averages (n, Å) for each pixel of the file."""
        if given is not None:
            return given / averages
        if self.micrograph_pixel is None:
            return np.ones(len(averages))
        ratio = self.micrograph_pixel / averages
        return np.where(np.abs(ratio - 1.0) < _CALIBRATION, 1.0, ratio)

    def remarks(self, given: float | None) -> list[str]:
        """What people should know about coordinates."""
        if given is not None or self.micrograph_pixel is not None:
            return []
        return ["coordinates are taken to be in pixels of the averages; --coordinate-pixel says otherwise"]

    def pixel_sizes(self, items: Sequence[str], known: Mapping[str, Item]) -> NDArray[np.float64]:
        """(n,) Å: of the averages; 1 where there is none."""
        of = {name: float(known[name].metrics.get("pixel_size", 1.0)) for name in set(items) if name}
        return np.array([of.get(name, 1.0) for name in items])


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
    listed = _List(Path(path))
    out = ForeignParticles()
    items = listed.items(session)
    known = session.items
    ready = listed.pixel_sizes(items, known)
    scale = listed.scale(ready, coordinate_pixel)
    out.notes.extend(listed.remarks(coordinate_pixel))
    pixels = np.stack([listed.numbers(_X), listed.numbers(_Y)], axis=-1) * scale[:, None]
    origins = listed.origins()
    extra: dict[str, Column] = {k: v for k, v in listed.table.columns.items() if k not in _REPLACED}
    if recenter:
        pixels = pixels - origins / ready[:, None]
        origins = np.zeros_like(origins)
    text = {label: _cells(column) for label, column in extra.items()}
    for i, label in enumerate(_ORIGINS):
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


def _kept_optics(listed: _List) -> tuple[Mapping[str, Any], ...]:
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
    listed = _List(Path(path))
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
    at = np.stack([listed.numbers(_X), listed.numbers(_Y)], axis=-1)
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
    session: Session, listed: _List, rows: NDArray[np.int64], ctf: Mapping[str, list[str]]
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

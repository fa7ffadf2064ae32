"""Which particles have a label: in the input itself, or in a table that names them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError
from weft.formats.star import read_star
from weft.formats.tilt_particles import TiltParticles
from weft.formats.tilt_particles_rows import particle_block

__all__ = ["with_label"]

#: Columns that name particles in tables.
_NAMES = ("particle", "name", "rlnTomoParticleName", "rlnGroupName")
#: Values that are listed in a message.
_SHOWN = 6


def with_label(particles: TiltParticles, text: str) -> NDArray[np.bool_]:
    """Particles whose label is as a text says.

    Parameters
    ----------
    particles : TiltParticles
    text : str
        ``FILE:column=value``: of a table in CSV or STAR with a column of particles' names (`particle`,
        `name`, `rlnTomoParticleName`, `rlnGroupName`, else the first); ``column=value``: of the particles'
        own STAR file. The value is one, several as in ``1,3``, or a range of numbers: ``0.2:0.5``, ``:8``.

    Returns
    -------
    (p) bool
        False too where the table does not name the particle.

    Raises
    ------
    RequestError
        No such column or value, a table of other particles, something that says nothing.
    FormatError
        A table that cannot be read.
    """
    left, mark, value = text.partition("=")
    file, _, column = left.rpartition(":")
    column = column.strip().removeprefix("_")
    if not mark or not column or not value.strip():
        raise RequestError(f"--label {text}: write FILE.csv:column=value, or column=value of the input.")
    source = Path(file) if file else particles.path
    found = _of_table(source, column, particles) if file else _of_input(particles, column)
    which = np.array([label is not None for label in found], np.bool_)
    which[which] = _match([label for label in found if label is not None], value.strip())
    if not which.any():
        there = list(dict.fromkeys(label for label in found if label is not None))
        more = ", ..." if len(there) > _SHOWN else ""
        raise RequestError(
            f"--label {text}: no particle has it; {column} is {', '.join(there[:_SHOWN])}{more} in {source}."
        )
    return which


def _of_input(particles: TiltParticles, column: str) -> list[str | None]:
    """Of each particle's first image."""
    table = particles.blocks[particle_block(particles.path, particles.blocks)]
    if column not in table:
        raise RequestError(
            f"--label: {particles.path} has no column {column}; it has {', '.join(table.columns)}."
        )
    values = table.strings(column)
    return [values[row] for row in particles.row[particles.start[:-1]].tolist()]


def _of_table(path: Path, column: str, particles: TiltParticles) -> list[str | None]:
    if not path.is_file():
        raise RequestError(f"--label: there is no file {path}.")
    names, labels = _star(path, column) if path.suffix == ".star" else _csv(path, column)
    known = dict(zip(names, labels, strict=True))
    out = [known.get(name) for name in particles.particle]
    if all(label is None for label in out):
        raise RequestError(
            f"--label: {path} is about other particles: it names {', '.join(names[:1])}, the training was of "
            f"{particles.particle[0]}."
        )
    return out


def _csv(path: Path, column: str) -> tuple[list[str], list[str]]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise FormatError(path, "it is no table: it has no rows below its head")
    head = [name.strip() for name in rows[0]]
    if column not in head:
        raise RequestError(f"--label: {path} has no column {column}; it has {', '.join(head)}.")
    name, at = head.index(_name_column(head)), head.index(column)
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(name, at):
            raise FormatError(path, f"row {number} has {len(row)} columns where its head has {len(head)}")
    return [row[name].strip() for row in rows[1:]], [row[at].strip() for row in rows[1:]]


def _star(path: Path, column: str) -> tuple[list[str], list[str]]:
    tables = read_star(path).values()
    table = next((one for one in tables if column in one and any(name in one for name in _NAMES)), None)
    if table is None:
        raise RequestError(f"--label: {path} has no table with {column} and particles' names.")
    # a row an image in some flavours: all rows of a particle say the same
    return table.strings(_name_column(list(table.columns))), table.strings(column)


def _name_column(head: Sequence[str]) -> str:
    return next((name for name in _NAMES if name in head), head[0])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _match(labels: list[str], value: str) -> NDArray[np.bool_]:
    low, mark, high = value.partition(":")
    ends = [_number(end) for end in (low, high)]
    if mark and all(end is not None or not text for end, text in zip(ends, (low, high), strict=True)):
        bottom = -math.inf if ends[0] is None else ends[0]
        top = math.inf if ends[1] is None else ends[1]
        numbers = [_number(label) for label in labels]
        return np.array([number is not None and bottom <= number <= top for number in numbers], np.bool_)
    wanted = {part.strip() for part in value.split(",")}
    # 1 and 1.000000 are one label
    numeric = {number for number in map(_number, wanted) if number is not None}
    return np.array([label in wanted or _number(label) in numeric for label in labels], np.bool_)

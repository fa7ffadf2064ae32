"""A ``particles.star`` in RELION 3.1's columns, and what cryoSPARC needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats import mrc
from weft.formats.coordinate_star import number
from weft.formats.cryosparc import uid_of
from weft.formats.cryosparc_tables import Exposure, ParticleColumns
from weft.formats.particle_star import finite_column
from weft.formats.star import Table, read_star
from weft.physics.optics import Optics
from weft.session.micrograph_names import MicrographNames
from weft.session.pick_files import BY_HAND

__all__ = ["ParticleStack", "read_particles"]

_IMAGE, _NAME, _GROUP = "rlnImageName", "rlnMicrographName", "rlnOpticsGroup"
_PLACE = ("rlnCoordinateX", "rlnCoordinateY")
_CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_OPTICS = ("rlnImagePixelSize", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_SCORE, _PHASE = "rlnAutopickFigureOfMerit", "rlnPhaseShift"
_PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ParticleStack:
    """Particles in the order of the table; all of length n.

    Attributes
    ----------
    item : list of str
        Of the session; empty where the micrograph is of none.
    file : list of Path
        The stack of each.
    index : list of int
        In the stack, from 0.
    box : int
        Side of the images, pixels.
    group : list of int
        From 1.
    optics : dict
        Group → optics at the images' pixel size.
    ctf : (n, 4) array
        Defocus U, V (Å), angle, phase shift (degrees).
    xy : (n, 2) array
        Pixels of the micrograph.
    score : (n,) array
    """

    item: list[str]
    file: list[Path]
    index: list[int]
    box: int
    group: list[int]
    optics: Mapping[int, Optics]
    ctf: _Array
    xy: _Array
    score: _Array

    def columns(
        self, rows: Sequence[int], exposures: Mapping[str, Exposure], paths: Mapping[Path, str], dark: bool
    ) -> ParticleColumns:
        """Some of them, for cryoSPARC.

        Parameters
        ----------
        rows : sequence of int
            All of micrographs that are in `exposures`.
        paths : dict
            File → what cryoSPARC is to call it.
        dark : bool
            Particles are dark.
        """
        chosen = list(rows)
        ctf = self.ctf[chosen]
        return ParticleColumns(
            [uid_of(f"{self.file[i].resolve()}:{self.index[i]}") for i in rows],
            [paths[self.file[i]] for i in rows],
            [self.index[i] for i in rows],
            self.box,
            [self.optics[self.group[i]] for i in rows],
            [self.group[i] for i in rows],
            ctf[:, 0],
            ctf[:, 1],
            ctf[:, 2],
            ctf[:, 3],
            [exposures[self.item[i]] for i in rows],
            self.xy[chosen],
            self.score[chosen],
            dark,
        )


@dataclass(frozen=True)
class _Known:
    name: str
    source: Path


def read_particles(path: str | Path, root: Path, items: Sequence[str]) -> ParticleStack:
    """Read a table of 2D particles, and look at the stacks that it names.

    Parameters
    ----------
    path : path-like
        The STAR file, or the folder with ``particles.star``.
    root : Path
        The session.
    items : sequence of str
        Its items.

    Raises
    ------
    FormatError
        A column is missing.
    CorruptError, TruncatedError
        A number is none; a stack is missing, or has fewer images than the table says.
    """
    path = Path(path)
    path = path / "particles.star" if path.is_dir() else path
    blocks = read_star(path)
    table, optics = blocks.get("particles"), blocks.get("optics")
    if table is None or optics is None:
        raise FormatError(
            path, "it has no tables `particles` and `optics`, as RELION 3.1 and later write them"
        )
    for label in (_IMAGE, _NAME, *_PLACE, *_CTF, _GROUP):
        if label not in table:
            raise FormatError(path, f"it has no column _{label}")
    if _PREMULTIPLIED in optics and any(finite_column(path, _PREMULTIPLIED, optics[_PREMULTIPLIED])):
        raise FormatError(
            path, "its images are multiplied by their CTF, which cryoSPARC cannot know; export them without"
        )
    groups = _optics(path, optics)
    group = table.ints(_GROUP).tolist()
    absent = next((g for g in group if g not in groups), None)
    if absent is not None:
        raise CorruptError(path, f"its particles name the optics group {absent}, which it does not describe")
    files, index, box = _images(path, table, root)
    columns = {label: finite_column(path, label, table[label]) for label in (*_PLACE, *_CTF)}
    zero = np.zeros(len(table))
    phase = finite_column(path, _PHASE, table[_PHASE]) if _PHASE in table else zero
    names = MicrographNames(_Known(name, Path(name)) for name in items)
    item_of: dict[str, str] = {}
    for name in dict.fromkeys(table.strings(_NAME)):
        meant = names.find(name)
        item_of[name] = meant[0] if len(meant) == 1 else ""
    return ParticleStack(
        [item_of[name] for name in table.strings(_NAME)],
        files,
        index,
        box,
        group,
        groups,
        np.stack([*(columns[label] for label in _CTF), phase], axis=-1),
        np.stack([columns[label] for label in _PLACE], axis=-1),
        _scores(path, table),
    )


def _scores(path: Path, table: Table) -> _Array:
    """0 where there is none: of particles picked by hand."""
    if _SCORE not in table:
        return np.zeros(len(table))
    rows = enumerate(table[_SCORE], 1)
    score = np.array([number(path, f"row {i} of _{_SCORE}", value) for i, value in rows], np.float64)
    return np.where(np.isfinite(score) & (score != BY_HAND), score, 0.0)


def _optics(path: Path, table: Table) -> dict[int, Optics]:
    for label in (_GROUP, *_OPTICS):
        if label not in table:
            raise FormatError(path, f"its table of optics has no column _{label}")
    values = zip(*(finite_column(path, label, table[label]).tolist() for label in _OPTICS), strict=True)
    return {g: Optics(*row) for g, row in zip(table.ints(_GROUP).tolist(), values, strict=True)}


def _images(path: Path, table: Table, root: Path) -> tuple[list[Path], list[int], int]:
    """Stack and index of each particle, and the box that all have."""
    stacks: dict[str, tuple[Path, int]] = {}
    files, index, boxes = [], [], set()
    for row, text in enumerate(table.strings(_IMAGE), 1):
        number, at, name = text.partition("@")
        if not at or not number.isdecimal() or int(number) < 1:
            raise CorruptError(path, f"row {row} of _{_IMAGE} is {text!r}, not 000001@STACK")
        if name not in stacks:
            file = _stack(path, name, root)
            if file is None:
                raise CorruptError(path, f"row {row} names the stack {name}, which is not there")
            shape = mrc.read_header(file).shape
            if shape[-1] != shape[-2]:
                raise FormatError(file, f"its images of {shape[-1]} × {shape[-2]} pixels are not square")
            boxes.add(int(shape[-1]))
            stacks[name] = (file, int(shape[0]) if len(shape) == 3 else 1)
        file, count = stacks[name]
        if int(number) > count:
            raise CorruptError(path, f"row {row} names image {number} of {name}, which has {count}")
        files.append(file)
        index.append(int(number) - 1)
    if len(boxes) > 1:
        raise FormatError(
            path, f"its stacks have boxes of {', '.join(map(str, sorted(boxes)))} pixels, not one"
        )
    return files, index, boxes.pop() if boxes else 0


def _stack(path: Path, name: str, root: Path) -> Path | None:
    """A stack that the table names: absolute, or relative to one of the folders above the table."""
    for folder in (*path.absolute().parents, root):
        if (folder / name).is_file():
            return folder / name
    return None

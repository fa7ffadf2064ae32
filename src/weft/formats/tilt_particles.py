"""Particles as images of their tilt series, in all forms in which other programs and Weft itself write them.

========== =============================================================== =====================
flavour    written by                                                      a row is
========== =============================================================== =====================
warp1      Warp 1, M: particle series (``weft export``: ``images.star``)   an image
cryosrpnt  cryoSRPNT's simulations                                         an image
nextpyp    NextPYP                                                         an image
relion3    Weft for RELION 3.1                                             an image
cistem     cisTEM, emClarity                                               an image
warptools  WarpTools ``ts_export_particles --2d``, Weft                    a particle
relion4    RELION 4                                                        a particle
relion5    RELION 5, Weft                                                  a particle
========== =============================================================== =====================

A file's flavour is told by what it holds: see ``docs/science/tilt-particles.md``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from weft.errors import FormatError
from weft.formats.star import Table, read_star, write_star
from weft.formats.tilt_particles_cistem import read_cistem
from weft.formats.tilt_particles_data import TiltParticles
from weft.formats.tilt_particles_images import read_image_rows, volumes_error
from weft.formats.tilt_particles_rows import CISTEM_POSITION, CISTEM_STACK, IMAGE, particle_block
from weft.formats.tilt_particles_series import (
    PARTICLES_FILE,
    TOMOGRAMS_FILE,
    find_tomograms,
    read_optimisation_set,
)
from weft.formats.tilt_particles_sets import VISIBLE, read_particle_set
from weft.formats.tilt_particles_stacks import StackFinder

__all__ = ["TiltParticles", "read_tilt_particles", "write_tilt_particles"]

STACKS_2D, DIMENSIONS = "rlnTomoSubTomosAre2DStacks", "rlnImageDimensionality"


def read_tilt_particles(
    path: str | Path, *, datadir: str | Path | None = None, tomograms: str | Path | None = None
) -> TiltParticles:
    """Read particles with all that is known of each of their images.

    Parameters
    ----------
    path : path-like
        A STAR file of particles, or an optimisation set.
    datadir : path-like, optional
        Where stacks are, when they are not where the file says. They are looked for there, then in the file's
        folder, those above it and the working directory.
    tomograms : path-like, optional
        The STAR file of tomograms that belongs to the particles; by default the one that the optimisation
        set names, or that lies beside them.

    Returns
    -------
    TiltParticles

    Raises
    ------
    FormatError
        No such file, no particles of tilt images, columns that are missing (all are named), a stack that is
        not there, boxes or pixel sizes that differ.
    CorruptError
        A number that is none, by its row and column.
    TruncatedError
        A stack has fewer images than are asked of it, or fewer bytes than its header says.
    """
    path = Path(path)
    blocks = _read(path)
    table = next((t for t in blocks.values() if PARTICLES_FILE in t), None)
    found: Path | None = None if tomograms is None else Path(tomograms)
    project: Path | None = None
    if table is not None:
        path, listed, project = read_optimisation_set(path, table, datadir)
        found = found or listed
        blocks = _read(path)
    block = particle_block(path, blocks)
    finder = StackFinder(path, datadir)
    if CISTEM_POSITION in blocks[block] and IMAGE not in blocks[block]:
        return read_cistem(path, blocks, block, finder)
    if not _is_set(path, blocks, block):
        return read_image_rows(path, blocks, block, finder)
    if found is None:
        found, project = find_tomograms(path, datadir)
    return read_particle_set(path, blocks, block, found, project or found.absolute().parent, finder)


def _read(path: Path) -> dict[str, Table]:
    if not path.is_file():
        raise FormatError(path, "there is no such file")
    return read_star(path)


def _is_set(path: Path, blocks: dict[str, Table], block: str) -> bool:
    """Whether a row is a particle with all its tilts; sub-tomograms are an error."""
    table, optics, general = blocks[block], blocks.get("optics"), blocks.get("general")
    if general is not None and STACKS_2D in general:
        if general.value(STACKS_2D).strip() == "1":
            return True
        raise volumes_error(path)
    if VISIBLE in table:
        return True
    if optics is not None and DIMENSIONS in optics and "3" in optics.strings(DIMENSIONS):
        raise volumes_error(path)
    names = table.strings(IMAGE)
    if "rlnCtfImage" in table and not any("@" in name for name in names):
        raise volumes_error(path)
    return "rlnTomoParticleId" in table and not any("@" in name for name in names)


def write_tilt_particles(path: str | Path, particles: TiltParticles, keep: ArrayLike) -> None:
    """Write some of the particles of a file in its own flavour: the rows of these, all else as it was.

    Names of stacks stay as they are where they lead to the same files from the new place, and become absolute
    where they do not. With an optimisation set's particles a new set is written beside them,
    ``NAME_optimisation_set.star``, that names them and the tomograms' unchanged table. A `path` that ends in
    ``optimisation_set.star`` is taken for the set's own; the particles go to ``NAME.star``, or without a
    NAME to ``particles.star``.

    Parameters
    ----------
    path : path-like
    particles : TiltParticles
    keep : (n) indices, or (p) mask
        Of these particles; rows stay in the file's order.

    Raises
    ------
    ValueError
        Nothing is to be kept.
    """
    chosen = particles.select(np.unique(particles.indices(keep)))
    if len(chosen) == 0:
        raise ValueError("there are no particles to be written")
    path, both = _paths(Path(path))
    block = particle_block(particles.path, particles.blocks)
    table = particles.blocks[block]
    rows = np.unique(chosen.row)
    columns: dict[str, Any] = {
        label: [column[row] for row in rows.tolist()] for label, column in table.columns.items()
    }
    _correct_names(path, chosen, columns, rows)
    blocks = {**particles.blocks, block: Table(columns, table.loop)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_star(path, blocks)
    if particles.tomograms is not None:
        base = (particles.project or particles.tomograms.parent).resolve()
        files = {PARTICLES_FILE: path, TOMOGRAMS_FILE: particles.tomograms}
        inside = both.resolve().is_relative_to(base)
        named = {label: [_name(file, base, inside)] for label, file in files.items()}
        write_star(both, {"": Table(dict(named), loop=False)})


def _paths(path: Path) -> tuple[Path, Path]:
    """Of the particles, and of the optimisation set."""
    if not path.stem.endswith("optimisation_set"):
        return path, path.with_name(f"{path.stem}_optimisation_set.star")
    stem = path.stem.removesuffix("optimisation_set").rstrip("_-.")
    return path.with_name(f"{stem or 'particles'}.star"), path


def _name(file: Path, base: Path, inside: bool) -> str:
    """As RELION counts it from its project, or absolute where the set is elsewhere."""
    whole = Path(os.path.abspath(file))
    if inside and whole.resolve().is_relative_to(base):
        return whole.resolve().relative_to(base).as_posix()
    return str(whole)


def _correct_names(path: Path, chosen: TiltParticles, columns: dict[str, Any], rows: Any) -> None:
    """Make names of stacks absolute where they would not be found from the new file's folder."""
    at = np.zeros(int(rows.max()) + 1, np.int64)
    at[chosen.row] = chosen.file
    files = at[rows].tolist()
    label = IMAGE if IMAGE in columns else CISTEM_STACK
    if label not in columns:
        # cisTEM's stack goes by the table's own name, which is another now
        columns[label] = [str(chosen.files[i].absolute()) for i in files]
        return
    finder = StackFinder(path)
    known: dict[str, str] = {}
    for i, (name, file) in enumerate(zip(columns[label], files, strict=True)):
        number, mark, plain = str(name).rpartition("@")
        if plain not in known:
            found = finder.find(plain)
            same = found is not None and found.resolve() == chosen.files[file].resolve()
            known[plain] = plain if same else str(chosen.files[file].absolute())
        columns[label][i] = f"{number}{mark}{known[plain]}"

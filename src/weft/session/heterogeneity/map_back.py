"""`weft vae map-back`: the classes of a training, back in the tomograms that the particles are from."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_text
from weft.formats.chimerax import Copies, chimerax_commands
from weft.matching.density import find_particle, solvent_level
from weft.session.heterogeneity.analysis_table import AnalysisTable, read_analysis
from weft.session.heterogeneity.class_colours import class_colour
from weft.session.heterogeneity.class_tables import (
    ClassPlaces,
    check_own,
    session_table,
    write_class_table,
)
from weft.session.heterogeneity.map_back_picture import draw_overview
from weft.session.heterogeneity.placing import geometries, place_particles

if TYPE_CHECKING:
    from weft.session.heterogeneity.run_folder import VAERun
    from weft.session.session import Session

__all__ = ["MapBack", "TomogramClasses", "map_back"]


@dataclass(frozen=True)
class TomogramClasses:
    """One tomogram.

    Attributes
    ----------
    name : str
    counts : dict of int to int
        Particles of each class.
    commands : Path
        For ChimeraX.
    picture : Path
    """

    name: str
    counts: dict[int, int]
    commands: Path
    picture: Path


@dataclass(frozen=True)
class MapBack:
    """What was written.

    Attributes
    ----------
    output : Path
    tomograms : list of TomogramClasses
    tables : list of Path
        Places with classes.
    notes : list of str
    """

    output: Path
    tomograms: list[TomogramClasses]
    tables: list[Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Class:
    """The volume as it is (False) and mirrored (True), as far as they are needed; voxels along an axis; the
    level of the surface."""

    volumes: dict[bool, Path]
    size: int
    level: float | None


def map_back(
    run: VAERun,
    output: str | Path,
    *,
    tomogram: Sequence[str] = (),
    session: Session | None = None,
    tilt_axis: float | None = None,
    name: str | None = None,
) -> MapBack:
    """Write where the particles of each class lie in their tomograms, for people and for programs.

    ``places.star`` and ``places.csv`` for all of them; of each tomogram, ``NAME.cxc`` for ChimeraX (a copy of
    its class's volume at every particle) and the picture ``NAME.png``. A `session` gives tomograms and
    geometry, and gets the table that its page shows, ``heterogeneity/NAME.star``.

    Parameters
    ----------
    run : VAERun
    output : path-like
        A folder.
    tomogram : sequence of str
        Only these; by default all.
    session : Session, optional
    tilt_axis : float, optional
        Degrees; for rows of images without a session.
    name : str, optional
        Of the table in the session; by default the training's folder's.

    Raises
    ------
    RequestError
        No analysis, an unknown tomogram, a file that does not say where its particles are, a name that
        another training has in the session.
    """
    out = Path(output)
    analysis = read_analysis(run)
    particles = run.particles()
    at = {one: i for i, one in enumerate(particles.particle)}
    missing = [one for one in analysis.particle if one not in at]
    if missing:
        raise RequestError(
            f"{particles.path} has changed since the analysis: {len(missing)} particles, {missing[0]} among "
            "them, are not in it."
        )
    label = analysis.cluster
    particles = particles.select(np.array([at[one] for one in analysis.particle], np.int64))
    names = np.array([one or "tomogram" for one in particles.tomogram])
    _check_known(tomogram, names, particles.path)
    table = None if session is None else session_table(session.root, name or Path(run.path).resolve().name)
    if table is not None:
        check_own(table, Path(run.path))
    notes: list[str] = []
    series = {} if session is None else geometries(session, particles.tomogram, notes)
    placed = place_particles(particles, series, tilt_axis)
    places = ClassPlaces(
        run=Path(run.path),
        diameter=run.facts.diameter,
        particle=particles.particle,
        tomogram=names.tolist(),
        label=label,
        place=placed.place,
        matrix=placed.matrix,
        centred=placed.centred,
        mirrored=placed.mirrored,
        size=placed.size,
    )
    out.mkdir(parents=True, exist_ok=True)
    classes = _class_volumes(analysis, out, set(placed.mirrored.tolist()), notes)
    tables = [out / "places.star", out / "places.csv"]
    write_class_table(tables[0], places)
    atomic_write_text(tables[1], _csv(places))
    if table is not None:
        of_session = places.select(np.isin(names, list(series)))
        if len(of_session.particle):
            write_class_table(table, of_session)
            tables.append(table)
        else:
            notes.append("no tomogram of these particles is in the session: its page gets nothing to show")
    done = []
    for one in dict.fromkeys(tomogram or names.tolist()):
        chosen = places.select(names == one)
        shown = None if session is None or one not in series else _tomogram(session, one, notes)
        done.append(_write_one(out, one, chosen, classes, shown))
    return MapBack(out, done, tables, notes + placed.notes)


def _check_known(wanted: Sequence[str], names: NDArray[Any], path: Path) -> None:
    unknown = [one for one in wanted if one not in names]
    if unknown:
        there = ", ".join(dict.fromkeys(names.tolist()))
        raise RequestError(f"--tomogram {unknown[0]}: the particles of {path} are of {there}.")


def _tomogram(session: Session, name: str, notes: list[str]) -> Path | None:
    path = session.series[name].paths.get("tomogram")
    if path is None or not path.is_file():
        notes.append(f"{name} has no tomogram in {session.root}; `weft tilts reconstruct` makes it")
        return None
    return path


def _class_volumes(
    analysis: AnalysisTable, out: Path, needed: set[bool], notes: list[str]
) -> dict[int, _Class]:
    """Copies that stay when the analysis is made again, and at which level their surface is drawn."""
    found = {}
    folder = out / "volumes"
    folder.mkdir(parents=True, exist_ok=True)
    for number in analysis.clusters:
        source = analysis.volumes.get(number)
        if source is None or not source.is_file():
            raise RequestError(
                f"{analysis.folder} has no volume of cluster {number}; "
                f"`weft vae analyze {analysis.folder.parent}` makes it."
            )
        array, info = mrc.read(source)
        volume = torch.from_numpy(np.array(array, np.float32))
        paths = {hand: folder / f"class_{number:02d}{'_mirrored' * hand}.mrc" for hand in needed}
        for hand, path in paths.items():
            if not hand:
                shutil.copyfile(source, path)
                continue
            # in z, about voxel n//2
            at = (2 * (len(volume) // 2) - np.arange(len(volume))) % len(volume)
            mrc.write(path, volume.numpy()[at], info.pixel_size or 1.0)
        level: float | None = None
        sign = -1.0 if analysis.inverted else 1.0
        try:
            # which side density is on is known
            level = sign * find_particle((sign * volume).clamp(min=solvent_level(sign * volume))).threshold
        except ItemError:
            notes.append(f"the volume of cluster {number} shows no particle; ChimeraX chooses its level")
        found[number] = _Class(paths, len(volume), level)
    return found


def _write_one(
    out: Path, name: str, places: ClassPlaces, classes: dict[int, _Class], tomogram: Path | None
) -> TomogramClasses:
    counts = {number: int((places.label == number).sum()) for number in classes}
    copies = []
    for number, of_class in classes.items():
        mine = places.select(places.label == number)
        copies.append(
            Copies(
                name=f"cluster {number} ({counts[number]} particles)",
                volumes=[of_class.volumes[hand] for hand in mine.mirrored.tolist()],
                size=of_class.size,
                level=of_class.level,
                colour=class_colour(number),
                names=mine.particle,
                matrix=np.concatenate([mine.matrix, mine.place[:, :, None]], axis=2),
            )
        )
    shape = (0, 0, 0)
    if tomogram is not None:
        z, y, x = mrc.read_header(tomogram).shape
        shape = (x, y, z)
    comments = [
        f"{name}: {len(places.particle)} particles of {places.run}, by cluster",
        "for a ChimeraX in which nothing else is open",
        "#1 is the tomogram, #2 the copies of cluster 1, #3 those of cluster 2 ...",
    ]
    if places.mirrored.any():
        comments.append(
            "volumes are mirrored, as the tomogram is: its tables say that its hand was not flipped"
        )
    if places.centred.any():
        comments.append("places count from the tomogram's centre, since its size is not known")
    stem = name.replace("/", "_")
    commands, picture = out / f"{stem}.cxc", out / f"{stem}.png"
    atomic_write_text(commands, chimerax_commands(copies, tomogram, shape, comments))
    draw_overview(picture, name, places, tomogram)
    return TomogramClasses(name, counts, commands, picture)


def _csv(places: ClassPlaces) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["particle", "tomogram", "class", "x", "y", "z", "rot", "tilt", "psi", "origin"]
    writer.writerow(head)
    angles = places.euler()
    for i, particle in enumerate(places.particle):
        numbers = [f"{value:.3f}" for value in (*places.place[i], *angles[i])]
        origin = "centre" if places.centred[i] else "corner"
        writer.writerow([particle, places.tomogram[i], int(places.label[i]), *numbers, origin])
    return text.getvalue()

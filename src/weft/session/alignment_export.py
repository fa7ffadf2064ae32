"""``weft export alignments``: aligned tilt series in the files of other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from weft.errors import RequestError
from weft.formats import aretomo, dynamo, imod, warp_geometry
from weft.formats.atomic import atomic_write_text
from weft.formats.relion_tomo import write_tilt_series
from weft.formats.tomostar import Tomostar, write_tomostar
from weft.formats.warp_xml import write_warp_xml
from weft.session.alignment_reading import mirrored
from weft.session.alignment_sources import PROGRAMS, Program
from weft.session.tomogram_export import (
    AlignedSeries,
    SeriesExport,
    aligned_series,
    check_inside,
    relion_series,
)

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["export_alignments"]

#: Forms that know the tilt axis only, and what is level to them, degrees.
_LEVEL_ONLY = ("aretomo", "dynamo")
_LEVEL = 1e-6


def export_alignments(
    session: Session,
    output: str | Path,
    form: Program,
    *,
    only: str | None = None,
    project: str | Path | None = None,
    invert_angles: bool = False,
    unlevelled: bool = False,
) -> SeriesExport:
    """Write the alignment of every aligned series for another program.

    Numbers of images are those of Weft's own stack, ``tiltstack/NAME/NAME.st``.

    Parameters
    ----------
    session : Session
    output : path-like
        A folder; made where it is missing.
    form : Program
    only : str, optional
        Series by a shell pattern on their names.
    project : path-like, optional
        RELION's project: names are relative to it instead of absolute.
    invert_angles : bool
        Of the specimen's mirror image, as on import.
    unlevelled : bool
        Leave the specimen inclined about x as it is in the microscope, for programs that cannot level it.

    Raises
    ------
    RequestError
        Unknown form, or an output outside the project.
    """
    if form not in PROGRAMS:
        raise RequestError(f"there is no form {form!r}; there are {', '.join(PROGRAMS)}.")
    out, base = Path(output).absolute(), None if project is None else Path(project).absolute()
    check_inside(out, base)
    result = SeriesExport()
    ready: list[AlignedSeries] = []
    for item in aligned_series(session, only, result):
        geometry = mirrored(item.geometry) if invert_angles else item.geometry
        if unlevelled:
            geometry = replace(geometry, level_x=torch.zeros((), dtype=torch.float64))
        ready.append(replace(item, geometry=geometry))
    if form == "relion":
        _write_relion(out / "aligned_tilt_series.star", ready, base, result)
        return result
    writers: dict[str, Callable[[AlignedSeries, Path], Path]] = {
        "imod": _write_imod,
        "aretomo": _write_aretomo,
        "dynamo": _write_dynamo,
        "warp": _write_warp,
    }
    for item in ready:
        inclined = float(item.geometry.level_x)
        if form in _LEVEL_ONLY and abs(inclined) > _LEVEL:
            result.problems.append(
                f"{item.name}: {form} has no place for its inclination about x ({inclined:.2f}°); "
                "export it for imod, relion or warp, or with --unlevelled, which leaves it inclined"
            )
            continue
        out.mkdir(parents=True, exist_ok=True)
        result.written[item.name] = writers[form](item, out)
    return result


# --------------------------------------------------------------------------------------- files of series


def _write_imod(item: AlignedSeries, output: Path) -> Path:
    folder, name = output / item.name, item.name
    folder.mkdir(exist_ok=True)
    theirs = imod.from_geometry(item.geometry, pixel_size=item.pixel_size)
    imod.write_xf(folder / f"{name}.xf", theirs.transforms, theirs.shifts)
    imod.write_tlt(folder / f"{name}.tlt", theirs.angles)
    imod.write_tlt(folder / f"{name}.rawtlt", [tilt["angle"] for tilt in item.tilts])
    width, height = (round(float(v) / item.pixel_size) for v in item.geometry.image_size)
    thickness = round(float(item.geometry.volume_size[2]) / item.pixel_size)
    lines = [
        "$setenv IMOD_OUTPUT_FORMAT MRC",
        "$tilt -StandardInput",
        f"InputProjections {name}_ali.mrc",
        f"OutputFile {name}_full_rec.mrc",
        "IMAGEBINNED 1",
        f"TILTFILE {name}.tlt",
        f"THICKNESS {thickness}",
        f"XAXISTILT {theirs.x_axis_tilt:.6f}",
        f"OFFSET {theirs.angle_offset:.6f}",
        "SHIFT 0.0 0.0",
        "PERPENDICULAR",
        "MODE 2",
        f"FULLIMAGE {width} {height}",
        "SUBSETSTART 0 0",
    ]
    atomic_write_text(folder / "tilt.com", "\n".join(lines) + "\n")
    return folder


def _write_aretomo(item: AlignedSeries, output: Path) -> Path:
    file = output / f"{item.name}.aln"
    theirs = aretomo.from_geometry(item.geometry, pixel_size=item.pixel_size)
    # what the angles contain beside those of the stage
    theirs.alpha_offset = float(item.geometry.level_y)
    aretomo.write_aln(file, theirs)
    return file


def _write_dynamo(item: AlignedSeries, output: Path) -> Path:
    theirs = dynamo.from_geometry(item.geometry, pixel_size=item.pixel_size)
    dynamo.write_dynamo_alignment(output / item.name, dynamo.DynamoAlignment(item.name, theirs))
    return output / item.name


def _write_warp(item: AlignedSeries, output: Path) -> Path:
    movies = {i: row.movie for i, row in enumerate(item.series.table.tilts)}
    # WarpTools finds movies from the folder of the .tomostar
    names = [
        os.path.relpath(movies[tilt["index"]], output)
        if movies.get(tilt["index"])
        else f"{item.name}_{i:03d}.mrc"
        for i, tilt in enumerate(item.tilts)
    ]
    optics = item.session.settings.input
    physics = {"PixelSize": item.pixel_size, "Voltage": optics.voltage, "Cs": optics.cs}
    physics["Amplitude"] = optics.amplitude
    series = warp_geometry.from_geometry(
        item.geometry, names, item.doses, {k: repr(v) for k, v in physics.items()}
    )
    write_warp_xml(output / f"{item.name}.xml", series)
    axis = item.geometry.axis.expand(len(item.geometry)).numpy().copy()
    write_tomostar(output / f"{item.name}.tomostar", Tomostar(names, series.angles, item.doses, axis))
    return output / f"{item.name}.xml"


def _write_relion(
    path: Path, ready: Sequence[AlignedSeries], project: Path | None, result: SeriesExport
) -> None:
    rows = [relion_series(item, project) for item in ready]
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tilt_series(path, rows, root=project)
    result.written.update({item.name: path for item in ready})
    unknown = [item.name for item in ready if not item.has_ctf]
    if unknown:
        result.notes.append(f"without a CTF, and with RELION's usual rlnTomoHand of -1: {', '.join(unknown)}")

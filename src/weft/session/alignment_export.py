"""``weft export alignments`` and ``weft export tomograms``: aligned tilt series for other programs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.errors import RequestError
from weft.formats import aretomo, dynamo, imod, relion_tomo, warp_geometry
from weft.formats.atomic import atomic_write_text
from weft.formats.relion_tomo import FILE, NAME, RelionTiltSeries, write_tilt_series
from weft.formats.star import read_star
from weft.formats.tomostar import Tomostar, write_tomostar
from weft.formats.warp_xml import write_warp_xml
from weft.session.alignment_reading import mirrored
from weft.session.alignment_sources import PROGRAMS, Program
from weft.session.series_tables import write_tomograms_star

if TYPE_CHECKING:
    from weft.physics.geometry import TiltGeometry
    from weft.session.records import Record
    from weft.session.session import Session
    from weft.session.tilt_item import TiltSeries

__all__ = ["AlignmentExport", "export_alignments", "export_tomograms"]

_GEOMETRY = re.compile(r"rlnTomo(?:[XYZ](?:Tilt|Rot|ShiftAngst)|Proj[XYZW])")
#: Columns that hold files, and what RELION adds to a file's name before or after it.
_FILES = re.compile(r"rln(?:MicrographName|MicrographNameEven|MicrographNameOdd|MicrographMovieName|"
                    r"MicrographMetadata|CtfImage)")  # fmt: skip
_FILE_NAME = re.compile(r"(\d+@)?(.*?)(:mrc)?\Z")


@dataclass(frozen=True)
class AlignmentExport:
    """What was written.

    Attributes
    ----------
    written : dict of str to Path
        Series → its file or folder.
    problems : list of str
        Why a series was not written.
    notes : list of str
    """

    written: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or not self.written else 0


@dataclass(frozen=True)
class _Aligned:
    """One series, ready to be written: its geometry, and its tilts in the stack's order."""

    session: Session
    series: TiltSeries
    record: Record
    geometry: TiltGeometry
    pixel_size: float
    tilts: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.series.name

    @property
    def has_ctf(self) -> bool:
        done = self.record.steps.get("tilt_ctf")
        return done is not None and done.status == "done"


def export_alignments(
    session: Session,
    output: str | Path,
    form: Program,
    *,
    only: str | None = None,
    project: str | Path | None = None,
    invert_angles: bool = False,
    unlevelled: bool = False,
) -> AlignmentExport:
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
    _within(out, base)
    result = AlignmentExport()
    ready: list[_Aligned] = []
    for series in session.series.values():
        if only is None or fnmatchcase(series.name, only):
            found = _aligned(session, series)
            if found is None:
                result.problems.append(f"{series.name}: {series.error or 'it is not aligned yet'}")
                continue
            geometry = mirrored(found.geometry) if invert_angles else found.geometry
            if unlevelled:
                geometry = replace(geometry, level_x=torch.zeros((), dtype=torch.float64))
            ready.append(replace(found, geometry=geometry))
    if form == "relion":
        _write_relion(out / "aligned_tilt_series.star", ready, base, result)
        return result
    writers: dict[str, Callable[[_Aligned, Path], Path]] = {
        "imod": _write_imod,
        "aretomo": _write_aretomo,
        "dynamo": _write_dynamo,
        "warp": _write_warp,
    }
    for item in ready:
        try:
            out.mkdir(parents=True, exist_ok=True)
            result.written[item.name] = writers[form](item, out)
        except ValueError as error:
            result.problems.append(
                f"{item.name}: {error}; export it for imod, relion or warp, or with --unlevelled, which "
                "leaves the specimen inclined in the volume"
            )
    return result


def _within(output: Path, project: Path | None) -> None:
    if project is not None and not output.resolve().is_relative_to(project.resolve()):
        raise RequestError(f"{output} is outside the project {project}, so that RELION could not find it.")


def _aligned(session: Session, series: TiltSeries) -> _Aligned | None:
    from weft.session.steps.stack import used_tilts

    record = series.record
    done = record.steps.get("align") if record else None
    if record is None or done is None or done.status != "done":
        return None
    return _Aligned(session, series, record, series.geometry, series.alignment.pixel_size, used_tilts(record))


# --------------------------------------------------------------------------------------- files of series


def _write_imod(item: _Aligned, output: Path) -> Path:
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


def _write_aretomo(item: _Aligned, output: Path) -> Path:
    file = output / f"{item.name}.aln"
    theirs = aretomo.from_geometry(item.geometry, pixel_size=item.pixel_size)
    # what the angles contain beside those of the stage
    theirs.alpha_offset = float(item.geometry.level_y)
    aretomo.write_aln(file, theirs)
    return file


def _write_dynamo(item: _Aligned, output: Path) -> Path:
    theirs = dynamo.from_geometry(item.geometry, pixel_size=item.pixel_size)
    dynamo.write_dynamo_alignment(output / item.name, dynamo.DynamoAlignment(item.name, theirs))
    return output / item.name


def _write_warp(item: _Aligned, output: Path) -> Path:
    movies = {i: row.movie for i, row in enumerate(item.series.table.tilts)}
    # WarpTools finds movies from the folder of the .tomostar
    names = [
        os.path.relpath(movies[tilt["index"]], output)
        if movies.get(tilt["index"])
        else f"{item.name}_{i:03d}.mrc"
        for i, tilt in enumerate(item.tilts)
    ]
    dose = _doses(item)
    optics = item.session.settings.input
    physics = {"PixelSize": item.pixel_size, "Voltage": optics.voltage, "Cs": optics.cs}
    physics["Amplitude"] = optics.amplitude
    series = warp_geometry.from_geometry(item.geometry, names, dose, {k: repr(v) for k, v in physics.items()})
    write_warp_xml(output / f"{item.name}.xml", series)
    axis = item.geometry.axis.expand(len(item.geometry)).numpy().copy()
    write_tomostar(output / f"{item.name}.tomostar", Tomostar(names, series.angles, dose, axis))
    return output / f"{item.name}.xml"


def _doses(item: _Aligned) -> np.ndarray[Any, np.dtype[np.float64]]:
    """e/Å², before each exposure."""
    return np.array([float(tilt["dose"]) - float(tilt["exposure"]) for tilt in item.tilts])


# ------------------------------------------------------------------------------------------------ RELION


def _write_relion(
    path: Path, ready: Sequence[_Aligned], project: Path | None, result: AlignmentExport
) -> None:
    rows = [_relion_series(item, project, {}) for item in ready]
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tilt_series(path, rows, root=project)
    result.written.update({item.name: path for item in ready})
    unknown = [item.name for item in ready if not item.has_ctf]
    if unknown:
        result.notes.append(f"without a CTF, and with RELION's usual rlnTomoHand of -1: {', '.join(unknown)}")


def _relion_series(item: _Aligned, project: Path | None, general: dict[str, Any]) -> RelionTiltSeries:
    """The series with all that is known about its tilts; names relative to the project, or absolute."""
    root = item.session.root
    columns: dict[str, Any]
    if item.has_ctf:
        star = root / item.record.steps["tilt_ctf"].outputs["star"]
        table = next(iter(read_star(star).values()))
        columns = {k: list(v) for k, v in table.columns.items() if not _GEOMETRY.fullmatch(k)}
    else:
        stack = root / item.record.steps["stack"].outputs["stack"]
        columns = {
            "rlnMicrographName": [f"{i + 1:06d}@{stack}" for i in range(len(item.tilts))],
            "rlnTomoNominalStageTiltAngle": [float(tilt["angle"]) for tilt in item.tilts],
            "rlnMicrographPreExposure": _doses(item),
        }
        movies = [item.series.table.tilts[tilt["index"]].movie for tilt in item.tilts]
        if all(movies):
            columns["rlnMicrographMovieName"] = movies
    if project is not None:
        for label in filter(_FILES.fullmatch, list(columns)):
            columns[label] = [_relative(str(text), project) for text in columns[label]]
    if not general:
        general = _general(item)
    series = relion_tomo.from_geometry(
        item.geometry, item.name, pixel_size=item.pixel_size, general=general, tilts=columns
    )
    if not item.has_ctf:
        for label in ("rlnDefocusU", "rlnDefocusV"):
            del series.tilts.columns[label]
    return series


def _general(item: _Aligned) -> dict[str, Any]:
    optics = item.session.settings.input
    return {
        "rlnVoltage": optics.voltage,
        "rlnSphericalAberration": optics.cs,
        "rlnAmplitudeContrast": optics.amplitude,
        "rlnMicrographOriginalPixelSize": optics.pixel_size,
        "rlnOpticsGroupName": "opticsGroup1",
    }


def _relative(text: str, project: Path) -> str:
    match = _FILE_NAME.match(text)
    assert match is not None
    number, file, kind = match[1] or "", match[2], match[3] or ""
    return number + (os.path.relpath(file, project) if os.path.isabs(file) else file) + kind


def export_tomograms(
    session: Session, output: str | Path, *, only: str | None = None, project: str | Path | None = None
) -> AlignmentExport:
    """Write RELION 5's table of tomograms, and in ``tilt_series/`` beside it one STAR file a series.

    Parameters
    ----------
    session : Session
    output : path-like
        The table, ``tomograms.star``.
    only : str, optional
        Series by a shell pattern on their names.
    project : path-like, optional
        RELION's project: names are relative to it instead of absolute.

    Raises
    ------
    RequestError
        An output outside the project.
    """
    path, base = Path(output).absolute(), None if project is None else Path(project).absolute()
    _within(path, base)
    result = AlignmentExport()
    ready: dict[str, _Aligned] = {}
    for series in session.series.values():
        if only is not None and not fnmatchcase(series.name, only):
            continue
        found = _aligned(session, series)
        if found is not None and found.has_ctf:
            ready[series.name] = found
        else:
            result.problems.append(f"{series.name}: {series.error or 'its CTF is not known yet'}")
    with TemporaryDirectory() as folder:
        table = Path(folder) / "tomograms.star"
        if not write_tomograms_star(table, (i.record for i in ready.values()), session.root, base):
            return result
        whole = read_star(table)["global"]
    rows = []
    for i, name in enumerate(whole.strings(NAME)):
        general = {k: column[i] for k, column in whole.columns.items() if k not in (NAME, FILE)}
        rows.append(_relion_series(ready[name], base, general))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tilt_series(path, rows, root=base)
    result.written.update(dict.fromkeys(ready, path))
    return result

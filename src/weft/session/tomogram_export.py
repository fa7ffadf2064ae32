"""``weft export tomograms``: RELION 5's table of tomograms, with a STAR file for each series."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import RequestError
from weft.formats import relion_tomo
from weft.formats.relion_tomo import FILE, NAME, RelionTiltSeries, write_tilt_series
from weft.formats.star import read_star
from weft.session.plan import StepState, step_states
from weft.session.series_tables import write_tomograms_star
from weft.session.steps.stack import used_tilts

if TYPE_CHECKING:
    from weft.physics.geometry import TiltGeometry
    from weft.session.records import Record
    from weft.session.session import Session
    from weft.session.tilt_item import TiltSeries

__all__ = [
    "AlignedSeries",
    "SeriesExport",
    "aligned_series",
    "check_inside",
    "export_tomograms",
    "relion_series",
]

_GEOMETRY = re.compile(r"rlnTomo(?:[XYZ](?:Tilt|Rot|ShiftAngst)|Proj[XYZW])")
#: Columns that hold files, and what RELION adds to a file's name before or after it.
_FILES = re.compile(r"rln(?:MicrographName|MicrographNameEven|MicrographNameOdd|MicrographMovieName|"
                    r"MicrographMetadata|CtfImage)")  # fmt: skip
_FILE_NAME = re.compile(r"(\d+@)?(.*?)(:mrc)?\Z")


@dataclass(frozen=True)
class SeriesExport:
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
class AlignedSeries:
    """One series, ready to be written.

    Attributes
    ----------
    session : Session
    series : TiltSeries
    record : Record
    geometry : TiltGeometry
        With defocus and hand where `has_ctf`.
    tilts : list of dict
        What the stack step knows of each, in the stack's order.
    has_ctf : bool
        Whether the CTF of this alignment is known.
    """

    session: Session
    series: TiltSeries
    record: Record
    geometry: TiltGeometry
    tilts: list[dict[str, Any]]
    has_ctf: bool

    @property
    def name(self) -> str:
        """Of the item."""
        return self.series.name

    @property
    def pixel_size(self) -> float:
        """Å, of the stack."""
        return self.series.alignment.pixel_size

    @property
    def doses(self) -> NDArray[np.float64]:
        """(tilts,): e/Å², before each exposure."""
        return np.array([float(tilt["dose"]) - float(tilt["exposure"]) for tilt in self.tilts])


def check_inside(output: Path, project: Path | None) -> None:
    """Complain if RELION, started in its project, could not find a file that is to be written.

    Raises
    ------
    RequestError
    """
    if project is not None and not output.resolve().is_relative_to(project.resolve()):
        raise RequestError(f"{output} is outside the project {project}, so that RELION could not find it.")


def aligned_series(session: Session, only: str | None, result: SeriesExport) -> list[AlignedSeries]:
    """The series whose alignment is current; why others are not among them goes into `result`."""
    out = []
    for series in session.series.values():
        if only is not None and not fnmatchcase(series.name, only):
            continue
        record = series.record
        states = {} if record is None else step_states(record, session.settings, session.root)
        state = states.get("align", StepState("new"))
        if record is None or state.state != "done":
            why = {"new": "it is not aligned yet", "stale": f"its alignment is not current ({state.reason})"}
            reason = why.get(state.state) or state.reason
            result.problems.append(f"{series.name}: {reason}; `weft tilts align` makes it")
            continue
        has_ctf = states["tilt_ctf"].state == "done"
        geometry = series.geometry if has_ctf else series.alignment.geometry
        out.append(AlignedSeries(session, series, record, geometry, used_tilts(record), has_ctf))
    return out


def relion_series(
    item: AlignedSeries, project: Path | None, general: dict[str, Any] | None = None
) -> RelionTiltSeries:
    """A series with all that is known about its tilts.

    Parameters
    ----------
    item : AlignedSeries
    project : Path or None
        Names are relative to it, or absolute.
    general : dict, optional
        Of its row in the table of all; by default what an alignment needs.
    """
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
            "rlnMicrographPreExposure": item.doses,
        }
        movies = [item.series.table.tilts[tilt["index"]].movie for tilt in item.tilts]
        if all(movies):
            columns["rlnMicrographMovieName"] = movies
    if project is not None:
        for label in filter(_FILES.fullmatch, list(columns)):
            columns[label] = [_relative(str(text), project) for text in columns[label]]
    series = relion_tomo.from_geometry(
        item.geometry, item.name, pixel_size=item.pixel_size, general=general or _general(item), tilts=columns
    )
    if not item.has_ctf:
        for label in ("rlnDefocusU", "rlnDefocusV"):
            del series.tilts.columns[label]
    return series


def _general(item: AlignedSeries) -> dict[str, Any]:
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
) -> SeriesExport:
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
    check_inside(path, base)
    result = SeriesExport()
    ready: dict[str, AlignedSeries] = {}
    for item in aligned_series(session, only, result):
        if item.has_ctf:
            ready[item.name] = item
        else:
            result.problems.append(f"{item.name}: its CTF is not known yet; `weft tilts ctf` fits it")
    with TemporaryDirectory() as folder:
        table = Path(folder) / "tomograms.star"
        if not write_tomograms_star(table, (i.record for i in ready.values()), session.root, base):
            return result
        whole = read_star(table)["global"]
    rows = []
    for i, name in enumerate(whole.strings(NAME)):
        general = {k: column[i] for k, column in whole.columns.items() if k not in (NAME, FILE)}
        rows.append(relion_series(ready[name], base, general))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tilt_series(path, rows, root=base)
    result.written.update(dict.fromkeys(ready, path))
    return result

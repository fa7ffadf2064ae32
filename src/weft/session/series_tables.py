"""Tilt series in the files of other programs: RELION 5's STAR files, Warp's XML and .tomostar."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.formats.relion_tomo import from_geometry as relion_from_geometry
from weft.formats.star import Table, write_star
from weft.formats.tomostar import Tomostar, write_tomostar
from weft.formats.warp_geometry import from_geometry as warp_from_geometry
from weft.formats.warp_xml import write_warp_xml
from weft.session.discovery import natural_key
from weft.session.records import Record, RecordStore

if TYPE_CHECKING:
    from weft.defocus.tilt_series import TiltCTF
    from weft.physics.geometry import TiltGeometry
    from weft.session.step import Job

__all__ = ["write_series_files", "write_tomograms_star"]


def write_series_files(
    job: Job, tilts: list[dict[str, Any]], geometry: TiltGeometry, ctf: TiltCTF, pixel_size: float
) -> dict[str, str]:
    """Write one series for RELION 5 and for Warp; the outputs by name.

    Parameters
    ----------
    tilts : list of dict
        Those of the stack, in its order.
    geometry : TiltGeometry
        With defocus and hand.
    """
    name, folder = job.item, f"tiltstack/{job.item}"
    outputs = {"star": f"{folder}/{name}.star", "xml": f"{folder}/{name}.xml"}
    stack = str(job.output("stack", "stack"))
    half = 0.5 * ctf.delta
    defocus = geometry.defocus.numpy()
    before = np.array([tilt["dose"] - tilt["exposure"] for tilt in tilts])
    columns: dict[str, Any] = {
        "rlnMicrographName": [f"{i + 1:06d}@{stack}" for i in range(len(tilts))],
        "rlnTomoNominalStageTiltAngle": np.array([tilt["angle"] for tilt in tilts]),
        "rlnMicrographPreExposure": before,
        "rlnDefocusU": defocus + half,
        "rlnDefocusV": defocus - half,
        "rlnDefocusAngle": ctf.angle,
        "rlnPhaseShift": ctf.phase,
        "rlnCtfScalefactor": geometry.matrices[:, 2, 2].abs().numpy(),
    }
    movies = _movies(job, tilts)
    if movies is not None:
        columns |= movies
    series = relion_from_geometry(geometry, name, pixel_size=pixel_size, tilts=columns)
    write_star(job.place(outputs["star"]), {name: Table(dict(series.tilts.columns))})
    optics = job.settings.input.optics()
    physics = {
        "PixelSize": repr(pixel_size),
        "Voltage": repr(optics.voltage),
        "Cs": repr(optics.cs),
        "Amplitude": repr(optics.amplitude),
    }
    names = [tilt["item"] or f"{name}_{i:03d}" for i, tilt in enumerate(tilts)]
    averages = [f"{item}.mrc" for item in names]
    warp = warp_from_geometry(geometry, averages, before, physics)
    write_warp_xml(job.place(outputs["xml"]), warp)
    outputs["tomostar"] = f"{folder}/{name}.tomostar"
    axis = geometry.axis.expand(len(geometry)).numpy()
    write_tomostar(
        job.place(outputs["tomostar"]), Tomostar(averages, geometry.angles.numpy(), before, axis.copy())
    )
    return outputs


def _movies(job: Job, tilts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Columns about the movies that the tilts come from; None for series that came as stacks."""
    store = RecordStore(job.root)
    found = [store.read(tilt["item"]) if tilt["item"] else None for tilt in tilts]
    records = [record for record in found if record is not None and "motion" in record.steps]
    if len(records) < len(tilts):
        return None
    metrics = [record.metrics for record in records]
    return {
        "rlnMicrographName": [
            str(job.root / record.steps["motion"].outputs["average"]) for record in records
        ],
        "rlnMicrographMovieName": [record.input.path for record in records],
        "rlnMicrographMetadata": [
            str(job.root / record.steps["motion"].outputs["motion_star"]) for record in records
        ],
        "rlnTomoTiltMovieFrameCount": np.array([int(m["stored_frames"]) for m in metrics]),
        "rlnAccumMotionTotal": np.array([float(m["motion_total"]) for m in metrics]),
        "rlnAccumMotionEarly": np.array([float(m["motion_early"]) for m in metrics]),
        "rlnAccumMotionLate": np.array([float(m["motion_late"]) for m in metrics]),
    }


def write_tomograms_star(
    path: Path, records: Iterable[Record], root: Path, project: Path | None = None
) -> int:
    """Write RELION 5's table of tomograms; a series is in it when its CTF is known.

    Parameters
    ----------
    records : iterable of Record
        With or without what is long in them.
    project : Path, optional
        Folder in which RELION is started: names become relative to it instead of absolute.

    Returns
    -------
    int
        Rows. No file is written, and one that is there is deleted, when there are none.
    """

    def name_of(relative: str) -> str:
        file = root.absolute() / relative
        return str(file) if project is None else os.path.relpath(file, project.absolute())

    rows = []
    for record in sorted(records, key=lambda r: natural_key(r.item)):
        ctf = record.steps.get("tilt_ctf")
        if record.kind == "series" and ctf is not None and ctf.status == "done":
            rows.append(_row(record, name_of))
    if not rows:
        path.unlink(missing_ok=True)
        return 0
    # RELION wants every column in every row: tomograms that are not there yet leave theirs out
    common = [label for label in rows[0] if all(label in row for row in rows)]
    columns: dict[str, Any] = {label: [row[label] for row in rows] for label in common}
    write_star(path, {"global": Table(columns)})
    return len(rows)


def _row(record: Record, name_of: Any) -> dict[str, Any]:
    metrics: Mapping[str, Any] = record.metrics
    outputs = record.outputs
    used = record.steps["tilt_ctf"].settings["input"]
    pixel = float(metrics["series_pixel_size"])
    row: dict[str, Any] = {
        "rlnTomoName": record.item,
        "rlnTomoTiltSeriesStarFile": name_of(outputs["star"]),
        "rlnVoltage": float(used["voltage"]),
        "rlnSphericalAberration": float(used["cs"]),
        "rlnAmplitudeContrast": float(used["amplitude"]),
        "rlnMicrographOriginalPixelSize": float(used["pixel_size"]),
        "rlnTomoHand": -float(metrics["hand"]),
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnTomoTiltSeriesPixelSize": pixel,
    }
    if "tomogram" in outputs and record.steps["reconstruct"].status == "done":
        spacing = float(metrics["tomogram_pixel_size"])
        row["rlnTomoTomogramBinning"] = spacing / pixel
        for axis in "xyz":
            row[f"rlnTomoSize{axis.upper()}"] = round(float(metrics[f"volume_{axis}"]) / pixel)
        row["rlnTomoReconstructedTomogram"] = name_of(outputs["tomogram"])
        for number, half in enumerate(("even", "odd"), 1):
            if f"tomogram_{half}" in outputs:
                row[f"rlnTomoReconstructedTomogramHalf{number}"] = name_of(outputs[f"tomogram_{half}"])
        if "tomogram_denoised" in outputs:
            row["rlnTomoReconstructedTomogramDenoised"] = name_of(outputs["tomogram_denoised"])
    return row

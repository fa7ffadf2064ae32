"""micrographs.star: what RELION and cryoSPARC read, made from the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.formats.relion import Micrograph, write_micrographs
from weft.formats.relion_geometry import NAME, OF_OLD_FIELD, OF_OLD_PIXELS
from weft.physics.optics import Optics
from weft.session.discovery import natural_key
from weft.session.records import Record, StepRecord

__all__ = ["is_prepared", "write_micrographs_star"]

#: RELION's column, our metric; defocus U and V are made from mean and difference
_CTF_COLUMNS = {
    "rlnDefocusAngle": "astigmatism_angle",
    "rlnCtfAstigmatism": "astigmatism",
    "rlnPhaseShift": "phase_shift",
    "rlnCtfFigureOfMerit": "ctf_score",
    "rlnCtfMaxResolution": "resolution",
}
_MOTION_COLUMNS = {
    "rlnAccumMotionTotal": "motion_total",
    "rlnAccumMotionEarly": "motion_early",
    "rlnAccumMotionLate": "motion_late",
}


def write_micrographs_star(
    path: Path, records: Iterable[Record], root: Path, project: Path | None = None, *, prepared: bool = False
) -> int:
    """Write the table.

    An item is in it when its average is there. Where the CTF of some is known, those without one wait:
    RELION wants every column in every row.

    Parameters
    ----------
    root : Path
        The session.
    project : Path, optional
        Folder in which RELION is started: names become relative to it instead of absolute.
    prepared : bool
        Of what the preprocess step has written, instead of the averages.

    Returns
    -------
    int
        Rows.
    """

    def name_of(relative: str) -> str:
        file = root.absolute() / relative
        return str(file) if project is None else os.path.relpath(file, project.absolute())

    rows = []
    for record in sorted(records, key=lambda r: natural_key(r.item)):
        motion = record.steps.get("motion")
        # tilts are no micrographs: each series has a table of its own
        if record.kind == "movie" and motion is not None and motion.status == "done":
            row = _row(record, motion, name_of)
            if not prepared:
                rows.append(row)
            elif is_prepared(record):
                rows.append(_prepared(row, record, name_of))
    if any("rlnDefocusU" in row.columns for row in rows):
        rows = [row for row in rows if "rlnDefocusU" in row.columns]
    # what only some have, RELION cannot read: an empty place is no number
    common = set.intersection(*(set(row.columns) for row in rows)) if rows else set()
    kept = [
        replace(row, columns={name: value for name, value in row.columns.items() if name in common})
        for row in rows
    ]
    write_micrographs(path, kept)
    return len(kept)


def is_prepared(record: Record) -> bool:
    """Whether the preprocess step has written something."""
    step = record.steps.get("preprocess")
    return step is not None and step.status == "done"


def _prepared(row: Micrograph, record: Record, name_of: Callable[[str], str]) -> Micrograph:
    """The row for the prepared micrograph: what is said of the pixels and the field of the average goes."""
    metrics = record.metrics
    crop = metrics["preprocessed_crop"]
    factor = (metrics["preprocessed_factor_y"], metrics["preprocessed_factor_x"])
    name = name_of(record.steps["preprocess"].outputs["preprocessed"])
    gone = (OF_OLD_FIELD if crop else ()) + (OF_OLD_PIXELS if crop or factor != (1.0, 1.0) else ())
    kept = {label: value for label, value in row.columns.items() if label not in gone}
    return Micrograph(kept | {NAME: name}, row.optics, float(metrics["preprocessed_pixel_size"]))


def _row(record: Record, motion: StepRecord, name_of: Callable[[str], str]) -> Micrograph:
    metrics = record.metrics
    columns: dict[str, Any] = {
        "rlnMicrographName": name_of(motion.outputs["average"]),
        "rlnMicrographMetadata": name_of(motion.outputs["motion_star"]),
    }
    for half in ("even", "odd"):
        if half in motion.outputs:
            columns[f"rlnMicrographName{half.capitalize()}"] = name_of(motion.outputs[half])
    wanted = dict(_MOTION_COLUMNS)
    ctf = record.steps.get("ctf")
    if ctf is not None and ctf.status == "done":
        wanted |= _CTF_COLUMNS
        for column, sign in (("rlnDefocusU", 0.5), ("rlnDefocusV", -0.5)):
            columns[column] = metrics["defocus"] + sign * metrics["astigmatism"]
    columns |= {column: metrics[key] for column, key in wanted.items() if metrics.get(key) is not None}
    # the physics that was used, which need not be what weft.toml says by now
    used = motion.settings["input"]
    optics = Optics(
        used["pixel_size"], used["voltage"], used["cs"], used["amplitude"], used["dose_per_frame"]
    )
    return Micrograph(columns, optics, float(metrics["pixel_size"]))

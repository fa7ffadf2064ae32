"""What is true about a simulated tilt series, and the mdoc that tells as much of it as a microscope does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from weft.formats.mdoc import Mdoc, parse_mdoc
from weft.simulation.tilt_scheme import Exposure
from weft.simulation.tilt_settings import TiltSimulationSettings
from weft.simulation.tilt_specimen import TiltSpecimen

__all__ = ["movie_name", "tilt_mdoc", "tilt_truth"]

# months are English in every mdoc, whatever the computer's language
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FIRST_EXPOSURE = datetime(2026, 11, 21, 10, 0, 0)
_BETWEEN = timedelta(seconds=60)


def movie_name(series: str, exposure: Exposure) -> str:
    """``TS_01_007_-12.0.tif``: series, order of acquisition, nominal angle."""
    return f"{series}_{exposure.index:03d}_{exposure.nominal:+.1f}.tif"


def tilt_truth(
    name: str,
    settings: TiltSimulationSettings,
    specimen: TiltSpecimen,
    exposures: Sequence[Exposure],
    seed: int,
) -> dict[str, Any]:
    """The truth as plain JSON, with the keys that the project's scoring script of tilt series reads.

    ====================== ===================================================================
    seed, name             of the simulation and of the series
    optics                 pixel (Å), kv, cs (mm), amplitude, phase_shift (degrees)
    shape, frames          [ny, nx]; frames of each tilt
    dose_per_tilt          e/Å²
    axis, level, hand      tilt axis; [level_x, level_y], degrees; 1 or -1
    thickness              of the ice, Å
    astig, astig_angle     U - V, Å; of U, degrees
    tilts                  in order of acquisition: index, file, tilt and nominal (degrees), defocus (Å, of
                           the specimen's centre), shift (x, y, Å), frame_shifts (frames, 2), dose_before,
                           black, missing
    particles_xyz_centered centres, Å from the specimen's centre
    eulers                 rot, tilt, psi whose M takes the *specimen* to the particle: the reference data's
    eulers_to_specimen     the same poses by docs/conventions.md: M takes the particle to the specimen
    classes                of each particle: 0, or 1 where it has the other conformation
    radius                 of a particle, the larger one if there are two, Å
    beads_xyz_centered     Å
    bead_diameter          Å
    membranes              kind, centre, radius, normal
    gain                   name of the gain reference's file; None where there is none
    ====================== ===================================================================
    """
    poses = specimen.eulers
    # M(rot, tilt, psi)^T = M(180 - psi, tilt, 180 - rot)
    inverse = np.column_stack([180.0 - poses[:, 2], poses[:, 1], 180.0 - poses[:, 0]])
    return {
        "seed": seed,
        "name": name,
        "optics": {
            "pixel": settings.pixel_size,
            "kv": settings.voltage,
            "cs": settings.cs,
            "amplitude": settings.amplitude,
            "phase_shift": settings.phase_shift,
        },
        "shape": [settings.height, settings.width],
        "frames": settings.frames,
        "dose_per_tilt": settings.dose_per_tilt,
        "axis": settings.tilt_axis,
        "thickness": settings.thickness,
        "level": [settings.level_x, settings.level_y],
        "hand": settings.hand,
        "astig": settings.astigmatism * 1e4,
        "astig_angle": settings.astigmatism_angle,
        "tilts": [
            {
                "index": e.index,
                "file": movie_name(name, e),
                "tilt": e.angle,
                "nominal": e.nominal,
                "defocus": e.defocus,
                "shift": e.shift.tolist(),
                "frame_shifts": e.frame_shifts.tolist(),
                "dose_before": e.dose_before,
                "black": e.black,
                "missing": e.missing,
            }
            for e in exposures
        ],
        "particles_xyz_centered": specimen.particles.tolist(),
        "eulers": inverse.tolist(),
        "eulers_to_specimen": poses.tolist(),
        "classes": specimen.classes.tolist(),
        "radius": specimen.radius,
        "beads_xyz_centered": specimen.beads.tolist(),
        "bead_diameter": settings.bead_diameter,
        "membranes": [
            {
                "kind": m.kind,
                "centre": m.centre.tolist(),
                "radius": m.radius,
                "normal": m.normal.tolist(),
            }
            for m in specimen.membranes
        ],
        "gain": None,
    }


def tilt_mdoc(
    name: str, settings: TiltSimulationSettings, exposures: Sequence[Exposure], rng: np.random.Generator
) -> Mdoc:
    """The series' mdoc in SerialEM's form, with the faults that were asked for.

    SerialEM's ``RotationAngle`` is the tilt axis + 90 degrees, its ``Defocus`` negative for underfocus.
    `rng` is for the mixed order.
    """
    entries = [e for e in exposures for _ in range(2 if e.index in settings.duplicate_entries else 1)]
    if settings.unsorted:
        entries = [entries[i] for i in rng.permutation(len(entries))]
    pixel, axis = f"{settings.pixel_size:g}", settings.tilt_axis
    lines = [
        f"PixelSpacing = {pixel}",
        f"Voltage = {settings.voltage:g}",
        f"ImageFile = {name}.mrc",
        f"ImageSize = {settings.width} {settings.height}",
        "DataMode = 1",
        "",
        "[T = SerialEM: simulated by weft]",
        "",
        f"[T =     Tilt axis angle = {axis:g}, binning = 1  spot = 8  camera = 0]",
        "",
    ]
    for number, exposure in enumerate(entries):
        lines += [f"[ZValue = {number}]", f"TiltAngle = {exposure.nominal:.4f}", "StagePosition = 0 0"]
        if settings.doses:
            lines += [
                f"ExposureDose = {settings.dose_per_tilt:.4f}",
                f"PriorRecordDose = {exposure.dose_before:.4f}",
            ]
        lines += [
            f"PixelSpacing = {pixel}",
            f"Defocus = {-settings.defocus:g}",
            f"RotationAngle = {(axis + 270.0) % 360.0 - 180.0:g}",
            "ExposureTime = 1",
            "Binning = 1",
            f"SubFramePath = D:\\frames\\{movie_name(name, exposure)}",
            f"NumSubFrames = {settings.frames}",
            f"DateTime = {_date(_FIRST_EXPOSURE + exposure.index * _BETWEEN)}",
            "",
        ]
    return parse_mdoc("\n".join(lines) + "\n", f"{name}.mdoc")


def _date(when: datetime) -> str:
    return f"{when.day:02d}-{_MONTHS[when.month - 1]}-{when.year % 100:02d}  {when:%H:%M:%S}"

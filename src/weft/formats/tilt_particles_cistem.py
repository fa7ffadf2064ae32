"""cisTEM's STAR files, which have names of their own; also as emClarity writes them.

phi, theta, psi are RELION's rot, tilt, psi. cisTEM's shifts are Å and say where the particle is, so that they
are the negative of RELION's origins. Phase shifts are in radians. The dose is _cisTEMTotalExposure, with the
image's own, or else _cisTEMPreExposure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.formats.particle_star import euler_matrices
from weft.formats.star import Table
from weft.formats.tilt_particles_data import TiltParticles
from weft.formats.tilt_particles_images import tomogram_names
from weft.formats.tilt_particles_rows import CISTEM_POSITION, CISTEM_STACK, Rows, grouped, numeric_columns
from weft.formats.tilt_particles_stacks import StackFinder, check_sections, find_stacks

__all__ = ["read_cistem"]

GROUP = "cisTEMParticleGroup"
_ANGLES = ("cisTEMAnglePhi", "cisTEMAngleTheta", "cisTEMAnglePsi")
_SHIFTS = ("cisTEMXShift", "cisTEMYShift")
_CTF = ("cisTEMDefocus1", "cisTEMDefocus2", "cisTEMDefocusAngle")
_VOLTAGE = ("cisTEMMicroscopeVoltagekV", "cisTEMVoltage")
_CS = ("cisTEMMicroscopeCsMM", "cisTEMCs")
_AMPLITUDE, _PIXEL, _PHASE = "cisTEMAmplitudeContrast", "cisTEMPixelSize", "cisTEMPhaseShift"
_BEFORE, _TOTAL, _TILT = "cisTEMPreExposure", "cisTEMTotalExposure", "cisTEMTiltAngle"
_IMAGE, _SUBSET = "cisTEMOriginalImageFilename", "cisTEMAssignedSubset"
#: Endings of the stack that goes with a file that does not name it.
_ENDINGS = (".mrc", ".mrcs", ".st")


def read_cistem(path: Path, blocks: dict[str, Table], block: str, finder: StackFinder) -> TiltParticles:
    """Read cisTEM's table, a row an image; see `weft.formats.tilt_particles_images.read_image_rows`."""
    table = blocks[block]
    rows = Rows(path, "a particle list of cisTEM", table)
    rows.need(CISTEM_POSITION, *_ANGLES, *_SHIFTS, *_CTF, _VOLTAGE, _CS, _AMPLITUDE, _PIXEL, GROUP)
    rows.names = rows.strings(GROUP)
    particle, order, start = grouped(rows.names)
    names, file = _stacks(rows, finder)
    stacks = find_stacks(finder, names)
    section = rows.numbers(CISTEM_POSITION).astype(np.int64) - 1
    check_sections(path, stacks, file, section, np.arange(len(rows)))

    def of(*labels: str, default: float = 0.0) -> NDArray[np.float64]:
        return rows.first(labels, default)[order]

    dose = of(_TOTAL)
    if not dose.any():
        dose = of(_BEFORE)
    first = order[start[:-1]]
    half = rows.first([_SUBSET], 0.0)[first]
    return TiltParticles(
        path=path,
        flavour="cistem",
        particle=particle,
        tomogram=tomogram_names(rows, order, start, ("", _IMAGE)),
        place=np.full((len(particle), 3), np.nan),
        start=start,
        files=stacks.files,
        file=file[order],
        section=section[order],
        rotation=euler_matrices(np.stack([of(label) for label in _ANGLES], axis=1)),
        shift=np.stack([of(label) for label in _SHIFTS], axis=1),
        defocus_u=of(_CTF[0]),
        defocus_v=of(_CTF[1]),
        angle=of(_CTF[2]),
        phase_shift=np.degrees(of(_PHASE)),
        has_ctf=True,
        dose=dose,
        cos_tilt=np.cos(np.radians(of(_TILT))),
        voltage=of(*_VOLTAGE),
        cs=of(*_CS),
        amplitude=of(_AMPLITUDE),
        pixel_size=rows.one(rows.numbers(_PIXEL), "pixel size"),
        box=stacks.box,
        premultiplied=False,
        half=np.where((half == 1) | (half == 2), half - 1, -1).astype(np.int64),
        columns=numeric_columns(table, first),
        blocks=blocks,
        row=order,
    )


def _stacks(rows: Rows, finder: StackFinder) -> tuple[list[str], NDArray[np.int64]]:
    """Names of stacks, and the one of each row."""
    if CISTEM_STACK in rows:
        names = rows.strings(CISTEM_STACK)
        index: dict[str, int] = {}
        file = np.fromiter((index.setdefault(name, len(index)) for name in names), np.int64, len(names))
        return list(index), file
    tried = [rows.path.stem + ending for ending in _ENDINGS]
    found = next((name for name in tried if finder.find(name) is not None), None)
    if found is None:
        raise FormatError(
            rows.path,
            f"it has no column _{CISTEM_STACK}, and the stack of its own name ({', '.join(tried)}) is not "
            f"there; looked in {finder.looked()}",
        )
    return [found], np.zeros(len(rows), np.int64)

"""Tables of particles with a row for every image: Warp 1's and M's particle series, cryoSRPNT, NextPYP,
RELION 3.1 (and Weft's own of these kinds).

Rows of one rlnGroupName (else rlnTomoParticleName, rlnTomoParticleId, rlnGroupNumber) are one particle.
The dose is a quarter of rlnCtfBfactor's modulus: Warp writes −4 Å² per e/Å², other programs +4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.particle_star import ANGLES, CENTRED, MAGNIFICATION, PIXELS, euler_matrices, plain_name
from weft.formats.star import Table
from weft.formats.tilt_particles_data import TiltParticles
from weft.formats.tilt_particles_rows import IMAGE, Rows, grouped, half_sets, numeric_columns
from weft.formats.tilt_particles_stacks import StackFinder, check_sections, find_stacks

__all__ = ["image_places", "read_image_rows", "tomogram_names", "volumes_error"]

TOMOGRAM, MICROGRAPH = "rlnTomoName", "rlnMicrographName"
PARTICLES = ("rlnGroupName", "rlnTomoParticleName", "rlnTomoParticleId", "rlnGroupNumber")
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL = ("rlnImagePixelSize", "rlnPixelSize", "rlnDetectorPixelSize")
DAMPING, SCALE, PHASE = "rlnCtfBfactor", "rlnCtfScalefactor", "rlnPhaseShift"
PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
#: In place of the section where a name has no number.
ALONE = -2
#: rlnCtfBfactor, Å², per e/Å².
DOSE_DAMPING = 4.0
_NAMES = {
    "warp1": "a particle series of Warp 1 or M",
    "cryosrpnt": "a particle series of cryoSRPNT",
    "nextpyp": "a particle list of NextPYP",
    "relion3": "a particle list of RELION 3.1",
}


def read_image_rows(path: Path, blocks: dict[str, Table], block: str, finder: StackFinder) -> TiltParticles:
    """Read a table with a row for every image.

    Parameters
    ----------
    path : Path
    blocks : dict of str to Table
        Of the file.
    block : str
        The table of images among them.
    finder : StackFinder

    Raises
    ------
    FormatError, CorruptError, TruncatedError
    """
    table, optics = blocks[block], blocks.get("optics")
    flavour = _flavour(table, optics)
    rows = Rows(path, _NAMES[flavour], table, optics)
    rows.need(*ANGLES, PARTICLES, PIXEL, *((*CTF, *OPTICS) if _has_ctf(rows) else ()))
    keys = _particle_keys(rows)
    rows.names = keys
    particle, order, start = grouped(keys)
    images = rows.strings(IMAGE)
    files, file, section = image_places(images)
    stacks = find_stacks(finder, files)
    section[(section == ALONE) & (stacks.sections[file] == 1)] = 0  # a file of one image
    if (section < 0).any():
        row = int((section < 0).argmax())
        raise CorruptError(
            path,
            f"{rows.where(row)} names the image {images[row]}, which is not number@file with a number from 1 "
            f"to {stacks.sections[file[row]]}",
        )
    check_sections(path, stacks, file, section, np.arange(len(rows)))
    pixel = _pixel_size(rows)
    shift = np.zeros((len(rows), 2))
    for axis, name in enumerate("XY"):
        if f"rlnOrigin{name}Angst" in rows:
            shift[:, axis] = -rows.numbers(f"rlnOrigin{name}Angst")
        elif f"rlnOrigin{name}" in rows:
            shift[:, axis] = -pixel * rows.numbers(f"rlnOrigin{name}")
    has_ctf = _has_ctf(rows)
    euler = np.stack([rows.numbers(label) for label in ANGLES], axis=1)
    first = order[start[:-1]]
    place, origin = _places(rows, first, pixel)

    def of(label: str, default: float = 0.0) -> NDArray[np.float64]:
        return rows.first([label], default)[order]

    nil = np.zeros(len(rows))
    u, v, angle = (of(label) if has_ctf else nil for label in CTF)
    voltage, cs, amplitude = (of(label) if has_ctf else nil for label in OPTICS)
    return TiltParticles(
        path=path,
        flavour=flavour,
        particle=particle,
        tomogram=tomogram_names(rows, order, start, (TOMOGRAM, MICROGRAPH)),
        place=place,
        start=start,
        files=stacks.files,
        file=file[order],
        section=section[order],
        rotation=euler_matrices(euler[order]),
        shift=shift[order],
        defocus_u=u,
        defocus_v=v,
        angle=angle,
        phase_shift=of(PHASE) if has_ctf else nil,
        has_ctf=has_ctf,
        dose=np.abs(of(DAMPING)) / DOSE_DAMPING,
        cos_tilt=of(SCALE, 1.0),
        voltage=voltage,
        cs=cs,
        amplitude=amplitude,
        pixel_size=pixel,
        box=stacks.box,
        premultiplied=rows.flag(PREMULTIPLIED),
        half=half_sets(table, first),
        columns=numeric_columns(table, first),
        blocks=blocks,
        row=order,
        place_origin=origin,
    )


def _flavour(table: Table, optics: Table | None) -> str:
    if optics is not None:
        return "nextpyp" if PARTICLES[0] not in table and PARTICLES[3] in table else "relion3"
    return "warp1" if "rlnMagnification" in table else "cryosrpnt"


def _has_ctf(rows: Rows) -> bool:
    """Whether any column says anything of the CTF; the rest of them are needed then."""
    return any(label in rows for label in (*CTF, PHASE))


def _particle_keys(rows: Rows) -> list[str]:
    label = next(label for label in PARTICLES if label in rows)
    keys = rows.strings(label)
    if label in PARTICLES[2:] and TOMOGRAM in rows.table:
        # numbers that may start anew in every tomogram
        keys = [f"{name}/{key}" for name, key in zip(rows.strings(TOMOGRAM), keys, strict=True)]
    return keys


def image_places(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """``number@file`` of many images.

    Returns
    -------
    files : list of str
        Distinct names.
    file : (m) int64
        Index into them.
    section : (m) int64
        From 0; `ALONE` where the name has no number, and another negative value where it is none.
    """
    split = [name.rpartition("@") for name in names]
    index: dict[str, int] = {}
    file = np.fromiter((index.setdefault(part[2], len(index)) for part in split), np.int64, len(split))
    section = np.fromiter((_section(part[0]) for part in split), np.int64, len(split))
    return list(index), file, section


def _section(text: str) -> int:
    if not text:
        return ALONE
    return int(text) - 1 if text.isdecimal() else -1


def _pixel_size(rows: Rows) -> float:
    label = next(label for label in PIXEL if label in rows)
    size = rows.numbers(label)
    if label == PIXEL[2] and "rlnMagnification" in rows:
        magnification = rows.numbers("rlnMagnification")
        rows.one(magnification, "magnification")
        size = size * MAGNIFICATION / magnification
    return rows.one(size, "pixel size")


def _places(rows: Rows, first: NDArray[np.int64], pixel: float) -> tuple[NDArray[np.float64], str]:
    """(p, 3) Å, and what it counts from; x and y alone are of the tilt image and say nothing."""
    if all(label in rows for label in CENTRED):
        return np.stack([rows.numbers(label)[first] for label in CENTRED], axis=1), "centre"
    if all(label in rows for label in PIXELS):
        return np.stack([rows.numbers(label)[first] * pixel for label in PIXELS], axis=1), "corner"
    return np.full((len(first), 3), np.nan), "corner"


def tomogram_names(
    rows: Rows, order: NDArray[np.int64], start: NDArray[np.int64], labels: tuple[str, str]
) -> list[str]:
    """(p): which tomogram, or else series of micrographs, each particle is of.

    Where its images are of different micrographs, it is what the names of these begin with.
    """
    if labels[0] in rows.table:
        names = rows.strings(labels[0])
        return [names[row].removesuffix(".tomostar") for row in order[start[:-1]].tolist()]
    if labels[1] not in rows.table:
        return [""] * (len(start) - 1)
    distinct, number = np.unique(np.array(rows.strings(labels[1])), return_inverse=True)
    number = number[order]
    # names are sorted: what the first and the last have in common is common to all between
    low = np.minimum.reduceat(number, start[:-1]).tolist()
    high = np.maximum.reduceat(number, start[:-1]).tolist()
    known: dict[tuple[int, int], str] = {}
    for pair in set(zip(low, high)):
        a, b = (plain_name(str(distinct[i])) for i in pair)
        known[pair] = a if a == b else _common(a, b)
    return [known[pair] for pair in zip(low, high)]


def _common(a: str, b: str) -> str:
    different = next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))
    start = a[:different]
    # numbers of tilts may begin alike: back to where they start
    at = max(start.rfind(mark) for mark in "_-.")
    return start[:at] if at > 0 else start


def volumes_error(path: Path) -> FormatError:
    """For tables of sub-tomograms."""
    return FormatError(
        path,
        "its particles are sub-tomograms, not images of tilts; export them as images (Weft: --kind 2d, "
        "WarpTools: --2d, RELION 5: extract as 2D stacks)",
    )

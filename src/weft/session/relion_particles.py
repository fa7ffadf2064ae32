"""RELION 5's particles as stacks of tilt images, read as image series.

They must be written with tilt series in the frame that ``formats.relion_tomo`` calls ``invert_angles``, as
RELION itself and `weft export subtomograms` do; then its coordinates and angles are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft.errors import CorruptError, FormatError
from weft.formats import mrc
from weft.formats.particle_star import CENTRED, finite_column
from weft.formats.relion_tomo import RelionTiltSeries, read_tilt_series, to_geometry
from weft.formats.star import Table, read_star
from weft.formats.tomo_particles import TomoParticles, read_tomo_particles
from weft.particles.image_series import ImageSeries
from weft.physics.geometry import TiltGeometry, euler_matrix
from weft.physics.optics import Optics
from weft.session.particle_images import ParticleImages, filled, room
from weft.tilts.gridding import TiltContrast

__all__ = ["read_particle_images"]

_FLAGS = re.compile(r"[\[\]\s]")


def read_particle_images(path: str | Path, tomograms: str | Path | None = None) -> ParticleImages:
    """Read RELION 5's particles as two-dimensional stacks.

    Parameters
    ----------
    path : path-like
        An optimisation set, or ``particles.star``.
    tomograms : path-like, optional
        ``tomograms.star``; by default what the optimisation set says, or the one beside `path`.

    Raises
    ------
    FormatError
        A file or a column is missing, or the particles are sub-tomograms.
    CorruptError
        Something does not fit: an image of another size, a stack of another length.
    """
    path = Path(path)
    blocks = read_star(path)
    listed = next((b for b in blocks.values() if "rlnTomoParticlesFile" in b), None)
    star = path
    if listed is not None:
        star = _find(path, listed.value("rlnTomoParticlesFile"))
        if tomograms is None:
            if "rlnTomoTomogramsFile" not in listed:
                raise FormatError(path, "it names no rlnTomoTomogramsFile")
            tomograms = _find(path, listed.value("rlnTomoTomogramsFile"))
        blocks = read_star(star)
    if tomograms is None:
        tomograms = star.parent / "tomograms.star"
    if not Path(tomograms).is_file():
        raise FormatError(star, f"the table of tomograms {tomograms} is not there; name it")
    table, optics = blocks.get("particles"), blocks.get("optics")
    if table is None or optics is None:
        raise FormatError(star, "it has no tables data_optics and data_particles")
    return _read_stacks(star, table, optics, Path(tomograms))


def _find(path: Path, name: str) -> Path:
    for folder in (path.parent, *path.resolve().parents):
        if (folder / name).is_file():
            return folder / name
    raise FormatError(path, f"the file {name} that it names is in none of the folders above it")


def _read_stacks(star: Path, table: Table, optics: Table, tomograms: Path) -> ParticleImages:
    for label in ("rlnImageName", "rlnTomoVisibleFrames", "rlnTomoName"):
        if label not in table:
            raise FormatError(star, f"its particles are no stacks of tilts: it has no column _{label}")
    particles = read_tomo_particles(star)
    series = read_tilt_series(tomograms, names=list(dict.fromkeys(particles.tomogram)))
    physics = _Physics.of(star, table, optics)
    tilts = max(len(one) for one in series.values())
    images = room(len(particles), tilts, physics.size)
    cut_at = np.stack([finite_column(star, label, table[label]) for label in CENTRED], 1)
    parts = []
    geometries = {name: _geometry(one) for name, one in series.items()}
    contrasts = {name: _contrast_of(one, physics) for name, one in series.items()}
    order = {name: number for number, name in enumerate(series)}
    files, flags = table.strings("rlnImageName"), table.strings("rlnTomoVisibleFrames")
    if "rlnRandomSubset" in table:
        half = torch.from_numpy(table.ints("rlnRandomSubset") - 1)
        if not bool(((half == 0) | (half == 1)).all()):
            raise CorruptError(star, "its rlnRandomSubset has values other than 1 and 2")
    else:
        half = torch.arange(len(particles)) % 2
    for i, name in enumerate(particles.tomogram):
        geometry, contrast = geometries[name], contrasts[name]
        seen = _visible(star, flags[i], i, len(geometry))
        images[i, seen] = _stack(star, files[i], int(seen.sum()), len(geometry), physics.size, seen)
        parts.append(
            _one(geometry, contrast, physics, particles, i, cut_at[i], seen, order[name], half[i : i + 1])
        )
    joined = filled(parts, images)
    # places are those that the images were cut at: shifts hold the rest
    return ParticleImages(joined, replace(particles, xyz=cut_at))


@dataclass(frozen=True)
class _Physics:
    """What the optics table says: the same for all particles."""

    optics: Optics
    size: int
    premultiplied: bool

    @classmethod
    def of(cls, star: Path, table: Table, optics: Table) -> _Physics:
        values: dict[str, float] = {}
        labels = ("rlnImagePixelSize", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
        for label in (*labels, "rlnImageSize"):
            if label not in optics:
                raise FormatError(star, f"its table data_optics has no column _{label}")
            column = finite_column(star, label, optics[label])
            if np.ptp(column) > 1e-6 * abs(column[0]):
                raise FormatError(star, f"its optics groups differ in {label}, which is not supported")
            values[label] = float(column[0])
        if "rlnImageDimensionality" in optics and set(optics.strings("rlnImageDimensionality")) != {"2"}:
            raise FormatError(star, "its particles are sub-tomograms; export them as stacks of tilts (2d)")
        label = "rlnCtfDataAreCtfPremultiplied"
        given = set(optics.strings(label)) if label in optics else {"0"}
        if len(given) > 1:
            raise FormatError(star, f"its optics groups differ in {label}, which is not supported")
        pixel, voltage, cs, amplitude = (values[name] for name in labels)
        return cls(Optics(pixel, voltage, cs, amplitude), int(values["rlnImageSize"]), given == {"1"})


def _geometry(series: RelionTiltSeries) -> TiltGeometry:
    # images are cut already, so that their size does not matter
    return to_geometry(series, image_size=(2, 2), volume_size=(0.0, 0.0, 0.0), invert_angles=True)


def _contrast_of(series: RelionTiltSeries, physics: _Physics) -> TiltContrast:
    def column(label: str, default: float) -> Any:
        if label not in series.tilts:
            return default
        return finite_column(series.path, label, series.tilts[label])

    if "rlnMicrographPreExposure" not in series.tilts:
        raise FormatError(series.path, "it has no column _rlnMicrographPreExposure")
    u, v = column("rlnDefocusU", 0.0), column("rlnDefocusV", 0.0)
    return TiltContrast.of(
        physics.optics,
        len(series),
        dose=column("rlnMicrographPreExposure", 0.0),
        astigmatism=u - v,
        angle=column("rlnDefocusAngle", 0.0),
        phase_shift=column("rlnPhaseShift", 0.0),
        weight=column("rlnCtfScalefactor", 1.0),
    )


def _visible(star: Path, text: str, row: int, tilts: int) -> torch.Tensor:
    found = [value for value in _FLAGS.sub("", text).split(",") if value]
    if len(found) != tilts or not set(found) <= {"0", "1"}:
        raise CorruptError(
            star,
            f"row {row + 1} of _rlnTomoVisibleFrames has {len(found)} flags; its series has {tilts} tilts",
        )
    return torch.tensor([value == "1" for value in found])


def _stack(star: Path, name: str, visible: int, tilts: int, size: int, seen: torch.Tensor) -> torch.Tensor:
    """(visible, size, size) float32 of one particle's file."""
    file = _find(star, name.split("@")[-1])
    data, info = mrc.read(file)
    data = np.ascontiguousarray(data.reshape(info.shape), np.float32)
    if data.shape[1:] != (size, size):
        raise CorruptError(file, f"its images are {data.shape[2]}×{data.shape[1]} px, not {size}×{size}")
    if len(data) == visible:
        return torch.from_numpy(data)
    if len(data) == tilts:
        return torch.from_numpy(data)[seen]
    raise CorruptError(file, f"it has {len(data)} images; {visible} of {tilts} tilts are visible")


def _one(
    geometry: TiltGeometry,
    contrast: TiltContrast,
    physics: _Physics,
    particles: TomoParticles,
    i: int,
    cut_at: np.ndarray[Any, Any],
    seen: torch.Tensor,
    group: int,
    half: torch.Tensor,
) -> ImageSeries:
    """All but the images of one particle."""
    xyz, euler = (torch.from_numpy(np.array(v[i : i + 1])) for v in (particles.xyz, particles.euler))
    matrices = geometry.matrices
    moved = matrices[:, :2] @ (xyz[0] - torch.from_numpy(cut_at))
    optics = physics.optics

    def row(value: torch.Tensor) -> torch.Tensor:
        return value.float()[None]

    return ImageSeries(
        images=torch.zeros(1, 0, physics.size, physics.size),
        shift=row(moved),
        rotation=row(matrices @ euler_matrix(*euler.T)),
        defocus=row(geometry.project(xyz)[:, 0, 2]),
        astigmatism=row(contrast.astigmatism),
        angle=row(contrast.angle),
        phase_shift=row(contrast.phase_shift),
        dose=row(contrast.dose),
        weight=row(contrast.weight * seen),
        group=torch.tensor([group]),
        half=half.long(),
        pixel_size=optics.pixel_size,
        voltage=optics.voltage,
        cs=optics.cs,
        amplitude=optics.amplitude,
        premultiplied=physics.premultiplied,
    )

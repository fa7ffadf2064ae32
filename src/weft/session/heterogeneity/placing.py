"""Where the particles of any flavour lie in their tomograms, and how they are turned there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import RequestError, SessionError, WeftError
from weft.formats.particle_star import ANGLES, NAME, PIXELS, euler_matrices
from weft.formats.relion_tomo import read_tilt_series
from weft.formats.star import Table
from weft.formats.tilt_particles import TiltParticles
from weft.formats.tilt_particles_rows import Rows, particle_block
from weft.formats.tilt_particles_series import read_series_tilts
from weft.heterogeneity.specimen_poses import place_of, pose_of, untilted
from weft.physics.geometry import TiltGeometry, euler_matrix

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["Placed", "SeriesGeometry", "geometries", "place_particles"]

Array = NDArray[np.float64]

_OUTER = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
#: Degrees, and pixels of the tilt images: more than this is no rounding.
_TURNED, _MOVED = 1.0, 1.0


@dataclass(frozen=True)
class SeriesGeometry:
    """A series of a session: its geometry, and Å of its images' pixels."""

    geometry: TiltGeometry
    pixel_size: float


@dataclass
class Placed:
    """Particles in their tomograms.

    Attributes
    ----------
    place : (p, 3) float64
        Å from the centre of the tomogram's first voxel; from its centre where `centred`.
    matrix : (p, 3, 3) float64
        From map to tomogram coordinates.
    centred : (p) bool
        The tomogram's size is not known, and the place counts from its centre.
    mirrored : (p) bool
        The tomogram shows the mirror image (in z of the map) of what the images are taken to be of: tables of
        WarpTools whose hand was not flipped.
    size : dict of str to (3,) float64
        Of tomograms: x, y, z, Å, where that is known.
    notes : list of str
        What is not as it should be.
    """

    place: Array
    matrix: Array
    centred: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    size: dict[str, Array]
    notes: list[str] = field(default_factory=list)


def geometries(session: Session, names: list[str], notes: list[str]) -> dict[str, SeriesGeometry]:
    """Of the tilt series that the session has; why others are not among them goes into `notes`."""
    out = {}
    for name in dict.fromkeys(names):
        series = session.series.get(name)
        if series is None:
            notes.append(f"{session.root} has no tilt series {name}")
            continue
        try:
            out[name] = SeriesGeometry(series.geometry, series.alignment.pixel_size)
        except SessionError as error:
            notes.append(str(error))
    return out


def place_particles(
    particles: TiltParticles,
    series: Mapping[str, SeriesGeometry] | None = None,
    tilt_axis: float | None = None,
) -> Placed:
    """Places and orientations in tomograms.

    Sets of particles (WarpTools, RELION 4 and 5) say both. Rows of images say how the map is turned in each
    image: with the series' geometry that gives the orientation and, by where the particle lies in the images,
    the place; without it, the orientation is that of the untilted image, turned back by the tilt axis.

    Parameters
    ----------
    particles : TiltParticles
    series : mapping of str to SeriesGeometry
        Of tomograms.
    tilt_axis : float, optional
        Degrees, of series without a geometry.

    Raises
    ------
    RequestError
        The file does not say where its particles lie.
    """
    series = series or {}
    placed = Placed(
        np.array(particles.place, np.float64),
        np.tile(np.eye(3), (len(particles), 1, 1)),
        np.full(len(particles), particles.place_origin == "centre"),
        np.zeros(len(particles), np.bool_),
        _sizes(particles, series),
    )
    table = particles.blocks[particle_block(particles.path, particles.blocks)]
    if particles.tomograms is not None:
        placed.matrix = _set_matrices(table, particles.row[particles.start[:-1]])
        placed.mirrored = _mirrored(particles, table, placed.matrix)
    else:
        _by_images(particles, table, series, tilt_axis, placed)
    for i, name in enumerate(particles.tomogram):
        if placed.centred[i] and name in placed.size:
            placed.place[i] += 0.5 * placed.size[name]
            placed.centred[i] = False
    lost = ~np.isfinite(placed.place).all(axis=1)
    if lost.any():
        raise RequestError(
            f"{particles.path} does not say where particle {particles.particle[int(lost.argmax())]} and "
            f"{int(lost.sum()) - 1} others lie in their tomograms; give the set of particles that belongs to "
            "these images, or the --session in which they were cut."
        )
    return placed


def _sizes(particles: TiltParticles, series: Mapping[str, SeriesGeometry]) -> dict[str, Array]:
    sizes: dict[str, Array] = {}
    if particles.tomograms is not None:
        try:
            for name, one in read_tilt_series(particles.tomograms).items():
                if one.volume_size is not None:
                    sizes[name.removesuffix(".tomostar")] = np.asarray(one.volume_size, np.float64)
        except WeftError:
            sizes = {}  # what cannot be read of other tomograms does not matter here
    known = set(particles.tomogram)
    sizes |= {name: np.asarray(one.geometry.volume_size.numpy()) for name, one in series.items()}
    return {name: size for name, size in sizes.items() if name in known}


def _set_matrices(table: Table, rows: NDArray[np.int64]) -> Array:
    def euler(labels: tuple[str, ...]) -> Array:
        return euler_matrices(np.stack([table.floats(label)[rows] for label in labels], axis=1))

    matrix = euler(ANGLES)
    return euler(_OUTER) @ matrix if all(label in table for label in _OUTER) else matrix


def _mirrored(particles: TiltParticles, table: Table, matrix: Array) -> NDArray[np.bool_]:
    """Whether images are turned by T · M · S, with S the mirror in z, rather than by T · M."""
    assert particles.tomograms is not None
    rows = Rows(particles.path, "a set of particles", table, particles.blocks.get("optics"))
    distinct = list(dict.fromkeys(table.strings(NAME)))
    tilts = read_series_tilts(read_tilt_series(particles.tomograms, names=distinct), rows, particles.flavour)
    turns = {name.removesuffix(".tomostar"): one.matrices for name, one in tilts.items()}
    out = np.zeros(len(particles), np.bool_)
    mirror = np.diag([1.0, 1.0, -1.0])
    for i, name in enumerate(particles.tomogram):
        # the third row is not seen in an image
        seen = particles.rotation[int(particles.start[i]), :2]
        away = [
            np.abs(turns[name][:, :2] @ one - seen).max((1, 2)).min()
            for one in (matrix[i], matrix[i] @ mirror)
        ]
        out[i] = away[1] < away[0]
    return out


def _by_images(
    particles: TiltParticles,
    table: Table,
    series: Mapping[str, SeriesGeometry],
    tilt_axis: float | None,
    placed: Placed,
) -> None:
    xy = None
    if all(label in table for label in PIXELS[:2]):
        xy = np.stack([table.floats(label) for label in PIXELS[:2]], axis=1)
    axis = torch.tensor(0.0 if tilt_axis is None else tilt_axis, dtype=torch.float64)
    flat = euler_matrix(torch.zeros_like(axis), torch.zeros_like(axis), -axis).numpy()
    turned: dict[str, list[float]] = {}
    moved: dict[str, list[float]] = {}
    alone = False
    for i, name in enumerate(particles.tomogram):
        images = slice(int(particles.start[i]), int(particles.start[i + 1]))
        one = series.get(name)
        if one is None:
            alone = True
            which = untilted(particles.cos_tilt[images], particles.dose[images])
            placed.matrix[i] = flat.T @ particles.rotation[images][which]
            continue
        pose = pose_of(particles.rotation[images], particles.cos_tilt[images], one.geometry)
        placed.matrix[i] = pose.matrix
        turned.setdefault(name, []).append(pose.mismatch)
        if np.isfinite(placed.place[i]).all() or xy is None or images.stop - images.start < 2:
            continue
        # rlnCoordinate is in pixels of the whole tilt images, and the origin is the particle's own
        at = xy[particles.row[images]] * one.pixel_size + particles.shift[images]
        placed.place[i], away = place_of(at, pose.tilt, one.geometry)
        placed.centred[i] = False
        moved.setdefault(name, []).append(away / one.pixel_size)
    for name, degrees in turned.items():
        if max(degrees) > _TURNED:
            placed.notes.append(
                f"{name}: orientations are {max(degrees):.1f}° from what the session's alignment makes of "
                "them; was it aligned again after the particles were cut?"
            )
    for name, pixels in moved.items():
        if max(pixels) > _MOVED:
            placed.notes.append(
                f"{name}: places in the images are {max(pixels):.1f} pixels from what the session's "
                "alignment makes of them; was it aligned again after the particles were cut?"
            )
    if alone and tilt_axis is None:
        placed.notes.append(
            "orientations are those of the untilted images, not turned back by the tilt axis: give the "
            "--session in which the particles were cut, or the --tilt-axis"
        )

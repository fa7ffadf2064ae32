"""Positions, defocus and directions in the images of a tilt series from Warp's XML.

A `TiltGeometry` holds all of the geometry but the spline grids of image movement, volume warp and local
angles, which M's refinement fills; `positions` and `rotations` evaluate those too, exactly as Warp does.
Warp's angles are taken as they are: WarpTools itself changes the sign of the stage's on import.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.formats.warp_xml import WarpGrid, WarpTiltSeries, tilt_steps
from weft.physics.geometry import TiltGeometry, tilt_matrices

__all__ = ["from_geometry", "positions", "rotations", "sizes_of", "to_geometry"]


def sizes_of(
    series: WarpTiltSeries, image_size: Sequence[float] | None, volume_size: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Sizes of the images and of the volume (Å): as given, else as the file says, else a FormatError."""
    image = series.image_size if image_size is None else image_size
    volume = series.volume_size if volume_size is None else volume_size
    for given, name in ((image, "images"), (volume, "volume")):
        if given is None:
            raise FormatError(series.path, f"it does not say the size of its {name}, which must be given")
    assert image is not None
    assert volume is not None
    return image, volume


def to_geometry(
    series: WarpTiltSeries,
    *,
    image_size: Sequence[float] | None = None,
    volume_size: Sequence[float] | None = None,
) -> TiltGeometry:
    """The geometry without the grids of movement, warp and angles (see `positions` for those).

    Parameters
    ----------
    series : WarpTiltSeries
    image_size, volume_size : sequences of float, optional
        x, y[, z], Å; needed where the file does not say them.
    """
    image, volume = sizes_of(series, image_size, volume_size)
    return TiltGeometry.of(
        series.angles,
        axis=series.axis,
        shift=series.shift,
        defocus=series.defocus,
        volume_size=tuple(volume),
        image_size=tuple(image),
        level=(series.level_x, series.level_y),
        hand=series.hand,
    )


def from_geometry(
    geometry: TiltGeometry,
    movies: Sequence[str],
    dose: Sequence[float] | NDArray[np.floating],
    ctf: dict[str, str] | None = None,
) -> WarpTiltSeries:
    """What Warp needs to reconstruct with a geometry.

    Parameters
    ----------
    geometry : TiltGeometry
    movies : (tilts,) sequence of str
    dose : (tilts,) sequence of float
        e/Å² before each exposure.
    ctf : dict of str to str, optional
        Voltage, Cs, Amplitude, PixelSize, ...; the defocus comes from `geometry`.
    """
    n = len(geometry)
    if len(movies) != n or len(dose) != n:
        raise ValueError(f"{n} tilts, but {len(movies)} movies and {len(dose)} doses")
    defocus = geometry.defocus.numpy() * 1e-4
    return WarpTiltSeries(
        angles=geometry.angles.numpy().copy(),
        axis=geometry.axis.expand(n).numpy().copy(),
        shift=geometry.shift.numpy().copy(),
        dose=np.asarray(dose, dtype=np.float64),
        use_tilt=np.ones(n, dtype=bool),
        movies=list(movies),
        fov_fraction=np.ones(n),
        level_x=float(geometry.level_x),
        level_y=float(geometry.level_y),
        angles_inverted=geometry.hand < 0,
        volume_size=tuple(geometry.volume_size.tolist()),
        image_size=tuple(geometry.image_size.tolist()),
        ctf={**(ctf or {}), "Defocus": repr(float(defocus.mean()))},
        grids={"GridCTF": WarpGrid(defocus.reshape(n, 1, 1))},
    )


def positions(
    series: WarpTiltSeries,
    xyz: NDArray[np.floating],
    *,
    image_size: Sequence[float] | None = None,
    volume_size: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Where points lie in every image, and at which defocus, with all of Warp's grids.

    Parameters
    ----------
    series : WarpTiltSeries
    xyz : (n, 3) array
        Å from the centre of the volume's first voxel.

    Returns
    -------
    (tilts, n, 3) array
        x, y (Å from the centre of the image's first pixel) and defocus (Å).
    """
    image, volume = (np.asarray(s, np.float64) for s in sizes_of(series, image_size, volume_size))
    points = np.asarray(xyz, np.float64)
    tilts, n = len(series), len(points)
    steps = tilt_steps(tilts)
    dose = series.dose - series.dose.min()
    fraction = np.repeat(dose / dose.max() if dose.max() > 0 else dose, n)
    places = np.tile(points / volume, (tilts, 1))
    centred = np.repeat((points - 0.5 * volume)[None], tilts, axis=0)
    for i, letter in enumerate("XYZ"):
        grid = series.grids.get(f"GridVolumeWarp{letter}")
        if grid is not None:
            centred[..., i] += grid.at(*places.T, fraction).reshape(tilts, n)
    matrices = _matrices(series)
    turned = np.einsum("tij,tnj->tni", matrices, centred)
    out = np.empty((tilts, n, 3))
    out[..., :2] = turned[..., :2] + (series.shift + 0.5 * image)[:, None]
    where = (*(out[..., :2] / image).reshape(-1, 2).T, np.repeat(steps, n))
    for i, letter in enumerate("XY"):
        grid = series.grids.get(f"GridMovement{letter}")
        if grid is not None:
            out[..., i] -= grid.at(*where).reshape(tilts, n)
    out[..., 2] = series.defocus[:, None] + series.hand * turned[..., 2]
    return out


def rotations(
    series: WarpTiltSeries, xyz: NDArray[np.floating], *, volume_size: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Matrices that take directions at given points of the volume to each image, with the grids of angles.

    Returns
    -------
    (tilts, n, 3, 3) array
    """
    volume = np.asarray(sizes_of(series, (0.0, 0.0), volume_size)[1], np.float64)
    tilts, n = len(series), len(xyz)
    places = np.tile(np.asarray(xyz, np.float64)[:, :2] / volume[:2], (tilts, 1))
    where = (*places.T, np.repeat(tilt_steps(tilts), n))
    turns = np.eye(3)
    for axis, letter in enumerate("XYZ"):
        grid = series.grids.get(f"GridAngle{letter}")
        if grid is not None:
            turns = _rotation(axis, np.radians(grid.at(*where).reshape(tilts, n))) @ turns
    return np.asarray(turns @ _matrices(series)[:, None])


def _matrices(series: WarpTiltSeries) -> NDArray[np.float64]:
    angles, axis = torch.as_tensor(series.angles), torch.as_tensor(series.axis)
    level = torch.tensor([series.level_x, series.level_y], dtype=torch.float64)
    return np.asarray(tilt_matrices(angles, axis, level[0], level[1]))


def _rotation(axis: int, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., i, i] = out[..., j, j] = np.cos(angle)
    out[..., j, i] = np.sin(angle)
    out[..., i, j] = -out[..., j, i]
    return out

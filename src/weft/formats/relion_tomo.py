"""RELION's tilt series and tomograms: RELION 5's ``tomograms.star`` (or ``aligned_tilt_series.star``) with a
STAR file a series, and RELION 4's tomogram sets with their projection matrices.

RELION 5 projects, in pixels: image = Rz(ZRot) Ry(YTilt) Rx(XTilt) (p − centre) + shift + image centre, all
three turning right-handed, and the centre of n pixels being int(n/2). Its defocus at a point is the tilt's
plus rlnTomoHand × the third component. With the angles as they are our specimen is RELION's mirrored in z
(XTilt = −level_x, YTilt = angle + level_y, rlnTomoHand = −hand, as in RELION's own import of IMOD's angles);
with ``invert_angles`` it is RELION's own, coordinates and all (angle + level_y = −YTilt, level_x = XTilt,
hand = rlnTomoHand). Images and their defocus are the same in both cases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star, write_star
from weft.physics.geometry import TiltGeometry

__all__ = [
    "RelionTiltSeries",
    "from_geometry",
    "projection_matrices",
    "read_tilt_series",
    "to_geometry",
    "write_tilt_series",
]

NAME, FILE, HAND = "rlnTomoName", "rlnTomoTiltSeriesStarFile", "rlnTomoHand"
PIXEL = "rlnTomoTiltSeriesPixelSize"
_ANGLES = ("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot")
_SHIFTS = ("rlnTomoXShiftAngst", "rlnTomoYShiftAngst")
_SIZES = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
_ROWS = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ", "rlnTomoProjW")
_U, _V = "rlnDefocusU", "rlnDefocusV"
#: X-axis tilts may differ by this (degrees) within a series before one value for all is refused.
_X_SPREAD = 1e-3


@dataclass
class RelionTiltSeries:
    """One series: its row of the table of all, and the table of its images.

    Attributes
    ----------
    name : str
        ``rlnTomoName``.
    general : dict of str to value
        The other columns of its row in ``data_global``, as text where read.
    tilts : Table
        A row an image; all columns are kept.
    path : Path
        The file that holds `tilts`, for messages.
    """

    name: str
    general: dict[str, Any] = field(default_factory=dict)
    tilts: Table = field(default_factory=Table)
    path: Path = Path("tilt series")

    def __len__(self) -> int:
        return len(self.tilts)

    @property
    def pixel_size(self) -> float:
        """Å, of the images."""
        for label in (PIXEL, "rlnMicrographOriginalPixelSize"):
            if label in self.general:
                return float(self.general[label])
        raise FormatError(self.path, f"its row has no {PIXEL}")

    @property
    def hand(self) -> float:
        """``rlnTomoHand``, +1 or −1."""
        value = float(self.general.get(HAND, "nan"))
        if value not in (1.0, -1.0):
            raise FormatError(self.path, f"its {HAND} is {value}, which must be 1 or -1")
        return value

    @property
    def volume_size(self) -> tuple[float, float, float] | None:
        """x, y, z, Å; None before a tomogram has been reconstructed."""
        if any(label not in self.general for label in _SIZES):
            return None
        x, y, z = (float(self.general[label]) * self.pixel_size for label in _SIZES)
        return x, y, z

    @property
    def defocus(self) -> NDArray[np.float64]:
        """(tilts,): the mean of both axes, Å."""
        return np.asarray(0.5 * (self._numbers(_U) + self._numbers(_V)))

    def _numbers(self, label: str) -> NDArray[np.float64]:
        if label not in self.tilts:
            raise FormatError(self.path, f"it has no column _{label}")
        try:
            values = self.tilts.floats(label)
        except ValueError as error:
            raise CorruptError(self.path, str(error)) from error
        if not np.isfinite(values).all():
            raise CorruptError(self.path, f"the column _{label} has values that are not finite")
        return values


def read_tilt_series(
    path: str | Path, root: str | Path | None = None, names: Sequence[str] | None = None
) -> dict[str, RelionTiltSeries]:
    """Read all tilt series of a table.

    Parameters
    ----------
    path : path-like
        ``tomograms.star``, ``tilt_series.star``, ``aligned_tilt_series.star``, ... of RELION 5, or a
        tomogram set of RELION 4, which holds the tables of its series itself.
    root : path-like, optional
        The project's folder, from which RELION counts its paths; by default the first folder above `path`
        in which the files are.
    names : sequence of str, optional
        Read these series only.

    Returns
    -------
    dict of str to RelionTiltSeries
        By name, in the file's order.
    """
    path = Path(path)
    blocks = read_star(path)
    table = blocks.get("global") or blocks.get("")
    if table is None or NAME not in table:
        raise FormatError(path, f"it has no table data_global with the column _{NAME}")
    out: dict[str, RelionTiltSeries] = {}
    for i, name in enumerate(table.strings(NAME)):
        if name in out:
            raise CorruptError(path, f"it lists the series {name} twice")
        if names is not None and name not in names:
            continue
        general = {label: column[i] for label, column in table.columns.items() if label != NAME}
        if FILE in general:
            file = _find(path, str(general[FILE]), root)
            series = read_star(file)
            tilts = series[name] if name in series else next(iter(series.values()))
            if len(series) > 1 and name not in series:
                raise FormatError(file, f"it has no table data_{name}")
        elif name in blocks:
            file, tilts = path, blocks[name]
        else:
            raise FormatError(path, f"the series {name} has neither {FILE} nor a table of its own")
        out[name] = RelionTiltSeries(name, general, tilts, file)
    absent = [name for name in names or () if name not in out]
    if absent:
        raise FormatError(path, f"it does not list the series {absent[0]}")
    return out


def _find(path: Path, name: str, root: str | Path | None) -> Path:
    folders = [Path(root)] if root is not None else [path.parent, *path.resolve().parents]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FormatError(path, f"the file {name} that it names is in none of the folders above it")


def write_tilt_series(
    path: str | Path, series: Sequence[RelionTiltSeries], root: str | Path | None = None, *, sync: bool = True
) -> None:
    """Write a table of tilt series and, in ``tilt_series/`` beside it, a STAR file for each.

    Parameters
    ----------
    path : path-like
        ``tomograms.star`` or another name.
    series : sequence of RelionTiltSeries
    root : path-like, optional
        The project's folder, from which paths are counted; by default the table's own folder.
    """
    path = Path(path)
    folder = path.parent / "tilt_series"
    folder.mkdir(parents=True, exist_ok=True)
    base = path.parent.resolve() if root is None else Path(root).resolve()
    labels = list(dict.fromkeys(label for item in series for label in item.general if label != FILE))
    columns: dict[str, list[Any]] = {NAME: [], FILE: [], **{label: [] for label in labels}}
    for item in series:
        missing = [label for label in labels if label not in item.general]
        if missing:
            raise ValueError(f"the series {item.name} has no {missing[0]}, which others have")
        file = folder / f"{item.name}.star"
        write_star(file, {item.name: Table(dict(item.tilts.columns))}, sync=sync)
        columns[NAME].append(item.name)
        columns[FILE].append(file.resolve().relative_to(base).as_posix())
        for label in labels:
            columns[label].append(item.general[label])
    write_star(path, {"global": Table(dict(columns))}, sync=sync)


def projection_matrices(series: RelionTiltSeries) -> NDArray[np.float64]:
    """RELION 4's matrices (``rlnTomoProjX`` ... ``W``): from the tomogram to the image, both in pixels.

    Returns
    -------
    (tilts, 4, 4) array
    """
    out = np.empty((len(series), 4, 4))
    for row, label in enumerate(_ROWS):
        if label not in series.tilts:
            raise FormatError(series.path, f"it has no column _{label}")
        for tilt, text in enumerate(series.tilts.strings(label)):
            try:
                values = [float(v) for v in re.sub(r"[\[\]]", "", text).split(",")]
            except ValueError:
                values = []
            if len(values) != 4 or not np.isfinite(values).all():
                raise CorruptError(series.path, f"row {tilt} of _{label} is {text!r}, not four numbers")
            out[tilt, row] = values
    return out


def to_geometry(
    series: RelionTiltSeries,
    *,
    image_size: Sequence[int],
    volume_size: Sequence[float] | None = None,
    invert_angles: bool = False,
) -> TiltGeometry:
    """A series as our geometry.

    Parameters
    ----------
    series : RelionTiltSeries
        With alignment; RELION 5's angles, or RELION 4's matrices where those are missing.
    image_size : (2,)
        x, y, pixels: RELION has it in the images only.
    volume_size : (3,), optional
        Å; from the series where it says it, else 0. Points are counted from its centre.
    invert_angles : bool
        See above.

    Raises
    ------
    FormatError
        Columns that are missing, or X-axis tilts that vary within the series.
    """
    pixel = series.pixel_size
    volume = series.volume_size if volume_size is None else tuple(volume_size)
    if _ANGLES[1] in series.tilts:
        # an alignment without tilts about x may leave their column out
        n = len(series)
        xtilt = series._numbers(_ANGLES[0]) if _ANGLES[0] in series.tilts else np.zeros(n)
        ytilt, zrot = (series._numbers(label) for label in _ANGLES[1:])
        shift = np.stack([series._numbers(label) for label in _SHIFTS], axis=1)
    else:
        xtilt, ytilt, zrot, shift = _from_matrices(series, image_size)
    spread = float(np.ptp(xtilt))
    if spread > _X_SPREAD:
        raise FormatError(
            series.path, f"rlnTomoXTilt varies by {spread:.3f}° between tilts, which is not supported"
        )
    # RELION's centre of an odd number of pixels is half a pixel before ours
    centre = np.array([n // 2 - n / 2 for n in image_size]) * pixel
    sign = 1.0 if invert_angles else -1.0
    return TiltGeometry.of(
        -sign * ytilt,
        axis=zrot,
        shift=shift + centre,
        defocus=series.defocus if _U in series.tilts else 0.0,
        volume_size=volume or (0.0, 0.0, 0.0),
        image_size=[n * pixel for n in image_size],
        level=(sign * float(xtilt.mean()), 0.0),
        hand=sign * series.hand,
    )


def _from_matrices(
    series: RelionTiltSeries, image_size: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """XTilt, YTilt, ZRot (degrees) and shift (Å) of RELION 4's matrices."""
    matrices = projection_matrices(series)
    r = matrices[:, :3, :3]
    if np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)).max() > 1e-3 or (np.linalg.det(r) < 0).any():
        raise FormatError(series.path, "its projection matrices stretch or mirror, which is not supported")
    ytilt = np.degrees(np.arcsin(np.clip(-r[:, 2, 0], -1.0, 1.0)))
    xtilt = np.degrees(np.arctan2(r[:, 2, 1], r[:, 2, 2]))
    zrot = np.degrees(np.arctan2(r[:, 1, 0], r[:, 0, 0]))
    if any(label not in series.general for label in _SIZES):
        raise FormatError(series.path, f"it has matrices but no {_SIZES[0]}, so that the centre is not known")
    centre = np.array([int(float(series.general[label])) // 2 for label in _SIZES])
    image = np.array([n // 2 for n in image_size])
    shift = (matrices[:, :2, :3] @ centre + matrices[:, :2, 3] - image) * series.pixel_size
    return xtilt, ytilt, zrot, shift


def from_geometry(
    geometry: TiltGeometry,
    name: str,
    *,
    pixel_size: float,
    general: dict[str, Any] | None = None,
    tilts: dict[str, ArrayLike | Sequence[str]] | None = None,
    invert_angles: bool = False,
) -> RelionTiltSeries:
    """The inverse of `to_geometry`, for RELION 5.

    Parameters
    ----------
    geometry : TiltGeometry
    name : str
        ``rlnTomoName``.
    pixel_size : float
        Å.
    general : dict, optional
        Further columns for ``data_global``: rlnVoltage, rlnSphericalAberration, rlnOpticsGroupName, ...
    tilts : dict, optional
        Further columns, one value a tilt: rlnMicrographName, rlnMicrographPreExposure, rlnDefocusAngle, ...
        rlnDefocusU and V given here are used; otherwise both are the geometry's defocus.
    """
    n = len(geometry)
    sign = 1.0 if invert_angles else -1.0
    size = [round(v / pixel_size) for v in geometry.image_size.tolist()]
    centre = torch.tensor([v // 2 - v / 2 for v in size], dtype=torch.float64) * pixel_size
    shift = (geometry.shift - centre).numpy()
    columns: dict[str, Any] = {label: np.asarray(c) for label, c in (tilts or {}).items()}
    if _U not in columns or _V not in columns:
        columns[_U] = columns[_V] = geometry.defocus.numpy()
    columns |= {
        _ANGLES[0]: np.full(n, sign * float(geometry.level_x)),
        _ANGLES[1]: -sign * (geometry.angles + geometry.level_y).numpy(),
        _ANGLES[2]: geometry.axis.expand(n).numpy().copy(),
        _SHIFTS[0]: shift[:, 0],
        _SHIFTS[1]: shift[:, 1],
    }
    unequal = next((label for label, c in columns.items() if len(c) != n), None)
    if unequal is not None:
        raise ValueError(f"{unequal} has {len(columns[unequal])} values for {n} tilts")
    row: dict[str, Any] = {**(general or {}), HAND: sign * geometry.hand, PIXEL: float(pixel_size)}
    if bool((geometry.volume_size > 0).all()):
        sizes = (geometry.volume_size / pixel_size).round().int().tolist()
        row |= dict(zip(_SIZES, sizes, strict=True))
    return RelionTiltSeries(name, row, Table(columns))

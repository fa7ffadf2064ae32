"""Particles in tomograms as other programs list them: RELION 3, 4 and 5, WarpTools and pytom-match-pick in
STAR files, and Dynamo's tables. What a STAR file is follows from what it holds:

- ``rlnCenteredCoordinateX/Y/ZAngst`` (RELION 5): Å from the tomogram's centre, which RELION puts at
  size/2 pixels of the tilt series (index 0 is the centre of the first pixel).
- ``rlnCoordinateX/Y/Z``: index 0 is the centre of the first pixel. Their pixels are those of the unbinned
  tilt series in RELION 4 (``rlnTomoTiltSeriesPixelSize``; its matrices take pixel int(size/2) to the image's
  centre, so there is no half pixel between), of the exported images where WarpTools wrote RELION's columns
  (``rlnImagePixelSize``; recognised by ``.tomostar`` names), and else what ``rlnPixelSize``,
  ``rlnDetectorPixelSize`` and ``rlnMagnification`` or the optics table say. WarpTools' matching files hold
  fractions of the volume.
- ``rlnOrigin...`` is subtracted, after it was turned by the sub-tomogram's own orientation.
- ``rlnTomoSubtomogramRot/Tilt/Psi`` (A_s, sub-tomogram to tomogram) and ``rlnAngleRot/Tilt/Psi`` (A_p, map to
  sub-tomogram) are joined to A_s · A_p.

In Dynamo's tables the centre of the first voxel is at 0.5, and M = Rz(−tdrot) Rx(−tilt) Rz(−narot).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.atomic import atomic_write_text
from weft.formats.dynamo import TABLE_COLUMNS, read_tbl, write_tbl
from weft.formats.particle_star import (
    ANGLES,
    CENTRED,
    MAGNIFICATION,
    MERIT,
    MICROGRAPH,
    NAME,
    PIXELS,
    SCORE,
    ParticleStar,
    euler_angles,
    euler_matrices,
    plain_name,
)
from weft.formats.star import Table, write_star

__all__ = [
    "Flavour",
    "TomoParticles",
    "euler_angles",
    "euler_matrices",
    "join_particles",
    "plain_name",
    "read_tomo_particles",
    "write_tomo_particles",
]

#: Who shall read what is written.
Flavour = Literal["relion5", "relion4", "relion3", "warp", "dynamo"]
#: One value for all tomograms, or one for each by its name.
PerTomogram = float | Mapping[str, float]
Size = Sequence[float] | Mapping[str, Sequence[float]]

#: Voxel i (from 0) of a tomogram is at this plus i in Dynamo's tables (its wiki, "Volume center").
_DYNAMO_FIRST = 0.5
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class TomoParticles:
    """Particles, whatever program has listed them.

    Attributes
    ----------
    tomogram : list of str
        (n), rlnTomoName.
    xyz : (n, 3) float64
        Å from the volume's centre (n//2 of each axis), as rlnCenteredCoordinateX/Y/ZAngst.
    euler : (n, 3) float64
        rot, tilt, psi, degrees; M(rot, tilt, psi) takes coordinates of the map to those of the tomogram.
    score : (n,) float64
        NaN where there is none.
    extra : mapping
        Other columns, by their labels, as they were.
    optics : Table or None
        The optics table, as it was.
    """

    tomogram: list[str]
    xyz: NDArray[np.float64]
    euler: NDArray[np.float64]
    score: NDArray[np.float64]
    extra: Mapping[str, Any] = field(default_factory=dict)
    optics: Table | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, which: ArrayLike) -> TomoParticles:
        """Some of them: by indices, in their order, or by a mask."""
        chosen = np.arange(len(self))[np.asarray(which)].tolist()
        return replace(
            self,
            tomogram=[self.tomogram[i] for i in chosen],
            xyz=self.xyz[chosen],
            euler=self.euler[chosen],
            score=self.score[chosen],
            extra={label: [column[i] for i in chosen] for label, column in self.extra.items()},
        )


def join_particles(parts: Sequence[TomoParticles]) -> TomoParticles:
    """All particles of several lists; further columns are kept where every list has them."""
    if not parts:
        return TomoParticles([], np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    common = [label for label in parts[0].extra if all(label in part.extra for part in parts)]
    return TomoParticles(
        [name for part in parts for name in part.tomogram],
        np.concatenate([part.xyz for part in parts]),
        np.concatenate([part.euler for part in parts]),
        np.concatenate([part.score for part in parts]),
        {label: [value for part in parts for value in part.extra[label]] for label in common},
        parts[0].optics,
    )


def read_tomo_particles(
    path: str | Path,
    *,
    pixel_size: PerTomogram | None = None,
    volume_size: Size | None = None,
    normalised: bool | None = None,
    table_map: str | Path | Mapping[int, str] | None = None,
) -> TomoParticles:
    """Read particles.

    Parameters
    ----------
    path : path-like
        A STAR file, or a table of Dynamo (``.tbl``).
    pixel_size : float, or mapping from tomogram to float, optional
        Å: what coordinates in pixels count; by default what the file says. Without use for RELION 5.
    volume_size : (x, y, z), or mapping from tomogram to it, optional
        Å: of the tomograms, from whose centre places are counted; needed for all but RELION 5.
    normalised : bool, optional
        Whether coordinates are fractions of the volume; by default they are where all lie between 0 and 1 and
        no pixel size is known.
    table_map : path-like or mapping, optional
        Which tomogram each number in column 20 of Dynamo's table is; by default the ``.doc`` file beside it,
        and the number itself where there is none.

    Returns
    -------
    TomoParticles
        Without the columns that have become part of places and orientations.

    Raises
    ------
    FormatError
        A column, a pixel size or a volume's size is missing.
    CorruptError
        A value is no finite number; row and column are named.
    """
    path = Path(path)
    if path.suffix.lower() == ".tbl":
        return _read_dynamo(path, pixel_size, volume_size, table_map)
    reader = ParticleStar(path)
    size = None if volume_size is None else _per_tomogram(path, "volume_size", volume_size, reader.names)
    outer, euler = reader.orientations()
    if reader.has(CENTRED):
        xyz, pixel = reader.numbers(CENTRED), None
    else:
        places = reader.numbers(PIXELS)
        if size is None:
            raise FormatError(
                path, "its coordinates are counted from a corner: the size of the tomograms must be given too"
            )
        if pixel_size is not None:
            pixel = _per_tomogram(path, "pixel_size", pixel_size, reader.names)
        else:
            pixel = reader.pixel_size()
        if normalised is None:
            inside = bool(len(places)) and places.min() >= 0.0 and places.max() <= 1.0
            normalised = inside and pixel is None
        if normalised:
            xyz = places * size
        elif pixel is not None:
            xyz = places * pixel
        else:
            raise FormatError(
                path, "it says nowhere how large the pixels of its coordinates are: give their size"
            )
        xyz = xyz - 0.5 * size
    origin = reader.origins(pixel)
    if origin is not None:
        xyz = xyz - (outer @ origin[..., None])[..., 0]
    return TomoParticles(reader.names, xyz, euler, reader.score(), reader.rest(), reader.optics)


def _per_tomogram(path: Path, what: str, given: Any, names: Sequence[str]) -> _Array:
    """(n, 1) or (n, 3) values of each particle's tomogram."""
    if isinstance(given, Mapping):
        absent = next((name for name in names if name not in given), None)
        if absent is not None:
            raise FormatError(
                path, f"it lists particles of {absent}, whose {what.replace('_', ' ')} is not known"
            )
        values = np.array([np.atleast_1d(given[name]) for name in names], np.float64)
        return values.reshape(len(names), -1)
    return np.broadcast_to(np.atleast_1d(np.asarray(given, np.float64)), (len(names), np.size(given)))


def _read_dynamo(
    path: Path, pixel_size: Any, volume_size: Any, table_map: str | Path | Mapping[int, str] | None
) -> TomoParticles:
    if pixel_size is None or volume_size is None:
        raise FormatError(
            path,
            "Dynamo's tables count pixels from a corner: the size of pixels and tomograms must be given too",
        )
    table = read_tbl(path)

    def columns(*labels: str) -> _Array:
        values = table[:, [TABLE_COLUMNS[label] - 1 for label in labels]]
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            number = TABLE_COLUMNS[labels[column]]
            raise CorruptError(
                path, f"row {row + 1} has no finite number in column {number} ({labels[column]})"
            )
        return values

    names = _table_names(path, columns("tomo")[:, 0].astype(int).tolist(), table_map)
    pixel = _per_tomogram(path, "pixel_size", pixel_size, names)
    size = _per_tomogram(path, "volume_size", volume_size, names)
    voxels = columns("x", "y", "z") + columns("dx", "dy", "dz") - _DYNAMO_FIRST
    # Rx(−t) = Rz(−90°) Ry(−t) Rz(90°)
    tdrot, tilt, narot = columns("tdrot", "tilt", "narot").T
    euler = euler_angles(euler_matrices(np.stack([narot - 90.0, tilt, tdrot + 90.0], axis=1)))
    spent = {"x", "y", "z", "dx", "dy", "dz", "tdrot", "tilt", "narot", "tomo", "cc"}
    extra = {
        label: table[:, number - 1]
        for label, number in TABLE_COLUMNS.items()
        if label not in spent and number <= table.shape[1]
    }
    return TomoParticles(names, voxels * pixel - 0.5 * size, euler, columns("cc")[:, 0], extra)


def _table_names(
    path: Path, numbers: list[int], table_map: str | Path | Mapping[int, str] | None
) -> list[str]:
    if table_map is None:
        beside = [path.with_suffix(".doc"), *sorted(path.parent.glob("*column20*.doc"))]
        table_map = next((file for file in beside if file.is_file()), {n: str(n) for n in numbers})
    if not isinstance(table_map, Mapping):
        file, found = Path(table_map), {}
        for line, text in enumerate(file.read_text().splitlines(), 1):
            words = text.split(None, 1)
            if not words:
                continue
            if len(words) < 2 or not words[0].isdigit():
                raise FormatError(file, f"line {line} is no number and name of a tomogram: {text[:40]!r}")
            found[int(words[0])] = plain_name(words[1])
        table_map = found
    absent = next((n for n in numbers if n not in table_map), None)
    if absent is not None:
        raise FormatError(
            path, f"its column 20 names tomogram {absent}, which the map of tomograms does not list"
        )
    return [table_map[n] for n in numbers]


def write_tomo_particles(
    path: str | Path,
    particles: TomoParticles,
    flavour: Flavour = "relion5",
    *,
    pixel_size: PerTomogram | None = None,
    volume_size: Size | None = None,
    normalised: bool = False,
    extra: Mapping[str, Any] | None = None,
    sync: bool = True,
) -> None:
    """Write particles atomically.

    Every STAR file has rlnTomoName, rlnCenteredCoordinateX/Y/ZAngst, rlnAngleRot/Tilt/Psi and rlnLCCmax
    beside its flavour's columns, the particles' `extra` columns, and their optics table where they have one
    (not for relion3 and warp, whose files have a single table).

    Parameters
    ----------
    path : path-like
    particles : TomoParticles
    flavour : str
        relion5; relion4: coordinates in pixels of the tilt series; relion3, warp: coordinates in voxels of
        the tomogram; dynamo: a table, and which tomogram has which number in the ``.doc`` file beside it.
    pixel_size : float, or mapping from tomogram to float
        Å: of the pixels that coordinates count; needed for all but relion5.
    volume_size : (x, y, z), or mapping from tomogram to it
        Å; needed for all but relion5.
    normalised : bool
        warp: fractions of the volume instead, as ``ts_export_particles --normalized_coords`` takes them.
    extra : mapping, optional
        Further columns, one value a particle, or others for those that a flavour would have.

    Raises
    ------
    ValueError
        A flavour that does not exist, a size that is needed but missing, a place or an angle that is not
        finite; nothing is written.
    """
    path = Path(path)
    if flavour not in get_args(Flavour):
        raise ValueError(f"{flavour!r} is none of {', '.join(get_args(Flavour))}")
    bad = ~(np.isfinite(particles.xyz).all(1) & np.isfinite(particles.euler).all(1))
    if bad.any():
        raise ValueError(f"particle {int(bad.argmax()) + 1} has a place or an angle that is not finite")
    names = particles.tomogram
    places = None
    if flavour != "relion5":
        if volume_size is None or (pixel_size is None and not normalised):
            raise ValueError(f"{flavour} counts pixels from a corner: it needs pixel_size and volume_size")
        size = _per_tomogram(path, "volume_size", volume_size, names)
        scale = size if normalised else _per_tomogram(path, "pixel_size", pixel_size, names)
        places = (particles.xyz + 0.5 * size) / scale
    if flavour == "dynamo":
        assert places is not None
        _write_dynamo(path, particles, places, {**particles.extra, **(extra or {})}, sync)
        return
    columns: dict[str, Any] = {NAME: names}
    columns |= dict(zip(CENTRED, particles.xyz.T, strict=True))
    columns |= dict(zip(ANGLES, particles.euler.T, strict=True))
    columns[SCORE] = particles.score
    if places is not None:
        columns |= dict(zip(PIXELS, places.T, strict=True))
    if flavour in ("relion3", "warp"):
        columns[MICROGRAPH] = [f"{name}.{'tomostar' if flavour == 'warp' else 'mrc'}" for name in names]
    if flavour == "relion3":
        columns["rlnMagnification"] = np.full(len(names), MAGNIFICATION)
        columns["rlnDetectorPixelSize"] = np.broadcast_to(scale, (len(names), 1))[:, 0]
    if flavour == "warp":
        columns[MERIT] = particles.score
    # Dynamo's columns have no prefix, and no place in a STAR file
    own = {k: v for k, v in particles.extra.items() if k not in columns and re.match(r"[a-z]{3}[A-Z]", k)}
    columns |= {**own, **(extra or {})}
    single = flavour in ("relion3", "warp")
    blocks = {"" if single else "particles": Table(columns)}
    if particles.optics is not None and not single:
        blocks = {"optics": particles.optics, **blocks}
    write_star(path, blocks, sync=sync)


def _write_dynamo(
    path: Path, particles: TomoParticles, places: _Array, extra: Mapping[str, Any], sync: bool
) -> None:
    series = list(dict.fromkeys(particles.tomogram))
    number = {name: i for i, name in enumerate(series, 1)}
    n = len(particles)
    table = np.zeros((n, 42))
    put = {"tag": np.arange(1, n + 1), "aligned": np.ones(n), "averaged": np.ones(n), "ftype": np.ones(n)}
    put |= {label: column for label, column in extra.items() if label in TABLE_COLUMNS}
    put["tomo"] = np.array([number[name] for name in particles.tomogram])
    put["cc"] = np.nan_to_num(particles.score)
    # voxels' centres in x, y, z and what is left in dx, dy, dz, as Dynamo's own cropping does
    whole = np.round(places)
    for i, axis in enumerate("xyz"):
        put[axis], put[f"d{axis}"] = whole[:, i] + _DYNAMO_FIRST, places[:, i] - whole[:, i]
    rot, put["tilt"], psi = particles.euler.T
    put["tdrot"], put["narot"] = _wrapped(psi - 90.0), _wrapped(rot + 90.0)
    for label, column in put.items():
        table[:, TABLE_COLUMNS[label] - 1] = column
    lines = "".join(f"{i} {name}.mrc\n" for name, i in number.items())
    atomic_write_text(path.with_suffix(".doc"), lines, sync=sync)
    write_tbl(path, table, sync=sync)


def _wrapped(angle: _Array) -> _Array:
    return (angle + 180.0) % 360.0 - 180.0

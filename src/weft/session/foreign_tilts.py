"""The tilts of a tomogram that another program has made: angles, exposure and CTF, from its files.

What is read here describes the specimen as it lies in that program's tomogram, with z upwards: a volume by
IMOD turned by ``trimvol -rx``, one by AreTomo, RELION or Warp. There a point X, Y, Z lies at
X cos t + Z sin t of the aligned image. Our geometry is x cos t - z sin t, so the sign of the angles in
``.tlt``, ``.aln`` and RELION's STAR changes; Warp's XML and ``.tomostar`` have it changed already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError
from weft.formats import aretomo, imod, mrc, relion_tomo, warp_geometry
from weft.formats.relion_tomo import RelionTiltSeries
from weft.formats.star import read_star
from weft.formats.tomostar import read_tomostar
from weft.formats.warp_xml import read_warp_xml
from weft.physics.geometry import TiltGeometry
from weft.session.alignment_sources import is_aligned
from weft.session.foreign_ctfs import TiltCtfs, finite_column, star_ctfs

__all__ = ["ForeignTilts", "read_tilts", "tilts_of_angles"]

Numbers = NDArray[np.float64]

_TEXT = (".tlt", ".rawtlt", ".txt", ".dat", "")
_EXPOSURE = "rlnMicrographPreExposure"


@dataclass(frozen=True)
class ForeignTilts:
    """What a file says about the tilts; None where it says nothing.

    Attributes
    ----------
    path : Path
        For messages.
    geometry : TiltGeometry
        Of the specimen in the tomogram; without defocus. Its hand is +1 where +x of the specimen goes to
        greater underfocus at positive angles of this geometry.
    sign : float
        Of the file's angles against those of the geometry.
    hand : float, optional
        That of the geometry, where the file knows it.
    rows : (tilts,) int array
        Places in the series as recorded, for files that have a line for every image of it.
    total : int
        Images of the series as recorded.
    dose : (tilts,) array, optional
        e/Å² by the end of each exposure.
    ctfs : TiltCtfs, optional
    weight : (tilts,) array, optional
    axis_known : bool
        Whether the direction of the tilt axis in the images as recorded is known.
    voltage, cs, amplitude, image_pixel_size : float, optional
        kV, mm, 1, Å.
    volume_size : (3,) tuple, optional
        x, y, z, Å.
    name : str, optional
        Of the series.
    notes : tuple of str
    """

    path: Path
    geometry: TiltGeometry
    sign: float
    hand: float | None = None
    rows: NDArray[np.int64] | None = None
    total: int | None = None
    dose: Numbers | None = None
    ctfs: TiltCtfs | None = None
    weight: Numbers | None = None
    axis_known: bool = True
    voltage: float | None = None
    cs: float | None = None
    amplitude: float | None = None
    image_pixel_size: float | None = None
    volume_size: tuple[float, float, float] | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.geometry)

    def of_lines(self, lines: int, path: Path, what: str) -> NDArray[np.int64]:
        """Which lines of another file belong to these tilts.

        Raises
        ------
        FormatError
            When it has another number of them.
        """
        if lines == len(self):
            return np.arange(lines)
        if self.rows is not None and lines == self.total:
            return self.rows
        raise FormatError(
            path,
            f"it has {what} for {lines} tilts, but {self.path.name} has {len(self)}: give files of the same "
            "tilts",
        )


# ----------------------------------------------------------------------------------------------- angles


def tilts_of_angles(
    path: Path,
    angles: Numbers,
    *,
    axis: float | None = None,
    x_axis_tilt: float = 0.0,
    angle_offset: float = 0.0,
) -> ForeignTilts:
    """From the angles alone (degrees, with IMOD's sign).

    Parameters
    ----------
    path : Path
        Where they are from.
    angles : (tilts,) array
    axis : float, optional
        Tilt axis in the images as recorded, degrees.
    x_axis_tilt, angle_offset : float
        ``XAXISTILT`` and ``OFFSET`` of IMOD's tilt.com, degrees.
    """
    n = len(angles)
    turn = np.radians(axis or 0.0)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    solved = imod.ImodAlignment(
        np.tile(rotation, (n, 1, 1)), np.zeros((n, 2)), angles, x_axis_tilt, angle_offset, path=path
    )
    geometry = imod.to_geometry(
        solved, pixel_size=1.0, image_size=(0.0, 0.0), invert_angles=True, exact_centre=False
    )
    # one number is enough for one direction
    geometry = replace(geometry, axis=torch.tensor(axis or 0.0, dtype=torch.float64))
    return ForeignTilts(path, geometry, -1.0, axis_known=axis is not None)


def read_tilts(
    path: Path,
    series: str,
    stem: str,
    *,
    axis: float | None = None,
    x_axis_tilt: float = 0.0,
    angle_offset: float = 0.0,
    image_pixel_size: float | None = None,
) -> ForeignTilts:
    """Read the tilts of a series.

    Parameters
    ----------
    path : Path
        ``.tlt``, ``.rawtlt`` or other text of one angle a line; AreTomo's ``.aln``; a STAR file of RELION;
        an XML or ``.tomostar`` of Warp.
    series : str
        Which one of a file of many; empty for the one that is called like the tomogram, or the only one.
    stem : str
        What the tomogram is called.
    axis, x_axis_tilt, angle_offset : float
        See `tilts_of_angles`; for files that do not say it.
    image_pixel_size : float, optional
        Å, of the images that an ``.aln`` is about.

    Raises
    ------
    RequestError
        No such file, a series that is not in it, a kind of file that is not known.
    InputFileError
        It cannot be read.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path} with the tilt angles.")
    suffix = path.suffix.lower()
    if suffix == ".aln":
        return _aretomo(path, image_pixel_size)
    if suffix == ".star":
        return _relion(path, series, stem)
    if suffix == ".xml":
        return _warp(path)
    if suffix == ".tomostar":
        return _tomostar(path, axis)
    if suffix in _TEXT:
        angles = imod.read_tlt(path)
        return tilts_of_angles(path, angles, axis=axis, x_axis_tilt=x_axis_tilt, angle_offset=angle_offset)
    raise RequestError(
        f"{path}: tilts are read from .tlt, .rawtlt, .aln, .star, .xml and .tomostar files, not from "
        f"{suffix}."
    )


def _aretomo(path: Path, image_pixel_size: float | None) -> ForeignTilts:
    solved = aretomo.read_aln(path)
    pixel = image_pixel_size or 1.0
    size = (0.0, 0.0) if solved.raw_size is None else tuple(n * pixel for n in solved.raw_size[:2])
    geometry = aretomo.to_geometry(solved, pixel_size=pixel, image_size=size, invert_angles=True)
    if image_pixel_size is None:
        geometry = replace(
            geometry, shift=torch.zeros_like(geometry.shift), image_size=torch.zeros_like(geometry.image_size)
        )
    numbers = [*solved.section.tolist(), *(dark.section for dark in solved.dark)]
    total = len(numbers) if solved.raw_size is None else solved.raw_size[2]
    # dark images have section 0 in some versions, so only those that were kept can tell where SEC starts
    first = solved.first_section
    if first is None and sorted(numbers) in (list(range(total)), list(range(1, total + 1))):
        first = min(numbers)
    rows = None if first is None else solved.section - first
    return ForeignTilts(
        path, geometry, -1.0, rows=rows, total=total, image_pixel_size=image_pixel_size, name=path.stem
    )


# ------------------------------------------------------------------------------------------ RELION, Warp


def _relion(path: Path, name: str, stem: str) -> ForeignTilts:
    blocks = read_star(path)
    table = blocks.get("global") or blocks.get("")
    if table is not None and relion_tomo.NAME in table:
        names = table.strings(relion_tomo.NAME)
        chosen = _choose(path, names, name, stem)
        series = relion_tomo.read_tilt_series(path, names=[chosen])[chosen]
    else:
        alone = {key: block for key, block in blocks.items() if is_aligned(block) and len(block)}
        if not alone:
            raise FormatError(path, "it has neither a table of tomograms nor the aligned tilts of a series")
        chosen = _choose(path, list(alone), name, stem)
        series = RelionTiltSeries(chosen or path.stem, {}, alone[chosen], path)
    if not is_aligned(series.tilts):
        raise FormatError(series.path, "it is not aligned: it has neither rlnTomoYTilt nor rlnTomoProjX")
    notes: list[str] = []
    hand_known = relion_tomo.HAND in series.general
    series.general.setdefault(relion_tomo.HAND, -1.0)
    pixel_known = any(k in series.general for k in (relion_tomo.PIXEL, "rlnMicrographOriginalPixelSize"))
    if not pixel_known:
        series.general[relion_tomo.PIXEL] = 1.0  # its shifts are in Å already
    size = _image_size(series, path)
    if size is None:
        notes.append(f"the images that {series.path.name} names are not there: their size is not known")
    geometry = relion_tomo.to_geometry(series, image_size=size or (0, 0), invert_angles=True)
    tilts = series.tilts
    general = {k: _number(series, k) for k in
               ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")}  # fmt: skip
    return ForeignTilts(
        series.path,
        replace(geometry, defocus=torch.zeros_like(geometry.defocus)),
        -1.0,
        hand=geometry.hand if hand_known else None,
        dose=_by_the_end(finite_column(series.path, tilts, _EXPOSURE)) if _EXPOSURE in tilts else None,
        ctfs=star_ctfs(series.path, tilts) if "rlnDefocusU" in tilts else None,
        voltage=general["rlnVoltage"],
        cs=general["rlnSphericalAberration"],
        amplitude=general["rlnAmplitudeContrast"],
        image_pixel_size=series.pixel_size if pixel_known else None,
        volume_size=series.volume_size if pixel_known else None,
        name=series.name,
        notes=tuple(notes),
    )


def _choose(path: Path, names: list[str], wanted: str, stem: str) -> str:
    if wanted:
        if wanted not in names:
            raise RequestError(f"{path} has no series {wanted}; it has {', '.join(names[:5])}.")
        return wanted
    # RELION calls tomograms rec_TS_01.mrc, others TS_01_10.00Apx.mrc
    inside = sorted((n for n in names if n and n in stem), key=len)
    if inside:
        return inside[-1]
    if len(names) == 1:
        return names[0]
    raise RequestError(
        f"{path} has {len(names)} series and none is called like {stem}: say which one with --series."
    )


def _image_size(series: RelionTiltSeries, path: Path) -> tuple[int, int] | None:
    """Of the first image that can be found, from the folder that RELION counts from."""
    label = "rlnMicrographName"
    if label not in series.tilts:
        return None
    name = Path(series.tilts.strings(label)[0].rpartition("@")[2].removesuffix(":mrc"))
    for folder in (Path(), path.parent, *path.resolve().parents):
        if (folder / name).is_file():
            _, y, x = mrc.read_header(folder / name).shape
            return x, y
    return None


def _number(series: RelionTiltSeries, label: str) -> float | None:
    text = series.general.get(label)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise FormatError(series.path, f"its {label} is {text!r}, which is no number") from None


def _by_the_end(before: Numbers) -> Numbers:
    """Doses before the exposures as doses by their ends: what lies between two is one exposure."""
    steps = np.diff(np.unique(before))
    return before + (float(np.median(steps)) if len(steps) else 0.0)


def _warp(path: Path) -> ForeignTilts:
    series = read_warp_xml(path)
    image = series.image_size or (0.0, 0.0)
    geometry = warp_geometry.to_geometry(
        series, image_size=image, volume_size=series.volume_size or (0.0, 0.0, 0.0)
    )
    used = np.flatnonzero(series.use_tilt)
    half, angle = series.astigmatism.T
    ctfs = TiltCtfs(series.defocus, 2.0 * half, angle, series.phase_shift).select(used)
    weights = series.per_tilt("GridDoseWeights", 1.0)[used]

    def value(name: str) -> float | None:
        text = series.ctf.get(name, "")
        try:
            return float(text)
        except ValueError:
            return None

    notes = [] if len(used) == len(series) else [f"{len(series) - len(used)} tilts are not used (UseTilt)"]
    volume = series.volume_size
    return ForeignTilts(
        path,
        replace(geometry, defocus=torch.zeros_like(geometry.defocus)).select(torch.from_numpy(used)),
        1.0,
        hand=series.hand,
        rows=used,
        total=len(series),
        dose=_by_the_end(series.dose)[used] if np.ptp(series.dose) > 0 else None,
        ctfs=ctfs if np.any(ctfs.defocus) else None,
        weight=weights,
        voltage=value("Voltage"),
        cs=value("Cs"),
        amplitude=value("Amplitude"),
        image_pixel_size=value("PixelSize"),
        volume_size=None if volume is None else (volume[0], volume[1], volume[2]),
        name=path.stem,
        notes=tuple(notes),
    )


def _tomostar(path: Path, axis: float | None) -> ForeignTilts:
    table = read_tomostar(path)
    given = axis if table.axis is None else table.axis
    geometry = TiltGeometry.of(table.angles, axis=0.0 if given is None else given)
    dose = _by_the_end(table.dose) if np.ptp(table.dose) > 0 else None
    return ForeignTilts(path, geometry, 1.0, dose=dose, axis_known=given is not None, name=path.stem)

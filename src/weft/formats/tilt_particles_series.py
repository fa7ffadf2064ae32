"""What a table of tomograms says of the tilts of each: matrices, CTF, dose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.formats import relion_tomo
from weft.formats.relion_tomo import HAND, RelionTiltSeries
from weft.formats.star import Table, read_star
from weft.formats.tilt_particles_rows import Rows
from weft.formats.tilt_particles_stacks import StackFinder

__all__ = ["SeriesTilts", "find_tomograms", "read_optimisation_set", "read_series_tilts"]

PARTICLES_FILE, TOMOGRAMS_FILE = "rlnTomoParticlesFile", "rlnTomoTomogramsFile"
_ANGLES = ("rlnTomoYTilt", "rlnTomoZRot")
_X_TILT = "rlnTomoXTilt"
_MATRIX = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ")
_CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_PHASE, _DOSE, _SCALE = "rlnPhaseShift", "rlnMicrographPreExposure", "rlnCtfScalefactor"


@dataclass(frozen=True)
class SeriesTilts:
    """The tilts of one tomogram.

    Attributes
    ----------
    name : str
    matrices : (t, 3, 3) float64
        From the tomogram to the image.
    u, v, angle, phase, dose, scale : (t) float64
    voltage, cs, amplitude : (p) float64
        Of all particles of the table, these of them meant that are in this tomogram.
    has_ctf : bool
    hand : float or None
        By which a particle's depth changes its defocus; None without a CTF.
    mirrored : bool
        Whether the specimen that `matrices` turn is the mirror image (in z) of nature's, as that of WarpTools
        is where tilt angles were imported without inverting them and the hand has therefore not been flipped.
    """

    name: str
    matrices: NDArray[np.float64]
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    angle: NDArray[np.float64]
    phase: NDArray[np.float64]
    dose: NDArray[np.float64]
    scale: NDArray[np.float64]
    voltage: NDArray[np.float64]
    cs: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    has_ctf: bool
    hand: float | None
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.u)


def read_series_tilts(
    series: dict[str, RelionTiltSeries], rows: Rows, flavour: str
) -> dict[str, SeriesTilts]:
    """All series, checked.

    Raises
    ------
    FormatError
        Columns are missing; they are named together.
    CorruptError
        A number that is none.
    """
    tilts = {name: _tilts(item, rows, flavour) for name, item in series.items()}
    without = [name for name, item in tilts.items() if not item.has_ctf]
    if without and len(without) < len(tilts):
        raise FormatError(
            series[without[0]].path,
            f"the series {without[0]} has no column _{_CTF[0]}, which others have; fit its CTF, or leave its "
            "particles out",
        )
    return tilts


def _tilts(item: RelionTiltSeries, rows: Rows, flavour: str) -> SeriesTilts:
    table = Rows(item.path, f"the series {item.name} of {rows.what.removeprefix('a ')}", item.tilts)
    has_ctf = table.complete([], (*_CTF, _PHASE))
    geometry = _ANGLES if any(label in table for label in _ANGLES) else _MATRIX
    table.need(*geometry, *(_CTF if has_ctf else ()))
    if has_ctf and HAND not in item.general:
        raise FormatError(
            item.path,
            f"the series {item.name} has no column _{HAND} in the table of tomograms",
        )
    nil = np.zeros(len(table))
    u, v, angle = (table.numbers(label) if has_ctf else nil for label in _CTF)
    optics = [_optics(item, rows, label) if has_ctf else np.zeros(len(rows)) for label in _OPTICS]
    if geometry is _MATRIX:
        projection = relion_tomo.projection_matrices(item)
        matrices = _rotations(item, projection[:, :3, :3])
        # WarpTools' own have no shifts, and turn Warp's specimen; the hand beside them is that of its mirror
        # image, RELION's. The noise in WarpTools' images, which is multiplied by the CTF, shows it
        sign = 1.0 if flavour != "warptools" or projection[:, :3, 3].any() else -1.0
    else:
        xtilt = table.first([_X_TILT], 0.0)
        matrices = _turn(2, table.numbers(_ANGLES[1])) @ _turn(1, table.numbers(_ANGLES[0])) @ _turn(0, xtilt)
        sign = 1.0
    return SeriesTilts(
        *(item.name, matrices, u, v, angle),
        phase=table.first([_PHASE], 0.0) if has_ctf else nil,
        dose=table.first([_DOSE], 0.0),
        scale=table.numbers(_SCALE) if _SCALE in table else np.abs(matrices[:, 2, 2]),
        voltage=optics[0],
        cs=optics[1],
        amplitude=optics[2],
        has_ctf=has_ctf,
        hand=sign * item.hand if has_ctf else None,
        # microscopes have hand −1 in RELION's geometry: +1 in Warp's means a specimen that is a mirror image
        mirrored=sign < 0.0 and has_ctf and item.hand < 0.0,
    )


def _optics(item: RelionTiltSeries, rows: Rows, label: str) -> NDArray[np.float64]:
    """(p): as the particles' optics groups say it, or else the tomogram."""
    if label in rows:
        return rows.numbers(label)
    if label not in item.general:
        raise FormatError(
            rows.path,
            f"{rows.what} needs the column _{label}, which neither it nor the tomogram {item.name} has",
        )
    general = Rows(item.path, "", Table({label: [item.general[label]]}))
    return np.full(len(rows), general.numbers(label)[0])


def _rotations(item: RelionTiltSeries, matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    off = np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    if off.max() > 1e-3 or (np.linalg.det(matrices) < 0.0).any():
        tilt = int(off.argmax())
        raise FormatError(
            item.path,
            f"the projection matrix of tilt {tilt + 1} of {item.name} is no rotation; it is not supported",
        )
    # rounded numbers in the file: the rotation nearest to them
    left, _, right = np.linalg.svd(matrices)
    return np.asarray(left @ right)


def _turn(axis: int, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """(t, 3, 3): right-handed about an axis."""
    angle = np.radians(degrees)
    out = np.zeros((len(angle), 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    out[:, axis, axis] = 1.0
    out[:, a, a] = out[:, b, b] = np.cos(angle)
    out[:, b, a] = np.sin(angle)
    out[:, a, b] = -np.sin(angle)
    return out


def read_optimisation_set(
    path: Path, table: Table, datadir: str | Path | None
) -> tuple[Path, Path | None, Path]:
    """The files that an optimisation set names.

    Returns
    -------
    particles : Path
    tomograms : Path or None
        None where it names none.
    project : Path
        The folder from which it counts their names.
    """
    finder = StackFinder(path, datadir)

    def find(label: str) -> Path:
        name = table.value(label)
        found = finder.find(name)
        if found is None:
            raise FormatError(
                path, f"the file {name} that it names (_{label}) is not there; looked in {finder.looked()}"
            )
        return found

    particles = find(PARTICLES_FILE)
    named = TOMOGRAMS_FILE in table
    project = finder.base(table.value(TOMOGRAMS_FILE if named else PARTICLES_FILE))
    return particles, find(TOMOGRAMS_FILE) if named else None, project or path.absolute().parent


def find_tomograms(path: Path, datadir: str | Path | None) -> tuple[Path, Path]:
    """The table of tomograms that belongs to a table of particles, and the project's folder.

    It is the one of the optimisation set in the same folder that names the particles, else
    ``NAME_tomograms.star``, else ``tomograms.star``.

    Raises
    ------
    FormatError
        There is none.
    """
    folder = path.absolute().parent
    for other in sorted(folder.glob("*optimisation_set*.star")):
        table = next((t for t in read_star(other).values() if PARTICLES_FILE in t), None)
        if (
            table is None
            or Path(table.value(PARTICLES_FILE)).name != path.name
            or TOMOGRAMS_FILE not in table
        ):
            continue
        particles, tomograms, project = read_optimisation_set(other, table, datadir)
        if tomograms is not None and particles.resolve() == path.resolve():
            return tomograms, project
    siblings = [folder / f"{path.stem}_tomograms.star", folder / "tomograms.star"]
    for sibling in siblings:
        if sibling.is_file():
            return sibling, folder
    raise FormatError(
        path,
        "the tilts of its particles are in a table of tomograms, and there is none beside it: no "
        f"optimisation set names it, and neither {siblings[0].name} nor {siblings[1].name} is there. Give "
        "the optimisation set, or --tomograms",
    )


def _names(table: Table, path: Path) -> bool:
    return Path(table.value(PARTICLES_FILE)).name == path.name

"""The tables that RELION 3.1 and later read: micrographs, and the motion of one movie.

RELION's shifts are what must be added to a frame's content to lay it on the first frame: minus our
tracks, in pixels of the unbinned movie. Checked against relion_run_motioncorr on a movie of known motion
(tests/clients/test_relion.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.formats.star import Table, write_star
from weft.physics.optics import Optics

__all__ = [
    "Micrograph",
    "RelionMotion",
    "evaluate_motion_model",
    "fit_motion_model",
    "write_micrographs",
    "write_motion",
]

_SPATIAL, _TEMPORAL = 6, 3
_UNUSED = -9999.0  # RELION's shift of a frame that is not in the average


@dataclass(frozen=True)
class Micrograph:
    """One row of a table of micrographs.

    Attributes
    ----------
    columns : dict
        RELION's label → value, without the optics group.
    optics : Optics
        Of the raw frames.
    pixel_size : float
        Å, of the micrograph.
    """

    columns: Mapping[str, Any]
    optics: Optics
    pixel_size: float


def write_micrographs(path: str | Path, rows: Sequence[Micrograph]) -> None:
    """Write ``data_optics``, with a group for every set of constants, and ``data_micrographs``.

    Parameters
    ----------
    rows : sequence of Micrograph
        All with the same columns. None at all gives an empty table.
    """
    groups: dict[tuple[float, ...], int] = {}
    numbers = []
    for row in rows:
        o = row.optics
        key = (o.pixel_size, o.voltage, o.cs, o.amplitude, row.pixel_size)
        numbers.append(groups.setdefault(key, len(groups) + 1))
    labels = (
        "rlnMicrographOriginalPixelSize",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
        "rlnMicrographPixelSize",
    )
    optics: dict[str, Any] = {
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in groups.values()],
        "rlnOpticsGroup": list(groups.values()),
    }
    optics |= {label: [key[i] for key in groups] for i, label in enumerate(labels)}
    names = list(rows[0].columns) if rows else ["rlnMicrographName"]
    columns: dict[str, Any] = {name: [row.columns[name] for row in rows] for name in names}
    columns["rlnOpticsGroup"] = numbers
    write_star(path, {"optics": Table(optics), "micrographs": Table(columns)})


@dataclass(frozen=True)
class RelionMotion:
    """What the motion STAR of one movie says, in RELION's terms.

    Attributes
    ----------
    movie, gain : str
        File names as RELION is to find them; `gain` may be empty.
    shape : (ny, nx)
        Of the raw frames.
    binning : float
        Of the average.
    optics : Optics
        Of the raw frames; its prior dose is that before the file's first frame.
    start_frame : int
        1-based: frames before it are not in the average.
    n_frames : int
        In the file (groups for EER), those that were left out included.
    global_shift : (frames, 2) array
        x, y in pixels of the raw frames, RELION's sign.
    model : (2, 18) array or None
        Coefficients of the local motion: :func:`fit_motion_model`.
    hot_pixels : (n, 2) array
        x, y in pixels of the raw frames.
    eer : (int, int) or None
        Up-sampling and grouping of an EER movie.
    """

    movie: str
    gain: str
    shape: tuple[int, int]
    binning: float
    optics: Optics
    n_frames: int
    global_shift: NDArray[np.float64]
    model: NDArray[np.float64] | None = None
    hot_pixels: NDArray[np.int64] | None = None
    start_frame: int = 1
    eer: tuple[int, int] | None = None


def write_motion(path: str | Path, motion: RelionMotion) -> None:
    """Write the motion STAR of one movie (rlnMicrographMetadata)."""
    optics = motion.optics
    general: dict[str, Any] = {
        "rlnImageSizeX": motion.shape[1],
        "rlnImageSizeY": motion.shape[0],
        "rlnImageSizeZ": motion.n_frames,
        "rlnMicrographMovieName": motion.movie,
    }
    if motion.gain:
        general["rlnMicrographGainName"] = motion.gain
    general |= {
        "rlnMicrographBinning": motion.binning,
        "rlnMicrographOriginalPixelSize": optics.pixel_size,
        "rlnMicrographDoseRate": optics.dose_per_frame,
        "rlnMicrographPreExposure": optics.prior_dose,
        "rlnVoltage": optics.voltage,
        "rlnMicrographStartFrame": motion.start_frame,
    }
    if motion.eer is not None:
        general |= {"rlnEERUpsampling": motion.eer[0], "rlnEERGrouping": motion.eer[1]}
    general["rlnMotionModelVersion"] = 0 if motion.model is None else 1
    # every frame of the file has a row, counted from 1
    frames = np.arange(motion.n_frames) + 1
    shift = np.full((motion.n_frames, 2), _UNUSED)
    first = motion.start_frame - 1
    shift[first : first + len(motion.global_shift)] = motion.global_shift
    blocks = {
        "general": Table({name: [value] for name, value in general.items()}, loop=False),
        "global_shift": Table(
            {
                "rlnMicrographFrameNumber": frames,
                "rlnMicrographShiftX": shift[:, 0],
                "rlnMicrographShiftY": shift[:, 1],
            }
        ),
    }
    if motion.model is not None:
        coefficients = motion.model.reshape(-1)
        blocks["local_motion_model"] = Table(
            {
                "rlnMotionModelCoeffsIdx": np.arange(len(coefficients)),
                "rlnMotionModelCoeff": coefficients,
            }
        )
    if motion.hot_pixels is not None and len(motion.hot_pixels):
        hot = np.asarray(motion.hot_pixels, dtype=np.float64)
        blocks["hot_pixels"] = Table({"rlnCoordinateX": hot[:, 0], "rlnCoordinateY": hot[:, 1]})
    write_star(path, blocks)


def _terms(fraction: NDArray[np.float64], frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 18 terms of RELION's polynomial: 1, x, x², y, y², xy, each times t, t², t³.

    Parameters
    ----------
    fraction : (m, 2) array
        x, y as fractions of the frame, 0 in its middle.
    frame : (m,) array
        Frames after the first.
    """
    x, y = fraction[:, 0], fraction[:, 1]
    spatial = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=1)
    temporal = np.stack([frame ** (power + 1) for power in range(_TEMPORAL)], axis=1)
    return (spatial[:, :, None] * temporal[:, None, :]).reshape(len(x), -1)


def evaluate_motion_model(model: ArrayLike, fraction: ArrayLike, n_frames: int) -> NDArray[np.float64]:
    """Local shifts of RELION's motion model version 1.

    Parameters
    ----------
    model : (2, 18) or (36,) array
        Coefficients for x and for y, as the STAR file lists them.
    fraction : (n, 2) array
        x, y as fractions of the frame, 0 in its middle.

    Returns
    -------
    (frames, n, 2) array
        Pixels of the raw frames, RELION's sign.
    """
    coefficients = np.asarray(model, dtype=np.float64).reshape(2, _SPATIAL * _TEMPORAL)
    places = np.asarray(fraction, dtype=np.float64).reshape(-1, 2)
    out = [_terms(places, np.full(len(places), float(f))) @ coefficients.T for f in range(n_frames)]
    return np.stack(out)


def fit_motion_model(
    shifts: ArrayLike, fraction: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Fit RELION's polynomial to local shifts.

    The polynomial is zero at the first frame everywhere, so a constant for each place is free in the
    fit: it is where a feature lies in the first frame, which no trajectory needs.

    Parameters
    ----------
    shifts : (frames, n, 2) array
        Local shifts, pixels of the raw frames, RELION's sign.
    fraction : (n, 2) array
        x, y as fractions of the frame, 0 in its middle.

    Returns
    -------
    model : (2, 18) array
    offset : (2,) array
        Mean over the places of the constants: what belongs to the global shift instead.
    residual : float
        Root mean square of what the polynomial cannot follow, pixels.
    """
    values = np.asarray(shifts, dtype=np.float64)
    places = np.asarray(fraction, dtype=np.float64).reshape(-1, 2)
    n_frames, n_places = values.shape[:2]
    frame = np.repeat(np.arange(n_frames, dtype=np.float64), n_places)
    # powers of fractions of the exposure: those of frame numbers would span many orders of magnitude
    length = max(n_frames - 1, 1)
    terms = _terms(np.tile(places, (n_frames, 1)), frame / length)
    free = terms - np.tile(terms.reshape(n_frames, n_places, -1).mean(0), (n_frames, 1))
    target = (values - values.mean(0)).reshape(-1, 2)
    solution = np.linalg.lstsq(free, target, rcond=1e-9)[0]
    residual = float(np.sqrt(((free @ solution - target) ** 2).sum(1).mean()))
    offset = (values.reshape(-1, 2) - terms @ solution).mean(0)
    powers = np.tile(np.arange(1, _TEMPORAL + 1), _SPATIAL)
    return (solution / float(length) ** powers[:, None]).T, offset, residual

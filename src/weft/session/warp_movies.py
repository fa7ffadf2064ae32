"""One movie's motion and CTF as Warp's grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weft.formats.warp_movie import WarpMovie
from weft.formats.warp_xml import WarpGrid
from weft.movies.tracks import time_axis
from weft.physics.splines import spline_matrix

if TYPE_CHECKING:
    from weft.movies.motion import MotionModel
    from weft.session.items import Movie
    from weft.session.records import Record

__all__ = ["motion_grids", "warp_movie"]


def motion_grids(motion: MotionModel) -> dict[str, WarpGrid]:
    """Tracks as the grids that Warp subtracts: exact, with a control point for every frame.

    Our local motion has few control points in time on an axis of its own (`tracks.time_axis`); evaluated
    at the frames, these are the values that a natural spline with a control point a frame goes through.
    """
    out = {}
    n = motion.n_frames
    for axis, letter in enumerate("XY"):
        shift = -np.asarray(motion.global_shift[:, axis], np.float64)
        out[f"GridMovement{letter}"] = WarpGrid(shift.reshape(n, 1, 1))
    if motion.local is not None:
        weights = spline_matrix(motion.local.shape[1], time_axis(n, motion.relaxation))
        for axis, letter in enumerate("XY"):
            values = -np.einsum("ft,tyx->fyx", weights, motion.local[axis])
            out[f"GridLocalMovement{letter}"] = WarpGrid(values)
    return out


def warp_movie(movie: Movie, record: Record, data_folder: str) -> WarpMovie:
    """All that is known about a movie that has been aligned, as Warp would have it.

    Parameters
    ----------
    movie : Movie
    record : Record
        Its own.
    data_folder : str
        Where Warp finds the movie.
    """
    given = record.steps["motion"].settings["input"]
    metrics = record.metrics
    out = WarpMovie(
        ctf={
            "PixelSize": repr(float(metrics["pixel_size"])),
            "Voltage": repr(float(given["voltage"])),
            "Cs": repr(float(given["cs"])),
            "Amplitude": repr(float(given["amplitude"])),
        },
        grids=motion_grids(movie.motion),
        attributes={
            "DataDirectory": data_folder,
            "MeanFrameMovement": f"{float(metrics.get('motion_per_frame', 0.0)):.6g}",
        },
    )
    done = record.steps.get("ctf")
    if done is not None and done.status == "done":
        ctf = movie.ctf
        out.grids["GridCTF"] = WarpGrid(1e-4 * ctf.surface[None])
        out.ctf |= {
            "Defocus": repr(1e-4 * ctf.defocus),
            "DefocusDelta": repr(1e-4 * ctf.astigmatism),
            "DefocusAngle": repr(ctf.angle),
            "PhaseShift": repr(ctf.phase_shift / 180.0),
        }
        out.attributes["CTFResolutionEstimate"] = f"{ctf.resolution:.4g}"
    return out

"""The reference tilt series and their truth: where everything lies in the images, and in Weft's specimen."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

SERIES = {"TS_A": "tilts_beads", "TS_B": "tilts_plain"}


def reference_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that say where the data are, and which series is meant."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    default = os.environ.get("WEFT_REFERENCE_DATA", str(root.parent / "shared" / "data"))
    parser.add_argument("data", nargs="?", default=default, type=Path)
    parser.add_argument("--only", choices=list(SERIES))
    return parser


def folders(given: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Names and folders of the series that are meant."""
    for name, folder in SERIES.items():
        if given.only in (None, name):
            yield name, given.data / "reference" / folder


def session_arguments(data: Path) -> list[str]:
    """Of `weft new`, for the series in a folder."""
    physics = ["--pixel-size", "4", "--voltage", "300", "--cs", "2.7", "--amplitude", "0.07"]
    return ["--frames", f"{data}/frames/*.tif", "--mdoc", f"{data}/mdoc", "--dose", "1.5", *physics]


def true_projections(truth: dict[str, Any]) -> np.ndarray:
    """(tilts, n, 3) of the truth's particles: x, y from the image's corner and defocus, Å; as acquired."""
    xyz = np.array(truth["particles_xyz_centered"])
    ny, nx = truth["shape"]
    centre = 0.5 * np.array([nx, ny]) * truth["optics"]["pixel"]
    out = []
    for tilt in truth["tilts"]:
        seen = xyz @ _matrix(tilt["tilt"], truth["axis"], truth["level"]).T
        z = seen[:, 2]
        if truth["hand"] < 0:
            # the other hand is that of the mirrored specimen under inverted angles
            z = ((xyz * [1, 1, -1]) @ _matrix(-tilt["tilt"], truth["axis"], [-v for v in truth["level"]]).T)[
                :, 2
            ]
        out.append(np.c_[seen[:, :2] + centre + tilt["shift"], tilt["defocus"] + z])
    return np.array(out)


def _matrix(angle: float, axis: float, level: list[float]) -> np.ndarray:
    a, b, x = np.deg2rad([angle + level[1], -axis, level[0]])
    ry = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    rz = np.array([[np.cos(b), np.sin(b), 0], [-np.sin(b), np.cos(b), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return rz @ ry @ rx


def projected(series: Any, truth: dict[str, Any], xyz: np.ndarray) -> np.ndarray:
    """(tilts, n, 3): as :func:`true_projections`, but by a series of Weft; xyz from its first voxel."""
    mine = [int(np.argmin(abs(series.tilt_angles - tilt["tilt"]))) for tilt in truth["tilts"]]
    return np.asarray(series.project(xyz))[mine]


def specimen_motion(series: Any, truth: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Turn (3, 3) and place (3,): turn · p + place is where Weft has the truth's p, from the first voxel.

    An alignment is defined up to a rigid motion of the specimen.
    """
    xyz, true = np.array(truth["particles_xyz_centered"]), true_projections(truth)
    centre = np.array(series.volume_size) / 2

    def left(p: Any) -> np.ndarray:
        moved = xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + centre
        return np.asarray((projected(series, truth, moved)[..., :2] - true[..., :2]).ravel() / 10)

    fit = least_squares(left, np.zeros(6), x_scale=[0.05] * 3 + [50] * 3, loss="soft_l1")
    return Rotation.from_rotvec(fit.x[:3]).as_matrix(), fit.x[3:] + centre

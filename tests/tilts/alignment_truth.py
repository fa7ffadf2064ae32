"""The reference tilt series as images, and how far an alignment is from their exact truth.

An alignment is defined up to a rigid motion of the specimen, so the best one is fitted first; nothing of
Weft's but the projection of the alignment that is judged takes part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from weft.movies.source import open_movie
from weft.physics.geometry import TiltGeometry


@dataclass(frozen=True)
class ReferenceSeries:
    """One of the reference tilt series, sorted by angle."""

    images: torch.Tensor
    angles: torch.Tensor
    pixel_size: float
    axis: float
    truth: dict[str, Any]
    order: tuple[int, ...]

    @property
    def beads(self) -> NDArray[np.float64]:
        """(tilts, beads, 2): where beads lie, Å from the image's centre."""
        xyz = np.array(self.truth["beads_xyz_centered"])
        ny, nx = self.truth["shape"]
        return self.projected(xyz)[..., :2] - np.array([nx, ny]) * self.pixel_size / 2

    @property
    def particles(self) -> NDArray[np.float64]:
        """(n, 3): Å from the specimen's centre."""
        return np.array(self.truth["particles_xyz_centered"])

    def projected(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """(tilts, n, 2): the truth, Å from the centre of the first pixel."""
        t = self.truth
        ny, nx = t["shape"]
        centre = np.array([nx, ny]) * self.pixel_size / 2
        out = []
        for i in self.order:
            tilt = t["tilts"][i]
            q = xyz @ _tilt_matrix(tilt["tilt"], t["axis"], t["level"]).T
            out.append(q[:, :2] + centre + np.array(tilt["shift"]))
        return np.array(out)


def _zyz(rot: float, tilt: float, psi: float) -> NDArray[np.float64]:
    a, b, g = np.deg2rad([rot, tilt, psi])
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def _tilt_matrix(angle: float, axis: float, level: list[float]) -> NDArray[np.float64]:
    x = np.deg2rad(level[0])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return _zyz(0, angle + level[1], -axis) @ rx


@lru_cache(maxsize=2)
def reference_series(data: Path, name: str) -> ReferenceSeries:
    """``tilts_beads`` or ``tilts_plain``: the sums of frames of each tilt."""
    folder = data / "reference" / name
    truth = json.loads(next(folder.glob("TS_*.json")).read_text())
    order = tuple(sorted(range(len(truth["tilts"])), key=lambda i: truth["tilts"][i]["tilt"]))
    images = []
    for i in order:
        with open_movie(folder / "frames" / truth["tilts"][i]["file"]) as movie:
            images.append(sum(torch.from_numpy(frame.astype(np.float32)) for frame in movie.frames()))
    angles = torch.tensor([truth["tilts"][i]["tilt"] for i in order], dtype=torch.float64)
    return ReferenceSeries(torch.stack(images), angles, truth["optics"]["pixel"], truth["axis"], truth, order)


@dataclass(frozen=True)
class AlignmentErrors:
    """How wrong an alignment is after the best rigid motion of the specimen.

    Attributes
    ----------
    tilt_rms : (tilts,)
        Å, of the particles' places in each image.
    rotation : float
        Degrees by which the specimen had to be turned: the error of its levelling, mostly.
    level : (float, float)
        Degrees between the specimen's plane and the volume's: about x and y.
    """

    tilt_rms: NDArray[np.float64]
    rotation: float
    level: tuple[float, float]

    @property
    def rms(self) -> float:
        """Å, over all tilts."""
        return float(np.sqrt((self.tilt_rms**2).mean()))


def alignment_errors(geometry: TiltGeometry, series: ReferenceSeries) -> AlignmentErrors:
    """Compare; the geometry's tilts are those of `series`."""
    xyz, centre = series.particles, 0.5 * geometry.volume_size.numpy()
    true = series.projected(xyz)

    def moved(p: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + centre
        return out

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        found = geometry.project(torch.as_tensor(moved(p)))[..., :2].numpy()
        return (found - true).ravel() / 10.0

    scale = np.r_[0.05, 0.05, 0.05, 50, 50, 50]
    starts = [np.zeros(6), np.r_[0, 0.09, 0, 0, 0, 0], np.r_[0.09, 0, 0, 0, 0, 0]]
    fits = [least_squares(residual, s, x_scale=scale, loss="soft_l1") for s in starts]
    best = min(fits, key=lambda f: f.cost)
    error = residual(best.x).reshape(true.shape) * 10.0
    normal = Rotation.from_rotvec(best.x[:3]).as_matrix() @ np.array([0.0, 0.0, 1.0])
    return AlignmentErrors(
        np.sqrt((error**2).sum(-1).mean(1)),
        float(np.rad2deg(np.linalg.norm(best.x[:3]))),
        (float(np.rad2deg(np.arcsin(-normal[1]))), float(np.rad2deg(np.arcsin(normal[0])))),
    )

"""Templates of the simulated series, for tests of searches in sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from weft.formats import mrc
from weft.simulation.specimen import load_specimen

VOXEL, BOX = 20.0, 16
DIAMETER = 200.0


def write_template(
    path: Path, *, source: str = "barrel", voxel: float = VOXEL, box: int = BOX, mirrored: bool = False
) -> Path:
    """Density of a simulated structure, of any voxel size, its centre at the voxel n//2."""
    specimen = load_specimen(source)
    zyx = specimen.points[:, ::-1] * (-1.0 if mirrored else 1.0)
    edges = [np.arange(box + 1) - box // 2 - 0.5] * 3
    density = np.histogramdd(zyx / voxel, edges, weights=specimen.strengths)[0]
    mrc.write(path, gaussian_filter(density, 0.7).astype(np.float32), voxel, volume=True)
    return path


def write_mask(path: Path, *, voxel: float = VOXEL, box: int = BOX) -> Path:
    from weft.matching.mask import ellipsoid_mask

    radius = 0.5 * DIAMETER / voxel
    mrc.write(path, ellipsoid_mask(box, (radius,) * 3, 1.0).numpy(), voxel, volume=True)
    return path

"""Grids of voxels, the slabs that a volume is made of, and the pictures taken of them on the way.

A volume is written slab by slab along z, so that it never needs to fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from weft.errors import RequestError
from weft.physics.geometry import TiltGeometry

__all__ = ["CentralSlices", "MapSummary", "SlabWriter", "Spectator", "VolumeGrid", "covered"]

# name of the map, first section, (z, y, x) float32: the buffer is used again afterwards
SlabWriter = Callable[[str, int, torch.Tensor], None]


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a full or partial volume lie.

    Voxel i of the full volume lies at i times the pixel size, from the centre of its first voxel: the
    coordinates of :class:`~weft.physics.geometry.TiltGeometry`. A partial volume has the same voxels.

    Attributes
    ----------
    full : (int, int, int)
        Voxels of the full volume, z, y, x.
    start, shape : (int, int, int)
        First voxel and number of voxels of the part, z, y, x.
    pixel_size : float
        Å.
    """

    full: tuple[int, int, int]
    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    pixel_size: float

    @classmethod
    def of(
        cls,
        volume_size: tuple[float, float, float] | torch.Tensor,
        pixel_size: float,
        box: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None = None,
    ) -> VolumeGrid:
        """All of a volume of x, y, z Å, in even numbers of voxels, or what of it lies in a box.

        `box` holds the first and the last position (Å) along x, y and z.
        """
        sizes = [float(v) for v in volume_size][::-1]
        full = [max(2, 2 * round(0.5 * size / pixel_size)) for size in sizes]
        start, shape = [0, 0, 0], list(full)
        if box is not None:
            for axis, (low, high) in enumerate(reversed(box)):
                first = max(0, int(np.ceil(low / pixel_size - 1e-6)))
                last = min(full[axis] - 1, int(np.floor(high / pixel_size + 1e-6)))
                if last < first:
                    raise RequestError(
                        f"the box from {low:g} to {high:g} Å along {'zyx'[axis]} holds no voxel of a volume "
                        f"of {sizes[axis]:g} Å at {pixel_size:g} Å: choose a box inside the volume"
                    )
                start[axis], shape[axis] = first, last - first + 1
        return cls(
            (full[0], full[1], full[2]),
            (start[0], start[1], start[2]),
            (shape[0], shape[1], shape[2]),
            pixel_size,
        )

    @property
    def origin(self) -> tuple[float, float, float]:
        """x, y, z (Å) of the part's first voxel in the full volume."""
        z, y, x = (index * self.pixel_size for index in self.start)
        return (x, y, z)


def covered(
    geometry: TiltGeometry,
    grid: VolumeGrid,
    first: int,
    sections: int,
    extent: tuple[float, float],
    distortion: torch.Tensor,
) -> torch.Tensor:
    """Which voxels every tilt shows.

    Parameters
    ----------
    first, sections
        Of the part's sections, counted from its own first.
    extent : (float, float)
        x, y, Å: from the first pixel's centre to the last's.

    Returns
    -------
    (sections, y, x) bool
    """
    p = grid.pixel_size
    m = distortion @ geometry.matrices[:, :2]
    corner = torch.tensor(grid.origin, dtype=torch.float64) + torch.tensor([0.0, 0.0, first * p])
    start = (
        (m @ (corner - 0.5 * geometry.volume_size))
        + geometry.shift @ distortion.T
        + 0.5 * geometry.image_size
    )
    y = torch.arange(grid.shape[1], dtype=torch.float64)
    z = torch.arange(sections, dtype=torch.float64)
    low = torch.zeros(sections, grid.shape[1], dtype=torch.float64)
    high = torch.full_like(low, float(grid.shape[2]))
    for t in range(len(geometry)):
        for axis in range(2):
            row = start[t, axis] + p * (m[t, axis, 1] * y + m[t, axis, 2] * z[:, None])
            slope = p * m[t, axis, 0]
            if abs(float(slope)) < 1e-9:
                outside = (row < 0.0) | (row > extent[axis])
                high = torch.where(outside, torch.full_like(high, -1.0), high)
                continue
            ends = torch.stack([-row / slope, (extent[axis] - row) / slope]).sort(dim=0).values
            low, high = torch.maximum(low, ends[0]), torch.minimum(high, ends[1])
    x = torch.arange(grid.shape[2], dtype=torch.float64)
    return (x >= low[..., None]) & (x <= high[..., None])


@dataclass(frozen=True)
class CentralSlices:
    """The three sections through a volume's middle: index n//2 of each axis.

    Attributes
    ----------
    xy : (y, x) float32
    xz : (z, x) float32
    yz : (z, y) float32
    """

    xy: torch.Tensor
    xz: torch.Tensor
    yz: torch.Tensor


@dataclass(frozen=True)
class MapSummary:
    """What is known about a written map. Numbers are those of an MRC header."""

    mean: float
    std: float
    least: float
    greatest: float
    slices: CentralSlices


@dataclass
class Spectator:
    """Watches slabs go by and remembers what :class:`MapSummary` holds.

    `thickness` > 1 averages so many sections in each picture.
    """

    shape: tuple[int, int, int]
    thickness: int = 1
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    limits: list[float] = field(default_factory=lambda: [float("inf"), -float("inf")])

    def __post_init__(self) -> None:
        nz, ny, nx = self.shape
        self._xy = torch.zeros(ny, nx)
        self._xz = torch.zeros(nz, nx)
        self._yz = torch.zeros(nz, ny)
        self._spans = []
        for n in self.shape:
            thick = min(self.thickness, n)
            start = min(max(n // 2 - thick // 2, 0), n - thick)
            self._spans.append((start, start + thick))

    def see(self, first: int, slab: torch.Tensor) -> None:
        """One slab that starts at section `first`."""
        last = first + len(slab)
        # section by section: no copy of the slab in double precision
        for section in slab:
            self.sums[0] += float(section.sum(dtype=torch.float64))
            self.sums[1] += float(torch.linalg.vector_norm(section, dtype=torch.float64)) ** 2
        self.limits = [min(self.limits[0], float(slab.min())), max(self.limits[1], float(slab.max()))]
        (z0, z1), (y0, y1), (x0, x1) = self._spans
        a, b = max(z0, first), min(z1, last)
        if a < b:
            self._xy += slab[a - first : b - first].sum(0).cpu() / (z1 - z0)
        self._xz[first:last] = slab[:, y0:y1].mean(1).cpu()
        self._yz[first:last] = slab[:, :, x0:x1].mean(2).cpu()

    def summary(self) -> MapSummary:
        """After the last slab."""
        count = float(np.prod(self.shape))
        mean = self.sums[0] / count
        std = max(self.sums[1] / count - mean * mean, 0.0) ** 0.5
        slices = CentralSlices(self._xy, self._xz, self._yz)
        return MapSummary(mean, std, self.limits[0], self.limits[1], slices)

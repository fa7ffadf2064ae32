"""The local reconstruction: small cubes, each from patches with their own CTF.

The volume is divided into cells of half the cube's side. A cell's voxels, and a few beyond its faces where it
fades into its neighbours, are collected from patches that are somewhat larger than the cube, filtered and
tapered around the cell's projected centre. Cells are numbered from the full volume's first voxel, so a part
of a volume is the same as that part of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch

from weft.physics import fourier
from weft.physics.geometry import TiltGeometry
from weft.tilts.backprojection import OVERSAMPLING, backproject, interpolation_response, oversample
from weft.tilts.gridding import Overlaps, Sections, TiltContrast
from weft.tilts.images import TiltImages
from weft.tilts.volumes import SlabWriter, VolumeGrid

__all__ = ["SubVolumes"]

BLEND = 8  # cells fade into each other over 1/8 of the cube's side
TAPER = 0.85  # part of a patch's half side that is not tapered: the turned cell fits in, and its fringes
THICKNESS = 0.625  # of what is taken to blur a section, in sides of the cube: the cell and where it fades
SLABS_VOXELS = 1 << 28  # that are held at a time, where more than one map is made: a gigabyte
BATCH = 8  # cells that a GPU works on at a time

Cell = tuple[int, int, int]


def cell_window(index: int, count: int, core: int, blend: int) -> torch.Tensor:
    """How much of each voxel a cell gives, along one axis: (core + blend,) float32, from −blend/2 on.

    Adjacent windows add up to one; the first and the last cell of the full volume do not fade outwards.
    """
    out = torch.ones(core + blend)
    rise = torch.sin(0.5 * torch.pi * (torch.arange(blend) + 0.5) / blend) ** 2
    if index > 0:
        out[:blend] = rise
    if index < count - 1:
        out[core:] = rise.flip(0)
    return out


@dataclass(frozen=True)
class SubVolumes:
    """Everything that is the same for all cells.

    Attributes
    ----------
    images, geometry, contrast, grid, distortion
        See :func:`~weft.tilts.reconstruction.reconstruct`.
    core, blend : int
        Voxels of a cell, and of the seam between two.
    sections : Sections
        Fourier space of the patches.
    overlaps : Overlaps
    reliability : (tilts, n, n//2+1) float32
        Weights but for the CTF's.
    constant, slope : float32 tensors
        The CTF's argument: constant + slope · defocus.
    taper : (n, n) float32
    scale : (n, n//2+1) float32
        Band, response of the interpolation and scale of the density.
    power : int
        Of |CTF| in the weights; 0 leaves the CTF alone.
    regularisation : float
    """

    images: TiltImages
    geometry: TiltGeometry
    contrast: TiltContrast
    grid: VolumeGrid
    distortion: torch.Tensor
    core: int
    blend: int
    sections: Sections
    overlaps: Overlaps
    reliability: torch.Tensor
    constant: torch.Tensor
    slope: torch.Tensor
    taper: torch.Tensor
    scale: torch.Tensor
    power: int
    regularisation: float

    @classmethod
    def of(
        cls,
        images: TiltImages,
        geometry: TiltGeometry,
        contrast: TiltContrast,
        grid: VolumeGrid,
        *,
        cube: int,
        power: int,
        regularisation: float,
        dose_model: Literal["warp", "grant", "none"],
        cosine: bool,
        distortion: torch.Tensor,
        scale: float,
        thickness: float = 0.0,
    ) -> SubVolumes:
        """Prepare what all cells share.

        `scale` multiplies the density per Å; a `thickness` (Å) that is not 0 replaces that of the cells.
        """
        device = images.images.device
        spacing = grid.pixel_size
        core = cube // 2
        blend = max(2, 2 * round(cube / BLEND / 2))
        band = 0.5 / spacing
        # the CTF spreads what lies in a cell's corner over λ · defocus · frequency, but most of it not so far
        spread = contrast.optics.wavelength * float(geometry.defocus.abs().max()) * band / spacing
        reach = 0.5 * math.sqrt(3.0) * (core + blend) + min(spread, 0.5 * cube) * (power > 0)
        stretch = float(torch.linalg.matrix_norm(distortion, ord=2)) * spacing / min(images.pixel_size)
        size = fourier.fast_size(2 * math.ceil(reach * stretch / TAPER))
        sections = Sections.of(size, images.pixel_size, geometry.matrices, band, distortion, device)
        thickness = thickness or THICKNESS * cube * spacing
        constant, slope = contrast.phase(sections.kx, sections.ky)
        offset = torch.arange(size, device=device, dtype=torch.float32) - size // 2
        radius = torch.hypot(offset[:, None], offset[None, :]) / (size // 2)
        fade = ((radius - TAPER) / (1.0 - TAPER)).clamp(0.0, 1.0)
        response = interpolation_response((size, size), device)
        return cls(
            images,
            geometry,
            contrast,
            grid,
            distortion,
            core,
            blend,
            sections,
            Overlaps.between(sections, thickness),
            contrast.reliability(sections.k, geometry, dose_model, cosine),
            constant,
            slope,
            0.5 + 0.5 * torch.cos(torch.pi * fade),
            sections.within * (scale / thickness) / response,
            power,
            regularisation,
        )

    # ------------------------------------------------------------------ one cell

    def filters(self, defocus: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What multiplies the spectra of a cell's patches.

        Parameters
        ----------
        defocus : (cells, tilts) float32
            Å, at the cells' centres.
        seen : (cells, tilts) bool
            Which images show anything of them.

        Returns
        -------
        (cells, tilts, n, n//2+1) float32
        """
        weight = self.reliability * seen[..., None, None]
        if self.power == 0:
            signal = weight
        else:
            c = torch.sin(self.constant + self.slope * defocus[..., None, None])
            signal = weight * c
            weight = weight * c.abs() ** self.power if self.power != 1 else signal.abs()
        return signal / (self.overlaps.gather(weight) + self.regularisation).clamp_(min=1e-9) * self.scale

    def boxes(self, cells: list[Cell], gains: torch.Tensor) -> torch.Tensor:
        """The voxels of cells and of their seams.

        Parameters
        ----------
        cells : list of (int, int, int)
            Their numbers along z, y, x.
        gains : (maps, n, n//2+1) float32
            A further filter for each map that is made.

        Returns
        -------
        (maps, cells, side, side, side) float32
            Under the cells' windows.
        """
        device = self.images.images.device
        n = len(self.taper)
        p = torch.tensor(self.images.pixel_size, dtype=torch.float64)
        spacing, side = self.grid.pixel_size, self.core + self.blend
        corner = torch.tensor(cells, dtype=torch.float64).flip(-1) * self.core - self.blend // 2
        centre = corner + 0.5 * (side - 1)
        found = self.geometry.project(torch.cat([centre, corner]) * spacing)
        middle = 0.5 * self.geometry.image_size
        places = ((found[..., :2] - middle) @ self.distortion.T + middle) / p
        at, corners = places[:, : len(cells)].transpose(0, 1), places[:, len(cells) :].transpose(0, 1)
        start = at.round().long() - n // 2  # (cells, tilts, 2)
        ny, nx = self.images.images.shape[1:]
        limits = torch.tensor([nx, ny])
        seen = ((start > -n) & (start < limits)).all(-1)
        patches = self._patches(start.to(device), n)
        defocus = found[:, : len(cells), 2].T.to(device, torch.float32)
        spectra = fourier.rfft2(patches) * self.filters(defocus, seen.to(device))
        step = OVERSAMPLING * spacing * (self.distortion @ self.geometry.matrices[:, :2]) / p[:, None]
        first = (corners - start) * OVERSAMPLING
        out = torch.zeros(len(gains), len(cells), side, side, side, device=device)
        windows = [self._window(cell).to(device) for cell in cells]
        for gain, boxes in zip(gains, out, strict=True):
            fine = oversample(spectra * gain, (n, n))
            for index, box in enumerate(boxes):
                which = seen[index].nonzero()[:, 0]
                if len(which) == 0:
                    continue
                shown = fine[index] if len(which) == len(step) else fine[index][which.to(device)]
                backproject(box, shown, first[index, which], step[which].transpose(1, 2))
                box *= windows[index]
        return out

    def _patches(self, start: torch.Tensor, n: int) -> torch.Tensor:
        """(cells, tilts, n, n) float32: tapered, and 0 outside the images."""
        images = self.images.images
        tilts, ny, nx = images.shape
        steps = torch.arange(n, device=images.device)
        columns, rows = start[..., 0, None] + steps, start[..., 1, None] + steps
        in_x, in_y = (columns >= 0) & (columns < nx), (rows >= 0) & (rows < ny)
        tilt = torch.arange(tilts, device=images.device)[None, :, None, None]
        found = images[tilt, rows.clamp(0, ny - 1)[..., :, None], columns.clamp(0, nx - 1)[..., None, :]]
        if not bool(in_x.all() and in_y.all()):
            found *= in_y[..., :, None] & in_x[..., None, :]
        found *= self.taper
        return found

    def _counts(self) -> tuple[int, int, int]:
        z, y, x = (-(-n // self.core) for n in self.grid.full)
        return (z, y, x)

    def _window(self, cell: Cell) -> torch.Tensor:
        z, y, x = (
            cell_window(index, count, self.core, self.blend)
            for index, count in zip(cell, self._counts(), strict=True)
        )
        return z[:, None, None] * y[:, None] * x

    # ------------------------------------------------------------------ all of them

    def _touching(self, axis: int) -> range:
        """Cells that give anything to the part of the volume, along an axis."""
        start, count = self.grid.start[axis], self._counts()[axis]
        half = self.blend // 2
        first = max(0, (start - half) // self.core)
        last = min(count - 1, (start + self.grid.shape[axis] - 1 + half) // self.core)
        return range(first, last + 1)

    def run(self, gains: Mapping[str, torch.Tensor], write: SlabWriter) -> None:
        """Make one map for each gain, and write its sections whenever a layer of cells is done.

        Maps whose slabs together would be too large are made one after the other.
        """
        voxels = (self.core + self.blend) * self.grid.shape[1] * self.grid.shape[2]
        if len(gains) > 1 and len(gains) * voxels > SLABS_VOXELS:
            for name, gain in gains.items():
                self.run({name: gain}, write)
            return
        device = self.images.images.device
        names, filters = list(gains), torch.stack(list(gains.values()))
        (z0, y0, x0), (nz, ny, nx) = self.grid.start, self.grid.shape
        half, side = self.blend // 2, self.core + self.blend
        slabs = torch.zeros(len(names), side, ny, nx, device=device)
        for row in self._touching(0):
            cells = ((row, y, x) for y in self._touching(1) for x in self._touching(2))
            for cell, boxes in self._made(cells, filters):
                y, x = cell[1] * self.core - half - y0, cell[2] * self.core - half - x0
                ya, yb, xa, xb = max(y, 0), min(y + side, ny), max(x, 0), min(x + side, nx)
                slabs[:, :, ya:yb, xa:xb] += boxes[:, :, ya - y : yb - y, xa - x : xb - x]
            # sections up to the seam with the next row are done; the first row's have no seam before them
            bottom = row * self.core - half - z0  # of the slab, in the part's sections
            last_row = row == self._counts()[0] - 1
            done = bottom + (side if last_row else self.core)
            first, last = max(bottom, 0), min(done, nz)
            if first < last:
                for name, slab in zip(names, slabs, strict=True):
                    write(name, first, slab[first - bottom : last - bottom])
            for section in range(self.blend):  # one by one: a slab may be gigabytes
                slabs[:, section] = slabs[:, self.core + section]
            slabs[:, self.blend :] = 0.0

    def _made(self, cells: Iterator[Cell], gains: torch.Tensor) -> Iterator[tuple[Cell, torch.Tensor]]:
        """(cell, (maps, side, side, side)) in the order given."""
        threads = torch.get_num_threads()
        if self.images.images.device.type != "cpu":
            while batch := list(islice(cells, BATCH)):
                yield from zip(batch, self.boxes(batch, gains).unbind(1), strict=True)
        elif threads == 1:
            for cell in cells:
                yield cell, self.boxes([cell], gains)[:, 0]
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                while batch := list(islice(cells, 8 * threads)):
                    results = pool.map(lambda cell: self.boxes([cell], gains)[:, 0], batch)
                    yield from zip(batch, results, strict=True)
            torch.set_num_threads(threads)  # threads that are born later would inherit the last number set

"""Everything that scatters, where it is, and the exact image of it in every frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from weft.simulation.imaging import damage_amplitude, ice_amplitude, particle_amplitude, transfer
from weft.simulation.motion import SpecimenMotion, random_motion
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.specimen import Specimen, load_specimen, projection_matrix, random_orientations
from weft.simulation.splatting import PaddedGrid, point_spectrum

__all__ = ["Particles", "Scene", "plane_gradient"]

Array = NDArray[Any]

_ICE_POINTS_PER_AREA = 0.25  # in an Å^2: enough that the noise of the ice is Gaussian at every resolution
_DELOCALISATION = 40.0  # Å of border beyond the farthest motion
_TRANSFER_BUDGET = 6e8  # bytes of transfer functions that are kept; beyond, they are made for every frame


@dataclass(frozen=True)
class Particles:
    """Where the particles are in the aligned average.

    Attributes
    ----------
    xy : ``(n, 2)`` array, Å
    height : ``(n,)`` array
        Å along the beam from the specimen's plane; greater is more underfocus.
    eulers : ``(n, 3)`` array
        rot, tilt, psi, degrees.
    """

    xy: Array
    height: Array
    eulers: Array


@dataclass
class _Points:
    """Points of one kind, ordered by slab and then by y; slab s is ``[starts[s], starts[s + 1])``."""

    xy: Array
    weights: Array | None
    starts: Array
    displacements: Array


def plane_gradient(settings: MovieSimulationSettings) -> tuple[float, float]:
    """dz/dx and dz/dy of the tilted specimen's defocus."""
    slope = math.tan(math.radians(settings.tilt))
    axis = math.radians(settings.tilt_axis)
    return slope * math.cos(axis), slope * math.sin(axis)


class Scene:
    """A specimen with its motion; :meth:`frames` images it.

    Parameters
    ----------
    settings : MovieSimulationSettings
    seed : numpy SeedSequence
        Each part of the scene draws from its own child, so changing the motion leaves the particles.
    """

    def __init__(self, settings: MovieSimulationSettings, seed: np.random.SeedSequence) -> None:
        *children, self._diffusion_seed = seed.spawn(4)
        for_motion, for_particles, for_ice = (np.random.default_rng(child) for child in children)
        self.settings = settings
        self.plane = plane_gradient(settings)
        self.motion: SpecimenMotion = random_motion(settings, for_motion)
        self.specimen: Specimen = load_specimen(settings.specimen)
        self.grid = self._padded_grid()
        self.particles = self._place_particles(for_particles)
        atoms, weights, heights = self._particle_points()
        ice, ice_heights = self._ice_points(for_ice)
        everything = np.concatenate([heights, ice_heights, [0.0]])
        lowest, span = float(everything.min()), float(np.ptp(everything))
        slabs = max(1, math.ceil(span / settings.slab_thickness - 1e-9))
        thickness = max(span / slabs, 1e-6)
        self.slab_defocus = settings.defocus * 1e4 + lowest + thickness * (np.arange(slabs) + 0.5)
        self._atoms = self._ordered(atoms, weights, (heights - lowest) / thickness)
        self._ice = self._ordered(ice, None, (ice_heights - lowest) / thickness)

    def frames(self, workers: int = 1) -> Iterator[Array]:
        """Expected intensity of every frame, ``(height, width)`` float32, 1 without a specimen, in order."""
        s = self.settings
        ky, kx = self.grid.frequencies(s.pixel_size)
        k = np.sqrt(ky * ky + kx * kx)
        atom_form = particle_amplitude(k, self.specimen, s)
        tilted_thickness = s.ice_thickness / math.cos(math.radians(s.tilt))
        ice_form = ice_amplitude(k, _ICE_POINTS_PER_AREA, tilted_thickness, s)
        transfers: list[Array | None] = [None] * len(self.slab_defocus)
        keep = atom_form.nbytes * len(transfers) <= _TRANSFER_BUDGET
        walk, diffusion = np.zeros_like(self._ice.xy), np.random.default_rng(self._diffusion_seed)
        for frame in range(s.frames):
            # the middle of the frame stands for all of it
            dose = s.dose_per_frame * (frame + 0.5)
            damaged = atom_form * damage_amplitude(k, dose, s)
            if s.ice_diffusion > 0.0:
                step = math.sqrt(s.ice_diffusion * s.dose_per_frame)
                walk += diffusion.normal(scale=step, size=walk.shape)
            atoms = self._moved(self._atoms, frame)
            ice = self._moved(self._ice, frame) + walk / s.pixel_size
            total = np.zeros(atom_form.shape, np.complex64)
            for slab, defocus in enumerate(self.slab_defocus):
                of_slab = self._slab_spectrum(self._atoms, atoms, slab, damaged, workers)
                of_ice = self._slab_spectrum(self._ice, ice, slab, ice_form, workers)
                scattered = of_ice if of_slab is None else of_slab if of_ice is None else of_slab + of_ice
                if scattered is None:
                    continue
                function = transfers[slab]
                if function is None:
                    function = transfer(ky, kx, float(defocus), s)
                    transfers[slab] = function if keep else None
                total += scattered * function
            total[0, 0] = 0.0  # the mean is the illumination's
            image = scipy.fft.irfft2(total, s=(self.grid.ny, self.grid.nx), workers=workers)
            scale = np.float32(2.0 / s.pixel_size**2)
            yield np.float32(1.0) - scale * np.ascontiguousarray(self.grid.crop(image))

    def _slab_spectrum(
        self, points: _Points, xy: Array, slab: int, form: Array, workers: int
    ) -> Array | None:
        start, stop = points.starts[slab], points.starts[slab + 1]
        if start == stop:
            return None
        weights = None if points.weights is None else points.weights[start:stop]
        result: Array = point_spectrum(xy[start:stop], weights, self.grid, workers) * form
        return result

    def _moved(self, points: _Points, frame: int) -> Array:
        """Places of the points in a frame, px."""
        shift = self.motion.shift(frame, points.displacements)
        result: Array = (points.xy + shift) / self.settings.pixel_size
        return result

    def _padded_grid(self) -> PaddedGrid:
        s = self.settings
        size = np.array([s.width, s.height]) * s.pixel_size
        corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]]) * size
        farthest = float(np.abs(self.motion.track(corners)).max())
        margin = math.ceil((farthest + _DELOCALISATION) / s.pixel_size)
        return PaddedGrid.around(s.height, s.width, margin)

    def _height_of_plane(self, xy: Array) -> Array:
        s = self.settings
        centre = 0.5 * s.pixel_size * np.array([s.width, s.height])
        result: Array = (xy - centre) @ np.array(self.plane)
        return result

    def _place_particles(self, rng: np.random.Generator) -> Particles:
        """Discs without overlap, at least their radius from the border where the image is large enough."""
        s = self.settings
        radius = self.specimen.radius
        size = np.array([s.width, s.height]) * s.pixel_size
        border = np.minimum(radius, 0.25 * size)
        wanted = round(s.coverage * float(np.prod(size)) / (math.pi * radius**2))
        xy = np.empty((0, 2))
        for _ in range(400 * max(wanted, 1)):
            if len(xy) >= wanted:
                break
            candidate = rng.uniform(border, size - border)
            if not len(xy) or ((xy - candidate) ** 2).sum(axis=1).min() >= (2.0 * radius) ** 2:
                xy = np.concatenate([xy, candidate[None]])
        room = max(0.0, 0.5 * s.ice_thickness - radius)
        return Particles(xy, rng.uniform(-room, room, len(xy)), random_orientations(len(xy), rng))

    def _particle_points(self) -> tuple[Array, Array, Array]:
        """All particles' points: ``(n, 2)`` Å in the aligned average, strengths, heights with the plane's."""
        p = self.particles
        if not len(p.xy):
            return np.empty((0, 2)), np.empty(0), np.empty(0)
        turned = np.stack([self.specimen.points @ projection_matrix(*e).T for e in p.eulers])
        xy = p.xy[:, None, :] + turned[..., :2]
        # a particle is where its centre's plane is, not sheared along the plane
        height = (self._height_of_plane(p.xy) + p.height)[:, None] + turned[..., 2]
        weights = np.tile(self.specimen.strengths, len(p.xy))
        return xy.reshape(-1, 2), weights, height.reshape(-1)

    def _ice_points(self, rng: np.random.Generator) -> tuple[Array, Array]:
        s, g = self.settings, self.grid
        if s.ice_thickness == 0.0 or s.signal == 0.0:
            return np.empty((0, 2)), np.empty(0)
        area = np.array([g.nx, g.ny]) * s.pixel_size
        n = rng.poisson(_ICE_POINTS_PER_AREA * float(np.prod(area)))
        xy = rng.uniform(0.0, 1.0, (n, 2)) * area - g.margin * s.pixel_size
        tilted = s.ice_thickness / math.cos(math.radians(s.tilt))
        return xy, self._height_of_plane(xy) + rng.uniform(-0.5, 0.5, n) * tilted

    def _ordered(self, xy: Array, weights: Array | None, level: Array) -> _Points:
        slabs = len(self.slab_defocus)
        slab = np.clip(level.astype(np.int64), 0, slabs - 1)
        order = np.lexsort((xy[:, 1], slab))
        starts = np.searchsorted(slab[order], np.arange(slabs + 1))
        xy = xy[order]
        return _Points(xy, None if weights is None else weights[order], starts, self.motion.displacements(xy))

"""The exact image of a tilted specimen: points projected, splatted and filtered slab by slab in depth.

    image = M(0, tilt + level_y, -axis) Rx(level_x) p + shift + the image's centre
    defocus = that of the specimen's centre + hand x the third component

(docs/conventions.md).  The matrix is written out here once more: this module is what tests the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.constants
import scipy.fft
from numpy.typing import NDArray

from weft.simulation.imaging import (
    damage_amplitude,
    ice_amplitude,
    particle_amplitude,
    relativistic,
    transfer,
)
from weft.simulation.specimen import phantom
from weft.simulation.splatting import PaddedGrid, point_spectrum
from weft.simulation.tilt_scheme import Exposure
from weft.simulation.tilt_settings import TiltSimulationSettings, camera_settings
from weft.simulation.tilt_specimen import TiltSpecimen

__all__ = ["TiltScene", "tilt_matrix"]

Array = NDArray[Any]

# points of the ice in a pixel of the untilted image, and at most in an Å^2: with the transfer function's
# spread over hundreds of them their noise is Gaussian
_ICE_POINTS_PER_PIXEL, _ICE_POINTS_PER_AREA = 1.0, 0.1
_DELOCALISATION = 40.0  # Å of border beyond what the defocus displaces
# gold is dark more by what it scatters out of the image than by its phase
_GOLD_AMPLITUDE = 0.5
_GRANULE = 35.0  # Å: diameter of the small proteins
_RESIDUE_MASS = 110.0  # Da


def tilt_matrix(angle: float, axis: float, level_x: float, level_y: float) -> Array:
    """From the specimen to the image and the beam, ``(3, 3)``; degrees.

    The specimen is inclined about x, tilted about y so that +x goes up, and turned so that its y axis, the
    tilt axis, lies `axis` counter-clockwise from the image's y axis.
    """
    x, t, a = (math.radians(v) for v in (level_x, angle + level_y, axis))
    incline = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(x), -math.sin(x)], [0.0, math.sin(x), math.cos(x)]])
    tilt = np.array([[math.cos(t), 0.0, -math.sin(t)], [0.0, 1.0, 0.0], [math.sin(t), 0.0, math.cos(t)]])
    turn = np.array([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0], [0.0, 0.0, 1.0]])
    result: Array = turn @ tilt @ incline
    return result


class TiltScene:
    """A specimen that can be imaged at any of its exposures, from several threads at once.

    Parameters
    ----------
    settings : TiltSimulationSettings
    specimen : TiltSpecimen
    exposures : sequence of Exposure
    rng : numpy Generator
        For the ice.
    """

    def __init__(
        self,
        settings: TiltSimulationSettings,
        specimen: TiltSpecimen,
        exposures: Sequence[Exposure],
        rng: np.random.Generator,
    ) -> None:
        self.settings = settings
        self.specimen = specimen
        self.camera = camera_settings(settings)
        self.grid = self._padded_grid(exposures)
        self._ky, self._kx = self.grid.frequencies(settings.pixel_size)
        k = np.sqrt(self._ky**2 + self._kx**2)
        self._k = k
        self._matter_form = particle_amplitude(k, specimen.particle, self.camera)
        self._ice_form = self._granular_ice(k)
        self._gold_form = _sphere(k, settings.bead_diameter) * self._gold_strength()
        self._gold_form *= np.exp(-0.25 * settings.envelope * k * k)
        self._ice = self._ice_points(exposures, rng)

    def matrix(self, exposure: Exposure) -> Array:
        """From the specimen to the image of an exposure, ``(3, 3)``."""
        s = self.settings
        return tilt_matrix(exposure.angle, s.tilt_axis, s.level_x, s.level_y)

    def transmission(self, exposure: Exposure) -> float:
        """Fraction of the electrons that the ice lets through: exp(-thickness / (free path cos))."""
        path = self.settings.thickness / float(self.matrix(exposure)[2, 2])
        return math.exp(-path / self.settings.mean_free_path)

    def frames(self, exposure: Exposure) -> list[Array]:
        """Expected intensity of each frame, ``(height, width)`` float32, 1 without a specimen."""
        s = self.settings
        matter_xy, matter_z, strengths = self._seen(self.specimen.points, self.specimen.strengths, exposure)
        ice_xy, ice_z, _ = self._seen(self._ice, None, exposure)
        matter, still = self._slabs(exposure, matter_xy, matter_z, strengths, ice_xy, ice_z)
        still = still * self._ice_form + self._gold(exposure)
        matter = matter * self._matter_form
        scale = np.float32(2.0 / s.pixel_size**2)
        through = np.float32(self.transmission(exposure))
        images = []
        for frame, (dx, dy) in enumerate(exposure.frame_shifts):
            # the middle of the frame stands for all of it
            dose = exposure.dose_before + s.dose_per_tilt * (frame + 0.5) / s.frames
            total = matter * damage_amplitude(self._k, dose, self.camera) + still
            # a shift of every point is a phase ramp, exactly
            total *= _wave(self._ky, dy) * _wave(self._kx, dx)
            total[0, 0] = 0.0  # the mean is the illumination's
            image = scipy.fft.irfft2(total, s=(self.grid.ny, self.grid.nx))
            seen = np.ascontiguousarray(self.grid.crop(image))
            images.append(through * (np.float32(1.0) - scale * seen))
        return images

    def _slabs(
        self,
        exposure: Exposure,
        matter_xy: Array,
        matter_z: Array,
        strengths: Array,
        ice_xy: Array,
        ice_z: Array,
    ) -> tuple[Array, Array]:
        """Transforms of matter and of ice, each slab times its own transfer, without the form factors."""
        s = self.settings
        shape = (self.grid.ny, self.grid.nx // 2 + 1)
        totals = np.zeros(shape, np.complex64), np.zeros(shape, np.complex64)
        depths = np.concatenate([matter_z, ice_z])
        if not len(depths):
            return totals
        lowest, span = float(depths.min()), float(np.ptp(depths))
        count = max(1, math.ceil(span / s.slab_thickness))
        thickness = max(span / count, 1e-6)
        matter = _by_slab(matter_z, lowest, thickness, count)
        ice = _by_slab(ice_z, lowest, thickness, count)
        for slab in range(count):
            groups = ((matter_xy, strengths, matter[slab]), (ice_xy, None, ice[slab]))
            if not any(len(chosen) for _, _, chosen in groups):
                continue
            height = lowest + thickness * (slab + 0.5)
            function = transfer(self._ky, self._kx, exposure.defocus + s.hand * height, self.camera)
            for total, (xy, weights, chosen) in zip(totals, groups, strict=True):
                if len(chosen):
                    amount = None if weights is None else weights[chosen]
                    total += point_spectrum(xy[chosen], amount, self.grid) * function
        return totals

    def _gold(self, exposure: Exposure) -> Array:
        """The beads, each at its own defocus; they are few, so their waves are summed directly."""
        total = np.zeros((self.grid.ny, self.grid.nx // 2 + 1), np.complex64)
        gold = self.camera.model_copy(update={"amplitude": _GOLD_AMPLITUDE})
        xy, depth, _ = self._seen(self.specimen.beads, None, exposure)
        for (x, y), z in zip((xy + self.grid.margin) * self.settings.pixel_size, depth, strict=True):
            function = transfer(self._ky, self._kx, exposure.defocus + self.settings.hand * float(z), gold)
            total += _wave(self._ky, y) * _wave(self._kx, x) * function
        total[self.grid.ny // 2] = 0.0
        total[:, -1] = 0.0
        result: Array = total * self._gold_form
        return result

    def _seen(self, points: Array, weights: Array | None, exposure: Exposure) -> tuple[Array, Array, Array]:
        """Places in px, heights in Å and weights of the points within the padded image."""
        s, g = self.settings, self.grid
        turned = points @ self.matrix(exposure).T
        xy = (turned[:, :2] + exposure.shift) / s.pixel_size + 0.5 * np.array([s.width, s.height])
        lowest, beyond = -float(g.margin), np.array([g.nx, g.ny]) - float(g.margin)
        inside = ((xy >= lowest) & (xy < beyond)).all(axis=1)
        kept = np.empty(0, np.float32) if weights is None else weights[inside]
        return xy[inside], turned[inside, 2], kept

    def _padded_grid(self, exposures: Sequence[Exposure]) -> PaddedGrid:
        s = self.settings
        wavelength, _ = relativistic(s.voltage)
        nyquist = 0.5 / s.pixel_size
        displaced = wavelength * max(abs(e.defocus) for e in exposures) * nyquist
        moved = max(float(np.abs(e.frame_shifts).max()) for e in exposures)
        border = _DELOCALISATION + displaced + moved + 0.5 * s.bead_diameter
        margin = math.ceil(border / s.pixel_size)
        return PaddedGrid.around(s.height, s.width, margin)

    def _ice_points(self, exposures: Sequence[Exposure], rng: np.random.Generator) -> Array:
        """Random points in all of the ice that any exposure sees, ``(n, 3)`` Å."""
        s, g = self.settings, self.grid
        if s.signal == 0.0:
            return np.empty((0, 3))
        u = (np.array([0.0, g.nx]) - g.margin - 0.5 * s.width) * s.pixel_size
        v = (np.array([0.0, g.ny]) - g.margin - 0.5 * s.height) * s.pixel_size
        corners = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        reached = []
        for exposure in exposures:
            matrix, places = self.matrix(exposure), corners - exposure.shift
            for surface in (-0.5 * s.thickness, 0.5 * s.thickness):
                # along the beam from the image to the surface
                w = (surface - places @ matrix[:2, 2]) / matrix[2, 2]
                reached.append((np.column_stack([places, w]) @ matrix)[:, :2])
        low, high = np.min(np.concatenate(reached), axis=0), np.max(np.concatenate(reached), axis=0)
        number = rng.poisson(float(np.prod(high - low)) * self._ice_density() * s.thickness)
        size = np.array([*(high - low), s.thickness])
        points: Array = rng.uniform(0.0, 1.0, (number, 3)) * size
        points += np.array([*low, -0.5 * s.thickness])
        return points

    def _ice_density(self) -> float:
        """Points in an Å^3."""
        per_area = min(_ICE_POINTS_PER_PIXEL / self.settings.pixel_size**2, _ICE_POINTS_PER_AREA)
        return per_area / self.settings.thickness

    def _granular_ice(self, k: Array) -> Array:
        """Phase (radian Å^2) of one of the ice's points: water's and the small proteins' noise together."""
        s = self.settings
        water = ice_amplitude(k, self._ice_density() * s.thickness, s.thickness, self.camera)
        protein = phantom("globule")
        residues = math.pi / 6.0 * _GRANULE**3 / protein.volume
        # mg/ml are kg/m^3; one Da is in kg, and 1 m^3 is 1e30 Å^3
        mass = residues * _RESIDUE_MASS * scipy.constants.atomic_mass
        number = s.crowding / mass * 1e-30
        one = particle_amplitude(k, protein, self.camera) * float(protein.strengths[0]) * residues
        granules = _sphere(k, _GRANULE) * one * math.sqrt(number / self._ice_density())
        result: Array = np.sqrt(water**2 + granules**2).astype(np.float32)
        return result

    def _gold_strength(self) -> float:
        """Phase x Å^2 of a bead whose middle takes away `bead_contrast` where the transfer is flat."""
        s = self.settings
        middle = s.bead_contrast / (2.0 * _GOLD_AMPLITUDE)
        # a sphere's projection is as high in the middle as its volume over 2/3 of its cross-section
        return middle * math.pi / 6.0 * s.bead_diameter**2


def _sphere(k: Array, diameter: float) -> Array:
    """Transform of a uniform sphere, 1 at zero frequency; float32."""
    u = np.maximum(math.pi * diameter * k, 1e-2)
    result: Array = (3.0 * (np.sin(u) - u * np.cos(u)) / u**3).astype(np.float32)
    return result


def _wave(k: Array, shift: float) -> Array:
    result: Array = np.exp(-2j * math.pi * shift * k).astype(np.complex64)
    return result


def _by_slab(z: Array, lowest: float, thickness: float, count: int) -> list[Array]:
    """Indices of the points in each slab."""
    slab = np.clip(((z - lowest) / thickness).astype(np.int16), 0, count - 1)
    order = np.argsort(slab, kind="stable")
    return np.split(order, np.searchsorted(slab[order], np.arange(1, count)))

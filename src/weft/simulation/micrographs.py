"""Whole micrographs in about a second, with the exact answer: what a picker is taught and tested with.

Where :mod:`weft.simulation.movie` moves every point through every frame, this makes the aligned average at
once: the particles' points are projected and imaged slab by slab, ice and denatured protein are noise of the
right spectrum, contaminants pass as a wave through the microscope (they are no weak objects).  Shot noise is
left out and drawn by :func:`counts`, so that one micrograph serves at many exposures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from weft.simulation.arrangement import crowded_places, particle_places
from weft.simulation.contamination import contaminate
from weft.simulation.contamination_layer import ICE, Contamination
from weft.simulation.imaging import (
    damage_amplitude,
    particle_amplitude,
    transfer,
)
from weft.simulation.micrograph_layers import (
    Radial,
    contaminant_intensity,
    granular_spectrum,
    ice_thickness,
    imaging_optics,
    smudges,
)
from weft.simulation.micrograph_settings import MicrographSimulationSettings, random_settings
from weft.simulation.phantoms import coarsened, fragment, mean_diameter, random_structure
from weft.simulation.projection import projections_spectrum
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.specimen import Specimen, projection_matrix, random_orientations
from weft.simulation.splatting import PaddedGrid, point_spectrum

__all__ = [
    "MicrographSimulationSettings",
    "SimulatedMicrograph",
    "counts",
    "downsampled",
    "random_settings",
    "simulate_micrograph",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class SimulatedMicrograph:
    """A micrograph without shot noise, and what is true of it.

    Attributes
    ----------
    signal : ``(y, x)`` float32
        Expected intensity relative to the mean of clean ice, minus 1, of everything.
    particles : ``(y, x)`` float32
        The same of the intact particles alone.
    xy : ``(n, 2)`` array
        Centres of the intact particles that are to be picked: at least half a diameter from every border and
        not within an artefact; Å, 0 is the centre of the first pixel.
    eulers : ``(n, 3)`` array
        Their rot, tilt, psi, degrees.
    height : ``(n,)`` array
        Å along the beam; greater is more underfocus.
    crowded : ``(n,)`` bool
        Another particle's centre is closer than 0.7 diameters: as good as one on top of the other.
    cut_xy, hidden_xy : ``(m, 2)`` arrays
        Particles that the border cuts, and those inside of artefacts: neither right nor wrong to pick.
    diameter : float
        Mean caliper diameter, Å: extent along a direction, averaged over all directions.
    radius : float
        From the centre to the outermost point, Å.
    artefact : ``(y, x)`` bool
        Where a contaminant is visible.
    kinds : dict
        The mask of each kind of contaminant.
    defocus : float
        Mean underfocus at the specimen's mid-plane, Å.
    dose : float
        e/Å^2 that damaged the specimen.
    pixel_size : float
        Å.
    settings : MicrographSimulationSettings
    """

    signal: Array
    particles: Array
    xy: Array
    eulers: Array
    height: Array
    crowded: Array
    cut_xy: Array
    hidden_xy: Array
    diameter: float
    radius: float
    artefact: Array
    kinds: dict[str, Array]
    defocus: float
    dose: float
    pixel_size: float
    settings: MicrographSimulationSettings


def simulate_micrograph(
    specimen: Specimen, settings: MicrographSimulationSettings, rng: np.random.Generator
) -> SimulatedMicrograph:
    """The expected image of a specimen in ice, and where its particles are.

    Parameters
    ----------
    specimen : Specimen
        Of :func:`~weft.simulation.phantoms.random_structure` or
        :func:`~weft.simulation.specimen.load_specimen`.
    settings : MicrographSimulationSettings
    rng : numpy Generator

    Returns
    -------
    SimulatedMicrograph
    """
    s, optics = settings, imaging_optics(settings)
    diameter, radius = mean_diameter(specimen), specimen.radius
    margin = math.ceil(min(max(radius, 120.0), 250.0) / s.pixel_size)
    grid = PaddedGrid.around(s.height, s.width, margin)
    size = np.array([grid.nx, grid.ny]) * s.pixel_size
    origin = margin * s.pixel_size  # Å from the padded field's first pixel to the image's

    thickness = ice_thickness(grid, s, rng)
    dirt = contaminate((grid.ny, grid.nx), s.pixel_size, s.contaminants(), s.ice_thickness, rng)
    xy = particle_places(diameter, size, s, rng)
    xy = xy[_at(dirt.ice, xy, s.pixel_size) > 0.0]
    places = xy - origin
    eulers = _orientations(len(xy), s, rng)
    room = np.maximum(0.0, 0.5 * _at(thickness, xy, s.pixel_size) - radius)
    height = rng.uniform(-1.0, 1.0, len(xy)) * room

    form = Radial(grid, s.pixel_size)
    protein = form(lambda k: particle_amplitude(k, specimen, optics) * _mean_damage(k, s.dose, optics))
    model = coarsened(specimen, 0.75 * s.pixel_size)
    scattered = np.zeros((grid.ny, grid.nx // 2 + 1), np.complex64)
    slabs = max(1, math.ceil(float(np.ptp(height)) / s.slab_thickness)) if len(height) else 0
    ky, kx = grid.frequencies(s.pixel_size)
    ky, kx = ky.astype(np.float32), kx.astype(np.float32)
    for slab in range(slabs):
        edges = height.min() + np.ptp(height) / slabs * np.array([slab, slab + 1])
        chosen = (height >= edges[0]) & ((height < edges[1]) | (slab == slabs - 1))
        if not chosen.any():
            continue
        spectrum = projections_spectrum(model, places[chosen], eulers[chosen], grid, s.pixel_size)
        spectrum *= transfer(ky, kx, s.defocus * 1e4 + float(height[chosen].mean()), optics)
        scattered += spectrum
    particles = _image(scattered * protein, grid, s.pixel_size)

    others = _other_points(specimen, model, diameter, size, s, dirt, rng)
    at_middle = transfer(ky, kx, s.defocus * 1e4, optics)
    rest = granular_spectrum(form, optics, s, thickness, dirt, rng)
    if others is not None:
        points, weights = others
        extra = point_spectrum((points - origin) / s.pixel_size, weights, grid)
        rest = rest + extra * protein
    contrast = particles + _image(rest * at_middle, grid, s.pixel_size)

    depth = (thickness - np.float32(s.ice_thickness)) / np.float32(ICE.free_path)
    depth += smudges(depth.shape, s, rng) * dirt.ice
    intensity = np.exp(-depth) * (1.0 + contrast)
    if dirt.kinds:
        intensity *= contaminant_intensity(dirt, s, grid) * dirt.shadow
    intensity = np.maximum(intensity, np.float32(0.02))

    inner = places / s.pixel_size
    limit = np.array([s.width, s.height]) - 1.0
    border = np.minimum(inner, limit - inner).min(axis=1) * s.pixel_size if len(xy) else np.empty(0)
    inside = border >= 0.5 * diameter
    hidden = _at(dirt.mask.astype(np.float32), xy, s.pixel_size) > 0.0
    good = inside & ~hidden
    cut = ~inside & (border > -0.5 * diameter)
    return SimulatedMicrograph(
        signal=np.ascontiguousarray(grid.crop(intensity) - np.float32(1.0)),
        particles=np.ascontiguousarray(grid.crop(particles)),
        xy=places[good],
        eulers=eulers[good],
        height=height[good],
        crowded=crowded_places(places, 0.7 * diameter)[good],
        cut_xy=places[cut],
        hidden_xy=places[inside & hidden],
        diameter=diameter,
        radius=radius,
        artefact=np.ascontiguousarray(grid.crop(dirt.mask)),
        kinds={kind: np.ascontiguousarray(grid.crop(mask)) for kind, mask in dirt.kinds.items()},
        defocus=s.defocus * 1e4,
        dose=s.dose,
        pixel_size=s.pixel_size,
        settings=s,
    )


def counts(
    simulated: SimulatedMicrograph,
    dose: float | None = None,
    rng: np.random.Generator | None = None,
    *,
    efficiency: float = 1.0,
    poisson: bool = False,
) -> Array:
    """What a camera records, relative to the mean exposure of clean ice: 1 + signal + shot noise.

    Parameters
    ----------
    simulated : SimulatedMicrograph
    dose : float, optional
        e/Å^2 that are counted; by default that of the simulation.
    rng : numpy Generator, optional
    efficiency : float
        Detective quantum efficiency: the noise is that of so much of the dose.
    poisson : bool
        Draw counts; otherwise noise is normal with the same variance, which is as good above some 10 counts a
        pixel, and quicker.

    Returns
    -------
    ``(y, x)`` float32
    """
    rng = np.random.default_rng() if rng is None else rng
    exposure = (simulated.dose if dose is None else dose) * simulated.pixel_size**2 * efficiency
    expected = np.float32(1.0) + simulated.signal
    if poisson:
        drawn: Array = (rng.poisson(expected * exposure) / exposure).astype(np.float32)
        return drawn
    noise = rng.standard_normal(expected.shape, dtype=np.float32)
    noise *= np.sqrt(expected * np.float32(1.0 / exposure))
    noise += expected
    return noise


def downsampled(image: Array, pixel_size: float, to: float = 8.0) -> Array:
    """An image at a coarser pixel size, by cropping its Fourier transform.

    Each axis of n px becomes the even number nearest to n x `pixel_size` / `to`, so the true pixel is
    n x `pixel_size` / that number, for each axis; the centre of the first pixel stays where it is.

    Parameters
    ----------
    image : ``(y, x)`` array
    pixel_size, to : float
        Å, before and about after.

    Returns
    -------
    ``(y', x')`` float32
        Grey values are kept. The image as it is where it would not get smaller.
    """
    ny, nx = image.shape
    my, mx = (max(2, 2 * round(0.5 * n * pixel_size / to)) for n in image.shape)
    if my >= ny and mx >= nx:
        return np.asarray(image, np.float32)
    my, mx = min(my, ny - ny % 2), min(mx, nx - nx % 2)
    spectrum = scipy.fft.rfft(np.asarray(image, np.float32), axis=1)[:, : mx // 2 + 1]
    spectrum = scipy.fft.fft(spectrum, axis=0)
    spectrum = np.concatenate([spectrum[: my // 2 + 1], spectrum[ny - my // 2 + 1 :]])
    if my < ny:
        spectrum[my // 2] = 0.0
    if mx < nx:
        spectrum[:, -1] = 0.0
    result: Array = scipy.fft.irfft2(spectrum, s=(my, mx)) * np.float32(my * mx / (ny * nx))
    return result


def _mean_damage(k: Array, dose: float, optics: MovieSimulationSettings) -> Array:
    """What is left of the amplitude in the plain sum of an exposure."""
    steps = (np.arange(12) + 0.5) / 12.0
    result: Array = np.mean([damage_amplitude(k, dose * part, optics) for part in steps], axis=0)
    return result


def _image(spectrum: Array, grid: PaddedGrid, pixel_size: float) -> Array:
    """Contrast of scattered waves whose transfer is in: minus twice their real part."""
    spectrum[0, 0] = 0.0
    image: Array = scipy.fft.irfft2(spectrum, s=(grid.ny, grid.nx))
    image *= np.float32(-2.0 / pixel_size**2)
    return image


def _at(field: Array, xy: Array, pixel_size: float) -> Array:
    """Values of a field at places in Å from its first pixel; those outside take the border's."""
    index = np.round(xy / pixel_size).astype(np.int64)
    result: Array = field[
        np.clip(index[:, 1], 0, field.shape[0] - 1), np.clip(index[:, 0], 0, field.shape[1] - 1)
    ]
    return result


def _orientations(n: int, s: MicrographSimulationSettings, rng: np.random.Generator) -> Array:
    """Random, with a part near to one view."""
    eulers = random_orientations(n, rng)
    preferred = rng.random(n) < s.preferred
    if preferred.any():
        view = random_orientations(1, rng)[0]
        eulers[preferred, :2] = view[:2] + rng.normal(scale=8.0, size=(int(preferred.sum()), 2))
    return eulers


def _contrast(specimen: Specimen) -> float:
    """Part of the strength that remains against ice."""
    return 1.0 - ICE.potential * specimen.volume / float(specimen.strengths.mean())


def _other_points(
    specimen: Specimen,
    model: Specimen,
    diameter: float,
    size: Array,
    s: MicrographSimulationSettings,
    dirt: Contamination,
    rng: np.random.Generator,
) -> tuple[Array, Array] | None:
    """Broken particles and small proteins: places of their points in the padded field, Å, and strengths."""
    area = float(np.prod(size))
    xy: list[Array] = []
    weights: list[Array] = []

    def put(what: Specimen, n: int, factor: float) -> None:
        where = rng.uniform(0.0, 1.0, (n, 2)) * size
        for place in where[_at(dirt.ice, where, s.pixel_size) > 0.0]:
            turn = projection_matrix(*random_orientations(1, rng)[0])[:2]
            xy.append(what.points @ turn.T + place)
            weights.append(what.strengths * factor)

    broken = rng.poisson(s.broken * area / (0.25 * math.pi * diameter**2))
    if broken:
        kinds = [fragment(model, rng.uniform(0.15, 0.6), rng) for _ in range(min(12, broken))]
        for i, what in enumerate(kinds):
            put(what, broken // len(kinds) + (i < broken % len(kinds)), 1.0)
    if s.small_proteins > 0.0:
        # nothing that could be taken for the particle
        mass = min(rng.uniform(15e3, 60e3), 0.3 * len(specimen.points) * specimen.volume * 0.81)
        small = random_structure(rng, "globule", mass=mass)
        n = rng.poisson(s.small_proteins * area / (0.25 * math.pi * mean_diameter(small) ** 2))
        put(small, min(n, 20_000), _contrast(small) / _contrast(specimen))
    if not xy:
        return None
    return np.concatenate(xy), np.concatenate(weights)

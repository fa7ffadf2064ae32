"""Image series of a molecule of point scatterers, exact sums of plane waves: nothing is interpolated."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from weft.particles.image_series import ImageSeries
from weft.physics.geometry import tilt_matrices

#: Softness of every point: exp(−B k²/4).
B_FACTOR = 100.0


def molecule(count: int = 60, radius: float = 60.0, seed: int = 1) -> np.ndarray:
    """(count, 4): x, y, z (Å) within a ball, and weight; without symmetry, off-centre lobes."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    xyz = directions * radius * rng.random((count, 1)) ** (1 / 3)
    return np.column_stack([xyz, rng.uniform(0.5, 1.5, count)])


def _waves(coordinates: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(..., points, k)."""
    angle = -2.0 * math.pi * coordinates[..., None] * k
    return torch.polar(torch.ones_like(angle), angle)


def exact_map(points: np.ndarray, size: int, pixel_size: float) -> torch.Tensor:
    """(n, n, n) float32: the points, band-limited; an image is its sum along the beam."""
    p = torch.from_numpy(points)
    k = torch.fft.fftfreq(size, pixel_size, dtype=torch.float64)
    x, y, z = (_waves(p[:, axis] + size // 2 * pixel_size, k) for axis in range(3))
    spectrum = torch.einsum("nz,ny,nx->zyx", z * p[:, 3:], y, x)
    k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    spectrum *= torch.exp(-0.25 * B_FACTOR * k2) * (k2.sqrt() < 0.5 / pixel_size)
    return torch.fft.ifftn(spectrum).real.float()


def simulate(
    points: np.ndarray,
    particles: int,
    *,
    tilts: int = 11,
    size: int = 48,
    pixel_size: float = 5.0,
    noise: float = 0.0,
    premultiplied: bool = False,
    damage: bool = False,
    seed: int = 2,
) -> tuple[ImageSeries, np.ndarray]:
    """A series with shifts within ± half a pixel, and the particles' Euler angles (n, 3).

    `noise` is its standard deviation over that of the images' signal.
    """
    rng = np.random.default_rng(seed)
    angles = torch.linspace(-50.0, 50.0, tilts, dtype=torch.float64)
    zero = torch.tensor(0.0, dtype=torch.float64)
    tilted = tilt_matrices(angles, torch.tensor(85.3, dtype=torch.float64), zero + 2.0, zero - 4.0)
    poses = Rotation.random(particles, random_state=seed)
    euler = -poses.as_euler("zyz", degrees=True)
    matrices = to_matrix(torch.from_numpy(euler))
    rotation = tilted[None] @ matrices[:, None]
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, (particles, tilts, 2))) * pixel_size
    defocus = torch.from_numpy(rng.uniform(20000.0, 35000.0, (particles, 1)) + np.zeros((1, tilts)))
    dose = torch.argsort(torch.argsort(angles.abs())).double().expand(particles, tilts) * 3.0 + 3.0
    astigmatism, angle = torch.full_like(defocus, 600.0), torch.full_like(defocus, 30.0)

    p = torch.from_numpy(points)
    ky = torch.fft.fftfreq(size, pixel_size, dtype=torch.float64)
    kx = torch.fft.rfftfreq(size, pixel_size, dtype=torch.float64)
    places = rotation[:, :, :2] @ p[:, :3].T + shift[..., None] + size // 2 * pixel_size
    k2 = ky[:, None] ** 2 + kx**2
    azimuth = torch.atan2(ky[:, None], kx[None])
    envelope = torch.exp(-0.25 * B_FACTOR * k2) * (k2.sqrt() < 0.5 / pixel_size)
    wavelength = 0.0196875  # Å, 300 kV
    images = torch.empty(particles, tilts, size, size)
    ctfs = torch.empty(particles, tilts, size, size // 2 + 1, dtype=torch.float64)
    for i in range(particles):
        x, y = _waves(places[i, :, 0], kx), _waves(places[i, :, 1], ky)
        spectrum = torch.einsum("tny,tnx->tyx", y * p[:, 3:], x) * envelope
        local = defocus[i, :, None, None] + 300.0 * torch.cos(2.0 * (azimuth - math.radians(30.0)))
        chi = math.pi * wavelength * k2 * local - 0.5 * math.pi * 2.7e7 * wavelength**3 * k2 * k2
        ctfs[i] = torch.sin(chi + math.asin(0.07))
        spectrum = spectrum * ctfs[i]
        if damage:
            spectrum = spectrum * torch.exp(-dose[i, :, None, None] * k2)
        images[i] = torch.fft.irfft2(spectrum, s=(size, size)).float()
    if noise > 0.0:
        images += (
            noise * images.std() * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        )
    if premultiplied:
        images = torch.fft.irfft2(torch.fft.rfft2(images.double()) * ctfs, s=(size, size)).float()
    nil = torch.zeros(particles, tilts)
    series = ImageSeries(
        images=images,
        shift=shift.float(),
        rotation=rotation.float(),
        defocus=defocus.float(),
        astigmatism=astigmatism.float(),
        angle=angle.float(),
        phase_shift=nil,
        dose=dose.float(),
        weight=torch.ones(particles, tilts),
        group=torch.zeros(particles, dtype=torch.int64),
        half=torch.arange(particles) % 2,
        pixel_size=pixel_size,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        premultiplied=premultiplied,
    )
    return series, euler


def to_matrix(euler: torch.Tensor) -> torch.Tensor:
    """M(rot, tilt, psi) by SciPy: about z, y and z of the map by the negative angles."""
    return torch.from_numpy(Rotation.from_euler("zyz", -euler.numpy(), degrees=True).as_matrix())

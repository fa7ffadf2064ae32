"""Exact tilt images and volumes of points, and measures of agreement: no interpolation, nothing of Weft's but
the geometry and the constants of the microscope."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics


def tilt_images(
    xyz: NDArray[np.float64],
    geometry: TiltGeometry,
    shape: tuple[int, int],
    pixel_size: float,
    *,
    sigma: float,
    optics: Optics | None = None,
    distortion: NDArray[np.float64] | None = None,
) -> torch.Tensor:
    """Dark Gaussian points on 100 counts: (tilts, y, x), summed in Fourier space, each at its own defocus."""
    found = geometry.project(torch.as_tensor(xyz)).numpy()
    middle = 0.5 * geometry.image_size.numpy()
    ky, kx = np.fft.fftfreq(shape[0], pixel_size)[:, None], np.fft.rfftfreq(shape[1], pixel_size)[None]
    out = np.empty((len(geometry), *shape), np.float32)
    warp = np.eye(2) if distortion is None else distortion
    # the undistorted frequency that is seen at (kx, ky)
    tx, ty = warp[0, 0] * kx + warp[1, 0] * ky, warp[0, 1] * kx + warp[1, 1] * ky
    k2 = tx**2 + ty**2
    envelope = np.exp(-2.0 * np.pi**2 * sigma**2 * k2)
    for t, places in enumerate(found):
        spectrum = np.zeros(envelope.shape, np.complex128)
        for x, y, z in places:
            u, v = warp @ (np.array([x, y]) - middle) + middle
            wave = np.exp(-2j * np.pi * ky * v) * np.exp(-2j * np.pi * kx * u)
            if optics is not None:
                wl = optics.wavelength
                chi = np.pi * wl * k2 * (z - 0.5 * optics.cs * 1e7 * wl**2 * k2)
                wave = wave * np.sin(chi + np.arcsin(optics.amplitude))
            spectrum += wave
        out[t] = 100.0 - np.fft.irfft2(spectrum * envelope, shape) * 100.0
    return torch.from_numpy(out)


def density(
    xyz: NDArray[np.float64], shape: tuple[int, int, int], *, sigma: float = 0.0
) -> NDArray[np.float32]:
    """Points (x, y, z in voxels) as a volume (z, y, x) band-limited to the sphere of Nyquist."""
    kz, ky, kx = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    ez, ey, ex = (
        np.exp(-2j * np.pi * k[:, None] * xyz[None, :, axis]).astype(np.complex64)
        for k, axis in ((kz, 2), (ky, 1), (kx, 0))
    )
    spectrum = np.einsum("zj,yj,xj->zyx", ez, ey, ex, optimize=["einsum_path", (0, 1), (0, 1)])
    k2 = kz[:, None, None] ** 2 + ky[:, None] ** 2 + kx**2
    spectrum *= np.exp(-2.0 * np.pi**2 * sigma**2 * k2) * (k2 <= 0.25)
    return np.fft.irfftn(spectrum, shape, axes=(0, 1, 2)).astype(np.float32)


def locate(volume: NDArray[np.float32], near: NDArray[np.float64]) -> NDArray[np.float64]:
    """x, y, z (voxels) of the peak next to a place: a parabola through the logarithm."""
    at = np.round(near[::-1]).astype(int)
    window = volume[tuple(slice(i - 2, i + 3) for i in at)]
    at = at + np.array(np.unravel_index(window.argmax(), window.shape)) - 2
    out = at.astype(float)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        low, mid, high = (np.log(max(volume[tuple(at + s * step)], 1e-9)) for s in (-1, 0, 1))
        out[axis] += 0.5 * (low - high) / (low - 2 * mid + high)
    return out[::-1]


def shells(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Number of the shell of each coefficient of an rfft of a cube."""
    n = shape[0]
    k = np.fft.fftfreq(n) * n
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(n // 2 + 1) ** 2).round().astype(int)


@dataclass
class Agreement:
    """Sums over boxes: mean correlation, and the Fourier shell correlation of all boxes together."""

    box: int

    def __post_init__(self) -> None:
        n = self.box // 2 + 1
        self.sums = np.zeros((3, n))
        self.correlations: list[float] = []
        grid = np.arange(self.box) - self.box // 2
        radius = np.sqrt(grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2)
        self.mask = np.clip((self.box / 2 - radius) / 2.5, 0.0, 1.0)

    def add(self, found: NDArray[Any], true: NDArray[Any]) -> None:
        share = self.mask / self.mask.sum()
        a, b = ((v - (v * share).sum()) * self.mask for v in (found, true))
        self.correlations.append(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
        fa, fb = np.fft.rfftn(a), np.fft.rfftn(b)
        ring = shells(a.shape).ravel()
        twice = np.full(fa.shape, 2.0)
        twice[..., 0] = 1.0
        for row, product in enumerate(((fa * fb.conj()).real, abs(fa) ** 2, abs(fb) ** 2)):
            self.sums[row] += np.bincount(ring, (product * twice).ravel(), ring.max() + 1)[
                : self.box // 2 + 1
            ]

    @property
    def correlation(self) -> float:
        return float(np.mean(self.correlations))

    @property
    def fsc(self) -> NDArray[np.float64]:
        return np.asarray(self.sums[0] / np.sqrt(self.sums[1] * self.sums[2] + 1e-30))

    def at(self, resolution: float, pixel_size: float) -> float:
        """The FSC at a resolution (Å)."""
        return float(np.interp(self.box * pixel_size / resolution, np.arange(len(self.fsc)), self.fsc))


@dataclass
class Specimen:
    """The reference series with beads: images, exact geometry, and its particles."""

    images: torch.Tensor
    geometry: TiltGeometry
    dose: list[float]
    truth: dict[str, Any]
    molecule: NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path, thickness: float = 1200.0) -> Specimen:
        from weft.movies.source import open_movie

        truth = json.loads((folder / "TS_A.json").read_text())
        images = []
        for tilt in truth["tilts"]:
            with open_movie(folder / "frames" / tilt["file"]) as movie:
                images.append(torch.from_numpy(sum(np.asarray(f, np.float32) for f in movie.frames())))
        ny, nx = (n * truth["optics"]["pixel"] for n in truth["shape"])
        geometry = TiltGeometry.of(
            [t["tilt"] for t in truth["tilts"]],
            axis=truth["axis"],
            shift=[t["shift"] for t in truth["tilts"]],
            defocus=[t["defocus"] for t in truth["tilts"]],
            volume_size=(nx, ny, thickness),
            image_size=(nx, ny),
            level=tuple(truth["level"]),
            hand=truth["hand"],
        )
        dose = [t["dose_before"] + 1.5 for t in truth["tilts"]]
        return cls(torch.stack(images), geometry, dose, truth, np.load(folder / "TS_A_mol.npy"))

    def agreement(self, volume: NDArray[np.float32], pixel_size: float, size: float = 260.0) -> Agreement:
        """With the true density in boxes of `size` Å around all particles, a fifth of their points."""
        box = int(size / pixel_size) // 2 * 2
        out = Agreement(box)
        middle = 0.5 * self.geometry.volume_size.numpy()
        for place, (rot, tilt, psi) in zip(
            self.truth["particles_xyz_centered"], np.deg2rad(self.truth["eulers"]), strict=True
        ):
            centre = (np.array(place) + middle) / pixel_size
            start = np.round(centre).astype(int) - box // 2
            if (start < 0).any() or (start[::-1] + box > volume.shape).any():
                continue
            turned = self.molecule[::5, :3] @ _zyz(rot, tilt, psi)
            true = density(turned / pixel_size + centre - start, (box, box, box))
            z, y, x = (slice(s, s + box) for s in start[::-1])
            out.add(volume[z, y, x], true)
        return out


def _zyz(rot: float, tilt: float, psi: float) -> NDArray[np.float64]:
    """RELION's matrix, from the map to the projection."""

    def z(a: float) -> NDArray[np.float64]:
        return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])

    y = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
    return z(psi) @ y @ z(rot)

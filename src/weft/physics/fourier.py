"""Fourier transforms, and the one place that chooses who computes them.

On a CPU SciPy's pocketfft is faster than torch's own transform and does not spin idle threads; on a
GPU torch calls cuFFT. Sizes with large prime factors cost two to three times as much, so callers that
can choose a size ask :func:`fast_size`.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch

__all__ = [
    "cosine_low_pass",
    "crop_half",
    "fast_size",
    "frequencies",
    "irfft2",
    "irfft3",
    "radius_3d",
    "random_phases",
    "resize",
    "rfft2",
    "rfft3",
    "shells_3d",
    "shift_phases",
]


def fast_size(n: int, *, even: bool = True) -> int:
    """The smallest size ≥ n whose transform is fast (prime factors up to 7), even by default."""
    size = n
    while True:
        rest = size
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1 and not (even and size % 2):
            return size
        size += 1


def rfft2(x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Half-plane transform of real images ``(..., y, x)``; `size` zero-pads or crops first."""
    if x.device.type == "cpu":
        out = scipy.fft.rfft2(x.numpy(), s=size, workers=torch.get_num_threads())
        return torch.from_numpy(np.asarray(out))
    transformed: torch.Tensor = torch.fft.rfft2(x, s=size)
    return transformed


def irfft2(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Inverse of :func:`rfft2`; `size` is that of the real image."""
    if x.device.type == "cpu":
        out = scipy.fft.irfft2(x.numpy(), s=size, workers=torch.get_num_threads())
        return torch.from_numpy(np.asarray(out))
    transformed: torch.Tensor = torch.fft.irfft2(x, s=size)
    return transformed


def rfft3(x: torch.Tensor, size: tuple[int, int, int] | None = None) -> torch.Tensor:
    """Half-space transform of real volumes ``(..., z, y, x)``; `size` zero-pads or crops first."""
    if x.device.type == "cpu":
        out = scipy.fft.rfftn(x.numpy(), s=size, axes=(-3, -2, -1), workers=torch.get_num_threads())
        return torch.from_numpy(np.asarray(out))
    transformed: torch.Tensor = torch.fft.rfftn(x, s=size, dim=(-3, -2, -1))
    return transformed


def irfft3(x: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Inverse of :func:`rfft3`; `size` is that of the real volume."""
    if x.device.type == "cpu":
        out = scipy.fft.irfftn(x.numpy(), s=size, axes=(-3, -2, -1), workers=torch.get_num_threads())
        return torch.from_numpy(np.asarray(out))
    transformed: torch.Tensor = torch.fft.irfftn(x, s=size, dim=(-3, -2, -1))
    return transformed


def shells_3d(size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(size, size, size//2+1) int64: nearest whole radius of the coefficients of :func:`rfft3`."""
    k = torch.fft.fftfreq(size, 1.0 / size, device=device)
    x = torch.arange(size // 2 + 1, device=device)
    return torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x * x).round().long()


def frequencies(
    size: tuple[int, int], pixel_size: float = 1.0, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """ky as a column ``(y, 1)`` and kx as a row ``(1, x//2+1)`` of the half-plane, 1/Å (or 1/px)."""
    ky = torch.fft.fftfreq(size[0], d=pixel_size, device=device)[:, None]
    kx = torch.fft.rfftfreq(size[1], d=pixel_size, device=device)[None, :]
    return ky, kx


def radius_3d(
    shape: tuple[int, int, int], voxel_size: float = 1.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """|k| of the coefficients of :func:`rfft3`, 1/Å (or 1/voxel): (z, y, x//2+1) float32."""
    z = torch.fft.fftfreq(shape[0], voxel_size, device=device)[:, None, None]
    y = torch.fft.fftfreq(shape[1], voxel_size, device=device)[:, None]
    x = torch.fft.rfftfreq(shape[2], voxel_size, device=device)
    k: torch.Tensor = (z * z + y * y + x * x).sqrt()
    return k


def cosine_low_pass(k: torch.Tensor, resolution: float, edge: float) -> torch.Tensor:
    """A raised cosine from 1 to 0: 1/2 at the frequency 1 / `resolution`, over ± `edge` as a part of it."""
    along = ((k * resolution - 1.0) / edge).clamp(-1.0, 1.0)
    return 0.5 - 0.5 * torch.sin(0.5 * torch.pi * along)


def random_phases(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Coefficients of modulus 1 for :func:`irfft3`: those of noise, so that the result is a real volume."""
    noise = rfft3(torch.randn(shape, generator=generator))
    return noise / noise.abs().clamp(min=1e-12)


def crop_half(spectrum: torch.Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> torch.Tensor:
    """Crop or zero-pad a half-plane ``(..., y, x//2+1)`` of images of `size` to that of `new_size`.

    The values are left as they are: divide by the ratio of areas to keep grey values. Where the new
    size is even and smaller, its Nyquist row and column hold the average of the two signs, as the
    spectrum of a real image must.
    """
    (ny, nx), (my, mx) = size, new_size
    out = spectrum.new_zeros(*spectrum.shape[:-2], my, mx // 2 + 1)
    ky = min(ny, my)
    low, high = (ky + 1) // 2, ky // 2  # rows with k >= 0 (without Nyquist when even), and with k < 0
    cols = min(nx, mx) // 2 + 1
    out[..., :low, :cols] = spectrum[..., :low, :cols]
    out[..., my - high :, :cols] = spectrum[..., ny - high :, :cols]
    if my < ny and my % 2 == 0:
        out[..., my // 2, :cols] = 0.5 * (spectrum[..., my // 2, :cols] + spectrum[..., ny - my // 2, :cols])
    elif my > ny and ny % 2 == 0:
        nyquist = spectrum[..., ny // 2, :cols]
        out[..., ny // 2, :cols] = 0.5 * nyquist
        out[..., my - ny // 2, :cols] = 0.5 * nyquist
    return out


def resize(images: torch.Tensor, new_size: tuple[int, int]) -> torch.Tensor:
    """Resample real images ``(..., y, x)`` to a new size in Fourier space, keeping their grey values.

    The first pixel's centre stays where it is; the pixel size becomes old × old size / new size,
    separately for each axis.
    """
    size = (images.shape[-2], images.shape[-1])
    if size == tuple(new_size):
        return images.clone()
    spectrum = crop_half(rfft2(images), size, new_size)
    spectrum *= (new_size[0] * new_size[1]) / (size[0] * size[1])
    return irfft2(spectrum, new_size)


def shift_phases(
    ky: torch.Tensor, kx: torch.Tensor, shift_y: torch.Tensor, shift_x: torch.Tensor
) -> torch.Tensor:
    """Phase factors exp(2πi k·s): multiplying a spectrum by them samples the image at position + s.

    A feature that lies at p + s in the image lies at p in the result. Units of k and s must match;
    all four broadcast.
    """
    angle = (2.0 * np.pi) * (ky * shift_y + kx * shift_x)
    return torch.polar(torch.ones_like(angle), angle)

"""Low-passed, binned frames, and a first alignment of whole frames."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from weft.physics import fourier

__all__ = ["FrameStack", "low_pass_frames", "whole_frame_drift"]

ANNEALING = (3000.0, 3000.0, 1500.0, 1500.0, 700.0, 700.0, 400.0)  # B-factors, Å²: coarse to fine


DRIFT_RESOLUTION = 12.0  # Å


class FrameStack(Protocol):
    """What the science needs of a movie: a ``(frames, y, x)`` tensor, or `movies.frames.Frames`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> torch.Tensor: ...


def _reduced(frame: torch.Tensor, factor: int) -> torch.Tensor:
    """Sum of blocks of factor × factor pixels, factor a power of two."""
    while factor > 1:
        ny, nx = (n // 2 * 2 for n in frame.shape)
        rows = frame[0:ny:2, :nx] + frame[1:ny:2, :nx]
        frame = rows[:, 0::2] + rows[:, 1::2]
        factor //= 2
    return frame


def low_pass_frames(
    frames: FrameStack, pixel_size: float, resolution: float
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Frames with everything beyond a resolution cut off, on the coarsest grid that holds the rest.

    Pixels are first summed 2×2 as long as the band stays below half of the new Nyquist frequency (what
    folds back there is attenuated to less than a fifth in power and costs little); the rest of the
    reduction is a crop in Fourier space.

    Returns
    -------
    frames : (frames, y, x) float32
    pixel_size : (float, float)
        Of y and x, Å; they differ slightly because sizes are whole numbers.
    """
    factor = 1
    while 2 * factor * pixel_size / resolution <= 0.25:
        factor *= 2
    out: torch.Tensor | None = None
    pixels = (0.0, 0.0)
    for i in range(len(frames)):
        frame = _reduced(frames[i], factor)
        if out is None:
            size = (frame.shape[0], frame.shape[1])
            padded = (fourier.fast_size(size[0]), fourier.fast_size(size[1]))
            small = tuple(
                min(n, fourier.fast_size(math.ceil(2.0 * n * factor * pixel_size / resolution)))
                for n in padded
            )
            pixels = tuple(factor * pixel_size * n / m for n, m in zip(padded, small, strict=True))  # type: ignore[assignment]
            valid = tuple(int(n * m / p) for n, m, p in zip(size, small, padded, strict=True))
            out = torch.empty(len(frames), *valid, device=frame.device)
        spectrum = fourier.rfft2(frame - frame.mean(), padded)
        low = fourier.crop_half(spectrum, padded, small)  # type: ignore[arg-type]
        out[i] = fourier.irfft2(low, small)[: valid[0], : valid[1]]  # type: ignore[arg-type]
    assert out is not None
    return out, pixels


def _peak(correlation: torch.Tensor) -> tuple[float, float]:
    """Sub-pixel y, x of the maximum of a periodic map, by a parabola along each axis."""
    ny, nx = correlation.shape
    y, x = divmod(int(correlation.argmax()), nx)

    def vertex(before: torch.Tensor, at: torch.Tensor, after: torch.Tensor) -> float:
        curvature = float(before - 2 * at + after)
        return 0.0 if curvature == 0.0 else 0.5 * float(before - after) / curvature

    dy = vertex(correlation[y - 1, x], correlation[y, x], correlation[(y + 1) % ny, x])
    dx = vertex(correlation[y, x - 1], correlation[y, x], correlation[y, (x + 1) % nx])
    return (y + ny // 2) % ny - ny // 2 + dy, (x + nx // 2) % nx - nx // 2 + dx


def whole_frame_drift(
    frames: torch.Tensor, pixel_size: tuple[float, float], band: tuple[float, float]
) -> torch.Tensor:
    """Shift of every whole frame against the sum of the others, refined in rounds from coarse to fine.

    Parameters
    ----------
    frames : (frames, y, x) float32
        From :func:`low_pass_frames`.
    band : (float, float)
        1/Å.

    Returns
    -------
    (frames, 2) float64
        Tracks x, y in Å, their mean zero.
    """
    n_frames, full = frames.shape[0], (frames.shape[1], frames.shape[2])
    tracks = torch.zeros(n_frames, 2, dtype=torch.float64)
    if n_frames < 2:
        return tracks
    # nothing finer is needed here: the local fit follows
    size = tuple(
        min(n, fourier.fast_size(math.ceil(2.0 * n * p / DRIFT_RESOLUTION)))
        for n, p in zip(full, pixel_size, strict=True)
    )
    pixel_size = tuple(p * n / m for p, n, m in zip(pixel_size, full, size, strict=True))  # type: ignore[assignment]
    ky = torch.fft.fftfreq(size[0], pixel_size[0], device=frames.device)[:, None]
    kx = torch.fft.rfftfreq(size[1], pixel_size[1], device=frames.device)[None, :]
    k2 = ky**2 + kx**2
    spectra = torch.stack([fourier.crop_half(fourier.rfft2(f - f.mean()), full, size) for f in frames])  # type: ignore[arg-type]
    # whiten, so that a strong slow background does not decide
    shells = (torch.sqrt(k2) * max(s * p for s, p in zip(size, pixel_size, strict=True))).long().reshape(-1)
    power = torch.zeros_like(k2)
    for s in spectra:
        power += torch.view_as_real(s).square().sum(-1)
    radial = torch.bincount(shells, power.reshape(-1)) / torch.bincount(shells).clamp_min(1)
    spectra *= torch.rsqrt(radial.clamp_min(1e-20))[shells].reshape(k2.shape)
    inside = (k2 >= band[0] ** 2) & (k2 <= band[1] ** 2)
    for b_factor in ANNEALING:
        weight = torch.exp(-0.25 * b_factor * k2) * inside
        t = tracks.float().to(frames.device)
        total = torch.zeros_like(spectra[0])
        for s, (x, y) in zip(spectra, t, strict=True):
            total += s * fourier.shift_phases(ky, kx, y, x)
        new = torch.empty_like(tracks)
        for f, (s, (x, y)) in enumerate(zip(spectra, t, strict=True)):
            others = (total - s * fourier.shift_phases(ky, kx, y, x)) * weight
            y_px, x_px = _peak(fourier.irfft2(s * others.conj(), size))  # type: ignore[arg-type]
            new[f] = torch.tensor([x_px * pixel_size[1], y_px * pixel_size[0]])
        new -= new.mean(0)
        moved = float((new - tracks).abs().max())
        tracks = new
        if moved < 0.1 and b_factor == ANNEALING[-1]:
            break
    return tracks

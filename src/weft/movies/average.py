"""Aligned, dose-weighted averages.

Every pixel of the average is sampled in every frame at its own track. Dose weights are functions of
frequency and dose that hardly differ from one frame to the next: a handful of fixed spectra spans them all
(:func:`dose_components`), so a handful of weighted sums is kept in real space and only these are
transformed, instead of every frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weft.movies.drift import FrameStack
from weft.movies.motion import MotionModel
from weft.movies.warp import accumulate, node_places, spline_response
from weft.physics import fourier
from weft.physics.dose import dose_of_frames, dose_weight
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["Average", "AverageSettings", "aligned_frames", "contrast", "dose_components", "make_average"]

BATCH = 4  # frames sampled in one pass
COMPONENT_ERROR = 2e-3  # of the weights, which are at most 1
TABLE = 16384  # entries of radial tables, so many that the nearest will do


class AverageSettings(Settings):
    """What is written about an aligned movie."""

    bin: float = setting(
        1.0, "Reduction of the average in Fourier space; need not be a whole number.", ge=1.0, le=16.0
    )
    dose_weighting: Literal["warp", "grant", "none"] = setting(
        "warp",
        "Down-weighting of late frames: a B-factor of 4 Å² for each e/Å² (warp), the critical exposure of "
        "Grant & Grigorieff 2015 (grant), or none.",
    )
    halves: bool = setting(False, "Also write averages of the even and of the odd frames.")
    float16: bool = setting(False, "Write 16-bit floats (MRC mode 12) instead of 32-bit ones.")
    stack: bool = setting(False, "Also write the aligned frames as a stack.")
    anisotropy: float = setting(
        0.0,
        "Anisotropic magnification to be corrected: how much larger pixels are along the angle below than "
        "across it.",
        unit="%",
        ge=-20.0,
        le=20.0,
    )
    anisotropy_angle: float = setting(
        0.0, "Direction in which pixels are largest, from +x, counter-clockwise.", unit="deg", ge=-180, le=180
    )


@dataclass(frozen=True)
class Average:
    """An aligned average and, on request, its halves.

    Attributes
    ----------
    average, even, odd : (y, x) float32 tensors
        Means of frames 0, 1, 2 ..., of 0, 2, 4 ... and of 1, 3, 5 ....
    pixel_size : float
        Å, after binning.
    """

    average: torch.Tensor
    pixel_size: float
    even: torch.Tensor | None = None
    odd: torch.Tensor | None = None


def binned_size(shape: tuple[int, int], bin_factor: float) -> tuple[int, int]:
    """Even size (y, x) of an image reduced by `bin_factor`."""
    if bin_factor == 1.0:
        return shape
    return (round(shape[0] / bin_factor / 2) * 2, round(shape[1] / bin_factor / 2) * 2)


def dose_components(
    weights: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split weights (frames, frequencies) into as few products of a frame and a frequency factor as will do.

    Returns
    -------
    (frames, r) and (r, frequencies) arrays
        Their product differs from `weights` by less than `tolerance` anywhere.
    """
    u, s, v = np.linalg.svd(weights, full_matrices=False)
    for r in range(1, len(s) + 1):
        left, right = u[:, :r] * s[:r], v[:r]
        if np.abs(left @ right - weights).max() < tolerance:
            break
    return left, right


def _displacements(
    motion: MotionModel, shape: tuple[int, int], optics: Optics, settings: AverageSettings
) -> Iterator[NDArray[np.float64]]:
    """Displacement field of each frame on the nodes, pixels."""
    places = node_places(shape)
    centre = np.array([shape[1] // 2, shape[0] // 2], dtype=np.float64)
    stretch = np.zeros_like(places)
    if settings.anisotropy:
        a = np.deg2rad(settings.anisotropy_angle)
        turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        delta = 0.005 * settings.anisotropy
        inverse = turn @ np.diag([1.0 / (1.0 + delta), 1.0 / (1.0 - delta)]) @ turn.T
        stretch = (places - centre) @ (inverse - np.eye(2)).T
    at = (places + stretch).reshape(-1, 2) * optics.pixel_size
    local = motion.local_track(at) if motion.local is not None else None
    for f in range(motion.n_frames):
        shift = motion.global_shift[f] / optics.pixel_size
        field = stretch + shift
        if local is not None:
            field = field + local[f].reshape(places.shape) / optics.pixel_size
        yield field


def make_average(
    frames: FrameStack, motion: MotionModel, optics: Optics, settings: AverageSettings | None = None
) -> Average:
    """Average of the aligned frames, dose-weighted and binned.

    The weighted sum is divided by the root of the summed squared weights, at every frequency: noise keeps
    the spectrum of an unweighted average, and high frequencies are not lost twice.

    Parameters
    ----------
    frames : (frames, y, x) float32 tensor, or anything that gives frames one by one
    motion : MotionModel
    optics : Optics
        Of the raw frames.
    settings : AverageSettings, optional
    """
    settings = settings or AverageSettings()
    n_frames, shape = len(frames), (frames.shape[-2], frames.shape[-1])
    small = binned_size(shape, settings.bin)
    # frequencies of the binned average's grid; radial table for the weights
    ky = torch.fft.fftfreq(small[0]) * small[0] / shape[0]
    kx = torch.fft.rfftfreq(small[1]) * small[1] / shape[1]
    radius = torch.sqrt(ky[:, None] ** 2 + kx[None, :] ** 2)
    table_k = torch.linspace(0.0, float(radius.max()), TABLE, dtype=torch.float64)
    doses = dose_of_frames(n_frames, optics.dose_per_frame, optics.prior_dose)
    if settings.dose_weighting == "none":
        weights = np.ones((n_frames, len(table_k)))
    else:
        model = settings.dose_weighting
        k = table_k / optics.pixel_size
        weights = torch.stack([dose_weight(k, float(d), optics.voltage, model) for d in doses]).numpy()
    per_frame, spectra = dose_components(weights, COMPONENT_ERROR)
    rank = per_frame.shape[1]
    groups = (
        [np.arange(0, n_frames, 2), np.arange(1, n_frames, 2)] if settings.halves else [np.arange(n_frames)]
    )
    selected = np.zeros((n_frames, len(groups) * rank))
    for g, members in enumerate(groups):
        selected[members, g * rank : (g + 1) * rank] = per_frame[members]

    device = frames[0].device
    sums = torch.zeros(len(groups) * rank, *shape, device=device)
    fields = np.stack(list(_displacements(motion, shape, optics, settings)))
    buffer = torch.zeros(min(BATCH, n_frames), *shape, device=device)
    mean = 0.0
    for start in range(0, n_frames, BATCH):
        members_ = range(start, min(start + BATCH, n_frames))
        batch = buffer[: len(members_)]
        for slot, i in zip(batch, members_, strict=True):
            slot.copy_(frames[i])
        offset = batch.mean((-2, -1), keepdim=True)
        mean += float(offset.sum()) / n_frames
        accumulate(sums, batch.sub_(offset), fields[list(members_)], selected[list(members_)])

    response = _response(ky, kx, fields)
    position = torch.round(radius / radius.max() * (TABLE - 1)).to(torch.int32).to(device)
    scale = small[0] * small[1] / (shape[0] * shape[1])
    weighted = []
    for g in range(len(groups)):
        total = torch.zeros(small[0], small[1] // 2 + 1, dtype=torch.complex64, device=device)
        for r in range(rank):
            spectrum = fourier.crop_half(fourier.rfft2(sums[g * rank + r]), shape, small)
            total += spectrum * _looked_up(spectra[r] * scale, position)
        weighted.append(total / response.to(device))
    del sums, buffer

    def finished(total: torch.Tensor, members: NDArray[np.int64]) -> torch.Tensor:
        n = len(members)
        norm = np.sqrt(n * (weights[members] ** 2).sum(0)).clip(1e-12)
        return fourier.irfft2(total * _looked_up(1.0 / norm, position), small) + mean

    whole = finished(torch.stack(weighted).sum(0) if len(groups) > 1 else weighted[0], np.arange(n_frames))
    pixel_size = optics.pixel_size * shape[0] / small[0]
    if not settings.halves or n_frames < 2:
        return Average(whole, pixel_size)
    even, odd = (finished(w, m) for w, m in zip(weighted, groups, strict=True))
    return Average(whole, pixel_size, even, odd)


def _response(ky: torch.Tensor, kx: torch.Tensor, displacements: NDArray[np.float64]) -> torch.Tensor:
    """What sampling at these displacements does to the half-plane of frequencies (cycles/pixel)."""
    along_y = spline_response(ky, displacements[..., 1])
    along_x = spline_response(kx, displacements[..., 0])
    return along_y[:, None] * along_x[None, :]


def contrast(image: torch.Tensor, pixel_size: float) -> float:
    """Standard deviation of an average between 20 Å and 500 Å resolution, as a fraction of its mean.

    Particles, thick or uneven ice and contamination raise it; a hole with nothing in it is near zero.

    Parameters
    ----------
    image : (y, x) float32
    pixel_size : float
        Å.
    """
    ny, nx = image.shape
    spectrum = fourier.rfft2(image)
    ky, kx = fourier.frequencies((ny, nx), pixel_size, image.device)
    k2 = ky**2 + kx**2
    band = (k2 >= 1 / 500.0**2) & (k2 <= 1 / 20.0**2)
    # a half-plane stands for both halves but for its first column
    power = torch.view_as_real(spectrum).square().sum(-1) * band
    total = 2.0 * power.sum() - power[:, 0].sum()
    mean = abs(float(spectrum[0, 0].real)) / (ny * nx)
    return math.sqrt(float(total)) / (ny * nx) / max(mean, 1e-12)


def _looked_up(table: NDArray[np.float64], position: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(table, dtype=torch.float32, device=position.device)[position]


def aligned_frames(
    frames: FrameStack, motion: MotionModel, optics: Optics, settings: AverageSettings | None = None
) -> Iterator[torch.Tensor]:
    """Each frame sampled at its tracks and binned, unweighted, (y, x) float32."""
    settings = settings or AverageSettings()
    shape = (frames.shape[-2], frames.shape[-1])
    small = binned_size(shape, settings.bin)
    ky = torch.fft.fftfreq(small[0]) * small[0] / shape[0]
    kx = torch.fft.rfftfreq(small[1]) * small[1] / shape[1]
    scale = small[0] * small[1] / (shape[0] * shape[1])
    for i, field in enumerate(_displacements(motion, shape, optics, settings)):
        frame = frames[i]
        response = _response(ky, kx, field).to(frame.device)
        out = torch.zeros_like(frame)[None]
        accumulate(out, frame[None], field[None], np.ones((1, 1)))
        spectrum = fourier.crop_half(fourier.rfft2(out[0]), shape, small) * scale / response
        yield fourier.irfft2(spectrum, small)

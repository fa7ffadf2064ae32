"""Back-projection: every voxel collects the images at the places where it is seen.

Images are sampled with bilinear interpolation. That is meant for images that have been sampled more finely
than their band needs (:func:`oversample`, which also divides out the response of the interpolation): then
nothing of the band is lost, and four pixels a voxel are enough.

Two implementations of the sampling: a compiled one for CPUs, and a plain torch one that runs anywhere and
tests it. On top of it, for comparison with the local reconstruction, weighted back-projection of whole
images: with the exact filter or its SIRT-like form, and on request with phases flipped by one CTF a tilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numba
import numpy as np
import torch

from weft.physics import fourier

__all__ = ["backproject", "backproject_plain", "filtered_images", "interpolation_response", "oversample"]

OVERSAMPLING = 2


def interpolation_response(size: tuple[int, int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Mean response of :func:`backproject` to the spectrum of images of `size`: (y, x//2+1)."""
    ky, kx = fourier.frequencies(size, float(OVERSAMPLING), device)
    return (torch.sinc(ky) * torch.sinc(kx)) ** 2


def oversample(spectra: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images on a grid twice as fine; the first pixel stays where it is.

    Parameters
    ----------
    spectra : (..., y, x//2+1) complex
        Of images of `size` (y, x), divided by :func:`interpolation_response` for a back-projection.

    Returns
    -------
    (..., 2y, 2x) float32
    """
    fine = (OVERSAMPLING * size[0], OVERSAMPLING * size[1])
    padded = fourier.crop_half(spectra, size, fine)
    padded *= OVERSAMPLING * OVERSAMPLING
    return fourier.irfft2(padded, fine)


def backproject(out: torch.Tensor, images: torch.Tensor, first: torch.Tensor, step: torch.Tensor) -> None:
    """Add to every voxel what all images show at its place.

    ``out[z, y, x] += Σ_t images[t](first[t] + x step[t, 0] + y step[t, 1] + z step[t, 2])``, bilinear;
    outside the images there is nothing.

    Parameters
    ----------
    out : (z, y, x) float32
        Changed in place.
    images : (tilts, rows, columns) float32
    first : (tilts, 2) tensor
        x, y, px: where voxel (0, 0, 0) lies in the images.
    step : (tilts, 3, 2) tensor
        x, y, px: what one voxel along x, y and z adds to that.
    """
    if out.device.type != "cpu":
        out += backproject_plain((out.shape[0], out.shape[1], out.shape[2]), images, first, step)
        return
    arguments = (
        out.numpy(),
        images.contiguous().numpy(),
        np.ascontiguousarray(first.numpy(), dtype=np.float32),
        np.ascontiguousarray(step.numpy(), dtype=np.float32),
    )
    threads = min(torch.get_num_threads(), out.shape[0])
    if threads == 1 or out.numel() < 1 << 20:
        _backproject_sections(*arguments, 0, out.shape[0])
        return
    edges = np.linspace(0, out.shape[0], threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda a, b: _backproject_sections(*arguments, a, b), edges[:-1], edges[1:]))


@numba.njit(nogil=True, fastmath=True, cache=True)
def _backproject_sections(out, images, first, step, z_first, z_last):  # type: ignore[no-untyped-def]
    _, ny, nx = out.shape
    tilts, h, w = images.shape
    for z in range(z_first, z_last):
        for y in range(ny):
            row = out[z, y]
            for t in range(tilts):
                image = images[t]
                du, dv = step[t, 0, 0], step[t, 0, 1]
                u0 = first[t, 0] + np.float32(y) * step[t, 1, 0] + np.float32(z) * step[t, 2, 0]
                v0 = first[t, 1] + np.float32(y) * step[t, 1, 1] + np.float32(z) * step[t, 2, 1]
                u1, v1 = u0 + np.float32(nx - 1) * du, v0 + np.float32(nx - 1) * dv
                # half a pixel's distance keeps rounding on the safe side
                if (
                    min(u0, u1) > np.float32(0.5)
                    and max(u0, u1) < np.float32(w - 1.5)
                    and min(v0, v1) > np.float32(0.5)
                    and max(v0, v1) < np.float32(h - 1.5)
                ):
                    for x in range(nx):
                        u, v = u0 + np.float32(x) * du, v0 + np.float32(x) * dv
                        i, j = int(u), int(v)
                        a, b = u - np.float32(i), v - np.float32(j)
                        top = image[j, i] + a * (image[j, i + 1] - image[j, i])
                        low = image[j + 1, i] + a * (image[j + 1, i + 1] - image[j + 1, i])
                        row[x] += top + b * (low - top)
                    continue
                for x in range(nx):
                    u, v = u0 + np.float32(x) * du, v0 + np.float32(x) * dv
                    i, j = int(np.floor(u)), int(np.floor(v))
                    if i < -1 or j < -1 or i >= w or j >= h:
                        continue
                    a, b = u - np.float32(i), v - np.float32(j)
                    one = np.float32(1.0)
                    if j >= 0:
                        if i >= 0:
                            row[x] += (one - a) * (one - b) * image[j, i]
                        if i + 1 < w:
                            row[x] += a * (one - b) * image[j, i + 1]
                    if j + 1 < h:
                        if i >= 0:
                            row[x] += (one - a) * b * image[j + 1, i]
                        if i + 1 < w:
                            row[x] += a * b * image[j + 1, i + 1]


def backproject_plain(
    shape: tuple[int, int, int], images: torch.Tensor, first: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """The same in plain torch: the definition of what :func:`backproject` adds.

    Returns
    -------
    (z, y, x) float32
    """
    device = images.device
    _, h, w = images.shape
    first, step = (value.to(device, torch.float32) for value in (first, step))
    # grid_sample's coordinates are −1 at the first pixel's centre and 1 at the last's
    scale = torch.tensor([2.0 / (w - 1), 2.0 / (h - 1)], device=device)
    z, y, x = (torch.arange(n, device=device, dtype=torch.float32) for n in shape)
    in_plane = x[:, None] * step[:, None, None, 0] + y[:, None, None] * step[:, None, None, 1]
    out = torch.zeros(shape, device=device)
    for index in range(shape[0]):
        at = first[:, None, None] + z[index] * step[:, None, None, 2] + in_plane
        found = torch.nn.functional.grid_sample(
            images[:, None], at * scale - 1.0, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        out[index] = found.sum((0, 1))
    return out


def filtered_images(
    images: torch.Tensor,
    pixel_size: tuple[float, float],
    matrices: torch.Tensor,
    distortion: torch.Tensor,
    thickness: float,
    band: float,
    *,
    kind: Literal["exact", "sirt"] = "exact",
    iterations: int = 10,
    transfer: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    gains: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[int], Iterator[torch.Tensor]]:
    """Whole images filtered for weighted back-projection, one at a time.

    The exact filter (Harauz & van Heel 1986) divides each coefficient by the number of central sections of
    a specimen of `thickness` that it belongs to: a ramp at low frequencies that becomes flat where the
    sections part. n iterations of SIRT from an empty volume leave 1 − (1 − W/W_max)ⁿ of each coefficient.

    Parameters
    ----------
    images : (tilts, y, x) float32
    pixel_size : (float, float)
        x, y, Å.
    matrices : (tilts, 3, 3) float64
        From the specimen to the images.
    distortion : (2, 2) float64
        Anisotropic magnification: the image shows at centre + distortion · d what lies at d.
    thickness : float
        Å.
    band : float
        Highest frequency kept, 1/Å.
    kind, iterations
        Exact filter, or that of so many iterations of SIRT.
    transfer : callable, optional
        (tilt, kx, ky) → a factor for the spectrum, such as the sign of the CTF.
    gains : callable, optional
        k → a further filter, for a second copy of every image.

    Returns
    -------
    callable
        Tilt → one or two images (2y, 2x) float32, for :func:`backproject`; they sum up to density per Å.
    """
    ny, nx = images.shape[1:]
    size = (fourier.fast_size(int(1.25 * ny)), fourier.fast_size(int(1.25 * nx)))
    device = images.device
    ky_image = torch.fft.fftfreq(size[0], pixel_size[1], dtype=torch.float64, device=device)[:, None]
    kx_image = torch.fft.rfftfreq(size[1], pixel_size[0], dtype=torch.float64, device=device)[None, :]
    to_specimen = distortion.to(device).T
    kx = (to_specimen[0, 0] * kx_image + to_specimen[0, 1] * ky_image).float()
    ky = (to_specimen[1, 0] * kx_image + to_specimen[1, 1] * ky_image).float()
    common = (torch.hypot(kx, ky) <= band) / interpolation_response(size, device) / thickness
    slopes = torch.einsum("tij,qj->tqi", matrices[:, :2], matrices[:, 2]).float() * thickness
    tilts = len(matrices)

    gain = None if gains is None else gains(torch.hypot(kx, ky))

    def make(tilt: int) -> Iterator[torch.Tensor]:
        count = torch.zeros_like(kx)
        for x, y in slopes[tilt].tolist():
            count += (1.0 - (x * kx + y * ky).abs()).clamp(min=0.0)
        if kind == "exact":
            factor = common / count
        else:
            factor = common * (1.0 - (1.0 - count / tilts) ** iterations) / count
        if transfer is not None:
            factor = factor * transfer(tilt, kx, ky)
        spectrum = fourier.rfft2(images[tilt], size) * factor
        for copy in (spectrum,) if gain is None else (spectrum, spectrum * gain):
            fine = oversample(copy, size)
            yield fine[: OVERSAMPLING * ny, : OVERSAMPLING * nx].contiguous()

    return make

"""Windows of micrographs: how large, of which pixels, and how they are cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.movies.warp import accumulate, node_places, spline_response
from weft.physics import fourier

__all__ = ["WindowPlan", "cut_windows", "undistorted"]

MARGIN = 16  # pixels of a window beyond the box, on all sides: its Fourier series wraps around there
WHOLE = 1.5  # images are brought to the output's pixel size as a whole where that makes them so much smaller
CHUNK = 1 << 24  # values of the windows that are worked on at a time
ROOM = 64  # pixels that a window may grow to make its size in the output's pixels a whole number


@dataclass(frozen=True)
class WindowPlan:
    """What is cut from each image, and what is made of it.

    Attributes
    ----------
    original, shape : (int, int)
        y, x: of the images as they are, and as windows are cut from them.
    pixel : (2,) float64
        x, y: of the latter, Å.
    window : (int, int)
        y, x: pixels of a window.
    output : float
        Å: pixel size of the output.
    exact : (int, int) or None
        y, x: pixels of the output in a window, where they are whole even numbers.
    """

    original: tuple[int, int]
    shape: tuple[int, int]
    pixel: NDArray[np.float64]
    window: tuple[int, int]
    output: float
    exact: tuple[int, int] | None

    @classmethod
    def of(cls, shape: tuple[int, int], pixel_size: float, output: float, box: int) -> WindowPlan:
        """Plan for images of a shape and a pixel size (Å), for boxes of so many pixels of the output.

        Raises
        ------
        ItemError
            The output's pixels are smaller than those of the images.
        """
        if output < pixel_size * (1.0 - 1e-3):
            raise ItemError(
                f"particles cannot have pixels of {output:g} Å where the images have {pixel_size:g} Å; ask "
                "for larger ones"
            )
        small = shape
        if output >= WHOLE * pixel_size:
            small = (_reduced(shape[0], pixel_size / output), _reduced(shape[1], pixel_size / output))
        pixel = np.array([shape[1] / small[1], shape[0] / small[0]]) * pixel_size
        window, exact = zip(*(_window(box, output / p) for p in (pixel[1], pixel[0])), strict=True)
        fits = None if None in exact else (int(exact[0]), int(exact[1]))
        return cls(shape, small, pixel, (window[0], window[1]), output, fits)

    @property
    def batch(self) -> int:
        """How many windows are worked on at a time."""
        return max(1, CHUNK // (self.window[0] * self.window[1]))

    def frequencies(self) -> tuple[torch.Tensor, torch.Tensor]:
        """ky as a column and kx as a row of a window's transform, 1/Å."""
        ky = torch.fft.fftfreq(self.window[0], float(self.pixel[1]))[:, None]
        kx = torch.fft.rfftfreq(self.window[1], float(self.pixel[0]))[None, :]
        return ky, kx

    def reduced(self, image: torch.Tensor) -> torch.Tensor:
        """An image as windows are cut from it."""
        return image if self.shape == self.original else fourier.resize(image, self.shape)

    def resampled(self, spectra: torch.Tensor, box: int) -> torch.Tensor | None:
        """Windows as boxes of the output, where cropping the transform is all that it takes."""
        if self.exact is None:
            return None
        scale = (self.exact[0] * self.exact[1]) / (self.window[0] * self.window[1])
        small = fourier.crop_half(spectra, self.window, self.exact) * scale
        images = fourier.irfft2(small, self.exact)
        y, x = self.exact[0] // 2 - box // 2, self.exact[1] // 2 - box // 2
        return images[..., y : y + box, x : x + box].contiguous()


def _reduced(n: int, factor: float) -> int:
    wanted = n * factor
    whole = 2 * round(wanted / 2)
    if abs(wanted - whole) < 1e-6:
        return whole
    return min(n, fourier.fast_size(math.ceil(wanted)))


def _window(box: int, ratio: float) -> tuple[int, int | None]:
    """Pixels of a window, and what they are in the output's pixels if that is an even number."""
    least = math.ceil(box * ratio - 1e-6) + 2 * MARGIN
    first = size = fourier.fast_size(least)
    while size <= least + ROOM:
        inside = size / ratio
        whole = 2 * round(inside / 2)
        if abs(inside - whole) < 1e-6 * inside:
            return size, whole
        size = fourier.fast_size(size + 1)
    return first, None


def cut_windows(image: torch.Tensor, centres: NDArray[np.int64], size: tuple[int, int]) -> torch.Tensor:
    """Windows around pixels; what lies outside the image is as bright as the rest of the window.

    Parameters
    ----------
    image : (y, x) float32
    centres : (n, 2) int64
        x, y: of pixel size//2.
    size : (int, int)
        y, x.

    Returns
    -------
    (n, y, x) float32
    """
    ny, nx = image.shape
    out = torch.empty(len(centres), *size, dtype=image.dtype, device=image.device)
    for result, (x, y) in zip(out, centres.tolist(), strict=True):
        top, left = y - size[0] // 2, x - size[1] // 2
        rows = slice(min(max(top, 0), ny), max(min(top + size[0], ny), 0))
        columns = slice(min(max(left, 0), nx), max(min(left + size[1], nx), 0))
        part = image[rows, columns]
        if part.shape != result.shape:
            result.fill_(float(part.mean()) if part.numel() else float(image.mean()))
        result[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
    return out


def undistorted(images: torch.Tensor, plan: WindowPlan, distortion: torch.Tensor) -> torch.Tensor:
    """Windows without the anisotropic magnification, about their centres."""
    ny, nx = plan.window
    nodes = (node_places(plan.window) - [nx // 2, ny // 2]) * plan.pixel
    field = nodes @ (distortion.numpy() - np.eye(2)).T / plan.pixel
    out = torch.zeros_like(images)
    for image, result in zip(images, out, strict=True):
        accumulate(result[None], image[None].contiguous(), field[None], np.ones((1, 1)))
    ky, kx = torch.fft.fftfreq(ny), torch.fft.rfftfreq(nx)
    response = spline_response(ky, field[..., 1])[:, None] * spline_response(kx, field[..., 0])
    return fourier.irfft2(fourier.rfft2(out) / response.to(out.device), plan.window)

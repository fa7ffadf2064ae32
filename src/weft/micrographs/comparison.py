"""Before and after, side by side, with their power spectra on one scale of frequency."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics import fourier

__all__ = ["comparison", "power_spectrum"]

_TILE = 512
_GAP = 8
_BACKGROUND = 255
_RANGE = 5.0  # natural logarithm of the powers that greys show


def comparison(
    before: torch.Tensor, after: torch.Tensor, factor: float = 1.0, crop: int = 0, side: int = 512
) -> NDArray[np.uint8]:
    """A picture of two by two: the images above, their power spectra below; before left, after right.

    Both images show the same field: borders that were cropped stay empty on the right. Both spectra end at
    the Nyquist frequency of the image before, so that a ring lies at the same place in both.

    Parameters
    ----------
    before, after : (y, x) tensors
    factor : float
        Pixels of `before` in one of `after`.
    crop : int
        Pixels of `before` that are missing from every border of `after`.
    side : int
        Pixels of the longer side of a panel.
    """
    ny, nx = before.shape
    scale = min(1.0, side / max(ny, nx))
    height, width = max(1, round(ny * scale)), max(1, round(nx * scale))
    left = _stretched(_reduced(before, (height, width)))
    inner = (max(1, round(after.shape[0] * factor * scale)), max(1, round(after.shape[1] * factor * scale)))
    right = np.full((height, width), _BACKGROUND, dtype=np.uint8)
    top = min(round(crop * scale), height - 1)
    start = min(round(crop * scale), width - 1)
    shown = _stretched(_reduced(after, inner))[: height - top, : width - start]
    right[top : top + shown.shape[0], start : start + shown.shape[1]] = shown
    # a power of two that is no larger than the smallest image, so that both are averages of many tiles
    n = 1 << int(math.log2(max(8, min(_TILE, *before.shape, *after.shape))))
    panels = []
    for image, zoom in ((before, 1.0), (after, 1.0 / factor)):
        spectrum = _drawn(power_spectrum(image, n))
        size = max(2, round(width * zoom))
        drawn = _nearest(spectrum, (size, size))
        panel = np.full((width, width), _BACKGROUND, dtype=np.uint8)
        corner = (width - size) // 2
        panel[corner : corner + size, corner : corner + size] = drawn
        panels.append(panel)
    gap = np.full((height, _GAP), _BACKGROUND, dtype=np.uint8)
    above = np.hstack([left, gap, right])
    below = np.hstack([panels[0], np.full((width, _GAP), _BACKGROUND, dtype=np.uint8), panels[1]])
    return np.vstack([above, np.full((_GAP, above.shape[1]), _BACKGROUND, dtype=np.uint8), below])


def power_spectrum(image: torch.Tensor, size: int) -> torch.Tensor:
    """Mean power of half-overlapping Hann-windowed tiles, ``(size, size)``, zero frequency at size//2."""
    window = torch.hann_window(size, device=image.device)
    tiles = image.float().unfold(0, size, size // 2).unfold(1, size, size // 2).reshape(-1, size, size)
    total = torch.zeros(size, size // 2 + 1, device=image.device)
    for part in torch.split(tiles, 16):
        centred = part - part.mean(dim=(1, 2), keepdim=True)
        total += fourier.rfft2(centred * window[:, None] * window).abs().square().sum(0)
    half = (total / len(tiles)).cpu()
    # the other half is the mirror image through the centre
    full = torch.empty(size, size)
    full[:, : size // 2 + 1] = half
    full[:, size // 2 + 1 :] = half.flip(0).roll(1, 0)[:, 1 : size // 2].flip(1)
    return full.roll((size // 2, size // 2), (0, 1))


def _reduced(image: torch.Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    small = fourier.resize(image.detach().to("cpu", torch.float32), size)
    return np.asarray(small.numpy())


def _stretched(image: NDArray[np.float32], low: float = 0.5, high: float = 99.5) -> NDArray[np.uint8]:
    bottom, top = np.percentile(image, (low, high))
    span = top - bottom if top > bottom else 1.0
    return np.asarray(np.clip((image - bottom) * (255.0 / span), 0, 255).round(), dtype=np.uint8)


def _drawn(power: torch.Tensor) -> NDArray[np.uint8]:
    """Logarithm of the power, without the centre, where a background of any height would hide the rest."""
    shown = torch.log(power + power[power > 0].min() if bool((power > 0).any()) else power + 1.0).numpy()
    middle = power.shape[0] // 2
    y, x = np.ogrid[: power.shape[0], : power.shape[1]]
    outside = np.hypot(y - middle, x - middle) > power.shape[0] * 0.02
    bottom, top = np.percentile(shown[outside], (1.0, 99.7))
    bottom = max(bottom, top - _RANGE)  # what a filter has removed is black, and takes no greys
    span = top - bottom if top > bottom else 1.0
    return np.asarray(np.clip((shown - bottom) * (255.0 / span), 0, 255).round(), dtype=np.uint8)


def _nearest(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    rows = (np.arange(size[0]) * image.shape[0]) // size[0]
    columns = (np.arange(size[1]) * image.shape[1]) // size[1]
    return np.asarray(image[rows[:, None], columns[None, :]])

"""Small pictures for screens."""

from __future__ import annotations

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from weft.formats.atomic import atomic_write_bytes
from weft.physics.fourier import resize
from weft.session.step import Job

__all__ = ["thumbnail", "write_png", "write_thumbnail"]

_LONGEST = 512
SMOOTHED = 5.0  # Å, standard deviation


def thumbnail(image: torch.Tensor, pixel_size: float = 0.0, longest: int = _LONGEST) -> NDArray[np.uint8]:
    """An image reduced to `longest` pixels and stretched to eight bits, low-passed if its scale is known.

    Parameters
    ----------
    image : (y, x) tensor
    pixel_size : float
        Å.
    """
    ny, nx = image.shape[-2:]
    scale = min(1.0, longest / max(ny, nx))
    size = (max(1, round(ny * scale)), max(1, round(nx * scale)))
    small = resize(image.detach().to("cpu", torch.float32), size).numpy()
    if pixel_size:
        # particles stand out once what is finer than they are is gone
        small = gaussian_filter(small, SMOOTHED / (pixel_size * ny / size[0]))
    low, high = np.percentile(small, (0.5, 99.5))
    span = high - low if high > low else 1.0
    return np.asarray(np.clip((small - low) * (255.0 / span), 0, 255).round(), dtype=np.uint8)


def write_png(job: Job, relative: str, picture: NDArray[np.uint8]) -> str:
    """Write a picture of the session; returns its relative path."""
    data = imagecodecs.png_encode(np.ascontiguousarray(picture))
    atomic_write_bytes(job.place(relative), bytes(data))
    return relative


def write_thumbnail(job: Job, image: torch.Tensor, pixel_size: float) -> str:
    """Write ``thumbnails/<item>.png``."""
    return write_png(job, f"thumbnails/{job.item}.png", thumbnail(image, pixel_size))

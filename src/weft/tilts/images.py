"""The images of a tilt series, made ready for reconstruction one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from weft.errors import ItemError
from weft.physics import fourier

__all__ = ["TiltImages", "binned", "half_tilts"]


@dataclass(frozen=True)
class TiltImages:
    """Images at the reconstruction's resolution, as contrast.

    Attributes
    ----------
    images : (tilts, y, x) float32
        Mean 0. With `in_counts`, what an electron count differs from the image's mean, relative to it: the
        scale on which the specimen has the same strength in images of any exposure; otherwise relative to
        the standard deviation, which is what is left to do for images whose mean has been removed before.
    pixel_size : (float, float)
        x, y, Å: at most what was asked for, and such that the size is a fast one.
    in_counts : bool
    means : (tilts,) float64
        Of the images as they were: electrons, where they are counts.
    """

    images: torch.Tensor
    pixel_size: tuple[float, float]
    in_counts: bool
    means: torch.Tensor

    @classmethod
    def prepare(
        cls,
        images: Iterable[torch.Tensor],
        pixel_size: float,
        target: float,
        device: torch.device | str = "cpu",
    ) -> TiltImages:
        """Reduce images to a pixel size of `target` Å or a little less, one after the other.

        Parameters
        ----------
        images : iterable of (y, x) tensors
            As they come from the microscope or from motion correction; only one is held at a time.
        pixel_size : float
            Å, of these images.
        target : float
            Å; images with larger pixels stay as they are.

        Raises
        ------
        ItemError
            If an image is empty or holds values that are not finite.
        """
        reduced: list[torch.Tensor] = []
        means, shape, size = [], (0, 0), (0, 0)
        for number, image in enumerate(images):
            if number and tuple(image.shape) != shape:
                raise ItemError(
                    f"tilt {number} has {image.shape[1]}×{image.shape[0]} pixels, those before it "
                    f"{shape[1]}×{shape[0]}: all images of a series must have one size"
                )
            shape = (image.shape[0], image.shape[1])
            size = (_reduced(shape[0], pixel_size, target), _reduced(shape[1], pixel_size, target))
            small = fourier.resize(image.to(device, torch.float32), size)
            mean, std = float(small.mean()), float(small.std())
            if not math.isfinite(std) or std <= 1e-6 * abs(mean):
                raise ItemError(
                    f"tilt {number} is {'empty' if math.isfinite(std) else 'not finite'}: exclude it from "
                    "the series"
                )
            means.append((mean, std))
            reduced.append(small.sub_(mean))
        if not reduced:
            raise ItemError("the tilt series holds no image")
        in_counts = all(mean > std for mean, std in means)
        stack = torch.empty(len(reduced), *size, device=device)
        for number, (mean, std) in enumerate(means):
            torch.div(reduced[number], mean if in_counts else std, out=stack[number])
            reduced[number] = stack[number]  # sets the image free
        found = (shape[1] * pixel_size / size[1], shape[0] * pixel_size / size[0])
        return cls(stack, found, in_counts, torch.tensor([mean for mean, _ in means], dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.images)

    def select(self, tilts: torch.Tensor) -> TiltImages:
        """Some of the tilts (indices or a mask), in the order given."""
        return replace(self, images=self.images[tilts], means=self.means[tilts])


def _reduced(n: int, pixel_size: float, target: float) -> int:
    """The fast number of pixels that brings them to `target` or a little less; `n` where they are larger."""
    return min(n, fourier.fast_size(math.ceil(n * pixel_size / target - 1e-6)))


def binned(image: torch.Tensor, factor: int) -> tuple[torch.Tensor, tuple[float, float]]:
    """An image with pixels `factor` times as large in both directions, by cropping its transform.

    What does not fill a pair of large pixels is left out at the edges, as evenly as whole pixels allow.

    Parameters
    ----------
    image : (y, x) tensor
    factor : int

    Returns
    -------
    image : (y', x') tensor
    offset : (float, float)
        x, y: where the new image's centre (half of its size) lies relative to the old one's, old pixels; 0
        but for odd sizes.
    """
    if factor == 1:
        return image, (0.0, 0.0)
    kept, offset = [], []
    for n in image.shape:
        length = n // (2 * factor) * 2 * factor
        start = (n - length) // 2
        kept.append((start, length))
        offset.append(start + 0.5 * length - 0.5 * n)
    (y, ny), (x, nx) = kept
    part = image[y : y + ny, x : x + nx]
    return fourier.resize(part, (ny // factor, nx // factor)), (offset[1], offset[0])


def half_tilts(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second tilt by angle, and the others: indices ``(n,)`` for two independent half maps."""
    order = torch.argsort(angles, stable=True)
    return order[0::2].sort().values, order[1::2].sort().values

"""The correlation under a mask (Roseman 2003, Ultramicroscopy 94, 225) of a tile with many kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from weft.physics import fourier
from weft.picking.template_projections import Orientations

__all__ = ["SOFT", "LocalCorrelation", "disc_mask"]

SOFT = 1.0  # px, of the mask's edge to either side
_BATCH_PIXELS = 1 << 20
_BATCH_PIXELS_GPU = 1 << 25
_LEAST_SEEN = 0.6  # of the mask that must lie in the image, outside artefacts: a straight edge leaves 0.5
_SAMPLES = 1 << 20  # scores that the background is judged by


def disc_mask(box: int, radius: float, soft: float = SOFT, device: Any = "cpu") -> torch.Tensor:
    """A disc about the pixel box//2, its edge a cosine from `soft` px inside to as many outside."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    away = (axis[:, None] ** 2 + axis**2).sqrt() - radius
    return 0.5 - 0.5 * torch.sin(0.5 * math.pi * (away / soft).clamp(-1.0, 1.0))


@dataclass(frozen=True)
class LocalCorrelation:
    """How tiles are compared.

    Attributes
    ----------
    mask : (2 reach + 1, 2 reach + 1) float32
    orientations : Orientations
        What there is a kernel of.
    window : int
        Pixels of a tile with what the mask reaches beyond its core.
    """

    mask: torch.Tensor
    orientations: Orientations
    window: int

    @property
    def reach(self) -> int:
        """Pixels from the mask's middle to its edge."""
        return len(self.mask) // 2

    @property
    def core(self) -> int:
        """Pixels along a tile for which there are scores."""
        return self.window - 2 * self.reach

    def kernels(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, mask's shape) with mean 0 and standard deviation 1 under the mask, over its area."""
        area = self.mask.sum()
        images = images - (images * self.mask).sum((-2, -1), keepdim=True) / area
        power = (images.square() * self.mask).sum((-2, -1), keepdim=True)
        return images * self.mask / (area * power).sqrt().clamp(min=1e-30)

    def inverse_deviation(self, window: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """1/σ_V under the mask around each place of a tile's core; 0 where nothing can be said.

        Parameters
        ----------
        window : (window, window) float32
            Of an image that has the variance 1 as a whole.
        visible : (window, window) float32
            1 where the image shows something that is no artefact, else 0.
        """
        size = (self.window, self.window)
        mask = fourier.rfft2(self.mask, size).conj()
        stack = torch.stack([window, window.square(), visible])
        sums = fourier.irfft2(fourier.rfft2(stack) * mask, size)[:, : self.core, : self.core]
        mean, square, seen = sums / self.mask.sum()
        variance = square - mean.square()
        return torch.where((variance > 1e-4) & (seen > _LEAST_SEEN), variance.clamp(min=1e-4).rsqrt(), 0.0)

    def best(
        self,
        window: torch.Tensor,
        kernels: Callable[[torch.Tensor], torch.Tensor],
        inverse: torch.Tensor,
        tiles: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compare a tile with all orientations.

        Parameters
        ----------
        window : (window, window) float32
        kernels : callable
            Makes kernels of orientations (n, 3).
        inverse : (core, core) float32
            1/σ_V.
        tiles : int
            How many there are: each gives its part of the sample.

        Returns
        -------
        (core, core) float32, (core, core) int64, (m,) float32
            Of each place the best score before its division by σ_V, and its orientation; a sample of scores.
        """
        size, core = (self.window, self.window), self.core
        computed, turned = self.orientations.computed, self.orientations.turned
        spectrum = fourier.rfft2(window.contiguous())
        # a kernel turned by 180° about its middle has the conjugate transform, 2 · reach px away
        away = torch.tensor(2.0 * self.reach, device=window.device)
        ky, kx = fourier.frequencies(size, 1.0, window.device)
        spectrum_of_turned = spectrum * fourier.shift_phases(ky, kx, away, away)
        best = window.new_full((core, core), -torch.inf)
        number = torch.zeros(core, core, dtype=torch.int64, device=window.device)
        room = _BATCH_PIXELS if window.device.type == "cpu" else _BATCH_PIXELS_GPU
        batch = max(1, room // self.window**2)
        batches = math.ceil(len(computed) / batch)
        places = (inverse > 0.0).reshape(-1).nonzero()[:, 0]
        stride = max(1, math.ceil(len(places) * batches * tiles / _SAMPLES))
        scale = inverse.reshape(-1)
        samples = []
        for start in range(0, len(computed), batch):
            mine = computed[start : start + batch]
            made = fourier.rfft2(kernels(self.orientations.euler[mine]).contiguous(), size)
            pairs = [(spectrum * made.conj(), mine)]
            if len(turned):
                pairs.append((spectrum_of_turned * made, turned[start : start + batch]))
            for product, numbers in pairs:
                found = fourier.irfft2(product, size)[:, :core, :core]
                top, at = found.max(dim=0)
                better = top > best
                best = torch.where(better, top, best)
                number = torch.where(better, numbers.to(at.device)[at], number)
            some = places[(start // batch) % stride :: stride]
            samples.append(found[0].reshape(-1)[some] * scale[some])
        return best, number, torch.cat(samples)

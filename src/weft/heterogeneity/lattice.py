"""Which Fourier coefficients of the images are used, and how images become coefficients.

Images are real: one half of the plane holds everything. Its real and imaginary parts are what the Hartley
transform of the whole plane holds, H(±k) = Re F(k) ∓ Im F(k), so that squared differences over this half are
half those over a plane of Hartley coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.physics import fourier

__all__ = ["Lattice"]


@dataclass(frozen=True)
class Lattice:
    """Coefficients of images of `box` pixels, from low to high frequency.

    Attributes
    ----------
    ux, uy : (c,) int64
        Periods over the box; half of the plane, within Nyquist's circle.
    box : int
        Pixels.
    pixel_size : float
        Å.
    """

    ux: torch.Tensor
    uy: torch.Tensor
    box: int
    pixel_size: float

    @classmethod
    def of(cls, box: int, pixel_size: float, resolution: float = 0.0) -> Lattice:
        """All coefficients up to a resolution (Å; 0: Nyquist)."""
        # half a period less than Nyquist: what is interpolated has neighbours on all sides
        radius = 0.5 * box - 0.5
        if resolution > 0.0:
            radius = min(radius, box * pixel_size / resolution)
        uy, ux = torch.meshgrid(torch.arange(-(box // 2), box // 2), torch.arange(box // 2), indexing="ij")
        r2 = ux * ux + uy * uy
        used = (r2 < radius * radius) & ((ux > 0) | (uy >= 0))
        order = r2[used].argsort(stable=True)
        return cls(ux[used][order], uy[used][order], box, pixel_size)

    def __len__(self) -> int:
        return len(self.ux)

    @property
    def radius(self) -> torch.Tensor:
        """(c,) float32: periods over the box."""
        return torch.hypot(self.ux.float(), self.uy.float())

    @property
    def shell(self) -> torch.Tensor:
        """(c,) int64: nearest whole radius."""
        return self.radius.round().long()

    @property
    def kx(self) -> torch.Tensor:
        """(c,) float32, 1/Å."""
        return self.ux.float() / (self.box * self.pixel_size)

    @property
    def ky(self) -> torch.Tensor:
        """(c,) float32, 1/Å."""
        return self.uy.float() / (self.box * self.pixel_size)

    def within(self, radius: float) -> int:
        """How many of the first coefficients lie within a radius (periods over the box)."""
        return int((self.radius < radius).sum())

    def coefficients(self, images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Fourier coefficients with phases that count from the particle's centre.

        Parameters
        ----------
        images : (m, n, n) float32
        shift : (m, 2) float32
            x, y, Å: where the particle's centre lies relative to the centre of pixel n//2.

        Returns
        -------
        (m, c) complex64
            Of the sum over pixels, without a factor.
        """
        half = fourier.rfft2(images)
        found = half[:, self.uy % self.box, self.ux]
        at = shift / self.pixel_size + self.box // 2
        phase = (2.0 * math.pi / self.box) * (at[:, :1] * self.ux + at[:, 1:] * self.uy)
        return found * torch.polar(torch.ones_like(phase), phase)

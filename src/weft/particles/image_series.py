"""Series of tilt images: every particle as a small stack of two-dimensional images.

(skeleton: the dataclass is fixed, the cutting is being written)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["ImageSeries"]


@dataclass(frozen=True)
class ImageSeries:
    """Particles in the images of their tilt series.

    Attributes
    ----------
    images : (particles, tilts, n, n) float32
        Density positive, normalised background; 0 where a tilt does not show the particle. The particle's
        centre is at pixel n//2 plus `shift`.
    shift : (particles, tilts, 2) float32
        x, y, Å: where the particle's centre lies relative to the centre of pixel n//2.
    rotation : (particles, tilts, 3, 3) float32
        From the particle's map to the image: (matrix of the tilt) · M(rot, tilt, psi).
    defocus : (particles, tilts) float32
        Å, at the particle: mean of both axes.
    astigmatism, angle, phase_shift, dose : (particles, tilts) float32
        U − V (Å), direction of U (degrees), of a phase plate (degrees), e/Å² before or by the end as in
        :class:`~weft.tilts.gridding.TiltContrast`.
    weight : (particles, tilts) float32
        Further weight of each image; 0 where it is not visible.
    group : (particles,) int64
        Which tomogram each comes from.
    half : (particles,) int64
        0 or 1: the half-set.
    pixel_size : float
        Å.
    voltage, cs, amplitude : float
        kV, mm.
    premultiplied : bool
        Whether images have been multiplied by their CTF.
    """

    images: torch.Tensor
    shift: torch.Tensor
    rotation: torch.Tensor
    defocus: torch.Tensor
    astigmatism: torch.Tensor
    angle: torch.Tensor
    phase_shift: torch.Tensor
    dose: torch.Tensor
    weight: torch.Tensor
    group: torch.Tensor
    half: torch.Tensor
    pixel_size: float
    voltage: float
    cs: float
    amplitude: float
    premultiplied: bool = False

    def __len__(self) -> int:
        return len(self.images)

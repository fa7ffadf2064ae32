"""Series of tilt images: every particle as a small stack of two-dimensional images.

Images are brought to noise of one standard deviation, and their signal is taken to be the CTF, times what the
dose has left of it, times a weight of the tilt: its cosine in RELION's heuristic for tilt series (Bharat et
al. 2015). How images are cut is in :mod:`weft.particles.cutting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf_phase
from weft.physics.dose import DoseWeighting, dose_weight
from weft.physics.optics import Optics

__all__ = ["ImageSeries", "series_transfer", "transfer"]


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

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that has a row a particle, by name."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), torch.Tensor)}

    def select(self, which: torch.Tensor) -> ImageSeries:
        """Some of the particles (indices or a mask)."""
        chosen: dict[str, Any] = {name: value[which] for name, value in self.tensors.items()}
        return replace(self, **chosen)

    @classmethod
    def join(cls, parts: Sequence[ImageSeries]) -> ImageSeries:
        """Several of the same pixel size and number of tilts as one."""
        if not parts:
            raise ValueError("there is nothing to join")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors
        }
        return replace(parts[0], **joined)

    @property
    def optics(self) -> Optics:
        """Of the images."""
        return Optics(pixel_size=self.pixel_size, voltage=self.voltage, cs=self.cs, amplitude=self.amplitude)


def transfer(
    series: ImageSeries,
    ky: torch.Tensor,
    kx: torch.Tensor,
    dose_weighting: DoseWeighting = "warp",
    which: torch.Tensor | None = None,
    *,
    signed: bool = True,
) -> torch.Tensor:
    """What the signal of each image has been multiplied by: CTF × dose × weight.

    Parameters
    ----------
    series : ImageSeries
    ky, kx : tensors that broadcast to (...)
        Spatial frequencies, 1/Å.
    dose_weighting : {"warp", "grant", "none"}
    which : (i, 2) int64 tensor, optional
        Particle and tilt of the images that are asked for; by default all.
    signed : bool
        False leaves the CTF's sign out: its modulus.

    Returns
    -------
    (i, ...) or (particles, tilts, ...) float32
        0 where an image does not show the particle.
    """
    k2, azimuth = kx * kx + ky * ky, torch.atan2(ky, kx)

    def of(value: torch.Tensor) -> torch.Tensor:
        chosen = value if which is None else value[which[:, 0], which[:, 1]]
        return chosen.to(k2.device).reshape(*chosen.shape, *(1,) * k2.ndim)

    half = 0.5 * of(series.astigmatism)
    mean = of(series.defocus)
    defocus = astigmatic_defocus(mean + half, mean - half, of(series.angle), azimuth)
    out = ctf_phase(k2, defocus, series.optics, of(series.phase_shift)).sin_()
    if not signed:
        out.abs_()
    if dose_weighting != "none":
        out *= dose_weight(k2.sqrt(), of(series.dose), series.voltage, dose_weighting)
    return out.mul_(of(series.weight))


def series_transfer(
    series: ImageSeries,
    size: int,
    dose_weighting: DoseWeighting = "warp",
    which: torch.Tensor | None = None,
    *,
    signed: bool = True,
) -> torch.Tensor:
    """:func:`transfer` at the coefficients of an rfft of images of `size` at the series' pixel size.

    Returns
    -------
    (i, size, size//2+1) or (particles, tilts, size, size//2+1) float32
    """
    ky, kx = fourier.frequencies((size, size), series.pixel_size, series.images.device)
    return transfer(series, ky, kx, dose_weighting, which, signed=signed)

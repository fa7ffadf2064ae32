"""Sub-tomograms: particles reconstructed in three dimensions, straight from their tilt images.

No tomogram is cut into pieces: every particle is reconstructed by itself, at its own place and with its own
defocus, from patches that are larger than its box. With c_t = CTF × dose × tilt weight of tilt t, and κ the
overlap of the sections as in :mod:`weft.tilts.gridding`, a coefficient of the sub-tomogram is

    V = Σ_t κ c_t I_t / N,       N = Σ_t κ |c_t|       (amplitude: Tegunov & Cramer 2019, as Warp)
                                 N = √(Σ_t κ c_t²)     (white: noise of the same strength everywhere)
                                 N = Σ_t κ             (filtered: CTF- and dose-weighted mean)
                                 N = 1                 (premultiplied)

The images I_t have noise of one standard deviation. Programs of sub-tomogram averaging suppose noise that
depends on the resolution alone, and weight particles by their CTF volume C, with V = C · specimen + noise:
*white* is the choice that makes both true. C is found by putting a point, as its images show it, through the
same reconstruction; so it holds the missing wedge, the CTF, damage and whatever the reconstruction does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from weft.particles.image_series import ImageSeries, series_transfer
from weft.physics import fourier
from weft.physics.dose import DoseWeighting
from weft.settings import Settings, setting
from weft.tilts.backprojection import OVERSAMPLING, backproject, interpolation_response, oversample
from weft.tilts.gridding import Overlaps, Sections

__all__ = ["SubTomogramMaker", "SubTomogramSettings", "SubTomograms"]

TAPER = 0.85  # part of a patch's half side that is not tapered


class SubTomogramSettings(Settings):
    """How particles are reconstructed in three dimensions."""

    weighting: Literal["white", "amplitude", "filtered", "premultiplied"] = setting(
        "white",
        "What the weighted sum of images is divided by. white: noise of the same strength everywhere, which "
        "is what averaging programs suppose; amplitude: the sum of |CTF| weights, as Warp; filtered: the "
        "number of images, for programs that take no CTF volumes; premultiplied: nothing.",
    )
    regularisation: float = setting(
        0.01,
        "Added to the sum of weights that is divided by, in units of one perfect image.",
        ge=0.0,
        le=10.0,
    )
    normalise: bool = setting(
        True, "Bring the background of every sub-tomogram to mean 0 and standard deviation 1."
    )


@dataclass(frozen=True)
class SubTomograms:
    """Particles in three dimensions, in the tomogram's orientation.

    Attributes
    ----------
    volumes : (particles, n, n, n) float32
        Density positive; the particle's centre is voxel n//2.
    ctf : (particles, n, n, n//2+1) float32
        By what the specimen's transform is multiplied in them, in the order of an rfft. Where they are
        premultiplied, the square root of it: the CTF that both data and weights have once more.
    """

    volumes: torch.Tensor
    ctf: torch.Tensor


@dataclass(frozen=True)
class SubTomogramMaker:
    """Everything that is the same for all particles of a tilt series.

    Attributes
    ----------
    box, patch : int
        Pixels of a sub-tomogram, and of the images that it is made from.
    pixel_size : float
        Å.
    diameter : float
        Of the particle, Å.
    sections : Sections
    overlaps : Overlaps
    first, step : tensors
        Of :func:`~weft.tilts.backprojection.backproject`.
    taper : (patch, patch) float32
    scale : (patch, patch//2+1) float32
        Band and response of the interpolation.
    point : (patch, patch//2+1) float32
        Transform of a point in the middle of a patch.
    settings : SubTomogramSettings
    dose_model : str
    """

    box: int
    patch: int
    pixel_size: float
    diameter: float
    sections: Sections
    overlaps: Overlaps
    first: torch.Tensor
    step: torch.Tensor
    taper: torch.Tensor
    scale: torch.Tensor
    point: torch.Tensor
    settings: SubTomogramSettings
    dose_model: DoseWeighting

    @classmethod
    def of(
        cls,
        matrices: torch.Tensor,
        box: int,
        patch: int,
        pixel_size: float,
        diameter: float,
        settings: SubTomogramSettings | None = None,
        dose_model: DoseWeighting = "warp",
        device: torch.device | str = "cpu",
    ) -> SubTomogramMaker:
        """Prepare for particles of one tilt series.

        Parameters
        ----------
        matrices : (tilts, 3, 3) float64
            From the specimen to the images.
        box, patch : int
            Pixels of the sub-tomograms and of the images (``ImageSeriesSettings.padded(box)``).
        pixel_size, diameter : float
            Å.
        """
        sections = Sections.of(patch, (pixel_size, pixel_size), matrices, 0.5 / pixel_size, device=device)
        step = OVERSAMPLING * matrices[:, :2]
        first = OVERSAMPLING * (patch // 2) - step.sum(-1) * (box // 2)
        offset = torch.arange(patch, device=device, dtype=torch.float32) - patch // 2
        radius = torch.hypot(offset[:, None], offset[None]) / (patch // 2)
        fade = ((radius - TAPER) / (1.0 - TAPER)).clamp(0.0, 1.0)
        response = interpolation_response((patch, patch), device)
        row = torch.arange(patch, device=device)[:, None]
        column = torch.arange(patch // 2 + 1, device=device)
        turn = (row + column) * (patch // 2) * 2.0 / patch  # half turns
        return cls(
            box,
            patch,
            pixel_size,
            diameter,
            sections,
            Overlaps.between(sections, box * pixel_size),
            first.to(device, torch.float32),
            step.transpose(1, 2).to(device, torch.float32),
            0.5 + 0.5 * torch.cos(torch.pi * fade),
            (sections.within / (response * box)).float(),
            torch.cos(torch.pi * turn).float(),
            settings or SubTomogramSettings(),
            dose_model,
        )

    def reconstruct(self, series: ImageSeries) -> SubTomograms:
        """Reconstruct particles.

        Parameters
        ----------
        series : ImageSeries
            Cut with this maker's patch size, not multiplied by the CTF, centres at the middle of pixels.

        Raises
        ------
        ValueError
            Images of another kind.
        """
        if series.images.shape[-1] != self.patch or series.premultiplied:
            raise ValueError(
                f"sub-tomograms are made from images of {self.patch} pixels that have not been multiplied "
                f"by their CTF; these have {series.images.shape[-1]}"
            )
        n, box, device = len(series), self.box, series.images.device
        volumes = torch.zeros(n, box, box, box, device=device)
        ctf = torch.zeros(n, box, box, box // 2 + 1, device=device)
        for i in range(n):
            self._one(series, i, volumes[i], ctf[i])
        return SubTomograms(volumes, ctf)

    def _one(self, series: ImageSeries, i: int, volume: torch.Tensor, ctf: torch.Tensor) -> None:
        seen = (series.weight[i] > 0.0).nonzero()[:, 0]
        size = (self.patch, self.patch)
        transfer = torch.zeros(1, len(series.weight[i]), *self.scale.shape, device=volume.device)
        which = torch.stack([torch.full_like(seen, i), seen], dim=1)
        transfer[0, seen] = series_transfer(series, self.patch, self.dose_model, which)
        gain = (transfer / self._divisor(transfer, series.weight[i] > 0.0))[0, seen] * self.scale
        spectra = fourier.rfft2(series.images[i, seen] * self.taper) * gain
        points = (transfer[0, seen] * gain * self.point).to(spectra.dtype)
        backproject(volume, oversample(spectra, size), self.first[seen], self.step[seen])
        spread = torch.zeros_like(volume)
        backproject(spread, oversample(points, size), self.first[seen], self.step[seen])
        ctf.copy_(self._transform(spread))
        if self.settings.normalise:
            ground = volume[self._ground()]
            volume -= ground.mean()
            volume /= ground.std().clamp(min=1e-12)

    def _divisor(self, transfer: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        kind, extra = self.settings.weighting, self.settings.regularisation
        if kind == "premultiplied":
            return torch.ones_like(transfer)
        if kind == "amplitude":
            return self.overlaps.gather(transfer.abs()) + max(extra, 1e-9)
        if kind == "filtered":
            here = seen.to(transfer.device, torch.float32)[None, :, None, None]
            return (self.overlaps.gather(here.expand_as(transfer).contiguous())).clamp(min=1.0)
        return (self.overlaps.gather(transfer.square()) + max(extra * extra, 1e-9)).sqrt()

    def _radius(self) -> torch.Tensor:
        """(n, n, n): distance from the centre, voxels."""
        offset = torch.arange(self.box, device=self.taper.device, dtype=torch.float32) - self.box // 2
        square = offset * offset
        return (square[:, None, None] + square[:, None] + square).sqrt()

    def _ground(self) -> torch.Tensor:
        return torch.as_tensor(self._radius() > 0.5 * self.diameter / self.pixel_size)

    def _transform(self, spread: torch.Tensor) -> torch.Tensor:
        """CTF volume of what a point has become: (n, n, n//2+1)."""
        # all directions alike: a cube is thicker along its diagonals
        fade = (0.5 * self.box - self._radius()).clamp(0.0, 1.0)
        half = self.box // 2
        centred = (spread * fade).roll((-half, -half, -half), (0, 1, 2))
        out: torch.Tensor = torch.fft.rfftn(centred).real
        if self.settings.weighting == "premultiplied":
            out = out.clamp(min=0.0).sqrt()
        return out

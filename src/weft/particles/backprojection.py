"""A map from tilt images with known poses, whichever program has cut them.

As in :mod:`weft.particles.averaging`, whose sums are used, an image is H F plus noise of one power, with
H = CTF × dose × cosine of the tilt, and

    S(K) = Σ H F / (Σ H² + 1/τ²).

Images come as a flat list, as many of each particle as there are. Premultiplied images are H F already:
RELION and WarpTools multiply them by the weights of dose and tilt together with the CTF.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.formats.tilt_particles import TiltParticles
from weft.particles.averaging import Average, AveragingSettings, HalfSums, fsc_mask
from weft.particles.fsc import soft_sphere
from weft.particles.spectra import Band
from weft.physics import fourier
from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.dose import dose_mask, dose_weight
from weft.physics.optics import Optics
from weft.settings import setting

__all__ = ["Backprojection", "BackprojectionSettings", "batches", "brightness", "half_sets", "low_passed"]

#: Coefficients of images that are held at a time.
_BATCH = 4_000_000
#: Width of a low-pass filter's edge, to either side, as a part of its frequency.
_EDGE = 0.1
#: The sphere that is brighter than its surroundings, and its soft edge, in boxes; a map's shells that count.
_INNER, _INNER_EDGE, _COARSE = 0.4, 0.125, 4


class BackprojectionSettings(AveragingSettings):
    """How tilt images are projected back."""

    dose_weighting: Literal["warp", "grant", "none"] = setting(
        "grant",
        "What the dose leaves of the signal: the critical exposure of Grant & Grigorieff 2015 (grant), a "
        "B-factor of 4 Å² for each e/Å² (warp), or all of it (none); of premultiplied images it must be what "
        "they were multiplied by, which is grant in RELION and WarpTools.",
    )
    dose_mask: bool = setting(
        False,
        "Leave out frequencies at which the dose was beyond their optimal exposure, 2.51284 times the "
        "critical one (Grant & Grigorieff 2015).",
    )
    tilt_weighting: bool = setting(
        True, "Take the signal to fall with the cosine of the tilt, as the ice gets thicker."
    )
    flatten: bool = setting(
        True,
        "Leave nothing outside of the mask in the map of both halves, where neighbours and noise are; the "
        "half maps are left whole.",
    )
    mirror: bool = setting(
        False, "Make the mirror image of the map: for tilt series whose angles have the wrong sign."
    )
    regularise: Literal["fsc", "constant"] = setting(
        "fsc",
        "How the map of both halves is filtered: by their FSC (Wiener filter), or by a constant beside Σ H².",
    )
    constant: float = setting(
        0.1, "That constant, as a share of the mean Σ H² of all frequencies.", ge=0.0, le=100.0
    )
    lowpass: float = setting(
        0.0, "Filter the map of both halves to this resolution; 0 does not.", unit="Å", ge=0.0, le=1000.0
    )


class Backprojection:
    """Sums of both halves, to which tilt images are added batch by batch.

    Parameters
    ----------
    particles : TiltParticles
    half : (p) int64
        0 or 1 for each particle: see :func:`half_sets`.
    settings : BackprojectionSettings, optional
    device : torch.device
        Does the work.
    """

    def __init__(
        self,
        particles: TiltParticles,
        half: NDArray[np.int64],
        settings: BackprojectionSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.particles = particles
        self.settings = settings or BackprojectionSettings()
        self.half = torch.from_numpy(np.array(half, dtype=np.int64))
        self.device = torch.device(device)
        self.band = Band.of(particles.box, particles.pixel_size, device=self.device)
        self.sums = HalfSums(particles.box, self.settings, self.device)

    def add(self, which: NDArray[np.int64], images: torch.Tensor) -> None:
        """Add all images of some particles.

        Parameters
        ----------
        which : (k) int64
            The particles; :func:`batches` says how many at a time.
        images : (m, n, n) float32
            Theirs, one particle after the other; density positive.
        """
        chosen = self.particles.select(which)
        transfer = self.transfer(chosen)
        values = self._spectra(chosen, images)
        # of premultiplied images only what the dose mask leaves out is to be taken away
        values *= (transfer != 0.0).float() if chosen.premultiplied else transfer
        rows = self._tensor(chosen.rotation[:, :2])
        if self.settings.mirror:
            rows[:, :, 2].neg_()
        half = self.half[torch.from_numpy(which)]
        self.sums.add_sections(
            self.band,
            rows,
            values,
            transfer.square_(),
            half.repeat_interleave(torch.from_numpy(chosen.count)),
        )
        self.sums.count(half)

    def transfer(self, particles: TiltParticles) -> torch.Tensor:
        """H of all images at the coefficients of the band.

        Returns
        -------
        (m, c) float32
        """
        settings, extent = self.settings, self.band.size * self.band.pixel_size
        ky, kx = self.band.uy / extent, self.band.ux / extent
        k = self.band.k
        out = torch.ones(particles.images, len(self.band), device=self.device)
        azimuth = torch.atan2(ky, kx)
        if not particles.has_ctf and not bool((particles.dose > 0.0).any()):
            return out * self._column(particles.cos_tilt) if settings.tilt_weighting else out
        for optics, images in _optics(particles):
            if optics.voltage <= 0.0:
                raise ItemError(
                    f"{particles.path}: it says the dose of its images but not the voltage, on which the "
                    "damage depends; choose --dose-weighting none"
                )
            u, v, angle, phase = (
                self._column(values[images])
                for values in (
                    particles.defocus_u,
                    particles.defocus_v,
                    particles.angle,
                    particles.phase_shift,
                )
            )
            at = torch.from_numpy(images).to(self.device)
            dose = particles.dose[images]
            if particles.has_ctf:
                out[at] = ctf(k * k, astigmatic_defocus(u, v, angle, azimuth), optics, phase)
            if settings.dose_weighting != "none":
                left = dose_weight(k, self._column(dose), optics.voltage, settings.dose_weighting)
                out[at] *= left
            if settings.dose_mask:
                out[at] *= dose_mask(k, self._column(dose), optics.voltage)
        if settings.tilt_weighting:
            out *= self._column(particles.cos_tilt)
        return out

    def finish(self, mask: torch.Tensor | None = None, invert: bool | None = None) -> tuple[Average, float]:
        """Make the maps and compare the halves.

        Parameters
        ----------
        mask : (n, n, n) float32, optional
            For the FSC; by default the settings' soft sphere.
        invert : bool, optional
            Whether density was dark in the images; by default the map is taken to be brighter inside (of the
            mask, or of a sphere of 40 % of the box) than around.

        Returns
        -------
        average : Average
            Density positive; the map of both halves flattened and low-passed as the settings say.
        contrast : float
            What that rests on, :func:`brightness` of the map before it was inverted: −1 to 1.

        Raises
        ------
        ItemError
            A half has no particles, or the sphere does not fit into the box.
        """
        settings, pixel = self.settings, self.particles.pixel_size
        given = mask is not None
        if mask is None:
            mask = fsc_mask(self.particles.box, pixel, settings)
        constant = settings.constant if settings.regularise == "constant" else None
        found = self.sums.finish(pixel, mask, constant)
        size = self.particles.box
        inside = mask if given else soft_sphere(size, _INNER * size, _INNER_EDGE * size)
        contrast = brightness(low_passed(found.map, 1.0, size / _COARSE), inside)
        if contrast < 0.0 if invert is None else invert:
            for sums in self.sums.halves:
                sums.data.neg_()
            found = replace(found, halves=-found.halves, map=-found.map)
        if settings.flatten:
            found = replace(found, map=found.map * mask.to(found.map.device))
        if settings.lowpass > 0.0:
            found = replace(found, map=low_passed(found.map, pixel, settings.lowpass))
        return found, contrast

    def _spectra(self, particles: TiltParticles, images: torch.Tensor) -> torch.Tensor:
        """(m, c) complex64: coefficients as if each particle lay in the middle of its image."""
        band = self.band
        full = fourier.rfft2(images.to(self.device).float())[:, band.rows, band.columns]
        centre = band.size // 2 + self._tensor(particles.shift) / band.pixel_size
        angle = centre[:, :1] * band.ux + centre[:, 1:] * band.uy
        angle *= 2.0 * math.pi / band.size
        return full * torch.polar(torch.ones_like(angle), angle)

    def _tensor(self, values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def _column(self, values: NDArray[np.float64]) -> torch.Tensor:
        """(m) → (m, 1)."""
        return self._tensor(values)[:, None]


def _optics(particles: TiltParticles) -> Iterator[tuple[Optics, NDArray[np.int64]]]:
    """Every microscope that the images are from, and which these are."""
    constants = np.stack([particles.voltage, particles.cs, particles.amplitude], axis=1)
    distinct, group = np.unique(constants, axis=0, return_inverse=True)
    for i, (voltage, cs, amplitude) in enumerate(distinct.tolist()):
        optics = Optics(particles.pixel_size, voltage=voltage, cs=cs, amplitude=amplitude)
        yield optics, (group.reshape(-1) == i).nonzero()[0]


def batches(particles: TiltParticles) -> Iterator[NDArray[np.int64]]:
    """Indices of particles, so many at a time that their coefficients fit into memory."""
    room = max(1, _BATCH // (particles.box * particles.box // 2))
    first, images = 0, 0
    for i, count in enumerate(particles.count.tolist()):
        if images + count > room and i > first:
            yield np.arange(first, i)
            first, images = i, 0
        images += count
    if first < len(particles):
        yield np.arange(first, len(particles))


def half_sets(particles: TiltParticles, seed: int = 0) -> NDArray[np.int64]:
    """0 or 1 for each particle: as the file says, or else at random, equally many.

    Raises
    ------
    ItemError
        The file says it of some particles only.
    """
    given = particles.half >= 0
    if given.all() and len(particles):
        return particles.half
    if given.any():
        first = particles.particle[int((~given).argmax())]
        raise ItemError(
            f"{particles.path}: {int(given.sum())} of {len(particles)} particles have a half-set "
            f"(rlnRandomSubset), {first} and others have none; give it for all or for none"
        )
    order = np.random.default_rng(seed).permutation(len(particles))
    return np.asarray(order % 2, np.int64)


def brightness(volume: torch.Tensor, mask: torch.Tensor) -> float:
    """How much brighter a map is inside of a mask than outside: the correlation of the two, −1 to 1."""
    inside = mask.to(volume.device) - mask.mean()
    centred = volume - volume.mean()
    norm = float((inside.square().sum() * centred.square().sum()).sqrt())
    return float((inside * centred).sum()) / max(norm, 1e-30)


def low_passed(volume: torch.Tensor, pixel_size: float, resolution: float) -> torch.Tensor:
    """A map without what is finer than `resolution` (Å), with a soft edge."""
    shape = (len(volume),) * 3
    k = fourier.radius_3d(shape, pixel_size, volume.device)
    return fourier.irfft3(fourier.rfft3(volume) * fourier.cosine_low_pass(k, resolution, _EDGE), shape)

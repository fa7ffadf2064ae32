"""Tilt images become Fourier coefficients whose signal and noise are known.

The model of an image is Y(k) = H(k) V(Rᵀk) + noise, with H = CTF × dose weight × weight of the tilt. Weights
that say how much of the signal is left belong to H, beside the CTF: they attenuate signal, not noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from weft.heterogeneity.lattice import Lattice
from weft.particles.box import particle_diameter
from weft.physics.ctf import astigmatic_defocus, ctf_phase
from weft.physics.dose import DoseWeighting, dose_mask, dose_weight
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["ImageFacts", "PreparationSettings", "Prepared", "prepare", "remove_background", "signal_weights"]

#: Below this a CTF that images were multiplied by cannot be divided out again.
_LEAST_CTF = 0.1
#: The same of weights of dose and tilt.
_LEAST_WEIGHT = 0.02


class PreparationSettings(Settings):
    """How images are read."""

    diameter: float | None = setting(
        None, "Diameter of the particle; three quarters of the box by default.", unit="Å", gt=0.0
    )
    resolution: float = setting(
        0.0, "Finest resolution that is used; 0 is that of the pixels.", unit="Å", ge=0.0
    )
    dose_weighting: DoseWeighting = setting(
        "grant",
        "How the signal fades with the dose: by Grant & Grigorieff's critical exposure, as a B factor of "
        "4 Å² for each e/Å² as in Warp, or not at all.",
    )
    dose_mask: bool = setting(
        True, "Leave out frequencies at which an image comes later than the optimal exposure."
    )
    tilt_weighting: bool = setting(True, "Expect the signal to fall with the cosine of the tilt.")
    contrast: Literal["auto", "light", "dark"] = setting(
        "auto", "Whether particles are light or dark in the images; auto finds out."
    )

    def diameter_of(self, box: int, pixel_size: float) -> float:
        """Å."""
        return particle_diameter(self.diameter or 0.0, box, pixel_size)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of m images.

    Attributes
    ----------
    rotation : (m, 3, 3) float32
        From the map's coordinates to the image's.
    shift : (m, 2) float32
        x, y, Å: the particle's centre relative to the centre of pixel n//2.
    defocus_u, defocus_v, angle, phase_shift : (m) float32
        Å, Å, degrees, degrees.
    dose, cos_tilt : (m) float32
        e/Å², and the tilt's cosine.
    voltage, cs, amplitude : (m) float32
        kV, mm.
    """

    rotation: torch.Tensor
    shift: torch.Tensor
    defocus_u: torch.Tensor
    defocus_v: torch.Tensor
    angle: torch.Tensor
    phase_shift: torch.Tensor
    dose: torch.Tensor
    cos_tilt: torch.Tensor
    voltage: torch.Tensor
    cs: torch.Tensor
    amplitude: torch.Tensor

    def __len__(self) -> int:
        return len(self.rotation)


@dataclass(frozen=True)
class Prepared:
    """Coefficients of m images.

    Attributes
    ----------
    values : (m, c) complex64
    transfer : (m, c) float32
        What the signal was multiplied by: H.
    weight : (m, c) float32
        The part of it that is not the CTF.
    rotation : (m, 3, 3) float32
    """

    values: torch.Tensor
    transfer: torch.Tensor
    weight: torch.Tensor
    rotation: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Of memory."""
        held = (self.values, self.transfer, self.weight, self.rotation)
        return sum(x.numel() * x.element_size() for x in held)


def remove_background(images: torch.Tensor, shift: torch.Tensor, radius: float) -> torch.Tensor:
    """Images without the mean of what lies outside of the particle.

    Parameters
    ----------
    images : (m, n, n) float32
    shift : (m, 2) float32
        x, y, pixels.
    radius : float
        Pixels.
    """
    n = images.shape[-1]
    at = torch.arange(n, dtype=torch.float32, device=images.device) - n // 2
    x, y = at - shift[:, :1], at - shift[:, 1:]
    outside = (y * y)[:, :, None] + (x * x)[:, None] > radius * radius
    count = outside.sum((1, 2)).clamp(min=1)
    mean = (images * outside).sum((1, 2)) / count
    return images - mean[:, None, None]


def signal_weights(facts: ImageFacts, k: torch.Tensor, settings: PreparationSettings) -> torch.Tensor:
    """Dose weight × cosine of the tilt, 0 where the dose mask closes: (m, c)."""
    out = torch.ones(len(facts), len(k), device=k.device)
    for voltage in torch.unique(facts.voltage).tolist():
        of = facts.voltage == voltage
        dose = facts.dose[of, None]
        if settings.dose_weighting != "none":
            out[of] *= dose_weight(k, dose, voltage, settings.dose_weighting)
        if settings.dose_mask:
            out[of] *= dose_mask(k, dose, voltage)
    if settings.tilt_weighting:
        out *= facts.cos_tilt[:, None]
    return out


def _ctf(facts: ImageFacts, lattice: Lattice) -> torch.Tensor:
    kx, ky = lattice.kx, lattice.ky
    k2, azimuth = kx * kx + ky * ky, torch.atan2(ky, kx)
    out = torch.empty(len(facts), len(lattice))
    microscope = torch.stack([facts.voltage, facts.cs, facts.amplitude], 1)
    for row in torch.unique(microscope, dim=0):
        of = (microscope == row).all(1)
        voltage, cs, amplitude = (round(float(v), 6) for v in row)
        optics = Optics(pixel_size=lattice.pixel_size, voltage=voltage, cs=cs, amplitude=amplitude)
        u, v, angle = (x[of, None] for x in (facts.defocus_u, facts.defocus_v, facts.angle))
        defocus = astigmatic_defocus(u, v, angle, azimuth)
        out[of] = ctf_phase(k2, defocus, optics, facts.phase_shift[of, None]).sin_()
    return out


def prepare(
    images: torch.Tensor,
    facts: ImageFacts,
    lattice: Lattice,
    settings: PreparationSettings,
    *,
    has_ctf: bool = True,
    premultiplied: bool = False,
) -> Prepared:
    """Coefficients of images, and what their signal was multiplied by.

    Parameters
    ----------
    images : (m, n, n) float32
    facts : ImageFacts
    lattice : Lattice
    settings : PreparationSettings
    has_ctf : bool
        False takes the CTF to be 1.
    premultiplied : bool
        Images were multiplied by their CTF and, as Weft, RELION 5 and WarpTools do it, by the weights of dose
        and tilt with it: by H. That is taken back as far as it can be: they are divided by its modulus, which
        leaves images whose phases are flipped and whose noise is as it was; where it is too small for that
        they count nothing.
    """
    radius = 0.5 * settings.diameter_of(lattice.box, lattice.pixel_size) / lattice.pixel_size
    values = lattice.coefficients(
        remove_background(images, facts.shift / lattice.pixel_size, radius), facts.shift
    )
    weight = signal_weights(facts, torch.hypot(lattice.kx, lattice.ky), settings)
    transfer = _ctf(facts, lattice) if has_ctf else torch.ones_like(weight)
    if premultiplied:
        transfer = transfer.abs()
        kept = (transfer >= _LEAST_CTF) & (weight >= _LEAST_WEIGHT)
        values = torch.where(kept, values / (transfer * weight).clamp(min=1e-6), torch.zeros(()))
        transfer, weight = transfer * kept, weight * kept
    return Prepared(values, transfer * weight, weight, facts.rotation)

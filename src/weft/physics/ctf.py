"""The contrast transfer function.

Signs (docs/conventions.md): defocus positive for underfocus, CTF = sin(χ + φ), positive at low
frequency for underfocus. RELION's and CTFFIND's CTF is the negative of this one.
"""

from __future__ import annotations

import math

import torch

from weft.physics.optics import Optics

__all__ = ["astigmatic_defocus", "ctf", "ctf_phase", "matching_frequency"]


def astigmatic_defocus(
    defocus_u: torch.Tensor | float,
    defocus_v: torch.Tensor | float,
    angle: torch.Tensor | float,
    azimuth: torch.Tensor,
) -> torch.Tensor:
    """Defocus along a direction of the image.

    Parameters
    ----------
    defocus_u, defocus_v : float or tensor
        Å, along the two principal axes.
    angle : float or tensor
        Degrees from +x to the axis of `defocus_u`, counter-clockwise in array coordinates.
    azimuth : tensor
        Radians, atan2(ky, kx).

    Returns
    -------
    tensor
        Å.
    """
    a = torch.as_tensor(angle, dtype=azimuth.dtype, device=azimuth.device) * (math.pi / 180.0)
    return 0.5 * (defocus_u + defocus_v) + 0.5 * (defocus_u - defocus_v) * torch.cos(2.0 * (azimuth - a))


def ctf_phase(
    k2: torch.Tensor, defocus: torch.Tensor | float, optics: Optics, phase_shift: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """The argument of the sine, χ(k) + φ, in radians.

    χ = π λ z k² − ½ π Cs λ³ k⁴ (Rohou & Grigorieff 2015, eq. 2 with the sign of z for underfocus);
    φ = phase plate + arcsin(amplitude contrast).

    Parameters
    ----------
    k2 : tensor
        Squared spatial frequency, 1/Å².
    defocus : float or tensor
        Å, positive for underfocus; broadcast against `k2`.
    optics : Optics
    phase_shift : float or tensor
        Of a phase plate, degrees.
    """
    wl = optics.wavelength
    chi = (math.pi * wl) * k2 * (defocus - (0.5 * optics.cs_angstrom * wl * wl) * k2)
    return chi + (phase_shift * (math.pi / 180.0) + optics.amplitude_phase)


def ctf(
    k2: torch.Tensor, defocus: torch.Tensor | float, optics: Optics, phase_shift: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """sin(χ + φ): see :func:`ctf_phase` for the parameters."""
    return torch.sin(ctf_phase(k2, defocus, optics, phase_shift))


def matching_frequency(
    k: torch.Tensor, defocus: torch.Tensor | float, target: torch.Tensor | float, optics: Optics
) -> torch.Tensor:
    """The frequency at which a CTF of `target` defocus has the phase that one of `defocus` has at `k`.

    The rescaling of the paper ("Estimation of local defocus", last equation) for square pixels:
    z k² − ½ Cs λ² k⁴ is kept. Used to average spectra of different local defoci. Where there is no
    such frequency (beyond the target's turning point) the result is NaN.

    Parameters
    ----------
    k : tensor
        1/Å.
    defocus, target : Å.

    Returns
    -------
    tensor
        1/Å.
    """
    c = 0.5 * optics.cs_angstrom * optics.wavelength**2
    k2 = k * k
    value = k2 * (defocus - c * k2)
    if c == 0.0:
        return torch.sqrt(value / target)
    inner = target * target - 4.0 * c * value
    # numerically stable root of c q² − z q + value = 0 that tends to value / z for small c
    sign = torch.sign(torch.as_tensor(target))
    root = 2.0 * value / (target + sign * torch.sqrt(inner))
    return torch.sqrt(root)

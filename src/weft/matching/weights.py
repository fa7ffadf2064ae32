"""What a tomogram shows of a structure at a place, and how much noise: the local three-dimensional CTF.

With the weights κ of :mod:`weft.tilts.gridding` for how near a coefficient lies to the section of tilt t, a
reconstruction Σ_t κ f_t I_t / (Σ_t κ g_t + r) of images I_t = c_t d_t S + noise of variance 1/n_t keeps

    H(k) = Σ_t κ f_t c_t d_t / (Σ_t κ' g'_t + r)        of the structure's amplitude S, and has
    N(k) = Σ_t κ f_t² / n_t / (Σ_t κ' g'_t + r)²        as its noise's power

with κ' and g' at the foot of k on the nearest section, as images are divided on their sections, not between
(c: CTF at the place, d: what the dose has left, f: the filter of the images, g: what the sum is divided by.)
A template is multiplied by H before it is compared; dividing template and tomogram by √N makes the noise
white, which makes the correlation a matched filter (Turin 1960). Tegunov & Cramer 2019 do the former
("Template matching in micrographs and tomograms").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.dose import dose_weight
from weft.physics.geometry import TiltGeometry
from weft.tilts.gridding import TiltContrast

__all__ = ["Imaging", "LocalWeights", "Processing", "local_weights", "tile_length"]

Processing = Literal["power", "amplitude", "flipped", "uncorrected"]


@dataclass(frozen=True)
class Imaging:
    """How a tomogram came to be.

    Attributes
    ----------
    geometry : TiltGeometry
        Of the tilt series; `hand` 0 gives all places a tilt's own defocus.
    contrast : TiltContrast
        Its `weight` is the relative number of electrons n_t of each image.
    processing : {"power", "amplitude", "flipped", "uncorrected"}
        What the reconstruction did about the CTF: data × CTF divided by Σ CTF², by Σ |CTF|, phases flipped by
        the CTF at the volume's centre, or nothing.
    has_ctf : bool
        Whether the CTF is known.
    dose_weighted, cosine : bool
        Whether the reconstruction weighted images by dose, and by the cosine of their tilt.
    regularisation : float
        r of the reconstruction.
    dose_model : {"warp", "grant", "none"}
        How signal is lost with dose; none where the dose is not known.
    """

    geometry: TiltGeometry
    contrast: TiltContrast
    processing: Processing = "power"
    has_ctf: bool = True
    dose_weighted: bool = True
    cosine: bool = False
    regularisation: float = 0.1
    dose_model: Literal["warp", "grant", "none"] = "warp"


@dataclass(frozen=True)
class LocalWeights:
    """Of one place, in the order of an rfft.

    Attributes
    ----------
    signal : (z, y, x//2+1) float32
        H.
    noise : (z, y, x//2+1) float32
        N, up to a constant; 0 where no tilt has measured anything, and beyond Nyquist's frequency.
    """

    signal: torch.Tensor
    noise: torch.Tensor


def local_weights(
    imaging: Imaging,
    place: torch.Tensor,
    shape: tuple[int, int, int],
    voxel_size: float,
    thickness: float,
    *,
    wedge_only: bool = False,
) -> LocalWeights:
    """H and N around a place.

    Parameters
    ----------
    imaging : Imaging
    place : (3,) tensor
        x, y, z, Å from the first voxel of the full volume.
    shape : (int, int, int)
        z, y, x of the box whose transform is weighted.
    voxel_size : float
        Å.
    thickness : float
        D of κ, Å: about the template's size, so that coefficients between the sections that a template of
        this size cannot tell apart count as seen.
    wedge_only : bool
        H and N are 1 where any tilt has seen something.

    Returns
    -------
    LocalWeights
    """
    geometry, contrast = imaging.geometry, imaging.contrast
    defocus = geometry.project(place.cpu().double()[None])[:, 0, 2].numpy()
    count = contrast.weight.numpy().copy()
    if imaging.cosine:
        count *= geometry.matrices[:, 2, 2].abs().numpy()
    with_ctf = imaging.has_ctf and not wedge_only
    tilts, lens = _table(contrast, defocus) if with_ctf else _no_ctf(len(geometry))
    signal, noise = _weights(
        shape,
        voxel_size,
        np.ascontiguousarray(geometry.matrices.numpy()[count > 0.0]),
        thickness,
        tilts[count > 0.0],
        lens,
        (geometry.defocus.numpy() - defocus)[count > 0.0],
        _dose_table(contrast, voxel_size, "none" if wedge_only else imaging.dose_model)[count > 0.0],
        count[count > 0.0],
        {"power": 0, "amplitude": 1, "flipped": 2, "uncorrected": 3}[imaging.processing] if with_ctf else 3,
        imaging.dose_weighted,
        imaging.regularisation if imaging.processing in ("power", "amplitude") else 0.0,
    )
    if wedge_only:
        signal = (noise > 0.0).astype(np.float32)
        noise = signal
    device = place.device
    return LocalWeights(torch.from_numpy(signal).to(device), torch.from_numpy(noise).to(device))


def tile_length(frequency: float, wavelength: float, phase_error: float) -> float:
    """How long (Å) a part of the tomogram may be that has one CTF.

    From its middle to its corner the defocus changes by at most half of √2 times its length (along x and the
    beam), which at a spatial frequency k (1/Å) turns the phase by π λ Δz k² ≤ `phase_error` (radians).
    """
    return 2.0 * phase_error / (math.sqrt(2.0) * math.pi * wavelength * frequency * frequency)


def _table(
    contrast: TiltContrast, defocus: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(tilts, 4): defocus, half astigmatism, angle (rad), constant phase; and λ, ½ Cs λ²."""
    optics = contrast.optics
    phase = np.radians(contrast.phase_shift.numpy()) + optics.amplitude_phase
    rows = np.stack(
        [defocus, 0.5 * contrast.astigmatism.numpy(), np.radians(contrast.angle.numpy()), phase], axis=1
    )
    return rows, np.array([optics.wavelength, 0.5 * optics.cs_angstrom * optics.wavelength**2])


def _no_ctf(tilts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A CTF of one everywhere: a phase of π/2."""
    rows = np.zeros((tilts, 4))
    rows[:, 3] = 0.5 * np.pi
    return rows, np.array([0.0, 0.0])


def _dose_table(
    contrast: TiltContrast, voxel_size: float, model: Literal["warp", "grant", "none"]
) -> NDArray[np.float32]:
    """(tilts, 512): what is left of the amplitude, at frequencies up to √3 times Nyquist's."""
    k = torch.linspace(0.0, np.sqrt(3.0) * 0.5 / voxel_size, 512, dtype=torch.float64)
    if model == "none":
        return np.ones((len(contrast.dose), 512), dtype=np.float32)
    found = [dose_weight(k, float(d), contrast.optics.voltage, model) for d in contrast.dose]
    return torch.stack(found).float().numpy()


@numba.njit(nogil=True, fastmath=True, cache=True)
def _ctf(tilt, further, u, v, lens):  # type: ignore[no-untyped-def]
    """Of a row of the table, at a defocus that is greater by `further`."""
    k2 = u * u + v * v
    z = tilt[0] + further
    if tilt[1] != 0.0:
        z += tilt[1] * np.cos(2.0 * (np.arctan2(v, u) - tilt[2]))
    return np.sin(np.pi * lens[0] * k2 * (z - lens[1] * k2) + tilt[3])


@numba.njit(nogil=True, fastmath=True, cache=True)
def _weights(shape, voxel, matrices, thickness, tilts, lens, offset, left, counts, how, weighted, floor):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    half = nx // 2 + 1
    signal = np.zeros((nz, ny, half), dtype=np.float32)
    noise = np.zeros((nz, ny, half), dtype=np.float32)
    top = np.sqrt(3.0) * 0.5 / voxel
    limit = 0.25 / (voxel * voxel)
    for iz in range(nz):
        kz = (iz if 2 * iz < nz else iz - nz) / (nz * voxel)
        for iy in range(ny):
            ky = (iy if 2 * iy < ny else iy - ny) / (ny * voxel)
            for ix in range(half):
                kx = ix / (nx * voxel)
                if kx * kx + ky * ky + kz * kz > limit:
                    continue
                above, below, power, nearest, section = 0.0, 0.0, 0.0, 0.0, 0
                for t in range(len(matrices)):
                    m = matrices[t]
                    d = abs(m[2, 0] * kx + m[2, 1] * ky + m[2, 2] * kz) * thickness
                    if d >= 1.0:
                        continue
                    near = 1.0 - d
                    if near > nearest:
                        nearest, section = near, t
                    u = m[0, 0] * kx + m[0, 1] * ky + m[0, 2] * kz
                    v = m[1, 0] * kx + m[1, 1] * ky + m[1, 2] * kz
                    c = _ctf(tilts[t], 0.0, u, v, lens)
                    decay = left[t, min(511, int(np.sqrt(u * u + v * v) / top * 511.0 + 0.5))]
                    weight = counts[t] * decay if weighted else counts[t]
                    if how == 0 or how == 1:
                        f = weight * c
                    elif how == 2:
                        f = weight if _ctf(tilts[t], offset[t], u, v, lens) >= 0.0 else -weight
                    else:
                        f = weight
                    above += near * f * c * decay
                    power += near * f * f / counts[t] if counts[t] > 0.0 else 0.0
                if nearest == 0.0:
                    continue
                # data lie on the sections, and were divided by the sum of weights there
                n = matrices[section, 2]
                off = n[0] * kx + n[1] * ky + n[2] * kz
                fx, fy, fz = kx - off * n[0], ky - off * n[1], kz - off * n[2]
                for t in range(len(matrices)):
                    m = matrices[t]
                    d = abs(m[2, 0] * fx + m[2, 1] * fy + m[2, 2] * fz) * thickness
                    if d >= 1.0:
                        continue
                    g = 1.0
                    if how < 2:
                        u = m[0, 0] * fx + m[0, 1] * fy + m[0, 2] * fz
                        v = m[1, 0] * fx + m[1, 1] * fy + m[1, 2] * fz
                        c = _ctf(tilts[t], 0.0, u, v, lens)
                        decay = left[t, min(511, int(np.sqrt(u * u + v * v) / top * 511.0 + 0.5))]
                        g = counts[t] * (decay if weighted else 1.0) * (c * c if how == 0 else abs(c))
                    below += (1.0 - d) * g
                scale = 1.0 / max(below + floor, 1e-9)
                signal[iz, iy, ix] = above * scale
                noise[iz, iy, ix] = power * scale * scale
    return signal, noise

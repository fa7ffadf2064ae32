"""Overlapping patches of a movie's frames as Fourier coefficients, and how well they agree when shifted.

The model of one patch: frame f shows the same signal s(k), displaced by t_f and faded by the dose,
in white noise of unit power (after whitening)::

    X_f(k) = a_f(k) s(k) exp(−2πi k·t_f) + noise

With a Gaussian prior of power S(k) on the signal, integrating it out leaves the log-likelihood of the
tracks (up to a constant)

    J = Σ_k  S / (1 + S Σ_f a_f²) · |Σ_f a_f X_f exp(2πi k·t_f)|²

which is the paper's cost, Σ_f |X_f − mean|², with the weight of every coefficient taken from the data
(its signal-to-noise ratio) instead of a fixed B-factor. The expected second derivatives (Fisher
information) follow from S alone, so a Gauss-Newton step needs one pass over the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics import fourier
from weft.physics.dose import dose_weight
from weft.physics.windows import Windows

__all__ = [
    "Patches",
    "SignalModel",
    "cut_patches",
    "estimate_signal",
    "gradient",
    "information",
    "shifted_sums",
]

CHECKERBOARD = 6  # Fourier pixels: cells of this size alternate between the two halves


@dataclass(frozen=True)
class Patches:
    """Whitened, dose-attenuated Fourier coefficients of all patches in all frames.

    Attributes
    ----------
    data : (patches, frames, ky, kx) complex64
        a_f(k) X_f(k), zero outside the fit's band.
    centers : (patches, 2) float64
        x, y of their centres, Å.
    ky, kx : (rows,), (columns,) float32
        1/Å.
    shells : (ky, kx) int64
        Index of the radial bin of every coefficient.
    shell_k : (shells,) float64
        Frequency of the bins, 1/Å.
    multiplicity : (ky, kx) float32
        1 in the band, ½ on the kx = 0 column (it holds both Friedel mates), 0 outside.
    halves : (2, ky, kx) float32
        `multiplicity` of two sets of coefficients with independent noise, for cross-validation.
    attenuation : (frames, shells) float32
        a_f in every radial bin.
    self_power : (patches, ky, kx) float32
        Σ_f |a_f X_f|².
    shares : (patches,) float32
        Part of each patch's coefficients that are independent of its neighbours'.
    """

    data: torch.Tensor
    centers: NDArray[np.float64]
    ky: torch.Tensor
    kx: torch.Tensor
    shells: torch.Tensor
    shell_k: NDArray[np.float64]
    multiplicity: torch.Tensor
    halves: torch.Tensor
    attenuation: torch.Tensor
    self_power: torch.Tensor
    shares: torch.Tensor

    @property
    def n_frames(self) -> int:
        return int(self.data.shape[1])

    def radial_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of ``(ky, kx)`` values in every radial bin of the band, ``(shells,)``."""
        n = len(self.shell_k)
        flat = self.shells.reshape(-1)
        weight = self.multiplicity.reshape(-1)
        total = torch.bincount(flat, values.reshape(-1) * weight, minlength=n)
        return total / torch.bincount(flat, weight, minlength=n).clamp_min(1e-9)

    def counts(self, multiplicity: torch.Tensor) -> torch.Tensor:
        """Coefficients in every radial bin, ``(shells,)``."""
        return torch.bincount(
            self.shells.reshape(-1), multiplicity.reshape(-1).double(), minlength=len(self.shell_k)
        )


@dataclass(frozen=True)
class SignalModel:
    """Signal power relative to the noise in one frame.

    Attributes
    ----------
    spectrum : (shells,) float32
        Mean over patches.
    strength : (patches,) float32
        Factor of each patch.
    """

    spectrum: torch.Tensor
    strength: torch.Tensor


def _checkerboard(n_rows: NDArray[np.int64], n_columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Two sets of Fourier pixels in alternating cells, a guard line between cells.

    A window spreads each coefficient over its neighbours; without the guard the halves would share noise.
    """
    c = CHECKERBOARD
    color = (n_rows[:, None] // c + n_columns[None, :] // c) % 2
    guard = (n_rows[:, None] % c != 0) & (n_columns[None, :] % c != 0)
    return np.stack([(color == h) & guard for h in (0, 1)]).astype(np.float32)


def cut_patches(
    frames: torch.Tensor,
    pixel_size: tuple[float, float],
    *,
    size: float,
    band: tuple[float, float],
    b_factor: float,
    doses: NDArray[np.float64],
    voltage: float,
) -> Patches:
    """Cut overlapping windowed patches and keep the Fourier coefficients in a band.

    Parameters
    ----------
    frames : (frames, y, x) float32 tensor
        Already low-passed and binned.
    pixel_size : (float, float)
        Of y and x, Å.
    size : float
        Side of a patch in Å; neighbours share at least half of it. The window is a half sine: its
        square is the raised cosine, and the squares of neighbours sum to one.
    band : (float, float)
        Lowest and highest frequency, 1/Å.
    b_factor : float
        Å², additional attenuation of the signal expected at high frequency: exp(−B k²/4).
    doses : (frames,) array
        Accumulated dose at the end of each frame, e/Å².
    voltage : float
        kV.
    """
    n_frames, ny, nx = frames.shape
    side = [
        min(fourier.fast_size(round(size / p)), n - n % 2) for p, n in zip(pixel_size, (ny, nx), strict=True)
    ]
    down, across = Windows.along(ny, side[0], border=True), Windows.along(nx, side[1], border=True)
    device = frames.device
    tapers = [torch.as_tensor(w.tapers, device=device) for w in (down, across)]

    ky_full = np.fft.fftfreq(side[0], pixel_size[0])
    kx_full = np.fft.rfftfreq(side[1], pixel_size[1])
    top = int((ky_full[: (side[0] + 1) // 2] <= band[1]).sum())  # rows with ky ≥ 0; the others mirror them
    bottom, columns = top - 1, int((kx_full <= band[1]).sum())
    ky, kx = np.concatenate([ky_full[:top], ky_full[side[0] - bottom :]]), kx_full[:columns]
    k = np.hypot(ky[:, None], kx[None, :])
    dk = 1.0 / max(side[0] * pixel_size[0], side[1] * pixel_size[1])
    shells = np.rint(k / dk).astype(np.int64)
    shell_k = np.arange(shells.max() + 1) * dk
    inside = ((k >= band[0]) & (k <= band[1])).astype(np.float32)
    inside[:, 0] *= 0.5
    halves = inside * _checkerboard(
        np.rint(ky * side[0] * pixel_size[0]).astype(np.int64),
        np.rint(kx * side[1] * pixel_size[1]).astype(np.int64),
    )

    shape = (len(down.starts) * len(across.starts), n_frames, len(ky), len(kx))
    data = torch.empty(shape, dtype=torch.complex64, device=device)
    i = 0
    for y, taper_y in zip(down.starts, tapers[0], strict=True):
        for x, taper_x in zip(across.starts, tapers[1], strict=True):
            patch = frames[:, y : y + side[0], x : x + side[1]]
            patch = (patch - patch.mean((-2, -1), keepdim=True)) * (taper_y[:, None] * taper_x)
            spectrum = fourier.rfft2(patch)
            data[i, :, :top] = spectrum[:, :top, :columns]
            data[i, :, top:] = spectrum[:, side[0] - bottom :, :columns]
            i += 1

    def tensor(a: NDArray[np.floating] | NDArray[np.int64]) -> torch.Tensor:
        t = torch.as_tensor(a, device=device)
        return t.float() if t.is_floating_point() else t

    k_shell = torch.as_tensor(shell_k, dtype=torch.float64)
    attenuation = torch.stack([dose_weight(k_shell, float(d), voltage) for d in doses])
    attenuation = (attenuation * torch.exp(-0.25 * b_factor * k_shell**2)).float().to(device)
    patches = Patches(
        data=data,
        centers=np.array([(x, y) for y in down.centers for x in across.centers]) * pixel_size[::-1],
        ky=tensor(ky),
        kx=tensor(kx),
        shells=tensor(shells),
        shell_k=shell_k,
        multiplicity=tensor(inside),
        halves=tensor(halves),
        attenuation=attenuation,
        self_power=torch.empty(0),
        shares=tensor(np.outer(down.shares, across.shares).reshape(-1)),
    )
    area = torch.as_tensor(
        np.outer((down.tapers**2).sum(1), (across.tapers**2).sum(1)).reshape(-1), device=device
    )
    power = torch.zeros(shape[2:], device=device)
    for i in range(shape[0]):
        power += torch.view_as_real(data[i]).square().sum((0, -1)) / area[i]
    noise = patches.radial_mean(power / (shape[0] * n_frames)).clamp_min(1e-12)
    scale = (attenuation / torch.sqrt(noise))[:, patches.shells] * (patches.multiplicity > 0)
    self_power = torch.empty(shape[0], *shape[2:], device=device)
    for i in range(shape[0]):
        data[i] *= scale / torch.sqrt(area[i])
        self_power[i] = torch.view_as_real(data[i]).square().sum((0, -1))
    return Patches(**{**patches.__dict__, "self_power": self_power})


def _phases(patches: Patches, tracks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tracks = tracks.to(patches.ky)
    angle_y = (2.0 * math.pi) * patches.ky * tracks[..., 1, None]
    angle_x = (2.0 * math.pi) * patches.kx * tracks[..., 0, None]
    return torch.polar(torch.ones_like(angle_y), angle_y), torch.polar(torch.ones_like(angle_x), angle_x)


def shifted_sums(patches: Patches, tracks: torch.Tensor) -> torch.Tensor:
    """Σ_f a_f X_f exp(2πi k·t_f) of every patch.

    Parameters
    ----------
    tracks : (patches, frames, 2) tensor
        x, y in Å.

    Returns
    -------
    (patches, ky, kx) complex64
    """
    ey, ex = _phases(patches, tracks)
    # one patch at a time: its coefficients and their products stay in the cache
    return torch.stack(
        [(x * ey[i, :, :, None] * ex[i, :, None, :]).sum(0) for i, x in enumerate(patches.data)]
    )


def gradient(patches: Patches, tracks: torch.Tensor, weighted: torch.Tensor) -> torch.Tensor:
    """Derivative of J with respect to every patch's shift in every frame.

    Parameters
    ----------
    tracks : (patches, frames, 2) tensor
        x, y in Å.
    weighted : (patches, ky, kx) complex64
        The sums of :func:`shifted_sums` at these tracks, times S / (1 + S Σ a²).

    Returns
    -------
    (3, patches, frames, 2) float64
        Of all coefficients, and of each half; per Å.
    """
    ey, ex = _phases(patches, tracks)
    n_patches, n_frames = patches.data.shape[:2]
    sets = torch.cat([patches.multiplicity[None], patches.halves])
    shape = patches.data.shape[2:]
    k = torch.stack([patches.kx[None, :].expand(shape), patches.ky[:, None].expand(shape)])
    # d|Z|²/dt_f = 2 Re(2πi k conj(Z) a X e); a half-plane holds all independent coefficients
    basis = (-4.0 * math.pi) * (sets[:, None] * k[None]).reshape(6, -1).T.contiguous()
    out = torch.empty(n_patches, n_frames, 6, device=ey.device)
    for i in range(n_patches):
        shifted = patches.data[i] * ey[i, :, :, None] * ex[i, :, None, :]
        torch.matmul((weighted[i].conj() * shifted).imag.reshape(n_frames, -1), basis, out=out[i])
    return out.reshape(n_patches, n_frames, 3, 2).permute(2, 0, 1, 3).double()


def estimate_signal(patches: Patches, sums: torch.Tensor) -> SignalModel:
    """Signal-to-noise spectrum and strength of every patch, from what different frames have in common.

    |Σ a X|² − Σ |a X|² holds only products of different frames, whose noise is independent; its
    expectation is S ((Σ a²)² − Σ a⁴).
    """
    a2 = (patches.attenuation.double() ** 2).sum(0)
    a4 = (patches.attenuation.double() ** 4).sum(0)
    pairs = (a2**2 - a4).float().clamp_min(1e-12)[patches.shells]
    cross = torch.view_as_real(sums).square().sum(-1) - patches.self_power
    mean = patches.radial_mean(cross.mean(0) / pairs).double()
    counts = patches.counts(patches.multiplicity)
    kernel = torch.tensor([0.06, 0.24, 0.4, 0.24, 0.06], dtype=torch.float64, device=mean.device)[None, None]

    def smooth(v: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(v[None, None], (2, 2), mode="replicate")
        return torch.nn.functional.conv1d(padded, kernel)[0, 0]

    spectrum = (smooth(mean * counts) / smooth(counts).clamp_min(1e-9)).clamp_min(0.0).float()
    expected = spectrum[patches.shells] * patches.multiplicity * pairs
    norm = (expected * spectrum[patches.shells]).sum()
    # matched to the pairs' own weight; a strength below a twentieth says no more than an empty patch
    strength = (cross * spectrum[patches.shells] * patches.multiplicity).sum((-2, -1)) / norm.clamp_min(1e-12)
    return SignalModel(spectrum, strength.clamp(0.05, 20.0))


def signal_weights(patches: Patches, signal: SignalModel) -> torch.Tensor:
    """S / (1 + S Σ a²) of every patch and bin times the patch's share, ``(patches, shells)`` float32."""
    s = signal.strength[:, None] * signal.spectrum
    return s / (1.0 + s * (patches.attenuation**2).sum(0)) * patches.shares[:, None]


def information(patches: Patches, signal: SignalModel) -> torch.Tensor:
    """Expected −d²J/dt_f dt_f' along one axis, for all coefficients and for two halves.

    Returns
    -------
    (3, patches, frames, frames) float64
        1/Å²; rows sum to zero, because only differences between frames can be observed.
    """
    s = (signal.strength[:, None] * signal.spectrum).double()
    weights = signal_weights(patches, signal).double() * s
    k2 = torch.as_tensor((2.0 * math.pi * patches.shell_k) ** 2, device=weights.device)
    a2 = patches.attenuation.double() ** 2
    out = []
    for multiplicity in (patches.multiplicity, patches.halves[0], patches.halves[1]):
        # 2 from the second derivative of a square, k_x² = k²/2 on average over directions
        per_shell = weights * (k2 * patches.counts(multiplicity))
        coupling = torch.einsum("ps,fs,gs->pfg", per_shell, a2, a2)
        out.append(torch.diag_embed(coupling.sum(-1)) - coupling)
    return torch.stack(out)

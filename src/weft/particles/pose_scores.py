"""Scores of orientations, with their first and second derivatives by the particle's place.

Two implementations: a compiled one that never writes a section down, and a plain torch one that runs anywhere
and tests it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch

from weft.particles.fourier_volume import PADDING, Sums, apodisation, insert, sample
from weft.particles.spectra import Band, chunks
from weft.physics import fourier

__all__ = ["Observed", "Scores", "score_plain", "score_poses"]

#: Coefficients that the plain implementation holds at a time.
_PLAIN = 1 << 24
#: Correlations by place are made for a volume so many times as wide as what is looked at.
_SPARE = 4.0


@dataclass(frozen=True)
class Scores:
    """Of n particles in m orientations.

    Attributes
    ----------
    product : (n, m) float32
        Σ Re(F* H S)/σ² at the present place.
    gradient : (n, m, 3) float32
        Its derivative by the place, 1/Å.
    hessian : (n, m, 3, 3) float32
    power : (n, m) float32
        Σ |H S|²/σ².
    """

    product: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    power: torch.Tensor

    def value(self) -> torch.Tensor:
        """(n, m): s at the present place."""
        return math.sqrt(2.0) * self.product / self.power.clamp(min=1e-20).sqrt()

    def climb(self, trust: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The best place near the present one.

        Parameters
        ----------
        trust : float
            Å, how far a step may go.

        Returns
        -------
        s (n, m) there, and the step (n, m, 3) float64, Å
        """
        values, axes = torch.linalg.eigh(self.hessian.double())
        gradient = (axes.transpose(-1, -2) @ self.gradient.double()[..., None])[..., 0]
        # along an axis without a maximum the step goes uphill as far as the steepest axis' bend allows
        bend = torch.maximum(-values, 0.05 * values.abs().amax(-1, keepdim=True)).clamp(min=1e-20)
        step = gradient / bend
        step = step * (trust / step.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
        gain = (gradient * step + 0.5 * values * step * step).sum(-1).clamp(min=0.0)
        s = math.sqrt(2.0) * (self.product.double() + gain) / self.power.double().clamp(min=1e-20).sqrt()
        return s, (axes @ step[..., None])[..., 0]


@dataclass(frozen=True)
class Observed:
    """What scores need to know of the images of some particles.

    Attributes
    ----------
    band : Band
    tilt : (n, tilts, 3, 3) float32
        From the tomogram to the images.
    data : (n, tilts, c) complex64
        H F*/σ², of images with the particle in their middle.
    weight : (n, tilts, c) float32
        H²/σ².
    seen : (n, tilts) bool
    """

    band: Band
    tilt: torch.Tensor
    data: torch.Tensor
    weight: torch.Tensor
    seen: torch.Tensor

    def shifted(self, offset: torch.Tensor) -> Observed:
        """For particles that lie by `offset` (n, 3), Å, elsewhere in the tomogram."""
        extent = self.band.size * self.band.pixel_size
        u = (self.tilt[:, :, :2] @ offset.to(self.tilt)[:, None, :, None])[..., 0] * (-2.0 * math.pi / extent)
        angle = u[..., :1] * self.band.ux + u[..., 1:] * self.band.uy
        return replace(self, data=self.data * torch.polar(torch.ones_like(angle), angle))

    def search_offsets(
        self, transform: torch.Tensor, matrices: torch.Tensor, radius: float, step: float
    ) -> torch.Tensor:
        """The best of a grid of places, with the orientations as they are.

        Parameters
        ----------
        transform
            See ``fourier_volume.padded_transform``.
        matrices : (n, 3, 3) float64
            From the map to the tomogram.
        radius, step : float
            Å.

        Returns
        -------
        (n, 3) float64
            x, y, z, Å, in the tomogram.
        """
        band, device = self.band, self.data.device
        kx, ky = (u / (band.size * band.pixel_size) for u in (band.ux, band.uy))
        highest = float(band.k.max())
        # all tilts are put into one small volume in Fourier space, whose transform is the correlation
        extent = _SPARE * 2.0 * radius
        m = fourier.fast_size(math.ceil(extent * max(1.0 / step, 2.0 * highest + 4.0 / extent)))
        line = (torch.arange(m, device=device) - m // 2) * (extent / m)
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        inside = torch.sqrt(x * x + y * y + z * z) <= radius
        spread = apodisation(m, device, 1)
        out = torch.zeros(len(self.data), 3, dtype=torch.float64, device=device)
        for i in range(len(self.data)):
            tilt = self.tilt[i][self.seen[i]]
            rows = (tilt.double() @ matrices[i].to(device))[:, :2].float()
            at = rows[:, None, 0] * band.ux[:, None] + rows[:, None, 1] * band.uy[:, None]
            product = (self.data[i][self.seen[i]] * sample(transform, at)).conj()
            sums = Sums(
                torch.zeros(m, m, m // 2 + 1, dtype=torch.complex64, device=device),
                torch.zeros(m, m, m // 2 + 1, device=device),
            )
            insert(sums, tilt[:, :2] * (extent / PADDING), kx, ky, product.resolve_conj(), product.real)
            spectrum = sums.complete().data.roll((-(m // 2), -(m // 2)), (0, 1))
            correlation = fourier.irfft3(spectrum, (m, m, m)).roll((m // 2,) * 3, (0, 1, 2)) / spread
            place = torch.where(inside, correlation, torch.full_like(correlation, -torch.inf)).argmax()
            out[i] = torch.stack([x.reshape(-1)[place], y.reshape(-1)[place], z.reshape(-1)[place]])
        return out


def score_plain(seen: Observed, transform: torch.Tensor, candidates: torch.Tensor) -> Scores:
    """Score orientations, in plain torch.

    Parameters
    ----------
    seen : Observed
    transform
        See ``fourier_volume.padded_transform``.
    candidates : (n, m, 3, 3) float64
        From the map to the tomogram.
    """
    band = seen.band
    n, m = candidates.shape[:2]
    tilts, count = seen.data.shape[1:]
    sums = torch.zeros(n, m, 8, tilts, device=seen.data.device)
    each = max(1, _PLAIN // (tilts * count * 8))
    scale = 2.0 * math.pi / (band.size * band.pixel_size)
    kx, ky = band.ux * scale, band.uy * scale
    for i in range(n):
        for part in chunks(m, each):
            rows = (seen.tilt[i].double() @ candidates[i, part, None].to(seen.tilt.device))[
                ..., :2, :
            ].float()
            at = rows[..., 0, None, :] * band.ux[:, None] + rows[..., 1, None, :] * band.uy[:, None]
            section = sample(transform, at)
            product = seen.data[i] * section
            re, im = product.real, product.imag
            moments = (re, im * kx, im * ky, -re * kx * kx, -re * kx * ky, -re * ky * ky)
            power = seen.weight[i] * (section.real.square() + section.imag.square())
            values = torch.stack([*(v.sum(-1) for v in moments), power.sum(-1)], 1) * seen.seen[i]
            sums[i, part, :7] = values
    return _in_space(sums, seen.tilt)


def _in_space(sums: torch.Tensor, tilt: torch.Tensor) -> Scores:
    """Sums by tilt (n, m, 8, tilts): value, two first and three second moments, power; → of the particle."""
    rows = tilt[:, None, :, :2]
    gradient = (sums[:, :, 1:3].transpose(2, 3)[..., None, :] @ rows)[..., 0, :].sum(2)
    second = sums[:, :, [3, 4, 4, 5]].transpose(2, 3)
    second = second.reshape(*second.shape[:-1], 2, 2)
    hessian = (rows.transpose(-1, -2) @ second @ rows).sum(2)
    return Scores(sums[:, :, 0].sum(-1), gradient, hessian, sums[:, :, 6].sum(-1))


def score_poses(seen: Observed, transform: torch.Tensor, candidates: torch.Tensor) -> Scores:
    """:func:`score_plain`, compiled, for CPUs."""
    n, m = candidates.shape[:2]
    tilts = seen.data.shape[1]
    sums = torch.zeros(n, m, tilts, 8)
    band = seen.band
    scale = 2.0 * math.pi / (band.size * band.pixel_size)
    ux, uy, volume = band.ux.numpy(), band.uy.numpy(), transform.numpy()
    matrices = candidates.float().contiguous().numpy()

    def one(i: int) -> None:
        _score(
            volume,
            (seen.tilt[i, :, :2] * PADDING).contiguous().numpy(),
            matrices[i],
            seen.seen[i].numpy(),
            ux,
            uy,
            np.float32(scale),
            seen.data[i].resolve_conj().contiguous().numpy(),
            seen.weight[i].contiguous().numpy(),
            sums[i].numpy(),
        )

    threads = min(torch.get_num_threads(), n)
    if threads == 1:
        for i in range(n):
            one(i)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(n)))
    return _in_space(sums.transpose(2, 3), seen.tilt)


@numba.njit(nogil=True, fastmath=True, cache=True)
def _score(volume, tilt, matrices, seen, ux, uy, scale, data, weight, out):  # type: ignore[no-untyped-def]
    centre = np.float32(volume.shape[0] // 2)
    one = np.float32(1.0)
    row = np.empty((2, 3), np.float32)
    for m in range(len(matrices)):
        for t in range(len(tilt)):
            if not seen[t]:
                continue
            for a in range(2):
                for b in range(3):
                    row[a, b] = (
                        tilt[t, a, 0] * matrices[m, 0, b]
                        + tilt[t, a, 1] * matrices[m, 1, b]
                        + tilt[t, a, 2] * matrices[m, 2, b]
                    )
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = np.float32(0.0)
            for c in range(len(ux)):
                x = ux[c] * row[0, 0] + uy[c] * row[1, 0]
                y = ux[c] * row[0, 1] + uy[c] * row[1, 1]
                z = ux[c] * row[0, 2] + uy[c] * row[1, 2]
                sign = one
                if x < np.float32(0.0):
                    x, y, z = -x, -y, -z
                    sign = -one
                y += centre
                z += centre
                i, j, k = int(x), int(y), int(z)
                fx, fy, fz = x - np.float32(i), y - np.float32(j), z - np.float32(k)
                a00 = volume[k, j, i] + fx * (volume[k, j, i + 1] - volume[k, j, i])
                a01 = volume[k, j + 1, i] + fx * (volume[k, j + 1, i + 1] - volume[k, j + 1, i])
                a10 = volume[k + 1, j, i] + fx * (volume[k + 1, j, i + 1] - volume[k + 1, j, i])
                a11 = volume[k + 1, j + 1, i] + fx * (volume[k + 1, j + 1, i + 1] - volume[k + 1, j + 1, i])
                low = a00 + fy * (a01 - a00)
                high = a10 + fy * (a11 - a10)
                v = low + fz * (high - low)
                vr, vi = v.real, v.imag * sign
                d = data[t, c]
                re = d.real * vr - d.imag * vi
                im = d.real * vi + d.imag * vr
                kx, ky = ux[c] * scale, uy[c] * scale
                s0 += re
                s1 += im * kx
                s2 += im * ky
                s3 -= re * kx * kx
                s4 -= re * kx * ky
                s5 -= re * ky * ky
                s6 += weight[t, c] * (vr * vr + vi * vi)
            out[m, t, 0] = s0
            out[m, t, 1] = s1
            out[m, t, 2] = s2
            out[m, t, 3] = s3
            out[m, t, 4] = s4
            out[m, t, 5] = s5
            out[m, t, 6] = s6

"""Volumes in Fourier space that central sections are put into and taken from.

Both happen on a grid that is PADDING times finer than the volume's own, with trilinear weights: a point of a
section is shared among the eight grid points around it, or interpolated from them. In real space that is a
multiplication by sinc², which is divided out (:func:`apodisation`). Each has a compiled implementation for
CPUs and a plain torch one that runs anywhere and tests it.

By the projection theorem a section of the transform F of a map in coordinates r, seen as p = R r, is
I(kx, ky) = F(kx R₀ + ky R₁), with R₀, R₁ the first two rows of R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch

from weft.physics.fourier import irfft3, rfft3

__all__ = [
    "PADDING",
    "Sums",
    "apodisation",
    "insert",
    "insert_plain",
    "padded_transform",
    "real_space",
    "sample",
]

PADDING = 2


def apodisation(size: int, device: torch.device | str = "cpu", padding: int = PADDING) -> torch.Tensor:
    """What trilinear weights on the padded grid multiply a map of `size` by, ``(size, size, size)``."""
    x = (torch.arange(size, device=device, dtype=torch.float32) - size // 2) / (padding * size)
    one = torch.sinc(x) ** 2
    return one[:, None, None] * one[:, None] * one


@dataclass(frozen=True)
class Sums:
    """What has been put into a half space: Σ H F and Σ H² of ``averaging``.

    Attributes
    ----------
    data : (m, m, m//2+1) complex64
        m = PADDING times the box; z and y are centred at m//2, x counts from 0.
    weight : (m, m, m//2+1) float32
    """

    data: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device | str = "cpu") -> Sums:
        """For a box of `size`."""
        m = PADDING * size
        shape = (m, m, m // 2 + 1)
        return cls(
            torch.zeros(shape, dtype=torch.complex64, device=device), torch.zeros(shape, device=device)
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.data + other.data, self.weight + other.weight)

    def complete(self) -> Sums:
        """With the other half's share: points near x = 0 have their Friedel mates on its other side."""
        data, weight = self.data.clone(), self.weight.clone()
        # row 0 is −m/2, which has no mate; nothing is ever put there
        data[1:, 1:, 0] += self.data[1:, 1:, 0].flip(0, 1).conj()
        weight[1:, 1:, 0] += self.weight[1:, 1:, 0].flip(0, 1)
        return Sums(data, weight)


def insert(
    sums: Sums,
    rows: torch.Tensor,
    ux: torch.Tensor,
    uy: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Add central sections, in place.

    Parameters
    ----------
    sums : Sums
    rows : (images, 2, 3) float32
        R₀ and R₁ of each image; x, y, z.
    ux, uy : (c,) float32
        Periods over the box, within its Nyquist radius.
    values : (images, c) complex64
    weights : (images, c) float32
    """
    if sums.data.device.type != "cpu":
        insert_plain(sums, rows, ux, uy, values, weights)
        return
    _insert(
        sums.data.numpy(),
        sums.weight.numpy(),
        (rows.float() * PADDING).contiguous().numpy(),
        ux.numpy(),
        uy.numpy(),
        values.contiguous().numpy(),
        weights.contiguous().numpy(),
    )


@numba.njit(nogil=True, fastmath=True, cache=True)
def _insert(data, weight, rows, ux, uy, values, weights):  # type: ignore[no-untyped-def]
    half = np.float32(data.shape[0] // 2)
    one = np.float32(1.0)
    for i in range(len(rows)):
        r = rows[i]
        for c in range(len(ux)):
            w = weights[i, c]
            v = values[i, c]
            if w == np.float32(0.0) and v == np.complex64(0.0):
                continue
            x = ux[c] * r[0, 0] + uy[c] * r[1, 0]
            y = ux[c] * r[0, 1] + uy[c] * r[1, 1]
            z = ux[c] * r[0, 2] + uy[c] * r[1, 2]
            if x < np.float32(0.0):
                x, y, z = -x, -y, -z
                v = v.conjugate()
            y += half
            z += half
            ix, iy, iz = int(x), int(y), int(z)
            fx, fy, fz = x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)
            for a in range(2):
                wz = fz if a else one - fz
                for b in range(2):
                    wy = wz * (fy if b else one - fy)
                    w0, w1 = wy * (one - fx), wy * fx
                    data[iz + a, iy + b, ix] += w0 * v
                    data[iz + a, iy + b, ix + 1] += w1 * v
                    weight[iz + a, iy + b, ix] += w0 * w
                    weight[iz + a, iy + b, ix + 1] += w1 * w


def _corners(
    at: torch.Tensor, shape: torch.Size, centre: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of points (..., 3) in x, y, z: which are turned round, and the places and weights of eight corners."""
    turned = at[..., 0] < 0
    at = torch.where(turned[..., None], -at, at)
    at = at + torch.tensor([0.0, centre, centre], device=at.device)
    first = at.floor()
    f = at - first
    ix, iy, iz = first.long().unbind(-1)
    places, shares = [], []
    for a in (0, 1):
        for b in (0, 1):
            for c in (0, 1):
                places.append(((iz + a) * shape[1] + iy + b) * shape[2] + ix + c)
                share = f[..., 2] if a else 1.0 - f[..., 2]
                share = share * (f[..., 1] if b else 1.0 - f[..., 1])
                shares.append(share * (f[..., 0] if c else 1.0 - f[..., 0]))
    return turned, torch.stack(places, -1), torch.stack(shares, -1)


def insert_plain(
    sums: Sums,
    rows: torch.Tensor,
    ux: torch.Tensor,
    uy: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """:func:`insert` in plain torch."""
    at = (rows[:, None, 0] * ux[:, None] + rows[:, None, 1] * uy[:, None]) * float(PADDING)
    turned, places, shares = _corners(at, sums.data.shape, sums.data.shape[0] // 2)
    values = torch.where(turned, values.conj(), values)
    flat = places.reshape(-1)
    data = torch.view_as_real(sums.data).reshape(-1, 2)
    data.index_add_(0, flat, torch.view_as_real(values[..., None] * shares).reshape(-1, 2))
    sums.weight.reshape(-1).index_add_(0, flat, (weights[..., None] * shares).reshape(-1))


def real_space(spectrum: torch.Tensor, size: int) -> torch.Tensor:
    """The map of a spectrum on the finer grid.

    Parameters
    ----------
    spectrum : (m, m, m//2+1) complex64
        As in :class:`Sums`: z and y are centred at m//2, phases count from the map's centre.
    size : int
        Of the map: m is PADDING times as much.

    Returns
    -------
    (size, size, size) float32
        Without what the trilinear weights have multiplied it by.
    """
    m = PADDING * size
    centred = spectrum.roll((-(m // 2), -(m // 2)), (0, 1))
    full = irfft3(centred, (m, m, m)).roll((m // 2,) * 3, (0, 1, 2))
    inside = slice(m // 2 - size // 2, m // 2 - size // 2 + size)
    return (full[inside, inside, inside] / apodisation(size, full.device)).contiguous()


def padded_transform(volume: torch.Tensor, radius: float) -> torch.Tensor:
    """The transform of a map on the finer grid, ready to be sampled.

    Parameters
    ----------
    volume : (n, n, n) float32
        Its centre is voxel n//2.
    radius : float
        Periods over the box that will be asked for.

    Returns
    -------
    (2l+1, 2l+1, l+2) complex64
        z and y are centred at l; phases count from the map's centre.
    """
    n, device = len(volume), volume.device
    m = PADDING * n
    l = min(int(PADDING * radius) + 2, m // 2 - 1)  # noqa: E741
    padded = torch.zeros(m, m, m, device=device)
    start = m // 2 - n // 2
    inside = slice(start, start + n)
    padded[inside, inside, inside] = volume / apodisation(n, device)
    # centre → first voxel
    full = rfft3(padded.roll((m // 2,) * 3, (0, 1, 2)))
    around = torch.arange(-l, l + 1, device=device) % m
    return full[around][:, around][:, :, : l + 2].contiguous()


def sample(transform: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Interpolate a transform of :func:`padded_transform`, in plain torch.

    Parameters
    ----------
    transform : (2l+1, 2l+1, l+2) complex64
    at : (..., 3) float32
        x, y, z, periods over the (unpadded) box.

    Returns
    -------
    (...) complex64
    """
    turned, places, shares = _corners(at * float(PADDING), transform.shape, transform.shape[0] // 2)
    found = (transform.reshape(-1)[places] * shares).sum(-1)
    return torch.where(turned, found.conj(), found)

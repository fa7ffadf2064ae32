"""Sampling of a frame at displaced places with cubic B-splines.

A cubic B-spline samples with 16 pixels and follows a band-limited image far better than linear or cubic
convolution, provided that its low-pass response is divided out. Usually that is done to the image before
sampling; since the displacement varies by less than a hundredth of a pixel from pixel to pixel, it can
be done just as well to the sum of all sampled frames (:func:`spline_response`), once instead of per frame.

Two implementations: a compiled one for CPUs that samples and accumulates several weighted sums in one
pass, and a plain torch one that runs anywhere and tests it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["NODE_STEP", "accumulate", "node_places", "sample_plain", "spline_response"]

NODE_STEP = 32  # pixels between the nodes of a displacement field
RUN = 16  # pixels that share the whole-pixel part of their displacement
#: Where all displacements are half a pixel nothing is left at Nyquist's frequency: that cannot be divided by.
_LEAST_RESPONSE = 0.1


def node_places(shape: tuple[int, int]) -> NDArray[np.float64]:
    """x, y (pixels) of the nodes on which displacements are given, ``(rows, columns, 2)``."""
    y = np.arange(-(-shape[0] // NODE_STEP) + 1) * float(NODE_STEP)
    x = np.arange(-(-shape[1] // NODE_STEP) + 1) * float(NODE_STEP)
    return np.stack(np.meshgrid(x, y), axis=-1)


def spline_response(k: torch.Tensor, displacements: NDArray[np.floating]) -> torch.Tensor:
    """Mean response of one axis of the sampling.

    A wave sampled between pixels, α of the way from one to the next, comes out multiplied by
    Σ_m β(m − α) exp(2πi k (m − α)), β the cubic B-spline; averaged over many α this is sinc⁴(k). It is made
    to divide by, and never less than 0.1.

    Parameters
    ----------
    k : tensor
        Cycles/pixel.
    displacements : array
        Pixels, of the places and frames that are averaged.
    """
    d = np.asarray(displacements, dtype=np.float64).reshape(-1)
    alpha = torch.as_tensor(d - np.floor(d), device=k.device)
    # a histogram is as good as all of them
    share = torch.bincount((alpha * 64).round().long(), minlength=65).double() / len(d)
    a = torch.arange(65, dtype=torch.float64, device=k.device) / 64
    taps = {-1: (1 - a) ** 3, 0: 4 - 3 * a**2 * (2 - a), 1: 4 - 3 * (1 - a) ** 2 * (1 + a), 2: a**3}
    out = torch.zeros_like(k, dtype=torch.float64)
    for m, weight in taps.items():
        out += (torch.cos(2 * np.pi * k.double()[..., None] * (m - a)) * (share * weight / 6.0)).sum(-1)
    return out.clamp(min=_LEAST_RESPONSE).to(k.dtype)


def accumulate(
    sums: torch.Tensor, frames: torch.Tensor, displacements: NDArray[np.float64], weights: NDArray[np.float64]
) -> None:
    """Add weighted, displaced frames to several sums at once.

    ``sums[r] += Σ_b weights[b, r] · frames[b](position + displacement[b])``, each pixel at its own
    displacement; places outside the frame are mirrored at its edge.

    Parameters
    ----------
    sums : (sums, y, x) float32
        Changed in place.
    frames : (batch, y, x) float32
        A few frames; more in one call means less memory traffic.
    displacements : (batch, rows, columns, 2) float64
        x, y in pixels at the places of :func:`node_places`; linear in between.
    weights : (batch, sums)
    """
    if sums.device.type != "cpu":
        for frame, d, w in zip(frames, displacements, weights, strict=True):
            value = sample_plain(frame, d)
            sums += torch.as_tensor(w, dtype=sums.dtype, device=sums.device)[:, None, None] * value
        return
    arrays = (
        sums.numpy(),
        frames.numpy(),
        np.ascontiguousarray(displacements, dtype=np.float32),
        np.ascontiguousarray(weights, dtype=np.float32),
    )
    edges = np.linspace(0, sums.shape[1], torch.get_num_threads() + 1).astype(int)
    if len(edges) == 2:
        _accumulate_rows(*arrays, 0, sums.shape[1])
        return
    with ThreadPoolExecutor(len(edges) - 1) as pool:
        list(pool.map(lambda a, b: _accumulate_rows(*arrays, a, b), edges[:-1], edges[1:]))


@numba.njit(nogil=True, cache=True, inline="always")
def _mirrored(i, n):  # type: ignore[no-untyped-def]
    if i < 0:
        i = -i
    if i >= n:
        i = 2 * n - 2 - i
    return min(max(i, 0), n - 1)


@numba.njit(nogil=True, fastmath=True, cache=True)
def _accumulate_rows(sums, frames, nodes, weights, first, last):  # type: ignore[no-untyped-def]
    n_sums, ny, nx = sums.shape
    n_batch = frames.shape[0]
    step = np.float32(NODE_STEP)
    sixth = np.float32(1.0 / 6.0)
    zero, half, one, two = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
    three, four = np.float32(3.0), np.float32(4.0)
    value = np.empty(RUN, np.float32)
    edge = np.empty(RUN + 3, np.float32)
    along_x = np.empty((4, RUN), np.float32)
    along_y = np.empty((4, RUN), np.float32)
    for y in range(first, last):
        node_y = y // NODE_STEP
        part_y = (np.float32(y) - np.float32(node_y * NODE_STEP)) / step
        for x0 in range(0, nx, RUN):
            length = min(RUN, nx - x0)
            node_x = x0 // NODE_STEP
            part_x = (np.float32(x0) - np.float32(node_x * NODE_STEP)) / step
            for b in range(n_batch):
                a00x, a00y = nodes[b, node_y, node_x, 0], nodes[b, node_y, node_x, 1]
                a01x, a01y = nodes[b, node_y, node_x + 1, 0], nodes[b, node_y, node_x + 1, 1]
                a10x, a10y = nodes[b, node_y + 1, node_x, 0], nodes[b, node_y + 1, node_x, 1]
                a11x, a11y = nodes[b, node_y + 1, node_x + 1, 0], nodes[b, node_y + 1, node_x + 1, 1]
                left_x, left_y = a00x + part_y * (a10x - a00x), a00y + part_y * (a10y - a00y)
                slope_x = (a01x + part_y * (a11x - a01x) - left_x) / step
                slope_y = (a01y + part_y * (a11y - a01y) - left_y) / step
                dx = left_x + slope_x * part_x * step
                dy = left_y + slope_y * part_x * step
                shift_x = int(np.floor(dx + slope_x * half * np.float32(length)))
                shift_y = int(np.floor(dy + slope_y * half * np.float32(length)))
                fx, fy = dx - np.float32(shift_x), dy - np.float32(shift_y)
                top, left = y + shift_y - 1, x0 + shift_x - 1
                inside = top >= 0 and top + 3 < ny and left >= 0 and left + length + 2 < nx
                for i in range(length):
                    t = fx + slope_x * np.float32(i)
                    s = one - t
                    along_x[0, i] = s * s * s * sixth
                    along_x[1, i] = (four - three * t * t * (two - t)) * sixth
                    along_x[2, i] = (four - three * s * s * (two - s)) * sixth
                    along_x[3, i] = t * t * t * sixth
                    t = fy + slope_y * np.float32(i)
                    s = one - t
                    along_y[0, i] = s * s * s * sixth
                    along_y[1, i] = (four - three * t * t * (two - t)) * sixth
                    along_y[2, i] = (four - three * s * s * (two - s)) * sixth
                    along_y[3, i] = t * t * t * sixth
                    value[i] = zero
                for j in range(4):
                    if inside:
                        source = frames[b, top + j, left : left + length + 3]
                    else:
                        row = frames[b, _mirrored(top + j, ny)]
                        for i in range(length + 3):
                            edge[i] = row[_mirrored(left + i, nx)]
                        source = edge[: length + 3]
                    for i in range(length):
                        value[i] += along_y[j, i] * (
                            along_x[0, i] * source[i]
                            + along_x[1, i] * source[i + 1]
                            + along_x[2, i] * source[i + 2]
                            + along_x[3, i] * source[i + 3]
                        )
                for r in range(n_sums):
                    w = weights[b, r]
                    if w != 0.0:
                        out = sums[r, y]
                        for i in range(length):
                            out[x0 + i] += w * value[i]


def sample_plain(frame: torch.Tensor, displacement: NDArray[np.float64]) -> torch.Tensor:
    """One displaced frame in plain torch: the definition of what :func:`accumulate` adds.

    Parameters
    ----------
    frame : (y, x) float32
    displacement : (rows, columns, 2)
        x, y in pixels at the places of :func:`node_places`.
    """
    ny, nx = frame.shape
    device = frame.device
    d = torch.as_tensor(displacement, dtype=torch.float32, device=device)
    y = torch.arange(ny, device=device)
    x = torch.arange(nx, device=device)
    along_y = torch.lerp(
        d[y // NODE_STEP], d[y // NODE_STEP + 1], ((y % NODE_STEP) / NODE_STEP)[:, None, None]
    )
    field = torch.lerp(
        along_y[:, x // NODE_STEP],
        along_y[:, x // NODE_STEP + 1],
        ((x % NODE_STEP) / NODE_STEP)[None, :, None],
    )
    whole = torch.floor(field)
    t = field - whole
    s = 1.0 - t
    taps = torch.stack([s**3, 4 - 3 * t**2 * (2 - t), 4 - 3 * s**2 * (2 - s), t**3]) / 6.0

    def mirrored(i: torch.Tensor, n: int) -> torch.Tensor:
        i = torch.where(i < 0, -i, i)
        return torch.where(i >= n, 2 * n - 2 - i, i).clamp(0, n - 1)

    x_first = x[None, :] + whole[..., 0].long() - 1
    y_first = y[:, None] + whole[..., 1].long() - 1
    out = torch.zeros_like(frame)
    for j in range(4):
        rows = mirrored(y_first + j, ny) * nx
        for i in range(4):
            out += taps[j, ..., 1] * taps[i, ..., 0] * frame.reshape(-1)[rows + mirrored(x_first + i, nx)]
    return out

"""What a tilt image should show, according to the other tilts.

In the *frame of the axis* (image turned so that the tilt axis is vertical) a point (x, y, z) of the specimen
lies at u = x cos θ − z sin θ, v = y. Two images θ and θ' of something W wide and D thick then have in common,
on every line of constant k_v, the coefficients

    F_θ(k, k_v) ≈ F_θ'(s k, k_v),
    s = (W² cos θ cos θ' + D² sin θ sin θ') / N²,   N² = (W cos θ')² + (D sin θ')²
    as far as k |sin(θ − θ')| W D / N < 1,

because it blurs its central sections over 1/W and 1/D (Crowther et al. 1970; Harauz & van Heel 1986): this is
the place on the other section that is nearest in these units. A wide slab is stretched by the ratio of the
cosines (Guckenberger 1982); something as wide as thick is turned.
An image is therefore predicted from others as their weighted sum, which is the projection of their weighted
back-projection, without a volume: κ = max(0, 1 − k |sin Δ| W D / N) are the weights, divided by their sum.
All of it acts along u only and is the same for every row and every place in the specimen: one real matrix,
made once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["predict", "prediction_matrix", "raised_cosine", "sample_patches", "to_frame", "to_image"]


def _turn(axis: torch.Tensor) -> torch.Tensor:
    """(..., 2, 2): takes u, v to x, y."""
    a = torch.deg2rad(axis.double())
    rows = [torch.stack([a.cos(), -a.sin()], -1), torch.stack([a.sin(), a.cos()], -1)]
    return torch.stack(rows, -2)


def to_image(uv: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Differences u, v in the frame of the axis → x, y in the image.

    Parameters
    ----------
    uv : (tilts, n, 2) tensor
    axis : (tilts,) tensor
        Degrees.
    """
    return uv.double() @ _turn(axis).transpose(-1, -2)


def to_frame(xy: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_image`."""
    return xy.double() @ _turn(axis)


def sample_patches(
    images: torch.Tensor,
    pixel_size: tuple[float, float],
    centres: torch.Tensor,
    axis: torch.Tensor,
    size: tuple[int, int],
    step: float,
) -> torch.Tensor:
    """Patches turned into the frame of the axis; bicubic, zero outside the images.

    Parameters
    ----------
    images : (tilts, y, x) or (tilts, channels, y, x) float32
    pixel_size : (float, float)
        x, y, Å.
    centres : (tilts, n, 2) tensor
        x, y, Å from the centre of the first pixel; they become pixel (v//2, u//2).
    axis : (tilts,) tensor
        Degrees.
    size : (int, int)
        v, u.
    step : float
        Å: the patches' pixel size.

    Returns
    -------
    (n, tilts, v, u) or (n, tilts, channels, v, u) float32
    """
    device, (h, w) = images.device, images.shape[-2:]
    nv, nu = size
    v = (torch.arange(nv, device=device) - nv // 2) * step
    u = (torch.arange(nu, device=device) - nu // 2) * step
    # grid_sample's coordinates are −1 at the first pixel's centre and 1 at the last's
    scale = 2.0 / (torch.tensor([w - 1.0, h - 1.0]).double() * torch.tensor(pixel_size).double())
    first = (centres.cpu().double() * scale - 1.0).float().to(device)
    turn = (_turn(axis.cpu()) * scale[:, None]).float().to(device)
    channels = images.shape[1:-2]
    out = torch.empty(centres.shape[1], len(images), *channels, nv, nu, device=device)
    for t, image in enumerate(images):
        offset = u[:, None] * turn[t, :, 0] + v[:, None, None] * turn[t, :, 1]
        at = first[t, :, None, None] + offset
        found = torch.nn.functional.grid_sample(
            image.reshape(1, -1, h, w),
            at.reshape(1, -1, nu, 2),
            mode="bicubic",
            padding_mode="zeros",
            align_corners=True,
        )
        out[:, t] = found.reshape(*channels, -1, nv, nu).movedim(-3, 0)
    return out


def raised_cosine(n: int, edge: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """(n,): 1 in the middle, falling to 0 over `edge` (a share of n/2) at both ends; centre at n//2."""
    r = (torch.arange(n, device=device, dtype=torch.float32) - n // 2).abs() / (n / 2)
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - 1.0 + edge) / edge).clamp(0.0, 1.0))


def prediction_matrix(
    targets: torch.Tensor,
    angles: torch.Tensor,
    weights: torch.Tensor,
    size: int,
    step: float,
    thickness: float,
    *,
    width: float | None = None,
    regularisation: float = 0.3,
) -> torch.Tensor:
    """The matrix that predicts images from others, line by line.

    Parameters
    ----------
    targets : (targets,) tensor
        Angles of the images to be predicted, degrees.
    angles : (tilts,) tensor
        Angles of those that predict them, degrees.
    weights : (targets, tilts) tensor
        What each image counts for each target: 0 where they are the same image.
    size : int
        Pixels along u; the centre is pixel size//2.
    step : float
        Å.
    thickness : float
        D: of what the images have in common, Å.
    width : float, optional
        W, Å; the same as D.
    regularisation : float
        Added to the sum of weights: what few others know is predicted weakly.

    Returns
    -------
    (targets, u, tilts, u) float32
    """
    # small products by the thousand: numpy has no threads to wake for each
    theta, other = np.deg2rad(targets.double().numpy())[:, None], np.deg2rad(angles.double().numpy())
    w, d = thickness if width is None else width, thickness
    norm = np.hypot(w * np.cos(other), d * np.sin(other))
    shrinks = (w**2 * np.cos(theta) * np.cos(other) + d**2 * np.sin(theta) * np.sin(other)) / norm**2
    blur = np.abs(np.sin(theta - other)) * w * d / norm
    # lines twice as long: what is stretched beyond the patch does not come in at its other side
    k = np.arange(size + 1) / (2 * size * step)
    kappa = np.clip(1.0 - k * blur[..., None], 0.0, None)
    kappa *= weights.double().numpy()[..., None]
    kappa /= kappa.sum(1, keepdims=True) + regularisation
    kappa *= np.where((k == 0) | (k == k[-1]), 1.0, 2.0) / (2 * size)
    u = (np.arange(size) - size // 2) * step
    back = 2 * np.pi * u[:, None] * k
    back = np.stack([np.cos(back), np.sin(back)], -1).reshape(size, -1).astype(np.float32)
    forwards: dict[float, NDArray[np.float32]] = {}
    out = np.zeros((len(targets), size, len(angles), size), np.float32)
    for row, tilt in np.argwhere(kappa[..., 0] > 0):
        shrink = round(float(shrinks[row, tilt]), 7)
        if shrink not in forwards:
            phase = 2 * np.pi * shrink * k[:, None] * u
            both = np.stack([np.cos(phase), np.sin(phase)], 1)
            forwards[shrink] = both.reshape(-1, size).astype(np.float32)
        used = 2 * int((kappa[row, tilt] > 0).sum())
        weight = np.repeat(kappa[row, tilt].astype(np.float32), 2)[:used]
        out[row, :, tilt] = (back[:, :used] * weight) @ forwards[shrink][:used]
    return torch.from_numpy(out)


def predict(matrix: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Apply :func:`prediction_matrix`.

    Parameters
    ----------
    matrix : (targets, u, tilts, u) float32
    patches : (n, tilts, v, u) float32
        All centred on the same point of the specimen.

    Returns
    -------
    (n, targets, v, u) float32
    """
    n, tilts, nv, nu = patches.shape
    columns = patches.permute(1, 3, 0, 2).reshape(tilts * nu, n * nv)
    found = matrix.reshape(-1, tilts * nu).to(patches.device) @ columns
    return found.reshape(matrix.shape[0], nu, n, nv).permute(2, 0, 3, 1)

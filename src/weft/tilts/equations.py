"""The normal equations of bundle adjustment: one camera a tilt, one point a marker, parallel projection.

A marker p at (x, y, z) is seen in a tilt with angle θ, axis A, magnification m and shift s at

    u = x cos θ − z sin θ,   v = y,
    (X, Y) = m · (u cos A − v sin A, u sin A + v cos A) + s,

which is weft's tilt geometry (:mod:`weft.physics.geometry`) without inclination. Triggs et al. 2000, "Bundle
adjustment — a modern synthesis", sections 4-6 and 9 describe what is done with it: markers are eliminated by
the Schur complement, and the freedom of the whole specimen to move is taken out by inner constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PARAMETERS", "Equations", "block_diagonal", "jacobians", "projected", "triangulated"]

PARAMETERS = 5  # of a camera: shift x, shift y (Å), axis, tilt angle (radians), magnification
FAR = 1e5  # Å: no marker is farther from the centre; keeps markers of one observation finite


def projected(cameras: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Where points are seen; `cameras` (..., 5) and `points` (..., 3) broadcast; returns (..., 2), Å."""
    sx, sy, axis, tilt, mag = cameras.unbind(-1)
    x, y, z = points.unbind(-1)
    u = x * tilt.cos() - z * tilt.sin()
    c, s = axis.cos(), axis.sin()
    return torch.stack([mag * (u * c - y * s) + sx, mag * (u * s + y * c) + sy], dim=-1)


def jacobians(cameras: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of :func:`projected`.

    Parameters
    ----------
    cameras : (m, 5) tensor
    points : (m, 3) tensor

    Returns
    -------
    (m, 2, 5) and (m, 2, 3) tensors
        By the camera's parameters, and by the point's coordinates.
    """
    _, _, axis, tilt, mag = cameras.unbind(-1)
    x, y, z = points.unbind(-1)
    c, s, ct, st = axis.cos(), axis.sin(), tilt.cos(), tilt.sin()
    u, du = x * ct - z * st, -x * st - z * ct
    one, nil = torch.ones_like(x), torch.zeros_like(x)
    camera = torch.stack(
        [
            torch.stack([one, nil, mag * (-u * s - y * c), mag * du * c, u * c - y * s], dim=-1),
            torch.stack([nil, one, mag * (u * c - y * s), mag * du * s, u * s + y * c], dim=-1),
        ],
        dim=-2,
    )
    point = torch.stack(
        [
            torch.stack([mag * c * ct, -mag * s, -mag * c * st], dim=-1),
            torch.stack([mag * s * ct, mag * c, -mag * s * st], dim=-1),
        ],
        dim=-2,
    )
    return camera, point


def triangulated(
    cameras: torch.Tensor,
    marker: torch.Tensor,
    tilt: torch.Tensor,
    xy: torch.Tensor,
    weight: torch.Tensor,
    markers: int,
) -> torch.Tensor:
    """The points that lie nearest, by weighted least squares, to all observations; (markers, 3), Å."""
    seen = cameras[tilt]
    zero = torch.zeros(len(tilt), 3, dtype=xy.dtype)
    _, b = jacobians(seen, zero)
    target = xy - projected(seen, zero)
    normal = torch.zeros(markers, 3, 3, dtype=xy.dtype)
    right = torch.zeros(markers, 3, dtype=xy.dtype)
    normal.index_add_(0, marker, weight[:, None, None] * (b.mT @ b))
    right.index_add_(0, marker, weight[:, None] * (b.mT @ target[..., None])[..., 0])
    normal += torch.eye(3, dtype=xy.dtype) / FAR**2
    solved: torch.Tensor = torch.linalg.solve(normal, right)
    return solved


def block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks (n, a, b) along the diagonal of an (n a, n b) matrix that is 0 elsewhere."""
    n, a, b = blocks.shape
    whole = torch.zeros(n, a, n, b, dtype=blocks.dtype)
    every = torch.arange(n)
    whole[every, :, every] = blocks
    return whole.reshape(n * a, n * b)


@dataclass(frozen=True)
class Equations:
    """The normal equations at one state of cameras and markers.

    Attributes
    ----------
    reduced : (5 t, 5 t)
        Of the cameras alone (the Schur complement), without damping.
    right : (5 t,)
    inverse : (n, 3, 3)
        Of the markers' own blocks.
    cross : (n, 5 t, 3)
    marker_right : (n, 3)
    free : (5 t, 3)
        Movements of the cameras that only move the whole specimen.
    """

    reduced: torch.Tensor
    right: torch.Tensor
    inverse: torch.Tensor
    cross: torch.Tensor
    marker_right: torch.Tensor
    free: torch.Tensor

    @classmethod
    def at(
        cls,
        cameras: torch.Tensor,
        points: torch.Tensor,
        marker: torch.Tensor,
        tilt: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        prior: torch.Tensor,
        prior_slope: torch.Tensor,
        damping: float,
    ) -> Equations:
        """Build them.

        Parameters
        ----------
        cameras : (t, 5) tensor
        points : (n, 3) tensor
        marker, tilt : (m,) int64 tensors
        residual : (m, 2) tensor
            Observed minus predicted, Å.
        weight : (m,) tensor
            1/variance times the robust loss's weight.
        prior : (5 t, 5 t) tensor
            Second derivatives of what is known about the cameras beforehand.
        prior_slope : (5 t,) tensor
            Its negative first derivatives here.
        damping : float
            Levenberg and Marquardt's; multiplies the diagonals.
        """
        t, n, k = len(cameras), len(points), PARAMETERS
        a, b = jacobians(cameras[tilt], points[marker])
        wa, wb = weight[:, None, None] * a, weight[:, None, None] * b
        block = torch.zeros(t, k, k, dtype=points.dtype).index_add_(0, tilt, wa.mT @ a)
        right = torch.zeros(t, k, dtype=points.dtype)
        right.index_add_(0, tilt, (wa.mT @ residual[..., None])[..., 0])
        own = torch.zeros(n, 3, 3, dtype=points.dtype).index_add_(0, marker, wb.mT @ b)
        own += torch.eye(3, dtype=points.dtype) / FAR**2
        own += damping * torch.diag_embed(own.diagonal(dim1=-2, dim2=-1))
        own_right = torch.zeros(n, 3, dtype=points.dtype)
        own_right.index_add_(0, marker, (wb.mT @ residual[..., None])[..., 0])
        own_right -= points / FAR**2
        cross = torch.zeros(n * t, k, 3, dtype=points.dtype)
        cross.index_add_(0, marker * t + tilt, wa.mT @ b)
        cross = cross.reshape(n, t * k, 3)
        inverse = torch.linalg.inv(own)
        full = block_diagonal(block) + prior
        full += damping * torch.diag(full.diagonal())
        turned = cross @ inverse
        reduced = full - torch.einsum("nac,nbc->ab", turned, cross)
        flat = right.reshape(-1) + prior_slope
        flat = flat - torch.einsum("nac,nc->a", turned, own_right)
        # moving the specimen by d moves every image by m·R·d; that direction is left where it is
        _, moved = jacobians(cameras, torch.zeros(t, 3, dtype=points.dtype))
        free = torch.zeros(t, k, 3, dtype=points.dtype)
        free[:, :2] = moved
        return cls(reduced, flat, inverse, cross, own_right, free.reshape(t * k, 3))

    def constrained(self) -> torch.Tensor:
        """The reduced matrix with the specimen's own movement held (inner constraints): (5 t, 5 t)."""
        direction = torch.linalg.qr(self.free).Q
        stiffness: torch.Tensor = (
            self.reduced.diagonal().reshape(-1, PARAMETERS)[:, :2].mean().clamp_min(1e-300)
        )
        matrix: torch.Tensor = self.reduced + stiffness * (direction @ direction.T)
        return matrix

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The step of all parameters: (t, 5) of cameras and (n, 3) of markers."""
        matrix = self.constrained()
        # in units in which the diagonal is 1: shifts in Å and angles in radians differ by a thousand
        unit = matrix.diagonal().clamp_min(1e-300).rsqrt()
        scaled = unit[:, None] * matrix * unit
        camera = unit * torch.linalg.solve(scaled, unit * self.right)
        behind = self.marker_right - torch.einsum("nac,a->nc", self.cross, camera)
        points = (self.inverse @ behind[..., None])[..., 0]
        return camera.reshape(-1, PARAMETERS), points

    def covariance(self) -> torch.Tensor:
        """Of the cameras, (5 t, 5 t); the specimen's own movement has none."""
        direction = torch.linalg.qr(self.free).Q
        matrix = self.constrained()
        unit = matrix.diagonal().clamp_min(1e-300).rsqrt()
        inverse = unit[:, None] * torch.linalg.inv(unit[:, None] * matrix * unit) * unit
        keep = torch.eye(len(matrix), dtype=matrix.dtype) - direction @ direction.T
        result: torch.Tensor = keep @ inverse @ keep
        return result

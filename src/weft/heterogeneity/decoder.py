"""From a place in latent space to a structure, in Fourier space: a network over coordinates.

V(k; z) = V̄(k) + A(|k|) f(γ(k), z): the mean structure, and what the particle's z changes about it. f is a
residual network on positional features γ(k) = cos, sin(2π k·r) of random points r within the particle, as in
cryoDRGN and tomoDRGN (Zhong et al. 2021; Powell & Davis 2024). Starting from the mean and its own amplitude
spectrum A is ours: the network needs to learn neither, and hardly sees the shells that hold only noise.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from weft.heterogeneity.lattice import Lattice

__all__ = ["CoordinateDecoder"]


class CoordinateDecoder(nn.Module):
    """The network f.

    Parameters
    ----------
    latent : int
        Of z; 0 for one structure for all.
    hidden, layers : int
        Width, and residual layers.
    features : int
        Points r; two features each.
    extent : float
        Greatest |r|: the particle's radius, as a part of the box.
    box : int
    seed : int
        Of the points.
    """

    points: torch.Tensor

    def __init__(
        self, latent: int, hidden: int, layers: int, features: int, extent: float, box: int, seed: int
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        points = torch.randn(3, features, generator=random)
        points *= torch.rand(features, generator=random) ** (1.0 / 3.0) / points.norm(dim=0)
        self.register_buffer("points", points * (extent * box))
        self.box = box
        self.entry = nn.Linear(2 * features, hidden)
        self.condition = nn.Linear(latent, hidden, bias=False) if latent else None
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.exit = nn.Linear(hidden, 2)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def plane_features(self, rotation: torch.Tensor, lattice: Lattice, count: int) -> torch.Tensor:
        """Features of the first coefficients of images, (m, count, 2 · features).

        The phase is linear in ux and uy: what depends on each is computed once for an image, and multiplied.
        """
        turned = (2.0 * math.pi / self.box) * (rotation[:, :2] @ self.points)
        n = self.box
        x = torch.arange(n // 2, device=turned.device) * turned[:, 0, :, None]
        y = torch.arange(-(n // 2), n // 2, device=turned.device) * turned[:, 1, :, None]
        along_x = torch.polar(torch.ones_like(x), x).transpose(1, 2)
        along_y = torch.polar(torch.ones_like(y), y).transpose(1, 2)
        both = along_x[:, lattice.ux[:count]] * along_y[:, lattice.uy[:count] + n // 2]
        return torch.view_as_real(both).flatten(2)

    def space_features(self, at: torch.Tensor) -> torch.Tensor:
        """Features of points of Fourier space, (c, 3) periods over the box → (c, 2 · features)."""
        phase = (2.0 * math.pi / self.box) * (at @ self.points)
        return torch.stack([phase.cos(), phase.sin()], -1).flatten(1)

    def forward(self, features: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        """(m, c, 2 · features) and (m, latent) → (m, c) complex64, in units of A."""
        x = self.entry(features)
        if self.condition is not None:
            if z is None:
                raise ValueError("this decoder needs z")
            x = x + self.condition(z)[:, None]
        x = torch.relu(x)
        for layer in self.layers:
            x = torch.relu(layer(x) + x)
        return torch.view_as_complex(self.exit(x).float().contiguous())

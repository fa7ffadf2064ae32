"""Residuals of tilt images in the particle's own frame: what tells particles apart, few numbers for each.

The images of a particle minus the mean structure are put back into three dimensions (Σ H (Y − H V) over
Σ H² + λ on a coarse Fourier grid) and brought to real space, where all particles have the same orientation:
the same difference of structure is then the same numbers, whichever way the particle lies.
"""

from __future__ import annotations

import torch

from weft.heterogeneity.lattice import Lattice

__all__ = ["ResidualGrid"]


class ResidualGrid:
    """A coarse grid for residuals.

    Parameters
    ----------
    lattice : Lattice
        Of the images.
    size : int
        Voxels of the grid along an axis; it reaches to size/2 − 1 periods over the box.
    diameter : float
        Of the particle, as a part of the box.
    """

    def __init__(self, lattice: Lattice, size: int, diameter: float) -> None:
        self.size = min(size, 2 * (lattice.box // 2))
        self.used = lattice.within(self.size / 2 - 1)
        self._ux = lattice.ux[: self.used].float()[:, None]
        self._uy = lattice.uy[: self.used].float()[:, None]
        at = torch.arange(self.size, dtype=torch.float32) - self.size // 2
        r = (at[:, None, None] ** 2 + at[:, None] ** 2 + at * at).sqrt()
        self._inside = r <= 0.5 * diameter * self.size

    @property
    def features(self) -> int:
        """Numbers of each particle."""
        return int(self._inside.sum())

    def sums(
        self,
        residual: torch.Tensor,
        transfer: torch.Tensor,
        rotation: torch.Tensor,
        owner: torch.Tensor,
        particles: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What images put into the grid of their particle.

        Parameters
        ----------
        residual : (m, c) complex64
            Y − H V, noise of variance 1.
        transfer : (m, c) float32
            H; 0 takes an image out.
        rotation : (m, 3, 3) float32
        owner : (m,) int64
            Which particle each belongs to.
        particles : int

        Returns
        -------
        (particles, s, s, s) complex64 and float32
            Σ H (Y − H V) and Σ H², their centre being the first element.
        """
        s = self.size
        ux, uy = self._ux.to(rotation), self._uy.to(rotation)
        at = (rotation[:, None, 0] * ux + rotation[:, None, 1] * uy).round().long()
        h = transfer[:, : self.used]
        value, weight = residual[:, : self.used] * h, h * h
        inside = (at.abs().amax(-1) < s // 2) & (weight > 0.0)
        numerator = value.new_zeros(particles * s**3)
        denominator = weight.new_zeros(particles * s**3)
        first = owner[:, None] * s**3
        for places, values in ((at, value), (-at, value.conj())):
            places = places % s
            index = (first + places[..., 0] + s * (places[..., 1] + s * places[..., 2]))[inside]
            numerator.index_add_(0, index, values[inside])
            denominator.index_add_(0, index, weight[inside])
        shape = (particles, s, s, s)
        return numerator.reshape(shape), denominator.reshape(shape)

    def maps(self, numerator: torch.Tensor, denominator: torch.Tensor, damping: float) -> torch.Tensor:
        """(particles, features) float32: the residuals' maps within the particle."""
        maps: torch.Tensor = torch.fft.ifftn(numerator / (denominator + damping), dim=(1, 2, 3)).real
        centred: torch.Tensor = torch.fft.fftshift(maps, dim=(1, 2, 3))
        found: torch.Tensor = centred[:, self._inside.to(centred.device)] * self.size**1.5
        return found

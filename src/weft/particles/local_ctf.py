"""The CTF at the place of each particle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.physics.ctf import astigmatic_defocus, ctf
from weft.physics.optics import Optics

__all__ = ["LocalCTF"]


@dataclass(frozen=True)
class LocalCTF:
    """The CTF at each particle.

    Attributes
    ----------
    defocus_u, defocus_v, angle : (n,) arrays
        Å, Å, degrees.
    phase_shift : float
        Degrees.
    """

    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    angle: NDArray[np.float64]
    phase_shift: float = 0.0

    def transfer(
        self, rows: NDArray[np.int64], ky: torch.Tensor, kx: torch.Tensor, optics: Optics
    ) -> torch.Tensor:
        """The CTF of some particles.

        Parameters
        ----------
        rows : (m,) int64 array
            Which particles.
        ky, kx : (y, 1) and (1, x//2+1) tensors
            1/Å.
        optics : Optics

        Returns
        -------
        (m, y, x//2+1) float32
        """
        ky, kx = ky.double(), kx.double()
        azimuth = torch.atan2(ky, kx).expand(ky.shape[0], kx.shape[1])

        def of(values: NDArray[np.float64]) -> torch.Tensor:
            return torch.as_tensor(values[rows], dtype=torch.float64)[:, None, None]

        defocus = astigmatic_defocus(of(self.defocus_u), of(self.defocus_v), of(self.angle), azimuth[None])
        return ctf((ky**2 + kx**2)[None], defocus, optics, self.phase_shift).float()

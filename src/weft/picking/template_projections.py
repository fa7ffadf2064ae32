"""Projections of a 3D template: central sections of its Fourier transform.

By the projection theorem the transform of a map's projection, seen as p = R r, is a plane through the
centre of the map's own transform: I(kx, ky) = F(kx R₀ + ky R₁). Sections are taken from a transform that is
twice as fine as the box (:mod:`weft.particles.fourier_volume`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.errors import ItemError
from weft.matching.angles import rotation_grid
from weft.matching.density import solvent_level
from weft.matching.template import resample
from weft.particles.fourier_volume import padded_transform, sample
from weft.physics import fourier
from weft.physics.geometry import euler_matrix

__all__ = ["Orientations", "Projector", "centred_images", "template_orientations"]


@dataclass(frozen=True)
class Orientations:
    """Orientations that a template is tried in.

    Attributes
    ----------
    euler : (n, 3) float64
        rot, tilt, psi, degrees.
    computed : (m,) int64
        Of which of them a projection must be computed.
    turned : (m,) int64
        Which is the same projection turned in its plane by 180°, so that its transform is the complex
        conjugate; empty where the grid has no such pairs.
    """

    euler: torch.Tensor
    computed: torch.Tensor
    turned: torch.Tensor

    def __len__(self) -> int:
        return len(self.euler)


def template_orientations(step: float, symmetry: str = "C1") -> Orientations:
    """Orientations at a step (degrees), those that look the same only once.

    Views are the pixels' centres of a HEALPix grid, psi turns each by 360° / ⌈360 / step⌉: see
    :func:`weft.matching.angles.rotation_grid`.
    """
    grid = rotation_grid(step, symmetry)
    turns = math.ceil(360.0 / step - 1e-9)
    number = torch.arange(len(grid)).reshape(-1, turns)
    if turns % 2:
        return Orientations(grid, number.reshape(-1), number.new_zeros(0))
    half = turns // 2
    return Orientations(grid, number[:, :half].reshape(-1), number[:, half:].reshape(-1))


@dataclass(frozen=True)
class Projector:
    """A map that can be projected along any direction.

    Attributes
    ----------
    transform : (2l+1, 2l+1, l+2) complex64
        Of :func:`weft.particles.fourier_volume.padded_transform`.
    box : int
        Side of the projections, odd: a turn by 180° about the pixel box//2 then keeps the box.
    pixel_size : float
        Å.
    radius : float
        Periods over the box; what is finer is 0 in the projections.
    """

    transform: torch.Tensor
    box: int
    pixel_size: float
    radius: float

    @classmethod
    def of(
        cls, volume: torch.Tensor, voxel_size: float, pixel_size: float, box: int, resolution: float
    ) -> Projector:
        """From a map.

        Parameters
        ----------
        volume : (n, n, n) float
            Its centre is the voxel n//2; the level of its solvent is taken away.
        voxel_size, pixel_size : float
            Å; of the map, of the projections.
        box : int
            Side of the projections, px, odd.
        resolution : float
            Å; projections hold nothing finer.

        Raises
        ------
        ItemError
            The map is no cube or has values that are no numbers.
        """
        if volume.ndim != 3 or len(set(volume.shape)) != 1:
            raise ItemError(
                f"a template of {' × '.join(map(str, volume.shape))} voxels is not a cube: pad it"
            )
        if not bool(torch.isfinite(volume).all()):
            raise ItemError("the template holds values that are not finite: repair the map first")
        if box % 2 == 0:
            raise ValueError(f"a box of {box} px has no pixel in its middle")
        volume = volume.float()
        made = resample(volume - solvent_level(volume), voxel_size, pixel_size, box)
        radius = min(box * pixel_size / resolution, 0.5 * box - 1.0)
        return cls(padded_transform(made, radius), box, pixel_size, radius)

    def sections(self, euler: torch.Tensor) -> torch.Tensor:
        """Transforms of projections ``(r, box, box//2+1)``, complex64; phases count from the pixel box//2.

        Parameters
        ----------
        euler : (r, 3)
            rot, tilt, psi, degrees.
        """
        device = self.transform.device
        ky, kx = fourier.frequencies((self.box, self.box), 1.0 / self.box, device)
        inside = (ky * ky + kx * kx).sqrt() <= self.radius
        uy, ux = (k.expand(inside.shape)[inside].float() for k in (ky, kx))
        rows = euler_matrix(*euler.double().unbind(-1))[:, :2].to(device, torch.float32)
        at = ux[:, None] * rows[:, None, 0] + uy[:, None] * rows[:, None, 1]
        out = torch.zeros(len(euler), *inside.shape, dtype=torch.complex64, device=device)
        # pixels are as long as voxels: a projection is a sum over them, whatever their size
        out[:, inside] = sample(self.transform, at)
        return out


def centred_images(sections: torch.Tensor, box: int) -> torch.Tensor:
    """Images ``(r, box, box)`` of transforms whose phases count from the pixel box//2."""
    half = box // 2
    return fourier.irfft2(sections, (box, box)).roll((half, half), dims=(-2, -1))

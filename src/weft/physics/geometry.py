"""Where a point of the specimen lies in the images of a tilt series, and at which defocus.

    image = M(0, tilt + level_y, −axis) · Rx(level_x) · (p − volume centre) + shift + image centre
    defocus = the tilt's defocus + hand × the third component of the same

M(rot, tilt, psi) = Rz(psi)·Ry(tilt)·Rz(rot) in the form of RELION, Xmipp and Warp takes coordinates of the
specimen to those of the image. Everything is in Å and degrees; the tilt axis is counted counter-clockwise
from the image's y axis, as SerialEM's ``Tilt axis angle``. ``level_x`` and ``level_y`` are the specimen's own
inclination to the stage. With ``hand`` = +1 a positive tilt brings +x of the specimen to greater underfocus
(Warp's definition); RELION's rlnTomoHand is −hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = [
    "TiltGeometry",
    "euler_angles",
    "euler_matrix",
    "rotation_about",
    "rotation_angle",
    "rotation_x",
    "tilt_matrices",
]

#: Sine of the tilt below which rot and psi turn about one axis, and only their sum or difference is known.
_POLE = 1e-9


def euler_matrix(rot: torch.Tensor, tilt: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    """RELION's and Warp's matrix of ZYZ Euler angles.

    Parameters
    ----------
    rot, tilt, psi : (...) tensors
        Degrees; they broadcast.

    Returns
    -------
    (..., 3, 3) tensor
        Takes coordinates of the map to those of the projection; its rows are the projection's axes.
    """
    together = torch.broadcast_tensors(rot, tilt, psi)  # type: ignore[no-untyped-call]
    a, b, g = (torch.deg2rad(angle) for angle in together)
    ca, sa, cb, sb, cg, sg = a.cos(), a.sin(), b.cos(), b.sin(), g.cos(), g.sin()
    rows = (
        (cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb),
        (-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb),
        (sb * ca, sb * sa, cb),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def euler_angles(matrices: torch.Tensor) -> torch.Tensor:
    """Angles of matrices as :func:`euler_matrix` makes them; at the poles rot is 0, as in RELION.

    Parameters
    ----------
    matrices : (..., 3, 3) tensor

    Returns
    -------
    (..., 3) float64 tensor
        rot, tilt, psi, degrees; tilt between 0 and 180.
    """
    m = matrices.double()
    sine, cosine = torch.hypot(m[..., 2, 0], m[..., 2, 1]), m[..., 2, 2]
    pole = sine < _POLE
    rot = torch.where(pole, torch.zeros_like(sine), torch.atan2(m[..., 2, 1], m[..., 2, 0]))
    at_pole = torch.atan2(torch.where(cosine > 0, m[..., 0, 1], -m[..., 1, 0] * cosine.sign()), m[..., 1, 1])
    psi = torch.where(pole, at_pole, torch.atan2(m[..., 1, 2], -m[..., 0, 2]))
    return torch.rad2deg(torch.stack([rot, torch.atan2(sine, cosine), psi], dim=-1))


def rotation_about(vectors: torch.Tensor) -> torch.Tensor:
    """Rotations about axes, by as many radians as they are long: (..., 3) → (..., 3, 3) float64."""
    x, y, z = vectors.double().unbind(-1)
    nil = torch.zeros_like(x)
    cross = torch.stack([nil, -z, y, z, nil, -x, -y, x, nil], dim=-1).reshape(*x.shape, 3, 3)
    return torch.as_tensor(torch.linalg.matrix_exp(cross))


def rotation_angle(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angle between rotations, degrees: (..., 3, 3), (..., 3, 3) → (...) float64."""
    # from the chord: the arc cosine of a trace has no digits left at small angles
    chord = (first.double() - second.double()).square().sum((-2, -1)).sqrt()
    return torch.rad2deg(2.0 * torch.asin((chord / math.sqrt(8.0)).clamp(max=1.0)))


def rotation_x(angle: torch.Tensor) -> torch.Tensor:
    """Rx: turns +y towards +z; `angle` in degrees, ``(...)`` → ``(..., 3, 3)``."""
    x = torch.deg2rad(angle)
    c, s, one, nil = x.cos(), x.sin(), torch.ones_like(x), torch.zeros_like(x)
    rows = ((one, nil, nil), (nil, c, -s), (nil, s, c))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def tilt_matrices(
    angles: torch.Tensor, axis: torch.Tensor, level_x: torch.Tensor, level_y: torch.Tensor
) -> torch.Tensor:
    """From the specimen to each image.

    Parameters
    ----------
    angles : (tilts,) tensor
        Stage angles, degrees.
    axis : () or (tilts,) tensor
        Tilt axis, degrees counter-clockwise from the image's y axis.
    level_x, level_y : () tensors
        The specimen's inclination, degrees.

    Returns
    -------
    (tilts, 3, 3) tensor
        The first two rows are the image's x and y, the third is the direction of the beam.
    """
    return euler_matrix(torch.zeros_like(angles), angles + level_y, -axis) @ rotation_x(level_x)


@dataclass(frozen=True)
class TiltGeometry:
    """The geometry of one tilt series. All tensors are float64.

    Attributes
    ----------
    angles : (tilts,)
        Stage angles, degrees.
    axis : () or (tilts,)
        Degrees.
    shift : (tilts, 2)
        x, y, Å: where the volume's centre lies relative to the image's centre.
    defocus : (tilts,)
        Å, of the volume's centre.
    volume_size : (3,)
        x, y, z, Å.
    image_size : (2,)
        x, y, Å: number of pixels times pixel size. The centre is half of it, which is the centre of
        pixel n//2 for even n where index 0 is the centre of the first pixel.
    level_x, level_y : ()
        Degrees.
    hand : float
        +1 or −1.
    """

    angles: torch.Tensor
    axis: torch.Tensor
    shift: torch.Tensor
    defocus: torch.Tensor
    volume_size: torch.Tensor
    image_size: torch.Tensor
    level_x: torch.Tensor
    level_y: torch.Tensor
    hand: float = 1.0

    @classmethod
    def of(
        cls,
        angles: Any,
        *,
        axis: Any = 0.0,
        shift: Any = None,
        defocus: Any = 0.0,
        volume_size: Any = (0.0, 0.0, 0.0),
        image_size: Any = (0.0, 0.0),
        level: tuple[float, float] = (0.0, 0.0),
        hand: float = 1.0,
    ) -> TiltGeometry:
        """From plain numbers and arrays; `level` is (level_x, level_y)."""

        def tensor(value: Any) -> torch.Tensor:
            return torch.as_tensor(value, dtype=torch.float64)

        given = tensor(angles)
        n = len(given)
        return cls(
            given,
            tensor(axis),
            torch.zeros(n, 2, dtype=torch.float64) if shift is None else tensor(shift),
            tensor(defocus).expand(n),
            tensor(volume_size),
            tensor(image_size),
            tensor(level[0]),
            tensor(level[1]),
            hand,
        )

    def __len__(self) -> int:
        return len(self.angles)

    @property
    def matrices(self) -> torch.Tensor:
        """(tilts, 3, 3): see :func:`tilt_matrices`."""
        return tilt_matrices(self.angles, self.axis, self.level_x, self.level_y)

    def project(self, xyz: torch.Tensor) -> torch.Tensor:
        """Where points lie in every image, and at which defocus.

        Parameters
        ----------
        xyz : (n, 3) tensor
            Å from the centre of the volume's first voxel.

        Returns
        -------
        (tilts, n, 3) tensor
            x, y in the image (Å from the centre of its first pixel) and defocus (Å).
        """
        turned = (xyz - 0.5 * self.volume_size) @ self.matrices.transpose(-1, -2)
        places = turned[..., :2] + (self.shift + 0.5 * self.image_size)[:, None]
        depth = self.defocus[:, None] + self.hand * turned[..., 2]
        return torch.cat([places, depth[..., None]], dim=-1)

    def select(self, tilts: torch.Tensor) -> TiltGeometry:
        """The same for some of the tilts (indices or a mask), in the order given."""
        axis = self.axis if self.axis.ndim == 0 else self.axis[tilts]
        return replace(
            self,
            angles=self.angles[tilts],
            axis=axis,
            shift=self.shift[tilts],
            defocus=self.defocus[tilts],
        )

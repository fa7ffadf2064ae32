"""Fourier space of a tilt series: what each coefficient of each image is worth, and which others overlap it.

By the projection theorem a tilt image holds a central section of the specimen's transform. A specimen, or
a part of it, that is D thick blurs each section over about 1/D across its plane, so that sections of
neighbouring tilts overlap at low frequencies and part at high ones. With κ(d) = max(0, 1 − D |d|) the
coefficient of tilt t at k shares its place with weights

    W_t(k) = Σ_q κ(K · n_q) w_q(K in the plane of q),      K = k in space, n_q = normal of section q

which is the gridding of the weights, evaluated where the data are. With w = 1 it is the exact filter of
Harauz & van Heel. Which coefficients overlap is a matter of geometry alone: a sparse matrix, made once,
that is applied to the weights of every sub-volume (:class:`Overlaps`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numba
import torch

from weft.physics.ctf import ctf_phase
from weft.physics.dose import dose_weight
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics

__all__ = ["Overlaps", "Sections", "TiltContrast", "radial_transfer", "transfer_volume"]


@dataclass(frozen=True)
class TiltContrast:
    """What the microscope and the dose did to each image of a tilt series, but for the defocus.

    Defocus belongs to the geometry, because it depends on the place. All tensors are ``(tilts,)`` float64.

    Attributes
    ----------
    optics : Optics
        Its pixel size and dose are not used.
    dose : tensor
        e/Å² that the specimen had received by the time of each image.
    astigmatism, angle : tensor
        U − V (Å), and the direction of U from +x, counter-clockwise (degrees).
    phase_shift : tensor
        Of a phase plate, degrees.
    weight : tensor
        A further factor for the weight of each image; 0 leaves it out.
    """

    optics: Optics
    dose: torch.Tensor
    astigmatism: torch.Tensor
    angle: torch.Tensor
    phase_shift: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(
        cls,
        optics: Optics,
        tilts: int,
        *,
        dose: Any = 0.0,
        astigmatism: Any = 0.0,
        angle: Any = 0.0,
        phase_shift: Any = 0.0,
        weight: Any = 1.0,
    ) -> TiltContrast:
        """From plain numbers, the same for every tilt, or one value a tilt."""

        def tensor(value: Any) -> torch.Tensor:
            return torch.as_tensor(value, dtype=torch.float64).expand(tilts)

        return cls(
            optics, tensor(dose), tensor(astigmatism), tensor(angle), tensor(phase_shift), tensor(weight)
        )

    def select(self, tilts: torch.Tensor) -> TiltContrast:
        """The same for some of the tilts (indices or a mask), in the order given."""
        return replace(
            self,
            dose=self.dose[tilts],
            astigmatism=self.astigmatism[tilts],
            angle=self.angle[tilts],
            phase_shift=self.phase_shift[tilts],
            weight=self.weight[tilts],
        )

    def phase(self, kx: torch.Tensor, ky: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The CTF's argument as a + b · defocus: a ``(tilts, y, x)`` and b ``(y, x)``, float32."""
        kx, ky = kx.double(), ky.double()
        k2 = kx * kx + ky * ky
        device = kx.device
        u, angle, plate = (
            v.to(device)[:, None, None] for v in (self.astigmatism, self.angle, self.phase_shift)
        )
        stretch = 0.5 * u * torch.cos(2.0 * (torch.atan2(ky, kx) - torch.deg2rad(angle)))
        constant = ctf_phase(k2, stretch, self.optics, plate)
        return constant.float(), (math.pi * self.optics.wavelength * k2).float()

    def reliability(
        self,
        k: torch.Tensor,
        geometry: TiltGeometry,
        dose_model: Literal["warp", "grant", "none"],
        cosine: bool,
    ) -> torch.Tensor:
        """Weights of dose, tilt angle and image ``(tilts, *k.shape)``, float32: all but the CTF's."""
        shape = (-1, *([1] * k.ndim))
        out = self.weight.to(k.device).reshape(shape).expand(-1, *k.shape).float()
        if dose_model != "none":
            dose = self.dose.to(k.device, torch.float32).reshape(shape)
            out = out * dose_weight(k.float(), dose, self.optics.voltage, dose_model)
        if cosine:
            # the angle that counts is that between the beam and the specimen's normal
            out = out * geometry.matrices[:, 2, 2].abs().to(k.device).reshape(shape).float()
        return out


@dataclass(frozen=True)
class Sections:
    """The half-plane of coefficients of square patches, one patch a tilt, as sections of space.

    Attributes
    ----------
    kx, ky : (n, n//2+1) float64
        Frequencies in the undistorted image, 1/Å.
    to_index : (2, 2) float64
        (column, row) = to_index · (kx, ky).
    matrices : (tilts, 3, 3) float64
        From the specimen to the images.
    band : float
        Highest frequency used, 1/Å.
    """

    kx: torch.Tensor
    ky: torch.Tensor
    to_index: torch.Tensor
    matrices: torch.Tensor
    band: float

    @classmethod
    def of(
        cls,
        size: int,
        pixel_size: tuple[float, float],
        matrices: torch.Tensor,
        band: float,
        distortion: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Sections:
        """Of patches of `size` × `size` pixels of `pixel_size` (x, y, Å).

        `distortion` (2, 2): the image shows at centre + distortion · d what lies at d.
        """
        warp = torch.eye(2, dtype=torch.float64) if distortion is None else distortion.double().cpu()
        column = torch.arange(size // 2 + 1, dtype=torch.float64) / (size * pixel_size[0])
        row = torch.fft.fftfreq(size, pixel_size[1], dtype=torch.float64)
        ky_image, kx_image = torch.meshgrid(row, column, indexing="ij")
        kx, ky = torch.einsum("ji,jyx->iyx", warp, torch.stack([kx_image, ky_image]))
        to_index = torch.diag(torch.tensor(pixel_size, dtype=torch.float64) * size) @ torch.linalg.inv(warp.T)
        return cls(kx.to(device), ky.to(device), to_index.to(device), matrices.to(device), band)

    @property
    def k(self) -> torch.Tensor:
        """(n, n//2+1) float64, 1/Å."""
        return torch.hypot(self.kx, self.ky)

    @property
    def within(self) -> torch.Tensor:
        """(n, n//2+1) bool: which coefficients lie in the band."""
        return self.k <= self.band


@dataclass(frozen=True)
class Overlaps:
    """Which coefficients of which images are neighbours in space, and how near.

    The rows of a sparse matrix (CSR). A coefficient's number is (tilt · n + row) · (n//2+1) + column.

    Attributes
    ----------
    pointers : (coefficients + 1,) int64
    columns : (entries,) int32
    values : (entries,) float32
    """

    pointers: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @classmethod
    def between(cls, sections: Sections, thickness: float) -> Overlaps:
        """Of a specimen, or a part of it, that is `thickness` Å thick."""
        inside = sections.within.reshape(-1).nonzero()[:, 0]
        k = torch.stack([sections.kx.reshape(-1)[inside], sections.ky.reshape(-1)[inside]], dim=-1)
        n, half = sections.kx.shape
        m, tilts = sections.matrices, len(sections.matrices)
        rows, columns, values = [], [], []
        for t in range(tilts):
            space = k @ m[t, :2]
            # all other sections at once: distance from their plane, and place in it
            distance = (space @ m[:, 2].T).abs() * thickness
            point, other = (distance < 1.0).nonzero(as_tuple=True)
            in_plane = (m[other, :2] @ space[point][..., None])[..., 0] @ sections.to_index.T
            in_plane = torch.where(in_plane[:, :1] < -0.5, -in_plane, in_plane)
            column, row = in_plane.round().long().unbind(-1)
            column = column.abs()
            fits = (column < half) & (row >= -(n // 2)) & (row <= n // 2)
            where = (other * n + row.remainder(n)) * half + column
            rows.append((t * n * half + inside[point])[fits])
            columns.append(where[fits])
            values.append((1.0 - distance[point, other])[fits].float())
        count = torch.bincount(torch.cat(rows), minlength=tilts * n * half)
        pointers = torch.cat([count.new_zeros(1), count.cumsum(0)])
        # `nonzero` goes through the points in order, so the rows are in order too
        return cls(pointers, torch.cat(columns).int(), torch.cat(values))

    def gather(self, weights: torch.Tensor) -> torch.Tensor:
        """W of the module's first lines: what overlaps with each coefficient, itself included.

        Parameters
        ----------
        weights : (batch, tilts, n, n//2+1) float32

        Returns
        -------
        tensor of the same shape
            0 outside the band.
        """
        flat = weights.reshape(len(weights), -1)
        if weights.device.type != "cpu":
            return self.gather_plain(weights)
        out = torch.empty_like(flat)
        for source, sums in zip(flat, out, strict=True):
            _gather(
                self.pointers.numpy(),
                self.columns.numpy(),
                self.values.numpy(),
                source.contiguous().numpy(),
                sums.numpy(),
            )
        return out.reshape(weights.shape)

    def gather_plain(self, weights: torch.Tensor) -> torch.Tensor:
        """:meth:`gather` as a product of torch's own sparse matrices."""
        flat = weights.reshape(len(weights), -1)
        size = flat.shape[1]
        matrix = torch.sparse_csr_tensor(
            self.pointers, self.columns.long(), self.values, (size, size), check_invariants=False
        )
        product: torch.Tensor = (matrix @ flat.T).T
        return product.reshape(weights.shape)


@numba.njit(nogil=True, fastmath=True, cache=True)
def _gather(pointers, columns, values, weights, out):  # type: ignore[no-untyped-def]
    for row in range(len(out)):
        total = 0.0
        for entry in range(pointers[row], pointers[row + 1]):
            total += values[entry] * weights[columns[entry]]
        out[row] = total


def radial_transfer(
    k: torch.Tensor, geometry: TiltGeometry, contrast: TiltContrast, *, flipped: bool = True
) -> torch.Tensor:
    """How much of the specimen's amplitude a reconstruction keeps, on average, at `k`.

    Σ_t c² / Σ_t |c| over the CTFs of all tilts at the volume's centre, without astigmatism, for data that
    have been multiplied by the CTF (or its sign); their mean, with its sign, for data that have not.

    Parameters
    ----------
    k : (n,) tensor
        1/Å.

    Returns
    -------
    (n,) float32
    """
    round_lens = replace(contrast, astigmatism=torch.zeros_like(contrast.astigmatism))
    constant, slope = round_lens.phase(k[None], torch.zeros_like(k)[None])
    defocus = geometry.defocus.to(k.device, torch.float32)[:, None, None]
    used = (contrast.weight > 0.0).to(k.device)
    c = torch.sin(constant + slope * defocus)[used, 0]
    if not flipped:
        return torch.as_tensor(c.mean(0))
    return torch.as_tensor((c * c).sum(0) / c.abs().sum(0).clamp(min=1e-9))


def transfer_volume(
    place: torch.Tensor,
    size: int,
    pixel_size: float,
    geometry: TiltGeometry,
    contrast: TiltContrast,
    *,
    power: int = 1,
    regularisation: float = 0.1,
    dose_model: Literal["warp", "grant", "none"] = "warp",
    cosine: bool = True,
) -> torch.Tensor:
    """By what a reconstruction multiplies the specimen's transform around a place: the local 3D CTF.

    With κ for a box of this size: Σ_t κ ω c² / (Σ_t κ ω |c|ᵖ + regularisation), ω = reliability and p =
    `power`; 0 in the missing wedge and beyond Nyquist. What a template is multiplied by before matching.

    Parameters
    ----------
    place : (3,) tensor
        x, y, z, Å.
    size : int
        Side of the box, voxels.
    pixel_size : float
        Å.

    Returns
    -------
    (size, size, size//2+1) float32
        In the order of an rfft; never negative.
    """
    device = place.device
    axis = torch.fft.fftfreq(size, pixel_size, device=device)
    half = torch.fft.rfftfreq(size, pixel_size, device=device)
    z, y, x = torch.meshgrid(axis, axis, half, indexing="ij")
    space = torch.stack([x, y, z], dim=-1)
    defocus = geometry.project(place.cpu().double()[None])[:, 0, 2]
    above, below = torch.zeros_like(x), torch.zeros_like(x)
    for t in range(len(geometry)):
        kx, ky, d = (space @ geometry.matrices[t].to(device, torch.float32).T).unbind(-1)
        near = (1.0 - d.abs() * (size * pixel_size)).clamp(min=0.0)
        inside = near > 0.0
        one = contrast.select(torch.tensor([t]))
        tilt = geometry.select(torch.tensor([t]))
        kx, ky, near = kx[inside], ky[inside], near[inside]
        constant, slope = one.phase(kx[None], ky[None])
        c = torch.sin(constant[0, 0] + slope[0] * float(defocus[t]))
        weight = near * one.reliability(torch.hypot(kx, ky), tilt, dose_model, cosine)[0]
        above[inside] += weight * c * c
        below[inside] += weight * c.abs() ** power
    transfer = above / (below + regularisation).clamp(min=1e-9)
    return torch.where(space.norm(dim=-1) <= 0.5 / pixel_size, transfer, torch.zeros_like(transfer))

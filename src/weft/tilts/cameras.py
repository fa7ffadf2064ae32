"""The cameras of a tilt series, and the markers that they saw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from weft.physics.geometry import TiltGeometry, tilt_matrices
from weft.tilts.equations import projected, triangulated

__all__ = ["Cameras", "Tracks"]


@dataclass(frozen=True)
class Tracks:
    """Where markers were seen: beads, or patches followed from tilt to tilt. One row an observation.

    Attributes
    ----------
    marker : (m,) int64
        0 … n−1.
    tilt : (m,) int64
    xy : (m, 2) float64
        Å, relative to the image's centre: (index of the pixel − n/2) · pixel size.
    sigma : (m,) float64
        Å, of one coordinate, as far as it is known beforehand; a common factor does not matter.
    """

    marker: torch.Tensor
    tilt: torch.Tensor
    xy: torch.Tensor
    sigma: torch.Tensor

    def __len__(self) -> int:
        return len(self.marker)

    @property
    def markers(self) -> int:
        """How many markers there are: the largest number plus 1."""
        return int(self.marker.max()) + 1 if len(self.marker) else 0

    def select(self, which: torch.Tensor) -> Tracks:
        """Some of the observations (indices or a mask); markers keep their numbers."""
        return Tracks(self.marker[which], self.tilt[which], self.xy[which], self.sigma[which])


@dataclass(frozen=True)
class Cameras:
    """How each tilt sees the specimen before it is levelled. All float64.

    Attributes
    ----------
    angles : (tilts,)
        Degrees.
    axis : (tilts,)
        Degrees, counter-clockwise from the image's y axis.
    shift : (tilts, 2)
        Å: where the specimen's centre lies relative to the image's centre.
    magnification : (tilts,)
    """

    angles: torch.Tensor
    axis: torch.Tensor
    shift: torch.Tensor
    magnification: torch.Tensor

    @classmethod
    def of(
        cls, angles: torch.Tensor, axis: float | torch.Tensor, shift: torch.Tensor | None = None
    ) -> Cameras:
        """With one axis or one for each tilt, and magnification 1; without `shift` all are 0."""
        angles = torch.as_tensor(angles, dtype=torch.float64)
        n = len(angles)
        whole = torch.as_tensor(axis, dtype=torch.float64).expand(n).clone()
        at = torch.zeros(n, 2, dtype=torch.float64) if shift is None else shift.to(torch.float64)
        return cls(angles, whole, at, torch.ones(n, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.angles)

    @property
    def matrices(self) -> torch.Tensor:
        """(tilts, 3, 3): from the specimen to each image, without the magnification."""
        nil = torch.zeros((), dtype=torch.float64)
        return tilt_matrices(self.angles, self.axis, nil, nil)

    def project(self, markers: torch.Tensor) -> torch.Tensor:
        """Where points (n, 3) lie in every image: (tilts, n, 2), Å relative to the image's centre."""
        return projected(self.parameters()[:, None], markers)

    def predict(self, markers: torch.Tensor, tracks: Tracks) -> torch.Tensor:
        """Where the markers of `tracks` should have been seen: (m, 2), Å."""
        return projected(self.parameters()[tracks.tilt], markers[tracks.marker])

    def triangulate(self, tracks: Tracks, markers: int | None = None) -> torch.Tensor:
        """The markers (n, 3) that fit `tracks` best if these cameras are right; `markers` is their number."""
        n, w = tracks.markers if markers is None else markers, tracks.sigma**-2
        return triangulated(self.parameters(), tracks.marker, tracks.tilt, tracks.xy, w, n)

    def parameters(self) -> torch.Tensor:
        """(tilts, 5): shift x, y in Å, axis and tilt angle in radians, magnification."""
        columns = [torch.deg2rad(self.axis), torch.deg2rad(self.angles), self.magnification]
        return torch.cat([self.shift, torch.stack(columns, dim=-1)], dim=-1)

    @classmethod
    def from_parameters(cls, p: torch.Tensor) -> Cameras:
        """The other way."""
        return cls(torch.rad2deg(p[:, 3]), torch.rad2deg(p[:, 2]), p[:, :2].clone(), p[:, 4].clone())

    def moved(self, by: torch.Tensor) -> Cameras:
        """The same cameras for a specimen whose origin is put at `by` (3,), Å of the present frame."""
        seen = self.magnification[:, None] * (self.matrices[:, :2] @ by)
        return replace(self, shift=self.shift + seen)

    def select(self, tilts: torch.Tensor) -> Cameras:
        """Some of the tilts (indices or a mask), in the order given."""
        return Cameras(self.angles[tilts], self.axis[tilts], self.shift[tilts], self.magnification[tilts])

    def geometry(
        self,
        image_size: tuple[float, float],
        volume_size: tuple[float, float, float],
        level: tuple[float, float] = (0.0, 0.0),
    ) -> TiltGeometry:
        """The geometry for (x, y) images and an (x, y, z) volume of so many Å; magnification is left out."""
        return TiltGeometry.of(
            self.angles,
            axis=self.axis,
            shift=self.shift,
            volume_size=volume_size,
            image_size=image_size,
            level=level,
        )

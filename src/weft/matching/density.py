"""What a map says about the particle in it: the solvent's level, where the density is, how large it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from weft.errors import ItemError

__all__ = ["Particle", "find_particle", "otsu_threshold", "solvent_level"]

_BINS = 512
# pieces smaller than this part of the largest one are dust
_DUST = 0.05


@dataclass(frozen=True)
class Particle:
    """Where the density of a map is.

    Attributes
    ----------
    density : (z, y, x) float32
        Above the threshold and free of dust, as how much it lies above it; 0 elsewhere. Each of its voxels
        is the mean of `step`³ of the map's.
    step : int
    solvent : float
        The map's value outside the particle.
    threshold : float
        Density counts from here, in the map's own values.
    sign : int
        +1 for density brighter than the solvent (light on dark), -1 for darker.
    centre : (3,) float64
        Centre of mass of `density`; z, y, x, voxels from the first voxel's centre.
    """

    density: torch.Tensor
    step: int
    solvent: float
    threshold: float
    sign: int
    centre: torch.Tensor

    def radius(self, centre: torch.Tensor | None = None, part: float = 0.995) -> float:
        """Voxels from a point (z, y, x; by default the centre of mass) that hold `part` of the density."""
        return self._holding((self._places() - (self.centre if centre is None else centre)).norm(dim=1), part)

    def half_side(self, centre: torch.Tensor, part: float) -> float:
        """Half the side, in voxels, of the cube about `centre` that holds `part` of the density."""
        return self._holding((self._places() - centre).abs().amax(dim=1), part)

    def part_within(self, low: torch.Tensor, high: torch.Tensor) -> float:
        """Which part of the density lies between two corners (z, y, x; voxels)."""
        places = self._places()
        inside = ((places >= low) & (places <= high)).all(dim=1)
        weights = self.density[self.density > 0].double()
        return float(weights[inside].sum() / weights.sum())

    def _places(self) -> torch.Tensor:
        return _in_map((self.density > 0).nonzero().double(), self.step)

    def _holding(self, distance: torch.Tensor, part: float) -> float:
        """The distance within which `part` of the density is."""
        order = distance.argsort()
        held = self.density[self.density > 0].double()[order].cumsum(0)
        return float(distance[order][int((held >= part * held[-1]).nonzero()[0])]) + 0.5 * self.step


def solvent_level(map_: torch.Tensor) -> float:
    """The median of a map's faces ``(z, y, x)``: solvent, where the particle does not reach them."""
    faces = [map_[[0, -1]], map_[:, [0, -1]], map_[:, :, [0, -1]]]
    return float(torch.cat([face.reshape(-1) for face in faces]).median())


def otsu_threshold(values: torch.Tensor) -> float:
    """The threshold between two classes of values that differ most from each other.

    Otsu 1979, IEEE Trans. Syst. Man Cybern. 9, 62, eq. 18: the largest variance between the classes.
    """
    flat = values.reshape(-1).double()
    low, high = float(flat.min()), float(flat.max())
    counts = torch.histc(flat, _BINS, low, high)
    step = (high - low) / _BINS
    middle = low + step * (torch.arange(_BINS, dtype=torch.float64, device=flat.device) + 0.5)
    below, sums = counts.cumsum(0), (counts * middle).cumsum(0)
    above = below[-1] - below
    between = (sums[-1] * below / below[-1] - sums) ** 2 / (below * above).clamp_min(1.0)
    return low + step * (int(between[:-1].argmax()) + 1)


def find_particle(map_: torch.Tensor, largest: int | None = 192) -> Particle:
    """Tell the particle from what is around it.

    The threshold is Otsu's among all that differs from the solvent towards the side that the strongest
    density is on; pieces of less than a twentieth of the largest one's density are left out.

    Parameters
    ----------
    map_ : (z, y, x) float
    largest : int, optional
        Larger maps are averaged over cubes of voxels until they are no larger, which takes away noise and
        keeps memory small; None for never.

    Returns
    -------
    Particle

    Raises
    ------
    ItemError
        The map is the same everywhere.
    """
    solvent = solvent_level(map_)
    step = 1 if largest is None else math.ceil(max(map_.shape) / largest)
    coarse = map_ if step == 1 else torch.nn.functional.avg_pool3d(map_[None, None].float(), step)[0, 0]
    above = coarse.double() - solvent
    sign = 1 if float((above**3).sum()) >= 0.0 else -1
    above = (sign * above).clamp_min(0.0)
    if float(above.max()) <= 0.0:
        raise ItemError("the map has no density: it is the same everywhere; give another map")
    threshold = otsu_threshold(above)
    # a threshold at the top of a histogram of few values would leave nothing
    threshold = min(threshold, 0.5 * float(above.max()))
    excess = (above - threshold).clamp_min(0.0)
    labels, count = ndimage.label((excess > 0).cpu().numpy(), np.ones((3, 3, 3)))
    label = torch.from_numpy(labels).to(map_.device).long()
    masses = torch.zeros(count + 1, dtype=torch.float64, device=map_.device)
    masses.index_add_(0, label.reshape(-1), excess.reshape(-1))
    excess = excess * (masses >= _DUST * masses.max())[label]
    centre = _in_map(_centre_of_mass(excess), step)
    return Particle(excess.float(), step, solvent, solvent + sign * threshold, sign, centre)


def _in_map(places: torch.Tensor, step: int) -> torch.Tensor:
    """Places in a map from those in its averages of `step` voxels."""
    return places * step + 0.5 * (step - 1)


def _centre_of_mass(weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum()
    places = []
    for axis in range(3):
        profile = weights.sum(dim=[other for other in range(3) if other != axis])
        index = torch.arange(len(profile), dtype=torch.float64, device=weights.device)
        places.append((profile * index).sum() / total)
    return torch.stack(places)

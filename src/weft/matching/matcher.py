"""A tomogram, its templates, and all that is decided once for the search and the refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.matching.filters import Filters, measure_filters, phase_randomised
from weft.matching.kernel import MaskedTemplate
from weft.matching.parts import Block
from weft.matching.plan import Plan, SearchSettings, Template, plan_search
from weft.matching.rotation import FineMap
from weft.matching.weights import Imaging

__all__ = ["Matcher"]


@dataclass(frozen=True)
class Matcher:
    """Of one tomogram.

    Attributes
    ----------
    tomogram : (z, y, x) array
    voxel_size : float
        Å.
    templates : sequence of Template
    imaging : Imaging or None
    settings : SearchSettings
    origin : (float, float, float)
        x, y, z, Å: of the tomogram's first voxel in the volume that `imaging.geometry` describes.
    plan : Plan
    filters : Filters
    device : str
    """

    tomogram: NDArray[np.floating]
    voxel_size: float
    templates: Sequence[Template]
    imaging: Imaging | None
    settings: SearchSettings
    origin: tuple[float, float, float]
    plan: Plan
    filters: Filters
    device: str = "cpu"

    @classmethod
    def of(
        cls,
        tomogram: NDArray[np.floating],
        voxel_size: float,
        templates: Sequence[Template],
        imaging: Imaging | None = None,
        settings: SearchSettings | None = None,
        *,
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        device: str = "cpu",
    ) -> Matcher:
        """Look at a tomogram, which may be mapped from a file, and decide what can be decided beforehand.

        Raises
        ------
        ItemError
            A tomogram that is empty, flat or not finite; see also :func:`~weft.matching.plan.plan_search`.
        """
        settings = settings or SearchSettings()
        if tomogram.ndim != 3:
            raise ItemError(f"a tomogram has three axes, this has {tomogram.ndim}")
        z, y, x = tomogram.shape
        threads = torch.get_num_threads() if device == "cpu" else 1
        plan = plan_search((z, y, x), voxel_size, templates, imaging, settings, threads)
        box = templates[0].volume.shape[0]
        filters = measure_filters(tomogram, voxel_size, plan, imaging, settings, origin, box)
        return cls(tomogram, voxel_size, templates, imaging, settings, origin, plan, filters, device)

    def with_hand(self, hand: float) -> Matcher:
        """The same with another hand; filters stay those that were measured."""
        if self.imaging is None:
            return self
        geometry = replace(self.imaging.geometry, hand=float(hand))
        return replace(self, imaging=replace(self.imaging, geometry=geometry))

    def filtered(self, block: Block) -> torch.Tensor:
        """The voxels of a part and its halo, filtered."""
        found = self.filters.block(self.tomogram, block, self.plan.reach, self.imaging, self.place(block))
        return found.to(self.device)

    def place(self, block: Block) -> torch.Tensor:
        """x, y, z, Å, of a part's centre in the full volume: (3,) float64."""
        centre = torch.tensor(block.centre, dtype=torch.float64) * self.voxel_size
        return centre + torch.tensor(self.origin, dtype=torch.float64)

    def prepared_weights(self, index: int, place: torch.Tensor) -> torch.Tensor | None:
        """By what a template's transform is multiplied around a place (Å); None for nothing."""
        weights = self.filters.template_weights(len(self.templates[index].volume), self.imaging, place)
        return None if weights is None else weights.to(self.device)

    def fine(self, index: int) -> MaskedTemplate:
        """A template, oversampled."""
        template = self.templates[index]
        mask = template.mask.to(self.device)
        turning = FineMap.of_mask(mask) if self.settings.mask_turns else None
        noise = None
        if self.settings.random_phase:
            noise = FineMap.of(
                phase_randomised(without_ground(template.volume), self.settings.seed).to(self.device)
            )
        fine = FineMap.of(without_ground(template.volume).to(self.device))
        return MaskedTemplate(fine, mask, self.plan.reach, turning, noise)


def without_ground(volume: torch.Tensor) -> torch.Tensor:
    """Less the mean of its faces, so that what surrounds a turned copy is what surrounds the structure."""
    inner = torch.zeros_like(volume, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    return volume - volume[~inner].mean()

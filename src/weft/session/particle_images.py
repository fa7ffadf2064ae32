"""Particles together with their images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries

__all__ = ["ParticleImages", "filled", "room"]

#: Bytes of images beyond which they are kept in a file that disappears with the process.
_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class ParticleImages:
    """Particles and their images.

    Attributes
    ----------
    series : ImageSeries
        Images may be mapped from a file. Series with fewer tilts than others are filled up with images of
        weight 0.
    particles : TomoParticles
        The same, in the same order: places as the images were cut, orientations as in ``series.rotation``.
    """

    series: ImageSeries
    particles: TomoParticles

    @property
    def euler(self) -> torch.Tensor:
        """(n, 3) float64: rot, tilt, psi, degrees."""
        return torch.from_numpy(np.array(self.particles.euler, dtype=np.float64))


def room(particles: int, tilts: int, size: int) -> torch.Tensor:
    """Zeros (particles, tilts, size, size), in a file without a name where they are many."""
    shape = (particles, tilts, size, size)
    if 4 * int(np.prod(shape, dtype=np.int64)) <= _IN_MEMORY:
        return torch.zeros(shape)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


def filled(parts: Sequence[ImageSeries], images: torch.Tensor) -> ImageSeries:
    """All but the images of `parts`, joined and filled up to the tilts of `images`, with those."""
    tilts = images.shape[1]
    first = parts[0]
    joined: dict[str, Any] = {}
    for name in ("shift", "rotation", "defocus", "astigmatism", "angle", "phase_shift", "dose", "weight"):
        values = []
        for part in parts:
            value: torch.Tensor = getattr(part, name)
            missing = tilts - value.shape[1]
            if missing:
                more = value.new_zeros(len(value), missing, *value.shape[2:])
                if name == "rotation":
                    more += torch.eye(3)
                value = torch.cat([value, more], 1)
            values.append(value)
        joined[name] = torch.cat(values)
    for name in ("group", "half"):
        joined[name] = torch.cat([getattr(part, name) for part in parts])
    return replace(first, images=images, **joined)

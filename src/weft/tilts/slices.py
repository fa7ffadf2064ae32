"""Pictures of a tomogram's middle: three orthogonal sections in one frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from weft.tilts.volumes import MapSummary

__all__ = ["slice_picture", "stretched"]

#: Part of the pixels that may be black or white.
_CLIPPED = 0.005
#: Between the sections, pixels.
_GAP = 4


def stretched(section: torch.Tensor, limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """A section in eight bits.

    Parameters
    ----------
    section : (y, x) tensor
    limits : (float, float), optional
        What becomes black and white; by default the section's own, but for its most extreme pixels.
    """
    plane = section.detach().cpu().float().numpy()
    if limits is None:
        low, high = (float(v) for v in np.quantile(plane, (_CLIPPED, 1.0 - _CLIPPED)))
    else:
        low, high = limits
    span = high - low if high > low else 1.0
    return np.asarray(np.clip((plane - low) * (255.0 / span), 0, 255).round(), dtype=np.uint8)


def slice_picture(summary: MapSummary) -> NDArray[np.uint8]:
    """The xy section with yz at its right and xz below, edges in register; one grey scale for all."""
    planes = summary.slices
    xy = planes.xy
    low, high = (float(v) for v in np.quantile(xy.numpy(), (_CLIPPED, 1.0 - _CLIPPED)))
    (ny, nx), nz = xy.shape, planes.xz.shape[0]
    out = np.full((ny + _GAP + nz, nx + _GAP + nz), 255, np.uint8)
    # light on dark, as volumes are written, and z away from the xy section
    out[:ny, :nx] = stretched(xy, (low, high))
    out[:ny, nx + _GAP :] = stretched(planes.yz.T, (low, high))
    out[ny + _GAP :, :nx] = stretched(planes.xz, (low, high))
    return out

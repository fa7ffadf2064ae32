"""What a search has found: places, orientations and scores.

(skeleton: the dataclass is fixed, the functions are being written)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "SearchStatistics"]


@dataclass(frozen=True)
class SearchStatistics:
    """Of all scores that a search has looked at, maxima or not.

    Attributes
    ----------
    search_space : int
        Voxels times rotations times templates.
    mean, std : float
    """

    search_space: int
    mean: float
    std: float


@dataclass(frozen=True)
class Candidates:
    """Places where a template may be, best first.

    Attributes
    ----------
    xyz : (n, 3) float64
        Å from the centre of the full volume's first voxel.
    euler : (n, 3) float64
        rot, tilt, psi, degrees: M(rot, tilt, psi) takes coordinates of the template to those of the tomogram.
    score : (n,) float64
        The correlation, LCC_max.
    template : (n,) int64
        Which of the competing templates it is.
    """

    xyz: NDArray[np.float64]
    euler: NDArray[np.float64]
    score: NDArray[np.float64]
    template: NDArray[np.int64]

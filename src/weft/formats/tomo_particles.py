"""Particles in tomograms as other programs list them.

(skeleton: the dataclass is fixed, readers and writers are being written)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TomoParticles"]


@dataclass(frozen=True)
class TomoParticles:
    """Particles, whatever program has listed them.

    Attributes
    ----------
    tomogram : list of str
        (n), rlnTomoName.
    xyz : (n, 3) float64
        Å from the volume's centre (n//2 of each axis), as rlnCenteredCoordinateX/Y/ZAngst.
    euler : (n, 3) float64
        rot, tilt, psi, degrees; M(rot, tilt, psi) takes coordinates of the map to those of the tomogram.
    score : (n,) float64
        NaN where there is none.
    extra : mapping
        Other columns, by their labels, as they were.
    """

    tomogram: list[str]
    xyz: NDArray[np.float64]
    euler: NDArray[np.float64]
    score: NDArray[np.float64]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xyz)

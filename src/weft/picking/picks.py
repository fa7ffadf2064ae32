"""Where the particles of one micrograph are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Picks"]


@dataclass(frozen=True)
class Picks:
    """Particles of one micrograph, the best first.

    Attributes
    ----------
    xy : ``(n, 2)`` array
        x, y in Å from the centre of the average's first pixel.
    score : ``(n,)`` array
        Figure of merit: of the network the mean probability in the component; of templates the correlation in
        standard deviations of its background. NaN where unknown.
    diameter : float
        Å, of the particles; NaN where unknown.
    area : ``(n,)`` array, optional
        Å² of the connected component.
    eulers : ``(n, 3)`` array, optional
        rot, tilt, psi in degrees, of template matching.
    class_number : ``(n,)`` array of int, optional
        Which template, from 1.
    """

    xy: NDArray[np.float64]
    score: NDArray[np.float64]
    diameter: float
    area: NDArray[np.float64] | None = None
    eulers: NDArray[np.float64] | None = None
    class_number: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def select(self, rows: Any) -> Picks:
        """Some of them: indices or a mask."""

        def of(column: Any) -> Any:
            return None if column is None else column[rows]

        return Picks(
            self.xy[rows],
            self.score[rows],
            self.diameter,
            of(self.area),
            of(self.eulers),
            of(self.class_number),
        )

"""The table of CTFs that CTFFIND 4 and 5 and AreTomo (``_CTF.txt``) write: one row an image.

Columns: number, defocus 1 and 2 (Å), azimuth of defocus 1 (°, from +x, counter-clockwise), phase shift
(radians), score, resolution (Å), and in newer versions further ones, which are not read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError

__all__ = ["CtffindTable", "read_ctffind"]

_COLUMNS = 7
#: A defocus of less (Å, positive) is no defocus in Å.
_LEAST = 100.0


@dataclass(frozen=True)
class CtffindTable:
    """One row an image, in the order of the stack.

    Attributes
    ----------
    defocus_u, defocus_v : (images,) arrays
        Å.
    angle : (images,) array
        Of defocus_u, degrees.
    phase_shift : (images,) array
        Degrees.
    """

    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    angle: NDArray[np.float64]
    phase_shift: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.angle)


def read_ctffind(path: str | Path) -> CtffindTable:
    """Read a table.

    Raises
    ------
    TruncatedError
        It is empty.
    FormatError
        Not such a table.
    CorruptError
        A value that is not finite; numbers of images that do not count up.
    """
    path = Path(path)
    lines = path.read_bytes().decode("latin-1").splitlines()
    if not any(line.strip() for line in lines):
        raise TruncatedError(path, "the file is empty")
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise FormatError(path, f"line {number}: {line.strip()[:40]!r} is no row of numbers") from None
        if len(values) < _COLUMNS:
            raise FormatError(
                path, f"line {number}: {len(values)} columns, a table of CTFs by CTFFIND has {_COLUMNS}"
            )
        # the resolution may be "inf" where no ring was found
        if not all(map(math.isfinite, values[:5])):
            raise CorruptError(path, f"line {number}: a value is not finite")
        rows.append(values[:5])
    if not rows:
        raise TruncatedError(path, "it has no images")
    table = np.array(rows)
    if np.abs(table[:, 1]).max() < _LEAST:
        raise FormatError(path, "its second column is no defocus in Å")
    if np.any(np.diff(table[:, 0]) <= 0):
        raise CorruptError(path, "the numbers of its images do not count up")
    return CtffindTable(table[:, 1], table[:, 2], table[:, 3], np.degrees(table[:, 4]))

"""Commands of UCSF ChimeraX (``.cxc``) that show volumes at places in a tomogram.

Places are Å from the centre of the tomogram's first voxel, which is put at ChimeraX's origin; a volume's own
origin is the centre of its voxel n//2. ``view matrix models`` takes the rows of a 3×4 matrix that takes a
model's coordinates to the scene's (ChimeraX's user guide, "view").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Copies", "chimerax_commands"]

#: Matrices in one command.
_AT_ONCE = 50


@dataclass(frozen=True)
class Copies:
    """Volumes that belong together, at several places.

    Attributes
    ----------
    name : str
        Of all of them together.
    volumes : list of Path
        (n); the same file may be there many times.
    size : int
        Voxels along an axis, of each.
    level : float or None
        Of its surface; None leaves it to ChimeraX.
    colour : str
        ``#rrggbb``.
    names : list of str
        (n)
    matrix : (n, 3, 4) float64
        From the volume's coordinates (Å from the centre of voxel n//2) to the tomogram's.
    """

    name: str
    volumes: list[Path]
    size: int
    level: float | None
    colour: str
    names: list[str]
    matrix: NDArray[np.float64]


def chimerax_commands(
    copies: Sequence[Copies],
    tomogram: Path | None = None,
    shape: tuple[int, int, int] = (0, 0, 0),
    comments: Sequence[str] = (),
) -> str:
    """A file of commands; the tomogram is model 1, the first group of copies model 2.

    Parameters
    ----------
    copies : list of Copies
    tomogram : Path, optional
    shape : (x, y, z)
        Its voxels.
    comments : list of str
        For its beginning.
    """
    lines = [f"# {' '.join(text.split())}" for text in comments]
    if tomogram is not None:
        middle = ",".join(str(n // 2) for n in shape)
        lines += [
            f"open {_quoted(str(tomogram.absolute()))} id #1",
            "volume #1 originIndex 0,0,0",
            # the order as ChimeraX's own shortcut has it
            f"volume #1 orthoplanes xyz positionPlanes {middle} style image region all",
        ]
    for number, group in enumerate(copies, 2):
        lines += _group(number, group)
    lines.append("view")
    return "\n".join(lines) + "\n"


def _group(number: int, group: Copies) -> Iterator[str]:
    count = len(group.names)
    if count == 0:
        return
    for i, (file, name) in enumerate(zip(group.volumes, group.names, strict=True), 1):
        yield f"open {_quoted(str(file.absolute()))} id #{number}.{i} name {_quoted(name)}"
    yield f"rename #{number} {_quoted(group.name)}"
    every = f"#{number}.1" if count == 1 else f"#{number}.1-{count}"
    middle = group.size // 2
    level = "" if group.level is None else f" level {group.level:.6g}"
    yield (
        f"volume {every} originIndex {middle},{middle},{middle} step 1 style surface{level} "
        f"color {group.colour}"
    )
    for first in range(0, count, _AT_ONCE):
        parts = [
            f"#{number}.{i + 1}," + ",".join(f"{value:.7g}" for value in group.matrix[i].reshape(-1))
            for i in range(first, min(first + _AT_ONCE, count))
        ]
        yield "view matrix models " + ",".join(parts)


def _quoted(text: str) -> str:
    """In the quotation marks that are not in it."""
    return f"'{text}'" if '"' in text else f'"{text}"'

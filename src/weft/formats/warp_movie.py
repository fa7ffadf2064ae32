"""Warp's XML of a movie (a "frame series"): its CTF, and its motion as spline grids.

All grids of motion are subtracted: what lies at x in the average lies in frame f of F at

    x - GridMovement(f') - GridLocalMovement(x, f') - Σ PyramidShift(x, f / (F - 1)),      f' = φ f / (F - 1)

in Å, φ being the part of the movie's frames that were used (values that Warp itself has computed, see
tests/session/test_warp_project.py). Warp's grids are minus our tracks. Defocus is in µm, phases are in π.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.formats.atomic import atomic_write_bytes
from weft.formats.warp_xml import WarpGrid, read_grid, read_root, write_grid

__all__ = ["WarpMovie", "read_warp_movie", "write_warp_movie"]

_PYRAMIDS = ("PyramidShiftX", "PyramidShiftY")
#: Attributes that Warp expects, with what it writes where nothing is known.
_DEFAULTS = {
    "UnselectFilter": "False", "UnselectManual": "null", "CTFResolutionEstimate": "0",
    "MeanFrameMovement": "0", "MaskPercentage": "-1", "Bfactor": "0", "Weight": "1",
    "MagnificationCorrection": "1, 0, 0, 1",
}  # fmt: skip


@dataclass
class WarpMovie:
    """What Warp knows about one movie.

    Attributes
    ----------
    ctf : dict of str to str
        Parameters as text: Defocus and DefocusDelta (µm), DefocusAngle (°), PhaseShift (π), Voltage, ...
    grids : dict of str to WarpGrid
        By element: GridCTF (defocus, µm), GridMovementX, GridLocalMovementX, ...
    pyramids : list of (WarpGrid, WarpGrid)
        ``PyramidShiftX`` and ``PyramidShiftY``, level by level.
    attributes : dict of str to str
        Of the root: UnselectManual ("True" leaves it out, "null" says nothing), CTFResolutionEstimate, ...
    other : list of str
        Further elements as XML.
    """

    ctf: dict[str, str] = field(default_factory=dict)
    grids: dict[str, WarpGrid] = field(default_factory=dict)
    pyramids: list[tuple[WarpGrid, WarpGrid]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    path: Path = Path("Movie")

    def track(
        self,
        xy: NDArray[np.floating],
        frames: int,
        image_size: tuple[float, float],
        fraction_frames: float = 1.0,
    ) -> NDArray[np.float64]:
        """Where places of the average lie in each frame, relative to the average.

        Parameters
        ----------
        xy : (n, 2) array
            Å.
        frames : int
        image_size : (float, float)
            x, y, Å.
        fraction_frames : float
            The part of the frames that Warp has used.

        Returns
        -------
        (frames, n, 2) array
            Å.
        """
        places = np.asarray(xy, np.float64) / image_size
        steps = np.repeat(np.arange(frames) / max(1, frames - 1), len(places))
        x, y = np.tile(places, (frames, 1)).T
        out = np.zeros((frames * len(places), 2))
        for axis, letter in enumerate("XY"):
            for name in (f"GridMovement{letter}", f"GridLocalMovement{letter}"):
                if name in self.grids:
                    out[:, axis] -= self.grids[name].at(x, y, fraction_frames * steps)
            for level in self.pyramids:
                out[:, axis] -= level[axis].at(x, y, steps)
        return out.reshape(frames, len(places), 2)


def read_warp_movie(path: str | Path) -> WarpMovie:
    """Read the XML of a movie.

    Raises
    ------
    TruncatedError
        It is empty.
    FormatError
        Not XML, or of something else than a movie.
    CorruptError
        Incomplete grids.
    """
    path = Path(path)
    root = read_root(path, "Movie", "a Movie")
    out = WarpMovie(attributes=dict(root.items()), path=path)
    levels: dict[str, list[WarpGrid]] = {name: [] for name in _PYRAMIDS}
    for element in root:
        if element.tag == "CTF":
            out.ctf = {p.get("Name", ""): p.get("Value", "") for p in element.findall("Param")}
        elif element.tag in levels:
            levels[element.tag].append(read_grid(path, element))
        elif element.tag.startswith("Grid"):
            out.grids[element.tag] = read_grid(path, element)
        else:
            out.other.append(ET.tostring(element, "unicode").strip())
    if len(levels[_PYRAMIDS[0]]) != len(levels[_PYRAMIDS[1]]):
        raise FormatError(path, "it has not as many PyramidShiftX as PyramidShiftY")
    out.pyramids = list(zip(*levels.values(), strict=True))
    return out


def write_warp_movie(path: str | Path, movie: WarpMovie, *, sync: bool = True) -> None:
    """Write an XML that WarpTools and M read, atomically."""
    root = ET.Element("Movie", {**_DEFAULTS, **movie.attributes})
    ctf = ET.SubElement(root, "CTF")
    for name, value in movie.ctf.items():
        ET.SubElement(ctf, "Param", Name=name, Value=value)
    for name, grid in movie.grids.items():
        write_grid(root, name, grid)
    for level in movie.pyramids:
        for name, grid in zip(_PYRAMIDS, level, strict=True):
            write_grid(root, name, grid)
    ET.indent(root, "\t")
    for text in movie.other:
        element = ET.fromstring(text)  # not indented: white space may mean something in it
        element.tail = "\n"
        root.append(element)
    data = b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "utf-8", xml_declaration=False)
    atomic_write_bytes(path, data, sync=sync)

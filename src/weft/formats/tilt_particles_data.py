"""What is known of particles that are given as images of their tilt series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.formats.star import Table

__all__ = ["TiltParticles"]


@dataclass(frozen=True)
class TiltParticles:
    """Particles as tilt images, with all that is known of each image.

    There are p particles and m images; the images of a particle follow each other. Images that the file says
    are not visible are not in it.

    Attributes
    ----------
    path : Path
        The STAR file that was read (the particles' one of an optimisation set).
    flavour : str
        "warp1", "cryosrpnt", "nextpyp", "relion3", "cistem", "warptools", "relion4" or "relion5".
    particle : list of str
        (p) names, unique, in the file's order of first appearance.
    tomogram : list of str
        (p) "" where unknown; without ``.tomostar``.
    place : (p, 3) float64
        Å in the tomogram, counted as `place_origin` says; NaN where unknown.
    start : (p + 1) int64
        Images of particle i are start[i]:start[i+1] of what follows.
    files : list of Path
        Distinct stacks; all exist.
    file, section : (m) int64
        Index into `files`, and the 0-based section in that file.
    rotation : (m, 3, 3) float64
        From map coordinates to image coordinates; the third row is along the beam.
    shift : (m, 2) float64
        x, y, Å: where the particle's centre lies relative to the centre of pixel n//2.
    defocus_u, defocus_v, angle, phase_shift : (m) float64
        Å, Å, degrees, degrees (of a phase plate).
    has_ctf : bool
        False: there are no CTF columns, and the five arrays of numbers about it are 0.
    dose : (m) float64
        e/Å² that the specimen had received, as the flavour counts it (before the image in optimisation sets,
        with the image in Warp's and cisTEM's); 0 where unknown.
    cos_tilt : (m) float64
        The tilt's cosine: rlnCtfScalefactor, which is that in all these flavours, else by the tilt's matrix;
        1 where unknown.
    voltage, cs, amplitude : (m) float64
        kV, mm.
    pixel_size : float
        Å, of the images.
    box : int
        Pixels.
    premultiplied : bool
        Images were multiplied by their CTF already.
    half : (p) int64
        rlnRandomSubset − 1, or −1.
    columns : mapping of str to (p) float64
        Every column of numbers by label, of each particle's first image.
    blocks : mapping of str to Table
        The STAR file's tables as they were.
    row : (m) int64
        Row of the particles' table that each image came from.
    place_origin : str
        "corner": `place` counts from the centre of the tomogram's first voxel; "centre": from its centre.
    tomograms : Path or None
        The STAR file of tomograms that belongs to an optimisation set.
    project : Path or None
        The folder from which an optimisation set counts names of files.
    """

    path: Path
    flavour: str
    particle: list[str]
    tomogram: list[str]
    place: NDArray[np.float64]
    start: NDArray[np.int64]
    files: list[Path]
    file: NDArray[np.int64]
    section: NDArray[np.int64]
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    angle: NDArray[np.float64]
    phase_shift: NDArray[np.float64]
    has_ctf: bool
    dose: NDArray[np.float64]
    cos_tilt: NDArray[np.float64]
    voltage: NDArray[np.float64]
    cs: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    pixel_size: float
    box: int
    premultiplied: bool
    half: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    blocks: Mapping[str, Table]
    row: NDArray[np.int64]
    place_origin: str = "corner"
    tomograms: Path | None = None
    project: Path | None = None

    def __len__(self) -> int:
        return len(self.particle)

    @property
    def images(self) -> int:
        """How many there are in all."""
        return len(self.section)

    @property
    def count(self) -> NDArray[np.int64]:
        """(p): images of each particle."""
        return np.asarray(np.diff(self.start))

    def indices(self, which: ArrayLike | slice) -> NDArray[np.int64]:
        """Particles by indices, a mask or a slice, as indices from 0.

        Raises
        ------
        IndexError
            A mask of another length, or an index that no particle has.
        """
        return np.arange(len(self))[which if isinstance(which, slice) else _index(which)]

    def select(self, which: ArrayLike | slice) -> TiltParticles:
        """Some of the particles, by indices or a mask, in the order given."""
        chosen = self.indices(which)
        count = self.count[chosen]
        start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        # the images of each particle, without a loop: where it starts, plus 0, 1, 2 ...
        at = np.repeat(self.start[chosen] - start[:-1], count) + np.arange(start[-1])
        images: dict[str, Any] = {name: getattr(self, name)[at] for name in _OF_IMAGES}
        return replace(
            self,
            particle=[self.particle[i] for i in chosen],
            tomogram=[self.tomogram[i] for i in chosen],
            place=self.place[chosen],
            start=start,
            half=self.half[chosen],
            columns={label: column[chosen] for label, column in self.columns.items()},
            **images,
        )


_OF_IMAGES = (
    *("file", "section", "rotation", "shift", "defocus_u", "defocus_v", "angle", "phase_shift"),
    *("dose", "cos_tilt", "voltage", "cs", "amplitude", "row"),
)


def _index(which: ArrayLike) -> NDArray[Any]:
    array = np.asarray(which)
    # an empty list would be an array of floats, which index nothing
    return array if array.size else array.astype(np.bool_ if array.dtype == np.bool_ else np.int64)

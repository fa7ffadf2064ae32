"""A STAR file in which another program lists particles of micrographs: where they are, and whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, RequestError
from weft.formats.star import Table, read_star
from weft.session.items import Item
from weft.session.micrograph_names import MicrographNames

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["GROUP", "NAME", "ORIGINS", "ORIGIN_PIXELS", "ForeignParticleList", "X", "Y"]

X, Y, NAME = "rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"
GROUP = "rlnOpticsGroup"
ORIGINS, ORIGIN_PIXELS = ("rlnOriginXAngst", "rlnOriginYAngst"), ("rlnOriginX", "rlnOriginY")
#: Pixel sizes that differ by less are two calibrations of the same pixel.
_CALIBRATION = 0.05
_NAMED = 6


class ForeignParticleList:
    """One STAR file of particles in micrographs.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    blocks : dict of str to Table
        All that the file has.
    optics : Table or None
    block : str
        Name of the particles' block.
    table : Table
        The particles.

    Raises
    ------
    FormatError, CorruptError, TruncatedError
        It is no list of particles in micrographs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = read_star(path)
        self.optics = self.blocks.get("optics")
        order = sorted(self.blocks, key=lambda name: name != "particles")
        named = [n for n in order if n != "optics" and X in self.blocks[n] and Y in self.blocks[n]]
        if not named:
            raise FormatError(path, f"it has no table with the columns _{X} and _{Y}")
        self.block = named[0]
        self.table = self.blocks[self.block]
        if NAME not in self.table:
            raise FormatError(path, f"it has no column _{NAME} that says where particles are")

    def __len__(self) -> int:
        return len(self.table)

    def numbers(self, label: str, table: Table | None = None) -> NDArray[np.float64]:
        """A column; what is not finite stays, and what is no number at all is an error."""
        column = (self.table if table is None else table)[label]
        out = np.empty(len(column))
        for row, value in enumerate(column):
            try:
                out[row] = float(value)
            except ValueError:
                raise CorruptError(
                    self.path, f"row {row + 1} of the column _{label} is {value!r}, which is no number"
                ) from None
        return out

    def coordinates(self) -> NDArray[np.float64]:
        """(n, 2): x, y in the file's own pixels."""
        return np.stack([self.numbers(X), self.numbers(Y)], axis=-1)

    @cached_property
    def groups(self) -> tuple[list[str], NDArray[np.int64]]:
        """Numbers of the optics groups, and of each particle which of them."""
        if self.optics is None or not len(self.optics):
            return ["1"], np.zeros(len(self), np.int64)
        numbers = (
            self.optics.strings(GROUP)
            if GROUP in self.optics
            else [str(i + 1) for i in range(len(self.optics))]
        )
        if GROUP not in self.table:
            if len(numbers) > 1:
                raise FormatError(
                    self.path, f"it has several optics groups but no column _{GROUP} of particles"
                )
            return numbers, np.zeros(len(self), np.int64)
        at = {number: i for i, number in enumerate(numbers)}
        given = self.table.strings(GROUP)
        for row, number in enumerate(given):
            if number not in at:
                raise CorruptError(
                    self.path,
                    f"row {row + 1} names the optics group {number}, which the file does not describe",
                )
        return numbers, np.array([at[number] for number in given], np.int64)

    def of_group(self, label: str) -> NDArray[np.float64] | None:
        """(n,): a column, or what the table of optics says of each particle's group; positive."""
        if label in self.table:
            values = self.numbers(label)
        elif self.optics is not None and label in self.optics:
            values = self.numbers(label, self.optics)[self.groups[1]]
        else:
            return None
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise CorruptError(
                self.path, f"_{label} is {values[bad[0]]:g} for row {bad[0] + 1}, which is no size"
            )
        return values

    def image_pixel(self) -> NDArray[np.float64] | None:
        """(n,) Å: of the images of particles."""
        if (found := self.of_group("rlnImagePixelSize")) is not None:
            return found
        detector, magnification = self.of_group("rlnDetectorPixelSize"), self.of_group("rlnMagnification")
        return None if detector is None or magnification is None else 1e4 * detector / magnification

    def origins(self) -> NDArray[np.float64]:
        """(n, 2) Å: what is to be subtracted from coordinates; zeros where the file has none."""
        for labels in (ORIGINS, ORIGIN_PIXELS):
            if not all(label in self.table for label in labels):
                continue
            values = np.stack([self.numbers(label) for label in labels], axis=-1)
            if labels == ORIGINS or not np.any(values):
                return values
            pixel = self.image_pixel()
            if pixel is None:
                raise FormatError(self.path, f"it says nowhere how large the pixels of _{labels[0]} are")
            return values * pixel[:, None]
        return np.zeros((len(self), 2))

    def items(self, session: Session) -> list[str]:
        """Of each particle the item; empty where the session has none.

        Raises
        ------
        RequestError
            A name that may mean several items, or none of all.
        """
        names = MicrographNames(item for item in session.items.values() if item.kind == "movie")
        given = self.table.strings(NAME)
        found: dict[str, str] = {}
        for name in dict.fromkeys(given):
            items = names.find(name)
            if len(items) > 1:
                raise RequestError(
                    f"{self.path}: {name} may be any of {', '.join(items[:_NAMED])}; write their full names."
                )
            found[name] = items[0] if items else ""
        if given and not any(found.values()):
            shown = ", ".join(list(found)[:3])
            raise RequestError(
                f"{self.path}: its micrographs ({shown} ...) are none of those of {session.root}."
            )
        return [found[name] for name in given]

    @cached_property
    def micrograph_pixel(self) -> NDArray[np.float64] | None:
        """(n,) Å: of the micrographs whose pixels coordinates count; None where the file does not say it."""
        for label in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"):
            if (found := self.of_group(label)) is not None:
                return found
        return None

    def scale(self, averages: NDArray[np.float64], given: float | None) -> NDArray[np.float64]:
        """(n,): pixels of the averages (n, Å) for each pixel of the file."""
        if given is not None:
            return given / averages
        if self.micrograph_pixel is None:
            return np.ones(len(averages))
        ratio = self.micrograph_pixel / averages
        return np.where(np.abs(ratio - 1.0) < _CALIBRATION, 1.0, ratio)

    def remarks(self, given: float | None) -> list[str]:
        """What people should know about coordinates."""
        if given is not None or self.micrograph_pixel is not None:
            return []
        return ["coordinates are taken to be in pixels of the averages; --coordinate-pixel says otherwise"]

    def pixel_sizes(self, items: Sequence[str], known: Mapping[str, Item]) -> NDArray[np.float64]:
        """(n,) Å: of the averages; 1 where there is none."""
        of = {name: float(known[name].metrics.get("pixel_size", 1.0)) for name in set(items) if name}
        return np.array([of.get(name, 1.0) for name in items])

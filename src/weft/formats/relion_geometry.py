"""RELION's tables of micrographs after the micrographs have been cropped and made smaller.

What depends on the pixels of a micrograph is brought into accord: its name, its pixel size (an optics group
for every pixel size, or the detector's pixel in tables older than RELION 3.1) and coordinates. What
describes the pixels of the old micrograph and cannot be converted is left out. All else is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.errors import FormatError
from weft.formats.star import Table

__all__ = ["NAME", "OF_OLD_FIELD", "OF_OLD_PIXELS", "Moved", "micrographs_of", "move_micrographs"]

NAME = "rlnMicrographName"
_GROUP = "rlnOpticsGroup"
_PIXEL = "rlnMicrographPixelSize"
_DETECTOR, _MAGNIFICATION = "rlnDetectorPixelSize", "rlnMagnification"  # µm and times; before RELION 3.1
#: Halves of the exposure in the old geometry, and the motion that leads to it.
OF_OLD_PIXELS = ("rlnMicrographNameEven", "rlnMicrographNameOdd", "rlnMicrographNameNoDW")
OF_OLD_FIELD = ("rlnMicrographMetadata",)


@dataclass(frozen=True)
class Moved:
    """What has become of a micrograph.

    Attributes
    ----------
    name : str
        Of the new file, as it is to stand in the table.
    pixel_size : float
        Å, of the new image.
    crop : int
        Old pixels that were removed from every border.
    factor : (float, float)
        Old pixels in a new one, y and x.
    """

    name: str
    pixel_size: float
    crop: int
    factor: tuple[float, float]


def micrographs_of(blocks: Mapping[str, Table], path: str = "STAR file") -> dict[str, float | None]:
    """The micrographs that a table names, in its order, and their pixel sizes (Å) where it says them.

    Raises
    ------
    FormatError
        When no block has a column of micrographs.
    """
    out: dict[str, float | None] = {}
    for table in _tables(blocks, path):
        for name, size in zip(table.strings(NAME), _pixel_sizes(table, blocks), strict=True):
            out.setdefault(name, size)
    return out


def _tables(blocks: Mapping[str, Table], path: str = "STAR file") -> list[Table]:
    found = [table for table in blocks.values() if NAME in table]
    if not found:
        raise FormatError(path, f"no block has the column _{NAME}; give a table of micrographs")
    return found


def _pixel_sizes(table: Table, blocks: Mapping[str, Table]) -> Sequence[float | None]:
    optics = blocks.get("optics")
    if _PIXEL in table:
        return [float(value) for value in table.floats(_PIXEL)]
    if optics is not None and _GROUP in table and _GROUP in optics:
        label = next((name for name in (_PIXEL, "rlnMicrographOriginalPixelSize") if name in optics), None)
        if label is not None:
            sizes = dict(zip(optics.ints(_GROUP).tolist(), optics.floats(label).tolist(), strict=True))
            return [sizes.get(group) for group in table.ints(_GROUP).tolist()]
    if _DETECTOR in table and _MAGNIFICATION in table:
        return [float(v) for v in 1e4 * table.floats(_DETECTOR) / table.floats(_MAGNIFICATION)]
    return [None] * len(table)


def move_micrographs(blocks: Mapping[str, Table], moved: Mapping[str, Moved]) -> dict[str, Table]:
    """The same blocks for the new micrographs.

    Parameters
    ----------
    blocks : dict
        As `read_star` gives them.
    moved : dict
        By the name in the table. Rows of micrographs that are not in it are left out.
    """
    tables = _tables(blocks)
    out = dict(blocks)
    optics = blocks.get("optics")
    grouped = optics is not None and _GROUP in optics
    groups: dict[tuple[int, float], int] = {}
    for block, table in blocks.items():
        if table not in tables:
            continue
        rows = [i for i, name in enumerate(table.strings(NAME)) if name in moved]
        now = [moved[name] for name in table.strings(NAME) if name in moved]
        columns: dict[str, Any] = {
            label: [column[i] for i in rows] for label, column in table.columns.items()
        }
        columns[NAME] = [m.name for m in now]
        if any(m.factor != (1.0, 1.0) or m.crop for m in now):
            dropped = OF_OLD_PIXELS + (OF_OLD_FIELD if any(m.crop for m in now) else ())
            columns = {label: column for label, column in columns.items() if label not in dropped}
        kept = Table(columns, table.loop)
        for axis, label in ((1, "rlnCoordinateX"), (0, "rlnCoordinateY")):
            if label in kept:
                pairs = zip(kept.floats(label), now, strict=True)
                columns[label] = [(value - m.crop) / m.factor[axis] for value, m in pairs]
        if _PIXEL in kept:
            columns[_PIXEL] = [m.pixel_size for m in now]
        if _DETECTOR in kept and _MAGNIFICATION in kept:
            magnification = kept.floats(_MAGNIFICATION)
            columns[_DETECTOR] = [m.pixel_size * mag / 1e4 for m, mag in zip(now, magnification, strict=True)]
        if grouped and _GROUP in kept:
            keys = [(int(g), m.pixel_size) for g, m in zip(kept.ints(_GROUP), now, strict=True)]
            columns[_GROUP] = [groups.setdefault(key, len(groups) + 1) for key in keys]
        out[block] = Table(columns, table.loop)
    if grouped and optics is not None and groups:
        out["optics"] = _new_optics(optics, groups)
    return out


def _new_optics(optics: Table, groups: Mapping[tuple[int, float], int]) -> Table:
    """One row for every old group and new pixel size."""
    place = {group: i for i, group in enumerate(optics.ints(_GROUP).tolist())}
    rows = [place[group] for group, _ in groups]
    columns: dict[str, Any] = {label: [column[i] for i in rows] for label, column in optics.columns.items()}
    columns[_GROUP] = list(groups.values())
    columns[_PIXEL] = [size for _, size in groups]
    name = "rlnOpticsGroupName"
    if name in columns:
        texts = np.array([str(value) for value in columns[name]])
        # one group that has become two must not have one name
        columns[name] = [
            text if (texts == text).sum() == 1 else f"{text}_{number}"
            for text, number in zip(texts.tolist(), columns[_GROUP], strict=True)
        ]
    return Table(columns, optics.loop)

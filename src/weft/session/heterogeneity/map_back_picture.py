"""A tomogram from above and from its side, with its particles as discs in the colours of their classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.session.heterogeneity.class_colours import class_colour
from weft.session.heterogeneity.class_tables import ClassPlaces

__all__ = ["draw_overview"]

Array = NDArray[np.float64]

#: The slab about the particles' middle that is averaged, in their diameters.
_SLAB = 1.0
#: Inches of the longest side, and dots an inch.
_LONGEST, _DOTS = 8.0, 150
_NM = 0.1  # of an Å


def draw_overview(path: Path, name: str, places: ClassPlaces, tomogram: Path | None) -> None:
    """Write the picture.

    Parameters
    ----------
    path : Path
        A ``.png``.
    name : str
        Of the tomogram.
    places : ClassPlaces
        Its particles.
    tomogram : Path or None
        None for a blank one.
    """
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    radius = 0.5 * places.diameter
    low, high = _bounds(name, places, tomogram, radius)
    extent = (high - low) * _NM
    scale = _LONGEST / max(extent[0], extent[1] + extent[2])
    size = (extent[0] * scale + 1.2, (extent[1] + extent[2]) * scale + 1.4)
    figure = Figure(figsize=(max(size[0], 4.0), max(size[1], 3.0)), layout="constrained")
    top, side = figure.subplots(2, 1, sharex=True, height_ratios=[extent[1], max(extent[2], 0.1 * extent[1])])
    sections = None if tomogram is None else _sections(tomogram, places, radius)
    for axes, across, up, which in ((top, 0, 1, 0), (side, 0, 2, 1)):
        axes.set_facecolor("#eef0f2")
        frame = [low[across] * _NM, high[across] * _NM, low[up] * _NM, high[up] * _NM]
        if sections is not None:
            image = sections[which]
            black, white = np.percentile(image, (0.5, 99.5))
            axes.imshow(
                image, cmap="gray", vmin=black, vmax=white, extent=frame, origin="lower", aspect="auto"
            )
        for number in np.unique(places.label):
            mine = places.place[places.label == number][:, [across, up]] * _NM
            width = np.full(len(mine), 2.0 * radius * _NM)
            axes.add_collection(
                EllipseCollection(
                    width,
                    width,
                    np.zeros(len(mine)),
                    units="xy",
                    offsets=mine,
                    offset_transform=axes.transData,
                    facecolors=f"{class_colour(int(number))}4d",
                    edgecolors=class_colour(int(number)),
                    linewidths=1.2,
                )
            )
        axes.set_xlim(frame[:2])
        axes.set_ylim(frame[2:])
        axes.set_aspect("equal")
        axes.set_ylabel("yz"[which] + " (nm)")
    side.set_xlabel("x (nm)")
    marks = [
        Line2D(
            [], [], marker="o", linestyle="", color=class_colour(int(number)), label=f"cluster {number}: {n}"
        )
        for number, n in zip(*np.unique(places.label, return_counts=True), strict=True)
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=min(len(marks), 4), frameon=False)
    top.set_title(name, loc="left")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DOTS)
    atomic_write_bytes(path, data.getvalue())


def _bounds(name: str, places: ClassPlaces, tomogram: Path | None, radius: float) -> tuple[Array, Array]:
    """Of the tomogram, x, y, z, Å, or where nothing is known of it of its particles."""
    if tomogram is not None and not places.centred.any():
        info = mrc.read_header(tomogram)
        pixel = info.pixel_size or 1.0
        # voxels reach half a voxel further than their centres
        return np.full(3, -0.5 * pixel), (np.array(info.shape[::-1]) - 0.5) * pixel
    size = places.size.get(name)
    if size is not None:
        half = 0.5 * size if places.centred.any() else np.zeros(3)
        return -half, size - half
    return places.place.min(axis=0) - radius, places.place.max(axis=0) + radius


def _sections(tomogram: Path, places: ClassPlaces, radius: float) -> list[Array]:
    """Means of slabs about the middle of the particles: across z, and across y."""
    info = mrc.read_header(tomogram)
    pixel = info.pixel_size or 1.0
    nz, ny, nx = info.shape
    middle = np.median(places.place, axis=0) / pixel
    half = max(0.5, _SLAB * radius / pixel)

    def slab(at: float, count: int) -> tuple[int, int]:
        first = int(np.clip(round(at - half), 0, count - 1))
        return first, max(first + 1, min(count, round(at + half)))

    z, y = slab(float(middle[2]), nz), slab(float(middle[1]), ny)
    above = np.zeros((ny, nx))
    side = np.zeros((nz, nx))
    stack = mrc.MrcStack(tomogram)
    for i in range(nz):
        section = np.asarray(stack.read(i), np.float64)
        side[i] = section[y[0] : y[1]].mean(axis=0)
        if z[0] <= i < z[1]:
            above += section / (z[1] - z[0])
    return [above, side]

"""Warp's and WarpTools' XML of a tilt series: its geometry, its CTF and what M has refined.

What the numbers mean in space is `weft.formats.warp_geometry`'s part. Warp's defocus is in µm.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_bytes
from weft.physics.splines import evaluate_grid

__all__ = [
    "WarpGrid",
    "WarpTiltSeries",
    "read_grid",
    "read_root",
    "read_warp_xml",
    "tilt_steps",
    "write_grid",
    "write_warp_xml",
]

#: Names of grids whose text WarpTools expects in every file, with the value of an absent one.
_GRIDS = {
    "GridCTF": 0.0, "GridCTFDefocusDelta": 0.0, "GridCTFDefocusAngle": 0.0, "GridCTFPhase": 0.0,
    "GridMovementX": 0.0, "GridMovementY": 0.0,
    "GridVolumeWarpX": 0.0, "GridVolumeWarpY": 0.0, "GridVolumeWarpZ": 0.0,
    "GridAngleX": 0.0, "GridAngleY": 0.0, "GridAngleZ": 0.0,
    "GridDoseBfacs": 0.0, "GridDoseBfacsDelta": 0.0, "GridDoseBfacsAngle": 0.0, "GridDoseWeights": 1.0,
    "GridLocationBfacs": 0.0, "GridLocationWeights": 1.0,
}  # fmt: skip
_LISTS = ("Angles", "Dose", "UseTilt", "AxisAngle", "AxisOffsetX", "AxisOffsetY", "MoviePath", "FOVFraction")
_TYPED = ("AreAnglesInverted", "LevelAngleX", "LevelAngleY", "VolumeDimensionsAngstrom",
          "ImageDimensionsAngstrom")  # fmt: skip


@dataclass(frozen=True)
class WarpGrid:
    """A spline grid over (x, y, z) or (x, y, z, w).

    Attributes
    ----------
    values : ([w,] z, y, x) array
        Control values.
    margins : tuple of float
        Fraction of each axis (x first) before its first control point.
    """

    values: NDArray[np.float64]
    margins: tuple[float, ...] = (0.0, 0.0, 0.0)

    def at(self, *places: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values at fractions of the axes, x first; arrays (m,) → (m,)."""
        if len(places) != self.values.ndim:
            raise ValueError(f"a grid of {self.values.ndim} dimensions was asked at {len(places)}")
        inner = [p * (1.0 - 2.0 * m) + m for p, m in zip(places, self._margins())]
        return evaluate_grid(self.values, *inner[::-1])

    def _margins(self) -> tuple[float, ...]:
        sizes = self.values.shape[::-1]
        margins = self.margins + (0.0,) * (len(sizes) - len(self.margins))
        return tuple(m if n > 1 else 0.0 for m, n in zip(margins, sizes))


@dataclass
class WarpTiltSeries:
    """What Warp knows about one tilt series; arrays have one value a tilt.

    Attributes
    ----------
    angles, axis : (tilts,) arrays
        Degrees.
    shift : (tilts, 2) array
        ``AxisOffsetX/Y``, Å.
    dose : (tilts,) array
        e/Å² before the exposure.
    use_tilt : (tilts,) bool array
    movies : list of str
        Relative to `data_directory` or the XML's folder.
    fov_fraction : (tilts,) array
        The part of the image that is inside the field of view.
    level_x, level_y : float
        Degrees.
    angles_inverted : bool
        ``AreAnglesInverted``: the hand of the defocus is −1.
    volume_size, image_size : tuples of float, optional
        Å; written by newer versions only.
    ctf : dict of str to str
        Parameters as text: Voltage (kV), Cs (mm), Amplitude, Defocus (µm), DefocusDelta (µm), DefocusAngle
        (°), PhaseShift (π), PixelSize (Å) and others.
    grids : dict of str to WarpGrid
        By element: GridCTF (defocus, µm), GridMovementX, ...
    attributes : dict of str to str
        Of the root, the others: PlaneNormal, Bfactor, Weight, UnselectManual, ...
    other : list of str
        Further elements as XML: power spectra, processing options.
    """

    angles: NDArray[np.float64]
    axis: NDArray[np.float64]
    shift: NDArray[np.float64]
    dose: NDArray[np.float64]
    use_tilt: NDArray[np.bool_]
    movies: list[str]
    fov_fraction: NDArray[np.float64]
    level_x: float = 0.0
    level_y: float = 0.0
    angles_inverted: bool = False
    volume_size: tuple[float, ...] | None = None
    image_size: tuple[float, ...] | None = None
    ctf: dict[str, str] = field(default_factory=dict)
    grids: dict[str, WarpGrid] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    path: Path = Path("TiltSeries")

    def __len__(self) -> int:
        return len(self.angles)

    @property
    def hand(self) -> float:
        """+1, or −1 where Warp's angles are inverted."""
        return -1.0 if self.angles_inverted else 1.0

    def per_tilt(self, grid: str, default: float = 0.0) -> NDArray[np.float64]:
        """(tilts,): a grid at the centre of the field of view of each tilt."""
        n = len(self)
        if grid not in self.grids:
            return np.full(n, default)
        middle = np.full(n, 0.5)
        return self.grids[grid].at(middle, middle, tilt_steps(n))

    @property
    def defocus(self) -> NDArray[np.float64]:
        """(tilts,): Å, of the volume's centre."""
        return 1e4 * self.per_tilt("GridCTF", float(self.ctf.get("Defocus", 0.0)))

    @property
    def astigmatism(self) -> NDArray[np.float64]:
        """(tilts, 2): half the difference of defocus_u and defocus_v (Å), and the angle of u (°)."""
        delta = self.per_tilt("GridCTFDefocusDelta", float(self.ctf.get("DefocusDelta", 0.0)))
        angle = self.per_tilt("GridCTFDefocusAngle", float(self.ctf.get("DefocusAngle", 0.0)))
        return np.stack([0.5e4 * delta, angle], axis=1)

    @property
    def phase_shift(self) -> NDArray[np.float64]:
        """(tilts,): degrees."""
        return 180.0 * self.per_tilt("GridCTFPhase", float(self.ctf.get("PhaseShift", 0.0)))


def tilt_steps(n: int) -> NDArray[np.float64]:
    """(n,): where each tilt is on a grid's axis of tilts, 0 to 1."""
    return np.arange(n) / max(1, n - 1)


def read_warp_xml(path: str | Path) -> WarpTiltSeries:
    """Read the XML of a tilt series, of Warp 1 or WarpTools.

    Raises
    ------
    FormatError
        Not XML, or of something else than a tilt series.
    CorruptError
        Lists of unequal length, values that are no numbers, incomplete grids.
    TruncatedError
        It is empty or ends before its last element.
    """
    path = Path(path)
    data = path.read_bytes()
    if not data.strip(b"\0 \t\r\n"):
        raise TruncatedError(path, "the file is empty")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        line = error.position[0]
        if line >= data.count(b"\n") and b"<" in data[:200] and b"</TiltSeries" not in data[-200:]:
            raise TruncatedError(path, f"line {line}: it ends before its last element") from error
        raise FormatError(path, f"line {line}: not XML: {error}") from error
    if root.tag != "TiltSeries":
        raise FormatError(path, f"it describes a {root.tag}, not a TiltSeries")
    return _Reader(path, root).read()


class _Reader:
    def __init__(self, path: Path, root: ET.Element) -> None:
        self.path, self.root = path, root

    def read(self) -> WarpTiltSeries:
        angles = self.numbers("Angles")
        if angles is None:
            raise FormatError(self.path, "it has no <Angles>")
        n = len(angles)
        use = self.lines("UseTilt")
        if use is not None and not {u.lower() for u in use} <= {"true", "false"}:
            raise CorruptError(self.path, "<UseTilt> holds something else than True and False")
        lists = {name: self.numbers(name) for name in ("AxisAngle", "AxisOffsetX", "AxisOffsetY", "Dose")}
        fov, movies = self.numbers("FOVFraction"), self.lines("MoviePath")
        for name, values in {**lists, "UseTilt": use, "FOVFraction": fov, "MoviePath": movies}.items():
            if values is not None and len(values) != n:
                raise CorruptError(self.path, f"<{name}> has {len(values)} values for {n} tilts")

        def filled(name: str) -> NDArray[np.float64]:
            values = lists[name]
            return np.zeros(n) if values is None else values

        known = {*_LISTS, "CTF", *_GRIDS}
        return WarpTiltSeries(
            angles=angles,
            axis=filled("AxisAngle"),
            shift=np.stack([filled("AxisOffsetX"), filled("AxisOffsetY")], axis=1),
            dose=filled("Dose"),
            use_tilt=np.ones(n, bool) if use is None else np.array([u.lower() == "true" for u in use]),
            movies=[""] * n if movies is None else movies,
            fov_fraction=np.ones(n) if fov is None else fov,
            level_x=self.attribute("LevelAngleX", 1)[0],
            level_y=self.attribute("LevelAngleY", 1)[0],
            angles_inverted=self.root.get("AreAnglesInverted", "False").lower() == "true",
            volume_size=self.attribute("VolumeDimensionsAngstrom", 3, None),
            image_size=self.attribute("ImageDimensionsAngstrom", 2, None),
            ctf={p.get("Name", ""): p.get("Value", "") for p in self.root.findall("CTF/Param")},
            grids={e.tag: read_grid(self.path, e) for e in self.root if e.tag in _GRIDS},
            attributes={k: v for k, v in self.root.items() if k not in _TYPED},
            other=[ET.tostring(e, "unicode").strip() for e in self.root if e.tag not in known],
            path=self.path,
        )

    def lines(self, name: str) -> list[str] | None:
        element = self.root.find(name)
        if element is None or not (element.text or "").strip():
            return None
        return [line.strip() for line in (element.text or "").strip().splitlines()]

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        lines = self.lines(name)
        return None if lines is None else np.array([self.number(v, f"<{name}>") for v in lines])

    def number(self, text: str, where: str) -> float:
        return _number(self.path, text, where)

    def attribute(self, name: str, count: int, default: tuple[float, ...] | None = (0.0,)) -> Any:
        text = self.root.get(name)
        if not text:
            return default
        values = tuple(self.number(v.strip(), name) for v in text.strip("()").split(","))
        if len(values) != count:
            raise CorruptError(self.path, f"{name} has {len(values)} numbers, not {count}")
        return values


def _number(path: Path, text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorruptError(path, f"{where} holds {text!r}, which is no number")
    return value


def read_root(path: Path, tag: str, called: str) -> ET.Element:
    """The root element of one of Warp's smaller files.

    Raises
    ------
    TruncatedError
        It is empty.
    FormatError
        Not XML, or of something else.
    """
    data = path.read_bytes()
    if not data.strip(b"\0 \t\r\n"):
        raise TruncatedError(path, "the file is empty")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError) as error:
        raise FormatError(path, f"not XML: {error}") from None
    if root.tag != tag:
        raise FormatError(path, f"it describes a {root.tag}, not {called}")
    return root


def read_grid(path: Path, element: ET.Element) -> WarpGrid:
    """A spline grid from its element; a CorruptError names what is missing in it."""
    sides = ("Width", "Height", "Depth", "Duration")[: 4 if element.tag.startswith("GridVolumeWarp") else 3]
    try:
        shape = tuple(int(element.get(side, "1")) for side in sides)[::-1]
        values = np.full(shape, np.nan)
        for node in element.findall("Node"):
            place = tuple(int(node.get(axis, "0")) for axis in "XYZW"[: len(sides)])[::-1]
            values[place] = float(node.get("Value", ""))
    except (ValueError, IndexError) as error:
        raise CorruptError(path, f"<{element.tag}> cannot be read: {error}") from error
    if not np.isfinite(values).all():
        raise CorruptError(
            path, f"<{element.tag}> lacks {np.isnan(values).sum()} of its {values.size} values"
        )
    margins = tuple(
        _number(path, element.get(f"Margin{axis}", "0"), element.tag) for axis in "XYZW"[: len(sides)]
    )
    return WarpGrid(values, margins)


def write_warp_xml(path: str | Path, series: WarpTiltSeries, *, sync: bool = True) -> None:
    """Write an XML that WarpTools and M read, atomically."""
    root = ET.Element("TiltSeries", dict(series.attributes))
    root.set("AreAnglesInverted", str(bool(series.angles_inverted)))
    root.set("LevelAngleX", repr(float(series.level_x)))
    root.set("LevelAngleY", repr(float(series.level_y)))
    defaults = {"PlaneNormal": "0, 0, 0", "Bfactor": "0", "Weight": "1",
                "MagnificationCorrection": "1, 0, 0, 1", "UnselectFilter": "False",
                "UnselectManual": "", "CTFResolutionEstimate": "0"}  # fmt: skip
    for name, value in defaults.items():
        root.set(name, series.attributes.get(name, value))
    for name, size in (
        ("VolumeDimensionsAngstrom", series.volume_size),
        ("ImageDimensionsAngstrom", series.image_size),
    ):
        if size is not None:
            root.set(name, ", ".join(repr(float(v)) for v in size))
    columns: tuple[Any, ...] = (
        series.angles, series.dose, [bool(u) for u in series.use_tilt], series.axis,
        series.shift[:, 0], series.shift[:, 1], series.movies, series.fov_fraction,
    )  # fmt: skip
    for name, column in zip(_LISTS, columns, strict=True):
        if len(column) != len(series):
            raise ValueError(f"{name} has {len(column)} values for {len(series)} tilts")
        texts = [str(v) if isinstance(v, (str, bool)) else repr(float(v)) for v in column]
        ET.SubElement(root, name).text = "\n".join(texts)
    for text in series.other:
        root.append(ET.fromstring(text))
    ctf = ET.SubElement(root, "CTF")
    for name, value in series.ctf.items():
        ET.SubElement(ctf, "Param", Name=name, Value=value)
    for name, default in _GRIDS.items():
        shape = (1,) * (4 if name.startswith("GridVolumeWarp") else 3)
        write_grid(root, name, series.grids.get(name, WarpGrid(np.full(shape, default))))
    ET.indent(root, "\t")
    data = b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "utf-8", xml_declaration=False)
    atomic_write_bytes(path, data, sync=sync)


def write_grid(root: ET.Element, name: str, grid: WarpGrid) -> None:
    """Append a spline grid to an element."""
    sizes = grid.values.shape[::-1]
    element = ET.SubElement(root, name)
    for side, size in zip(("Width", "Height", "Depth", "Duration"), sizes):
        element.set(side, str(size))
    for axis, margin in zip("XYZ", grid.margins):
        element.set(f"Margin{axis}", repr(float(margin)))
    for place in np.ndindex(grid.values.shape):
        node = ET.SubElement(element, "Node")
        for axis, index in zip("XYZW", place[::-1]):
            node.set(axis, str(index))
        node.set("Value", repr(float(grid.values[place])))

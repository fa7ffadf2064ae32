"""IMOD's text files of an alignment: ``.xf``, ``.tlt`` and ``.rawtlt``, ``.com``, ``.edf``; and its geometry.

A transform takes the raw image to the aligned one, in pixels of the raw image about the images' centres:
aligned = A (raw − centre) + d + centre. In the aligned image a point of the specimen lies at
(X cos t + Z sin t, Y) from the centre, t being the tilt angle (checked on IMOD's own tutorial series).

Two things are easily got wrong. *The centre*: IMOD counts from the pixel's edge, so its centre of n pixels is
half a pixel before the centre of pixel n//2, which is ours; WarpTools and RELION overlook this on import.
*The sign of the angles*: with the angles as they are, our specimen is IMOD's mirrored in z. With
``invert_angles`` it is IMOD's own (Z upwards, as in a tomogram turned by ``trimvol -rx``), as WarpTools
imports mdocs unless it is told ``--dont_invert``. Images and their defocus are the same in both cases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_text
from weft.physics.geometry import TiltGeometry

__all__ = [
    "ImodAlignment",
    "ImodCommand",
    "from_geometry",
    "read_alignment",
    "read_com",
    "read_edf",
    "read_tlt",
    "read_xf",
    "to_geometry",
    "write_tlt",
    "write_xf",
]


@dataclass
class ImodAlignment:
    """A solved alignment in IMOD's numbers, one row a view.

    Attributes
    ----------
    transforms : (views, 2, 2) array
        A: raw to aligned image.
    shifts : (views, 2) array
        d: x, y, pixels of the raw image.
    angles : (views,) array
        Tilt angles as in the ``.tlt``, degrees.
    x_axis_tilt : float
        ``XAXISTILT`` of tilt.com, degrees.
    angle_offset : float
        ``OFFSET`` of tilt.com, degrees: added to all angles.
    slice_shift : (float, float)
        ``SHIFT`` of tilt.com: x and z, pixels of the raw image; how far the reconstruction is moved.
    path : Path
        For messages.
    """

    transforms: NDArray[np.float64]
    shifts: NDArray[np.float64]
    angles: NDArray[np.float64]
    x_axis_tilt: float = 0.0
    angle_offset: float = 0.0
    slice_shift: tuple[float, float] = (0.0, 0.0)
    path: Path = Path("IMOD alignment")

    @property
    def axis(self) -> NDArray[np.float64]:
        """(views,): tilt axis, degrees counter-clockwise from the raw image's y axis."""
        a = self.transforms
        return np.asarray(np.degrees(np.arctan2(a[:, 0, 1] - a[:, 1, 0], a[:, 0, 0] + a[:, 1, 1])))


@dataclass
class ImodCommand:
    """The entries of one program in a ``.com`` file.

    Attributes
    ----------
    program : str
        ``tilt``, ``newstack``, ``tiltalign``, ...
    entries : dict of str to str
        By name in capitals; the last of several.
    """

    program: str
    entries: dict[str, str] = field(default_factory=dict)
    path: Path = Path("command file")

    def numbers(self, name: str) -> list[float]:
        """The numbers of an entry; empty where it is missing."""
        text = self.entries.get(name.upper(), "")
        try:
            return [float(v) for v in re.split(r"[\s,]+", text.strip()) if v]
        except ValueError:
            raise CorruptError(self.path, f"{name} = {text!r} is no list of numbers") from None


def _rows(path: Path, columns: range) -> list[list[float]]:
    """Lines of numbers; columns may be separated by commas or white space."""
    text = path.read_bytes().decode("latin-1")
    if not text.strip():
        raise TruncatedError(path, "the file is empty")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(w) for w in words]
        except ValueError:
            raise FormatError(path, f"line {number}: {line.strip()[:40]!r} holds no numbers") from None
        if len(values) not in columns:
            raise CorruptError(path, f"line {number}: {len(values)} numbers, not {columns[0]}")
        if not np.isfinite(values).all():
            raise CorruptError(path, f"line {number}: a number is not finite")
        rows.append(values)
    return rows


def read_xf(path: str | Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read linear transforms (``.xf``, ``.prexf``, ``.prexg``, ``.tltxf``).

    Returns
    -------
    transforms : (views, 2, 2) array
    shifts : (views, 2) array
        Pixels.
    """
    rows = np.array(_rows(Path(path), range(6, 7)))
    return rows[:, :4].reshape(-1, 2, 2), rows[:, 4:]


def write_xf(path: str | Path, transforms: ArrayLike, shifts: ArrayLike, *, sync: bool = True) -> None:
    """Write transforms atomically, with more digits than IMOD itself."""
    a = np.asarray(transforms, np.float64).reshape(-1, 4)
    d = np.asarray(shifts, np.float64).reshape(-1, 2)
    lines = [
        "".join(f"{v:15.9f}" for v in m) + "".join(f"{v:14.5f}" for v in s) for m, s in zip(a, d, strict=True)
    ]
    atomic_write_text(path, "\n".join(lines) + "\n", sync=sync)


def read_tlt(path: str | Path) -> NDArray[np.float64]:
    """Read tilt angles (``.tlt``, ``.rawtlt``), degrees.

    A second column, as some programs write for the dose, is not read.

    Returns
    -------
    (views,) array
    """
    rows = _rows(Path(path), range(1, 3))
    angles = np.array([row[0] for row in rows])
    if np.abs(angles).max() > 180.0:
        raise CorruptError(path, f"an angle of {np.abs(angles).max():g}° is none of a stage")
    return angles


def write_tlt(path: str | Path, angles: ArrayLike, *, sync: bool = True) -> None:
    """Write tilt angles (degrees) atomically, one a line."""
    values = np.asarray(angles, np.float64).ravel()
    atomic_write_text(path, "".join(f"{v:12.5f}\n" for v in values), sync=sync)


def read_com(path: str | Path) -> list[ImodCommand]:
    """Read a command file: the programs that it runs from standard input, with their entries."""
    path = Path(path)
    text = path.read_bytes().decode("latin-1")
    if not text.strip():
        raise TruncatedError(path, "the file is empty")
    commands: list[ImodCommand] = []
    for line in text.splitlines():
        words = line.split(None, 1)
        if not words or words[0][0] == "#":
            continue
        if words[0][0] == "$":
            name = words[0][1:]
            if name and name != "setenv" and not name.startswith("if"):
                commands.append(ImodCommand(name, path=path))
        elif commands:
            commands[-1].entries[words[0].upper()] = words[1].strip() if len(words) > 1 else ""
    if not commands:
        raise FormatError(path, "not a command file of IMOD: no line runs a program with $")
    return commands


def read_edf(path: str | Path) -> dict[str, str]:
    """Read eTomo's project file: Java properties, as text by name."""
    path = Path(path)
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().decode("latin-1").splitlines(), 1):
        if not line.strip() or line.lstrip()[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise FormatError(path, f"line {number}: not a property of eTomo: {line.strip()[:40]!r}")
        found[name.strip()] = re.sub(r"\\(.)", r"\1", value.strip())
    if not found:
        raise TruncatedError(path, "it has no properties")
    return found


def read_alignment(xf: str | Path, tlt: str | Path, tilt_com: str | Path | None = None) -> ImodAlignment:
    """Read an alignment from its files.

    Parameters
    ----------
    xf, tlt : path-like
        Transforms and *solved* angles of the same views.
    tilt_com : path-like, optional
        For the values that turn and move the reconstruction: XAXISTILT, OFFSET, SHIFT.

    Raises
    ------
    CorruptError
        Unequal numbers of views.
    FormatError
        A part of tilt.com that cannot be expressed: X-axis tilts that vary, an axis beside the centre.
    """
    transforms, shifts = read_xf(xf)
    angles = read_tlt(tlt)
    if len(angles) != len(transforms):
        raise CorruptError(tlt, f"{len(angles)} angles, but {len(transforms)} transforms in {xf}")
    out = ImodAlignment(transforms, shifts, angles, path=Path(xf))
    if tilt_com is None:
        return out
    path = Path(tilt_com)
    command = next((c for c in read_com(path) if c.program.lower() == "tilt"), None)
    if command is None:
        raise FormatError(path, "it does not run the program tilt")
    offset, shift = command.numbers("OFFSET"), command.numbers("SHIFT")
    if len(offset) > 1 and offset[1] != 0.0:
        raise FormatError(path, f"OFFSET moves the axis by {offset[1]} pixels, which is not supported")
    varying = path.parent / command.entries.get("XTILTFILE", "")
    if varying.is_file() and np.any(read_tlt(varying)):
        raise FormatError(path, f"its XTILTFILE {varying.name} tilts views about x, which is not supported")
    out.x_axis_tilt = next(iter(command.numbers("XAXISTILT")), 0.0)
    out.angle_offset = offset[0] if offset else 0.0
    out.slice_shift = (shift[0] if shift else 0.0, shift[1] if len(shift) > 1 else 0.0)
    return out


def to_geometry(
    alignment: ImodAlignment,
    *,
    pixel_size: float,
    image_size: Sequence[float],
    volume_size: Sequence[float] = (0.0, 0.0, 0.0),
    defocus: ArrayLike = 0.0,
    hand: float = 1.0,
    invert_angles: bool = False,
    exact_centre: bool = True,
    max_stretch: float = 1e-3,
) -> TiltGeometry:
    """An alignment by IMOD as our geometry.

    Parameters
    ----------
    alignment : ImodAlignment
    pixel_size : float
        Å, of the stack that was aligned.
    image_size : (2,)
        x, y, Å.
    volume_size : (3,)
        Å.
    defocus : (views,) or float
        Å, of the volume's centre.
    hand : float
        +1 or −1, for the angles as they are; `invert_angles` changes its sign too.
    invert_angles : bool
        Change the sign of the angles, which gives IMOD's own specimen; see above.
    exact_centre : bool
        Respect that IMOD's centre is half a pixel before ours; False does as WarpTools and RELION do.
    max_stretch : float
        How far a transform may be from a rotation. What is smaller (magnification, stretch, skew) is left
        out, which moves what is far from the centre: by 1 pixel at 1000 pixels with the default.

    Raises
    ------
    FormatError
        Transforms that stretch or skew by more than `max_stretch`.
    """
    a = alignment.transforms
    scale = np.sqrt(np.abs(np.linalg.det(a)))
    turn = np.radians(alignment.axis)
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)
    worst = np.abs(a - rotation).max(axis=(1, 2))
    if worst.max() > max_stretch:
        raise FormatError(
            alignment.path,
            f"view {worst.argmax() + 1} is stretched, skewed or mirrored by {worst.max():.4f} (scale "
            f"{scale[worst.argmax()]:.4f}), more than the {max_stretch:g} that may be left out",
        )
    # where the aligned image's centre lies in the raw image
    shift = -np.linalg.solve(a, alignment.shifts[..., None])[..., 0] * pixel_size
    if exact_centre:
        shift -= 0.5 * pixel_size
    sign = -1.0 if invert_angles else 1.0
    geometry = TiltGeometry.of(
        sign * alignment.angles,
        axis=alignment.axis,
        shift=shift,
        defocus=defocus,
        volume_size=tuple(volume_size),
        image_size=tuple(image_size),
        level=(sign * alignment.x_axis_tilt, sign * alignment.angle_offset),
        hand=sign * hand,
    )
    x, z = (v * pixel_size for v in alignment.slice_shift)
    moved = geometry.matrices @ torch.tensor([-x, 0.0, -sign * z], dtype=torch.float64)
    return replace(geometry, shift=geometry.shift + moved[:, :2])


def from_geometry(
    geometry: TiltGeometry,
    *,
    pixel_size: float,
    invert_angles: bool = False,
    exact_centre: bool = True,
) -> ImodAlignment:
    """The inverse of `to_geometry`: angle offset and X-axis tilt go into their own numbers."""
    n = len(geometry)
    turn = np.radians(geometry.axis.expand(n).numpy())
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)
    shift = geometry.shift.numpy() / pixel_size + (0.5 if exact_centre else 0.0)
    sign = -1.0 if invert_angles else 1.0
    return ImodAlignment(
        transforms=rotation,
        shifts=-np.einsum("tij,tj->ti", rotation, shift),
        angles=sign * geometry.angles.numpy(),
        x_axis_tilt=sign * float(geometry.level_x),
        angle_offset=sign * float(geometry.level_y),
    )

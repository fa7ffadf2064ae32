"""AreTomo's ``.aln``: the global and the local alignment of a tilt series, of AreTomo 1, 2 and 3.

A point of the aligned image at c from its centre comes from R(ROT) c + (TX, TY) of the raw image, in its
pixels, R turning counter-clockwise. Dark images are left out of the rows; SEC counts the raw images, from 0
in older versions and from 1 in newer ones. About the sign of the angles, see `weft.formats.imod`: a
tomogram by AreTomo is the one with ``invert_angles``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_text
from weft.physics.geometry import TiltGeometry

__all__ = ["AreTomoAlignment", "AreTomoDark", "from_geometry", "read_aln", "to_geometry", "write_aln"]

_TITLE = "# AreTomo Alignment"
_COLUMNS = 10
_LOCAL = 7


@dataclass(frozen=True)
class AreTomoDark:
    """An image that was left out: its place by angle, its section, both as written, and its angle (°)."""

    frame: int
    section: int
    angle: float


@dataclass
class AreTomoAlignment:
    """An alignment; arrays have one row an image that was kept.

    Attributes
    ----------
    section : (tilts,) int array
        ``SEC`` as written.
    axis, angles : (tilts,) arrays
        ``ROT`` and ``TILT``, degrees. The angles contain `alpha_offset`.
    magnification : (tilts,) array
        ``GMAG``.
    shift : (tilts, 2) array
        ``TX, TY``: pixels of the raw image.
    weights : (tilts, 4) array
        ``SMEAN, SFIT, SCALE, BASE``.
    raw_size : (int, int, int), optional
        x, y and images of the raw stack; AreTomo 1.0 to 1.2 do not write it.
    dark : list of AreTomoDark
    local : (tilts, patches, 5) array, optional
        Local alignment: x, y of a patch from the centre and its shift x, y (pixels of the raw image), and 1
        where it was found good.
    alpha_offset, beta_offset : float, optional
        Degrees: what was added to all angles, and the inclination about x (not applied by AreTomo).
    thickness : int, optional
        Pixels; AreTomo 3.
    """

    section: NDArray[np.int64]
    axis: NDArray[np.float64]
    angles: NDArray[np.float64]
    shift: NDArray[np.float64]
    magnification: NDArray[np.float64]
    weights: NDArray[np.float64]
    raw_size: tuple[int, int, int] | None = None
    dark: list[AreTomoDark] = field(default_factory=list)
    local: NDArray[np.float64] | None = None
    alpha_offset: float | None = None
    beta_offset: float | None = None
    thickness: int | None = None
    path: Path = Path("AreTomo alignment")

    def __len__(self) -> int:
        return len(self.angles)

    @property
    def first_section(self) -> int | None:
        """0 or 1: from where SEC counts; None where the file leaves it open."""
        if 0 in self.section:
            return 0
        if self.raw_size is not None and self.raw_size[2] in self.section:
            return 1
        return None

    def local_shift(self, tilt: int, xy: ArrayLike) -> NDArray[np.float64]:
        """How far places of one image lie from the global alignment, as AreTomo interpolates it.

        Parameters
        ----------
        tilt : int
        xy : (n, 2) array
            Pixels from the centre, in the raw image's directions, before the global shift.

        Returns
        -------
        (n, 2) array
            Pixels.
        """
        places = np.asarray(xy, np.float64)
        if self.local is None or self.raw_size is None:
            return np.zeros_like(places)
        good = self.local[tilt][self.local[tilt, :, 4] > 0.9]
        if not len(good):
            return np.zeros_like(places)
        away = (places[:, None] - good[None, :, :2]) / np.array(self.raw_size[:2])
        weight = np.exp(-100.0 * (away**2).sum(-1))
        # far from all patches every weight underflows: the nearest one is what remains in the limit
        nearest = np.eye(len(good))[(away**2).sum(-1).argmin(1)]
        weight = np.where(weight.sum(1, keepdims=True) > 1e-290, weight, nearest)
        return np.asarray(weight @ good[:, 2:4] / weight.sum(1, keepdims=True))


def read_aln(path: str | Path, *, complete: bool = True) -> AreTomoAlignment:
    """Read an .aln.

    Parameters
    ----------
    path : path-like
    complete : bool
        Insist on all images and patches that the header announces. Otherwise missing patches are nan.

    Raises
    ------
    FormatError
        Not AreTomo's.
    CorruptError
        A row with the wrong number of values, or patches that are incomplete.
    TruncatedError
        It is empty, or lacks images or patches that its header announces.
    """
    path = Path(path)
    lines = path.read_bytes().decode("latin-1").splitlines()
    if not any(line.strip() for line in lines):
        raise TruncatedError(path, "the file is empty")
    title = lines[0].strip()
    # one development version of AreTomo 3 greets before its title
    if not (title.startswith(_TITLE) or (title == "Hello" and lines[1:2] and _TITLE in lines[1])):
        raise FormatError(path, f"not an alignment by AreTomo: it starts with {title[:40]!r}")
    header: dict[str, str] = {}
    dark: list[AreTomoDark] = []
    rows: list[list[float]] = []
    patches: list[list[float]] = []
    local = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text == "Hello":
            continue
        if text[0] == "#":
            local = local or text[1:].strip() == "Local Alignment"
            name, equals, words = text[1:].partition("=")
            if equals and name.strip() == "DarkFrame":
                values = _numbers(path, number, words, 3)
                dark.append(AreTomoDark(int(values[0]), int(values[1]), values[2]))
            elif equals:
                header[name.strip()] = words.strip()
        elif local:
            patches.append(_numbers(path, number, text, _LOCAL))
        else:
            rows.append(_numbers(path, number, text, _COLUMNS))
    if not rows:
        raise TruncatedError(path, "it has no images")
    table = np.array(rows)
    raw = _numbers(path, 2, header["RawSize"], 3) if "RawSize" in header else None
    if complete and raw is not None and len(rows) + len(dark) != raw[2]:
        raise TruncatedError(
            path, f"{len(rows)} images and {len(dark)} dark ones are not the {raw[2]:.0f} of the raw stack"
        )

    def value(name: str) -> float | None:
        return _numbers(path, 2, header[name], 1)[0] if name in header else None

    count, thickness = int(value("NumPatches") or 0), value("Thickness")
    return AreTomoAlignment(
        section=table[:, 0].astype(np.int64),
        axis=table[:, 1],
        angles=table[:, 9],
        shift=table[:, 3:5],
        magnification=table[:, 2],
        weights=table[:, 5:9],
        raw_size=None if raw is None else (int(raw[0]), int(raw[1]), int(raw[2])),
        dark=dark,
        local=_patches(path, patches, len(rows), count, complete) if patches or count else None,
        alpha_offset=value("AlphaOffset"),
        beta_offset=value("BetaOffset"),
        thickness=None if thickness is None else int(thickness),
        path=path,
    )


def _numbers(path: Path, line: int, text: str, count: int) -> list[float]:
    try:
        values = [float(v) for v in text.split()]
    except ValueError:
        raise CorruptError(path, f"line {line}: {text[:40]!r} holds what is no number") from None
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise CorruptError(path, f"line {line}: {len(values)} values, not {count}, or not finite")
    return values


def _patches(
    path: Path, rows: list[list[float]], tilts: int, count: int, complete: bool
) -> NDArray[np.float64]:
    if complete and len(rows) != tilts * count:
        raise TruncatedError(
            path, f"{len(rows)} local shifts are not {count} patches in each of {tilts} images"
        )
    out = np.full((tilts, count, 5), np.nan)
    for row in rows:
        t, p = int(row[0]), int(row[1])
        if not (0 <= t < tilts and 0 <= p < count) or not np.isnan(out[t, p, 0]):
            raise CorruptError(path, f"patch {p} of image {t} is outside, or occurs twice")
        out[t, p] = row[2:]
    return out


def write_aln(path: str | Path, alignment: AreTomoAlignment, *, sync: bool = True) -> None:
    """Write an .aln atomically, in the form of AreTomo 2 and 3 and with more digits."""
    a = alignment
    lines = [f"{_TITLE} / Priims bprmMn"]
    if a.raw_size is not None:
        lines.append("# RawSize = " + " ".join(str(v) for v in a.raw_size))
    else:
        lines.append(f"# {len(a)}  0")
    lines.append(f"# NumPatches = {0 if a.local is None else a.local.shape[1]}")
    lines += [f"# DarkFrame =  {d.frame:4d} {d.section:4d} {d.angle:8.2f}" for d in a.dark]
    for name, value in (("AlphaOffset", a.alpha_offset), ("BetaOffset", a.beta_offset)):
        if value is not None:
            lines.append(f"# {name} = {value:8.2f}")
    if a.thickness is not None:
        lines.append(f"# Thickness = {a.thickness}")
    lines.append(re.sub(r"\s+", "  ", "# SEC ROT GMAG TX TY SMEAN SFIT SCALE BASE TILT"))
    for i in range(len(a)):
        weights = "".join(f"{v:9.2f}" for v in a.weights[i])
        lines.append(
            f"{a.section[i]:5d} {a.axis[i]:12.6f} {a.magnification[i]:10.5f} {a.shift[i, 0]:13.5f} "
            f"{a.shift[i, 1]:13.5f}{weights} {a.angles[i]:12.6f}"
        )
    if a.local is not None:
        lines.append("# Local Alignment")
        for t, p in np.ndindex(a.local.shape[:2]):
            x, y, dx, dy, good = a.local[t, p]
            lines.append(f"{t:4d} {p:3d} {x:9.2f} {y:9.2f} {dx:9.2f} {dy:9.2f} {good:5.1f}")
    atomic_write_text(path, "\n".join(lines) + "\n", sync=sync)


def to_geometry(
    alignment: AreTomoAlignment,
    *,
    pixel_size: float,
    image_size: Sequence[float] | None = None,
    volume_size: Sequence[float] = (0.0, 0.0, 0.0),
    defocus: ArrayLike = 0.0,
    hand: float = 1.0,
    invert_angles: bool = False,
) -> TiltGeometry:
    """The global alignment as our geometry, of the images that were kept and in the file's order.

    Parameters
    ----------
    alignment : AreTomoAlignment
    pixel_size : float
        Å, of the raw stack.
    image_size : (2,), optional
        x, y, Å; from the file where it says it.
    volume_size : (3,)
        Å.
    defocus : (tilts,) or float
        Å, of the volume's centre.
    hand : float
        +1 or −1, for the angles as they are; `invert_angles` changes its sign too.
    invert_angles : bool
        Change the sign of the angles, which gives AreTomo's own specimen.
    """
    if image_size is None:
        if alignment.raw_size is None:
            raise FormatError(alignment.path, "it does not say the size of its images, which must be given")
        image_size = [n * pixel_size for n in alignment.raw_size[:2]]
    if np.any(np.abs(alignment.magnification - 1.0) > 1e-4):
        raise FormatError(alignment.path, "its images differ in magnification, which is not supported")
    sign = -1.0 if invert_angles else 1.0
    return TiltGeometry.of(
        sign * alignment.angles,
        axis=alignment.axis,
        shift=alignment.shift * pixel_size,
        defocus=defocus,
        volume_size=tuple(volume_size),
        image_size=tuple(image_size),
        hand=sign * hand,
    )


def from_geometry(
    geometry: TiltGeometry,
    *,
    pixel_size: float,
    section: Sequence[int] | None = None,
    raw_images: int | None = None,
    invert_angles: bool = False,
) -> AreTomoAlignment:
    """The inverse of `to_geometry`.

    Parameters
    ----------
    geometry : TiltGeometry
    pixel_size : float
        Å, of the raw stack.
    section : (tilts,) sequence of int, optional
        Places in the raw stack, from 1; 1, 2, ... by default.
    raw_images : int, optional
        Images in the raw stack, where it has more than the geometry.

    Raises
    ------
    ValueError
        A specimen that is inclined about x, which AreTomo has no way to say.
    """
    if abs(float(geometry.level_x)) > 1e-6:
        raise ValueError(f"AreTomo cannot express an inclination about x ({float(geometry.level_x):g}°)")
    n = len(geometry)
    size = [round(v / pixel_size) for v in geometry.image_size.tolist()]
    sections = np.arange(1, n + 1) if section is None else np.asarray(section, np.int64)
    sign = -1.0 if invert_angles else 1.0
    angles = sign * (geometry.angles + geometry.level_y).numpy()
    total = n if raw_images is None else raw_images
    left_out = sorted(set(range(1, total + 1)) - set(sections.tolist()))
    return AreTomoAlignment(
        section=sections,
        axis=geometry.axis.expand(n).numpy().copy(),
        angles=angles,
        shift=geometry.shift.numpy() / pixel_size,
        magnification=np.ones(n),
        weights=np.tile([1.0, 1.0, 1.0, 0.0], (n, 1)),
        raw_size=(size[0], size[1], total),
        dark=[AreTomoDark(i, i, 0.0) for i in left_out],
        alpha_offset=0.0,
        beta_offset=0.0,
    )

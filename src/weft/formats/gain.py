"""Gain references and defect maps: reading them, turning them, finding out how they must be turned.

What comes out multiplies the raw frames; a zero is a defect (docs/conventions.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from weft.errors import CorruptError, FormatError, GainError, TruncatedError
from weft.formats import mrc
from weft.formats.em import EmStack
from weft.formats.tiff import TiffMovie
from weft.formats.tiff_layout import is_tiff

__all__ = [
    "Orientation",
    "best_orientation",
    "gain_residual",
    "load_defects",
    "load_gain",
    "orientations",
]

#: Side of the part of a picture that `gain_residual` looks at: a million pixels are plenty.
_PART = 1024


@dataclass(frozen=True)
class Orientation:
    """How a picture is turned: first transposed, then its columns (x), then its rows (y) flipped."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """The turned picture; a view where possible."""
        turned = image.T if self.transpose else image
        turned = turned[:, ::-1] if self.flip_x else turned
        return turned[::-1] if self.flip_y else turned

    def __str__(self) -> str:
        names = [n for n in ("transpose", "flip_x", "flip_y") if getattr(self, n)]
        return " + ".join(names) or "as it is"


ALL_ORIENTATIONS = tuple(
    Orientation(t, x, y) for t in (False, True) for x in (False, True) for y in (False, True)
)


def load_gain(
    path: str | Path,
    shape: tuple[int, int] | None = None,
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    is_eer: bool = False,
    invert: bool = False,
) -> NDArray[np.float32]:
    """Read a gain reference.

    Parameters
    ----------
    path : path-like
        MRC, TIFF, EER's ``.gain``, EM, or ``.dm4`` (with the package ``dm4``: ``pip install weft[dm4]``).
    shape : (ny, nx), optional
        Of the frames. A gain of another size is an error, except for EER data, whose grid may be 2 or 4
        times as fine or as coarse as the gain's.
    flip_x, flip_y, transpose : bool
        How to turn it: see `Orientation`.
    is_eer : bool
        It belongs to EER data: a ``.gain`` file's rows are not flipped.
    invert : bool
        The file holds what to divide by, as RELION takes MRC and TIFF gains of EER movies.

    Returns
    -------
    (ny, nx) float32
        Multiplier; 0 where the file has 0 or no number.

    Raises
    ------
    GainError
        Not one picture, without any positive number, or of the wrong size.
    InputFileError
        The file cannot be read.
    """
    path = Path(path)
    image = _read_picture(path, is_eer).astype(np.float32)
    image = np.ascontiguousarray(Orientation(transpose, flip_x, flip_y).apply(image))
    good = np.isfinite(image) & (image > 0)
    if not good.any():
        raise GainError(f"{path}: the gain reference has no positive number")
    if invert:
        mean = float(image[good].mean(dtype=np.float64))
        image = np.divide(mean, image, out=np.zeros_like(image), where=good)
    else:
        image[~good] = 0.0
    return image if shape is None else _fit(path, image, shape, is_eer)


def load_defects(
    path: str | Path,
    shape: tuple[int, int],
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    is_eer: bool = False,
) -> NDArray[np.bool_]:
    """Read a defect map: True where pixels must not be used.

    Parameters
    ----------
    path : path-like
        A picture (MRC, TIFF: everything but zero is a defect), or text with a rectangle a line,
        ``x y width height`` in pixels, as MotionCor and RELION take it.
    shape : (ny, nx)
        Of the frames.
    flip_x, flip_y, transpose, is_eer
        As for the gain; they turn rectangles too, which are in the picture's frame before it is turned.
    """
    path = Path(path)
    turn = Orientation(transpose, flip_x, flip_y)
    if path.suffix.lower() in (".txt", ".dat", ".defects", ".defect"):
        before = (shape[1], shape[0]) if transpose else shape
        return np.ascontiguousarray(turn.apply(_rectangles(path, before)))
    image = _read_picture(path, is_eer)
    mask = np.ascontiguousarray(turn.apply(image != 0))
    if mask.shape != shape:
        raise GainError(_wrong_size(path, "defect map", mask.shape, shape))
    return mask


def orientations(gain: NDArray[Any]) -> Iterator[tuple[Orientation, NDArray[Any]]]:
    """All eight ways to turn a picture, each with the turned picture (a view)."""
    for orientation in ALL_ORIENTATIONS:
        yield orientation, orientation.apply(gain)


def best_orientation(gain: NDArray[Any], raw_sum: NDArray[Any]) -> list[tuple[Orientation, float]]:
    """Try all eight orientations of a gain reference against the summed raw frames.

    Parameters
    ----------
    gain : (y, x)
        Multiplier, as `load_gain` gives it without turning.
    raw_sum : (ny, nx)
        Sum of the raw frames, of one movie or better of several.

    Returns
    -------
    list of (Orientation, score), best first
        Score: correlation of 1/gain with the raw sum in detail finer than about 5 pixels, -1 to 1. The
        right one is positive and far from the rest, which are near 0. Orientations whose shape does not
        fit are left out.

    Raises
    ------
    GainError
        None fits.
    """
    raw = np.asarray(raw_sum, np.float32)
    sensitivity = np.zeros(gain.shape, np.float32)
    good = np.isfinite(gain) & (gain > 0)
    np.divide(1.0, gain, out=sensitivity, where=good)
    sensitivity[~good] = float(sensitivity[good].mean()) if good.any() else 0.0
    detail, wanted = _detail(sensitivity), _detail(raw)
    found = []
    for orientation in ALL_ORIENTATIONS:
        turned, mask = orientation.apply(detail), orientation.apply(good)
        if turned.shape != raw.shape:
            continue
        found.append((orientation, _correlation(turned, wanted, mask)))
    if not found:
        raise GainError(_wrong_size("the gain", "gain reference", gain.shape, raw.shape))
    return sorted(found, key=lambda item: -item[1])


def gain_residual(
    gain: NDArray[Any], frames: Sequence[NDArray[Any]], bad: NDArray[np.bool_] | None = None
) -> tuple[float, float] | None:
    """How much of the gain reference's own pattern is left in the summed, corrected frames.

    Detail finer than about 5 pixels of the sum is fitted as a multiple of that of the gain. A reference that
    belongs to the frames leaves nothing: neither the specimen nor counting knows about it. One that is
    turned, or of another camera, prints itself into the frames: 1. One that should have divided doubles the
    pattern that it was to remove: 2. No gain at all where one is needed would be -1.

    Parameters
    ----------
    gain : (y, x) float32
        Multiplier as it was used.
    frames : sequence of (y, x)
        Raw.
    bad : (y, x) bool, optional
        Pixels that do not count.

    Returns
    -------
    (residual, standard error), or None
        None where the gain has no detail.
    """
    ny, nx = gain.shape
    top, left = max(0, (ny - _PART) // 2), max(0, (nx - _PART) // 2)
    part = np.s_[top : top + _PART, left : left + _PART]
    total = np.zeros(gain[part].shape, np.float32)
    for frame in frames:
        np.add(total, frame[part], out=total, casting="unsafe")
    used = gain[part].astype(np.float32)
    good = np.isfinite(used) & (used > 0)
    if bad is not None:
        good &= ~bad[part]
    if good.sum() < 1000:
        return None
    # what does not count must not shine into its neighbours' local mean
    total *= used
    for image in (used, total):
        image[~good] = image[good].mean()
    x, y = (_detail(image)[good].astype(np.float64) for image in (used, total))
    # a few wild pixels of the gain must not decide
    typical = np.abs(x) < 6.0 * max(float(np.median(np.abs(x))) * 1.4826, 1e-6)
    x, y = x[typical] - x[typical].mean(), y[typical] - y[typical].mean()
    power = float(x @ x)
    if x.size < 1000 or power / x.size < 1e-8:
        return None
    slope = float(x @ y) / power
    rest = y - slope * x
    return slope, float(np.sqrt(rest @ rest / x.size / power))


def _detail(image: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = uniform_filter(image, 5, mode="nearest")
    out = np.zeros_like(image)
    np.divide(image, smooth, out=out, where=smooth > 0)
    out -= 1.0
    # a few hot pixels must not decide
    return np.clip(out, -1.0, 1.0, out=out)


def _correlation(a: NDArray[Any], b: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    x, y = a[mask].astype(np.float64), b[mask].astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def _read_picture(path: Path, is_eer: bool) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise GainError(
            f"{path}: the gain reference or defect map cannot be read ({error.strerror})"
        ) from error
    if not head:
        raise TruncatedError(path, "the file is empty; copy it again")
    suffix = path.suffix.lower()
    if is_tiff(head):
        # docs/conventions.md: a .gain of EER data lies as the EER frames do
        with TiffMovie(path, flip=not (is_eer and suffix == ".gain"), first_only=suffix == ".gain") as movie:
            images = [movie.read(i) for i in range(len(movie))]
    elif suffix in (".dm4", ".dm3"):
        images = [_read_dm4(path)]
    elif suffix == ".em":
        stack = EmStack(path)
        images = [stack.read(i) for i in range(len(stack))]
    else:
        data, _ = mrc.read(path)
        images = [data] if data.ndim == 2 else list(data)
    if len(images) != 1:
        raise GainError(f"{path}: it holds {len(images)} pictures; a gain reference or defect map is one")
    if np.iscomplexobj(images[0]):
        raise GainError(f"{path}: its pixels are complex numbers; that is no gain reference")
    return images[0]


def _fit(path: Path, gain: NDArray[np.float32], shape: tuple[int, int], is_eer: bool) -> NDArray[np.float32]:
    if gain.shape == shape:
        return gain
    for factor in (2, 4) if is_eer else ():
        if (gain.shape[0] * factor, gain.shape[1] * factor) == shape:
            return np.ascontiguousarray(gain.repeat(factor, 0).repeat(factor, 1))
        if gain.shape == (shape[0] * factor, shape[1] * factor):
            blocks = gain.reshape(shape[0], factor, shape[1], factor)
            # one defect in a block makes the whole pixel one
            return np.asarray(blocks.mean((1, 3)) * blocks.all((1, 3)), np.float32)
    raise GainError(_wrong_size(path, "gain reference", gain.shape, shape))


def _wrong_size(path: Path | str, what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    text = (
        f"{path}: the {what} is {found[1]} x {found[0]} pixels, the frames are {wanted[1]} x {wanted[0]}; "
        "give the one that was recorded with these frames"
    )
    return text + ", or transpose it" if found == wanted[::-1] else text


def _rectangles(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GainError(f"{path}: the defect list cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if not words:
            continue
        try:
            x, y, width, height = (int(word) for word in words)
        except ValueError:
            raise FormatError(
                path,
                f"line {number} is {line.strip()[:40]!r}, not four whole numbers x y width height; "
                "SerialEM's defect files must be made into a map (IMOD: clip defect)",
            ) from None
        if min(x, y) < 0 or min(width, height) <= 0 or x + width > shape[1] or y + height > shape[0]:
            raise GainError(
                f"{path}, line {number}: {line.strip()} is outside of {shape[1]} x {shape[0]} pixels"
            )
        mask[y : y + height, x : x + width] = True
    return mask


def _read_dm4(path: Path) -> NDArray[Any]:
    try:
        from dm4 import DM4File
    except ImportError as error:
        raise FormatError(
            path, "reading .dm4 needs the package dm4: pip install 'weft[dm4]', or convert it (IMOD: dm2mrc)"
        ) from error
    try:
        with DM4File.open(str(path)) as file:
            best: NDArray[Any] | None = None
            images = file.read_directory().named_subdirs["ImageList"].unnamed_subdirs
            for entry in images:
                data = entry.named_subdirs["ImageData"]
                sizes = [int(file.read_tag_data(t)) for t in data.named_subdirs["Dimensions"].unnamed_tags]
                values = np.asarray(file.read_tag_data(data.named_tags["Data"]))
                # the first entry is usually a thumbnail: the picture is the larger one
                if len(sizes) >= 2 and values.size == sizes[0] * sizes[1]:
                    picture = values.reshape(sizes[1], sizes[0])
                    best = picture if best is None or picture.size > best.size else best
    except Exception as error:
        raise CorruptError(path, f"it cannot be read as DM4 ({type(error).__name__}: {error})") from error
    if best is None:
        raise FormatError(path, "it holds no picture")
    # Digital Micrograph's first row is the top of the picture, as TIFF's
    return best[::-1]

"""From the coordinates of another program to picks of an item: pixels, flips, what is left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weft.errors import FormatError, RequestError
from weft.formats import mrc
from weft.formats.coordinates import Coordinates
from weft.picking.picks import Picks
from weft.settings import Settings, setting

if TYPE_CHECKING:
    from weft.session.items import Item

__all__ = ["AverageFrame", "PickImportSettings", "convert", "needs_a_flip_choice"]

#: A file's pixel size that differs from ours by less is another calibration of the same pixel.
_CALIBRATION = 0.05
_OUTSIDE, _NOT_FINITE, _LOW = "outside the image", "without finite coordinates", "below --minimum-score"


class PickImportSettings(Settings):
    """How picks made elsewhere are read."""

    pixel_size: float | None = setting(
        None,
        "Of the micrographs whose pixels the coordinates count, where the file does not say it and they are "
        "not as large as the averages.",
        unit="Å",
        gt=0.01,
        le=200.0,
    )
    diameter: float | None = setting(None, "Of the particles.", unit="Å", gt=0.0, le=20000.0)
    minimum_score: float | None = setting(
        None, "Leave out picks with a smaller score; those without a score stay."
    )
    recenter: bool = setting(
        False, "Move particles by the shifts that a refinement or classification has found for them."
    )
    flip_y: bool | None = setting(
        None,
        "The other program's micrographs are upside down against Weft's: those that cryoSPARC makes of TIFF "
        "movies are.",
    )


@dataclass(frozen=True)
class AverageFrame:
    """The image that an item's picks belong to.

    Attributes
    ----------
    pixel_size : float
        Å.
    shape : (int, int)
        Rows, columns.
    """

    pixel_size: float
    shape: tuple[int, int]

    @classmethod
    def of(cls, item: Item) -> AverageFrame:
        """An item's average; RequestError where there is none yet."""
        path = item.paths.get("average")
        if path is None:
            raise RequestError("it has no average yet: run the motion step first")
        shape = mrc.read_header(path).shape
        return cls(float(item.metrics["pixel_size"]), (shape[-2], shape[-1]))

    @property
    def extent(self) -> NDArray[np.float64]:
        """Width, height in Å."""
        return np.array(self.shape[::-1], np.float64) * self.pixel_size


def convert(
    path: Path, found: Coordinates, frame: AverageFrame, settings: PickImportSettings
) -> tuple[Picks, dict[str, int], str]:
    """Picks in Å of the average; why others were left out, and how many; what is to be said of the pixels.

    Raises
    ------
    FormatError
        The coordinates cannot be those of this image.
    """
    scale, remark = _scale(path, found, frame, settings)
    xy = found.xy * scale
    if settings.recenter and found.origin is not None:
        xy = xy - found.origin
    if settings.flip_y:
        rows = found.shape[0] * scale[1] if found.shape else frame.extent[1]
        xy = np.stack([xy[:, 0], rows - scale[1] - xy[:, 1]], axis=-1)
    finite = np.all(np.isfinite(xy), axis=1)
    pixels = np.where(finite[:, None], xy / frame.pixel_size, -1.0)
    limits = np.array(frame.shape[::-1]) - 0.5
    inside = np.all((pixels >= -0.5) & (pixels < limits), axis=1)
    low = np.zeros(len(xy), bool)
    if settings.minimum_score is not None:
        low = np.less(found.score, settings.minimum_score)
    outside = finite & ~inside
    if outside.sum() > max(inside.sum(), 5):
        raise FormatError(
            path,
            f"{outside.sum()} of {len(xy)} picks lie outside the image; if they are in pixels of another "
            "size, give --pixel-size",
        )
    skipped = {_NOT_FINITE: ~finite, _OUTSIDE: outside, _LOW: inside & low}
    kept = np.flatnonzero(inside & ~low)
    # the best first; without a score last, in the order of the file
    order = kept[np.argsort(-np.nan_to_num(found.score[kept], nan=-np.inf), kind="stable")]
    # in a mirrored image angles mean something else
    eulers = None if settings.flip_y else found.eulers
    whole = Picks(
        xy, found.score, settings.diameter or np.nan, eulers=eulers, class_number=found.class_number
    )
    counts = {why: int(np.count_nonzero(rows)) for why, rows in skipped.items()}
    return whole.select(order), {why: count for why, count in counts.items() if count}, remark


def _scale(
    path: Path, found: Coordinates, frame: AverageFrame, settings: PickImportSettings
) -> tuple[NDArray[np.float64], str]:
    """Å of the pixels that the coordinates count, x and y; what is to be said about it."""
    own = frame.pixel_size
    if settings.pixel_size is not None:
        return np.full(2, settings.pixel_size), ""
    if found.shape is not None:
        # the same field, whatever either program believes its pixels to be
        ratio = np.array(frame.shape[::-1]) / np.array(found.shape[::-1])
        if abs(ratio[0] / ratio[1] - 1.0) > 0.01:
            raise FormatError(
                path,
                f"its micrograph of {found.shape[1]} × {found.shape[0]} pixels shows another field than the "
                f"average of {frame.shape[1]} × {frame.shape[0]}; if they begin at one corner, give "
                "--pixel-size",
            )
        return ratio * own, ""
    if found.pixel_size is None:
        return np.full(2, own), f"Coordinates are taken to be in pixels of the averages ({own:g} Å)."
    if abs(found.pixel_size / own - 1.0) < _CALIBRATION:
        return np.full(2, own), ""
    return np.full(2, found.pixel_size), f"Coordinates are in pixels of {found.pixel_size:g} Å."


def needs_a_flip_choice(path: Path, found: Coordinates, item: Item) -> bool:
    """Whether these picks may be upside down against the item's average, so that somebody must say.

    cryoSPARC does not flip the rows of TIFF files when it makes micrographs of them; Weft, RELION, Warp and
    MotionCor do.
    """
    made_there = re.search(r"motioncorrected/|_(patch|rigid)_aligned", found.micrograph) is not None
    return path.suffix.lower() == ".cs" and made_there and item.source.suffix.lower() not in (".mrc", ".mrcs")

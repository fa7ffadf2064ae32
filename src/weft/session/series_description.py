"""What a file says about a tilt series, in one form for all of them; and which files belong together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from weft.session.tilt_table import Origin

__all__ = [
    "STACK_SUFFIXES",
    "DescribedTilt",
    "SeriesDescription",
    "angle_sources",
    "series_stem",
    "stack_beside",
]

#: Of ready stacks, the one to take first when several are called the same: raw before aligned.
STACK_SUFFIXES = (".st", ".mrc", ".mrcs", ".ali")
_ANGLE_SUFFIXES = (".rawtlt", ".tlt")
_ENDINGS = re.compile(
    r"(?:_override|\.(?:mdoc|tomostar|star|mrcs?|st|ali|rawtlt|tlt|tiff?|eer|hdf5?))+\Z", re.IGNORECASE
)


@dataclass(frozen=True)
class DescribedTilt:
    """One exposure, as its file describes it; None and empty where that says nothing.

    Attributes
    ----------
    angle : float or None
        Degrees, with the file's sign.
    movie : str
        Path or name of the movie there, with its separators.
    section : int
        Its number in the file: ZValue of an mdoc, row of a table, section of a stack.
    image : int
        Section of a stack; −1 where there is none.
    exposure, prior_dose : float or None
        e/Å².
    date : datetime or None
    trouble : str
        Why it cannot take part, known from the file alone.
    """

    angle: float | None
    movie: str = ""
    section: int = -1
    image: int = -1
    exposure: float | None = None
    prior_dose: float | None = None
    date: datetime | None = None
    trouble: str = ""

    @property
    def movie_name(self) -> str:
        """The last part of the movie's path; the microscope's computer may run Windows."""
        return re.split(r"[\\/]", self.movie)[-1]


@dataclass(frozen=True)
class SeriesDescription:
    """One series, as its file describes it, in the file's order.

    Attributes
    ----------
    name : str
        What the file, or its name, calls the series.
    origin : Path
    form : str
        As in :class:`~weft.session.tilt_table.TiltTable`.
    tilts : tuple of DescribedTilt
    tilt_axis : float or None
        Degrees.
    pixel_size : float or None
        Å.
    stack : str
    notes : tuple of str
    """

    name: str
    origin: Path
    form: Origin
    tilts: tuple[DescribedTilt, ...]
    tilt_axis: float | None = None
    pixel_size: float | None = None
    stack: str = ""
    notes: tuple[str, ...] = ()


def series_stem(path: Path) -> str:
    """What a file calls its series: TS_01 for TS_01.mrc.mdoc, TS_01.mdoc, TS_01_override.mdoc, TS_01.st."""
    return _ENDINGS.sub("", path.name) or path.name


def stack_beside(mdoc: Path) -> Path | None:
    """The stack that an mdoc describes, where it lies in the same folder."""
    inner = mdoc.with_name(re.sub(r"\.mdoc\Z", "", mdoc.name, flags=re.IGNORECASE))
    names = [inner, *(mdoc.with_name(series_stem(mdoc) + suffix) for suffix in STACK_SUFFIXES)]
    return next((p for p in names if p.suffix.lower() in STACK_SUFFIXES and p.is_file()), None)


def angle_sources(stack: Path) -> Iterator[Path]:
    """Files beside a stack that tell its angles: mdocs, then ``.rawtlt``, then ``.tlt``."""
    stem = stack.with_name(series_stem(stack))
    mdocs = dict.fromkeys([f"{stack.name}.mdoc", *(f"{stem.name}{s}.mdoc" for s in ("", *STACK_SUFFIXES))])
    for name in (*mdocs, *(f"{stem.name}{suffix}" for suffix in _ANGLE_SUFFIXES)):
        if (path := stack.with_name(name)).is_file():
            yield path

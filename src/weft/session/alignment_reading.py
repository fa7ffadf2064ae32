"""Reading one alignment that another program has made: its views, and the geometry in our convention."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import FormatError
from weft.formats import aretomo, dynamo, imod, relion_tomo, warp_geometry, warp_xml
from weft.formats.relion_tomo import RelionTiltSeries
from weft.formats.star import read_star
from weft.physics.geometry import TiltGeometry
from weft.session.alignment_sources import AlignmentSource, excluded_views, is_aligned
from weft.settings import Settings, setting

__all__ = ["ForeignAlignment", "ReadingSettings", "SessionImages", "View", "mirrored", "read_source"]

_MOVIE, _AVERAGE = "rlnMicrographMovieName", "rlnMicrographName"
_NOMINAL = "rlnTomoNominalStageTiltAngle"
#: Pixel sizes that differ by no more than this fraction are two calibrations of one pixel.
_ONE_PIXEL = 0.05
#: How far ratios of sizes may be from each other, and from a whole number, that are the same binning.
_WHOLE = 0.03


class ReadingSettings(Settings):
    """What other programs' files do not say themselves."""

    invert_angles: bool = setting(
        False,
        "Change the sign of the tilt angles: the specimen becomes its mirror image, which is the other "
        "program's own for IMOD, AreTomo, Dynamo and RELION. Do it for all series of a session, or for none.",
    )
    pixel_size: float | None = setting(
        None,
        "Pixel size of the stack that IMOD, AreTomo or Dynamo aligned; none takes what their files tell, "
        "else the session's.",
        unit="Å",
        gt=0,
    )
    binning: float | None = setting(
        None, "Instead of that: how many pixels of the session's images one of that stack covers.", gt=0
    )
    max_stretch: float = setting(
        1e-3,
        "How far IMOD's and Dynamo's transforms may be from a rotation (magnification, stretch); what is "
        "smaller is left out.",
        ge=0,
    )


@dataclass(frozen=True)
class SessionImages:
    """The images of a series here: pixel size (Å), and x, y in pixels where known already."""

    pixel_size: float
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class View:
    """One image, as the other program knows it.

    Attributes
    ----------
    angle : float
        As aligned, degrees.
    stage : float, optional
        As the stage had it.
    section : int, optional
        Its place in the stack that was aligned, from 0.
    names : tuple of str
        Of its movie, of its average.
    """

    angle: float
    stage: float | None = None
    section: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignAlignment:
    """An alignment, read.

    Attributes
    ----------
    source : AlignmentSource
    views : tuple of View
        Those that take part.
    total : int, optional
        Images of the stack that was aligned.
    geometry : TiltGeometry
        A row a view; without sizes, defocus and hand.
    notes : tuple of str
    """

    source: AlignmentSource
    views: tuple[View, ...]
    total: int | None
    geometry: TiltGeometry
    notes: tuple[str, ...] = ()


def mirrored(geometry: TiltGeometry) -> TiltGeometry:
    """The same images of the specimen's mirror image in z: all angles about x and y change their sign."""
    return replace(
        geometry,
        angles=-geometry.angles,
        level_x=-geometry.level_x,
        level_y=-geometry.level_y,
        hand=-geometry.hand,
    )


def read_source(
    source: AlignmentSource, images: SessionImages, settings: ReadingSettings
) -> ForeignAlignment:
    """Read an alignment.

    Raises
    ------
    WeftError
        A file that cannot be read, or what a TiltGeometry cannot hold.
    """
    readers: dict[str, Callable[[AlignmentSource, SessionImages, ReadingSettings], ForeignAlignment]] = {
        "imod": _imod,
        "dynamo": _imod,
        "aretomo": _aretomo,
        "relion": _relion,
        "warp": _warp,
    }
    found = readers[source.program](source, images, settings)
    if settings.invert_angles:
        found = replace(found, geometry=mirrored(found.geometry))
    return replace(found, notes=(*source.notes, *found.notes))


def _as_binned(geometry: TiltGeometry, pixel_size: float, images: SessionImages) -> TiltGeometry:
    """Shifts from the centre of a stack that was binned edge to edge, as IMOD does it."""
    # our coordinates count from the centre of the first pixel, which binning moves
    return replace(geometry, shift=geometry.shift + 0.5 * (pixel_size - images.pixel_size))


def _pixel_size(
    images: SessionImages, settings: ReadingSettings, told: Callable[[], tuple[float, str] | None]
) -> tuple[float, tuple[str, ...]]:
    """Å, of the stack that was aligned; and how that is known, where it is not the session's."""
    if settings.pixel_size is not None:
        return settings.pixel_size, ()
    if settings.binning is not None:
        return settings.binning * images.pixel_size, ()
    found = told()
    if found is None or abs(found[0] - 1.0) <= _ONE_PIXEL:
        return images.pixel_size, ()
    ratio, how = found
    return ratio * images.pixel_size, (f"binned by {ratio:.4g} against the session, {how}",)


def _ratio(size: tuple[float, float] | None, images: SessionImages, how: str) -> tuple[float, str] | None:
    """How many of our pixels one of the other stack covers, by the sizes; None where they do not tell."""
    if size is None or images.size is None:
        return None
    x, y = images.size[0] / size[0], images.size[1] / size[1]
    return (_whole(0.5 * (x + y)), how) if abs(x - y) <= _WHOLE * x else None


def _nearest_binning(ratio: float) -> float:
    return float(round(ratio)) if ratio > 1.0 else 1.0 / round(1.0 / ratio)


def _whole(ratio: float) -> float:
    """The binning that a ratio of sizes means: binning leaves out what does not fill a pixel."""
    nearest = _nearest_binning(ratio)
    return nearest if abs(ratio / nearest - 1.0) <= _WHOLE else ratio


# --------------------------------------------------------------------------------------- IMOD and Dynamo


def _imod(source: AlignmentSource, images: SessionImages, settings: ReadingSettings) -> ForeignAlignment:
    angles = source.angles
    if angles is None and source.program == "dynamo":
        angles = source.stage_angles
    if angles is None:
        raise FormatError(source.file, f"there is no {source.file.stem}.tlt with the solved angles beside it")
    solved = imod.read_alignment(source.file, angles, source.command)
    n = len(solved.angles)
    out: NDArray[np.int64] = np.zeros(0, np.int64)
    notes: tuple[str, ...] = ()
    if source.command is not None:
        entries = next(c for c in imod.read_com(source.command) if c.program.lower() == "tilt").entries
        out = excluded_views(",".join(v for k, v in entries.items() if k.startswith("EXCLUDE")))
        out = out[out < n]
        if len(out):
            notes = (f"views {', '.join(str(i + 1) for i in out)} are excluded in {source.command.name}",)
    pixel, how = _pixel_size(images, settings, partial(_imod_ratio, source, images))
    kept = np.setdiff1d(np.arange(n), out)
    geometry = _make_imod(replace(solved, transforms=solved.transforms[kept], shifts=solved.shifts[kept],
                                  angles=solved.angles[kept]), pixel, settings)  # fmt: skip
    stage = None if source.stage_angles is None else imod.read_tlt(source.stage_angles)
    if stage is not None and len(stage) != n:
        notes = (*notes, f"{source.stage_angles.name if source.stage_angles else ''} has {len(stage)} angles")
        stage = None
    views = tuple(
        View(float(solved.angles[i]), None if stage is None else float(stage[i]), int(i)) for i in kept
    )
    return ForeignAlignment(source, views, n, _as_binned(geometry, pixel, images), (*how, *notes))


def _make_imod(solved: imod.ImodAlignment, pixel_size: float, settings: ReadingSettings) -> TiltGeometry:
    try:
        return dynamo.to_geometry(
            solved, pixel_size=pixel_size, image_size=(0.0, 0.0), max_stretch=settings.max_stretch
        )
    except FormatError as error:
        raise FormatError(error.path, f"{error.message}; --max-stretch lets more pass") from None


def _imod_ratio(source: AlignmentSource, images: SessionImages) -> tuple[float, str] | None:
    """What tilt.com says of the stack's size, else eTomo's project of its pixel size."""
    if source.command is not None:
        for command in imod.read_com(source.command):
            full = command.numbers("FULLIMAGE") if command.program.lower() == "tilt" else []
            if len(full) == 2 and min(full) > 0:
                found = _ratio((full[0], full[1]), images, f"by FULLIMAGE in {source.command.name}")
                if found is not None:
                    return found
    if source.project is None:
        return None
    text = imod.read_edf(source.project).get("Setup.PixelSize", "")
    if not re.fullmatch(r"[\d.]+", text) or float(text) == 0.0:
        return None
    ratio = 10.0 * float(text) / images.pixel_size
    whole = _nearest_binning(ratio)
    if abs(ratio / whole - 1.0) > _ONE_PIXEL:
        raise FormatError(
            source.project,
            f"the pixel size is {10 * float(text):g} Å in it, {images.pixel_size:g} Å here; say which is "
            "right with --pixel-size or --binning",
        )
    return whole, f"by the pixel size in {source.project.name}"


# ----------------------------------------------------------------------------------------------- AreTomo


def _aretomo(source: AlignmentSource, images: SessionImages, settings: ReadingSettings) -> ForeignAlignment:
    solved = aretomo.read_aln(source.file)
    raw = solved.raw_size

    def told() -> tuple[float, str] | None:
        found = _ratio(None if raw is None else (raw[0], raw[1]), images, "by RawSize")
        if raw is not None and images.size is not None and found is None:
            raise FormatError(
                source.file,
                f"its images have {raw[0]}×{raw[1]} pixels, which are not the session's "
                f"{images.size[0]}×{images.size[1]}, binned or not",
            )
        return found

    pixel, notes = _pixel_size(images, settings, told)
    if solved.local is not None and solved.local.shape[1]:
        notes = (*notes, "its local alignment is not used")
    geometry = aretomo.to_geometry(solved, pixel_size=pixel, image_size=(0.0, 0.0))
    first, offset = _first_section(solved), solved.alpha_offset
    views = tuple(
        View(
            float(angle),
            None if offset is None else float(angle) - offset,
            None if first is None else int(section) - first,
        )
        for angle, section in zip(solved.angles, solved.section, strict=True)
    )
    total = None if raw is None else raw[2]
    return ForeignAlignment(source, views, total, _as_binned(geometry, pixel, images), notes)


def _first_section(solved: aretomo.AreTomoAlignment) -> int | None:
    """From where SEC counts: as it shows itself, else where kept and dark images together are all."""
    numbers = sorted([*solved.section.tolist(), *(dark.section for dark in solved.dark)])
    whole = [first for first in (0, 1) if numbers == list(range(first, first + len(numbers)))]
    return solved.first_section if solved.first_section is not None or not whole else whole[0]


# -------------------------------------------------------------------------------------------------- Warp


def _warp(source: AlignmentSource, images: SessionImages, settings: ReadingSettings) -> ForeignAlignment:
    series = warp_xml.read_warp_xml(source.file)
    geometry = warp_geometry.to_geometry(series, image_size=(0.0, 0.0), volume_size=(0.0, 0.0, 0.0))
    geometry, notes = _calibrated(geometry, float(series.ctf.get("PixelSize", "nan")), images)
    grids = [f"Grid{kind}{axis}" for kind in ("Movement", "VolumeWarp", "Angle") for axis in "XYZ"]
    if any(name in series.grids and np.any(series.grids[name].values) for name in grids):
        notes = (*notes, "what M has refined locally is not used")
    used = np.flatnonzero(series.use_tilt)
    if len(used) < len(series):
        notes = (*notes, f"{len(series) - len(used)} tilts are not used in it (UseTilt)")
    views = tuple(
        View(float(series.angles[i]), section=_weft_section(series.movies[i], source.names),
             names=(series.movies[i],) if series.movies[i] else ())
        for i in used
    )  # fmt: skip
    return ForeignAlignment(source, views, None, geometry.select(torch.from_numpy(used)), notes)


def _weft_section(movie: str, names: tuple[str, ...]) -> int | None:
    """Weft calls images that came without a movie NAME_000.mrc and so on, by their section."""
    match = re.search(r"(?:\A|[\\/])([^\\/]+)_(\d{3,})\.mrc\Z", movie)
    return int(match[2]) if match and match[1] in names else None


def _calibrated(
    geometry: TiltGeometry, pixel_size: float, images: SessionImages
) -> tuple[TiltGeometry, tuple[str, ...]]:
    """Shifts in Å of another calibration of the same pixel, as Å of the session."""
    ratio = pixel_size / images.pixel_size
    # equal to the digits that files hold, or another pixel (binned), or not known: Å are Å
    if not 1e-4 < abs(ratio - 1.0) <= _ONE_PIXEL:
        return geometry, ()
    note = f"its pixel is {pixel_size:g} Å, here {images.pixel_size:g} Å: shifts are taken in pixels"
    return replace(geometry, shift=geometry.shift / ratio), (note,)


# ------------------------------------------------------------------------------------------------ RELION


def _relion(source: AlignmentSource, images: SessionImages, settings: ReadingSettings) -> ForeignAlignment:
    if images.size is None:
        raise FormatError(
            source.file,
            "RELION's centre depends on the images' size, which is not known yet: run `weft tilts stack`",
        )
    blocks = read_star(source.file)
    alone = source.member in blocks and is_aligned(blocks[source.member]) and "global" not in blocks
    if alone:
        # its columns are in Å: the pixel size only says where the centre of an odd number of pixels is
        general = {relion_tomo.PIXEL: images.pixel_size, relion_tomo.HAND: -1.0}
        series = RelionTiltSeries(source.member, general, blocks[source.member], source.file)
    else:
        series = relion_tomo.read_tilt_series(source.file, names=[source.member])[source.member]
        # which an alignment does not depend on
        series.general.setdefault(relion_tomo.HAND, -1.0)
    if not is_aligned(series.tilts):
        raise FormatError(series.path, "it is not aligned: it has neither rlnTomoYTilt nor rlnTomoProjX")
    theirs = series.pixel_size
    # two calibrations of one pixel have the same number of pixels
    ratio = theirs / images.pixel_size
    scale = 1.0 if abs(ratio - 1.0) <= _ONE_PIXEL else 1.0 / ratio
    size = tuple(round(n * scale) for n in images.size)
    geometry = relion_tomo.to_geometry(series, image_size=size, volume_size=(0.0, 0.0, 0.0))
    geometry, notes = _calibrated(geometry, theirs, images)
    tilts, n = series.tilts, len(series)
    stage = tilts.floats(_NOMINAL) if _NOMINAL in tilts else None
    labels = [label for label in (_MOVIE, _AVERAGE) if label in tilts]
    columns = [tilts.strings(label) for label in labels]
    views = []
    for i in range(n):
        texts = [column[i] for column in columns]
        numbers = [m[1] for text in texts if (m := re.match(r"(\d+)@", text))]
        views.append(
            View(
                float(geometry.angles[i]),
                None if stage is None else float(stage[i]),
                int(numbers[0]) - 1 if numbers else None,
                tuple(text for text in texts if "@" not in text and text not in ("None", "")),
            )
        )
    return ForeignAlignment(source, tuple(views), None, geometry, notes)

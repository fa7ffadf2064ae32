"""Reading one file that describes tilt series: an mdoc, a stack with angles, a .tomostar, RELION's table."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from weft.errors import CorruptError, FormatError, TruncatedError, WeftError
from weft.formats.mdoc import Mdoc, is_override, parse_mdoc, read_mdoc
from weft.formats.mrc import read_header
from weft.formats.star import Table, read_star
from weft.formats.tomostar import read_tomostar
from weft.session.series_description import (
    STACK_SUFFIXES,
    DescribedTilt,
    SeriesDescription,
    angle_sources,
    series_stem,
)

if TYPE_CHECKING:
    from weft.formats.relion_tomo import RelionTiltSeries

__all__ = ["is_relion_series", "mdoc_kind", "read_origin", "read_stack"]

_NAME, _FILE = "rlnTomoName", "rlnTomoTiltSeriesStarFile"
_MOVIE, _AVERAGE = "rlnMicrographMovieName", "rlnMicrographName"
_ANGLE, _AXIS = "rlnTomoNominalStageTiltAngle", "rlnTomoNominalTiltAxisAngle"
_DOSE, _RAW_PIXEL = "rlnMicrographPreExposure", "rlnMicrographOriginalPixelSize"
MdocKind = Literal["series", "movie", "montage", "nothing", "unreadable"]

_CUT = "its section of the mdoc is cut short"


def read_origin(path: Path) -> tuple[list[SeriesDescription], list[str]]:
    """The series that a file describes, and a sentence for each that it names but that cannot be read.

    Raises
    ------
    WeftError, OSError
        Nothing in it can be used.
    """
    suffix = path.suffix.lower()
    if suffix == ".mdoc":
        stat = path.stat()
        return [_read_mdoc_series(path, stat.st_size, stat.st_mtime_ns)], []
    if suffix == ".tomostar":
        return [_read_tomostar_series(path)], []
    if suffix == ".star":
        return _read_relion(path)
    if suffix in STACK_SUFFIXES:
        return [read_stack(path)], []
    raise FormatError(
        path, f"a file ending in {suffix or 'nothing'} describes no tilt series: give an mdoc or a stack"
    )


# ------------------------------------------------------------------------------------------------- mdoc


def mdoc_kind(path: Path) -> MdocKind:
    """What an mdoc is about, by its content: a tilt series, one movie, a montage, nothing."""
    try:
        stat = path.stat()
        return _mdoc_kind(path, stat.st_size, stat.st_mtime_ns)
    except (WeftError, OSError):
        return "unreadable"


@lru_cache(maxsize=65536)  # live, the same thousands of files are looked at every two seconds
def _mdoc_kind(path: Path, size: int, mtime_ns: int) -> MdocKind:
    return _kind(_read_as_far_as_whole(path)[0])


def _kind(mdoc: Mdoc) -> MdocKind:
    kinds = [section.kind for section in mdoc.sections]
    if "FrameSet" in kinds:
        return "movie"
    images = [section for section in mdoc.sections if section.kind == "ZValue"]
    if not images:
        return "nothing"
    if "MontSection" in kinds or mdoc.header("Montage") == "1" or "PieceCoordinates" in images[0]:
        return "montage"
    if len(images) == 1:
        inner = mdoc.path.name[: -len(".mdoc")].lower()
        movie = mdoc.tilts[0].sub_frame_name or ""
        if inner == movie.lower() or inner.endswith((".tif", ".tiff", ".eer")):
            return "movie"
    return "series"


def _read_as_far_as_whole(path: Path) -> tuple[Mdoc, str]:
    """An mdoc, without its last line where that was cut, and then a note."""
    try:
        return read_mdoc(path), ""
    except TruncatedError:
        data = path.read_bytes()
        whole = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        if b"=" not in whole:
            raise
    note = "the mdoc stops in the middle of a line: tilts may be missing at its end"
    try:
        return parse_mdoc(whole.decode("utf-8"), path, "utf-8"), note
    except UnicodeDecodeError:
        return parse_mdoc(whole.decode("latin-1"), path, "latin-1"), note


@lru_cache(maxsize=4096)
def _read_mdoc_series(path: Path, size: int, mtime_ns: int) -> SeriesDescription:
    mdoc, cut = _read_as_far_as_whole(path)
    kind = _kind(mdoc)
    if kind != "series":
        what = {"movie": "of single movies", "montage": "of a montage"}.get(kind, "without any image")
        raise FormatError(path, f"an mdoc {what}, not of a tilt series: give the series' own mdoc")
    notes = [cut] if cut else []
    if is_override(path):
        plain = [p for p in path.parent.glob("*.mdoc") if p != path and series_stem(p) == series_stem(path)]
        notes += [f"{path.name} is used in place of {plain[0].name}"] if plain else []
    trouble, note = _without_cut_end(mdoc, bool(cut))
    described = [
        DescribedTilt(
            tilt.tilt_angle,
            tilt.sub_frame_path or "",
            tilt.z_value,
            exposure=tilt.exposure_dose,
            prior_dose=tilt.prior_dose,
            date=tilt.date,
        )
        for tilt in mdoc.tilts
    ]
    described[-1] = replace(described[-1], trouble=trouble)
    axis, doubts = _axis(mdoc)
    notes += [n for n in (note, *doubts) if n]
    return SeriesDescription(
        series_stem(path), path, "mdoc", tuple(described), axis, mdoc.pixel_size, "", tuple(notes)
    )


def _without_cut_end(mdoc: Mdoc, cut: bool) -> tuple[str, str]:
    """Take off a last line that is not whole; what is wrong with the last tilt then, and a note.

    Many whole files do not end with a line's end: one is cut short if its last section lacks what all others
    have.
    """
    images = [section for section in mdoc.sections if section.kind == "ZValue"]
    last = mdoc.sections[-1]
    if len(images) < 2 or last is not images[-1]:
        return "", ""
    common = set.intersection(*({key for key, _ in section.items()} for section in images[:-1]))
    whole = not cut and (last.lines or [last.header])[-1].endswith(("\n", "\r"))
    if whole or all(key in last for key in common):
        return "", ""
    if last.lines and not cut:
        last.lines.pop()
    lacking = sorted(key for key in common if key not in last)
    trouble = _CUT if {"TiltAngle", "SubFramePath"}.intersection(lacking) else ""
    return (
        trouble,
        "" if cut else f"the mdoc seems to be cut short: its last tilt lacks {', '.join(lacking[:3])}",
    )


def _axis(mdoc: Mdoc) -> tuple[float | None, list[str]]:
    """The tilt axis in degrees, and what is doubtful about it."""
    maker = " ".join(mdoc.titles)
    try:
        axis = mdoc.tilt_axis
        if axis is not None and "Tomography:" in maker:
            return axis, [f"Tomography 5 states the tilt axis as {axis:g}°, which is often not SerialEM's"]
        if axis is None and "SerialEM" in maker:
            axis = mdoc.tilt_axis_from_rotation
            return axis, [] if axis is None else [
                f"tilt axis {axis:g}° from RotationAngle: no title states it"
            ]
    except CorruptError as error:
        return None, [f"its tilt axis is not known: {error.message}"]
    return axis, []


# ------------------------------------------------------------------------------------------------ stacks


def read_stack(path: Path) -> SeriesDescription:
    """A ready stack, with angles from the first file beside it that has one for each section.

    Raises
    ------
    FormatError
        There are no angles, or another number of them and nothing says which section is which.
    """
    from weft.formats.imod import read_tlt  # it takes torch along, which most imports can do without

    info = read_header(path)
    n, tried = info.shape[0], []
    partial: SeriesDescription | None = None
    for source in angle_sources(path):
        if source.suffix.lower() != ".mdoc":
            angles = read_tlt(source)
            if len(angles) == n:
                tilts = tuple(DescribedTilt(float(a), "", i, i) for i, a in enumerate(angles))
                series = SeriesDescription(
                    series_stem(path), path, "stack", tilts, notes=(f"angles from {source.name}",)
                )
                break
            tried.append(f"{len(angles)} angles in {source.name}")
        elif mdoc_kind(source) == "series":
            stat = source.stat()
            found = _read_mdoc_series(source, stat.st_size, stat.st_mtime_ns)
            numbers = {tilt.section for tilt in found.tilts}
            series = _sections_of(found, path, n)
            if numbers == set(range(n)):
                break
            tried.append(f"{len(numbers)} sections in {source.name}")
            partial = partial or series
    else:
        if partial is None:
            beside = ", ".join(tried) if tried else "no .rawtlt, .tlt or mdoc of its name beside it"
            raise FormatError(path, f"{n} sections, but {beside}: which angle each has is not known")
        series = replace(
            partial, notes=(*partial.notes, f"{n} sections in the stack, but {', '.join(tried)}")
        )
    if path.suffix.lower() == ".ali":
        notes = (*series.notes, "an aligned stack is resampled and rotated: better give the raw one")
        series = replace(series, tilt_axis=0.0, notes=notes)
    size = info.pixel_size or series.pixel_size
    return replace(series, stack=str(path.absolute()), pixel_size=size)


def _sections_of(found: SeriesDescription, stack: Path, n: int) -> SeriesDescription:
    """An mdoc's tilts as sections of its stack; a section written twice holds what came last."""
    last = {tilt.section: i for i, tilt in enumerate(found.tilts)}
    tilts = []
    for i, tilt in enumerate(found.tilts):
        trouble = tilt.trouble
        if not 0 <= tilt.section < n:
            trouble = f"the stack has only {n} sections"
        elif last[tilt.section] != i:
            trouble = "its section of the stack was written again later"
        tilts.append(replace(tilt, movie="", image=-1 if trouble else tilt.section, trouble=trouble))
    unknown = sorted(set(range(n)).difference(last))
    tilts += [DescribedTilt(None, "", i, i, trouble="the mdoc has no angle for it") for i in unknown]
    return replace(found, origin=stack, form="stack", tilts=tuple(tilts))


# ------------------------------------------------------------------------------------- Warp's and RELION's


def _read_tomostar_series(path: Path) -> SeriesDescription:
    table = read_tomostar(path)
    rows = zip(table.movies, table.angles.tolist(), table.dose.tolist(), strict=True)
    tilts = [DescribedTilt(angle, movie, i, prior_dose=dose) for i, (movie, angle, dose) in enumerate(rows)]
    return SeriesDescription(
        series_stem(path),
        path,
        "tomostar",
        tuple(tilts),
        None if table.axis is None else float(np.mean(table.axis)),
        notes=("angles as in the .tomostar: Warp changes the stage's sign unless told not to",),
    )


def is_relion_series(path: Path) -> bool:
    """Whether a STAR file is RELION 5's table of tilt series, or of the tilts of one."""
    try:
        blocks = read_star(path)
    except (WeftError, OSError, ValueError):
        return False
    table = blocks.get("global") or blocks.get("")
    if table is not None and _NAME in table and _FILE in table:
        return True
    return any(_is_one_series(block) for block in blocks.values())


def _is_one_series(block: Table) -> bool:
    return _ANGLE in block and (_MOVIE in block or _AVERAGE in block)


def _read_relion(path: Path) -> tuple[list[SeriesDescription], list[str]]:
    from weft.formats.relion_tomo import RelionTiltSeries, read_tilt_series

    blocks = read_star(path)
    table = blocks.get("global") or blocks.get("")
    if table is None or _NAME not in table:
        single = {name: block for name, block in blocks.items() if _is_one_series(block)}
        if not single:
            raise FormatError(path, f"neither a table of tilt series (_{_NAME}) nor one of tilts (_{_ANGLE})")
        return [
            _relion_series(RelionTiltSeries(name or series_stem(path), {}, block, path), path)
            for name, block in single.items()
        ], []
    out, problems = [], []
    for name in dict.fromkeys(table.strings(_NAME)):
        try:
            # one by one, so that a missing file costs its own series only
            out.append(_relion_series(read_tilt_series(path, names=[name])[name], path))
        except WeftError as error:
            problems.append(f"the series {name}: {error}")
    return out, problems


def _relion_series(series: RelionTiltSeries, path: Path) -> SeriesDescription:
    table = series.tilts
    label = _MOVIE if _MOVIE in table else _AVERAGE
    if label not in table:
        raise FormatError(series.path, f"it has no column _{_MOVIE}")
    if _ANGLE not in table:
        raise FormatError(series.path, f"it has no column _{_ANGLE}")

    def numbers(name: str) -> list[float | None]:
        if name not in table:
            return [None] * len(table)
        return [v if np.isfinite(v) else None for v in table.floats(name).tolist()]

    try:
        angles, doses, axes = numbers(_ANGLE), numbers(_DOSE), numbers(_AXIS)
        pixel = float(series.general[_RAW_PIXEL]) if _RAW_PIXEL in series.general else None
    except ValueError as error:
        raise CorruptError(series.path, str(error)) from error
    known = [axis for axis in axes if axis is not None]
    tilts = [
        DescribedTilt(angle, movie, i, prior_dose=dose)
        for i, (movie, angle, dose) in enumerate(zip(table.strings(label), angles, doses, strict=True))
    ]
    axis = float(np.mean(known)) if known else None
    return SeriesDescription(series.name, path, "relion", tuple(tilts), axis, pixel)

"""``weft export warp``: a session as a project that WarpTools and M go on with.

::

    OUTPUT/
      warp_frameseries.settings   warp_tiltseries.settings
      frames/                     links to the movies
      warp_frameseries/           NAME.xml, average/ (even/, odd/)
      tomostar/                   TS.tomostar
      warp_tiltseries/            TS.xml, tiltstack/TS/, reconstruction/ (even/, odd/)

Images are links to those of the session unless they are to be copied. Our coordinates are Warp's:
the angles stand in Warp's files as in ours, unless the specimen is to be mirrored.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import RequestError
from weft.formats import mrc, warp_geometry
from weft.formats.tomostar import Tomostar, write_tomostar
from weft.formats.warp_movie import write_warp_movie
from weft.formats.warp_settings import WarpSettings, write_warp_settings
from weft.formats.warp_xml import WarpGrid, WarpTiltSeries, write_warp_xml
from weft.session.alignment_reading import mirrored
from weft.session.items import Movie
from weft.session.tomogram_export import AlignedSeries, SeriesExport, aligned_series
from weft.session.warp_movies import warp_movie

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["WarpProjectExport", "export_warp"]

_FRAMES, _SERIES, _TOMOSTAR = "warp_frameseries", "warp_tiltseries", "tomostar"
#: Outputs of the steps, and where Warp looks for them: {0} is the item, {1} the file's own name.
_MOVIE_FILES = {
    "average": f"{_FRAMES}/average/{{0}}.mrc",
    "even": f"{_FRAMES}/average/even/{{0}}.mrc",
    "odd": f"{_FRAMES}/average/odd/{{0}}.mrc",
}
_STACK = f"{_SERIES}/tiltstack/{{0}}/{{1}}"
_SERIES_FILES = {
    **dict.fromkeys(("stack", "angles", "xf", "tlt", "aln", "fid"), _STACK),
    "tomogram": f"{_SERIES}/reconstruction/{{1}}",
    "tomogram_deconvolved": f"{_SERIES}/reconstruction/deconv/{{1}}",
    "tomogram_even": f"{_SERIES}/reconstruction/even/{{1}}",
    "tomogram_odd": f"{_SERIES}/reconstruction/odd/{{1}}",
}


@dataclass(frozen=True)
class WarpProjectExport(SeriesExport):
    """What was written; see :class:`SeriesExport`.

    Attributes
    ----------
    movies : int
        XML files of movies.
    """

    movies: int = field(default=0)


def export_warp(
    session: Session,
    output: str | Path,
    *,
    only: str | None = None,
    copy: bool = False,
    invert_angles: bool = False,
) -> WarpProjectExport:
    """Write a session as a project of WarpTools.

    Parameters
    ----------
    session : Session
    output : path-like
        A folder; made where it is missing.
    only : str, optional
        Series by a shell pattern on their names; of the movies, those of these series.
    copy : bool
        Copy images instead of linking them.
    invert_angles : bool
        Of the specimen's mirror image, as on import of alignments.

    Raises
    ------
    RequestError
        The output is inside the session; there is nothing to be written.
    """
    out = Path(output).absolute()
    if out.resolve().is_relative_to(session.root.resolve()):
        raise RequestError(f"{out} is inside the session; give another folder.")
    result = SeriesExport()
    ready = aligned_series(session, only, result) if session.settings.input.of_tilts else []
    writer = _Writer(session, out, copy)
    left_out = _left_out(session)
    chosen = {tilt["item"] for item in ready for tilt in item.tilts if tilt["item"]}
    for movie in session:
        wanted = movie.name in chosen or (
            not session.settings.input.of_tilts and fnmatchcase(movie.name, only or "*")
        )
        if isinstance(movie, Movie) and wanted:
            writer.movie(movie, excluded=movie.name in left_out)
    pixel_sizes = {round(item.pixel_size, 4) for item in ready}
    if len(pixel_sizes) > 1:
        raise RequestError(
            f"series have pixels of {', '.join(f'{p:g}' for p in sorted(pixel_sizes))} Å, a project of Warp "
            "one size: choose with --only."
        )
    for item in ready:
        turned = replace(item, geometry=mirrored(item.geometry)) if invert_angles else item
        result.written[item.name] = writer.series(turned)
        if not item.has_ctf:
            result.notes.append(f"{item.name}: without its CTF, which is not known yet")
    if not writer.movies and not ready:
        if not result.problems:
            raise RequestError(f"{session.root} has nothing that Warp could go on with; `weft run` it first.")
        return WarpProjectExport(result.written, result.problems, result.notes)
    writer.settings(ready)
    notes = [*result.notes, *writer.notes]
    return WarpProjectExport(result.written, result.problems, notes, writer.movies)


def _left_out(session: Session) -> set[str]:
    """Movies that `weft select` leaves out."""
    found = {movie.name: movie.metrics for movie in session if isinstance(movie, Movie)}
    verdicts = session.selection.judge(found)
    return {name for name in found if not verdicts[name].selected}


class _Writer:
    """Writes into one project.

    Attributes
    ----------
    movies : int
        How many have been written.
    notes : list of str
    """

    def __init__(self, session: Session, out: Path, copy: bool) -> None:
        self.session, self.out, self._copy = session, out, copy
        self.movies = 0
        self.notes: list[str] = []
        self._suffixes: Counter[str] = Counter()

    def _place(self, source: Path, relative: str, copy: bool | None = None) -> None:
        """A link to a file, or a copy of it, in the project."""
        target = self.out / relative
        if not source.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if self._copy if copy is None else copy:
            shutil.copy2(source, target)
        else:
            target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))

    def movie(self, movie: Movie, *, excluded: bool = False) -> None:
        """One movie that has been aligned; `excluded` is what `weft select` says."""
        record = movie.record
        done = record.steps.get("motion") if record else None
        if record is None or done is None or done.status != "done":
            return
        # movies stay where they are, whatever becomes of the averages
        self._place(movie.source, f"frames/{movie.name}{movie.source.suffix}", copy=False)
        self._suffixes[movie.source.suffix] += 1
        for name, relative in _MOVIE_FILES.items():
            if name in record.outputs:
                self._place(self.session.root / record.outputs[name], relative.format(movie.name))
        path = self.out / _FRAMES / f"{movie.name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        described = warp_movie(movie, record, str(self.out / "frames"))
        if excluded:
            described.attributes["UnselectManual"] = "True"
        write_warp_movie(path, described, sync=False)
        self.movies += 1

    # -------------------------------------------------------------------------------------- tilt series

    def series(self, item: AlignedSeries) -> Path:
        """One aligned series."""
        names = self._movie_names(item)
        series = self._describe(item, names)
        for folder in (_SERIES, _TOMOSTAR):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        path = self.out / _SERIES / f"{item.name}.xml"
        write_warp_xml(path, series, sync=False)
        counts = np.array([float(tilt.get("counts", math.nan)) for tilt in item.tilts])
        table = Tomostar(
            names,
            series.angles,
            item.doses,
            series.axis,
            average_intensity=counts if np.isfinite(counts).all() else None,
        )
        write_tomostar(self.out / _TOMOSTAR / f"{item.name}.tomostar", table, sync=False)
        outputs = item.record.outputs
        for name, relative in _SERIES_FILES.items():
            if name in outputs:
                source = self.session.root / outputs[name]
                self._place(source, relative.format(item.name, source.name))
        return path

    def _movie_names(self, item: AlignedSeries) -> list[str]:
        """The tilts' movies as Warp names them: beside their averages."""
        movies = self.session.items
        out = []
        for position, tilt in enumerate(item.tilts):
            if tilt["item"]:
                out.append(f"../{_FRAMES}/{tilt['item']}{movies[tilt['item']].source.suffix}")
            else:
                name = f"{item.name}_{position:03d}"
                self._section(item, position, self.out / _MOVIE_FILES["average"].format(name))
                out.append(f"../{_FRAMES}/{name}.mrc")
        return out

    def _section(self, item: AlignedSeries, position: int, path: Path) -> None:
        """An image of a series that came as a stack: Warp wants one file for each."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with mrc.MrcStack(self.session.root / item.record.outputs["stack"]) as stack:
            mrc.write(path, np.asarray(stack.read(position), np.float32), item.pixel_size, sync=False)

    def _describe(self, item: AlignedSeries, names: list[str]) -> WarpTiltSeries:
        optics = self.session.settings.input
        physics = {
            "PixelSize": repr(item.pixel_size),
            "Voltage": repr(optics.voltage),
            "Cs": repr(optics.cs),
            "Amplitude": repr(optics.amplitude),
        }
        series = warp_geometry.from_geometry(item.geometry, names, item.doses, physics)
        series.attributes["DataDirectory"] = str(self.out / _TOMOSTAR)
        if not item.has_ctf:
            series.grids.pop("GridCTF")
            series.ctf.pop("Defocus")
            return series
        ctf, n = item.series.ctf, len(series)
        # µm, degrees and π, as Warp has them
        for grid, name, values in (
            ("GridCTFDefocusDelta", "DefocusDelta", 1e-4 * ctf.delta),
            ("GridCTFDefocusAngle", "DefocusAngle", ctf.angle),
            ("GridCTFPhase", "PhaseShift", ctf.phase / 180.0),
        ):
            series.grids[grid] = WarpGrid(np.asarray(values, np.float64).reshape(n, 1, 1))
            series.ctf[name] = repr(float(np.mean(values)))
        series.attributes["CTFResolutionEstimate"] = f"{ctf.series_resolution:.3f}"
        return series

    # ---------------------------------------------------------------------------------------- settings

    def settings(self, ready: list[AlignedSeries]) -> None:
        """Both files of settings, as far as there is something that they tell of."""
        given = self.session.settings.input
        if self.movies:
            suffix = self._suffixes.most_common(1)[0][0]
            if len(self._suffixes) > 1:
                self.notes.append(f"movies are of several kinds; the settings name those in *{suffix}")
            exposure = given.dose_per_frame
            write_warp_settings(
                self.out / f"{_FRAMES}.settings",
                self._settings(
                    "frames", _FRAMES, f"*{suffix}", exposure, given.pixel_size, self._bin_times()
                ),
            )
        if ready:
            pixel, times = given.pixel_size, self._bin_times()
            if abs(pixel * 2.0**times / ready[0].pixel_size - 1.0) > 0.01:
                pixel, times = ready[0].pixel_size, 0.0
            exposures = [float(tilt["exposure"]) for item in ready for tilt in item.tilts]
            settings = self._settings(
                _TOMOSTAR, _SERIES, "*.tomostar", -float(np.median(exposures)), pixel, times
            )
            sizes = np.array([item.geometry.volume_size.tolist() for item in ready])
            if np.ptp(sizes, axis=0).max() > 0.5 * pixel:
                self.notes.append(
                    "volumes differ in size, Warp has one for all: the largest; places from the centre stay"
                )
            voxels = (2 * np.ceil(sizes.max(axis=0) / pixel / 2.0 - 1e-6)).astype(int)
            settings.sections["Tomo"] = {
                f"Dimensions{axis}": str(n) for axis, n in zip("XYZ", voxels, strict=True)
            }
            write_warp_settings(self.out / f"{_SERIES}.settings", settings)

    def _bin_times(self) -> float:
        """Warp counts halvings."""
        return math.log2(float(self.session.settings.plain()["average"]["bin"]))

    def _settings(
        self, data: str, processing: str, extension: str, exposure: float, pixel_size: float, times: float
    ) -> WarpSettings:
        given = self.session.settings.input
        # a number of frames in a group is positive, a number of groups negative
        groups = -given.eer_groups if given.eer_frames is None else given.eer_frames
        if given.gain and given.gain_transpose and (given.gain_flip_x or given.gain_flip_y):
            self.notes.append("the gain is transposed and flipped: check the order with Warp's")
        if given.gain_invert and "the gain" not in "".join(self.notes):
            self.notes.append("the gain is one to divide by, which Warp has no setting for")
        importing: Mapping[str, Any] = {
            "DataFolder": data,
            "ProcessingFolder": processing,
            "DoRecursiveSearch": False,
            "Extension": extension,
            "PixelSize": pixel_size,
            "BinTimes": times,
            "GainPath": given.gain or "",
            "DefectsPath": given.defects or "",
            "GainFlipX": given.gain_flip_x,
            "GainFlipY": given.gain_flip_y,
            "GainTranspose": given.gain_transpose,
            "CorrectGain": bool(given.gain),
            "CorrectDefects": bool(given.defects),
            "DosePerAngstromFrame": exposure,
            "EERGroupFrames": groups,
        }
        return WarpSettings(
            {
                "": {"ProcessCTF": "True", "ProcessMovement": "True", "ProcessPicking": "False"},
                "Import": {name: _text(value) for name, value in importing.items()},
                "CTF": {
                    "Voltage": _text(given.voltage),
                    "Cs": _text(given.cs),
                    "Amplitude": _text(given.amplitude),
                },
            }
        )


def _text(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)

"""``weft import warp``: a project of WarpTools as a session, or into one that is there.

What is taken: movies (or Warp's averages, where the movies are gone), tilt series, the microscope and the
dose, Warp's alignment with the tilts that it does not use, and the hand. The CTF is fitted anew, within the
range of defocus that Warp has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import FormatError, RequestError, WeftError
from weft.formats import mrc
from weft.formats.tomostar import read_tomostar
from weft.formats.warp_settings import WarpSettings, read_warp_settings
from weft.formats.warp_xml import WarpTiltSeries, read_warp_xml
from weft.movies.source import SourceSettings, open_movie
from weft.session import config
from weft.session.alignment_import import AlignmentImportSettings, AlignmentReport, import_alignments
from weft.session.session import Session
from weft.session.session import new as new_session
from weft.session.session import open as open_session

__all__ = ["WarpImport", "WarpProject", "find_project", "import_warp"]

#: Two values of the microscope that differ by less than this fraction are one.
_SAME = 0.01
#: How far from Warp's defoci Weft looks for its own, µm.
_AROUND = 0.5


@dataclass(frozen=True)
class WarpProject:
    """A project, found.

    Attributes
    ----------
    series : WarpSettings
        Of its tilt series.
    frames : WarpSettings or None
        Of its movies.
    processing, data : Path
        Folders of the tilt series' XML files, and of their ``.tomostar``.
    described : dict of str to WarpTiltSeries
        By name.
    problems : list of str
        XML files that cannot be read.
    """

    series: WarpSettings
    frames: WarpSettings | None
    processing: Path
    data: Path
    described: dict[str, WarpTiltSeries]
    problems: list[str] = field(default_factory=list)

    def physics(self) -> dict[str, float]:
        """Voltage (kV), Cs (mm), amplitude contrast and the unbinned pixel size (Å), as far as known.

        What the series were processed with counts more than what the settings say now.
        """
        out: dict[str, float] = {}
        first = next((s for s in self.described.values() if s.ctf), None)
        for name in ("Voltage", "Cs", "Amplitude"):
            value = self.series.number("CTF", name)
            if first is not None and first.ctf.get(name):
                value = float(first.ctf[name])
            if value is not None:
                out[name.lower()] = value
        pixel = self.series.number("Import", "PixelSize")
        if pixel is not None:
            out["pixel_size"] = pixel
        return out

    @property
    def binning(self) -> float:
        """By how much averages are smaller than the frames."""
        settings = self.frames or self.series
        return float(2.0 ** (settings.number("Import", "BinTimes") or 0.0))


@dataclass(frozen=True)
class WarpImport:
    """What an import came to.

    Attributes
    ----------
    created : bool
        Whether the session was made.
    alignments : AlignmentReport
    notes, problems : list of str
        A sentence each.
    """

    created: bool
    alignments: AlignmentReport
    notes: list[str]
    problems: list[str]

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or self.alignments.exit_code else 0

    def describe(self) -> str:
        """For people."""
        return "\n".join([self.alignments.describe(), *self.notes, *self.problems])


def find_project(path: str | Path) -> WarpProject:
    """The project that a ``.settings`` file, or the folder with it, belongs to.

    Raises
    ------
    RequestError
        There is none, or more than one.
    InputFileError
        The file cannot be read.
    """
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise RequestError(f"there is no {path}.")
    files = [path] if path.is_file() else sorted(path.glob("*.settings"))
    beside = sorted(path.parent.glob("*.settings")) if path.is_file() else files
    found = {file: read_warp_settings(file) for file in dict.fromkeys([*files, *beside])}
    series = [settings for file, settings in found.items() if settings.is_tilt_series and file in files]
    if len(series) != 1:
        what = "more than one" if series else "none"
        raise RequestError(
            f"{path} should be or hold a .settings file of tilt series (extension *.tomostar): there is "
            f"{what}."
        )
    frames = [settings for settings in found.values() if not settings.is_tilt_series]
    settings = series[0]
    data, processing = settings.folder("DataFolder"), settings.folder("ProcessingFolder")
    if data is None:
        raise FormatError(settings.path, "it does not name the folder of its data (DataFolder)")
    described: dict[str, WarpTiltSeries] = {}
    problems = []
    for file in sorted((processing or data).glob("*.xml")):
        try:
            described[file.stem] = read_warp_xml(file)
        except (WeftError, OSError) as error:
            problems.append(str(error))
    alone = frames[0] if len(frames) == 1 else None
    return WarpProject(settings, alone, processing or data, data, described, problems)


def import_warp(root: str | Path, project: str | Path, only: str | None = None) -> WarpImport:
    """Take a project of WarpTools into a session; make the session where there is none.

    Parameters
    ----------
    root : path-like
        Of the session.
    project : path-like
        Its ``warp_tiltseries.settings``, or the folder with it.
    only : str, optional
        Series by a shell pattern on their names.

    Raises
    ------
    RequestError
        No such project; a session whose microscope or pixel size is another.
    """
    found = find_project(project)
    notes: list[str] = []
    created = not (Path(root) / config.FILE_NAME).exists()
    if created:
        session = _new(Path(root), found, notes)
    else:
        session = open_session(root)
        _compare(session, found)
    wanted = {name: s for name, s in found.described.items() if only is None or fnmatchcase(name, only)}
    if not wanted:
        raise RequestError(
            f"{found.processing} has no XML file of a tilt series" + (f" like {only}." if only else ".")
        )
    # tilts that Warp does not use have no alignment there
    settings = AlignmentImportSettings(program="warp", leave_out=True)
    paths = [found.processing / f"{name}.xml" for name in wanted]
    report = import_alignments(session, paths, settings, only)
    taken = [wanted[series.file.stem] for series in report.imported]
    problems = [*found.problems, *_take_ctf(session, taken, notes)]
    return WarpImport(created, report, notes, problems)


# ------------------------------------------------------------------------------------------- the session


def _new(root: Path, found: WarpProject, notes: list[str]) -> Session:
    """A session of the project's movies and series."""
    physics = found.physics()
    missing = [name for name in ("pixel_size", "voltage", "cs", "amplitude") if name not in physics]
    if missing:
        raise RequestError(
            f"{found.series.path} does not say the {', '.join(missing)}: make the session with `weft new`, "
            "then import into it."
        )
    tomostars = sorted(found.data.glob("*.tomostar"))
    if not tomostars:
        raise RequestError(f"{found.data} has no .tomostar file.")
    given: dict[str, Any] = {**physics, "mdoc": [found.data]}
    movies = _raw_movies(found)
    if movies:
        folder = found.frames.folder("DataFolder") if found.frames is not None else None
        assert folder is not None
        assert found.frames is not None
        given["frames"] = [folder / found.frames.text("Import", "Extension")]
        given["recursive"] = found.frames.is_on("Import", "DoRecursiveSearch")
        given |= _reading(found.frames, folder, notes)
        if found.binning != 1.0:
            given["average"] = {"bin": found.binning}
        options = SourceSettings(**{k: v for k, v in given.items() if k in SourceSettings.model_fields})
        given["dose_per_frame"] = _dose_per_frame(found, movies[0], options)
    else:
        averages = _averages(tomostars)
        if not averages:
            raise RequestError(
                f"neither the movies nor the averages of {tomostars[0]} are there: move them back, or make "
                "the session with `weft new`."
            )
        given["frames"] = sorted({path.parent / "*.mrc" for path in averages})
        given["dose_per_frame"] = _tilt_exposure(found)
        given["pixel_size"] = mrc.read_header(averages[0]).pixel_size or physics["pixel_size"] * found.binning
        given["motion"] = {"local": "off"}
        notes.append(
            "Warp's movies are not there: its averages are taken as movies of one frame, with the motion "
            "that it has found."
        )
    return new_session(root, **given)


def _raw_movies(found: WarpProject) -> list[Path]:
    if found.frames is None:
        return []
    folder, pattern = found.frames.folder("DataFolder"), found.frames.text("Import", "Extension")
    if folder is None or not folder.is_dir() or not pattern:
        return []
    look = folder.rglob if found.frames.is_on("Import", "DoRecursiveSearch") else folder.glob
    # links to movies that are gone are no movies
    return [path for path in sorted(look(pattern)) if path.is_file()]


def _averages(tomostars: Sequence[Path]) -> list[Path]:
    """Warp's averages of the tilts: in ``average`` beside what a .tomostar names."""
    out = []
    for file in tomostars:
        for movie in read_tomostar(file).movie_paths(file):
            average = (movie.parent / "average" / f"{movie.stem}.mrc").resolve()
            if average.is_file():
                out.append(average)
    return out


def _reading(settings: WarpSettings, folder: Path, notes: list[str]) -> dict[str, Any]:
    """How the movies are read."""
    out: dict[str, Any] = {}
    for key, name in (("gain", "GainPath"), ("defects", "DefectsPath")):
        text = settings.text("Import", name).replace("\\", "/")
        if not text:
            continue
        places = [folder / text, settings.path.parent / text]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            notes.append(f"the {key} file {text} is not there: set input.{key} before you run the session.")
        elif key == "defects" or settings.is_on("Import", "CorrectGain"):
            out[key] = there
    if "gain" in out:
        for key, name in (("flip_x", "FlipX"), ("flip_y", "FlipY"), ("transpose", "Transpose")):
            out[f"gain_{key}"] = settings.is_on("Import", f"Gain{name}")
        if out["gain_transpose"] and (out["gain_flip_x"] or out["gain_flip_y"]):
            notes.append("the gain is transposed and flipped: check that Weft does it in Warp's order.")
    groups = settings.number("Import", "EERGroupFrames")
    if groups and settings.text("Import", "Extension").lower().endswith(".eer"):
        out["eer_groups" if groups < 0 else "eer_frames"] = abs(round(groups))
    return out


def _tilt_exposure(found: WarpProject) -> float:
    """e/Å² of one tilt: as the settings say, else what lies between two tilts."""
    stated = found.series.exposure
    if stated is not None:
        return stated[0]
    for file in sorted(found.data.glob("*.tomostar")):
        steps = np.diff(np.unique(read_tomostar(file).dose))
        if len(steps):
            return float(np.median(steps))
    raise RequestError(f"{found.series.path} does not say the dose of a tilt (DosePerAngstromFrame).")


def _dose_per_frame(found: WarpProject, movie: Path, options: SourceSettings) -> float:
    stated = found.frames.exposure if found.frames is not None else None
    if stated is not None and stated[1]:
        return stated[0]
    with open_movie(movie, options) as source:
        frames = source.info.n_frames
    return (stated[0] if stated is not None else _tilt_exposure(found)) / frames


def _compare(session: Session, found: WarpProject) -> None:
    """Complain where a session's microscope is not the project's.

    Raises
    ------
    RequestError
    """
    given = session.settings.input
    units = {"pixel_size": " Å", "voltage": " kV", "cs": " mm", "amplitude": ""}
    wrong = []
    for name, value in found.physics().items():
        here = float(getattr(given, name))
        # a session of averages has their pixels
        choices = (value, value * found.binning) if name == "pixel_size" else (value,)
        if all(abs(here - choice) > _SAME * max(here, choice) for choice in choices):
            wrong.append(f"{name} is {value:g}{units[name]} there, {here:g}{units[name]} here")
    if wrong:
        raise RequestError(
            f"{found.series.path} is of another recording than {session.root}: {'; '.join(wrong)}. Correct "
            "what is wrong with `weft settings`."
        )


# --------------------------------------------------------------------------------------------- the CTF


def _take_ctf(session: Session, taken: Sequence[WarpTiltSeries], notes: list[str]) -> list[str]:
    """The hand and the range of defocus, into weft.toml where nobody has set them; what contradicts."""
    fitted = [series for series in taken if np.abs(series.defocus).max() > 0.0]
    if not fitted:
        if taken:
            notes.append("Warp has fitted no CTF: hand and defocus are left to Weft.")
        return []
    problems, changes = [], {}
    plain = session.settings.plain()
    hands = {series.hand for series in fitted}
    hand = "+1" if hands == {1.0} else "-1"
    here = plain["handedness"]["hand"]
    if len(hands) > 1:
        notes.append("series differ in their hand (AreAnglesInverted): it is left to Weft.")
    elif here == "auto":
        changes["handedness.hand"] = hand
    elif here != hand:
        problems.append(
            f"The hand is {hand} in Warp (AreAnglesInverted), handedness.hand is {here} here: left as it is."
        )
    defocus = np.concatenate([series.defocus[series.use_tilt] for series in fitted]) * 1e-4
    low, high = max(0.0, float(defocus.min()) - _AROUND), float(defocus.max()) + _AROUND
    section = config.sections()["tilt_ctf"].model_fields
    if all(
        plain["tilt_ctf"][f"defocus_{end}"] == section[f"defocus_{end}"].default for end in ("min", "max")
    ):
        changes["tilt_ctf.defocus_min"], changes["tilt_ctf.defocus_max"] = f"{low:.2f}", f"{high:.2f}"
    if changes:
        config.edit_file(session.root, changes)
        notes.append("Set: " + ", ".join(f"{key} = {value}" for key, value in changes.items()) + ".")
    return problems

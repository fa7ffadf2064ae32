"""``weft import picks``: take in particles that other programs have picked in the same micrographs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import RequestError, WeftError
from weft.formats.coordinate_star import NoCoordinatesError
from weft.formats.coordinates import SUFFIXES, CoordinateFile, Coordinates, read_coordinates
from weft.session.discovery import natural_key
from weft.session.items import Movie
from weft.session.micrograph_names import MicrographNames
from weft.session.pick_conversion import AverageFrame, PickImportSettings, convert, needs_a_flip_choice
from weft.session.pick_files import MANUAL, pick_path, write_picks
from weft.session.picking import DEFAULT

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["ImportedPicks", "PickImportReport", "PickImportSettings", "import_picks"]

_Sources = dict[str, list[tuple[Path, Coordinates]]]
_ROWS = 20  # of micrographs that are listed one by one
#: Picks that fill less of all micrographs, if there are so many, are likely in pixels of smaller ones.
_FILLED, _MANY = 0.6, 100


@dataclass(frozen=True)
class ImportedPicks:
    """Picks that were taken for one item.

    Attributes
    ----------
    item : str
    file : Path
    count, total : int
        Picks that were kept, of those in the file.
    skipped : dict of str to int
        Why the others were not.
    remark : str
        How the pixels were understood, where that needs to be known.
    """

    item: str
    file: Path
    count: int
    total: int
    skipped: dict[str, int] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class PickImportReport:
    """What an import came to.

    Attributes
    ----------
    name : str
        Of the picks in the session.
    imported : list of ImportedPicks
    problems : list of str
        Why something was not taken, a sentence each.
    unknown : list of str
        Micrographs that the session does not have.
    without : list of str
        Items that got none.
    notes : list of str
    passed_over : int
        Files of a folder that hold no coordinates.
    """

    name: str
    imported: list[ImportedPicks] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed_over: int = 0

    @property
    def count(self) -> int:
        """Picks that were taken."""
        return sum(picks.count for picks in self.imported)

    @property
    def skipped(self) -> dict[str, int]:
        """Why picks were left out → how many."""
        out: dict[str, int] = {}
        for picks in self.imported:
            for why, count in picks.skipped.items():
                out[why] = out.get(why, 0) + count
        return out

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or not self.imported else 0

    def describe(self) -> str:
        """For people."""
        lines = []
        if len(self.imported) <= _ROWS:
            lines += [f"{p.item}: {p.count}/{p.total} from {p.file.name}" for p in self.imported]
        lines += [f"{count} picks left out: {why}" for why, count in self.skipped.items()]
        lines += list(dict.fromkeys(p.remark for p in self.imported if p.remark))
        lines += self.notes
        lines += [f"Not taken: {problem}" for problem in self.problems]
        if self.passed_over:
            lines.append(f"{self.passed_over} files without coordinates passed over.")
        if self.unknown:
            lines.append(f"Of no movie of this session: {_some(self.unknown)}")
        if self.without:
            lines.append(f"Without imported picks: {_some(self.without)}")
        where = f"{self.count} picks of {len(self.imported)} micrographs"
        lines.append(f"{where}: picks/{self.name}" if self.imported else "No picks.")
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")


def import_picks(
    session: Session,
    paths: Sequence[str | Path],
    settings: PickImportSettings | None = None,
    *,
    name: str | None = None,
    only: str | None = None,
) -> PickImportReport:
    """Take picks made by another program into ``picks/<name>/``.

    Items whose micrographs the files name get new files; what other items have under this name stays.

    Parameters
    ----------
    session : Session
    paths : sequence of path-like
        Files, or folders with files of one kind.
    settings : PickImportSettings, optional
    name : str, optional
        What the picks are called in the session; by default the program's name.
    only : str, optional
        Items by a shell pattern on their names.

    Raises
    ------
    RequestError
        There are no such files, or a bad name.
    """
    settings = settings or PickImportSettings()
    if name is not None:
        _check_name(name)
    files, passed_over, problems = _read(paths)
    programs = list(dict.fromkeys(file.program for file in files))
    if name is None and len(programs) > 1:
        raise RequestError(f"the files are of {', '.join(programs)}: say with --name what to call the picks.")
    label = name or (programs[0] if programs else "imported")
    items = {
        item.name: item
        for item in session
        if isinstance(item, Movie) and (only is None or fnmatchcase(item.name, only))
    }
    if not items:
        raise RequestError(f"{session.root} has no movies" + (f" like {only}." if only else "."))
    found, unknown = _share_out(files, items, problems)
    if settings.flip_y is None:
        _ask_about_flips(found, items)
    imported, extents = [], []
    for item_name, sources in found.items():
        if len(sources) > 1:
            listed = ", ".join(dict.fromkeys(str(path) for path, _ in sources))
            problems.append(f"{item_name} has {len(sources)} lists of picks, in {listed}; give one of them.")
            continue
        path, coordinates = sources[0]
        try:
            frame = AverageFrame.of(items[item_name])
            picks, skipped, remark = convert(path, coordinates, frame, settings)
            write_picks(session.root / pick_path(label, item_name), picks, frame.pixel_size)
        except (WeftError, OSError) as error:
            problems.append(f"{item_name}: {error}")
            continue
        imported.append(ImportedPicks(item_name, path, len(picks), len(coordinates), skipped, remark))
        if len(picks):
            extents.append((picks.xy / frame.extent).max(0))
    notes = [_note(file) for file in files if file.missing]
    if extents and sum(p.count for p in imported) >= _MANY and np.max(extents) < _FILLED:
        filled = 100 * float(np.max(extents))
        notes.append(
            f"All picks lie within the first {filled:.0f} % of the images: if they are in pixels of smaller "
            "micrographs, import them again with --pixel-size."
        )
    done = {picks.item for picks in imported}
    missing = [item for item in items if item not in done]
    return PickImportReport(label, imported, problems, [] if only else unknown, missing, notes, passed_over)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise RequestError(f"--name {name!r}: use letters, digits and . _ + - only.")
    if name in (MANUAL, DEFAULT):
        raise RequestError(f"--name {name}: these are Weft's own picks; choose another name.")


def _note(file: CoordinateFile) -> str:
    return f"{file.path} names {len(file.missing)} files that are not there: {_some(file.missing)}"


def _read(paths: Sequence[str | Path]) -> tuple[list[CoordinateFile], int, list[str]]:
    """All files; how many of folders hold no coordinates; what cannot be read."""
    files: list[CoordinateFile] = []
    problems: list[str] = []
    passed_over = 0
    for given in map(Path, paths):
        if given.is_dir():
            inside = _of_folder(given)
        elif given.is_file():
            inside = [given]
        else:
            raise RequestError(f"there is no file or folder {given}.")
        for path in inside:
            try:
                files.append(read_coordinates(path))
            except NoCoordinatesError as error:
                # a RELION job's folder also has tables of other things
                if given.is_dir():
                    passed_over += 1
                else:
                    problems.append(str(error))
            except (WeftError, OSError) as error:
                problems.append(str(error))
    return files, passed_over, problems


def _ask_about_flips(found: _Sources, items: Mapping[str, Movie]) -> None:
    for name, sources in found.items():
        for path, coordinates in sources:
            if needs_a_flip_choice(path, coordinates, items[name]):
                raise RequestError(
                    f"{path} has particles picked in micrographs that cryoSPARC made itself, which are "
                    "upside down against Weft's if the movies are TIFF files: give --flip-y if so, else "
                    "--no-flip-y, and look at some of the picks."
                )


#: RELION's tables of a whole job.
_LISTS = ("autopick.star", "manualpick.star", "pick.star", "particles.star", "coordinates.star")


def _of_folder(folder: Path) -> list[Path]:
    for found in (folder.iterdir(), folder.rglob("*")):
        inside = [p for p in found if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
        kinds = sorted({p.suffix.lower() for p in inside})
        if len(kinds) > 1:
            raise RequestError(f"{folder} has files of several kinds ({', '.join(kinds)}): give one kind.")
        # a list of the others' files, or of all their particles
        inside = [p for p in inside if p.name in _LISTS] or inside
        if inside:
            return sorted(inside, key=lambda p: natural_key(str(p)))
    raise RequestError(f"{folder} has no files with coordinates ({', '.join(SUFFIXES)}).")


def _share_out(
    files: Sequence[CoordinateFile], items: Mapping[str, Movie], problems: list[str]
) -> tuple[_Sources, list[str]]:
    """Item → its lists; names that are of no item."""
    names = MicrographNames(items.values())
    found: _Sources = {}
    unknown = []
    for file in files:
        for coordinates in file.micrographs:
            called = coordinates.micrograph or str(file.path)
            meant = names.find(called)
            if len(meant) == 1:
                found.setdefault(meant[0], []).append((file.path, coordinates))
            elif meant:
                problems.append(f"{called} may be any of {_some(meant)}; use the names of the averages.")
            else:
                unknown.append(called)
    order = sorted(found, key=natural_key)
    return {name: found[name] for name in order}, list(dict.fromkeys(unknown))

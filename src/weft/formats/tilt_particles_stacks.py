"""Where the stacks of particles are, and whether they hold what a table says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.mrc import read_header

__all__ = ["StackFinder", "Stacks", "check_sections", "find_stacks"]

_SHOWN = 4  # of the folders that a message lists


class StackFinder:
    """Finds files that a STAR file names.

    They are looked for in `datadir` (with their folders, then with fewer and fewer of them), in the STAR
    file's folder and those above it, in the working directory, and last by their bare name beside the STAR
    file.
    """

    def __init__(self, star: Path, datadir: str | Path | None = None) -> None:
        self.star = star
        self.datadir = None if datadir is None else Path(datadir)
        folder = star.absolute().parent
        self.bases = list(dict.fromkeys([folder, *folder.parents, Path.cwd()]))
        self._known: dict[str, tuple[Path, int]] = {}

    def find(self, name: str) -> Path | None:
        """The file, or None."""
        folder, _, _ = name.rpartition("/")
        parts = Path(name).parts
        if folder in self._known:
            # files of one folder are all together
            base, skip = self._known[folder]
            path = base.joinpath(*parts[skip:])
            if path.is_file():
                return path
        for base, skip in self._places(parts):
            path = base.joinpath(*parts[skip:])
            if path.is_file():
                self._known[folder] = base, skip
                return path
        return None

    def base(self, name: str) -> Path | None:
        """The folder from which the name of a file counts, where that is one of the usual ones."""
        return next((base for base in self.bases if (base / name).is_file()), None)

    def looked(self) -> str:
        """Where, for messages."""
        given = [] if self.datadir is None else [self.datadir]
        folders = [str(folder) for folder in [*given, *self.bases]]
        return ", ".join(folders[:_SHOWN]) + (
            f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
        )

    def _places(self, parts: Sequence[str]) -> list[tuple[Path, int]]:
        """(folder, how many leading parts of the name to leave out), in order."""
        first = 1 if Path(parts[0]).is_absolute() else 0
        places = [] if self.datadir is None else [(self.datadir, skip) for skip in range(first, len(parts))]
        places += [(base, 0) for base in (self.bases if not first else [Path("/")])]
        return [*places, (self.star.absolute().parent, len(parts) - 1)]


@dataclass(frozen=True)
class Stacks:
    """Stacks that exist.

    Attributes
    ----------
    files : list of Path
    sections : (files) int64
        How many each holds.
    box : int
        Pixels of their square images.
    """

    files: list[Path]
    sections: NDArray[np.int64]
    box: int


def find_stacks(finder: StackFinder, names: Sequence[str]) -> Stacks:
    """Find all stacks and read their headers.

    Raises
    ------
    FormatError
        A stack is nowhere, has no square images, or another box than the first.
    TruncatedError
        One is shorter than its header says.
    """
    files: list[Path] = []
    missing: list[str] = []
    for name in names:
        path = finder.find(name)
        if path is None:
            missing.append(name)
        else:
            files.append(path)
    if missing:
        others = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise FormatError(
            finder.star,
            f"the stack {missing[0]} that it names is not there{others}; looked in {finder.looked()}. "
            "Say where the stacks are with --datadir",
        )
    sections = np.empty(len(files), np.int64)
    box = 0
    for i, path in enumerate(files):
        depth, height, width = read_header(path).shape
        if height != width:
            raise FormatError(path, f"its images have {width} × {height} pixels; they must be square")
        box = box or width
        if width != box:
            raise FormatError(
                path,
                f"its images have {width} × {width} pixels, those of {files[0]} {box} × {box}; "
                "all must agree",
            )
        sections[i] = depth
    return Stacks(files, sections, box)


def check_sections(
    star: Path, stacks: Stacks, file: NDArray[np.int64], section: NDArray[np.int64], row: NDArray[np.int64]
) -> None:
    """Complain about sections that stacks do not have.

    Parameters
    ----------
    star : Path
        The table, for messages.
    stacks : Stacks
    file, section, row : (m) int64
        Of each image: its stack, its section (from 0), its row in the table (from 0).
    """
    low = section < 0
    if low.any():
        i = int(low.argmax())
        raise CorruptError(star, f"row {row[i] + 1} names the section {section[i] + 1}; they count from 1")
    high = section >= stacks.sections[file]
    if high.any():
        i = int(high.argmax())
        needed, there = int(section[file == file[i]].max()) + 1, int(stacks.sections[file[i]])
        raise TruncatedError(
            stacks.files[file[i]],
            f"it has {there} images where {star.name} needs {needed} (row {row[i] + 1} names the "
            f"{section[i] + 1}th); copy or export it again",
        )

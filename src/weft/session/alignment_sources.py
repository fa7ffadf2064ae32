"""Alignments of tilt series in the files of other programs: which there are, and what is in them.

A file is told from others by what is in it and beside it, not by what it is called; its name says which
series it may belong to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from weft.errors import RequestError, WeftError
from weft.formats.imod import read_com
from weft.formats.relion_tomo import FILE, NAME
from weft.formats.star import Table, read_star
from weft.session.discovery import natural_key

__all__ = ["PROGRAMS", "AlignmentSource", "Program", "find_sources", "is_aligned"]

Program = Literal["imod", "aretomo", "dynamo", "relion", "warp"]
PROGRAMS: tuple[Program, ...] = get_args(Program)

#: What programs append to a series' name.
_TAILS = re.compile(r"(?:_(?:fid|st|ali|aligned|imod|aln|final)|\.(?:st|mrc|mrcs|ali|aln))+\Z", re.IGNORECASE)
_SUFFIXES = (".xf", ".aln", ".xml", ".star")
_ANGLES = (".tlt", ".rawtlt")
#: Of the tilts of one series: its alignment, in RELION 5's columns or RELION 4's.
_ALIGNED = ("rlnTomoYTilt", "rlnTomoProjX")


@dataclass(frozen=True)
class AlignmentSource:
    """An alignment of one series, as files.

    Attributes
    ----------
    program : Program
    file : Path
        The one that is named in messages.
    names : tuple of str
        What its series may be called, the likeliest first.
    angles : Path, optional
        IMOD's and Dynamo's solved angles.
    stage_angles : Path, optional
        A ``.rawtlt`` of the same name.
    command : Path, optional
        IMOD's ``tilt.com`` of this series.
    project : Path, optional
        eTomo's ``.edf`` of this series.
    member : str
        The series, in a RELION table of many.
    notes : tuple of str
        What was passed over.
    """

    program: Program
    file: Path
    names: tuple[str, ...]
    angles: Path | None = None
    stage_angles: Path | None = None
    command: Path | None = None
    project: Path | None = None
    member: str = ""
    notes: tuple[str, ...] = ()


def find_sources(
    paths: Sequence[str | Path], program: Program | None = None
) -> tuple[list[AlignmentSource], list[str]]:
    """The alignments that files, folders and glob patterns stand for.

    A folder stands for what lies in it; if no alignment does, for what lies in its own folders.

    Parameters
    ----------
    paths : sequence of path-like
    program : Program, optional
        Only this program's.

    Returns
    -------
    sources : list of AlignmentSource
    problems : list of str
        A sentence for each file that was given, or is called like an alignment, and is none.

    Raises
    ------
    RequestError
        A path that is not there.
    """
    files, given = _gather(paths)
    sources: list[AlignmentSource] = []
    problems: list[str] = []
    readers: dict[str, Callable[[Path, Sequence[Path]], list[AlignmentSource]]] = {
        ".xf": _transforms,
        ".aln": _aretomo,
        ".xml": _warp,
        ".star": _relion,
    }
    for file in files:
        if file.suffix.lower() not in readers:
            continue
        try:
            found = readers[file.suffix.lower()](file, files)
        except (WeftError, OSError) as error:
            problems.append(str(error))
            continue
        if not found and file in given:
            problems.append(f"{file} holds no alignment of a tilt series.")
        sources += found
    if program == "dynamo":
        # the files of dautoalign4warp are IMOD's: whoever calls them Dynamo's is believed
        sources = [replace(s, program="dynamo") if s.program == "imod" else s for s in sources]
    elif program == "imod":
        sources = [replace(s, program="imod") if s.program == "dynamo" else s for s in sources]
    return [s for s in sources if program in (None, s.program)], problems


def _gather(paths: Sequence[str | Path]) -> tuple[list[Path], set[Path]]:
    """All files that could matter, and those of them that were named themselves."""
    files: dict[Path, None] = {}
    given: set[Path] = set()
    for text in map(str, paths):
        path = Path(text).expanduser().absolute()
        matches = [path]
        if not path.exists():
            # a pattern; the part before its first wildcard is where to look
            plain = next((p for p in path.parents if not re.search(r"[*?[]", str(p))), Path("/"))
            pattern = str(path.relative_to(plain))
            matches = sorted(plain.glob(pattern), key=lambda p: natural_key(str(p)))
            if not matches or pattern == ".":
                raise RequestError(f"there is no file or folder {text}.")
        for match in matches:
            if match.is_dir():
                files.update(dict.fromkeys(_inside(match)))
            else:
                files[match] = None
                given.add(match)
    return list(files), given


def _inside(folder: Path) -> list[Path]:
    def here(place: Path) -> list[Path]:
        entries = sorted(place.iterdir(), key=lambda p: natural_key(p.name))
        return [p for p in entries if p.is_file() and p.suffix.lower() in (*_SUFFIXES, *_ANGLES)]

    direct = here(folder)
    if direct:
        return direct
    below = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name))
    return [file for place in below for file in here(place)]


def _names(file: Path, *more: str) -> tuple[str, ...]:
    """What a file's series may be called: as the file, without a program's appendix, as its folder."""
    stem, folder = file.stem, file.parent.name
    names = [*more, stem, _TAILS.sub("", stem), folder, _TAILS.sub("", folder)]
    return tuple(dict.fromkeys(name for name in names if name))


# --------------------------------------------------------------------------------------- IMOD and Dynamo


def _transforms(file: Path, files: Sequence[Path]) -> list[AlignmentSource]:
    plain = re.sub(r"(?:_fid|local)\Z", "", file.stem)
    if plain != file.stem and file.with_name(f"{plain}.xf").is_file():
        return []  # eTomo's copy of an earlier step, or the local part of an alignment
    folder = file.parent
    command, notes = _command(file)
    etomo = [p for p in folder.iterdir() if p.suffix.lower() in (".com", ".edf", ".adoc")]
    markers = file.with_suffix(".mod").is_file() or (folder / "info" / "fitting.doc").is_file()
    project = next((p for s in (file.stem, file.stem[:-1]) if (p := folder / f"{s}.edf").is_file()), None)
    return [
        AlignmentSource(
            "dynamo" if markers and not etomo else "imod",
            file,
            _names(file),
            angles=_beside(file, ".tlt", files),
            stage_angles=_beside(file, ".rawtlt", files),
            command=command,
            project=project,
            notes=notes,
        )
    ]


def _beside(file: Path, suffix: str, files: Iterable[Path]) -> Path | None:
    """The file of angles of the same name: in the same folder, else the only one among what was given."""
    near = file.with_suffix(suffix)
    if near.is_file():
        return near
    far = [p for p in files if p.suffix.lower() == suffix and p.stem == file.stem]
    return far[0] if len(far) == 1 else None


def _command(xf: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The tilt.com (tilta.com, tiltb.com) that belongs to these transforms."""
    there = [p for name in ("tilt.com", "tilta.com", "tiltb.com") if (p := xf.with_name(name)).is_file()]
    for path in there:
        run = next((c for c in read_com(path) if c.program.lower() == "tilt"), None)
        if run is not None and Path(run.entries.get("TILTFILE", "")).stem == xf.stem:
            return path, ()
    if len(there) == 1 and len(list(xf.parent.glob("*.xf"))) == 1:
        return there[0], ()
    return None, tuple(f"{path.name} beside it is of another series" for path in there)


# --------------------------------------------------------------------------------- AreTomo, Warp, RELION


def _aretomo(file: Path, _files: Sequence[Path]) -> list[AlignmentSource]:
    return [AlignmentSource("aretomo", file, _names(file))]


def _warp(file: Path, _files: Sequence[Path]) -> list[AlignmentSource]:
    with file.open("rb") as stream:
        start = stream.read(4096)
    return [AlignmentSource("warp", file, _names(file))] if b"<TiltSeries" in start else []


def is_aligned(table: Table) -> bool:
    """Whether a table of tilts has RELION's columns of an alignment."""
    return any(label in table for label in _ALIGNED)


def _relion(file: Path, _files: Sequence[Path]) -> list[AlignmentSource]:
    blocks = read_star(file)
    table = blocks.get("global") or blocks.get("")
    if table is not None and NAME in table:
        names = table.strings(NAME)
        inside = [name for name in names if name in blocks]
        if FILE in table or inside:
            return [AlignmentSource("relion", file, (name,), member=name) for name in names]
    single = [(name, block) for name, block in blocks.items() if is_aligned(block) and len(block)]
    return [
        AlignmentSource("relion", file, tuple(dict.fromkeys([name or file.stem, file.stem])), member=name)
        for name, block in single
    ]


def excluded_views(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """IMOD's list of views (``1,4-6``), counted from 0."""
    out: list[int] = []
    for part in re.split(r"[\s,]+", text.strip()):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            out += range(first - 1, last)
    return np.array(sorted(set(out)), dtype=np.int64)

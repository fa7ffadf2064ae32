"""``weft import alignments``: take in what IMOD, AreTomo, Dynamo, RELION and Warp have aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weft.errors import FormatError, RequestError, WeftError
from weft.formats import mrc
from weft.session.aligned import FOLDER, ImportedAlignment
from weft.session.alignment_matching import match_views
from weft.session.alignment_reading import ReadingSettings, SessionImages, read_source
from weft.session.alignment_sources import AlignmentSource, find_sources
from weft.session.lock import SessionLock
from weft.session.series_book import SeriesBook
from weft.session.series_description import series_stem
from weft.settings import setting

if TYPE_CHECKING:
    from weft.session.records import Record
    from weft.session.session import Session
    from weft.session.tilt_table import TiltTable

__all__ = [
    "AlignmentImportSettings",
    "AlignmentReport",
    "ImportedSeries",
    "import_alignments",
    "remove_alignments",
]


class AlignmentImportSettings(ReadingSettings):
    """How alignments made elsewhere are read and matched."""

    program: Literal["auto", "imod", "aretomo", "dynamo", "relion", "warp"] = setting(
        "auto", "Take this program's files only; auto takes all, where each series has one."
    )
    tolerance: float = setting(
        1.0,
        "Where only the angles tell which tilt is meant: how far they may be from the stage's.",
        unit="deg",
        gt=0,
        le=10,
    )
    angle_offset: float | None = setting(
        None, "What the alignment added to all angles of the stage, where it turned the series.", unit="deg"
    )
    leave_out: bool = setting(
        False, "Leave out of the series, as if by hand, the tilts that its alignment says nothing about."
    )


@dataclass(frozen=True)
class ImportedSeries:
    """One series whose alignment was taken.

    Attributes
    ----------
    name, program : str
    file : Path
    tilts, total : int
        Tilts that are aligned, of those in the table.
    how : str
        How the views were matched with the tilts.
    remarks : tuple of str
    missing : tuple of int
        Rows that would be used but are not aligned.
    """

    name: str
    program: str
    file: Path
    tilts: int
    total: int
    how: str
    remarks: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class AlignmentReport:
    """What an import came to.

    Attributes
    ----------
    imported : list of ImportedSeries
    problems : list of str
        Why an alignment was not taken, a sentence each.
    unknown : list of Path
        Alignments of series that the session does not have.
    without : list of str
        Series that got none.
    """

    imported: list[ImportedSeries] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or not self.imported else 0

    def describe(self) -> str:
        """For people: a table, then what is wrong."""
        head = ("series", "from", "tilts", "matched", "file", "remarks")
        lines = [head] + [
            (s.name, s.program, f"{s.tilts}/{s.total}", s.how, s.file.name, "; ".join(s.remarks))
            for s in self.imported
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        parts = []
        if self.imported:
            parts += [
                "  ".join([*(f"{t:<{w}}" for t, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
                for line in lines
            ]
        parts += [f"Not taken: {problem}" for problem in self.problems]
        if self.unknown:
            names = ", ".join(path.name for path in self.unknown[:5])
            more = " …" if len(self.unknown) > 5 else ""
            parts.append(f"Of no series of this session: {names}{more}")
        if self.without:
            parts.append(f"Without an imported alignment: {', '.join(self.without)}")
        return "\n".join(parts) or "No alignments."


def import_alignments(
    session: Session,
    paths: Sequence[str | Path],
    settings: AlignmentImportSettings | None = None,
    only: str | None = None,
) -> AlignmentReport:
    """Use alignments that other programs have made, from now on; the next run does what follows from them.

    Parameters
    ----------
    session : Session
    paths : sequence of path-like
        Files, folders or patterns.
    settings : AlignmentImportSettings, optional
    only : str, optional
        Series by a shell pattern on their names.

    Raises
    ------
    RequestError
        There are no such files, or no tilt series; or another process holds the session.
    """
    settings = settings or AlignmentImportSettings()
    if settings.pixel_size is not None and settings.binning is not None:
        raise RequestError("give --pixel-size or --binning, not both: each says what the other does.")
    program = None if settings.program == "auto" else settings.program
    sources, problems = find_sources(paths, program)
    with SessionLock(session.root):
        records = session.summaries()
        book = SeriesBook(session)
        book.look(session.movie_sources(records), records)
        tables = {n: t for n, t in book.tables.items() if only is None or fnmatchcase(n, only)}
        if not tables:
            raise RequestError(f"{session.root} has no tilt series" + (f" like {only}." if only else "."))
        of_series, unknown = _share_out(sources, tables)
        imported = []
        for name, candidates in of_series.items():
            if len(candidates) > 1:
                files = ", ".join(f"{source.file} ({source.program})" for source in candidates)
                problems.append(
                    f"{name} has {len(candidates)} alignments: {files}; give one of them, or --program."
                )
                continue
            try:
                imported.append(_take(book, tables[name], candidates[0], settings))
            except (WeftError, OSError) as error:
                problems.append(f"{name}: {error}")
        done = {series.name for series in imported}
        if only is not None:
            unknown = []
        without = [name for name in tables if name not in done and not book.tables[name].alignment]
    return AlignmentReport(imported, problems, unknown, without)


def remove_alignments(session: Session, only: str | None = None) -> list[str]:
    """Use Weft's own alignment again; the series that had another.

    Raises
    ------
    SessionError
        Another process holds the session.
    """
    with SessionLock(session.root):
        book = SeriesBook(session)
        names = [n for n, t in book.tables.items() if t.alignment and (only is None or fnmatchcase(n, only))]
        for name in names:
            file = session.root / book.tables[name].alignment
            book.set_alignment(name, None)
            file.unlink(missing_ok=True)
        return names


def _share_out(
    sources: Sequence[AlignmentSource], tables: dict[str, TiltTable]
) -> tuple[dict[str, list[AlignmentSource]], list[Path]]:
    """Which series has which alignments, by the likeliest name that any of them has for it."""
    called: dict[str, list[str]] = {}
    for name, table in tables.items():
        for text in dict.fromkeys([name, series_stem(Path(table.origin)), name.split("__")[0]]):
            called.setdefault(text.lower(), []).append(name)
    best: dict[str, list[tuple[int, AlignmentSource]]] = {}
    unknown = []
    for source in sources:
        for rank, text in enumerate(source.names):
            # a name of its own comes before one that it shares with a series of another folder
            names = [text] if text in tables else called.get(text.lower(), [])
            if len(names) == 1:
                best.setdefault(names[0], []).append((rank, source))
                break
        else:
            unknown.append(source.file)
    out = {}
    for name in tables:
        if name in best:
            top = min(rank for rank, _ in best[name])
            out[name] = [source for rank, source in best[name] if rank == top]
    return out, list(dict.fromkeys(unknown))


def _take(
    book: SeriesBook,
    table: TiltTable,
    source: AlignmentSource,
    settings: AlignmentImportSettings,
) -> ImportedSeries:
    """Read one alignment, match it, and keep it."""
    session = book.session
    record = session.store.read(table.name)
    stack_rows = _stack_rows(record)
    found = read_source(source, _images(session, table, record), settings)
    match = match_views(
        found, table, stack_rows, tolerance=settings.tolerance, angle_offset=settings.angle_offset
    )
    if len(match.rows) < 1:
        raise FormatError(source.file, "it aligns no tilt")
    used = stack_rows or [i for i, r in enumerate(table.tilts) if not r.left_out and r.decision is not False]
    missing = tuple(sorted(set(used) - set(match.rows)))
    remarks = list(found.notes)
    if missing:
        angles = ", ".join(f"{table.tilts[i].angle:g}°" for i in missing)
        if settings.leave_out:
            book.decide(table.name, missing, False)
            remarks.append(f"left out now: {angles}")
        else:
            remarks.append(f"says nothing about {angles}: leave these out (--leave-out)")
    path = session.root / FOLDER / f"{table.name}.json"
    # the file before the table that names it
    file = str(source.file)
    ImportedAlignment.of_rows(source.program, file, table, match.rows, found.geometry).write(path)
    book.set_alignment(table.name, path)
    return ImportedSeries(
        table.name,
        source.program,
        source.file,
        len(match.rows),
        len(table.tilts),
        match.how,
        tuple(remarks),
        missing,
    )


def _stack_rows(record: Record | None) -> list[int]:
    """Rows of the table in Weft's stack, in its order; none while there is no stack."""
    done = record.steps.get("stack") if record else None
    if done is None or done.status != "done":
        return []
    used = [tilt for tilt in done.results["tilts"] if tilt["used"]]
    return [int(tilt["index"]) for tilt in sorted(used, key=lambda tilt: tilt["section"])]


def _images(session: Session, table: TiltTable, record: Record | None) -> SessionImages:
    """The series' images as far as they are known: of the stack, else of the stack that it came as."""
    if record is not None and _stack_rows(record):
        shape = mrc.read_header(session.root / record.steps["stack"].outputs["stack"]).shape
        return SessionImages(float(record.metrics["series_pixel_size"]), (shape[2], shape[1]))
    if table.stack:
        shape = mrc.read_header(table.stack).shape
        size = (shape[2], shape[1])
        return SessionImages(table.pixel_size or session.settings.input.pixel_size, size)
    plain = session.settings.plain()
    return SessionImages(float(plain["input"]["pixel_size"]) * float(plain["average"]["bin"]))

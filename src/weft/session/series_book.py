"""The tables of a session's tilt series, kept in accord with the mdocs, the movies and their records."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import SessionError
from weft.session.records import FileIdentity, Record
from weft.session.series_import import (
    ImportResult,
    completeness,
    find_origins,
    import_series,
    why_no_origins,
    with_motion,
)
from weft.session.tilt_table import FOLDER, TiltTable, read_table, table_path, write_table

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["BookNews", "SeriesBook"]


@dataclass(frozen=True)
class BookNews:
    """What a look at the mdocs has found.

    Attributes
    ----------
    found : ImportResult
        All series, what could not be understood, movies that belong to no series.
    changed : list of str
        Series whose tables say something new.
    """

    found: ImportResult
    changed: list[str] = field(default_factory=list)


class SeriesBook:
    """Writes the tables of tilt series: for the one who holds the session's lock.

    Attributes
    ----------
    tables : dict
        Series by name.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tables: dict[str, TiltTable] = {}
        self._of_movie: dict[str, set[str]] = {}
        self._opened = time.monotonic()
        self._grown: dict[str, float] = {}
        self._lock = threading.RLock()
        for path in sorted((session.root / FOLDER).glob("*.json")):
            if not path.name.startswith("."):
                self._remember(read_table(path))

    def look(self, movies: Mapping[str, Path], records: Mapping[str, Record]) -> BookNews:
        """Read the mdocs again, match them with the movies, and write what is new.

        Parameters
        ----------
        movies : mapping
            Item → movie, of all movies.
        records : mapping
            Of all items, with or without what is long in them.
        """
        settings = self.session.settings.input
        if not settings.of_tilts:
            return BookNews(ImportResult({}, [], []))
        with self._lock:
            root = self.session.root
            origins: dict[Path, None] = {}
            problems = []
            for pattern in settings.mdoc:
                here = find_origins(pattern, root)
                origins.update(dict.fromkeys(here))
                if not here:
                    problems.append(why_no_origins(pattern, root))
            found = import_series(list(origins), movies, self.tables, frames_expected=bool(settings.frames))
            changed = [name for name, table in found.tables.items() if self._keep(table, records)]
            tables = {name: self.tables[name] for name in found.tables}
            whole = ImportResult(tables, problems + found.problems, found.unmatched_movies)
            return BookNews(whole, changed)

    def follow(self, movies: Iterable[str], records: Mapping[str, Record]) -> list[str]:
        """Some movies have been processed: bring their series' tables up to date; those that changed."""
        with self._lock:
            names = {name for movie in movies for name in self._of_movie.get(movie, ())}
            return [name for name in sorted(names) if self._keep(self.tables[name], records)]

    def decide(self, name: str, tilts: Iterable[int], keep: bool | None) -> TiltTable:
        """Keep or leave out tilts by hand; None leaves it to Weft again.

        Parameters
        ----------
        tilts : iterable of int
            Rows of the series' table.

        Raises
        ------
        SessionError
            For a series or a tilt that is not there.
        """
        with self._lock:
            table = self._table(name)
            rows = list(table.tilts)
            for index in tilts:
                if not 0 <= index < len(rows):
                    raise SessionError(f"{name} has tilts 0 to {len(rows) - 1}, there is no {index}.")
                rows[index] = replace(rows[index], decision=keep)
            self._write(replace(table, tilts=tuple(rows)))
            return self.tables[name]

    def set_alignment(self, name: str, path: Path | None) -> None:
        """Use an alignment that was imported (a file of the session), or none.

        Raises
        ------
        SessionError
        """
        with self._lock:
            table = self._table(name)
            if path is None:
                self._write(replace(table, alignment="", alignment_content=""))
                return
            relative = str(path.relative_to(self.session.root))
            content = FileIdentity.of(path).content
            self._write(replace(table, alignment=relative, alignment_content=content))

    def unfinished(self, name: str, quiet: float, deadline: float) -> str:
        """Why a series is not to be processed yet, in a live session; empty when it is.

        See :func:`~weft.session.series_import.completeness`.
        """
        with self._lock:
            table = self._table(name)
            complete, reason = completeness(table, still=self.still(name), quiet=quiet, deadline=deadline)
            return "" if complete else reason

    def still(self, name: str) -> float:
        """For how many seconds nothing has come to a series: neither a word in its origin nor a movie.

        While movies are missing, what counts is when they came here: copies may be as old as their originals.
        """
        table = self._table(name)
        movies = [row.movie for row in table.tilts if row.movie]
        newest = 0.0
        for path in (table.origin, *movies):
            with suppress(OSError):
                newest = max(newest, os.stat(path).st_mtime)
        age = time.time() - newest
        if len(movies) < len(table.tilts) and table.form != "stack":
            age = min(age, time.monotonic() - self._grown.get(name, self._opened))
        return age

    # ------------------------------------------------------------------ inside

    def _table(self, name: str) -> TiltTable:
        if name not in self.tables:
            raise SessionError(f"{self.session.root} has no tilt series {name!r}.")
        return self.tables[name]

    def _keep(self, table: TiltTable, records: Mapping[str, Record]) -> bool:
        return self._write(with_motion(table.with_decisions_of(self.tables.get(table.name)), records))

    def _write(self, table: TiltTable) -> bool:
        before = self.tables.get(table.name)
        if before is None or _size(before) != _size(table):
            self._grown[table.name] = time.monotonic()
        self._remember(table)
        return write_table(self.session.root, table)

    def _remember(self, table: TiltTable) -> None:
        self.tables[table.name] = table
        for row in table.tilts:
            if row.item:
                self._of_movie.setdefault(row.item, set()).add(table.name)

    def path(self, name: str) -> Path:
        """The file of a series' item."""
        return table_path(self.session.root, name)


def _size(table: TiltTable) -> tuple[int, int]:
    """What grows while a series is recorded: tilts, and movies of them."""
    return len(table.tilts), sum(bool(row.movie) for row in table.tilts)

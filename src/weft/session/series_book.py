"""The tables of a session's tilt series, kept in accord with the mdocs, the movies and their records."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
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

#: By item, or what gives them when they are needed: then they are not older than the tables.
Records = Mapping[str, Record] | Callable[[], Mapping[str, Record]]


@dataclass(frozen=True)
class BookNews:
    """What a look at the mdocs has found.

    Attributes
    ----------
    found : ImportResult
        All series, what could not be understood, movies that belong to no series.
    changed : list of str
        Series whose tables say something new.
    vanished : list of str
        Series that nothing describes any more, and of which nothing was made; see :meth:`SeriesBook.forget`.
    """

    found: ImportResult
    changed: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)


class SeriesBook:
    """Writes the tables of tilt series: for the one who holds the session's lock.

    Attributes
    ----------
    tables : dict
        Series by name.
    excluded : frozenset of str
        Movies that people excluded; at first as selection.json has it.
    given_up : dict
        Movies that nobody works on any more → why; only asked for single ones, so that another thread may
        change it.

    Raises
    ------
    SessionError
        A table or the selection cannot be read.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tables: dict[str, TiltTable] = {}
        self.excluded: frozenset[str] = session.selection.exclude
        self.given_up: dict[str, str] = {}
        self._of_movie: dict[str, set[str]] = {}
        self._opened = time.monotonic()
        self._grown: dict[str, float] = {}
        self._mtimes: dict[str, float] = {}
        self._lock = threading.RLock()
        for path in sorted((session.root / FOLDER).glob("*.json")):
            if not path.name.startswith("."):
                self._remember(read_table(path))

    def look(self, movies: Mapping[str, Path], records: Records) -> BookNews:
        """Read the mdocs again, match them with the movies, and write what is new.

        Parameters
        ----------
        movies : mapping
            Item → movie, of all movies.
        records : mapping, or callable that gives one
            Of all items, with or without what is long in them. A callable must take no lock under which this
            book is called.
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
            known = records() if callable(records) else records
            changed = [name for name, table in found.tables.items() if self._keep(table, known)]
            tables = {name: self.tables[name] for name in found.tables}
            whole = ImportResult(tables, problems + found.problems, found.unmatched_movies)
            # a folder that is not there just now takes no series with it
            gone = [] if whole.problems else self._vanished(found.tables, origins, known)
            return BookNews(whole, changed, gone)

    def _vanished(
        self, found: Collection[str], origins: Collection[Path], records: Mapping[str, Record]
    ) -> list[str]:
        described = {str(path) for path in origins}
        return [
            name
            for name, table in self.tables.items()
            if name not in found
            and name not in records
            and table.origin not in described
            and not table.alignment
            and all(row.decision is None for row in table.tilts)
        ]

    def forget(self, names: Iterable[str]) -> None:
        """Take series out of the session that nothing describes any more."""
        with self._lock:
            for name in names:
                if self.tables.pop(name, None) is not None:
                    self._grown.pop(name, None)
                    for series in self._of_movie.values():
                        series.discard(name)
                    self.path(name).unlink(missing_ok=True)

    def series_of(self, movies: Iterable[str]) -> list[str]:
        """The series that any of these movies belongs to, sorted."""
        with self._lock:
            return sorted({name for movie in movies for name in self._of_movie.get(movie, ())})

    def follow(self, movies: Iterable[str], records: Records) -> list[str]:
        """Something about some movies has changed: their series' tables are brought up to date.

        Parameters
        ----------
        records : mapping, or callable that gives one
            As for :meth:`look`.

        Returns
        -------
        list of str
            Series whose tables say something new.
        """
        with self._lock:
            movies = set(movies)
            known = records() if callable(records) else records
            names = self.series_of(movies)
            for name in names:
                for row in self.tables[name].tilts:
                    if row.item in movies:
                        self._mtimes.pop(row.movie, None)  # it may be another one now
            return [name for name in names if self._keep(self.tables[name], known)]

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

    def unfinished(
        self, name: str, quiet: float, deadline: float, to_come: Collection[str] | None = None
    ) -> str:
        """Why a series is not to be processed yet, in a live session; empty when it is.

        See :func:`~weft.session.series_import.completeness`.
        """
        with self._lock:
            table = self._table(name)
            still = self.still(name)
            complete, reason = completeness(
                table, still=still, quiet=quiet, deadline=deadline, to_come=to_come
            )
            return "" if complete else reason

    def still(self, name: str) -> float:
        """For how many seconds nothing has come to a series: neither a word in its origin nor an image.

        While movies are missing, what counts is when they came here: copies may be as old as their originals.
        """
        table = self._table(name)
        movies = [row.movie for row in table.tilts if row.movie]
        newest = max((self._mtime(path) for path in movies), default=0.0)
        # these grow, movies are only looked at once
        for path in (table.origin, table.stack):
            with suppress(OSError):
                newest = max(newest, os.stat(path).st_mtime if path else 0.0)
        age = time.time() - newest
        if len(movies) < len(table.tilts) and table.form != "stack":
            age = min(age, time.monotonic() - self._grown.get(name, self._opened))
        return age

    # ------------------------------------------------------------------ inside

    def _mtime(self, movie: str) -> float:
        if movie not in self._mtimes:
            try:
                self._mtimes[movie] = os.stat(movie).st_mtime
            except OSError:
                return 0.0
        return self._mtimes[movie]

    def _table(self, name: str) -> TiltTable:
        if name not in self.tables:
            raise SessionError(f"{self.session.root} has no tilt series {name!r}.")
        return self.tables[name]

    def _keep(self, table: TiltTable, records: Mapping[str, Record]) -> bool:
        decided = table.with_decisions_of(self.tables.get(table.name))
        return self._write(with_motion(decided, records, excluded=self.excluded, given_up=self.given_up))

    def _write(self, table: TiltTable) -> bool:
        before = self.tables.get(table.name)
        if before is None or _size(before) != _size(table):
            self._grown[table.name] = time.monotonic()
        self._remember(table)
        return write_table(self.session.root, table)

    def _remember(self, table: TiltTable) -> None:
        before = self.tables.get(table.name)
        items = {row.item for row in table.tilts if row.item}
        for row in before.tilts if before else ():
            if row.item not in items:
                self._of_movie.get(row.item, set()).discard(table.name)
        self.tables[table.name] = table
        for item in items:
            self._of_movie.setdefault(item, set()).add(table.name)

    def path(self, name: str) -> Path:
        """The file of a series' item."""
        return table_path(self.session.root, name)


def _size(table: TiltTable) -> tuple[int, int]:
    """What grows while a series is recorded: tilts, and movies of them."""
    return len(table.tilts), sum(bool(row.movie) for row in table.tilts)

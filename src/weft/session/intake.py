"""From files that appear to items: which movies are complete, what they are called, which have only moved."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import InputFileError, WeftError
from weft.session.discovery import find_movies, natural_key
from weft.session.items import Movie
from weft.session.records import FileIdentity, Record

if TYPE_CHECKING:
    from weft.session.board import Board
    from weft.session.input import InputSettings
    from weft.session.session import Session

__all__ = ["Arrivals", "find_with_folders", "follow_moved", "take_stock", "what_is_missing"]


@dataclass(frozen=True)
class Arrivals:
    """What complete files are to a session.

    Attributes
    ----------
    moved : dict
        Item → where its file is now.
    fresh : dict
        File that is no item's yet → its time, s since 1970.
    identities : dict
        Item whose file has come back or has changed → what it is now.
    slipped : list of Path
        Files that are away again.
    """

    moved: dict[str, Path]
    fresh: dict[Path, float]
    identities: dict[str, FileIdentity]
    slipped: list[Path]


def find_with_folders(settings: InputSettings, root: Path) -> Iterator[Path]:
    """The movies that are there, as :class:`~weft.session.watching.Watcher` wants them.

    Raises
    ------
    OSError
        After the last file, when a folder that the patterns name cannot be read.
    """
    yield from find_movies(settings, root)
    for pattern in settings.frames:
        folder = root / Path(pattern).expanduser()
        # what stands before the first wildcard must be there
        while glob.has_magic(str(folder)):
            folder = folder.parent
        if folder.is_file():
            continue
        if folder.suffix and not folder.exists():
            folder = folder.parent  # a single file that may still come
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if not os.access(folder, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def what_is_missing(path: Path, settings: InputSettings) -> str:
    """Why a movie cannot be complete yet; empty when nothing speaks against it."""
    from weft.movies.source import SourceSettings, open_movie

    options = SourceSettings(**{key: getattr(settings, key) for key in SourceSettings.model_fields})
    try:
        open_movie(path, options).close()
    except InputFileError as error:
        return error.message
    except WeftError:
        return ""  # no fault of the file: processing it says what is wrong
    return ""


def follow_moved(session: Session, records: Mapping[str, Record], paths: Iterable[Path]) -> dict[str, Path]:
    """Let the records of movies that were renamed or moved follow them, so that none is processed twice.

    A movie is the same when its content is, and the place where it was is empty.

    Parameters
    ----------
    records : mapping
        Of all items; with or without what is long in them.
    paths : iterable of Path
        Files that belong to no item.

    Returns
    -------
    dict
        Item → where its file is now; its record is rewritten.
    """
    lost: dict[int, list[str]] | None = None
    moved: dict[str, Path] = {}
    for path in paths:
        if lost is None:  # only now: it looks at every file
            lost = {}
            for name, record in records.items():
                if record.input.size and not os.path.exists(record.input.path):
                    lost.setdefault(record.input.size, []).append(name)
        try:
            candidates = lost.get(path.stat().st_size, [])
            identity = FileIdentity.of(path) if candidates else None
        except OSError:
            continue
        for name in candidates:
            if identity is not None and records[name].input.content == identity.content:
                candidates.remove(name)
                if _rewrite(session, name, identity):
                    moved[name] = path
                break
    return moved


def take_stock(
    session: Session, board: Board, ready: Sequence[Path], known: Mapping[str, str], busy: Collection[str]
) -> Arrivals:
    """Sort complete files by what they are.

    Parameters
    ----------
    board : Board
    ready : sequence of Path
        New, changed, or back.
    known : mapping
        File → item.
    busy : collection of str
        Items that are being worked on: their records do not move.
    """
    idle = {name: record for name, record in board.summaries().items() if name not in busy}
    new = [path for path in ready if str(path) not in known]
    moved = follow_moved(session, idle, new) if new else {}
    fresh: dict[Path, float] = {}
    slipped: list[Path] = []
    for path in sorted(set(new) - set(moved.values()), key=lambda path: natural_key(str(path))):
        try:
            fresh[path] = path.stat().st_mtime
        except OSError:
            slipped.append(path)
    identities: dict[str, FileIdentity] = {}
    for path in ready:
        name = known.get(str(path))
        if name is not None and board.summary(name) is not None:
            try:
                identities[name] = FileIdentity.of(path)
            except OSError:
                slipped.append(path)
    return Arrivals(moved, fresh, identities, slipped)


def _rewrite(session: Session, name: str, identity: FileIdentity) -> bool:
    record = session.store.read(name)
    if record is None:
        return False
    record = replace(record, input=identity)
    motion = record.steps.get("motion")
    if motion is not None and motion.status == "done" and "motion_star" in motion.outputs:
        from weft.session.steps.motion import write_motion_star

        # it names the movie
        movie = Movie(session.root, name, Path(identity.path), record)
        write_motion_star(session.root / motion.outputs["motion_star"], movie, motion, session.root)
    session.store.write(record)
    return True

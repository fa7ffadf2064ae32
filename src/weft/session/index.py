"""index.sqlite: a cache of the records without what is long in them, so that thousands load in a second.

Deleting it loses nothing. Each row knows size and time of the record that it was made from, so a row
that is out of date is never believed; `weft reindex` makes all of it again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from weft.errors import SessionError
from weft.session.records import Record, RecordStore, Summary, fingerprint

__all__ = ["FILE_NAME", "load", "rebuild", "update"]

FILE_NAME = "index.sqlite"

_VERSION = 2
_READERS = 4
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, source TEXT NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL, error TEXT, record TEXT NOT NULL,
    record_size INTEGER NOT NULL, record_mtime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (hash TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""


def load(store: RecordStore, *, write: bool = False) -> tuple[dict[str, Summary], dict[str, str]]:
    """The short forms of all records, from the index where it is current.

    Parameters
    ----------
    write : bool
        Make the index current: for the one who holds the session's lock.

    Returns
    -------
    summaries : dict
        Item → summary.
    broken : dict
        Item whose record cannot be read → why.
    """
    root = store.folder.parent
    stamps = store.stamps()
    try:
        known = _read(root / FILE_NAME)
    except (sqlite3.Error, ValueError, KeyError, TypeError):
        known = {}
    summaries: dict[str, Summary] = {}
    for name, stamp in stamps.items():
        summary = known.get(name)
        if summary is not None and (summary.size, summary.mtime_ns) == stamp:
            summaries[name] = summary
    changed: list[Summary] = []
    broken: dict[str, str] = {}

    def read(name: str) -> Summary | str | None:
        try:
            return store.read_summary(name)
        except SessionError as error:
            return str(error)

    missing = [name for name in stamps if name not in summaries]
    # a disk, and a network even more, answers several questions at once
    with ThreadPoolExecutor(_READERS) as pool:
        for name, found in zip(missing, pool.map(read, missing)):
            if isinstance(found, str):
                broken[name] = found
            elif found is not None:  # it may just have gone
                summaries[name] = found
                changed.append(found)
    if write and not known:
        rebuild(root, summaries.values())
    elif write and (changed or len(known) != len(summaries)):
        update(root, changed, gone=known.keys() - summaries.keys())
    return summaries, broken


def rebuild(root: Path, summaries: Iterable[Summary]) -> int:
    """Make the index from all records; the number of items."""
    draft = root / f".{FILE_NAME}.part"
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as database, database:
        count = _put_all(database, summaries)
    draft.replace(root / FILE_NAME)
    return count


def update(root: Path, summaries: Iterable[Summary], gone: Iterable[str] = ()) -> None:
    """Bring some items of the index up to date.

    Raises
    ------
    sqlite3.DatabaseError
        When the file is broken.
    """
    with closing(sqlite3.connect(root / FILE_NAME)) as database, database:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            raise sqlite3.DatabaseError("of another version")
        _put_all(database, summaries)
        database.executemany("DELETE FROM items WHERE name = ?", [(name,) for name in gone])


def _put_all(database: sqlite3.Connection, summaries: Iterable[Summary]) -> int:
    database.executescript(_SCHEMA)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    texts: dict[str, str] = {}
    count = 0
    for summary in summaries:
        record = summary.record
        data = record.to_dict()
        for step in data["steps"].values():
            # the same for thousands of items: kept once
            key = fingerprint(step["settings"])
            if key not in texts:
                texts[key] = json.dumps(step["settings"], ensure_ascii=False)
            step["settings"] = key
        error = next((step.error.message for step in record.steps.values() if step.error), None)
        database.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.item,
                record.kind,
                record.input.path,
                record.input.mtime_ns,
                "failed" if error else "done",
                error,
                json.dumps(data, ensure_ascii=False, separators=(",", ":")),
                summary.size,
                summary.mtime_ns,
            ),
        )
        count += 1
    database.executemany("INSERT OR IGNORE INTO settings VALUES (?, ?)", texts.items())
    return count


def _read(path: Path) -> dict[str, Summary]:
    """All rows; sqlite3.Error, ValueError, KeyError or TypeError when the file is not such an index."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as database:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            return {}
        # one dictionary for all items that were made with the same settings
        settings: dict[str, Any] = {
            key: json.loads(text) for key, text in database.execute("SELECT hash, text FROM settings")
        }
        out = {}
        rows = database.execute("SELECT name, record, record_size, record_mtime_ns FROM items")
        for name, text, size, mtime_ns in rows:
            data = json.loads(text)
            for step in data["steps"].values():
                step["settings"] = settings[step["settings"]]
            out[name] = Summary(Record.from_dict(data), size, mtime_ns)
        return out


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))

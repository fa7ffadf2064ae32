"""index.sqlite: a cache of the records for pages that sort and filter thousands of items.

Deleting it loses nothing: `weft reindex` makes it again from the records.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from weft.session.records import Record

__all__ = ["FILE_NAME", "rebuild", "update"]

FILE_NAME = "index.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, source TEXT NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL, error TEXT, metrics TEXT NOT NULL, outputs TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
    name TEXT NOT NULL, metric TEXT NOT NULL, value REAL, PRIMARY KEY (name, metric)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metrics_by_value ON metrics (metric, value);
"""


def _put(database: sqlite3.Connection, record: Record) -> None:
    metrics = record.metrics
    outputs: dict[str, str] = {}
    error = None
    for step in record.steps.values():
        outputs.update(step.outputs if step.status == "done" else {})
        error = error or (step.error.message if step.error else None)
    database.execute(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.item,
            record.kind,
            record.input.path,
            record.input.mtime_ns,
            "failed" if error else "done",
            error,
            json.dumps(metrics),
            json.dumps(outputs),
        ),
    )
    database.execute("DELETE FROM metrics WHERE name = ?", (record.item,))
    rows = [
        (record.item, metric, float(value))
        for metric, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    database.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)


def rebuild(root: Path, records: Iterable[Record]) -> int:
    """Make the index from all records; the number of items."""
    draft = root / f".{FILE_NAME}.part"
    draft.unlink(missing_ok=True)
    count = 0
    with closing(sqlite3.connect(draft)) as database, database:
        database.executescript(_SCHEMA)
        for record in records:
            _put(database, record)
            count += 1
    draft.replace(root / FILE_NAME)
    return count


def update(root: Path, records: Iterable[Record]) -> None:
    """Bring some items of the index up to date."""
    with closing(sqlite3.connect(root / FILE_NAME)) as database, database:
        database.executescript(_SCHEMA)
        for record in records:
            _put(database, record)

"""The table of a tilt series: which movie belongs to which tilt, at which angle, and why one does not.

One JSON file a series, ``tiltseries/<name>.json``, written by whoever holds the session's lock and only
when something in it has changed. It is the input file of the series' item: what of it matters to results
(:meth:`TiltTable.content`) decides what is stale, so it also says which result of each movie's motion step is
meant, which content of a stack, and what people decided by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from weft.errors import SessionError
from weft.formats.atomic import atomic_write_text
from weft.session.records import FileIdentity, Record, fingerprint

__all__ = [
    "EXCLUDED",
    "FOLDER",
    "Origin",
    "TiltRow",
    "TiltTable",
    "current_input",
    "item_identity",
    "read_table",
    "read_tables",
    "table_path",
    "write_table",
]

#: Where the tables are, in the session.
FOLDER = "tiltseries"
#: Why a tilt is left out whose movie was excluded by hand.
EXCLUDED = "its movie is excluded by hand"

Origin = Literal["mdoc", "stack", "tomostar", "relion"]


@dataclass(frozen=True)
class TiltRow:
    """One exposure of a series.

    Attributes
    ----------
    angle : float
        Of the stage, as written in the origin, degrees.
    movie : str
        The movie that was matched, an absolute path; empty where there is none.
    item : str
        The session's name for that movie.
    image : int
        Section of the stack, for series that come as stacks; −1 otherwise.
    name : str
        What the origin calls it: the movie's file name there, or the number of the section.
    exposure, prior_dose : float or None
        e/Å²; None where the origin does not say, or says 0 for all.
    date : str
        ISO; empty where the origin does not say.
    left_out : str
        Why it takes no part, found on import: no movie, taken again, named twice ...; or `EXCLUDED`.
    decision : bool or None
        By hand: True keeps it whatever its image looks like, False leaves it out; None leaves it to Weft.
    motion : str
        Fingerprint of the motion step that made its average; empty while there is none.
    failure : str
        Why its movie could not be processed.
    """

    angle: float
    movie: str = ""
    item: str = ""
    image: int = -1
    name: str = ""
    exposure: float | None = None
    prior_dose: float | None = None
    date: str = ""
    left_out: str = ""
    decision: bool | None = None
    motion: str = ""
    failure: str = ""

    @property
    def waiting(self) -> bool:
        """Whether its movie is still to be processed."""
        return bool(self.movie) and not (self.left_out or self.motion or self.failure)

    @property
    def usable(self) -> bool:
        """Whether there is an image, and nobody left it out."""
        there = self.image >= 0 or bool(self.motion)
        return there and not self.left_out and self.decision is not False


@dataclass(frozen=True)
class TiltTable:
    """One tilt series.

    Attributes
    ----------
    name : str
        Of the item.
    origin : str
        The file that describes the series.
    form : ``"mdoc"``, ``"stack"``, ``"tomostar"`` or ``"relion"``
    tilts : tuple of TiltRow
        In the order of acquisition as far as known.
    tilt_axis : float or None
        Degrees, as the origin says.
    pixel_size : float or None
        Å, as the origin says; of stacks, of the stack.
    stack : str
        The images, for series that come as stacks.
    stack_content : str
        Hash of that file; empty where it cannot be read.
    alignment : str
        An alignment made elsewhere, imported: path relative to the session; its content counts.
    alignment_content : str
        Hash of that file.
    notes : tuple of str
        What people should know: two mdocs of one name, doses that are missing ...
    """

    name: str
    origin: str
    form: Origin
    tilts: tuple[TiltRow, ...]
    tilt_axis: float | None = None
    pixel_size: float | None = None
    stack: str = ""
    stack_content: str = ""
    alignment: str = ""
    alignment_content: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def waiting(self) -> list[TiltRow]:
        """Tilts whose movies are still to be processed."""
        return [row for row in self.tilts if row.waiting]

    @property
    def content(self) -> str:
        """Hash of what matters to results: not where files lie, nor what is only told to people."""
        rows = [
            {
                "name": row.name,
                "angle": row.angle,
                "image": row.image,
                # one that takes no part has exposed the specimen, too
                "dose": [row.exposure, row.prior_dose],
                "date": row.date,
                "decision": row.decision,
                "average": [row.item, row.motion] if row.usable else None,
            }
            for row in self.tilts
        ]
        whole = {
            "tilt_axis": self.tilt_axis,
            "pixel_size": self.pixel_size,
            "stack": self.stack_content if self.stack else None,
            "alignment": self.alignment_content if self.alignment else None,
        }
        return fingerprint({"tilts": rows, **whole})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TiltTable:
        """Inverse of :meth:`to_dict`."""
        known = {f.name for f in fields(cls)}
        plain = {key: value for key, value in data.items() if key in known}
        rows = tuple(TiltRow(**row) for row in plain.pop("tilts"))
        return cls(tilts=rows, notes=tuple(plain.pop("notes", ())), **plain)

    def with_decisions_of(self, old: TiltTable | None) -> TiltTable:
        """The same with what people decided before, tilt by tilt, and with the imported alignment."""
        if old is None:
            return self
        decided = {(row.name, row.image): row.decision for row in old.tilts if row.decision is not None}
        rows = tuple(replace(row, decision=decided.get((row.name, row.image))) for row in self.tilts)
        return replace(self, tilts=rows, alignment=old.alignment, alignment_content=old.alignment_content)


def table_path(root: Path, name: str) -> Path:
    """Where the table of a series is."""
    return root / FOLDER / f"{name}.json"


def read_table(path: Path) -> TiltTable:
    """Read a table.

    Raises
    ------
    SessionError
        When the file is no such table.
    """
    try:
        return TiltTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SessionError(
            f"{path} is not a readable table of a tilt series ({error}); delete it and run `weft tilts "
            "import` again."
        ) from None


def read_tables(root: Path) -> dict[str, TiltTable]:
    """All tables of a session, by name.

    Raises
    ------
    SessionError
    """
    found = sorted((root / FOLDER).glob("*.json"))
    return {path.stem: read_table(path) for path in found if not path.name.startswith(".")}


def write_table(root: Path, table: TiltTable) -> bool:
    """Put a table in its place if it says something new; whether it does."""
    path = table_path(root, table.name)
    text = json.dumps(table.to_dict(), indent=1, ensure_ascii=False) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)
    return True


@lru_cache(maxsize=4096)
def _content(path: str, size: int, mtime_ns: int) -> str:
    return read_table(Path(path)).content


def item_identity(path: str | Path, kind: str) -> FileIdentity:
    """The file of an item: of a series, the table with the content that matters to results.

    Raises
    ------
    OSError
    """
    if kind != "series":
        return FileIdentity.of(path)
    stat = os.stat(path)
    try:
        content = _content(str(path), stat.st_size, stat.st_mtime_ns)
    except SessionError:
        return FileIdentity.of(path)  # its first step says what is wrong
    return FileIdentity(str(path), stat.st_size, stat.st_mtime_ns, content)


def current_input(record: Record) -> FileIdentity:
    """The file of a record's item as it is now; as the record has it where it is gone."""
    if record.kind != "series":
        return record.input.refreshed()
    try:
        return item_identity(record.input.path, record.kind)
    except OSError:
        return record.input

"""The truth about one item: records/<item>.json.

A record says which input the item is, and for every step whether it is done or failed, under which
fingerprint, what came out, which files it wrote and how long it took. Timings stand in a key of their
own, so that two runs of the same work have the same record otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from weft.errors import SessionError, WeftError
from weft.formats.atomic import atomic_write

__all__ = [
    "FileIdentity",
    "Record",
    "RecordStore",
    "StepError",
    "StepRecord",
    "Summary",
    "fingerprint",
    "stamp_of",
]

_VERSION = 1
_SAMPLE = 1 << 20


@lru_cache(maxsize=4096)
def _sample_hash(path: str, size: int, mtime_ns: int) -> str:
    """Hash of a file's length, first and last MiB; cached while size and time stay."""
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        digest.update(handle.read(_SAMPLE))
        if size > _SAMPLE:
            handle.seek(max(size - _SAMPLE, _SAMPLE))
            digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class FileIdentity:
    """Which file it is: cheap to check, hard to mistake.

    Attributes
    ----------
    path : str
        Absolute.
    size : int
        Bytes.
    mtime_ns : int
        Only says whether the content must be looked at again; a copied or touched file stays the same.
    content : str
        Hash of the length and of the first and last MiB.
    """

    path: str
    size: int
    mtime_ns: int
    content: str

    @classmethod
    def of(cls, path: str | Path) -> FileIdentity:
        """Look at a file.

        Raises
        ------
        OSError
        """
        stat = os.stat(path)
        content = _sample_hash(str(path), stat.st_size, stat.st_mtime_ns)
        return cls(str(path), stat.st_size, stat.st_mtime_ns, content)

    def refreshed(self) -> FileIdentity:
        """The file as it is now; itself while size and time are the same, or where it is gone."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return self
        if (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns):
            return self
        return FileIdentity.of(self.path)


@dataclass(frozen=True)
class StepError:
    """Why a step failed.

    Attributes
    ----------
    type : str
        Name of the exception, or ``"Quarantined"``.
    message : str
        One sentence.
    item_fault : bool
        Whether the item itself is at fault: then the same step on the same input fails again, and it is
        not tried again until something changes or a retry is asked for.
    """

    type: str
    message: str
    item_fault: bool

    @classmethod
    def of(cls, error: BaseException) -> StepError:
        """The error as it goes into the record."""
        text = " ".join(str(error).split()) or type(error).__name__
        fault = isinstance(error, WeftError) and not isinstance(error.__cause__, FileNotFoundError)
        return cls(type(error).__name__, text, fault)


@dataclass(frozen=True)
class StepRecord:
    """What one step of one item came to.

    Attributes
    ----------
    status : ``"done"`` or ``"failed"``
    fingerprint : str
        Of the step's version, the settings it read, its inputs, and the steps before it.
    settings : dict
        The settings that it read.
    results : dict
        JSON-able: ``metrics`` (plain numbers) and whatever the step keeps (``model``).
    outputs : dict
        Name → path relative to the session.
    error : StepError, optional
    """

    status: Literal["done", "failed"]
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    error: StepError | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        out: dict[str, Any] = {
            "status": self.status,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "results": self.results,
            "outputs": self.outputs,
        }
        if self.error is not None:
            out["error"] = {
                "type": self.error.type,
                "message": self.error.message,
                "item_fault": self.error.item_fault,
            }
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepRecord:
        """Inverse of :meth:`to_dict`."""
        error = StepError(**data["error"]) if "error" in data else None
        return cls(
            data["status"], data["fingerprint"], data["settings"], data["results"], data["outputs"], error
        )


@dataclass(frozen=True)
class Record:
    """One item: its input, its steps, their timings (seconds)."""

    item: str
    kind: str
    input: FileIdentity
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    def with_step(self, name: str, step: StepRecord, seconds: float | None = None) -> Record:
        """The record with one step replaced."""
        timings = dict(self.timings)
        if seconds is not None:
            timings[name] = round(seconds, 3)
        return replace(self, steps={**self.steps, name: step}, timings=timings)

    @property
    def metrics(self) -> dict[str, Any]:
        """The plain numbers of all steps that are done, in one table."""
        out: dict[str, Any] = {}
        for step in self.steps.values():
            if step.status == "done":
                out.update(step.results.get("metrics", {}))
        return out

    @property
    def outputs(self) -> dict[str, str]:
        """The files of all steps that are done: name → path relative to the session."""
        out: dict[str, str] = {}
        for step in self.steps.values():
            out.update(step.outputs if step.status == "done" else {})
        return out

    def summary(self) -> Record:
        """The record without what is long: of the results the metrics only."""
        steps = {
            name: replace(step, results={k: v for k, v in step.results.items() if k == "metrics"})
            for name, step in self.steps.items()
        }
        return replace(self, steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": _VERSION,
            "item": self.item,
            "kind": self.kind,
            "input": vars(self.input),
            "steps": {name: step.to_dict() for name, step in self.steps.items()},
            "timings": dict(self.timings),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of :meth:`to_dict`."""
        if data["version"] > _VERSION:
            raise ValueError(f"version {data['version']} was written by a newer Weft")
        steps = {name: StepRecord.from_dict(step) for name, step in data["steps"].items()}
        return cls(data["item"], data["kind"], FileIdentity(**data["input"]), steps, data["timings"])


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept in memory of each of thousands of records.

    Attributes
    ----------
    record : Record
        Without what is long (:meth:`Record.summary`).
    size : int
        Of the record's file, bytes.
    mtime_ns : int
        When the record was written.
    """

    record: Record
    size: int
    mtime_ns: int


def stamp_of(facts: os.stat_result) -> tuple[int, int]:
    """Size and time of a record's file: another record has another stamp."""
    return facts.st_size, facts.st_mtime_ns


class RecordStore:
    """The folder of records."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "records"

    def path(self, item: str) -> Path:
        """Where an item's record is, or would be."""
        return self.folder / f"{item}.json"

    def names(self) -> list[str]:
        """Items that have a record, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json") if not path.name.startswith("."))

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Item → size and time of its record, of all that there are."""
        out = {}
        with suppress(FileNotFoundError), os.scandir(self.folder) as found:
            for entry in found:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # just replaced
                        out[entry.name[:-5]] = stamp_of(entry.stat())
        return out

    def read(self, item: str) -> Record | None:
        """The record of an item; None where it has none.

        Raises
        ------
        SessionError
            When the file is not a record.
        """
        found = self._read(item)
        return found[0] if found else None

    def read_summary(self, item: str) -> Summary | None:
        """The short form of a record; None where the item has none.

        Raises
        ------
        SessionError
            When the file is not a record.
        """
        found = self._read(item)
        return Summary(found[0].summary(), *found[1]) if found else None

    def _read(self, item: str) -> tuple[Record, tuple[int, int]] | None:
        path = self.path(item)
        try:
            with path.open(encoding="utf-8") as handle:
                # of the file that is read, whatever takes its place meanwhile
                stamp = stamp_of(os.fstat(handle.fileno()))
                return Record.from_dict(json.load(handle)), stamp
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SessionError(
                f"{path} is not a readable record ({error}); delete it to have the item processed again."
            ) from None

    def read_all(self, items: Iterable[str] | None = None) -> dict[str, Record]:
        """All records by name."""
        found = ((name, self.read(name)) for name in (self.names() if items is None else items))
        return {name: record for name, record in found if record is not None}

    def write(self, record: Record) -> None:
        """Put a record in its place, whole or not at all."""
        text = json.dumps(record.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        with atomic_write(self.path(record.item)) as handle:
            handle.write(text.encode())


def fingerprint(content: Mapping[str, Any]) -> str:
    """A short hash of nested plain values, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]

"""Columns of tables of particles: numbers that are checked, values of optics groups, what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table

__all__ = ["Rows", "grouped", "half_sets", "named", "numeric_columns", "particle_block"]

GROUP = "rlnOpticsGroup"
IMAGE = "rlnImageName"
CISTEM_STACK, CISTEM_POSITION = "cisTEMStackFilename", "cisTEMPositionInStack"
HALF = "rlnRandomSubset"
_Array = NDArray[np.float64]


def particle_block(path: Path, blocks: Mapping[str, Table]) -> str:
    """The name of the table that lists particles."""
    for label in (IMAGE, CISTEM_POSITION):
        for name in sorted(blocks, key=lambda name: name not in ("particles", "")):
            if name != "optics" and label in blocks[name]:
                return name
    if any(label.startswith("cisTEM") for block in blocks.values() for label in block.columns):
        raise FormatError(path, f"it has no column _{CISTEM_POSITION} that says which image is a particle's")
    raise FormatError(path, f"it has no column _{IMAGE} (or cisTEM's _{CISTEM_POSITION}) that names images")


class Rows:
    """The table of particles of a file, with that of its optics groups.

    Attributes
    ----------
    path : Path
    what : str
        How messages call this kind of table.
    table : Table
    optics : Table or None
    names : sequence of str
        Of the particle that each row is of, for messages; empty as long as that is not known.
    """

    def __init__(self, path: Path, what: str, table: Table, optics: Table | None = None) -> None:
        self.path, self.what, self.table, self.optics = path, what, table, optics
        self.names: Sequence[str] = ()
        if len(table) == 0:
            raise FormatError(path, "its table of particles is empty")
        self._groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, label: str) -> bool:
        """Whether the rows have it, or their optics groups."""
        return label in self.table or (self.optics is not None and label in self.optics)

    def need(self, *labels: str | Sequence[str]) -> None:
        """Complain about all that is missing; of a sequence of labels one is enough.

        Raises
        ------
        FormatError
        """
        missing = []
        for label in labels:
            options = [label] if isinstance(label, str) else list(label)
            if not any(option in self for option in options):
                missing.append(" or ".join(f"_{option}" for option in options))
        if missing:
            word = "column" if len(missing) == 1 else "columns"
            raise FormatError(
                self.path, f"{self.what} needs the {word} {named(missing)}, which it does not have"
            )

    def complete(self, labels: Sequence[str | Sequence[str]], marks: Sequence[str]) -> bool:
        """Whether a set of columns is there: all, or (False) none of those in `marks`.

        Raises
        ------
        FormatError
            Some are there, others are not.
        """
        if not any(mark in self for mark in marks):
            return False
        self.need(*labels)
        return True

    def numbers(self, label: str) -> _Array:
        """(n): finite numbers of a column, or of the rows' optics groups.

        Raises
        ------
        CorruptError
            Something else is there; the first such row is named, counted from 1.
        """
        if label in self.table:
            return self._checked(label, self.table[label], self._where)
        assert self.optics is not None
        values = self._checked(label, self.optics[label], lambda row: f"optics group {row + 1}")
        return np.asarray(values[self._group_of_rows()])

    def first(self, labels: Iterable[str], default: float) -> _Array:
        """(n): the first of some columns that is there, else a number."""
        for label in labels:
            if label in self:
                return self.numbers(label)
        return np.full(len(self), default)

    def strings(self, label: str) -> list[str]:
        """A column as text."""
        return self.table.strings(label)

    def flag(self, label: str) -> bool:
        """A column of 0 or 1 that has to say the same of all rows; False where it is missing."""
        if label not in self:
            return False
        values = self.numbers(label)
        if values.min() != values.max():
            raise FormatError(self.path, f"its column _{label} differs between particles; use them apart")
        return bool(values[0])

    def one(self, values: _Array, what: str) -> float:
        """The positive number that all rows have.

        Raises
        ------
        FormatError
            There are several.
        CorruptError
            It is not positive.
        """
        low, high = float(values.min()), float(values.max())
        if low <= 0.0:
            raise CorruptError(self.path, f"{self._where(int(values.argmin()))} has the {what} {low:g}")
        if high - low > 1e-4 * high:
            raise FormatError(
                self.path,
                f"{self._where(int(values.argmin()))} has the {what} {low:g} and "
                f"{self._where(int(values.argmax()))} {high:g}; all must have the same",
            )
        return float(values[0])

    def _where(self, row: int) -> str:
        return f"row {row + 1}" + (f" (particle {self.names[row]})" if len(self.names) else "")

    def where(self, row: int) -> str:
        """A row, for messages."""
        return self._where(row)

    def _checked(self, label: str, column: Any, where: Any) -> _Array:
        try:
            values = np.array(column, np.float64) if isinstance(column, np.ndarray) else None
            if values is None:
                values = np.fromiter(map(float, column), np.float64, len(column))
        except ValueError:
            values = np.array([_number(value) for value in column])
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            raise CorruptError(
                self.path, f"{where(row)} of the column _{label} is {column[row]}, which is no finite number"
            )
        return values

    def _group_of_rows(self) -> NDArray[np.int64]:
        """(n): row of the optics table."""
        if self._groups is not None:
            return self._groups
        assert self.optics is not None
        if len(self.optics) == 1 and GROUP not in self.table:
            self._groups = np.zeros(len(self), np.int64)
            return self._groups
        absent = [
            where
            for where, table in (("particles", self.table), ("optics", self.optics))
            if GROUP not in table
        ]
        if absent:
            raise FormatError(self.path, f"its table data_{absent[0]} has no column _{GROUP}")
        at = {group: i for i, group in enumerate(self.optics.strings(GROUP))}
        groups = self.strings(GROUP)
        strange = set(groups) - set(at)
        if strange:
            row = next(i for i, group in enumerate(groups) if group in strange)
            raise CorruptError(
                self.path, f"{self._where(row)} is of the optics group {groups[row]}, which is not described"
            )
        self._groups = np.fromiter((at[group] for group in groups), np.int64, len(groups))
        return self._groups


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def named(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def grouped(keys: Sequence[str]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the same key together.

    Returns
    -------
    names : list of str
        (p) distinct keys in the order of first appearance.
    order : (m) int64
        Rows, those of a key after each other and otherwise as they were.
    start : (p + 1) int64
    """
    index: dict[str, int] = {}
    number = np.fromiter((index.setdefault(key, len(index)) for key in keys), np.int64, len(keys))
    start = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(index)))])
    return list(index), np.argsort(number, kind="stable"), start.astype(np.int64)


def half_sets(table: Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(p): 0 or 1 by rlnRandomSubset of these rows, −1 where that says nothing."""
    if HALF not in table:
        return np.full(len(rows), -1, np.int64)
    column = table[HALF]
    values = np.array([_number(column[row]) for row in rows.tolist()])
    return np.where((values == 1) | (values == 2), values - 1, -1).astype(np.int64)


def numeric_columns(table: Table, rows: NDArray[np.int64]) -> dict[str, _Array]:
    """Columns that hold nothing but numbers in these rows."""
    out, chosen = {}, rows.tolist()
    for label, column in table.columns.items():
        try:
            out[label] = np.array([float(column[row]) for row in chosen])
        except (TypeError, ValueError):
            continue
    return out

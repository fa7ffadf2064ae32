"""STAR files: a strict reader and a writer that keeps every digit.

The reader guesses nothing. Values stay the text that is in the file until somebody asks for numbers
(`Table.floats`, `Table.ints`), because a name like ``1e5`` or ``007`` is a name. A row with a value
too few or too many is an error with its line number: programs that go on there shift every later value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_text

__all__ = ["Column", "Table", "format_star", "parse_star", "read_star", "write_star"]

#: Values of one label: text as read, or anything that `write_star` can write.
Column = Sequence[Any] | NDArray[Any]

_RESERVED = re.compile(r"(data_|save_|loop_$|stop_$|global_$)", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s'\"#_;$\[\]][^\s'\"#]*\Z")
# a value: in double quotes, in single quotes (a quote inside counts only before white space), or plain
_TOKEN = re.compile(r"""\s*(?:"(.*?)"(?=\s|\Z)|'(.*?)'(?=\s|\Z)|(#.*)|([^\s"'#]\S*))""")


@dataclass
class Table:
    """One block of a STAR file.

    Attributes
    ----------
    columns : dict of str to sequence
        By label, without the underscore. As read: lists of str. For writing: lists or arrays of str,
        int, float or bool, all of one length.
    loop : bool
        A loop with a row a line; False for a block of label-value pairs, which has one row.
    """

    columns: dict[str, Column] = field(default_factory=dict)
    loop: bool = True

    def __len__(self) -> int:
        """Number of rows."""
        return max((len(column) for column in self.columns.values()), default=0)

    def __contains__(self, label: str) -> bool:
        return label in self.columns

    def __getitem__(self, label: str) -> Column:
        try:
            return self.columns[label]
        except KeyError:
            known = ", ".join(self.columns) or "none"
            raise KeyError(f"no column {label!r}; there are {known}") from None

    def strings(self, label: str) -> list[str]:
        """A column as text."""
        return [str(value) for value in self[label]]

    def floats(self, label: str) -> NDArray[np.float64]:
        """A column as numbers; ValueError names the row of what is none."""
        return np.array([self._number(float, label, i, v) for i, v in enumerate(self[label])], np.float64)

    def ints(self, label: str) -> NDArray[np.int64]:
        """A column as whole numbers; ``3.000000`` is one, ``3.5`` is an error."""
        return np.array([self._number(_whole, label, i, v) for i, v in enumerate(self[label])], np.int64)

    def value(self, label: str) -> str:
        """The only value of a column, as text."""
        column = self[label]
        if len(column) != 1:
            raise ValueError(f"column {label!r} has {len(column)} values, not one")
        return str(column[0])

    def _number(self, convert: Any, label: str, row: int, value: Any) -> Any:
        try:
            return convert(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {row} of {label!r} is {value!r}, which is no such number") from error


def _whole(value: Any) -> int:
    try:
        return int(value) if not isinstance(value, (float, np.floating)) else _whole(str(value))
    except ValueError:
        number = float(value)
        if not number.is_integer():
            raise
        return int(number)


def read_star(path: str | Path) -> dict[str, Table]:
    """Read a STAR file.

    Returns
    -------
    dict of str to Table
        By block name, without ``data_``: ``"optics"``, ``"micrographs"``, ``""`` for ``data_``.

    Raises
    ------
    FormatError
        Not STAR, or a part of it that no program in this field writes.
    CorruptError
        Rows of unequal length, a value without a label, a name twice.
    TruncatedError
        The file is empty, or its last row stops short.
    """
    path = Path(path)
    data = path.read_bytes()
    if not data.strip(b"\0 \t\r\n"):
        raise TruncatedError(path, "the file is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # comments by older programs may hold any byte
        text = data.decode("latin-1")
    if "\0" in text:
        raise CorruptError(path, "it holds zero bytes; it is no text, or was never completely written")
    return parse_star(text, path)


def parse_star(text: str, path: str | Path = "STAR text") -> dict[str, Table]:
    """Read STAR text; see `read_star`."""
    return _Parser(text, Path(path)).parse()


class _Parser:
    def __init__(self, text: str, path: Path) -> None:
        # only these three end a line: str.splitlines would also break at form feeds and U+2028
        self.lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self.path = path
        self.at = 0
        self.blocks: dict[str, Table] = {}

    def fail(self, message: str, line: int | None = None) -> CorruptError:
        return CorruptError(self.path, f"line {(self.at if line is None else line) + 1}: {message}")

    def parse(self) -> dict[str, Table]:
        table: Table | None = None
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            if not line or line[0] == "#":
                self.at += 1
            elif line[:5].lower() == "data_":
                table = self._block(line)
            elif table is None:
                raise FormatError(
                    self.path, f"line {self.at + 1}: not STAR: {line[:40]!r} before any data_ block"
                )
            elif line.split(None, 1)[0].lower() == "loop_":
                if table.columns:
                    raise self.fail("a second table in one data_ block")
                self._loop(table, line)
            elif line[0] == "_":
                self._pair(table, line)
            else:
                raise self.fail(f"a value without a label: {line[:40]!r}")
        if not self.blocks:
            raise FormatError(self.path, "not STAR: it has no data_ block")
        return self.blocks

    def _block(self, line: str) -> Table:
        words = line.split("#", 1)[0].split()
        name = words[0][5:]
        if len(words) > 1:
            raise self.fail(f"{words[1]!r} after the name of a block")
        if name in self.blocks:
            raise self.fail(f"a second block data_{name}")
        self.at += 1
        self.blocks[name] = Table(loop=False)
        return self.blocks[name]

    def _pair(self, table: Table, line: str) -> None:
        if table.loop:
            raise self.fail(f"the label {line.split()[0]!r} after the rows of a loop")
        values = self.tokens(line)
        label = values[0][1:]
        if len(values) != 2:
            raise self.fail(f"the label _{label} has {len(values) - 1} values, not one")
        if label in table.columns:
            raise self.fail(f"the label _{label} occurs twice")
        table.columns[label] = [values[1]]
        self.at += 1

    def _loop(self, table: Table, line: str) -> None:
        if line.split("#", 1)[0].split()[1:]:
            raise self.fail("values on the line of loop_ are not supported")
        table.loop = True
        labels: list[str] = []
        self.at += 1
        for line in self._content():
            if line[0] != "_":
                break
            words = line.split("#", 1)[0].split()
            if len(words) != 1 or len(words[0]) < 2:
                raise self.fail(f"not a label: {line[:40]!r}")
            if words[0][1:] in labels:
                raise self.fail(f"the label {words[0]} occurs twice")
            labels.append(words[0][1:])
        if not labels:
            raise self.fail("a loop without labels")
        rows: list[list[str]] = []
        ended = False
        for line in self._content():
            if line[0] == "_" or _RESERVED.match(line):
                break
            if ended:
                # a blank line ends a table for RELION: what it would not read must not be read here
                raise self.fail("values after the blank line that ended the loop")
            values = line.split() if self._is_plain(line) else self.tokens(line)
            if len(values) != len(labels):
                if self.at >= len(self.lines) - 1:
                    raise TruncatedError(
                        self.path,
                        f"its last line has {len(values)} values where the loop has {len(labels)} labels: "
                        "the file was cut short",
                    )
                raise self.fail(f"{len(values)} values where the loop has {len(labels)} labels")
            rows.append(values)
            following = self.lines[self.at + 1].strip() if self.at + 1 < len(self.lines) else ""
            ended = not following
        columns = [list(column) for column in zip(*rows)] if rows else [[] for _ in labels]
        table.columns = dict(zip(labels, columns))

    def _content(self) -> Iterator[str]:
        """Lines with something on them from here on; the line given is passed when the next is asked for."""
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            if line and line[0] != "#":
                yield line
            self.at += 1

    @staticmethod
    def _is_plain(line: str) -> bool:
        return '"' not in line and "'" not in line and "#" not in line and line[0] != ";"

    def tokens(self, line: str) -> list[str]:
        """Values of a line, quotes removed, up to a comment."""
        if line[0] == ";":
            raise FormatError(
                self.path, f"line {self.at + 1}: text fields of several lines are not supported"
            )
        values: list[str] = []
        position, line = 0, line.rstrip()
        while position < len(line):
            match = _TOKEN.match(line, position)
            if match is None:
                raise self.fail(f"a quote without its end: {line[position:].strip()[:40]!r}")
            position = match.end()
            double, single, comment, plain = match.groups()
            if comment is not None:
                break
            values.append(next(v for v in (double, single, plain) if v is not None))
        return values


def write_star(path: str | Path, blocks: Mapping[str, Table], *, sync: bool = True) -> None:
    """Write a STAR file atomically; floats with all the digits that tell them from their neighbours.

    Parameters
    ----------
    path : path-like
    blocks : dict of str to Table
        By block name, without ``data_``.

    Raises
    ------
    ValueError
        Columns of unequal length, a line break or both kinds of quotes in a value: nothing that STAR,
        or RELION, can hold. Nothing is written.
    """
    atomic_write_text(path, format_star(blocks), sync=sync)


def format_star(blocks: Mapping[str, Table]) -> str:
    """The text of a STAR file; see `write_star`."""
    parts: list[str] = []
    for name, table in blocks.items():
        if name and re.search(r"[\s\x00-\x1f#]", name):
            raise ValueError(f"a STAR block cannot have the name {name!r}")
        lengths = {label: len(column) for label, column in table.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of data_{name} are of unequal length: {lengths}")
        for label in table.columns:
            if not re.fullmatch(r"[^\s\x00-\x1f#\"']+", label):
                raise ValueError(f"a STAR column cannot have the label {label!r}")
        columns = {label: _format_column(label, column) for label, column in table.columns.items()}
        parts.append(f"\ndata_{name}\n\n")
        if table.loop:
            parts.append(_format_loop(columns))
        else:
            if any(n != 1 for n in lengths.values()):
                raise ValueError(f"data_{name} has label-value pairs, so every column has one value")
            width = max((len(label) for label in columns), default=0) + 1
            parts.extend(f"_{label:<{width}} {values[0]}\n" for label, values in columns.items())
        parts.append("\n")
    return "".join(parts)


def _format_loop(columns: dict[str, list[str]]) -> str:
    if not columns:
        return ""
    head = "loop_\n" + "".join(f"_{label} #{i}\n" for i, label in enumerate(columns, 1))
    widths = [max((len(v) for v in column), default=0) for column in columns.values()]
    rows = (" ".join(v.rjust(w) for v, w in zip(row, widths)) for row in zip(*columns.values()))
    return head + "".join(f"{row}\n" for row in rows)


def _format_column(label: str, column: Column) -> list[str]:
    if isinstance(column, np.ndarray):
        if column.ndim != 1:
            raise ValueError(f"the column {label!r} has {column.ndim} dimensions")
        if column.dtype == np.float32 or column.dtype == np.float16:
            # the shortest text that gives the same single-precision number, not its double's 17 digits
            return [_float_text(float(str(v))) for v in column]
        column = column.tolist()
    return [_format_value(label, value) for value in column]


def _format_value(label: str, value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, np.floating) and not isinstance(value, float):
        return _float_text(float(str(value)))
    if isinstance(value, float):
        return _float_text(float(value))
    if isinstance(value, (str, Path)):
        return _quoted(label, str(value))
    raise ValueError(f"the column {label!r} holds {value!r}, which STAR has no way to write")


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = repr(value)
    return text[:-2] + ".0" if text.endswith(".0") else text


def _quoted(label: str, text: str) -> str:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]", text):
        raise ValueError(f"the column {label!r} holds {text!r}: STAR values have no line breaks")
    if _PLAIN.match(text) and not _RESERVED.match(text):
        return text
    for quote in ('"', "'"):
        # a quote followed by white space would end the value
        if not re.search(quote + r"\s", text) and not text.endswith(quote):
            return f"{quote}{text}{quote}"
    raise ValueError(f"the column {label!r} holds {text!r}: it cannot be quoted in STAR")

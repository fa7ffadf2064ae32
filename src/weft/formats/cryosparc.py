"""cryoSPARC's tables (``.cs``) and the groups of results (``.csg``) that it imports.

A ``.cs`` file is a structured NumPy array: a column has the name of a result and of a quantity,
``ctf/df1_A``. Names and types are those of cryosparc-tools (BSD). A path that begins with ``>`` is relative
to the folder of the ``.csg`` file.

Places are fractions of the micrograph's width and height, row 0 being the first that the MRC file stores;
fraction times columns is the index of the pixel (cryosparc-tools' example for crYOLO).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_bytes, atomic_write_text
from weft.formats.coordinate_star import Coordinates

__all__ = [
    "read_cs",
    "read_locations",
    "strings",
    "uid_of",
    "write_cs",
    "write_group",
]

Rows = NDArray[Any]
_NUMPY, _COMPRESSED = b"\x93NUMPY", b"\x95CSDAT"
_X, _Y = "location/center_x_frac", "location/center_y_frac"
_NAME, _SHAPE, _PIXEL = "location/micrograph_path", "location/micrograph_shape", "location/micrograph_psize_A"
#: Of cryoSPARC whose groups look like ours.
_VERSION = "v4.4.1"


def read_cs(path: str | Path) -> Rows:
    """Read a ``.cs`` file; nothing in it is ever executed (no pickles).

    Returns
    -------
    structured array

    Raises
    ------
    FormatError
        Not NumPy's form, or one with Python objects.
    TruncatedError
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(6)
        if start == _COMPRESSED:
            raise FormatError(
                path, "it is compressed; export it again from cryoSPARC, which writes NumPy's form"
            )
        if start != _NUMPY:
            if not start:
                raise TruncatedError(path, "the file is empty")
            raise FormatError(path, "it is no .cs file in NumPy's form")
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            # the names of some two hundred columns are longer than numpy expects a header to be
            shape, _, dtype = read(file, max_header_size=1 << 20)
        except (ValueError, EOFError, SyntaxError) as error:
            raise TruncatedError(path, f"its header cannot be read: {error}") from None
        if dtype.names is None or len(shape) != 1:
            raise FormatError(path, "it is a NumPy array without named columns, not a table of cryoSPARC")
        if dtype.hasobject:
            raise FormatError(
                path, "it holds Python objects, which are not read; export it again from cryoSPARC"
            )
        data = file.read()
    if len(data) < shape[0] * dtype.itemsize:
        raise TruncatedError(path, f"it ends in row {len(data) // dtype.itemsize + 1} of {shape[0]}")
    return np.frombuffer(data, dtype, shape[0])


def write_cs(path: str | Path, rows: Rows) -> None:
    """Write a structured array as a ``.cs`` file, atomically.

    Raises
    ------
    ValueError
        An array without named columns, or with Python objects.
    """
    if rows.dtype.names is None or rows.ndim != 1:
        raise ValueError("a .cs file needs named columns")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(rows), allow_pickle=False)
    atomic_write_bytes(path, buffer.getvalue())


def strings(rows: Rows, label: str) -> list[str]:
    """A column of text, without the ``>`` of paths relative to a group."""
    values = rows[label]
    if values.dtype.kind not in "SU":
        raise ValueError(f"the column {label} holds no text")
    texts = values.tolist()
    return [(t.decode("utf-8", "replace") if isinstance(t, bytes) else t).removeprefix(">") for t in texts]


def uid_of(text: str) -> int:
    """A number of 64 bits for something that has a name; always the same for the same name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") or 1


def read_locations(path: str | Path) -> tuple[Coordinates, ...]:
    """Where particles are, from ``location/…``, by micrograph.

    Raises
    ------
    FormatError
        It has no such columns: they may be in the other of the two files that cryoSPARC writes.
    TruncatedError, CorruptError
    """
    path = Path(path)
    rows = read_cs(path)
    have = rows.dtype.names or ()
    absent = next((label for label in (_X, _Y, _NAME, _SHAPE) if label not in have), None)
    if absent is not None:
        raise FormatError(
            path,
            f"it has no column {absent}: give the file with the places, which is often called "
            "..._passthrough_particles.cs",
        )
    try:
        names = strings(rows, _NAME)
        shapes = rows[_SHAPE].astype(np.int64).reshape(len(rows), 2)
        fractions = np.stack([rows[_X], rows[_Y]], axis=-1).astype(np.float64)
        score = np.full(len(rows), np.nan)
        if "pick_stats/ncc_score" in have:
            score = rows["pick_stats/ncc_score"].astype(np.float64)
        sizes = rows[_PIXEL].astype(np.float64) if _PIXEL in have else np.full(len(rows), np.nan)
        origin = _origin(rows)
    except (ValueError, TypeError) as error:
        raise CorruptError(path, str(error)) from None
    bad = np.flatnonzero((shapes <= 0).any(1))
    if len(bad):
        raise CorruptError(
            path, f"row {bad[0] + 1} of {_SHAPE} is {shapes[bad[0]].tolist()}, which is no shape"
        )
    of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        of.setdefault(name, []).append(row)
    out = []
    for name, found in of.items():
        shape = shapes[found[0]]
        if (shapes[found] != shape).any():
            raise CorruptError(path, f"{_SHAPE} says several things of {name}")
        size = float(sizes[found[0]])
        out.append(
            Coordinates(
                name,
                fractions[found] * shape[::-1],
                score[found],
                pixel_size=size if math.isfinite(size) and size > 0 else None,
                shape=(int(shape[0]), int(shape[1])),
                origin=None if origin is None else origin[found],
            )
        )
    return tuple(out)


def _origin(rows: Rows) -> NDArray[np.float64] | None:
    """Å: what 3D or else 2D alignment has found; the particle is at its place minus this."""
    for result in ("alignments3D", "alignments2D"):
        shift, size = f"{result}/shift", f"{result}/psize_A"
        if shift in (rows.dtype.names or ()) and size in (rows.dtype.names or ()):
            out = rows[shift].astype(np.float64) * rows[size].astype(np.float64)[:, None]
            return out if out.any() else None
    return None


def write_group(path: str | Path, kind: str, name: str, title: str, table: str, rows: Rows) -> None:
    """Write the ``.csg`` file that cryoSPARC's *Import Result Group* wants.

    Parameters
    ----------
    path : path-like
    kind : ``"exposure"`` or ``"particle"``
    name, title : str
        What the group is called in cryoSPARC.
    table : str
        Name of the ``.cs`` file, which lies beside it.
    rows : structured array
        What is in that file.
    """
    results: Iterable[str] = dict.fromkeys(n.split("/")[0] for n in rows.dtype.names or () if "/" in n)
    lines = [
        f"created: {datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
        "group:",
        f"  description: {_quoted(title)}",
        f"  name: {_quoted(name)}",
        f"  title: {_quoted(title)}",
        f"  type: {kind}",
        "results:",
    ]
    for result in sorted(results):
        lines += [
            f"  {result}:",
            f"    metafile: {_quoted('>' + table)}",
            f"    num_items: {len(rows)}",
            f"    type: {kind}.{result}",
        ]
    atomic_write_text(path, "\n".join([*lines, f"version: {_VERSION}", ""]))


def _quoted(text: str) -> str:
    """YAML's single quotes, in which only the quote itself is special."""
    return "'" + text.replace("'", "''") + "'"

"""Dynamo's tables of particles, and what its alignment of tilt series leaves.

Dynamo's workflow (``*.AWF``) solves a set of markers; its own result is a MATLAB object that nothing else
reads. What people hand on is what ``dautoalign4warp`` makes of it with IMOD's tiltalign: a folder with the
series' name that holds ``NAME.xf``, ``NAME.tlt`` (or ``.rawtlt``) and the markers as ``NAME.mod``, in
IMOD's conventions, and ``info/fitting.doc`` of the fit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.atomic import atomic_write_text
from weft.formats.imod import (
    ImodAlignment,
    from_geometry,
    read_alignment,
    to_geometry,
    write_tlt,
    write_xf,
)
from weft.formats.imod_model import ImodModel, read_model, write_model

__all__ = [
    "TABLE_COLUMNS",
    "DynamoAlignment",
    "from_geometry",
    "read_dynamo_alignment",
    "read_fitting",
    "read_tbl",
    "to_geometry",
    "write_dynamo_alignment",
    "write_tbl",
]

#: Columns of a table, by their number from 1. Angles in degrees (ZXZ), coordinates in pixels.
TABLE_COLUMNS = {
    "tag": 1, "aligned": 2, "averaged": 3, "dx": 4, "dy": 5, "dz": 6, "tdrot": 7, "tilt": 8, "narot": 9,
    "cc": 10, "cc2": 11, "cpu": 12, "ftype": 13, "ymintilt": 14, "ymaxtilt": 15, "xmintilt": 16,
    "xmaxtilt": 17, "fs1": 18, "fs2": 19, "tomo": 20, "reg": 21, "class": 22, "annotation": 23, "x": 24,
    "y": 25, "z": 26, "dshift": 27, "daxis": 28, "dnarot": 29, "dcc": 30, "otag": 31, "npar": 32, "ref": 34,
    "sref": 35, "apix": 36, "def": 37, "eig1": 41, "eig2": 42,
}  # fmt: skip
_FEWEST = 26


@dataclass
class DynamoAlignment:
    """An alignment: transforms and angles in IMOD's form, and the markers where they are there."""

    name: str
    alignment: ImodAlignment
    markers: ImodModel | None = None
    fitting: dict[str, float] | None = None


def read_dynamo_alignment(folder: str | Path) -> DynamoAlignment:
    """Read the folder of one series.

    Raises
    ------
    FormatError
        No transforms or no angles are in the folder, or more than one of them.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.xf"))
    if len(found) != 1:
        workflow = (
            " (it is a workflow of Dynamo itself; run dautoalign4warp)" if folder.suffix == ".AWF" else ""
        )
        raise FormatError(folder, f"{len(found)} transforms (*.xf) are in it, not one{workflow}")
    xf = found[0]
    angles = next((p for s in (".tlt", ".rawtlt") if (p := xf.with_suffix(s)).is_file()), None)
    if angles is None:
        raise FormatError(folder, f"neither {xf.stem}.tlt nor {xf.stem}.rawtlt is beside {xf.name}")
    model, fitting = xf.with_suffix(".mod"), folder / "info" / "fitting.doc"
    return DynamoAlignment(
        name=xf.stem,
        alignment=read_alignment(xf, angles),
        markers=read_model(model) if model.is_file() else None,
        fitting=read_fitting(fitting) if fitting.is_file() else None,
    )


def write_dynamo_alignment(folder: str | Path, series: DynamoAlignment, *, sync: bool = True) -> None:
    """Write the folder of one series, as WarpTools and others import it.

    Raises
    ------
    ValueError
        An X-axis tilt, offset or shift of the reconstruction, which these files have no place for.
    """
    a = series.alignment
    if a.x_axis_tilt or any(a.slice_shift):
        raise ValueError("an inclination about x or a shift of the volume has no place in these files")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_xf(folder / f"{series.name}.xf", a.transforms, a.shifts, sync=sync)
    for suffix in (".tlt", ".rawtlt"):
        write_tlt(folder / f"{series.name}{suffix}", a.angles + a.angle_offset, sync=sync)
    if series.markers is not None:
        write_model(folder / f"{series.name}.mod", series.markers, sync=sync)


def read_fitting(path: str | Path) -> dict[str, float]:
    """Numbers in ``fitting.doc`` by their name: the fit's rms (pixels), total markers, ...

    Lines of any other form are left out.
    """
    path = Path(path)
    found: dict[str, float] = {}
    for line in path.read_bytes().decode("latin-1").splitlines():
        match = re.match(r"\s*([A-Za-z][^:=]*?)\s*[:=]\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\b", line)
        if match:
            found[match.group(1)] = float(match.group(2))
    return found


def read_tbl(path: str | Path) -> NDArray[np.float64]:
    """Read a table of particles.

    Returns
    -------
    (particles, columns) array
        See `TABLE_COLUMNS`; the longest row decides, shorter ones are filled with 0 as Dynamo does.
    """
    path = Path(path)
    text = path.read_bytes().decode("latin-1")
    if not text.strip():
        raise TruncatedError(path, "the file is empty")
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            # MATLAB writes complex numbers where an angle was imaginary by rounding
            values = [float(w) if not w.endswith("i") else _real(w) for w in words]
        except ValueError:
            raise FormatError(path, f"line {number}: {line.strip()[:40]!r} holds what is no number") from None
        if len(values) < _FEWEST:
            raise CorruptError(path, f"line {number}: {len(values)} columns, fewer than {_FEWEST}")
        rows.append(values)
    width = max(len(row) for row in rows)
    return np.array([row + [0.0] * (width - len(row)) for row in rows])


def _real(word: str) -> float:
    value = complex(word.replace("i", "j"))
    if abs(value.imag) > 1e-3:
        raise ValueError(word)
    return value.real


def write_tbl(path: str | Path, table: ArrayLike, *, sync: bool = True) -> None:
    """Write a table of particles atomically; whole numbers without a point."""
    values = np.asarray(table, np.float64)
    if values.ndim != 2 or values.shape[1] < _FEWEST:
        raise ValueError(f"a table has at least {_FEWEST} columns, not the shape {values.shape}")

    def text(value: float) -> str:
        if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return repr(float(value)) if math.isfinite(value) else "NaN"

    atomic_write_text(path, "".join(" ".join(map(text, row)) + "\n" for row in values), sync=sync)

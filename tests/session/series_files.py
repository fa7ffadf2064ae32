"""Folders with movies and files that describe tilt series, for the tests of their import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from weft.formats import mrc
from weft.session.records import FileIdentity, Record, StepError, StepRecord
from weft.session.series_import import ImportResult, find_origins, import_series
from weft.session.tilt_table import TiltTable

HEAD = """PixelSpacing = 1.35
ImageFile = {name}.mrc
[T = SerialEM: written by a test]
[T =     Tilt axis angle = 85.3, binning = 1  spot = 8  camera = 0]
"""
SCHEME = (0.0, 3.0, -3.0, -6.0, 6.0, 9.0, -9.0)


class Folder:
    """Movies and mdocs of one folder; the movies are empty files, because only their names count."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.frames = root / "frames"
        self.mdocs = root / "mdoc"
        self.frames.mkdir()
        self.mdocs.mkdir()

    def add_frames(self, names: Iterable[str], folder: str = "frames") -> None:
        for name in names:
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def movies(self) -> dict[str, Path]:
        found = sorted(p for p in self.root.rglob("*") if p.suffix in (".tif", ".eer", ".mrc", ".TIF"))
        return {"__".join(p.relative_to(self.root).with_suffix("").parts[1:]): p for p in found}

    def write(self, name: str, text: str, encoding: str = "utf-8") -> Path:
        path = self.mdocs / name
        path.write_bytes(text.encode(encoding))
        return path

    def run(self, **given: object) -> ImportResult:
        return import_series(find_origins("mdoc", self.root), self.movies(), **given)  # type: ignore[arg-type]

    def table(self, name: str = "TS_01") -> TiltTable:
        result = self.run()
        assert result.problems == []
        return result.tables[name]


def movie_names(angles: Sequence[float] = SCHEME, series: str = "TS_01") -> list[str]:
    return [f"{series}_{i:03d}_{angle:.1f}.tif" for i, angle in enumerate(angles)]


def section(i: int, angle: float | None, movie: str | None, dose: float | None = 3.0, **more: object) -> str:
    keys: dict[str, object] = {
        "TiltAngle": angle,
        "ExposureDose": dose,
        "PriorRecordDose": None if dose is None else dose * i,
        "SubFramePath": None if movie is None else f"D:\\DATA\\grid\\{movie}",
        "DateTime": f"30-Nov-15  15:{i // 60 + 20}:{i % 60:02d}",
    }
    keys |= more
    lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
    return "\n".join([f"[ZValue = {i}]", *lines, "", ""])


def mdoc(
    angles: Sequence[float] = SCHEME,
    series: str = "TS_01",
    change: Callable[[int, dict[str, object]], None] | None = None,
) -> str:
    parts = [HEAD.format(name=series)]
    for i, (angle, name) in enumerate(zip(angles, movie_names(angles, series), strict=True)):
        more: dict[str, object] = {}
        if change:
            change(i, more)
        parts.append(section(i, angle, name, **more))  # type: ignore[arg-type]
    return "\n".join(parts)


def left_out(table: TiltTable) -> dict[str, str]:
    return {row.name: row.left_out for row in table.tilts if row.left_out}


def angles_of(table: TiltTable) -> list[float]:
    return [row.angle for row in table.tilts if not row.left_out]


def done(item: str, status: str = "done") -> Record:
    error = StepError("TruncatedError", "frame 2 is cut short", True) if status == "failed" else None
    step = StepRecord(status, f"print-{item}", error=error)  # type: ignore[arg-type]
    return Record(item, "tilt", FileIdentity(f"/{item}", 1, 1, ""), {"motion": step})


def write_stack(path: Path, n: int) -> None:
    mrc.write_stack(path, iter(np.ones((n, 8, 8), np.float32)), 2.7)

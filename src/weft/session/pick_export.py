"""``weft export picks``: coordinates for programs that extract particles themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import RequestError, WeftError
from weft.formats.coordinates import write_box
from weft.formats.star import Column, Table, write_star
from weft.session.discovery import natural_key
from weft.session.pick_files import pick_path, pickers, read_picks, write_picks

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["PickExportReport", "export_picks"]


@dataclass(frozen=True)
class PickExportReport:
    """What was written.

    Attributes
    ----------
    picker : str
    path : Path
        The table, or the folder of boxes.
    written : dict of str to int
        Item → picks.
    skipped : int
        Picks without finite coordinates.
    problems : list of str
    """

    picker: str
    path: Path
    written: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or not self.written else 0

    def describe(self) -> str:
        """For people."""
        lines = list(self.problems)
        if self.skipped:
            lines.append(f"{self.skipped} picks left out: without finite coordinates")
        count = sum(self.written.values())
        return "\n".join([*lines, f"{count} picks of {len(self.written)} micrographs: {self.path}"])


def export_picks(
    session: Session,
    output: str | Path,
    *,
    picker: str | None = None,
    box: float | None = None,
    only: str | None = None,
    project: Path | None = None,
) -> PickExportReport:
    """Write ``autopick.star`` and ``ITEM_autopick.star``, as RELION 4 and later read them, or ``ITEM.box``.

    Parameters
    ----------
    session : Session
    output : path-like
        Folder.
    picker : str, optional
        Which picks; not needed where there is one kind.
    box : float, optional
        Å: write EMAN's boxes of this side.
    only : str, optional
        Items by a shell pattern on their names.
    project : Path, optional
        Folder in which RELION is started: names become relative to it instead of absolute.

    Raises
    ------
    RequestError
        There are no such picks, or several kinds and none was chosen.
    """
    have = pickers(session.root)
    if picker is None and len(have) == 1:
        picker = have[0]
    if picker is None or picker not in have:
        raise RequestError(f"choose with --picks what to export; there are: {', '.join(have) or 'none'}.")
    if box is not None and not box > 0:
        raise RequestError(f"--box {box:g}: the side of a box is greater than 0.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)

    def name_of(path: Path) -> str:
        return (
            str(path.absolute()) if project is None else os.path.relpath(path.absolute(), project.absolute())
        )

    written: dict[str, int] = {}
    skipped, problems = 0, []
    micrographs, files = [], []
    for name, record in sorted(session.store.read_all().items(), key=lambda pair: natural_key(pair[0])):
        path = session.root / pick_path(picker, name)
        if not path.is_file() or (only is not None and not fnmatchcase(name, only)):
            continue
        motion = record.steps.get("motion")
        if motion is None or motion.status != "done":
            problems.append(f"{name}: it has picks but no average; run the motion step")
            continue
        pixel_size = float(record.metrics["pixel_size"])
        try:
            found = read_picks(path, pixel_size)
        except WeftError as error:
            problems.append(f"{name}: {error}")
            continue
        picks = found.select(np.all(np.isfinite(found.xy), axis=1))
        skipped += len(found) - len(picks)
        if box is not None:
            score = picks.score if np.isfinite(picks.score).all() and len(picks) else None
            write_box(output / f"{name}.box", picks.xy / pixel_size, box / pixel_size, score)
        else:
            file = output / f"{name}_autopick.star"
            write_picks(file, picks, pixel_size)
            micrographs.append(name_of(session.root / motion.outputs["average"]))
            files.append(name_of(file))
        written[name] = len(picks)
    table = output
    if box is None:
        table = output / "autopick.star"
        columns: dict[str, Column] = {"rlnMicrographName": micrographs, "rlnMicrographCoordinates": files}
        write_star(table, {"coordinate_files": Table(columns)})
    return PickExportReport(picker, table, written, skipped, problems)

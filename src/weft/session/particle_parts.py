"""Particles of one micrograph as they lie in a folder: a stack, and beside it what is known of each.

A folder of stacks is a session's own (``SESSION/particles/``) or was asked for (``weft export particles``).
``<item>.json`` beside ``<item>.mrcs`` holds the rows of a STAR file but for the names, and fingerprints of
all that they were made from. ``particles.star`` is put together from these, so it never has to be read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import CorruptError
from weft.formats.atomic import atomic_write_text
from weft.formats.star import Table, format_star

if TYPE_CHECKING:
    from weft.session.records import Record

__all__ = [
    "SESSION_STACKS",
    "Part",
    "read_part",
    "write_part",
    "write_particles_star",
    "write_session_particles",
]

#: Where a session keeps the particles that its own step has cut.
SESSION_STACKS = "particles"

_VERSION = 1
_GROUP, _GROUP_NAME = "rlnOpticsGroup", "rlnOpticsGroupName"
_IMAGE, _MICROGRAPH = "rlnImageName", "rlnMicrographName"
#: What a column stands for where a micrograph does not have it; other columns must be everybody's.
_ABSENT = {"rlnPhaseShift": "0.0", "rlnAutopickFigureOfMerit": "-999.0"}


@dataclass(frozen=True)
class Part:
    """Particles of one micrograph.

    Attributes
    ----------
    item : str
    micrograph : str
        Its average, relative to the session.
    labels : tuple of str
        Columns of `rows`: all but the names and the optics group.
    rows : tuple of str
        Values of each particle as STAR writes them, with tabs between them.
    optics : tuple of dict
        Columns of the table of optics, a group each.
    groups : tuple of int
        Of each particle, which of `optics`; empty where there is one.
    kept : tuple of int
        Which of the particles that were asked for these are.
    skipped : dict
        Why others were left out → how many.
    images, table : str
        Fingerprints of what the stack, and what the rows were made from.
    halves : bool
        Whether there are stacks of the even and of the odd frames.
    """

    item: str
    micrograph: str
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    optics: tuple[Mapping[str, Any], ...]
    groups: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    images: str = ""
    table: str = ""
    halves: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def stacks(self) -> dict[str, str]:
        """ "" and perhaps "even", "odd" → names of the stacks in the folder."""
        if not self.rows:
            return {}
        halves = ("", "even", "odd") if self.halves else ("",)
        return {half: f"{self.item}_{half}.mrcs" if half else f"{self.item}.mrcs" for half in halves}


def write_part(folder: Path, part: Part) -> Path:
    """Write ``<item>.json``."""
    path = folder / f"{part.item}.json"
    atomic_write_text(path, json.dumps({"version": _VERSION, **asdict(part)}))
    return path


def read_part(path: Path) -> Part | None:
    """Read ``<item>.json``; None where there is none, or one that an older or newer Weft has written.

    Raises
    ------
    CorruptError
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != _VERSION:
            return None
        plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Part(**plain)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            path, f"it is no list of particles ({error}); delete it to have them cut again"
        ) from None


def write_particles_star(
    path: Path,
    parts: Iterable[Part],
    stack_name: Callable[[str], str],
    micrograph_name: Callable[[str], str],
    half: str = "",
) -> int:
    """Write ``particles.star``; the number of particles.

    Parameters
    ----------
    parts : iterable of Part
    stack_name, micrograph_name : callable
        From a stack's name in its folder, and from a micrograph's in the session, to the names to be written.
    half : str
        ``"even"`` or ``"odd"``: name the stacks of half of the frames.
    """
    filled = [part for part in parts if len(part)]
    labels = _common_labels(filled)
    optics: dict[str, tuple[int, Mapping[str, Any]]] = {}
    lines: list[str] = []
    for part in filled:
        numbers = []
        for group in part.optics:
            key = json.dumps(group, sort_keys=True)
            numbers.append(optics.setdefault(key, (len(optics) + 1, group))[0])
        stack = _cell(stack_name(part.stacks()[half]))
        micrograph = _cell(micrograph_name(part.micrograph))
        quoted = stack[0] in "\"'"
        rows: Sequence[str] = part.rows
        if tuple(part.labels) != labels:
            rows = _reordered(part, labels)
        groups = [numbers[g] for g in part.groups] if part.groups else [numbers[0]] * len(rows)
        for i, (row, group_number) in enumerate(zip(rows, groups, strict=True), 1):
            image = f"{stack[0]}{i:06d}@{stack[1:]}" if quoted else f"{i:06d}@{stack}"
            lines.append(f"{image} {micrograph} {row} {group_number}\n")
    head = "".join(f"_{label} #{i}\n" for i, label in enumerate((_IMAGE, _MICROGRAPH, *labels, _GROUP), 1))
    table = format_star({"optics": Table(_optics_columns(list(optics.values())))})
    body = "".join(lines).replace("\t", " ")
    atomic_write_text(path, f"{table}\ndata_particles\n\nloop_\n{head}{body}\n")
    return len(lines)


def _common_labels(parts: Sequence[Part]) -> tuple[str, ...]:
    if not parts:
        return ("rlnCoordinateX", "rlnCoordinateY")
    if all(tuple(part.labels) == tuple(parts[0].labels) for part in parts):
        return tuple(parts[0].labels)
    every = dict.fromkeys(label for part in parts for label in part.labels)
    # RELION wants every column in every row
    return tuple(label for label in every if label in _ABSENT or all(label in part.labels for part in parts))


def _reordered(part: Part, labels: Sequence[str]) -> list[str]:
    at = [part.labels.index(label) if label in part.labels else None for label in labels]
    out = []
    for row in part.rows:
        cells = row.split("\t")
        values = (_ABSENT[label] if i is None else cells[i] for i, label in zip(at, labels, strict=True))
        out.append("\t".join(values))
    return out


def _optics_columns(groups: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    if not groups:
        return {_GROUP_NAME: [], _GROUP: []}
    common = [label for label in groups[0][1] if all(label in group for _, group in groups)]
    given = [str(group.get(_GROUP_NAME, "")) for _, group in groups]
    # names tell groups apart in other programs
    unique = all(given) and len(set(given)) == len(given)
    columns: dict[str, Any] = {
        _GROUP_NAME: given if unique else [f"opticsGroup{number}" for number, _ in groups],
        _GROUP: [number for number, _ in groups],
    }
    columns |= {label: [group[label] for _, group in groups] for label in common if label not in columns}
    return columns


def _cell(text: str) -> str:
    """A name as STAR writes it: quoted where it must be."""
    written = format_star({"": Table({"a": [text]})})
    return written.strip().splitlines()[-1].strip()


def write_session_particles(root: Path, records: Sequence[Record]) -> None:
    """Bring ``SESSION/particles.star`` into accord with the particles step of these records.

    Names are absolute, as in micrographs.star.

    Raises
    ------
    CorruptError
        A list of particles that is none.
    """
    parts = []
    for record in records:
        step = record.steps.get("particles")
        if step is not None and step.status == "done":
            part = read_part(root / step.outputs["particle_rows"])
            if part is not None:
                parts.append(part)
    full = root.absolute()

    def stack_name(name: str) -> str:
        return str(full / SESSION_STACKS / name)

    def micrograph_name(name: str) -> str:
        return str(full / name)

    write_particles_star(root / "particles.star", parts, stack_name, micrograph_name)

"""``weft export particles``: stacks of particles and their ``particles.star``, for the selected micrographs.

Every micrograph has a stack and a list of its own under ``DIR/stacks``. A second run does only those whose
picks, settings, motion or CTF have changed; ``particles.star`` has the particles of all that are selected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ItemError, RequestError
from weft.picking.components import PickingSettings
from weft.session.items import Item
from weft.session.particle_extraction import cut_item
from weft.session.particle_parts import Part, write_particles_star
from weft.session.particle_report import ParticleReport
from weft.session.pick_files import FOLDER, pickers
from weft.session.picking import picker_name
from weft.session.processed_micrograph import as_processed, done_step
from weft.session.step import Job
from weft.session.tomogram_export import check_inside
from weft.session.wanted_particles import ParticleSettings, Wanted, picked

if TYPE_CHECKING:
    from weft.session.config import SessionSettings
    from weft.session.session import Session

__all__ = [
    "STACKS",
    "chosen_items",
    "chosen_pickers",
    "export_particles",
    "usual_picker",
]

STACKS = "stacks"


def usual_picker(settings: SessionSettings) -> str:
    """The picker of [picking]: the name of its model; empty where there is none."""
    return picker_name(settings.get(PickingSettings).model)


def chosen_pickers(session: Session, wanted: str) -> list[str]:
    """Whose picks are meant.

    Parameters
    ----------
    wanted : str
        Names with commas between them; empty for the usual picker, or the only one that there is.

    Raises
    ------
    RequestError
        Nobody has picked, or not those who are named.
    """
    there = pickers(session.root)
    have = ", ".join(there) or "none"
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in there:
            raise RequestError(f"{session.root / FOLDER} has no picks of {name!r}, only: {have}.")
    if names:
        return names
    usual = usual_picker(session.settings)
    if usual in there:
        return [usual]
    if len(there) == 1:
        return there
    if not there:
        raise RequestError(
            f"{session.root / FOLDER} has no picks; run `weft run --steps pick`, import some with `weft "
            "import picks`, or give --particles FILE."
        )
    raise RequestError(f"there are picks of several pickers ({have}): choose one with --picks.")


def chosen_items(session: Session, only: str | None, report: ParticleReport) -> dict[str, Item]:
    """Micrographs that the selection takes, by name."""
    movies = {name: item for name, item in session.items.items() if item.kind == "movie"}
    verdicts = session.selection.judge({name: item.metrics for name, item in movies.items()})
    of_name = {n: item for n, item in movies.items() if only is None or fnmatchcase(n, only)}
    chosen = {n: item for n, item in of_name.items() if verdicts[n].selected}
    left = len(of_name) - len(chosen)
    if left:
        report.notes.append(f"{left} micrographs are not selected")
    if not of_name:
        what = f"no micrograph is called {only}" if only else "it has no micrographs"
        raise RequestError(f"{session.root}: there is nothing to export, {what}.")
    return chosen


def export_particles(
    session: Session,
    output: str | Path,
    settings: ParticleSettings | None = None,
    *,
    wanted: Mapping[str, Wanted] | None = None,
    only: str | None = None,
    project: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ParticleReport:
    """Cut the particles of the selected micrographs, as far as that has not been done, and list them.

    Parameters
    ----------
    session : Session
    output : path-like
        A folder; made where it is missing.
    settings : ParticleSettings, optional
        By default those of weft.toml.
    wanted : dict, optional
        Micrograph → particles, instead of picks: :func:`weft.session.foreign_particles.read_particles`.
    only : str, optional
        Micrographs by a shell pattern on their names.
    project : path-like, optional
        Where RELION is started, from which names of files count; by default `output`.
    device : str
    progress : callable, optional
        Takes how many particles are done, and how many there are.

    Raises
    ------
    RequestError
        There are no picks, or of several pickers; an output outside the project.
    """
    settings = settings or session.settings.get(ParticleSettings)
    out = Path(output).absolute()
    base = out if project is None else Path(project).absolute()
    check_inside(out, base)
    report = ParticleReport()
    items = chosen_items(session, only, report)
    if wanted is None:
        found = _picked(session, items, settings, report)
    else:
        found = {name: wanted[name] for name in items if name in wanted}
        left = sum(len(one) for name, one in wanted.items() if name not in items)
        if left:
            report.leave_out({"in micrographs that are not selected": left})
    total, done = sum(len(one) for one in found.values()), 0
    folder = out / STACKS
    parts: list[Part] = []

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(min(done, total), total)

    try:
        for name, one in found.items():
            before = done
            try:
                part, cut = cut_item(_job(session, items[name], device), one, settings, folder, count)
            except (ItemError, OSError) as error:
                text = " ".join(str(error).split())
                report.problems.append(text if text.startswith(name) else f"{name}: {text}")
            else:
                parts.append(part)
                report.leave_out(part.skipped)
                if cut:
                    report.cut.append(name)
            count(before + len(one) - done)
    finally:
        # also of what is done when somebody stops it
        report.written.update({part.item: len(part) for part in parts if len(part)})
        if parts:
            report.path = _write_tables(session.root, out, base, parts)
    return report


def _picked(
    session: Session, items: Mapping[str, Item], settings: ParticleSettings, report: ParticleReport
) -> dict[str, Wanted]:
    names = chosen_pickers(session, settings.picks)
    found: dict[str, Wanted] = {}
    without = 0
    for name in items:
        try:
            one = picked(session.root, name, names, settings.min_score)
        except (ItemError, OSError) as error:
            report.problems.append(f"{name}: {' '.join(str(error).split())}")
            continue
        if one is None:
            without += 1
        else:
            found[name] = one
    report.notes.append(f"picks of {', '.join(names)}")
    if without:
        report.notes.append(f"{without} micrographs have no picks")
    return found


def _job(session: Session, item: Item, device: str) -> Job:
    """The item with the settings that its motion was found with.

    Raises
    ------
    ItemError
        It has not been processed.
    """
    if item.record is None:
        raise ItemError(f"{item.name}: it is not processed yet; `weft run` does it")
    job = Job(session.root, item.source, session.settings, item.record, device)
    return as_processed(job, done_step(item.record, "motion"))


def _write_tables(root: Path, out: Path, base: Path, parts: Sequence[Part]) -> Path | None:
    """``particles.star``, and those of the halves if all have them."""
    filled = [part for part in parts if len(part)]

    def stack_name(name: str) -> str:
        return os.path.relpath(out / STACKS / name, base)

    def micrograph_name(name: str) -> str:
        return os.path.relpath(root.absolute() / name, base)

    path = out / "particles.star"
    out.mkdir(parents=True, exist_ok=True)
    write_particles_star(path, filled, stack_name, micrograph_name)
    for half in ("even", "odd"):
        table = out / f"particles_{half}.star"
        if filled and all(part.halves for part in filled):
            write_particles_star(table, filled, stack_name, micrograph_name, half)
        else:
            table.unlink(missing_ok=True)
    return path

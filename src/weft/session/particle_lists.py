"""Which particles: the candidates of a template in a session, or another program's list."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import RequestError
from weft.formats.tomo_particles import TomoParticles, join_particles, read_tomo_particles
from weft.session.candidate_files import FOLDER, candidate_file, finished_jobs
from weft.session.match_job import MatchTemplate

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["candidate_template", "find_particles", "searched_template"]


class _Sizes(dict[str, tuple[float, float, float]]):
    """Volumes' sizes by name; places in tomograms that are not there are no numbers, and found out later."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)


def find_particles(
    session: Session,
    *,
    template: str | None = None,
    particles: str | Path | None = None,
    only: str | None = None,
    pixel_size: float | None = None,
) -> TomoParticles:
    """The particles of a session: candidates of a template, or another program's list.

    Parameters
    ----------
    session : Session
    template : str, optional
        Stem of the template whose candidates are meant; not needed where there is only one.
    particles : path-like, optional
        A STAR file of RELION 3, 4, 5, WarpTools, pytom-match-pick ..., or Dynamo's table.
    only : str, optional
        Series by a shell pattern on their names.
    pixel_size : float, optional
        Å: of coordinates in pixels, where their file does not say it.

    Raises
    ------
    RequestError
        No candidates, candidates of several templates, or both kinds of source.
    """
    sizes = _Sizes()
    for series in session.series.values():
        done = series.record.steps.get("align") if series.record else None
        if done is not None and done.status == "done":
            sizes[series.name] = series.volume_size
    if particles is not None:
        if template is not None:
            raise RequestError("give --template for candidates or --particles for a list, not both.")
        listed = read_tomo_particles(particles, pixel_size=pixel_size, volume_size=sizes)
        if only is None:
            return listed
        return listed.select(np.array([fnmatchcase(name, only) for name in listed.tomogram], bool))
    stem = candidate_template(session, template, only)
    files = _candidates(session, only)[stem]
    return join_particles([read_tomo_particles(path, volume_size=sizes) for path in files])


def candidate_template(session: Session, template: str | None = None, only: str | None = None) -> str:
    """The stem of the template whose candidates a session has.

    Parameters
    ----------
    session : Session
    template : str, optional
        Its stem, or its file; not needed where there is only one.
    only : str, optional
        Series by a shell pattern on their names.

    Raises
    ------
    RequestError
        There are no candidates, or of several templates.
    """
    folder, found = session.root / FOLDER, _candidates(session, only)
    hint = "run `weft match` and `weft candidates`, or give --particles FILE"
    if template is not None:
        template = Path(template).stem if template.endswith((".mrc", ".map")) else template
        if template in found:
            return template
        have = ", ".join(found) or "none"
        raise RequestError(f"{folder} has no candidates of a template {template!r}, only: {have}; {hint}.")
    if not found:
        raise RequestError(f"{folder} has no candidates; {hint}.")
    variants = _variants(session)
    stems = [stem for stem, files in found.items() if not variants.issuperset(files)] or list(found)
    if len(stems) > 1:
        raise RequestError(
            f"there are candidates of several templates, {', '.join(stems)}: choose one with --template."
        )
    return stems[0]


def _candidates(session: Session, only: str | None) -> dict[str, list[Path]]:
    """Files by the stems of their templates, in the order of the series."""
    known = [s.name for s in session.series.values() if only is None or fnmatchcase(s.name, only)]
    every = [s.name for s in session.series.values()]
    found: dict[str, list[Path]] = {}
    for name in known:
        longer = [other for other in every if other != name and other.startswith(name)]
        for path in sorted((session.root / FOLDER).glob(f"{name}_*_candidates.star")):
            stem = path.name.removeprefix(f"{name}_").removesuffix("_candidates.star")
            # another series' name may begin with this one's
            if not any(path.name.startswith(f"{other}_") for other in longer):
                found.setdefault(stem, []).append(path)
    return found


def _variants(session: Session) -> set[Path]:
    """Files of searches under another name, as with the other hand: taken only where they are named."""
    return {
        file
        for path, job in finished_jobs(session.root / FOLDER).items()
        for template in job.templates
        if (file := candidate_file(path, job, template.stem)).name
        != f"{job.name}_{template.stem}_candidates.star"
    }


def searched_template(session: Session, stem: str) -> MatchTemplate | None:
    """What the searches with a template know of it; None where there was none."""
    jobs = finished_jobs(session.root / FOLDER).values()
    return next((t for job in jobs for t in job.templates if t.stem == stem), None)

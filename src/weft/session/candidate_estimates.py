"""How good the candidates of a search are, as files: estimates of recall and their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import FitError
from weft.formats.atomic import atomic_write
from weft.matching.candidates import CandidateSettings, cut_off
from weft.matching.recall import RecallEstimate, estimate_recall, recall_figure
from weft.session.candidate_files import job_statistics, take_candidates
from weft.session.match_job import MatchJob

__all__ = ["estimate_file", "estimate_job", "with_discovery_limit", "write_estimate", "write_figure"]


def estimate_file(job_path: Path) -> Path:
    """Where the figure of a search's estimated recall is."""
    return job_path.with_name(f"{job_path.stem}_recall.svg")


def estimate_job(
    job_path: Path, settings: CandidateSettings | None = None, *, mask: Path | None = None
) -> tuple[NDArray[np.float64], RecallEstimate]:
    """Estimate how many of a search's candidates are particles.

    Returns
    -------
    scores : (n,) array
        Of the best candidates without a cut-off, twice as many as are wanted and some more.
    estimate : RecallEstimate
    """
    settings = settings or CandidateSettings()
    job = MatchJob.read(job_path)
    statistics = job_statistics(job, job_path)
    wide = settings.model_copy(
        update={
            "number": 2 * settings.number + 500,
            "cut_off": min(1.0, max(1e-6, statistics.mean + 2.0 * statistics.std)),
            "tophat": False,
        }
    )
    found = take_candidates(job_path, wide, mask=mask)
    # in a small map the last ones were taken because nothing else was left
    enough = max(50, len(found) // 2) if len(found) < wide.number else len(found)
    scores = found.score[:enough]
    return scores, estimate_recall(scores, statistics)


def with_discovery_limit(
    job_path: Path, settings: CandidateSettings, *, mask: Path | None = None
) -> CandidateSettings:
    """Settings whose cut-off holds to the part of false discoveries that they allow.

    The formula's cut-off stays where there are too few scores for an estimate, or no particles among them.
    """
    if not settings.false_discoveries > 0.0 or settings.cut_off > 0.0:
        return settings
    job = MatchJob.read(job_path)
    lowest = cut_off(job_statistics(job, job_path), settings)
    try:
        _, estimate = estimate_job(job_path, settings, mask=mask)
    except FitError:
        return settings
    wanted = estimate.cut_off_for(settings.false_discoveries)
    return settings if not lowest < wanted < 1.0 else settings.model_copy(update={"cut_off": wanted})


def write_estimate(
    job_path: Path, settings: CandidateSettings | None = None, *, mask: Path | None = None
) -> tuple[Path, RecallEstimate]:
    """Estimate recall and draw it: ``JOB_recall.svg`` beside the job file."""
    settings = settings or CandidateSettings()
    job = MatchJob.read(job_path)
    scores, estimate = estimate_job(job_path, settings, mask=mask)
    lowest = cut_off(job_statistics(job, job_path), settings)
    path = estimate_file(job_path)
    title = f"{job.name}, {', '.join(template.stem for template in job.templates)}"
    write_figure(path, recall_figure(scores, estimate, lowest, title))
    return path, estimate


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure atomically, in the format that its name says (svg, png, pdf)."""
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "svg", dpi=150)

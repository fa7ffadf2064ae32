"""Which way the defocus goes with the tilt, judged by what template matching scores with either hand.

The places are those that a search has found. Each is scored again with the CTF that it has itself, once with
hand +1 and once with hand −1, its pose refined in both cases; so both hands see the same places and voxels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.errors import FitError, ItemError, SessionError
from weft.formats.atomic import atomic_write_text
from weft.matching.candidates import CandidateSettings
from weft.matching.handedness import HandVerdict, defocus_leverage, hand_figure, judge_places
from weft.matching.refinement import refine_places
from weft.session.candidate_estimates import write_figure
from weft.session.candidate_files import FOLDER, job_statistics, take_candidates
from weft.session.match_inputs import MatchingSettings, matcher_of
from weft.session.match_job import MatchJob
from weft.session.matching import job_name
from weft.session.tomogram_source import TomogramSource, session_tomogram

if TYPE_CHECKING:
    from weft.session.session import Session

#: Degrees around the poses that were found.
_STEP = 4.0

__all__ = ["judge_job", "judge_session", "judge_tomogram"]


def judge_job(source: TomogramSource, settings: MatchingSettings, job_path: Path, root: Path) -> HandVerdict:
    """Score a search's candidates with both hands.

    Parameters
    ----------
    source : TomogramSource
    settings : MatchingSettings
        Of the search.
    job_path : Path
        Its job file.
    root : Path
        From which relative paths in the settings count.

    Raises
    ------
    FitError
        Too few candidates.
    ItemError
        The search did without the CTF.
    """
    if settings.weighting != "ctf":
        raise ItemError(f"{source.name}: the hand shows in the CTF only: match with --weighting ctf")
    job = MatchJob.read(job_path)
    found = take_candidates(job_path, CandidateSettings())
    matcher = matcher_of(source, settings, root)
    places = np.rint((found.xyz - np.asarray(source.origin)) / source.voxel_size).astype(np.int64)[:, ::-1]
    first = np.searchsorted(matcher.plan.owner.numpy(), found.template)
    both = [
        refine_places(matcher.with_hand(hand), places, first, euler=found.euler, step=_STEP)
        for hand in (1.0, -1.0)
    ]
    sigma = job_statistics(job, job_path).std
    place = 0.5 * (both[0].xyz + both[1].xyz) * source.voxel_size + np.asarray(source.origin)
    # what a tilt counts in the middle of the band
    k = torch.tensor([0.25 / source.voxel_size])
    weight = source.contrast.reliability(k, source.geometry, "warp", source.cosine)[:, 0].numpy() ** 2
    square, mean = defocus_leverage(source.geometry, place, weight)
    x = place[:, 0] - 0.5 * job.volume_size[0]
    return judge_places(x, both[0].score / sigma, both[1].score / sigma, square, mean)


def write_verdict(job_path: Path, name: str, verdict: HandVerdict) -> Path:
    """One picture and one file of numbers beside the job; where the picture is."""
    picture = job_path.with_name(f"{job_path.stem}_hand.svg")
    write_figure(picture, hand_figure(verdict, name))
    facts = {"hand": verdict.hand, "p": verdict.p, "places": verdict.n, "sentence": verdict.sentence}
    atomic_write_text(picture.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    return picture


def judge_tomogram(
    source: TomogramSource, settings: MatchingSettings, job: Path, root: Path, say: Callable[[str], Any]
) -> int:
    """Judge by one tomogram's search, write it and say it; the exit code."""
    try:
        verdict = judge_job(source, settings, job, root)
    except (FitError, ItemError) as error:
        say(f"failed: {source.name}: {error}")
        return 1
    picture = write_verdict(job, source.name, verdict)
    say(f"{source.name}: {verdict.sentence}; {picture}")
    return 0


def judge_session(session: Session, only: str | None, say: Callable[[str], Any]) -> int:
    """Judge every matched series of a session."""
    settings, code = session.settings.get(MatchingSettings), 0
    for series in session.series.values():
        if only is not None and not fnmatchcase(series.name, only):
            continue
        job = session.root / FOLDER / f"{job_name(series.name, settings.template)}.json"
        if not job.is_file():
            continue
        try:
            source = session_tomogram(series)
        except SessionError as error:
            say(f"failed: {series.name}: {error}")
            code = 1
            continue
        code = max(code, judge_tomogram(source, settings, job, session.root, say))
    return code

"""Candidates: the places of a finished search that stand out, for other programs and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from weft.matching.candidates import CandidateSettings, cut_off
from weft.session.candidate_estimates import with_discovery_limit
from weft.session.candidate_files import FOLDER, candidate_file, job_statistics, write_candidates
from weft.session.config import SessionSettings
from weft.session.match_inputs import MatchingSettings
from weft.session.match_job import MatchJob
from weft.session.step import Job, Step, StepResult
from weft.settings import Settings

__all__ = ["STEP", "CandidatesStep"]


class CandidatesStep(Step):
    """Write ``matching/<name>_<template>_candidates.star``."""

    name = "candidates"
    kinds = ("series",)
    after = ("match",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"candidates": CandidateSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return bool(settings.get(MatchingSettings).template)

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        path = Path(job.output("match", "match_job"))
        settings = with_discovery_limit(path, job.settings.get(CandidateSettings))
        found = write_candidates(path, settings)
        written = MatchJob.read(path)
        outputs = {}
        for template in written.templates:
            file = candidate_file(path, written, template.stem)
            outputs[f"candidates_{template.stem}"] = f"{FOLDER}/{file.name}"
        metrics = {
            "candidates": len(found),
            "candidate_cut_off": cut_off(job_statistics(written, path), settings),
            "candidate_best": float(found.score[0]) if len(found) else None,
        }
        return StepResult(metrics, outputs)


STEP = CandidatesStep()

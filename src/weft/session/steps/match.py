"""Match: where in the tomogram the templates of [matching] are, and in which orientation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from weft.session.candidate_files import FOLDER
from weft.session.config import SessionSettings
from weft.session.match_inputs import MatchingSettings
from weft.session.matching import match_tomogram
from weft.session.step import Job, Step, StepResult, inside
from weft.session.tilt_item import TiltSeries
from weft.session.tomogram_source import session_tomogram
from weft.settings import Settings

__all__ = ["STEP", "MatchStep"]


class MatchStep(Step):
    """Write ``matching/<name>_<template>.json`` and the maps that it names."""

    name = "match"
    kinds = ("series",)
    after = ("reconstruct",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"matching": MatchingSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`; only where there is something to look for."""
        return bool(settings.get(MatchingSettings).template)

    def reads(self, settings: SessionSettings) -> dict[str, Any]:
        """See :class:`Step`; how much memory was allowed does not matter."""
        out = super().reads(settings)
        out["matching"] = {key: value for key, value in out["matching"].items() if key != "memory"}
        return out

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The templates, their mask, and the tomograms' where all have one."""
        chosen = settings.get(MatchingSettings)
        found = {f"template {i}": inside(root, path) for i, path in enumerate(chosen.template)}
        found |= {"mask": inside(root, chosen.mask)} if chosen.mask else {}
        if chosen.tomogram_mask and "{name}" not in chosen.tomogram_mask:
            found["tomogram_mask"] = inside(root, chosen.tomogram_mask)
        return found

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(MatchingSettings)
        series = TiltSeries(job.root, job.item, job.source, job.record)
        source = session_tomogram(series)
        path, found = match_tomogram(source, settings, job.root / FOLDER, root=job.root, device=job.device)
        outputs = {f"match_{key}": f"{FOLDER}/{file}" for key, file in found.files.items()}
        outputs["match_job"] = f"{FOLDER}/{path.name}"
        metrics = {
            "match_std": found.statistics["std"],
            "match_rotations": found.statistics["rotations"],
            "match_seconds": found.statistics["seconds"],
        }
        return StepResult(metrics, outputs, {"templates": [template.stem for template in found.templates]})


STEP = MatchStep()

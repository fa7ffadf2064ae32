"""Preprocess: a prepared copy of the average, as `weft preprocess` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from weft.formats import mrc
from weft.micrographs.preprocessing import PreprocessSettings, preprocess
from weft.movies.average import AverageSettings
from weft.session.config import SessionSettings
from weft.session.preparing import facts_of, write_micrograph
from weft.session.step import Job, Step, StepResult
from weft.settings import Settings

__all__ = ["STEP", "PreprocessStep"]


class PreprocessStep(Step):
    """Write ``preprocessed/<item>.mrc`` when any operation is switched on."""

    name = "preprocess"
    after = ("motion",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"preprocess": PreprocessSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return bool(settings.get(PreprocessSettings).operations())

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(PreprocessSettings)
        image, info = mrc.read(job.output("motion", "average"))
        pixel_size = float(job.record.metrics["pixel_size"])
        done = preprocess(torch.from_numpy(image).to(job.device), settings, pixel_size)
        path = f"preprocessed/{job.item}.mrc"
        float16 = job.settings.get(AverageSettings).float16
        write_micrograph(job.place(path), done, settings, float16=float16, labels=info.labels)
        metrics = {f"preprocessed_{name}": value for name, value in facts_of(done).items()}
        return StepResult(metrics, {"preprocessed": path})


STEP = PreprocessStep()

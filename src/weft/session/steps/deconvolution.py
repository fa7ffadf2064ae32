"""Deconvolution: a copy of the average in which particles can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from weft.defocus.micrograph import CTFModel
from weft.formats import mrc
from weft.micrographs.deconvolution import DeconvolutionSettings, deconvolve
from weft.movies.average import AverageSettings
from weft.session.config import SessionSettings
from weft.session.step import Job, Step, StepResult
from weft.settings import Settings

__all__ = ["STEP", "DeconvolutionStep"]


class DeconvolutionStep(Step):
    """Write ``deconv/<item>.mrc`` with the mean CTF undone."""

    name = "deconvolution"
    after = ("motion", "ctf")
    sections: ClassVar[Mapping[str, type[Settings]]] = {"deconvolution": DeconvolutionSettings}
    input_keys = ("pixel_size", "voltage", "cs", "amplitude")

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return settings.get(DeconvolutionSettings).write

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        image = mrc.read(job.output("motion", "average"))[0]
        pixel_size = float(job.record.metrics["pixel_size"])
        optics = job.settings.input.optics().at_pixel_size(pixel_size)
        model = CTFModel.from_dict(job.record.steps["ctf"].results["model"])
        out = deconvolve(
            torch.from_numpy(np.asarray(image, dtype=np.float32)).to(job.device),
            model.mean,
            optics,
            job.settings.get(DeconvolutionSettings),
            model.phase_shift,
        )
        path = f"deconv/{job.item}.mrc"
        dtype = np.float16 if job.settings.get(AverageSettings).float16 else np.float32
        mrc.write(job.place(path), out.cpu().numpy(), pixel_size, dtype=dtype)
        return StepResult({}, {"deconvolved": path})


STEP = DeconvolutionStep()

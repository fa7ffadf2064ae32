"""CTF: from the average (or the frames) to local defocus, astigmatism and how far the fit holds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import torch

from weft.defocus.micrograph import CTFSettings, fit_ctf
from weft.defocus.quality import Curve
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.session.pictures import write_png
from weft.session.step import Job, Step, StepResult, on_device
from weft.settings import Settings

__all__ = ["STEP", "CTFStep"]


class CTFStep(Step):
    """Fit the CTF, write the power spectrum (half data, half fit) and the 1D curves."""

    name = "ctf"
    after = ("motion",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"ctf": CTFSettings}
    input_keys = ("pixel_size", "voltage", "cs", "amplitude")

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(CTFSettings)
        optics = job.settings.input.optics()
        source: Any
        if settings.source == "movie":
            from weft.session.steps.motion import read_movie

            source = on_device(job.shared("frames", lambda: read_movie(job))[0], job.device)
        else:
            image = mrc.read(job.output("motion", "average"))[0]
            source = torch.from_numpy(np.asarray(image, dtype=np.float32)).to(job.device)
            pixel_size = job.record.metrics["pixel_size"]
            optics = optics.at_pixel_size(float(pixel_size))
        model = fit_ctf(source, optics, settings)
        outputs = {"powerspectrum": write_png(job, f"powerspectrum/{job.item}.png", model.picture())}
        if model.curve is not None:
            outputs["powerspectrum_curve"] = f"powerspectrum/{job.item}.npz"
            atomic_write_bytes(job.place(outputs["powerspectrum_curve"]), _curve(model.curve))
        return StepResult(model.metrics(), outputs, {"model": model.to_dict()})


def _curve(curve: Curve) -> bytes:
    """The 1D average, its fit and their correlation as an .npz."""
    buffer = io.BytesIO()
    columns: dict[str, Any] = {f.name: getattr(curve, f.name) for f in fields(curve)}
    np.savez(buffer, **columns)
    return buffer.getvalue()


STEP = CTFStep()

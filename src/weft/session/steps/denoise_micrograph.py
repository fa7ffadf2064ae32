"""Denoise: a copy of the average without its noise, by the network that ships or by one that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from weft.denoising.micrographs import (
    DEFAULT_MODEL,
    MicrographDenoisingSettings,
    deconvolution_of,
    default_model,
    denoise_micrograph,
    prepared,
)
from weft.denoising.network import Denoiser
from weft.formats import mrc
from weft.movies.average import AverageSettings
from weft.physics.fourier import resize
from weft.session.config import SessionSettings
from weft.session.denoising import image_ctf, item_halves, read_model
from weft.session.pictures import thumbnail, write_png
from weft.session.step import Job, Step, StepResult, inside
from weft.settings import Settings

__all__ = ["STEP", "DenoiseMicrographStep", "model_of"]


class DenoiseMicrographStep(Step):
    """Write ``denoised/<item>.mrc`` and a picture of it."""

    name = "denoise_micrograph"
    version = 2
    after = ("motion", "ctf")
    sections: ClassVar[Mapping[str, type[Settings]]] = {"denoising": MicrographDenoisingSettings}
    input_keys = ("voltage", "cs", "amplitude")

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return settings.get(MicrographDenoisingSettings).write

    def reads(self, settings: SessionSettings) -> dict[str, Any]:
        """See :class:`Step`; how networks are trained does not matter to a trained one."""
        out = super().reads(settings)
        section = out["denoising"]
        out["denoising"] = {key: section[key] for key in ("write", "model", "deconvolve", "full_size")}
        return out

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The trained model."""
        model = settings.get(MicrographDenoisingSettings).model
        return {} if model == DEFAULT_MODEL else {"model": inside(root, model)}

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(MicrographDenoisingSettings)
        model = model_of(settings, job.root)
        deconvolution = deconvolution_of(model, settings.deconvolve)
        ctf = image_ctf(job.record, job.settings)
        own = float(job.record.metrics["pixel_size"])
        halves = item_halves(job)
        shape = (halves[0].shape[0], halves[0].shape[1])
        (even, pixel_size), (odd, _) = (
            prepared(half, own, model.pixel_size, ctf, deconvolution) for half in halves
        )
        out = denoise_micrograph((even, odd), model, pixel_size, job.device).cpu()
        picture = thumbnail(out)
        if settings.full_size:
            out, pixel_size = resize(out, shape), own
        path = f"denoised/{job.item}.mrc"
        dtype = np.float16 if job.settings.get(AverageSettings).float16 else np.float32
        mrc.write(job.place(path), out.numpy(), pixel_size, dtype=dtype)
        shown = write_png(job, f"denoised/{job.item}.png", picture)
        about = {
            "trained_on": "simulations" if settings.model == DEFAULT_MODEL else len(model.sources),
            "deconvolved": deconvolution is not None,
            "pixel_size": pixel_size,
        }
        return StepResult({}, {"denoised": path, "denoised_picture": shown}, {"denoised": about})


def model_of(settings: MicrographDenoisingSettings, root: Path) -> Denoiser:
    """The model that the settings name.

    Raises
    ------
    SettingsError
        If it cannot be read.
    RequestError
        If it is something else, or one of tomograms.
    """
    if settings.model == DEFAULT_MODEL:
        return default_model()
    return read_model(inside(root, settings.model), dims=2)


STEP = DenoiseMicrographStep()

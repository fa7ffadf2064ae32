"""Denoise: a copy of the tomogram without what its halves do not share, by a network trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from weft.denoising.cubes import Wedge
from weft.denoising.training import TrainingPair, train
from weft.denoising.volumes import TomogramDenoisingSettings, denoise
from weft.errors import ItemError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.session.config import SessionSettings
from weft.session.denoising import read_model
from weft.session.pictures import write_png
from weft.session.records import Record
from weft.session.step import Job, Step, StepResult, inside
from weft.session.steps.reconstruct import volume_name
from weft.settings import Settings
from weft.tilts.alignment import TiltAlignment
from weft.tilts.slices import slice_picture
from weft.tilts.volumes import Spectator

__all__ = ["STEP", "DenoiseTomogramStep", "half_maps"]

#: How much of the specimen is averaged in a picture, Å: as in the tomogram's own.
_PICTURE_THICKNESS = 50.0


class DenoiseTomogramStep(Step):
    """Write ``reconstruction/denoised/<name>_<pixel size>Apx.mrc``."""

    name = "denoise_tomogram"
    kinds = ("series",)
    after = ("reconstruct",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"tomogram_denoising": TomogramDenoisingSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return settings.get(TomogramDenoisingSettings).write

    def reads(self, settings: SessionSettings) -> dict[str, Any]:
        """See :class:`Step`; how networks are trained does not matter to a trained one."""
        out = super().reads(settings)
        if settings.get(TomogramDenoisingSettings).model:
            section = out["tomogram_denoising"]
            out["tomogram_denoising"] = {key: section[key] for key in ("write", "model")}
        return out

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The trained model."""
        model = settings.get(TomogramDenoisingSettings).model
        return {"model": inside(root, model)} if model else {}

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(TomogramDenoisingSettings)
        pair, pixel_size = half_maps(job.root, job.record)
        outputs = {}
        if settings.model:
            model = read_model(inside(job.root, settings.model), dims=3)
        else:
            model = train([pair], pixel_size, settings, job.device)
            outputs["denoiser"] = f"models/denoise/{job.item}.safetensors"
            atomic_write_bytes(job.place(outputs["denoiser"]), model.to_bytes())
        outputs["tomogram_denoised"] = f"reconstruction/denoised/{volume_name(job.item, pixel_size)}"
        nz, ny, nx = pair.first.shape
        spectator = Spectator((nz, ny, nx), max(1, round(_PICTURE_THICKNESS / pixel_size)))
        place = job.place(outputs["tomogram_denoised"])
        with mrc.stack_writer(place, pixel_size, volume=True) as writer:

            def write(first: int, slab: torch.Tensor) -> None:
                spectator.see(first, slab)
                for section in slab.numpy():
                    writer.append(section)

            denoise((pair.first, pair.second), model, pixel_size, write, job.device)
        picture = slice_picture(spectator.summary())
        path = f"reconstruction/pictures/{job.item}_slices_denoised.png"
        outputs["slices_denoised"] = write_png(job, path, picture)
        about = {
            "steps": model.steps,
            "losses": [asdict(loss) for loss in model.losses],
            "missing_wedge": model.missing_wedge,
            "trained_on": model.sources,
        }
        return StepResult({"denoising_explained": model.explained}, outputs, {"denoiser": about})


def half_maps(root: Path, record: Record) -> tuple[TrainingPair, float]:
    """The half maps of a reconstructed series, mapped, and their pixel size (Å).

    Raises
    ------
    ItemError
        If there are none: saying which setting makes them.
    """
    done = record.steps.get("reconstruct")
    if done is None or done.status != "done":
        raise ItemError(f"{record.item}: it has no tomogram yet; run the reconstruct step")
    if not {"tomogram_even", "tomogram_odd"} <= set(done.outputs):
        raise ItemError(
            f"{record.item}: there are no half tomograms to learn from; set reconstruction.halves to "
            '"frames" (with average.halves = true) or to "tilts", and run again'
        )
    even, odd = (mrc.read(root / done.outputs[f"tomogram_{half}"], mmap=True)[0] for half in ("even", "odd"))
    found = TiltAlignment.from_dict(dict(record.steps["align"].results["alignment"]))
    order = found.geometry.angles.argsort()
    # the third row is the direction of the beam, x, y, z
    first, last = (found.geometry.matrices[i, 2].tolist() for i in (order[0], order[-1]))
    wedge = Wedge((first[2], first[1], first[0]), (last[2], last[1], last[0]))
    return TrainingPair(even, odd, record.item, wedge), float(record.metrics["tomogram_pixel_size"])


STEP = DenoiseTomogramStep()

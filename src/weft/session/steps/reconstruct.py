"""Reconstruct: the tomogram, a deconvolved copy, half maps on request, and pictures of its middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import ClassVar

import numpy as np
import torch

from weft.defocus.tilt_series import TiltCTF
from weft.formats import mrc
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.physics.geometry import TiltGeometry
from weft.session.pictures import write_png
from weft.session.step import Job, Step, StepResult
from weft.session.steps.stack import used_tilts
from weft.session.tilt_item import final_geometry
from weft.settings import Settings
from weft.tilts.alignment import TiltAlignment
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages, half_tilts
from weft.tilts.reconstruction import ReconstructionSettings, TomogramDeconvolutionSettings, reconstruct
from weft.tilts.slices import slice_picture
from weft.tilts.volumes import MapSummary, VolumeGrid

__all__ = ["STEP", "ReconstructStep", "volume_name"]

#: How much of the specimen is averaged in a picture, Å.
_PICTURE_THICKNESS = 50.0


def volume_name(item: str, pixel_size: float) -> str:
    """What a tomogram's file is called, as Warp does."""
    return f"{item}_{pixel_size:.2f}Apx.mrc"


class ReconstructStep(Step):
    """Write ``reconstruction/<name>_<pixel size>Apx.mrc`` and its like."""

    name = "reconstruct"
    kinds = ("series",)
    after = ("stack", "align", "tilt_ctf")
    sections: ClassVar[Mapping[str, type[Settings]]] = {
        "reconstruction": ReconstructionSettings,
        "tomogram_deconvolution": TomogramDeconvolutionSettings,
    }
    input_keys = ("voltage", "cs", "amplitude")

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(ReconstructionSettings)
        found = TiltAlignment.from_dict(dict(job.record.steps["align"].results["alignment"]))
        ctf_step = job.record.steps["tilt_ctf"].results
        ctf = TiltCTF.from_dict(ctf_step["ctf"])
        geometry = final_geometry(found, ctf, float(ctf_step["hand"]))
        contrast = _contrast(job, ctf)
        grid = VolumeGrid.of(geometry.volume_size, settings.pixel_size)
        make = _Maker(job, settings, grid, found.pixel_size)
        deconvolution = job.settings.get(TomogramDeconvolutionSettings)
        images = make.images("stack")
        outputs, maps = make.volume(images, geometry, contrast, "reconstruction", "tomogram", deconvolution)
        if settings.halves == "tilts":
            for half, chosen in zip(("even", "odd"), half_tilts(geometry.angles), strict=True):
                part = images.select(chosen), geometry.select(chosen), contrast.select(chosen)
                outputs |= make.volume(*part, f"reconstruction/{half}", f"tomogram_{half}")[0]
        elif settings.halves == "frames":
            for half in ("even", "odd"):
                of_half = make.images(f"stack_{half}")
                outputs |= make.volume(
                    of_half, geometry, contrast, f"reconstruction/{half}", f"tomogram_{half}"
                )[0]
        for name, summary in maps.items():
            picture = slice_picture(summary)
            prefix = "slices" if name == "map" else f"slices_{name}"
            outputs[prefix] = write_png(job, f"reconstruction/pictures/{job.item}_{prefix}.png", picture)
        z, y, x = grid.shape
        metrics = {
            "tomogram_pixel_size": settings.pixel_size,
            "tomogram_x": x,
            "tomogram_y": y,
            "tomogram_z": z,
            "tomogram_std": maps["map"].std,
        }
        return StepResult(metrics, outputs)


def _contrast(job: Job, ctf: TiltCTF) -> TiltContrast:
    tilts = used_tilts(job.record)
    optics = job.settings.input.optics()
    return TiltContrast.of(
        optics,
        len(tilts),
        dose=[tilt["dose"] for tilt in tilts],
        astigmatism=ctf.delta,
        angle=ctf.angle,
        phase_shift=ctf.phase,
    )


class _Maker:
    """Makes one volume after the other from the same series."""

    def __init__(
        self, job: Job, settings: ReconstructionSettings, grid: VolumeGrid, pixel_size: float
    ) -> None:
        self.job, self.settings, self.grid, self.pixel_size = job, settings, grid, pixel_size

    def images(self, name: str) -> TiltImages:
        """The images of the stack, or of one of its halves, at the resolution of the tomogram."""

        def sections() -> Iterator[torch.Tensor]:
            with mrc.MrcStack(self.job.output("stack", name)) as stack:
                for section in range(len(stack)):
                    yield torch.from_numpy(np.ascontiguousarray(stack.read(section), np.float32))

        return TiltImages.prepare(sections(), self.pixel_size, self.settings.pixel_size, self.job.device)

    def volume(
        self,
        images: TiltImages,
        geometry: TiltGeometry,
        contrast: TiltContrast,
        folder: str,
        key: str,
        deconvolution: DeconvolutionSettings | None = None,
    ) -> tuple[dict[str, str], Mapping[str, MapSummary]]:
        """Write a tomogram, slab by slab, and its deconvolved copy if one is asked for."""
        name = volume_name(self.job.item, self.settings.pixel_size)
        places = {"map": f"{folder}/{name}"}
        if deconvolution is not None and getattr(deconvolution, "write", True):
            places["deconvolved"] = f"{folder}/deconv/{name}"
        keys = {"map": key, "deconvolved": f"{key}_deconvolved"}
        with ExitStack() as stack:
            writers = {
                kind: stack.enter_context(
                    mrc.stack_writer(self.job.place(path), self.settings.pixel_size, volume=True)
                )
                for kind, path in places.items()
            }

            def write(kind: str, first: int, slab: torch.Tensor) -> None:
                for section in slab.cpu().numpy():
                    writers[kind].append(section)

            maps = reconstruct(
                images,
                geometry,
                contrast,
                self.grid,
                write,
                self.settings,
                deconvolution,
                picture_thickness=_PICTURE_THICKNESS,
            )
        return {keys[kind]: path for kind, path in places.items()}, maps


STEP = ReconstructStep()

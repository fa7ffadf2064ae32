"""Reconstruct: the tomogram, a deconvolved copy, half maps on request, and pictures of its middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from weft.defocus.tilt_series import TiltCTF
from weft.errors import ItemError
from weft.formats import mrc, ome_zarr
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.physics.geometry import TiltGeometry
from weft.picking.components import PickingSettings, artefact_mask, covering_discs
from weft.picking.network import ARTEFACT
from weft.picking.segmentation import segment
from weft.session.config import SessionSettings
from weft.session.picking import DEFAULT, model_file, network_of
from weft.session.pictures import write_png
from weft.session.step import Job, Step, StepResult
from weft.session.tilt_contrast import stack_contrast
from weft.session.tilt_item import final_geometry
from weft.settings import Settings
from weft.tilts.alignment import TiltAlignment
from weft.tilts.erasing import BeadErasingSettings, erase_beads, fringe_width
from weft.tilts.gridding import TiltContrast
from weft.tilts.images import TiltImages, half_tilts
from weft.tilts.reconstruction import ReconstructionSettings, TomogramDeconvolutionSettings, reconstruct
from weft.tilts.slices import slice_picture
from weft.tilts.volumes import MapSummary, VolumeGrid

__all__ = ["STEP", "ReconstructStep", "volume_name"]

#: How much of the specimen is averaged in a picture, Å.
_PICTURE_THICKNESS = 50.0
#: How the network's masks are made.
_MASKS = PickingSettings()


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
        "bead_erasing": BeadErasingSettings,
    }
    input_keys = ("voltage", "cs", "amplitude")

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The network, where it is to find beads."""
        erasing = settings.get(BeadErasingSettings)
        wanted = erasing.erase and erasing.find == "network"
        return {"model": model_file(None, DEFAULT)} if wanted else {}

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(ReconstructionSettings)
        if settings.ome_zarr:
            ome_zarr.require_zarr()  # before minutes of work
        if settings.halves == "frames" and "stack_even" not in job.record.steps["stack"].outputs:
            raise ItemError(
                f"{job.item}: there are no averages of even and odd frames to make half maps from; set "
                'average.halves to true, or reconstruction.halves to "tilts"'
            )
        found = TiltAlignment.from_dict(dict(job.record.steps["align"].results["alignment"]))
        ctf_step = job.record.steps["tilt_ctf"].results
        ctf = TiltCTF.from_dict(ctf_step["ctf"])
        geometry = final_geometry(found, ctf, float(ctf_step["hand"]))
        contrast = stack_contrast(job.record, ctf, job.settings.input.optics())
        grid = VolumeGrid.of(geometry.volume_size, settings.pixel_size, settings.box)
        make = _Maker(job, settings, grid, found.pixel_size, _Beads.of(job, found, geometry))
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
        if make.beads is not None:
            metrics["beads_filled"] = make.beads.filled
        return StepResult(metrics, outputs)


class _Beads:
    """Takes gold beads out of the images.

    Attributes
    ----------
    filled : float
        Part of all images' area that was filled.
    """

    def __init__(self, job: Job, geometry: TiltGeometry, found: TiltAlignment) -> None:
        self._settings = job.settings.get(BeadErasingSettings)
        self._wavelength = job.settings.input.optics().wavelength
        self._geometry, self._pixel_size = geometry, found.pixel_size
        self._areas: list[float] = []
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor | float]] = {}
        if self._settings.find == "network":
            self._model, self._network = network_of(model_file(None, DEFAULT), job.device)
            return
        # markers count from the volume's centre
        places = geometry.project(found.markers + 0.5 * geometry.volume_size)[..., :2]
        diameter = 10.0 * found.extras["bead_diameter_nm"]
        self._known = {tilt: (of_tilt, diameter) for tilt, of_tilt in enumerate(places)}

    @classmethod
    def of(cls, job: Job, found: TiltAlignment, geometry: TiltGeometry) -> _Beads | None:
        """None where nothing is to be erased."""
        settings = job.settings.get(BeadErasingSettings)
        followed = found.method == "fiducials" and len(found.markers) > 0
        if not settings.erase or not (followed or settings.find == "network"):
            return None
        return cls(job, geometry, found)

    def fill(self, image: torch.Tensor, tilt: int, seed: int) -> torch.Tensor:
        """The image of a tilt without its beads; another seed gives other noise."""
        fringe = fringe_width(self._wavelength, float(self._geometry.defocus[tilt]))
        if tilt not in self._known:
            # the whole exposure comes before its halves
            self._known[tilt] = self._seen(image)
        places, diameter = self._known[tilt]
        image, mask = erase_beads(
            image, places, diameter, self._pixel_size, self._settings, fringe=fringe, seed=seed
        )
        self._areas.append(float(mask.float().mean()))
        return image

    def _seen(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network takes for artefacts in an image, as discs."""
        device = next(self._network.parameters()).device
        seen = segment(image.to(device), self._pixel_size, self._model, self._network)
        mask = artefact_mask(seen.probabilities[ARTEFACT], _MASKS)
        places, diameters = covering_discs(mask, seen.size, self._settings.largest)
        return torch.from_numpy(places), torch.from_numpy(diameters)

    @property
    def filled(self) -> float:
        return float(np.mean(self._areas)) if self._areas else 0.0


class _Maker:
    """Makes one volume after the other from the same series."""

    def __init__(
        self,
        job: Job,
        settings: ReconstructionSettings,
        grid: VolumeGrid,
        pixel_size: float,
        beads: _Beads | None,
    ) -> None:
        self.job, self.settings, self.grid, self.pixel_size = job, settings, grid, pixel_size
        self.beads = beads

    def images(self, name: str) -> TiltImages:
        """The images of the stack, or of one of its halves, at the resolution of the tomogram."""

        # halves must not share the noise that fills them
        which = ("stack", "stack_even", "stack_odd").index(name)

        def sections() -> Iterator[torch.Tensor]:
            with mrc.MrcStack(self.job.output("stack", name)) as stack:
                for tilt in range(len(stack)):
                    image = torch.from_numpy(np.ascontiguousarray(stack.read(tilt), np.float32))
                    yield image if self.beads is None else self.beads.fill(image, tilt, 3 * tilt + which)

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
        spacing, origin = self.settings.pixel_size, self.grid.origin
        with ExitStack() as stack:
            writers: dict[str, list[Any]] = {}
            for kind, path in list(places.items()):
                opened = mrc.stack_writer(self.job.place(path), spacing, volume=True, origin=origin)
                writers[kind] = [stack.enter_context(opened)]
                if self.settings.ome_zarr:
                    copy = f"{path.removesuffix('.mrc')}.ome.zarr"
                    also = ome_zarr.volume_writer(
                        self.job.place(copy), self.grid.shape, spacing, origin=origin, name=self.job.item
                    )
                    writers[kind].append(stack.enter_context(also))
                    places[f"{kind}_zarr"], keys[f"{kind}_zarr"] = copy, f"{keys[kind]}_zarr"

            def write(kind: str, first: int, slab: torch.Tensor) -> None:
                for section in slab.cpu().numpy():
                    for writer in writers[kind]:
                        writer.append(section)

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

"""Align: how the images of a series see the specimen, from gold beads or from the specimen itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from weft.errors import ItemError
from weft.formats import aretomo, imod, imod_model, mrc
from weft.session.aligned import ImportedAlignment
from weft.session.config import SessionSettings
from weft.session.step import Job, Step, StepResult
from weft.session.steps.stack import used_tilts
from weft.session.tilt_table import read_table
from weft.settings import Settings
from weft.tilts.align import align_series
from weft.tilts.alignment import AlignmentSettings, TiltAlignment
from weft.tilts.images import binned

__all__ = ["STEP", "AlignStep"]

#: Images are binned by whole numbers to pixels of this size (Å) at most: a bead of 5 nm still has twelve.
_PIXEL = 4.0


class AlignStep(Step):
    """Fit the alignment, or take one that was imported; write it for IMOD and AreTomo."""

    name = "align"
    kinds = ("series",)
    after = ("stack",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"alignment": AlignmentSettings}
    input_keys = ("tilt_axis",)

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(AlignmentSettings)
        stack = job.record.steps["stack"]
        pixel_size = float(job.record.metrics["series_pixel_size"])
        tilts = used_tilts(job.record)
        angles = torch.tensor([tilt["angle"] for tilt in tilts], dtype=torch.float64)
        shape = mrc.read_header(job.output("stack", "stack")).shape
        image_size = (shape[2] * pixel_size, shape[1] * pixel_size)
        table = read_table(job.source)
        if table.alignment:
            imported = ImportedAlignment.read(job.root / table.alignment)
            rows = [tilt["index"] for tilt in tilts]
            found = imported.of_tilts(table, rows, angles, image_size, pixel_size, settings)
        else:
            axis = _axis(job.settings, stack.results)
            found = _align(job, angles, pixel_size, axis, settings)
            found = _of_size(found, image_size, pixel_size)
        found = _upright(found)
        if found.verdict == "bad" and not bool(found.aligned.any()):
            raise ItemError(f"{job.item}: it could not be aligned ({'; '.join(found.notes)})")
        metrics: dict[str, Any] = {f"alignment_{name}": value for name, value in found.metrics().items()}
        metrics |= {"alignment_method": found.method, "alignment_verdict": found.verdict}
        return StepResult(metrics, _write(job, found), {"alignment": found.to_dict()})


def _align(
    job: Job, angles: torch.Tensor, pixel_size: float, axis: float | None, settings: AlignmentSettings
) -> TiltAlignment:
    """Align the stack at a pixel size that is fine enough, so that it fits into memory."""
    factor = max(1, int(_PIXEL / pixel_size + 1e-3))
    reduced = []
    offset = (0.0, 0.0)
    with mrc.MrcStack(job.output("stack", "stack")) as stack:
        for tilt in range(len(stack)):
            image = torch.from_numpy(np.ascontiguousarray(stack.read(tilt), np.float32)).to(job.device)
            small, offset = binned(image, factor)
            reduced.append(small)
    found = align_series(torch.stack(reduced), angles, pixel_size * factor, axis, settings)
    moved = found.geometry.shift + pixel_size * torch.tensor(offset, dtype=torch.float64)
    return replace(found, geometry=replace(found.geometry, shift=moved))


def _of_size(found: TiltAlignment, image_size: tuple[float, float], pixel_size: float) -> TiltAlignment:
    """An alignment of reduced images as that of the images themselves: everything counts from the centre."""
    z = float(found.geometry.volume_size[2])
    geometry = replace(
        found.geometry,
        image_size=torch.tensor(image_size, dtype=torch.float64),
        volume_size=torch.tensor([*image_size, z], dtype=torch.float64),
    )
    return replace(found, geometry=geometry, pixel_size=pixel_size)


def _axis(settings: SessionSettings, stack: Mapping[str, Any]) -> float | None:
    """The nominal tilt axis: as weft.toml says, else as the series' origin does."""
    given = settings.input.tilt_axis
    return stack["tilt_axis"] if given is None else given


def _upright(alignment: TiltAlignment) -> TiltAlignment:
    """The volume with its sides as long as what the images show of them: y runs along the tilt axis."""
    geometry = alignment.geometry
    width, height = (float(v) for v in geometry.image_size)
    along = abs(float(torch.deg2rad(torch.tensor(alignment.axis)).cos()))
    x, y = (width, height) if along >= 0.5**0.5 else (height, width)
    size = torch.tensor([x, y, float(geometry.volume_size[2])], dtype=torch.float64)
    return replace(alignment, geometry=replace(geometry, volume_size=size))


def _write(job: Job, found: TiltAlignment) -> dict[str, str]:
    """The alignment in files of other programs."""
    folder, name = f"tiltstack/{job.item}", job.item
    outputs = {"xf": f"{folder}/{name}.xf", "tlt": f"{folder}/{name}.tlt"}
    theirs = imod.from_geometry(found.geometry, pixel_size=found.pixel_size)
    imod.write_xf(job.place(outputs["xf"]), theirs.transforms, theirs.shifts)
    imod.write_tlt(job.place(outputs["tlt"]), theirs.angles)
    # AreTomo has no word for an inclination about x: it gets the alignment before that
    flat = replace(found.geometry, level_x=torch.zeros((), dtype=torch.float64))
    outputs["aln"] = f"{folder}/{name}.aln"
    aligned = aretomo.from_geometry(flat, pixel_size=found.pixel_size)
    # what the angles contain beside those of the stage
    aligned.alpha_offset = float(found.geometry.level_y)
    aretomo.write_aln(job.place(outputs["aln"]), aligned)
    if len(found.markers):
        outputs["fid"] = f"{folder}/{name}.fid"
        width, height = (round(float(v) / found.pixel_size) for v in found.geometry.image_size)
        tracks = np.full((len(found.markers), len(found), 2), np.nan)
        seen = found.observations
        kept = (seen.weight > 0).numpy()
        # IMOD counts from the corner of the first pixel
        places = seen.observed.numpy() / found.pixel_size + np.array([width, height]) / 2 + 0.5
        tracks[seen.marker.numpy()[kept], seen.tilt.numpy()[kept]] = places[kept]
        tracks = tracks[np.isfinite(tracks).all(-1).any(1)]
        if len(tracks):
            model = imod_model.ImodModel.of_tracks(tracks, (width, height), found.pixel_size)
            imod_model.write_model(job.place(outputs["fid"]), model)
        else:
            del outputs["fid"]
    return outputs


STEP = AlignStep()

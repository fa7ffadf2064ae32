"""Pick: where the particles of a micrograph are, and what is to be left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from weft.formats import mrc
from weft.picking.components import PickingSettings
from weft.picking.segmentation import pick
from weft.session.config import SessionSettings
from weft.session.pick_files import pick_path, write_picks
from weft.session.picking import model_file, network_of, picker_name
from weft.session.step import Job, Step, StepResult
from weft.settings import Settings

__all__ = ["STEP", "PickStep"]


class PickStep(Step):
    """Write ``picks/<model>/<item>.star`` and ``mask/<item>.mrc``."""

    name = "pick"
    after = ("motion",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"picking": PickingSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return bool(settings.get(PickingSettings).model)

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """The trained model."""
        model = settings.get(PickingSettings).model
        return {"model": model_file(root, model)} if model else {}

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(PickingSettings)
        model, network = network_of(model_file(job.root, settings.model), job.device)
        image = np.asarray(mrc.read(job.output("motion", "average"))[0], dtype=np.float32)
        pixel_size = float(job.record.metrics["pixel_size"])
        found = pick(torch.from_numpy(image).to(job.device), pixel_size, model, settings, network)
        outputs = {"picks": pick_path(picker_name(settings.model), job.item), "mask": f"mask/{job.item}.mrc"}
        write_picks(job.place(outputs["picks"]), found.picks, pixel_size)
        grid = found.size[0] / found.mask.shape[1]
        mrc.write(job.place(outputs["mask"]), found.mask.astype(np.int8), grid, dtype=np.int8)
        picks = found.picks
        metrics: dict[str, Any] = {
            "particles": len(picks),
            "particle_diameter": round(picks.diameter, 1) if np.isfinite(picks.diameter) else None,
            "pick_score": round(float(picks.score.mean()), 4) if len(picks) else None,
            "pick_threshold": round(found.threshold, 4),
            "artefacts": round(float(found.mask.mean()), 5),
        }
        return StepResult(metrics, outputs)


STEP = PickStep()

"""CTF of a tilt series: the defocus of every tilt, and which way it goes with the tilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from weft.defocus.handedness import Handedness, determine_hand
from weft.defocus.tilt_series import TiltCTF, TiltCTFSettings
from weft.formats import mrc
from weft.session.pictures import write_png
from weft.session.series_tables import write_series_files
from weft.session.step import Job, Step, StepResult
from weft.session.steps.stack import used_tilts
from weft.session.tilt_item import final_geometry
from weft.settings import Settings, setting
from weft.tilts.alignment import TiltAlignment

__all__ = ["STEP", "HandednessSettings", "TiltCTFStep"]


class HandednessSettings(Settings):
    """Which way the defocus goes with the tilt; the same for all series of a microscope."""

    hand: Literal["auto", "+1", "-1"] = setting(
        "auto",
        "+1: a positive tilt brings +x of the specimen to greater underfocus (RELION's rlnTomoHand is then "
        "-1); auto finds it from each series.",
    )
    assumed: Literal["+1", "-1"] = setting(
        "+1", "With auto: what is taken for a series that does not say which it is."
    )


class TiltCTFStep(Step):
    """Fit the CTF with both hands, choose the hand, write the series for RELION and Warp."""

    name = "tilt_ctf"
    kinds = ("series",)
    after = ("stack", "align")
    sections: ClassVar[Mapping[str, type[Settings]]] = {
        "tilt_ctf": TiltCTFSettings,
        "handedness": HandednessSettings,
    }
    input_keys = ("pixel_size", "voltage", "cs", "amplitude")

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        alignment = TiltAlignment.from_dict(dict(job.record.steps["align"].results["alignment"]))
        tilts = used_tilts(job.record)
        optics = job.settings.input.optics().at_pixel_size(alignment.pixel_size)
        doses = np.array([tilt["dose"] for tilt in tilts])
        with mrc.MrcStack(job.output("stack", "stack")) as stack:
            found = determine_hand(
                _Sections(stack, job.device),
                alignment.geometry,
                optics,
                doses,
                job.settings.get(TiltCTFSettings),
            )
        hand, how = _chosen(found, job.settings.get(HandednessSettings))
        ctf = found.fits[0 if hand > 0 else 1]
        # rounded as the record keeps it, so that all that is made from it agrees
        kept = TiltCTF.from_dict(ctf.to_dict())
        geometry = final_geometry(alignment, kept, hand)
        outputs = write_series_files(job, tilts, geometry, kept, alignment.pixel_size)
        if ctf.picture is not None:
            place = f"tiltstack/{job.item}/{job.item}_spectrum.png"
            outputs["series_powerspectrum"] = write_png(job, place, ctf.picture)
        metrics: dict[str, Any] = {f"series_{name}": value for name, value in ctf.metrics().items()}
        metrics |= found.metrics() | {"hand": hand, "hand_from": how}
        metrics |= {f"volume_{axis}": float(v) for axis, v in zip("xyz", geometry.volume_size, strict=True)}
        details = {"ctf": ctf.to_dict(), "handedness": found.to_dict(), "hand": hand, "hand_from": how}
        return StepResult(metrics, outputs, details)


class _Sections(Sequence[torch.Tensor]):
    """Images of a stack, one in memory at a time."""

    def __init__(self, stack: mrc.MrcStack, device: str) -> None:
        self._stack, self._device = stack, device

    def __len__(self) -> int:
        return len(self._stack)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        section = np.ascontiguousarray(self._stack.read(index), np.float32)
        return torch.from_numpy(section).to(self._device)


def _chosen(found: Handedness, settings: HandednessSettings) -> tuple[float, str]:
    """The hand that is used, and why."""
    if settings.hand != "auto":
        return float(settings.hand), "set"
    if found.hand:
        return found.hand, "found"
    return float(settings.assumed), "assumed"


STEP = TiltCTFStep()

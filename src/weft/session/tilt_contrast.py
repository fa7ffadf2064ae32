"""What the microscope and the dose have done to the images of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.physics.optics import Optics
from weft.session.steps.stack import used_tilts
from weft.tilts.gridding import TiltContrast

if TYPE_CHECKING:
    from weft.defocus.tilt_result import TiltCTF
    from weft.session.records import Record

__all__ = ["stack_contrast"]


def stack_contrast(record: Record, ctf: TiltCTF, optics: Optics, weight: Any = 1.0) -> TiltContrast:
    """The contrast of a series' tilts, in the order of its stack.

    Parameters
    ----------
    record : Record
        With the stack step done.
    ctf : TiltCTF
        Of the same tilts.
    optics : Optics
    weight : float or (tilts,) array
        Further weight of each image.
    """
    tilts = used_tilts(record)
    return TiltContrast.of(
        optics,
        len(tilts),
        dose=[float(tilt["dose"]) for tilt in tilts],
        astigmatism=ctf.delta,
        angle=ctf.angle,
        phase_shift=ctf.phase,
        weight=weight,
    )

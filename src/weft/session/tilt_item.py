"""A tilt series of a session, as people meet it in Python."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.session.items import Item
from weft.session.records import Record
from weft.session.tilt_table import TiltTable, read_table

if TYPE_CHECKING:
    from weft.defocus.handedness import Handedness
    from weft.defocus.tilt_series import TiltCTF
    from weft.physics.geometry import TiltGeometry
    from weft.tilts.alignment import TiltAlignment

__all__ = ["TiltSeries", "final_geometry"]


class TiltSeries(Item):
    """One tilt series of a session; see :class:`Item`.

    Its tilts are those that were not left out, in the order of their angles: `tilt_angles`, `project`
    and the stack in ``tiltstack/`` agree in that.
    """

    def __init__(self, root: Path, name: str, source: Path, record: Record | None) -> None:
        super().__init__(root, name, source, record, "series")

    @property
    def table(self) -> TiltTable:
        """Which movie belongs to which tilt, and which take no part.

        Raises
        ------
        SessionError
            When the table is gone or cannot be read.
        """
        return read_table(self.source)

    @cached_property
    def alignment(self) -> TiltAlignment:
        """The alignment, with its markers and residuals.

        Raises
        ------
        SessionError
            When the align step is not done.
        """
        from weft.tilts.alignment import TiltAlignment

        return TiltAlignment.from_dict(self._result("align", "alignment"))

    @cached_property
    def ctf(self) -> TiltCTF:
        """The CTF of every tilt.

        Raises
        ------
        SessionError
            When the tilt_ctf step is not done.
        """
        from weft.defocus.tilt_series import TiltCTF

        return TiltCTF.from_dict(self._result("tilt_ctf", "ctf"))

    @cached_property
    def handedness(self) -> Handedness:
        """Which way the defocus goes with the tilt, and how sure that is.

        Raises
        ------
        SessionError
            When the tilt_ctf step is not done.
        """
        from weft.defocus.handedness import Handedness

        return Handedness.from_dict(self._result("tilt_ctf", "handedness"))

    @cached_property
    def geometry(self) -> TiltGeometry:
        """Where points of the specimen lie in every image, and at which defocus.

        With the defocus and the hand of the CTF fit; before that, defocus 0 and hand +1.

        Raises
        ------
        SessionError
            When the align step is not done.
        """
        done = self.record.steps.get("tilt_ctf") if self.record else None
        if done is None or done.status != "done":
            return self.alignment.geometry
        return final_geometry(self.alignment, self.ctf, float(self._result("tilt_ctf", "hand")))

    @property
    def tilt_angles(self) -> NDArray[np.float64]:
        """Angles of the stage, (tilts,), degrees."""
        return np.asarray(self.alignment.stage_angles, dtype=np.float64)

    @property
    def volume_size(self) -> tuple[float, float, float]:
        """Of the tomogram: x, y, z, Å."""
        x, y, z = (float(v) for v in self.geometry.volume_size)
        return x, y, z

    @property
    def hand(self) -> float:
        """+1, or −1 where greater tilt angles bring +x of the specimen to smaller underfocus.

        Raises
        ------
        SessionError
            When the tilt_ctf step is not done.
        """
        return float(self._result("tilt_ctf", "hand"))

    @property
    def tilts(self) -> list[dict[str, Any]]:
        """What is known about every exposure, also of those that were left out and why.

        Raises
        ------
        SessionError
            When the stack step is not done.
        """
        found: list[dict[str, Any]] = self._result("stack", "tilts")
        return found

    def project(self, xyz: ArrayLike) -> NDArray[np.float64]:
        """Where points of the specimen lie in every tilt, and at which defocus.

        Parameters
        ----------
        xyz : (n, 3) array-like
            Å from the centre of the tomogram's first voxel.

        Returns
        -------
        (tilts, n, 3) array
            x, y in the image (Å from the centre of its first pixel) and defocus (Å).

        Raises
        ------
        SessionError
            When the series is not aligned.
        """
        places = torch.as_tensor(np.asarray(xyz, dtype=np.float64).reshape(-1, 3))
        return self.geometry.project(places).numpy()

    def __len__(self) -> int:
        return len(self.alignment)


def final_geometry(alignment: TiltAlignment, ctf: TiltCTF, hand: float) -> TiltGeometry:
    """The aligned geometry with the defocus of every tilt and the hand."""
    return replace(alignment.geometry, defocus=torch.as_tensor(ctf.defocus), hand=hand)

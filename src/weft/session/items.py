"""What a session holds: movies; tilt series are in :mod:`weft.session.tilt_item`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import SessionError
from weft.session.records import Record

if TYPE_CHECKING:
    from weft.defocus.micrograph import CTFModel
    from weft.movies.motion import MotionModel

__all__ = ["Item", "Movie"]


class Item:
    """One thing that a session processes, and what is known about it by now.

    Attributes
    ----------
    name : str
        What the session calls it: the file's stem, told apart where two folders hold the same.
    source : Path
        Its file.
    record : Record or None
        None before the first step has run.
    kind : ``"movie"``, ``"tilt"`` or ``"series"``
    """

    def __init__(
        self, root: Path, name: str, source: Path, record: Record | None, kind: str = "movie"
    ) -> None:
        self._root = root
        self.name = name
        self.source = source
        # an old record may say otherwise: movies become tilts when the session is told of mdocs
        self.record = None if record is None else replace(record, kind=kind)
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _result(self, step: str, key: str) -> Any:
        done = self.record.steps.get(step) if self.record else None
        if done is None or done.status != "done" or key not in done.results:
            problem = self.error or f"its {step} step has not run"
            raise SessionError(f"{self.name}: no {step} result, {problem}")
        return done.results[key]

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers that describe it: pixel_size of the average (Å), motion, defocus, resolution ..."""
        return self.record.metrics if self.record else {}

    @property
    def paths(self) -> dict[str, Path]:
        """Files written for it: ``average``, ``thumbnail``, ``powerspectrum`` ... by name."""
        out: dict[str, Path] = {}
        for step in self.record.steps.values() if self.record else ():
            if step.status == "done":
                out.update({name: self._root / path for name, path in step.outputs.items()})
        return out

    @property
    def error(self) -> str | None:
        """Why it failed; None where nothing did."""
        for step in self.record.steps.values() if self.record else ():
            if step.error is not None:
                return step.error.message
        return None

    @property
    def results(self) -> Mapping[str, Mapping[str, Any]]:
        """All results by step."""
        return {name: step.results for name, step in self.record.steps.items()} if self.record else {}


class Movie(Item):
    """One movie of a session; see :class:`Item`. A tilt of a series is one, too."""

    @cached_property
    def motion(self) -> MotionModel:
        """The fitted motion.

        Raises
        ------
        SessionError
            When the motion step is not done.
        """
        from weft.movies.motion import MotionModel

        return MotionModel.from_dict(self._result("motion", "model"))

    @cached_property
    def ctf(self) -> CTFModel:
        """The fitted CTF; ``ctf.at(xy)`` gives defocus_u, defocus_v (Å) and angle (degrees) at places (Å).

        Raises
        ------
        SessionError
            When the ctf step is not done.
        """
        from weft.defocus.micrograph import CTFModel

        return CTFModel.from_dict(self._result("ctf", "model"))

    def track(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Where features of the average lie in each frame, relative to the average.

        Parameters
        ----------
        xy : (n, 2) array-like
            Å from the centre of the first pixel.

        Returns
        -------
        (frames, n, 2) array
            Å.
        """
        places = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        return np.asarray(self.motion.track(places))

"""Which particles of a micrograph are to be cut: what a picker has found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.particles.extraction import ExtractionSettings
from weft.session.pick_files import BY_HAND, pick_path, read_picks
from weft.settings import setting

__all__ = ["ParticleSettings", "Wanted", "picked"]

_SCORE = "rlnAutopickFigureOfMerit"


class ParticleSettings(ExtractionSettings):
    """Which particles are cut out of micrographs, and how."""

    write: bool = setting(
        False, "Cut particles as soon as a micrograph is picked, into particles/ and particles.star."
    )
    picks: str = setting(
        "",
        "The picker whose particles these are, or several with commas: of each micrograph the first that has "
        "picked there. Empty: that of [picking].",
    )
    min_score: float | None = setting(
        None, "Leave out picks of a lower figure of merit; those by hand, which have none, stay."
    )
    mtf: str = setting("", "The detector's MTF, a STAR file that RELION is told of.")


@dataclass(frozen=True)
class Wanted:
    """Particles of one micrograph that are to be cut.

    Attributes
    ----------
    pixels : (n, 2) float64
        x, y in pixels of the average.
    columns : dict of str to sequence of str
        Further columns of their rows.
    optics : tuple of dict
        Columns of optics groups that are kept, beside what the session says of them; one for all by default.
    groups : tuple of int
        Of each particle; empty where there is one group.
    skipped : dict
        Why some were left out before → how many.
    """

    pixels: NDArray[np.float64]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optics: tuple[Mapping[str, Any], ...] = ({},)
    groups: tuple[int, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)


def picked(root: Path, item: str, pickers: Sequence[str], min_score: float | None) -> Wanted | None:
    """What the first of these pickers has picked in a micrograph; None where none of them has.

    Raises
    ------
    FormatError, CorruptError
        A file that is no list of picks.
    """
    path = next((p for name in pickers if (p := root / pick_path(name, item)).is_file()), None)
    if path is None:
        return None
    # a pixel of 1 Å: places stay in pixels
    picks = read_picks(path, 1.0)
    skipped: dict[str, int] = {}
    if min_score is not None:
        by_hand = ~np.isfinite(picks.score) | (picks.score == BY_HAND)
        keep = by_hand | (picks.score >= min_score)
        if not keep.all():
            skipped[f"with a figure of merit below {min_score:g}"] = int((~keep).sum())
            picks = picks.select(keep)
    score = np.where(np.isfinite(picks.score), picks.score, BY_HAND)
    columns: dict[str, Sequence[str]] = {_SCORE: [f"{value:.5f}" for value in score]}
    if picks.eulers is not None:
        for i, label in enumerate(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")):
            columns[label] = [f"{value:.4f}" for value in picks.eulers[:, i]]
    if picks.class_number is not None and (picks.class_number > 0).any():
        columns["rlnClassNumber"] = [str(int(value)) for value in picks.class_number]
    return Wanted(picks.xy, columns, skipped=skipped)

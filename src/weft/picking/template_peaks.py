"""Peaks of a micrograph's template scores, and which of them are picks.

All peaks down to a low score are kept with their orientations, so that a threshold can be changed without
searching again. Scores are counted in standard deviations σ of what noise scores in all orientations. Of S
independent scores of noise as many as N lie above √2 erfc⁻¹(2 N / S) (Chaillet et al. 2023, Int. J. Mol. Sci.
24, 13375, eq. 4), which is the threshold by default.

Neighbouring places and orientations score alike, so that S is far below the number of scores. It is measured:
a local maximum is the greatest of n independent scores, whose median is Φ⁻¹(2^(−1/n)); most maxima are noise,
so that their median tells n, and S is n times their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch.nn import functional

from weft.matching.candidates import false_alarm_threshold
from weft.matching.peaks import suppressed
from weft.picking.picks import Picks
from weft.picking.template_scores import TemplateScores
from weft.settings import Settings, setting

__all__ = ["LOWEST", "TemplatePeaks", "TemplateThresholdSettings", "find_peaks"]

#: Peaks are kept down to this many standard deviations; noise alone has plenty of them.
LOWEST = 3.0
#: Peaks that are kept lie at least so far from each other, in particle diameters.
_NEAREST = 0.5


class TemplateThresholdSettings(Settings):
    """Which peaks of a template's scores become picks."""

    threshold: float = setting(
        0.0,
        "Lowest score, in standard deviations of the background; 0 has it follow from false_positives.",
        ge=0.0,
        le=1000.0,
    )
    false_positives: float = setting(
        1.0, "So many picks of a micrograph may be noise; it decides the threshold.", gt=0.0, le=1e6
    )
    separation: float = setting(
        1.0, "Smallest distance between two picks, in particle diameters.", ge=_NEAREST, le=10.0
    )
    margin: float = setting(
        0.0, "Smallest distance from the micrograph's edges, in particle diameters.", ge=0.0, le=10.0
    )


@dataclass(frozen=True)
class TemplatePeaks:
    """Peaks of one micrograph's scores, the best first.

    Attributes
    ----------
    xy : (n, 2) float64
        Å from the centre of the micrograph's first pixel.
    score : (n,) float64
        Standard deviations above the background.
    cc : (n,) float64
        The correlation.
    euler : (n, 3) float64
        rot, tilt, psi, degrees.
    diameter : float
        Of the particle, Å.
    trials : float
        How many independent scores were looked at.
    extent : (float, float)
        Width and height of the micrograph, Å.
    """

    xy: NDArray[np.float64]
    score: NDArray[np.float64]
    cc: NDArray[np.float64]
    euler: NDArray[np.float64]
    diameter: float
    trials: float
    extent: tuple[float, float]

    def __len__(self) -> int:
        return len(self.score)

    def threshold(self, settings: TemplateThresholdSettings) -> float:
        """The lowest score of a pick, σ."""
        if settings.threshold > 0.0:
            return settings.threshold
        # more false positives than half of all trials cannot be asked for
        return false_alarm_threshold(1.0, self.trials, min(settings.false_positives, 0.5 * self.trials))

    def picks(self, settings: TemplateThresholdSettings | None = None) -> Picks:
        """Those that pass the threshold and keep their distances; the better of two excludes the other."""
        settings = settings or TemplateThresholdSettings()
        margin = settings.margin * self.diameter
        high = np.array(self.extent) - margin
        good = (self.score >= self.threshold(settings)) & ((self.xy >= margin) & (self.xy <= high)).all(1)
        rows = np.flatnonzero(good)
        flat = np.column_stack([self.xy[rows], np.zeros(len(rows))])
        rows = rows[suppressed(flat, settings.separation * self.diameter)]
        return Picks(
            self.xy[rows],
            self.score[rows],
            self.diameter,
            eulers=self.euler[rows],
            class_number=np.ones(len(rows), np.int64),
        )


def find_peaks(scores: TemplateScores, lowest: float = LOWEST) -> TemplatePeaks:
    """Local maxima of the scores, with places between pixels.

    Parameters
    ----------
    scores : TemplateScores
    lowest : float
        Standard deviations.
    """
    cc = torch.where(scores.allowed, scores.cc, -torch.inf)
    around = functional.max_pool2d(cc[None, None], 3, stride=1, padding=1)[0, 0]
    value = (cc - scores.mean) / scores.sigma
    maximum = (cc >= around) & scores.allowed
    trials = _independent(value[maximum].double().cpu().numpy(), scores.search_space)
    y, x = (maximum & (value >= lowest)).nonzero().unbind(1)
    order = value[y, x].argsort(descending=True, stable=True)
    y, x = y[order], x[order]
    known = torch.where(scores.allowed, scores.cc, torch.nan)
    dx = _vertex(*(_shifted(known, y, x, 0, d) for d in (-1, 0, 1)))
    dy = _vertex(*(_shifted(known, y, x, d, 0) for d in (-1, 0, 1)))
    step = torch.tensor(scores.pixel_size, dtype=torch.float64)
    xy = (torch.stack([x.cpu() + dx, y.cpu() + dy], dim=1) * step).numpy()
    kept = suppressed(np.column_stack([xy, np.zeros(len(xy))]), _NEAREST * scores.diameter)
    ny, nx = scores.cc.shape
    return TemplatePeaks(
        xy[kept],
        value[y, x].double().cpu().numpy()[kept],
        cc[y, x].double().cpu().numpy()[kept],
        scores.orientations.euler[scores.number[y, x].cpu()].numpy()[kept],
        scores.diameter,
        trials,
        (nx * scores.pixel_size[0], ny * scores.pixel_size[1]),
    )


def _independent(maxima: NDArray[np.float64], most: int) -> float:
    """How many independent scores of noise have such maxima: at least one each, and `most` at most."""
    each = np.log(0.5) / log_ndtr(np.median(maxima)) if len(maxima) else 1.0
    return float(np.clip(each * len(maxima), max(4, len(maxima)), max(4, most)))


def _shifted(values: torch.Tensor, y: torch.Tensor, x: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Neighbours of places; NaN outside."""
    padded = functional.pad(values, (1, 1, 1, 1), value=torch.nan)
    return padded[y + 1 + dy, x + 1 + dx].double().cpu()


def _vertex(before: torch.Tensor, here: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Where the parabola through three equidistant values has its top; 0 where there is none."""
    curvature = before + after - 2.0 * here
    offset = 0.5 * (before - after) / curvature
    return torch.where(curvature < 0.0, offset, 0.0).nan_to_num(0.0).clamp(-0.5, 0.5)

"""What a search for a template gives: of every position the best score, and what noise scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.errors import ItemError
from weft.picking.template_projections import Orientations

__all__ = ["TemplateScores", "background"]


@dataclass(frozen=True)
class TemplateScores:
    """Of every position the best score among all orientations.

    Attributes
    ----------
    cc : (y, x) float32
        The correlation, −1 to 1; −1 where nothing was compared.
    number : (y, x) int64
        The orientation that has it: a row of `orientations.euler`.
    allowed : (y, x) bool
        What was compared.
    orientations : Orientations
    mean, sigma : float
        Of all scores that noise makes in all orientations: median, and 1.4826 times the median distance from
        it, of a sample of them.
    pixel_size : (float, float)
        Å, along x and y; pixel p lies at p times it.
    diameter : float
        Of the particle, Å.
    tiles : int
    """

    cc: torch.Tensor
    number: torch.Tensor
    allowed: torch.Tensor
    orientations: Orientations
    mean: float
    sigma: float
    pixel_size: tuple[float, float]
    diameter: float
    tiles: int

    @property
    def search_space(self) -> int:
        """How many scores were looked at."""
        return int(self.allowed.sum()) * len(self.orientations)


def background(scores: torch.Tensor) -> tuple[float, float]:
    """Median of scores, and the standard deviation that the median distance from it stands for.

    Raises
    ------
    ItemError
        They are all the same.
    """
    middle = scores.median()
    sigma = 1.4826 * float((scores - middle).abs().median())
    if not sigma > 0.0:
        raise ItemError("the template scores the same everywhere: is it flat?")
    return float(middle), sigma

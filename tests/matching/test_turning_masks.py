"""Masks that turn and reach beyond the sphere that fits into their box."""

from __future__ import annotations

import pytest
import torch

from weft.matching.kernel import Found, MaskedTemplate, Part, correlate, correlate_plain
from weft.matching.rotation import FineMap
from weft.physics.geometry import euler_matrix

BOX, REACH, PLACES = 16, 7, (30, 30, 30)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_slab_scores_the_same_both_ways(weighted: bool) -> None:
    """What the last turned mask has left in the corners of a box must not get into the next template.

    Both ways do the same in single precision: 1e-5 of scores up to 0.15. With the fault it was 0.07.
    """
    random = torch.Generator().manual_seed(2)
    axis = torch.arange(BOX) - BOX // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    mask = ((x.abs() <= REACH) & (y.abs() <= REACH) & (z.abs() <= 2)).float()
    assert float((x * x + y * y)[mask > 0].max()) > REACH**2  # it does reach beyond
    template = FineMap.of(torch.randn(BOX, BOX, BOX, generator=random))
    masked = MaskedTemplate(template, mask, REACH, FineMap.of_mask(mask))
    part = Part.of(torch.randn(48, 48, 48, generator=random), masked, PLACES, 1.0)
    weights = torch.rand(BOX, BOX, BOX // 2 + 1, generator=random) if weighted else None
    angles = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0], [80.0, 33.0, 12.0]])
    matrices = euler_matrix(*angles.double().unbind(-1))
    fast, plain = Found.empty(PLACES, False), Found.empty(PLACES, False)
    correlate(part, masked, weights, matrices, torch.arange(3), fast)
    correlate_plain(part, masked, weights, matrices, torch.arange(3), plain)
    assert float(plain.best.max()) > 0.1
    assert float((fast.best - plain.best).abs().max()) < 1e-5

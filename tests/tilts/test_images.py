"""Images of tilt series made smaller: what lies where stays there."""

from __future__ import annotations

import pytest
import torch

from weft.tilts.images import binned


@pytest.mark.parametrize("shape", [(240, 320), (241, 323), (250, 331)])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_places_relative_to_the_centre_stay(shape: tuple[int, int], factor: int) -> None:
    """A spot keeps its place in old pixels from the centre, but for the offset; 0.01 px for the sampling."""
    ny, nx = shape
    at = (37.3, -21.8)
    y, x = (torch.arange(n, dtype=torch.float64) for n in shape)
    spot = torch.exp(-((y[:, None] - ny / 2 - at[1]) ** 2 + (x - nx / 2 - at[0]) ** 2) / (2 * 8.0**2)).float()
    small, offset = binned(spot, factor)
    assert small.shape == tuple(n // (2 * factor) * 2 for n in shape) or factor == 1
    weight = small / small.sum()
    found = [
        float((weight.sum(1 - axis) * torch.arange(small.shape[axis])).sum()) * factor
        - small.shape[axis] * factor / 2
        + offset[1 - axis]
        for axis in (1, 0)
    ]
    assert found == pytest.approx(at, abs=0.01)
    # the offset is that of odd sizes, which have no middle between pixels
    assert all(abs(v) == (0.5 if n % 2 and factor > 1 else 0.0) for v, n in zip(offset, (nx, ny)))

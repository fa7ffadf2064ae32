"""How a tomogram is cut into parts that are searched one by one, each with its own CTF.

Parts are as large as keeps the transforms fast and the memory within its bound, and no larger than a stated
error of the CTF's phase allows. Every place belongs to one part; around its places a part has a halo as wide
as the template's mask, so that scores don't depend on how the tomogram was cut.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.physics import fourier

__all__ = ["Block", "blocks", "read_block"]

_LARGEST = 256  # voxels along a part's side: larger ones leave the caches


@dataclass(frozen=True)
class Block:
    """A part of the searched region.

    Attributes
    ----------
    start, shape : (int, int, int)
        z, y, x: its first place, in voxels of the tomogram, and how many places it has.
    size : (int, int, int)
        z, y, x: of its transforms, halo included.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def centre(self) -> tuple[float, float, float]:
        """x, y, z, voxels of the tomogram."""
        z, y, x = (a + 0.5 * (n - 1) for a, n in zip(self.start, self.shape, strict=True))
        return (x, y, z)


def blocks(
    region: tuple[tuple[int, int, int], tuple[int, int, int]],
    whole: tuple[int, int, int],
    reach: int,
    longest: float,
    largest_bytes: float,
    bytes_of: float,
) -> list[Block]:
    """Cut a region of a tomogram.

    Parameters
    ----------
    region : ((z, y, x), (z, y, x))
        First place and number of places.
    whole : (int, int, int)
        The tomogram's shape.
    reach : int
        Of the mask, voxels.
    longest : float
        Places along a part's side at most, for its CTF.
    largest_bytes : float
        What a part may need.
    bytes_of : float
        What it needs for every voxel of its transform.

    Raises
    ------
    ItemError
        If no part fits into the memory.
    """
    start, shape = region
    cap = (largest_bytes / bytes_of) ** (1.0 / 3.0)
    smallest = fourier.fast_size(2 * reach + 8)
    if cap < smallest:
        need = smallest**3 * bytes_of / 1e9
        raise ItemError(
            f"the template needs parts of at least {need:.2g} GB for each thread: allow more memory"
        )
    side = min(_best_side(reach, longest), int(cap))
    spans = []
    for first, count, total in zip(start, shape, whole, strict=True):
        alone = count == total and fourier.fast_size(count + reach) <= max(1.35 * side, side + reach)
        alone = alone and count <= longest and fourier.fast_size(count + reach) <= cap
        if alone:
            # zeros beyond one end stand for those beyond the other
            spans.append([(first, count, fourier.fast_size(count + reach))])
            continue
        places = max(1, int(min(side - 2 * reach, longest)))
        parts = -(-count // places)
        edges = [first + round(i * count / parts) for i in range(parts + 1)]
        widest = max(b - a for a, b in itertools.pairwise(edges))
        size = fourier.fast_size(widest + 2 * reach)
        spans.append([(a, b - a, size) for a, b in itertools.pairwise(edges)])
    return [
        Block((z[0], y[0], x[0]), (z[1], y[1], x[1]), (z[2], y[2], x[2]))
        for z, y, x in itertools.product(*spans)
    ]


def _best_side(reach: int, longest: float) -> int:
    """The side of a part's transform that costs least for each place."""
    kernel = 2 * reach + 1
    best, side = float("inf"), 0
    n = fourier.fast_size(2 * reach + 8)
    while n <= max(_LARGEST, fourier.fast_size(2 * reach + 8)):
        places = min(n - 2 * reach, longest)
        if n - 2 * reach <= longest + 8 or side == 0:
            passes = 2.0 * n**3 + n * n * (kernel + places) + n * (kernel**2 + places**2)
            # beyond the second-level cache passes slow down
            slow = 1.0 + 0.25 * max(0.0, np.log2(n / 96.0))
            cost = passes * slow / places**3
            if cost < best:
                best, side = cost, n
        n = fourier.fast_size(n + 1)
    return side


def read_block(
    tomogram: NDArray[np.floating], block: Block, reach: int, margin: int, mean: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A part's voxels, from `reach` + `margin` before its first place on.

    Returns
    -------
    volume : (z, y, x) float32
        Of `block.size` + 2 · `margin`: less `mean`, and 0 outside the tomogram.
    inside : (z, y, x) float32
        1 in the tomogram, 0 outside.

    Raises
    ------
    ItemError
        If there is a value that is not finite.
    """
    shape = [n + 2 * margin for n in block.size]
    volume = torch.zeros(shape)
    inside = torch.zeros(shape)
    source, target = [], []
    for start, n, total in zip(block.start, shape, tomogram.shape, strict=True):
        first = start - reach - margin
        a, b = max(first, 0), min(first + n, total)
        source.append(slice(a, b))
        target.append(slice(a - first, b - first))
    # a part that is as wide as the tomogram must not read its far side's halo twice
    values = torch.from_numpy(np.array(tomogram[tuple(source)], dtype=np.float32))
    if not bool(torch.isfinite(values).all()):
        at = (~torch.isfinite(values)).nonzero()[0].tolist()
        z, y, x = (s.start + i for s, i in zip(source, at, strict=True))
        raise ItemError(
            f"the tomogram is not finite at voxel x {x}, y {y}, z {z}: reconstruct it again, or replace such "
            "values"
        )
    volume[tuple(target)] = values - mean
    inside[tuple(target)] = 1.0
    return volume, inside

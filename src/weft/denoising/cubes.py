"""Cubes of volumes and squares of images: how they may be turned, and how they are joined again.

Everything here takes images (y, x) as well as volumes (z, y, x); what is said of cubes holds for squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError

__all__ = [
    "FLIPS",
    "ROTATIONS",
    "SQUARES",
    "WORDS",
    "Scale",
    "Span",
    "Turn",
    "Volume",
    "Wedge",
    "Words",
    "joined",
    "read_cube",
    "same_shape",
    "signal_map",
    "spans",
]

#: (z, y, x), or (y, x), of any real type; a memory map is read a piece at a time.
Volume = NDArray[Any]
#: Edge of the blocks that the places of cubes are weighted by.
BLOCK = 8
#: Voxels that scale and centre are taken from, at most.
_SAMPLE = 1 << 21


@dataclass(frozen=True)
class Words:
    """What messages call things.

    Attributes
    ----------
    thing, things : str
    points : str
    remedy : str
        What to do about one that is spoilt.
    key : str
        The setting that names a trained model.
    """

    thing: str
    things: str
    points: str
    remedy: str
    key: str


#: By the number of dimensions.
WORDS = {
    2: Words("micrograph", "halves", "pixels", "average it again", "denoising.model"),
    3: Words("tomogram", "half maps", "voxels", "reconstruct it again", "tomogram_denoising.model"),
}


@dataclass(frozen=True)
class Scale:
    """What is subtracted from a volume, and what it is divided by: the median, and the deviation around it.

    From the median of absolute deviations, so that gold beads have no say in it.
    """

    centre: float
    spread: float

    @classmethod
    def of(cls, volumes: Sequence[Volume]) -> Scale:
        """One for all of these volumes together; voxels that are exactly 0 (not covered) are left out.

        Raises
        ------
        ItemError
            Where there is nothing, or something that is no number.
        """
        shape = volumes[0].shape
        every = max(1, round((len(volumes) * np.prod(shape, dtype=float) / _SAMPLE) ** (1 / len(shape))))
        first = every // 2
        some = (slice(first, None, every),) * (len(shape) - 1)
        values = np.concatenate(
            [
                np.asarray(volume[z][some], np.float32).ravel()
                for volume in volumes
                for z in range(min(first, shape[0] - 1), shape[0], every)
            ]
        )
        values = values[values != 0.0]
        words = WORDS[len(shape)]
        if not np.isfinite(values).all():
            raise ItemError(f"the {words.thing} holds values that are not finite; {words.remedy}")
        centre = float(np.median(values)) if len(values) else 0.0
        spread = 1.4826 * float(np.median(np.abs(values - centre))) if len(values) else 0.0
        if spread <= 1e-6 * abs(centre) or spread == 0.0:
            raise ItemError(f"the {words.thing} is constant: there is nothing to be denoised; {words.remedy}")
        return cls(centre, spread)

    def normalised(self, values: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """float32, centre 0, spread 1."""
        given = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values, np.float32))
        return (given - self.centre) / self.spread


@dataclass(frozen=True)
class Turn:
    """One of the 48 ways in which a cube can be laid on itself, or of the 8 of a square.

    Attributes
    ----------
    axes : tuple of int
        New axis i is the old axis ``axes[i]``, [z,] y, x.
    flipped : tuple of bool
        New axes that run the other way.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    def of_cubes(self, cubes: torch.Tensor) -> torch.Tensor:
        """(..., [z,] y, x), turned."""
        lead = cubes.ndim - len(self.axes)
        out = cubes.permute(*range(lead), *(lead + axis for axis in self.axes))
        return out.flip([lead + i for i, flip in enumerate(self.flipped) if flip])

    def of_vector(self, vector: Sequence[float]) -> tuple[float, ...]:
        """[z,] y, x, turned with the cube."""
        return tuple(-vector[a] if flip else vector[a] for a, flip in zip(self.axes, self.flipped))


def _turns(dims: int, orders: Iterable[tuple[int, ...]]) -> list[Turn]:
    return [Turn(order, ways) for order in orders for ways in itertools.product((False, True), repeat=dims)]


#: The eight that leave the missing wedge where it is: Weft's volumes have their tilt axis along y.
FLIPS = _turns(3, [(0, 1, 2)])
#: All 48 of a cube.
ROTATIONS = _turns(3, itertools.permutations(range(3)))
#: All eight of a square.
SQUARES = _turns(2, itertools.permutations(range(2)))


@dataclass(frozen=True)
class Wedge:
    """What part of Fourier space a tilt series has seen.

    Attributes
    ----------
    first, last : (float, float, float)
        z, y, x: the direction of the beam through the specimen at the first and at the last tilt. The
        sections across the beam turn about the tilt axis from one to the other; those waves k have been seen
        that they have passed over: where k·first and k·last differ in sign.
    """

    first: tuple[float, float, float]
    last: tuple[float, float, float]

    def seen(self, side: int, turn: Turn | None = None) -> torch.Tensor:
        """(z, y, x) bool, in the order of an FFT of a cube; for one that has been turned."""
        k = torch.fft.fftfreq(side)
        parts = []
        for normal in (self.first, self.last):
            z, y, x = normal if turn is None else turn.of_vector(normal)
            parts.append(z * k[:, None, None] + y * k[:, None] + x * k)
        seen: torch.Tensor = parts[0] * parts[1] <= 1e-12
        return seen


def read_cube(volume: Volume, corner: Sequence[int], side: int) -> NDArray[Any]:
    """The cube of this side that begins at a voxel [z,] y, x."""
    return np.ascontiguousarray(volume[tuple(slice(first, first + side) for first in corner)])


def same_shape(volumes: Sequence[Volume]) -> None:
    """Complain about halves that do not fit each other."""
    words = WORDS.get(volumes[0].ndim, WORDS[3])
    if len({volume.shape for volume in volumes}) != 1 or volumes[0].ndim not in WORDS:
        raise ItemError(
            f"the {words.things} have the shapes {' and '.join(str(v.shape) for v in volumes)}: they must be "
            f"of one {words.thing}; {words.remedy}"
        )


def signal_map(pair: tuple[Volume, Volume], scale: Scale, clip: float) -> torch.Tensor:
    """Where the halves have something in common: the mean of their product in blocks of 8 voxels' side.

    Returns
    -------
    ([z,] y, x) float32
        Of whole blocks.

    Raises
    ------
    ItemError
        For a value that is no number.
    """
    count = [n // BLOCK for n in pair[0].shape]
    out = torch.empty(count)
    across = tuple(slice(BLOCK * n) for n in count[1:])
    divided = [BLOCK, *itertools.chain.from_iterable((n, BLOCK) for n in count[1:])]
    for row in range(count[0]):
        a, b = (
            scale.normalised(v[(slice(BLOCK * row, BLOCK * (row + 1)), *across)]).clamp_(-clip, clip)
            for v in pair
        )
        out[row] = (a * b).reshape(divided).mean(tuple(range(0, len(divided), 2)))
    if not bool(torch.isfinite(out).all()):
        words = WORDS[pair[0].ndim]
        raise ItemError(f"the half {words.thing}s hold values that are not finite; {words.remedy}")
    return out


@dataclass(frozen=True)
class Span:
    """A tile along one axis.

    Attributes
    ----------
    start, stop : int
        What of the volume it holds.
    padded : int
        Its length, with what must be added behind the volume's end.
    weight : (stop − start,) float32
        Of its voxels in the joined volume; those of all tiles add up to 1 everywhere.
    """

    start: int
    stop: int
    padded: int
    weight: torch.Tensor


def spans(n: int, tile: int, reach: int, stride: int, fade: int = 8) -> list[Span]:
    """Divide an axis of n voxels into tiles of at most `tile`, that fade into each other.

    Parameters
    ----------
    reach : int
        How far from a tile's inner ends its voxels are not used.
    stride : int
        Tiles begin at multiples of it and have such lengths.
    """
    tile = max(tile // stride, -(-(2 * reach + fade + stride) // stride)) * stride
    overlap = 2 * reach + fade
    count = 1 if n <= tile else 1 + -(-(n - tile) // (tile - overlap))
    step = 0 if count == 1 else -(-(n - tile) // ((count - 1) * stride)) * stride
    starts = [i * step for i in range(count)]
    stops = [min(start + tile, n) for start in starts]
    ramps = [0.5 * (a + b) for a, b in zip(starts[1:], stops[:-1], strict=True)]
    found = []
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        place = torch.arange(start, stop) + 0.5
        weight = torch.ones(stop - start)
        if i > 0:
            weight *= _risen((place - ramps[i - 1]) / fade)
        if i < count - 1:
            weight *= 1.0 - _risen((place - ramps[i]) / fade)
        found.append(Span(start, stop, -(-(stop - start) // stride) * stride, weight))
    return found


def _risen(t: torch.Tensor) -> torch.Tensor:
    """From 0 at −1/2 to 1 at +1/2, along a cosine."""
    return 0.5 + 0.5 * torch.sin(torch.pi * t.clamp(-0.5, 0.5))


def joined(
    shape: tuple[int, int, int],
    plan: Sequence[Sequence[Span]],
    make: Callable[[tuple[Span, Span, Span]], torch.Tensor],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Join tiles to slabs (first section, (z, y, x)), in order; only one row of tiles is held.

    Parameters
    ----------
    plan : spans of z, y and x
    make : callable
        Gives the tile (z, y, x) of three spans.
    """
    rows, lines, columns = plan
    depth = max(row.stop - row.start for row in rows)
    buffer = torch.zeros(depth, shape[1], shape[2])
    for number, row in enumerate(rows):
        for line, column in itertools.product(lines, columns):
            weight = row.weight[:, None, None] * line.weight[:, None] * column.weight
            part = buffer[: row.stop - row.start, line.start : line.stop, column.start : column.stop]
            part += make((row, line, column)) * weight
        done = (rows[number + 1].start if number + 1 < len(rows) else row.stop) - row.start
        yield row.start, buffer[:done]
        # what the next row adds to comes first
        buffer = torch.cat([buffer[done:], buffer.new_zeros(done, *buffer.shape[1:])])

"""Using a picking network: what each part of a micrograph is, and where its particles are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weft.picking.chances import Chances, Peaks, best_threshold, decoy
from weft.picking.components import (
    PickingSettings,
    artefact_mask,
    candidate_peaks,
    find_particles,
)
from weft.picking.examples import normalised, on_grid
from weft.picking.network import ARTEFACT, PARTICLE, PickingModel, SegmentationNetwork
from weft.picking.picks import Picks

__all__ = ["Found", "Segmentation", "compared_peaks", "pick", "probabilities", "segment"]

#: Side of a tile and how much of it neighbours share, px: as in the paper.
TILE, OVERLAP = 256, 64


@dataclass(frozen=True)
class Segmentation:
    """What the network says of a micrograph.

    Attributes
    ----------
    image : (y, x) float32
        What it has seen: the micrograph on its grid, normalised.
    probabilities : (3, y, x) float32
        Of background, particle and artefact.
    size : (float, float)
        Of the field, x and y, Å.
    """

    image: torch.Tensor
    probabilities: NDArray[np.float32]
    size: tuple[float, float]


@dataclass(frozen=True)
class Found:
    """Particles and artefacts of a micrograph.

    Attributes
    ----------
    picks : Picks
    mask : (y, x) bool array
        Where artefacts are, on the network's grid.
    size : (float, float)
        Of the field, x and y, Å.
    threshold : float
        Least probability of the particles' pixels.
    """

    picks: Picks
    mask: NDArray[np.bool_]
    size: tuple[float, float]
    threshold: float


def segment(
    image: torch.Tensor, pixel_size: float, model: PickingModel, network: SegmentationNetwork | None = None
) -> Segmentation:
    """Ask the network about a micrograph.

    The image is scaled to the network's pixels, normalised, and seen in tiles of 256 px that overlap by 64;
    where they do, each counts the more the farther a pixel is from its border. Every tile is seen
    in four orientations (as it is, turned by 180°, and both transposed), and the mean taken.

    Parameters
    ----------
    image : (y, x) float32
        Protein dark. On the device that is to be used.
    pixel_size : float
        Å.
    network : SegmentationNetwork, optional
        Of `model`, where it is kept for the next micrograph.

    Raises
    ------
    ItemError
        For values that are not finite, a field that is too small, or nothing to see.
    """
    network = network or model.network(image.device)
    small = normalised(on_grid(image, pixel_size, model.pixel_size))
    size = (image.shape[1] * pixel_size, image.shape[0] * pixel_size)
    return Segmentation(small, probabilities(small, network).cpu().numpy(), size)


def probabilities(image: torch.Tensor, network: SegmentationNetwork) -> torch.Tensor:
    """(y, x) normalised, on the network's grid -> (3, y, x) probabilities."""
    ny, nx = image.shape
    stride = network.shape.stride
    sides = [TILE if n > TILE else math.ceil(n / stride) * stride for n in (ny, nx)]
    pad = [max(0, side - n) for side, n in zip(sides, (ny, nx), strict=True)]
    padded = _mirrored(image, pad[0], pad[1])
    rows, columns = (_starts(n, side) for n, side in zip(padded.shape, sides, strict=True))
    window = _window(sides[0], image)[:, None] * _window(sides[1], image)[None]
    total = image.new_zeros(3, *padded.shape)
    weight = image.new_zeros(padded.shape)
    with torch.inference_mode():
        for y in rows:
            tiles = torch.stack([padded[y : y + sides[0], x : x + sides[1]] for x in columns])[:, None]
            found = _seen_around(tiles, network)
            for x, tile in zip(columns, found, strict=True):
                total[:, y : y + sides[0], x : x + sides[1]] += tile * window
                weight[y : y + sides[0], x : x + sides[1]] += window
    return (total / weight)[:, :ny, :nx]


def pick(
    image: torch.Tensor,
    pixel_size: float,
    model: PickingModel,
    settings: PickingSettings | None = None,
    network: SegmentationNetwork | None = None,
) -> Found:
    """Find the particles of a micrograph, and what is to be left out.

    Parameters
    ----------
    image : (y, x) float32
        Protein dark.
    pixel_size : float
        Å.

    Raises
    ------
    ItemError
        As :func:`segment`.
    """
    settings = settings or PickingSettings()
    network = network or model.network(image.device)
    seen = segment(image, pixel_size, model, network)
    mask = artefact_mask(seen.probabilities[ARTEFACT], settings)
    particle = seen.probabilities[PARTICLE]
    threshold = settings.threshold
    if threshold is None:
        peaks = compared_peaks(seen.image, particle, mask, network, settings)
        threshold = best_threshold(peaks.values, Chances(model.chances).of(peaks), model.least_chance)
    if settings.diameter is None and model.diameter > 0.0:
        settings = settings.model_copy(update={"diameter": model.diameter})
    picks = find_particles(particle, mask, seen.size, threshold, model.label_scale, settings)
    return Found(picks, mask, seen.size, threshold)


def compared_peaks(
    image: torch.Tensor,
    particle: NDArray[np.float32],
    mask: NDArray[np.bool_],
    network: SegmentationNetwork,
    settings: PickingSettings,
) -> Peaks:
    """Candidates of a micrograph, and those that the network finds in a decoy of one tile.

    Parameters
    ----------
    image : (y, x) float32
        Normalised, on the network's grid.
    particle : (y, x) array
        Probabilities that pixels belong to particles.
    mask : (y, x) bool array
        Where artefacts are.
    """
    values, _ = candidate_peaks(particle, mask, settings.smallest)
    other = normalised(decoy(image)[:TILE, :TILE])
    found = probabilities(other, network).cpu().numpy()
    decoys, _ = candidate_peaks(found[PARTICLE], artefact_mask(found[ARTEFACT], settings), settings.smallest)
    return Peaks(values, decoys, other.numel() / max(1, int((~mask).sum())))


def _seen_around(tiles: torch.Tensor, network: SegmentationNetwork) -> torch.Tensor:
    """(b, 1, y, x) -> (b, 3, y, x) probabilities, the mean of four orientations, whose errors differ."""
    total = torch.zeros((), device=tiles.device)
    for across in (False, True):
        for turned in (False, True):
            view = tiles.transpose(-1, -2) if across else tiles
            view = view.flip(-1, -2) if turned else view
            found = network(view.contiguous()).softmax(1)
            found = found.flip(-1, -2) if turned else found
            total = total + (found.transpose(-1, -2) if across else found)
    return 0.25 * total


def _starts(n: int, side: int) -> list[int]:
    """Where tiles begin, evenly spread."""
    if n <= side:
        return [0]
    count = math.ceil((n - OVERLAP) / (side - OVERLAP))
    return [round(i * (n - side) / (count - 1)) for i in range(count)]


def _window(side: int, like: torch.Tensor) -> torch.Tensor:
    """How much a tile's pixels count: 1, and less within the overlap from its border."""
    edge = torch.arange(side, device=like.device, dtype=like.dtype) + 0.5
    edge = torch.minimum(edge, edge.flip(0))
    return (edge / OVERLAP).clamp(max=1.0)


def _mirrored(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """With mirror images of itself after its last row and column."""
    while rows > 0:
        part = image[max(0, image.shape[0] - 1 - rows) : -1].flip(0)
        image, rows = torch.cat([image, part], 0), rows - len(part)
    while columns > 0:
        part = image[:, max(0, image.shape[1] - 1 - columns) : -1].flip(1)
        image, columns = torch.cat([image, part], 1), columns - part.shape[1]
    return image

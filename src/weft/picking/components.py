"""From probabilities to particles and masks: what becomes of the network's answer.

Tegunov & Cramer 2019, "Particle picking with a residual neural net": pixels above a threshold of the
softmax are joined to components, whose centroids are the particles; of two that overlap the one with the
larger component stays; a mask is where the artefacts' probability is above 0.1, without components of fewer
than 20 pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from weft.picking.picks import Picks
from weft.settings import Settings, setting

__all__ = [
    "LOWEST",
    "PickingSettings",
    "artefact_mask",
    "candidate_peaks",
    "covering_discs",
    "find_particles",
    "pixels_of",
]

_Array = NDArray[np.float64]

#: A component falls apart where its parts are joined by pixels that are less probable than both by so much,
#: looked for at these parts of the way from the threshold to 1.
_PROMINENCE, _LEVELS = 0.2, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_NEIGHBOURS = np.ones((3, 3), dtype=bool)
#: Pixels less probable than this are never looked at.
LOWEST = 0.06


class PickingSettings(Settings):
    """How particles are picked."""

    model: str = setting(
        "default", "The network: default for the one that ships, or a file that `weft pick train` has made."
    )
    threshold: float | None = setting(
        None,
        "Least probability of a particle's pixels; empty to choose it for each micrograph, so that picks are "
        "expected to be most right (greatest F1).",
        ge=0.01,
        le=0.999,
    )
    diameter: float | None = setting(
        None, "Of the particles; empty to estimate it from what is found.", unit="Å", gt=0.0, le=5000.0
    )
    spacing: float = setting(
        0.7,
        "Particles nearer to each other than so many diameters overlap: the larger component stays.",
        ge=0.0,
        le=5.0,
    )
    smallest: int = setting(
        8, "Components of fewer pixels (of 8 Å) are no particles.", unit="px", ge=1, le=1000
    )
    mask_threshold: float = setting(
        0.1, "Least probability of pixels that are masked as artefacts.", ge=0.01, le=0.999
    )
    mask_certain: float = setting(
        0.5, "Masked components that are nowhere so probable are dropped.", ge=0.01, le=0.999
    )
    mask_smallest: int = setting(
        20, "Masked components of fewer pixels (of 8 Å) are dropped.", unit="px", ge=0, le=100000
    )
    mask_distance: float = setting(
        20.0, "Particles whose centres are nearer to a mask are left out.", unit="Å", ge=0.0, le=5000.0
    )


def pixels_of(xy: _Array, shape: tuple[int, int], size: tuple[float, float]) -> NDArray[np.int64]:
    """Row and column ``(n, 2)`` of the pixels that positions (Å) are in; others go to the border."""
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    nearest = np.rint(np.asarray(xy).reshape(-1, 2) * scale).astype(np.int64)[:, ::-1]
    result: NDArray[np.int64] = np.clip(nearest, 0, np.array(shape) - 1)
    return result


def artefact_mask(probability: NDArray[np.floating], settings: PickingSettings) -> NDArray[np.bool_]:
    """Where artefacts are: ``(y, x)``, from their probability."""
    above = probability >= settings.mask_threshold
    labels, n = ndimage.label(above, _NEIGHBOURS)
    areas = np.bincount(labels.ravel(), minlength=n + 1)
    certain = np.asarray(ndimage.maximum(probability, labels, np.arange(n + 1)))
    keep = (areas >= settings.mask_smallest) & (certain >= settings.mask_certain)
    keep[0] = False
    result: NDArray[np.bool_] = keep[labels]
    return result


def candidate_peaks(
    probability: NDArray[np.floating], mask: NDArray[np.bool_], smallest: int
) -> tuple[_Array, NDArray[np.int64]]:
    """All that might be a particle: the greatest probability of each, and the row and column where it is."""
    above = (probability >= LOWEST) & ~mask
    labels, n = ndimage.label(above)
    labels = _split(probability, labels, n, LOWEST, smallest)
    areas = np.bincount(labels.ravel())
    index = np.flatnonzero(areas >= smallest)
    index = index[index > 0]
    places = np.array(ndimage.maximum_position(probability, labels, index), dtype=np.int64).reshape(-1, 2)
    return probability[places[:, 0], places[:, 1]].astype(np.float64), places


def covering_discs(
    mask: NDArray[np.bool_], size: tuple[float, float], largest: float
) -> tuple[_Array, _Array]:
    """Discs that cover a mask, the thickest part first; one for each round component.

    Parameters
    ----------
    mask : (y, x) bool array
    size : (float, float)
        Of the field, x and y, Å.
    largest : float
        Å; components that hold a larger disc are left out.

    Returns
    -------
    xy : (n, 2) array
        Å.
    diameters : (n,) array
        Å.
    """
    pixel = np.array([size[0] / mask.shape[1], size[1] / mask.shape[0]])
    if mask.all():  # no border to measure from
        return np.zeros((0, 2)), np.zeros(0)
    # what reaches the border is supposed to go on behind it
    thickness = ndimage.distance_transform_edt(mask, sampling=pixel[::-1])
    labels, n = ndimage.label(mask, _NEIGHBOURS)
    thickest = np.asarray(ndimage.maximum(thickness, labels, np.arange(n + 1)))
    thickness[np.append(True, 2.0 * thickest[1:] > largest)[labels]] = 0.0
    left = thickness > 0.0
    rows, columns = np.indices(mask.shape)
    places: list[tuple[float, float]] = []
    diameters: list[float] = []
    while left.any():
        # one pixel may be half outside of a disc that ends on its centre
        row, column = np.unravel_index(np.argmax(np.where(left, thickness, 0.0)), mask.shape)
        radius = float(thickness[row, column])
        away = np.hypot((rows - row) * pixel[1], (columns - column) * pixel[0])
        left &= away > radius + 0.5 * float(pixel.mean())
        places.append((float(column * pixel[0]), float(row * pixel[1])))
        diameters.append(2.0 * radius)
    return np.array(places, dtype=np.float64).reshape(-1, 2), np.array(diameters, dtype=np.float64)


def find_particles(
    probability: NDArray[np.floating],
    mask: NDArray[np.bool_],
    size: tuple[float, float],
    threshold: float,
    label_scale: float,
    settings: PickingSettings,
) -> Picks:
    """Particles in an image of probabilities, the best first.

    Parameters
    ----------
    probability : (y, x) array
        That a pixel belongs to a particle.
    mask : (y, x) bool array
        Where artefacts are.
    size : (float, float)
        Of the field, x and y, Å.
    threshold : float
    label_scale : float
        How large the network draws particles, relative to what they are.

    Returns
    -------
    Picks
        The score is the mean probability of a component's pixels.
    """
    labels, n = ndimage.label(probability >= threshold)
    labels = _split(probability, labels, n, threshold, settings.smallest)
    n = int(labels.max(initial=0))
    index = np.arange(1, n + 1)
    counts = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    index = index[counts >= settings.smallest]
    areas: _Array = counts[index - 1].astype(np.float64)
    centres = np.array(ndimage.center_of_mass(probability, labels, index), dtype=np.float64).reshape(-1, 2)
    score = np.asarray(ndimage.mean(probability, labels, index), dtype=np.float64).reshape(-1)
    pixel = np.array([size[0] / probability.shape[1], size[1] / probability.shape[0]])
    xy = centres[:, ::-1] * pixel
    areas = areas * float(pixel.prod())
    diameter = settings.diameter
    if diameter is None:
        diameter = (
            2.0 * math.sqrt(float(np.median(areas)) / math.pi) / label_scale if len(areas) else math.nan
        )
    if mask.any():
        clear = ndimage.distance_transform_edt(~mask, sampling=pixel[::-1])
        rows, columns = pixels_of(xy, probability.shape, size).T
        far = clear[rows, columns] > settings.mask_distance
        xy, areas, score = xy[far], areas[far], score[far]
    kept = _without_overlap(xy, areas, settings.spacing * diameter if len(xy) else 0.0)
    xy, areas, score = xy[kept], areas[kept], score[kept]
    best = np.argsort(-score, kind="stable")
    return Picks(xy[best], score[best], diameter, areas[best])


def _split(
    probability: NDArray[np.floating], labels: NDArray[np.int32], n: int, threshold: float, smallest: int
) -> NDArray[np.int32]:
    """Components whose probable parts are joined by less probable pixels, taken apart."""
    seeds, count = labels.copy(), n
    for part in _LEVELS:
        level = threshold + part * (1.0 - threshold)
        higher, _ = ndimage.label(probability >= level)
        # which component each part lies in, how large it is, and how far it rises
        where = higher > 0
        pairs, areas = np.unique(np.stack([seeds[where], higher[where]]), axis=1, return_counts=True)
        rise = np.asarray(ndimage.maximum(probability, higher, pairs[1])) - level if pairs.size else areas
        pairs = pairs[:, (areas >= max(4, smallest // 2)) & (pairs[0] > 0) & (rise >= _PROMINENCE)]
        parents, parts = np.unique(pairs[0], return_counts=True)
        for parent in parents[parts > 1]:
            inside = seeds == parent
            seeds[inside] = 0
            for child in pairs[1, pairs[0] == parent]:
                count += 1
                seeds[inside & (higher == child)] = count
    # pixels that belong to no part fall to the nearest one of their component
    lost = (labels > 0) & (seeds == 0)
    if lost.any():
        nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
        seeds[lost] = seeds[tuple(nearest)][lost]
    return np.unique(seeds, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def _without_overlap(xy: _Array, areas: _Array, distance: float) -> NDArray[np.bool_]:
    """Which stay when, of two nearer than `distance`, the smaller goes."""
    kept = np.ones(len(xy), dtype=bool)
    if distance <= 0.0 or len(xy) < 2:
        return kept
    tree = cKDTree(xy)
    for row in np.argsort(-areas, kind="stable"):
        if kept[row]:
            near = tree.query_ball_point(xy[row], distance)
            kept[near] = False
            kept[row] = True
    return kept

"""Position and orientation of the best places beyond the grid of the search.

Around each place the same correlation is looked at again: first with orientations half a step away, then a
quarter ... whichever scores best is the next centre; then the top is found from a paraboloid through the
neighbours in all six directions. The score is the search's own, so that refined and unrefined places compare.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from weft.matching.angles import euler_angles, nearby, small_rotations
from weft.matching.kernel import MaskedTemplate, centre_of
from weft.matching.matcher import Matcher
from weft.matching.parts import Block
from weft.physics.geometry import euler_matrix

__all__ = ["Refined", "refine_places"]

_FINEST = 1.5  # degrees: the step is halved until it is no more than this


@dataclass(frozen=True)
class Refined:
    """Refined places.

    Attributes
    ----------
    xyz : (n, 3) float64
        Voxels of the tomogram.
    euler : (n, 3) float64
        rot, tilt, psi, degrees.
    score : (n,) float64
    """

    xyz: NDArray[np.float64]
    euler: NDArray[np.float64]
    score: NDArray[np.float64]


def refine_places(
    matcher: Matcher,
    places: NDArray[np.int64],
    numbers: NDArray[np.int64],
    progress: Callable[[float], None] | None = None,
    *,
    around: int = 2,
) -> Refined:
    """Refine what a search has found, each place with the CTF that it has itself.

    Parameters
    ----------
    matcher : Matcher
        That of the search.
    places : (n, 3) array
        z, y, x, voxels of the tomogram.
    numbers : (n,) array
        Of the orientations that were best, rows of `matcher.plan.rotations`.
    progress : callable, optional
        Takes the fraction that is done.
    around : int
        Voxels around a place, in each direction, that are looked at.

    Returns
    -------
    Refined
        In the order given.
    """
    plan = matcher.plan
    fine = [matcher.fine(index) for index in range(len(matcher.templates))]
    side = 2 * around + 1
    size = 2 * (plan.reach + around) + 1
    done, lock = 0, threading.Lock()

    def one(item: int) -> tuple[list[float], list[float], float]:
        nonlocal done
        z, y, x = (int(v) for v in places[item])
        index = int(plan.owner[int(numbers[item])])
        block = Block((z - around, y - around, x - around), (side, side, side), (size, size, size))
        patch = matcher.filtered(block)
        weights = matcher.prepared_weights(index, matcher.place(block))
        start = plan.rotations[int(numbers[item])]
        shift, euler, score = _refine(patch, fine[index], weights, start, plan.steps[index])
        if progress is not None:
            with lock:
                done += 1
                progress(done / len(places))
        return [v + d for v, d in zip((x, y, z), shift, strict=True)], euler, score

    threads = torch.get_num_threads()
    if threads == 1 or len(places) < 2:
        found = [one(item) for item in range(len(places))]
    else:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(one, range(len(places))))
        torch.set_num_threads(threads)
    return Refined(
        np.array([f[0] for f in found], dtype=np.float64).reshape(-1, 3),
        np.array([f[1] for f in found], dtype=np.float64).reshape(-1, 3),
        np.array([f[2] for f in found], dtype=np.float64),
    )


class _Patch:
    """A piece of the filtered tomogram around one place, and the correlations of it."""

    def __init__(
        self, patch: NDArray[np.float32], template: MaskedTemplate, weights: NDArray[np.float32] | None
    ) -> None:
        self.template, self.weights = template, weights
        n = 2 * template.reach + 1
        self.places = patch.shape[0] - n + 1
        self.size = tuple(scipy.fft.next_fast_len(m, real=True) for m in patch.shape)
        self.spectrum = scipy.fft.rfftn(patch, s=self.size, workers=1)
        self.squared = scipy.fft.rfftn(patch * patch, s=self.size, workers=1)
        self.fixed = self._inverse(centre_of(template.mask, template.reach).numpy())

    def _sums(self, kernel: NDArray[np.float32], spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
        product = spectrum * scipy.fft.rfftn(kernel, s=self.size, workers=1).conj()
        found = scipy.fft.irfftn(product, s=self.size, workers=1, overwrite_x=True)
        return np.asarray(found[: self.places, : self.places, : self.places])

    def _inverse(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        total = float(mask.sum(dtype=np.float64))
        mean, square = self._sums(mask, self.spectrum) / total, self._sums(mask, self.squared) / total
        sigma = np.sqrt(np.maximum(square - mean * mean, 0.0))
        return np.where(sigma > 1e-3 * sigma.max(), 1.0 / (np.maximum(sigma, 1e-30) * total), 0.0)

    def scores(self, matrix: torch.Tensor) -> NDArray[np.float32]:
        """At all places around, for one orientation."""
        template = self.template
        box = template.fine.turned(matrix[None])[0].numpy()
        if self.weights is not None:
            spectrum = scipy.fft.rfftn(box, workers=1)
            box = scipy.fft.irfftn(spectrum * self.weights, s=box.shape, workers=1)
        mask, inverse = template.mask.numpy(), self.fixed
        if template.fine_mask is not None:
            mask = template.fine_mask.turned(matrix[None])[0].numpy()
            inverse = self._inverse(centre_of(torch.from_numpy(mask), template.reach).numpy())
        total = mask.sum(dtype=np.float64)
        mean = float((mask * box).sum(dtype=np.float64) / total)
        sigma = math.sqrt(max(float((mask * (box - mean) ** 2).sum(dtype=np.float64) / total), 1e-60))
        kernel = centre_of(torch.from_numpy(mask * (box - mean) / sigma), template.reach).numpy()
        return self._sums(kernel.astype(np.float32), self.spectrum) * inverse


def _refine(
    patch: torch.Tensor,
    template: MaskedTemplate,
    weights: torch.Tensor | None,
    euler: torch.Tensor,
    step: float,
) -> tuple[list[float], list[float], float]:
    """One place: x, y, z in voxels from the patch's centre, rot, tilt, psi, and the score."""
    look = _Patch(patch.cpu().numpy(), template, None if weights is None else weights.cpu().numpy())
    matrix = euler_matrix(*euler)

    def best(candidate: torch.Tensor) -> tuple[float, NDArray[np.float32]]:
        scores = look.scores(candidate)
        return float(scores.max()), scores

    top, scores = best(matrix)
    levels = max(2, math.ceil(math.log2(step / _FINEST)))
    for level in range(1, levels + 1):
        turns = nearby(step / 2**level)
        for _ in range(3 if level == 1 else 1):
            found = [best(turn @ matrix) for turn in turns]
            index = int(np.argmax([value for value, _ in found]))
            if found[index][0] <= top:
                break
            top, scores = found[index]
            matrix = turns[index] @ matrix
    matrix, top, scores = _top_of_turns(matrix, step / 2**levels, top, scores, best)
    place, height = _top_of_places(scores)
    middle = look.places // 2
    z, y, x = (p - middle for p in place)
    return [x, y, z], euler_angles(matrix).tolist(), max(height, top)


def _top_of_turns(
    matrix: torch.Tensor,
    step: float,
    top: float,
    scores: NDArray[np.float32],
    best: Callable[[torch.Tensor], tuple[float, NDArray[np.float32]]],
) -> tuple[torch.Tensor, float, NDArray[np.float32]]:
    """The orientation at the top of a paraboloid through the neighbours."""
    size = math.radians(step)
    vectors = nearby_vectors(size)
    values = np.array([best(turn @ matrix)[0] for turn in small_rotations(vectors)])
    v = (vectors / size).numpy()
    terms = np.stack([v[:, 0], v[:, 1], v[:, 2], *(v[:, i] * v[:, j] for i, j in _PAIRS)], axis=1)
    fit, *_ = np.linalg.lstsq(terms, values - top, rcond=None)
    hessian = np.zeros((3, 3))
    for value, (i, j) in zip(fit[3:], _PAIRS, strict=True):
        hessian[i, j] += value
        hessian[j, i] += value
    if np.linalg.eigvalsh(hessian).max() >= 0.0:
        return matrix, top, scores
    move = -np.linalg.solve(hessian, fit[:3])
    if np.abs(move).max() > 1.5:
        return matrix, top, scores
    turned = small_rotations(torch.from_numpy(move[None] * size))[0] @ matrix
    height, found = best(turned)
    return (turned, height, found) if height > top else (matrix, top, scores)


_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def nearby_vectors(size: float) -> torch.Tensor:
    """The six axes and the twelve diagonals between them, of length `size` along each: (18, 3) float64."""
    steps = torch.tensor([-size, 0.0, size], dtype=torch.float64)
    vectors = torch.cartesian_prod(steps, steps, steps)
    used = (vectors != 0.0).sum(dim=1)
    return vectors[(used == 1) | (used == 2)]


def _top_of_places(scores: NDArray[np.float32]) -> tuple[tuple[float, float, float], float]:
    """Where a paraboloid through the highest voxel and its neighbours has its top, and its height."""
    at = np.unravel_index(int(scores.argmax()), scores.shape)
    height = float(scores[at])
    out = []
    for axis, index in enumerate(at):
        if not 0 < index < scores.shape[axis] - 1:
            out.append(float(index))
            continue
        low, high = (float(scores[tuple(i + d * (a == axis) for a, i in enumerate(at))]) for d in (-1, 1))
        curve = low - 2.0 * float(scores[at]) + high
        move = 0.5 * (low - high) / curve if curve < 0.0 else 0.0
        move = float(np.clip(move, -0.5, 0.5))
        height += 0.25 * (high - low) * move
        out.append(index + move)
    return (out[0], out[1], out[2]), height

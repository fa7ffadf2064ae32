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
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from weft.matching.angles import nearby
from weft.matching.kernel import MaskedTemplate, centre_of
from weft.matching.matcher import Matcher
from weft.matching.parts import Block
from weft.physics.geometry import euler_angles, euler_matrix, rotation_about

__all__ = ["Refined", "refine_places"]

_FINEST = 1.5  # degrees: the step is halved until it is no more than this
_BATCH = 64  # orientations that are compared at once
_LOOKED_AT, _STARTS = 256, 8  # best orientations of a place at low resolution; different ones among them
_CLIMBED = 4  # that are followed at full resolution
_AXES = (-3, -2, -1)


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
    coarse: Matcher | None = None,
    euler: NDArray[np.float64] | None = None,
    step: float = 0.0,
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
    coarse : Matcher, optional
        Of the binned tomogram, where that was searched: at low resolution different orientations may look the
        same, so the best few at each place are tried, not only the one that was best.
    euler : (n, 3) array, optional
        Orientations to start from instead, degrees, which are right within `step`.
    step : float
        Degrees; 0 is that of the search.

    Returns
    -------
    Refined
        In the order given.
    """
    # small boxes, a few orientations at a time: work for CPUs
    matcher = replace(matcher, device="cpu")
    coarse = None if coarse is None else replace(coarse, device="cpu")
    plan = matcher.plan
    fine = [matcher.fine(index) for index in range(len(matcher.templates))]
    small = [] if coarse is None else [coarse.fine(index) for index in range(len(matcher.templates))]
    side = 2 * around + 1
    size = 2 * (plan.reach + around) + 1
    done, lock = 0, threading.Lock()

    def one(item: int) -> tuple[list[float], list[float], float]:
        nonlocal done
        z, y, x = (int(v) for v in places[item])
        index = int(plan.owner[int(numbers[item])])
        block = Block((z - around, y - around, x - around), (side, side, side), (size, size, size))
        look = _Patch.of(matcher, block, fine[index], index)
        if euler is not None:
            starts = euler_matrix(*torch.from_numpy(euler[item]).double())[None]
        elif coarse is None:
            starts = euler_matrix(*plan.rotations[int(numbers[item])])[None]
        else:
            wide = _wide_block(coarse, matcher, (z, y, x))
            rotations = plan.rotations[plan.owner == index]
            starts = _candidates(_Patch.of(coarse, wide, small[index], index), rotations, plan.steps[index])
        shift, turned, score = _refine(look, starts, step or plan.steps[index])
        if progress is not None:
            with lock:
                done += 1
                progress(done / len(places))
        return [v + d for v, d in zip((x, y, z), shift, strict=True)], turned, score

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

    @classmethod
    def of(cls, matcher: Matcher, block: Block, template: MaskedTemplate, index: int) -> _Patch:
        """Around a block of places, with the CTF that is there."""
        weights = matcher.prepared_weights(index, matcher.place(block))
        patch = matcher.filtered(block).cpu().numpy()
        return cls(patch, template, None if weights is None else weights.cpu().numpy())

    def __init__(
        self, patch: NDArray[np.float32], template: MaskedTemplate, weights: NDArray[np.float32] | None
    ) -> None:
        self.template, self.weights = template, weights
        n = 2 * template.reach + 1
        self.places = patch.shape[0] - n + 1
        self.size = tuple(scipy.fft.next_fast_len(m, real=True) for m in patch.shape)
        self.spectrum = scipy.fft.rfftn(patch, s=self.size, workers=1)
        self.squared = scipy.fft.rfftn(patch * patch, s=self.size, workers=1)
        self.mask = np.ascontiguousarray(centre_of(template.mask, template.reach).numpy())
        self.fixed = self._inverse(self.mask)

    def _sums(self, kernels: NDArray[np.float32], spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
        """(..., p, p, p): Σ kernel(r) V(x + r)."""
        product = scipy.fft.rfftn(kernels, s=self.size, axes=_AXES, workers=1)
        np.conjugate(product, out=product)
        product *= spectrum
        found = scipy.fft.irfftn(product, s=self.size, axes=_AXES, workers=1, overwrite_x=True)
        return np.asarray(found[..., : self.places, : self.places, : self.places])

    def _inverse(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        total = float(mask.sum(dtype=np.float64))
        mean, square = self._sums(mask, self.spectrum) / total, self._sums(mask, self.squared) / total
        sigma = np.sqrt(np.maximum(square - mean * mean, 0.0))
        inverse = np.where(sigma > 1e-3 * sigma.max(), 1.0 / (np.maximum(sigma, 1e-30) * total), 0.0)
        return inverse.astype(np.float32)

    def scores(self, matrices: torch.Tensor) -> NDArray[np.float32]:
        """(r, p, p, p): at all places around, for orientations (r, 3, 3)."""
        template = self.template
        boxes = template.fine.turned(matrices).numpy()
        if self.weights is not None:
            spectra = scipy.fft.rfftn(boxes, axes=_AXES, workers=1)
            spectra *= self.weights
            boxes = scipy.fft.irfftn(spectra, s=boxes.shape[1:], axes=_AXES, workers=1, overwrite_x=True)
        c, reach = boxes.shape[-1] // 2, template.reach
        part = slice(c - reach, c + reach + 1)
        boxes = boxes[:, part, part, part]
        if template.fine_mask is None:
            masks, inverse = self.mask[None], self.fixed[None]
        else:
            masks = template.fine_mask.turned(matrices).numpy()[:, part, part, part]
            inverse = np.stack([self._inverse(mask) for mask in masks])
        total = masks.sum(axis=_AXES, dtype=np.float64, keepdims=True)
        mean = (masks * boxes).sum(axis=_AXES, dtype=np.float64, keepdims=True) / total
        boxes = boxes - mean.astype(np.float32)
        variance = (masks * boxes * boxes).sum(axis=_AXES, dtype=np.float64, keepdims=True) / total
        boxes *= masks / np.sqrt(np.maximum(variance, 1e-60)).astype(np.float32)
        return self._sums(boxes, self.spectrum) * inverse


def _wide_block(coarse: Matcher, fine: Matcher, place: tuple[int, int, int]) -> Block:
    """3³ places of the binned tomogram around a voxel of the fine one."""
    size = 2 * (coarse.plan.reach + 1) + 1
    ratio = coarse.voxel_size / fine.voxel_size
    z, y, x = (round((p - 0.5 * (ratio - 1.0)) / ratio) - 1 for p in place)
    return Block((z, y, x), (3, 3, 3), (size, size, size))


def _candidates(look: _Patch, rotations: torch.Tensor, step: float) -> torch.Tensor:
    """Orientations that score best at a place, none within a step and a half of a better one: (n, 3, 3)."""
    matrices = euler_matrix(*rotations.unbind(-1))
    batches = (look.scores(part).reshape(len(part), -1).max(axis=1) for part in torch.split(matrices, _BATCH))
    scores = np.concatenate(list(batches))
    order = np.argsort(-scores)[:_LOOKED_AT]
    best = matrices[torch.from_numpy(order.copy())]
    trace = torch.einsum("aij,bij->ab", best, best)
    near = (0.5 * (trace - 1.0)).clamp(-1.0, 1.0) > math.cos(math.radians(1.5 * step))
    kept: list[int] = []
    for index in range(len(best)):
        if not any(bool(near[index, other]) for other in kept):
            kept.append(index)
        if len(kept) == _STARTS:
            break
    return best[kept]


def _refine(look: _Patch, starts: torch.Tensor, step: float) -> tuple[list[float], list[float], float]:
    """One place: x, y, z in voxels from the patch's centre, rot, tilt, psi, and the score."""
    levels = max(2, math.ceil(math.log2(step / _FINEST)))

    def best(turned: torch.Tensor) -> tuple[float, int, NDArray[np.float32]]:
        scores = look.scores(turned)
        heights = _heights(scores)
        index = int(heights.argmax())
        return float(heights[index]), index, scores[index]

    first = look.scores(starts)
    tops = _heights(first)
    order = np.argsort(-tops)[:_CLIMBED]
    turns, steps = nearby(0.5 * step), 3 if len(starts) == 1 else 1
    found = [_climb(best, starts[i], float(tops[i]), first[i], turns, steps) for i in order.tolist()]
    # the two that have come farthest go on
    found = sorted(found, key=lambda one: -one[1])[:2]
    ends = []
    for matrix, top, scores in found:
        for level in range(2, levels + 1):
            matrix, top, scores = _climb(best, matrix, top, scores, nearby(step / 2**level), 2)
        ends.append((matrix, top, scores))
    matrix, top, scores = max(ends, key=lambda one: one[1])
    matrix, top, scores = _top_of_turns(matrix, step / 2**levels, top, scores, look)
    place, height = _top_of_places(scores)
    middle = look.places // 2
    z, y, x = (p - middle for p in place)
    return [x, y, z], euler_angles(matrix).tolist(), max(height, top)


def _climb(
    best: Callable[[torch.Tensor], tuple[float, int, NDArray[np.float32]]],
    matrix: torch.Tensor,
    top: float,
    scores: NDArray[np.float32],
    turns: torch.Tensor,
    steps: int,
) -> tuple[torch.Tensor, float, NDArray[np.float32]]:
    """Go to the best of the neighbours, so many times or until none is better."""
    for _ in range(steps):
        higher, index, there = best(turns @ matrix)
        if higher <= top:
            break
        top, scores, matrix = higher, there, turns[index] @ matrix
    return matrix, top, scores


def _top_of_turns(
    matrix: torch.Tensor,
    step: float,
    top: float,
    scores: NDArray[np.float32],
    look: _Patch,
) -> tuple[torch.Tensor, float, NDArray[np.float32]]:
    """The orientation at the top of a paraboloid through the neighbours."""
    size = math.radians(step)
    vectors = nearby_vectors(size)
    turned = look.scores(rotation_about(vectors) @ matrix)
    values = _heights(turned)
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
    moved = rotation_about(torch.from_numpy(move[None] * size)) @ matrix
    found = look.scores(moved)[0]
    height = float(_heights(found[None])[0])
    return (moved[0], height, found) if height > top else (matrix, top, scores)


_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def nearby_vectors(size: float) -> torch.Tensor:
    """The six axes and the twelve diagonals between them, of length `size` along each: (18, 3) float64."""
    steps = torch.tensor([-size, 0.0, size], dtype=torch.float64)
    vectors = torch.cartesian_prod(steps, steps, steps)
    used = (vectors != 0.0).sum(dim=1)
    return vectors[(used == 1) | (used == 2)]


def _heights(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Tops between voxels: (r, p, p, p) → (r,). At voxels, turns would make up for shifts by parts of one."""
    return np.array([_top_of_places(one)[1] for one in scores])


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

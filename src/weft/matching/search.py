"""Template matching: where in a tomogram is a known structure, and in which orientation?

The tomogram is searched part by part (:mod:`weft.matching.parts`); in each the templates are turned to all
orientations, multiplied by what the tomogram keeps of a structure at that place
(:mod:`weft.matching.weights`), and compared (:mod:`weft.matching.kernel`). Of every place the best score and
its orientation are kept.

docs/science/matching.md has the equations.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from weft.matching.candidates import SearchStatistics
from weft.matching.kernel import Found, MaskedTemplate, Part, correlate
from weft.matching.matcher import Matcher
from weft.matching.parts import Block
from weft.matching.plan import SearchSettings, Template
from weft.matching.weights import Imaging
from weft.physics.geometry import euler_matrix

__all__ = ["Keeper", "SearchResult", "run_search", "search"]

_BATCH = 128  # orientations between looks at the clock
_SAVE_SECONDS = 60.0
_PROJECT_AFTER = 10.0  # s, when the whole time is foretold
_NOTHING = -1.0  # the score of places where nothing was compared


class Keeper(Protocol):
    """Keeps what has been found so far somewhere safe, so that a search can be resumed."""

    def load(self, unit: int) -> tuple[int, Found] | None:
        """How many orientations are done, and the best so far."""

    def save(self, unit: int, done: int, found: Found) -> None:
        """Remember it."""


@dataclass
class SearchResult:
    """What a search has found.

    Attributes
    ----------
    scores : (z, y, x) float32
        The best correlation of every place of the region; −1 where nothing was compared.
    numbers : (z, y, x) int32
        Of its orientation, a row of `rotations`.
    rotations : (n, 3) float64
        rot, tilt, psi, degrees; those of one template after those of another.
    owner : (n,) int64
        Which template each belongs to.
    statistics : SearchStatistics
    start : (int, int, int)
        z, y, x: the region's first voxel.
    seconds, projected : float
        Wall-clock time of this call, and what was foretold after the first ten seconds.
    steps : list of float
        Degrees, of each template.
    parts : int
    """

    scores: NDArray[np.float32]
    numbers: NDArray[np.int32]
    rotations: torch.Tensor
    owner: torch.Tensor
    statistics: SearchStatistics
    start: tuple[int, int, int]
    seconds: float
    steps: list[float]
    parts: int
    projected: float


def search(
    tomogram: NDArray[np.floating],
    voxel_size: float,
    templates: Sequence[Template],
    imaging: Imaging | None = None,
    settings: SearchSettings | None = None,
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    device: str = "cpu",
) -> SearchResult:
    """Look for templates everywhere in a tomogram: :meth:`Matcher.of` and :func:`run_search` in one."""
    return run_search(
        Matcher.of(tomogram, voxel_size, templates, imaging, settings, origin=origin, device=device)
    )


def run_search(
    matcher: Matcher,
    *,
    allowed: NDArray[np.bool_] | None = None,
    scores: NDArray[np.float32] | None = None,
    numbers: NDArray[np.int32] | None = None,
    keeper: Keeper | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> SearchResult:
    """Compare every place with every template in every orientation.

    Templates compete: a place goes to the one that scores best.

    Parameters
    ----------
    matcher : Matcher
    allowed : (z, y, x) bool, optional
        Where to search, of the tomogram's shape.
    scores, numbers : arrays, optional
        Where to put the results: of the region's shape; may be mapped to files.
    keeper : Keeper, optional
    progress : callable, optional
        Takes the fraction that is done and the seconds that are left.

    Returns
    -------
    SearchResult

    Raises
    ------
    ItemError
        A tomogram that is not finite.
    """
    began, plan, settings = time.monotonic(), matcher.plan, matcher.settings
    threads = torch.get_num_threads() if matcher.device == "cpu" else 1
    start, shape = plan.region
    scores = np.empty(shape, dtype=np.float32) if scores is None else scores
    numbers = np.empty(shape, dtype=np.int32) if numbers is None else numbers
    # few parts: their orientations are shared among the threads
    shares = 1 if len(plan.parts) >= 2 * threads else math.ceil(2 * threads / len(plan.parts))
    clock = _Clock(len(plan.parts) * len(plan.rotations), progress)
    fine = [matcher.fine(index) for index in range(len(matcher.templates))]
    task = _Task(matcher, fine, allowed, shares, keeper, clock)
    sums = _Sums()
    founds: list[list[Found]] = [[] for _ in plan.parts]
    lock = threading.Lock()

    def finish(part: int) -> None:
        whole, *others = founds[part]
        for other in others:
            whole.join(other)
        founds[part] = []
        block = plan.parts[part]
        window = tuple(
            slice(a - s, a - s + n) for a, s, n in zip(block.start, start, block.shape, strict=True)
        )
        scores[window], numbers[window] = sums.add(whole)

    def work(part: int, share: int) -> None:
        found = task.search_part(part, share)
        with lock:
            founds[part].append(found)
            if len(founds[part]) == shares and not clock.stopped:
                finish(part)

    units = [(part, share) for part in range(len(plan.parts)) for share in range(shares)]
    if threads == 1:
        for unit in units:
            work(*unit)
    else:
        _in_threads(threads, units, work, clock)
    if settings.random_phase:
        np.add(scores, np.float32(sums.noise_mean), out=scores, where=scores > _NOTHING)
    return SearchResult(
        scores,
        numbers,
        plan.rotations,
        plan.owner,
        sums.statistics,
        start,
        time.monotonic() - began,
        plan.steps,
        len(plan.parts),
        clock.projected or 0.0,
    )


@dataclass
class _Sums:
    """Of the scores of all parts."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    noise: float = 0.0
    places: int = 0

    def add(self, found: Found) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Take a finished part; its scores and numbers as they are kept."""
        self.count += found.count
        self.total += found.total
        self.squares += found.squares
        best, number = found.best.cpu(), found.number.cpu()
        if found.noise is not None:
            noise = found.noise.cpu().clamp(min=0.0)
            self.noise += float(noise[number >= 0].sum(dtype=torch.float64))
            self.places += int((number >= 0).sum())
            best = best - noise
        best = torch.where(number < 0, torch.full_like(best, _NOTHING), best)
        return best.numpy(), number.clamp(min=0).numpy()

    @property
    def noise_mean(self) -> float:
        """Keeps scores comparable with those of other searches."""
        return self.noise / max(self.places, 1)

    @property
    def statistics(self) -> SearchStatistics:
        count = max(self.count, 1)
        mean = self.total / count
        return SearchStatistics(self.count, mean, math.sqrt(max(self.squares / count - mean * mean, 0.0)))


def _in_threads(
    threads: int, units: list[tuple[int, int]], work: Callable[[int, int], None], clock: _Clock
) -> None:
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: list[Future[None]] = [pool.submit(work, *unit) for unit in units]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            clock.stopped = True
            for future in running:
                future.cancel()
            raise
        finally:
            torch.set_num_threads(threads)  # threads that are born later would inherit the last number set


@dataclass
class _Clock:
    """Counts what is done, and says how long the rest will take."""

    total: int
    progress: Callable[[float, float], None] | None
    done: int = 0
    resumed: int = 0
    stopped: bool = False
    projected: float | None = None
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, orientations: int, resumed: bool = False) -> None:
        with self._lock:
            self.done += orientations
            self.resumed += orientations if resumed else 0
            worked = self.done - self.resumed
            if not worked:
                return
            spent = time.monotonic() - self.began
            left = (self.total - self.done) / (worked / max(spent, 1e-9))
            if self.projected is None and (spent > _PROJECT_AFTER or self.done == self.total):
                self.projected = spent + left
            if self.progress is not None:
                self.progress(self.done / self.total, left)


@dataclass(frozen=True)
class _Task:
    matcher: Matcher
    fine: list[MaskedTemplate]
    allowed: NDArray[np.bool_] | None
    shares: int
    keeper: Keeper | None
    clock: _Clock

    def search_part(self, number: int, share: int) -> Found:
        """One share of the orientations of one part."""
        matcher, keeper, clock = self.matcher, self.keeper, self.clock
        plan = matcher.plan
        block, unit = plan.parts[number], number * self.shares + share
        done, found = 0, Found.empty(block.shape, matcher.settings.random_phase, matcher.device)
        before = keeper.load(unit) if keeper is not None else None
        if before is not None:
            done, found = before[0], before[1].to(matcher.device)
            clock.count(done, resumed=True)
        mine = torch.arange(len(plan.rotations))[share :: self.shares]
        if done >= len(mine) or clock.stopped:
            return found
        allowed = self._allowed(block)
        if allowed is not None and not bool(allowed.any()):
            clock.count(len(mine) - done, resumed=True)
            return found
        volume, place = matcher.filtered(block), matcher.place(block)
        saved = time.monotonic()
        for index in range(len(matcher.templates)):
            wanted = mine[done:]
            wanted = wanted[plan.owner[wanted] == index]
            if not len(wanted):
                continue
            template, weights = self.fine[index], matcher.prepared_weights(index, place)
            part = Part.of(volume, template, block.shape, matcher.filters.deviation, allowed)
            for chosen in torch.split(wanted, _BATCH):
                if clock.stopped:
                    return found
                matrices = euler_matrix(*plan.rotations[chosen].unbind(-1))
                correlate(part, template, weights, matrices, chosen, found)
                done += len(chosen)
                clock.count(len(chosen))
                if keeper is not None and time.monotonic() - saved > _SAVE_SECONDS:
                    keeper.save(unit, done, found)
                    saved = time.monotonic()
        if keeper is not None:
            keeper.save(unit, done, found)
        return found

    def _allowed(self, block: Block) -> torch.Tensor | None:
        if self.allowed is None:
            return None
        window = tuple(slice(a, a + n) for a, n in zip(block.start, block.shape, strict=True))
        given = np.ascontiguousarray(self.allowed[window]).astype(np.float32)
        return torch.from_numpy(given).to(self.matcher.device)

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
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.matching.angles import angular_step, rotation_grid
from weft.matching.candidates import SearchStatistics
from weft.matching.filters import Filters, measure_filters, phase_randomised
from weft.matching.kernel import Found, MaskedTemplate, Part, correlate
from weft.matching.parts import Block, blocks
from weft.matching.rotation import FineMap
from weft.matching.weights import Imaging, tile_length
from weft.physics.geometry import euler_matrix
from weft.settings import Settings, setting

__all__ = ["Keeper", "SearchResult", "SearchSettings", "Template", "search"]

_BATCH = 128  # orientations between looks at the clock
_BYTES = 4 * 10  # for each voxel of a part, about
_MORE_BYTES = 4 * 6  # where masks turn, or random phases are compared


class SearchSettings(Settings):
    """How tomograms are searched for templates."""

    angular_step: float = setting(
        0.0,
        "Step between orientations; 0 takes what the particle's diameter and the resolution ask for.",
        unit="deg",
        ge=0.0,
        le=120.0,
    )
    low_pass: float = setting(
        0.0, "Leave out what is finer; 0 goes to the voxels' limit.", unit="Å", ge=0.0, le=1000.0
    )
    high_pass: float = setting(0.0, "Leave out what is coarser; 0 keeps it.", unit="Å", ge=0.0, le=5000.0)
    weighting: Literal["ctf", "wedge", "none"] = setting(
        "ctf",
        "What the template is multiplied by: the local 3D CTF with dose and tilt weights; the missing wedge "
        "alone; nothing.",
    )
    hand: Literal["auto", "1", "0", "-1"] = setting(
        "auto",
        "Which way defocus goes with the tilt: auto takes what the session has found; 0 gives all places the "
        "same defocus.",
    )
    phase_error: float = setting(
        0.25,
        "A part of the tomogram that is given one CTF may be so large that its phase is off by this much at "
        "its corners, at the resolution's limit.",
        unit="rad",
        ge=0.01,
        le=3.0,
    )
    whiten_noise: bool = setting(
        True, "Make the noise that tilts, dose and CTF leave equally strong in all directions."
    )
    whiten: bool = setting(
        True, "Divide by the tomogram's own amplitude spectrum, so that no frequency outvotes the others."
    )
    random_phase: bool = setting(
        False,
        "Subtract what the template scores with random phases: against dense, high-contrast surroundings.",
    )
    mask_turns: bool = setting(
        False,
        "Turn the mask with the template; for masks that are no spheres. Takes about three times as long.",
    )
    region: tuple[float, ...] = setting(
        (),
        "Search only a part: first and last place along x, along y and along z, six numbers; empty searches "
        "all.",
        unit="Å",
    )
    memory: float = setting(4.0, "Memory that the search may take.", unit="GB", ge=0.1, le=1000.0)
    refine: int = setting(
        500,
        "Refine the position and orientation of so many of the best places beyond the grid; 0 refines none.",
        ge=0,
        le=100000,
    )
    seed: int = setting(0, "Of the random phases.", ge=0)


@dataclass(frozen=True)
class Template:
    """What is looked for.

    Attributes
    ----------
    volume : (n, n, n) float32
        Of the tomogram's voxel size; density has the sign that it has in the tomogram.
    mask : (n, n, n) float32
        Between 0 and 1.
    diameter : float
        Of the particle, Å.
    symmetry : str
    """

    volume: torch.Tensor
    mask: torch.Tensor
    diameter: float
    symmetry: str = "C1"


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
    seconds : float
        Wall-clock time of this call.
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


@dataclass(frozen=True)
class Plan:
    """All that is fixed before the first comparison.

    Attributes
    ----------
    steps : list of float
    rotations, owner
        See :class:`SearchResult`.
    region : ((z, y, x), (z, y, x))
        First place and number of places.
    parts : list of Block
    """

    steps: list[float]
    rotations: torch.Tensor
    owner: torch.Tensor
    region: tuple[tuple[int, int, int], tuple[int, int, int]]
    parts: list[Block]
    reach: int


def plan_search(
    shape: tuple[int, int, int],
    voxel_size: float,
    templates: Sequence[Template],
    imaging: Imaging | None,
    settings: SearchSettings,
    threads: int = 1,
) -> Plan:
    """Cut the work into pieces.

    Raises
    ------
    ItemError
        A template that does not fit, masks of another size, a region outside.
    """
    for template in templates:
        n = template.volume.shape[0]
        if template.volume.ndim != 3 or len(set(template.volume.shape)) != 1:
            raise ItemError(f"a template of {tuple(template.volume.shape)} voxels is not a cube")
        if template.mask.shape != template.volume.shape:
            raise ItemError(
                f"the mask has {tuple(template.mask.shape)} voxels and the template "
                f"{tuple(template.volume.shape)}: make both with the same --box"
            )
        if n > min(shape):
            raise ItemError(
                f"the template is {n} voxels wide and the tomogram only {min(shape)} along one axis: use a "
                "smaller box, or a thicker tomogram"
            )
        if n != templates[0].volume.shape[0]:
            raise ItemError("templates that compete must have boxes of one size")
        if not bool((template.mask > 0).any()):
            raise ItemError("the mask is empty")
    resolution = max(settings.low_pass, 2.0 * voxel_size)
    steps = [settings.angular_step or angular_step(t.diameter, resolution) for t in templates]
    grids = [rotation_grid(step, t.symmetry) for step, t in zip(steps, templates, strict=True)]
    owner = torch.cat([torch.full((len(grid),), i) for i, grid in enumerate(grids)])
    start, count = [0, 0, 0], list(shape)
    if settings.region:
        for axis, (low, high) in enumerate(zip(settings.region[4::-2], settings.region[5::-2], strict=True)):
            first, last = max(0, math.ceil(low / voxel_size)), min(shape[axis] - 1, int(high / voxel_size))
            if last < first:
                raise ItemError(
                    f"the region from {low:g} to {high:g} Å along {'zyx'[axis]} is outside the tomogram of "
                    f"{shape[axis] * voxel_size:g} Å"
                )
            start[axis], count[axis] = first, last - first + 1
    region = ((start[0], start[1], start[2]), (count[0], count[1], count[2]))
    reach = max(mask_reach(t.mask) for t in templates)
    longest = float("inf")
    if imaging is not None and settings.weighting == "ctf" and imaging.geometry.hand != 0.0:
        wavelength = imaging.contrast.optics.wavelength
        limit = 1.0 / resolution
        longest = max(1.0, tile_length(limit, wavelength, settings.phase_error) / voxel_size)
    per_voxel = _BYTES + _MORE_BYTES * (settings.mask_turns or settings.random_phase)
    parts = blocks(region, shape, reach, longest, 0.8e9 * settings.memory / threads, per_voxel)
    return Plan(steps, torch.cat(grids), owner, region, parts, reach)


def mask_reach(mask: torch.Tensor) -> int:
    """Voxels from the centre n//2 to the outermost that is not 0, along any axis."""
    c = mask.shape[0] // 2
    places = (mask > 1e-3 * float(mask.max())).nonzero()
    reach = int((places - c).abs().max())
    return max(1, min(reach, c if mask.shape[0] % 2 else c - 1))


def search(
    tomogram: NDArray[np.floating],
    voxel_size: float,
    templates: Sequence[Template],
    imaging: Imaging | None = None,
    settings: SearchSettings | None = None,
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    allowed: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    scores: NDArray[np.float32] | None = None,
    numbers: NDArray[np.int32] | None = None,
    keeper: Keeper | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> SearchResult:
    """Look for templates everywhere in a tomogram.

    Parameters
    ----------
    tomogram : (z, y, x) array
        May be mapped from a file; parts of it are read as they are searched.
    voxel_size : float
        Å.
    templates : sequence of Template
        They compete: every place goes to the one that scores best.
    imaging : Imaging, optional
        What is known about tilts, CTF and dose. Without it nothing is weighted.
    settings : SearchSettings, optional
    origin : (float, float, float)
        x, y, z, Å: of the tomogram's first voxel in the volume that `imaging.geometry` describes.
    allowed : (z, y, x) bool, optional
        Where to search.
    device : str
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
        See :func:`plan_search`; a tomogram that is empty or not finite.
    """
    settings = settings or SearchSettings()
    began = time.monotonic()
    threads = torch.get_num_threads() if device == "cpu" else 1
    plan = plan_search(_shape(tomogram), voxel_size, templates, imaging, settings, threads)
    box = templates[0].volume.shape[0]
    filters = measure_filters(tomogram, voxel_size, plan, imaging, settings, origin, box)
    start, shape = plan.region
    scores = np.empty(shape, dtype=np.float32) if scores is None else scores
    numbers = np.empty(shape, dtype=np.int32) if numbers is None else numbers
    task = _Task(tomogram, voxel_size, templates, imaging, settings, origin, allowed, device, plan, filters)
    # few parts: their orientations are shared among the threads
    shares = 1 if len(plan.parts) >= 2 * threads else math.ceil(2 * threads / len(plan.parts))
    clock = _Clock(len(plan.parts) * len(plan.rotations), progress)
    founds: list[list[Found]] = [[] for _ in plan.parts]
    lock = threading.Lock()
    totals = [0, 0.0, 0.0]
    noise_sum = [0.0, 0]

    def finish(part: int) -> None:
        whole, *others = founds[part]
        for other in others:
            whole.join(other)
        founds[part] = []
        block = plan.parts[part]
        window = tuple(
            slice(a - s, a - s + n) for a, s, n in zip(block.start, start, block.shape, strict=True)
        )
        best = whole.best.cpu()
        if whole.noise is not None:
            noise = whole.noise.cpu().clamp(min=0.0)
            noise_sum[0] += float(noise.sum())
            noise_sum[1] += noise.numel()
            best = best - noise
        nothing = whole.number.cpu() < 0
        scores[window] = torch.where(nothing, torch.full_like(best, -1.0), best).numpy()
        numbers[window] = whole.number.cpu().clamp(min=0).numpy()
        totals[0] += whole.count
        totals[1] += whole.total
        totals[2] += whole.squares

    def work(part: int, share: int) -> None:
        found = task.search_part(part, share, shares, keeper, clock)
        with lock:
            founds[part].append(found)
            if len(founds[part]) == shares:
                finish(part)

    units = [(part, share) for part in range(len(plan.parts)) for share in range(shares)]
    if device != "cpu" or threads == 1:
        for unit in units:
            work(*unit)
    else:
        _in_threads(threads, units, work, clock)
    count = max(totals[0], 1)
    mean = totals[1] / count
    deviation = math.sqrt(max(totals[2] / count - mean * mean, 0.0))
    if settings.random_phase and noise_sum[1]:
        # a constant that keeps scores comparable with those of other searches
        scores += np.float32(noise_sum[0] / noise_sum[1])
    statistics = SearchStatistics(int(totals[0]), mean, deviation)
    return SearchResult(
        scores,
        numbers,
        plan.rotations,
        plan.owner,
        statistics,
        start,
        time.monotonic() - began,
        plan.steps,
        len(plan.parts),
    )


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


def _shape(tomogram: NDArray[np.floating]) -> tuple[int, int, int]:
    if tomogram.ndim != 3:
        raise ItemError(f"a tomogram has three axes, this has {tomogram.ndim}")
    z, y, x = tomogram.shape
    return (z, y, x)


@dataclass
class _Clock:
    """Counts what is done, and says how long the rest will take."""

    total: int
    progress: Callable[[float, float], None] | None
    done: int = 0
    resumed: int = 0
    stopped: bool = False
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, orientations: int, resumed: bool = False) -> None:
        with self._lock:
            self.done += orientations
            self.resumed += orientations if resumed else 0
            worked = self.done - self.resumed
            if self.progress is not None and worked:
                rate = worked / max(time.monotonic() - self.began, 1e-9)
                self.progress(self.done / self.total, (self.total - self.done) / rate)


@dataclass(frozen=True)
class _Task:
    tomogram: NDArray[np.floating]
    voxel_size: float
    templates: Sequence[Template]
    imaging: Imaging | None
    settings: SearchSettings
    origin: tuple[float, float, float]
    allowed: NDArray[np.bool_] | None
    device: str
    plan: Plan
    filters: Filters

    def search_part(
        self, number: int, share: int, shares: int, keeper: Keeper | None, clock: _Clock
    ) -> Found:
        """One share of the orientations of one part."""
        block, unit = self.plan.parts[number], number * shares + share
        done, found = 0, Found.empty(block.shape, self.settings.random_phase, self.device)
        before = keeper.load(unit) if keeper is not None else None
        if before is not None:
            done, found = before
            clock.count(done, resumed=True)
        mine = torch.arange(len(self.plan.rotations))[share::shares]
        if done >= len(mine):
            return found
        allowed = self._allowed(block)
        if allowed is not None and not bool(allowed.any()):
            clock.count(len(mine) - done)
            return found
        volume = self.filtered(block)
        saved = time.monotonic()
        for index in range(len(self.templates)):
            wanted = mine[done:]
            wanted = wanted[self.plan.owner[wanted] == index]
            if not len(wanted):
                continue
            template, weights = self.prepared(index, block)
            part = Part.of(volume, template, block.shape, self.filters.deviation, allowed)
            for chosen in torch.split(wanted, _BATCH):
                if clock.stopped:
                    return found
                matrices = euler_matrix(*self.plan.rotations[chosen].unbind(-1))
                correlate(part, template, weights, matrices, chosen, found)
                done += len(chosen)
                clock.count(len(chosen))
                if keeper is not None and time.monotonic() - saved > 60.0:
                    keeper.save(unit, done, found)
                    saved = time.monotonic()
        if keeper is not None:
            keeper.save(unit, done, found)
        return found

    def filtered(self, block: Block) -> torch.Tensor:
        """The voxels of a part, filtered."""
        return self.filters.block(self.tomogram, block, self.plan.reach, self.imaging, self.place(block))

    def place(self, block: Block) -> torch.Tensor:
        """x, y, z, Å, of a part's centre in the full volume."""
        centre = torch.tensor(block.centre, dtype=torch.float64) * self.voxel_size
        return centre + torch.tensor(self.origin, dtype=torch.float64)

    def prepared(self, index: int, block: Block) -> tuple[MaskedTemplate, torch.Tensor | None]:
        """A template as it is compared in a part."""
        template = self.templates[index]
        weights = self.filters.template_weights(template.volume.shape[0], self.imaging, self.place(block))
        fine = FineMap.of(template.volume.to(self.device))
        turning = FineMap.of(template.mask.to(self.device)) if self.settings.mask_turns else None
        noise = None
        if self.settings.random_phase:
            noise = FineMap.of(phase_randomised(template.volume, self.settings.seed).to(self.device))
        made = MaskedTemplate(fine, template.mask.to(self.device), self.plan.reach, turning, noise)
        return made, None if weights is None else weights.to(self.device)

    def _allowed(self, block: Block) -> torch.Tensor | None:
        if self.allowed is None:
            return None
        window = tuple(slice(a, a + n) for a, n in zip(block.start, block.shape, strict=True))
        return torch.from_numpy(np.ascontiguousarray(self.allowed[window]).astype(np.float32)).to(self.device)

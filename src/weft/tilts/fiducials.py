"""Tilt-series alignment by gold beads: found, followed, centred and fitted in rounds until nothing changes.

In the spirit of Castaño-Díez et al. 2012 (Dynamo): beads are searched in every image by themselves, brought
together by what a tilt series must look like, and the model that they give says where beads were overlooked
and which are none. docs/science/alignment.md describes every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from weft.errors import FitError
from weft.tilts.alignment import AlignmentSettings
from weft.tilts.bead_centres import BeadCentres, BeadImages
from weft.tilts.bead_search import Candidates, find_beads, find_diameter
from weft.tilts.bundle import BundleSolution, solve_bundle
from weft.tilts.cameras import Cameras, Tracks
from weft.tilts.tracking import TOLERANCE, TrackingResult, shift_by_vote, track_beads

__all__ = ["FiducialResult", "find_fiducials"]

LEAST_BEADS = 4  # fewer are not trusted to be beads at all
LEAST_SEEN = 0.35  # of the tilts that should show a bead
LEAST_DIAMETER_SCORE = 0.25  # of find_diameter
LARGEST_VARIATION = 0.45  # of contrast from bead to bead: gold is equal to gold
LEAST_SHARE = 0.5  # of the usual share of beads seen, or a tilt is in the wrong place
ROUNDS = 8
FIRST_REACH = 0.35  # of the diameter: how far from its prediction a bead is sought
LEAST_REACH = 2.0  # pixels
SCORE_SHARE = 0.5  # of a tilt's usual score
EDGE = 0.6  # of the diameter: centres nearer to the image's edge are left out
OVERLAP = 1.0  # of the diameter: nearer beads pull each other
OVERLAP_SIGMA = 3.0
TRUSTED_QUALITY = 0.6  # share of candidates in long tracks with which a nominal axis is not searched
AXIS_STEP = 6.0
AXIS_REACH = 25.0  # degrees of tilt with which the axis is searched


@dataclass(frozen=True)
class FiducialResult:
    """An alignment by beads, not yet levelled.

    Attributes
    ----------
    tracks : Tracks
    solution : BundleSolution
    diameter : float
        Å.
    found : float
        Share of the places that should show a bead at which one was found.
    variation : float
        Of the contrast from bead to bead: standard deviation over mean.
    rounds : int
        Of refinement, until nothing changed.
    """

    tracks: Tracks
    solution: BundleSolution
    diameter: float
    found: float
    variation: float
    rounds: int


def find_fiducials(
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None,
    settings: AlignmentSettings | None = None,
) -> FiducialResult:
    """Find gold beads and fit the alignment to them.

    Parameters
    ----------
    images : (tilts, y, x) float32 tensor
        Beads are dark. Empty images are passed over.
    angles : (tilts,) tensor
        Stage angles, degrees, in any order.
    pixel_size : float
        Å.
    axis : float, optional
        Tilt axis, degrees; without it all are tried.
    settings : AlignmentSettings, optional

    Returns
    -------
    FiducialResult

    Raises
    ------
    FitError
        Where no beads, or too few, behave as beads of one series.
    """
    settings = settings or AlignmentSettings()
    ny, nx = images.shape[-2:]
    size = (nx * pixel_size, ny * pixel_size)
    failures = []
    for diameter in _diameters(images, angles, pixel_size, settings):
        candidates = find_beads(images, pixel_size, diameter)
        tracked = _tracked(candidates, angles, axis, size, diameter, settings)
        if tracked is None or tracked.tracks.markers < LEAST_BEADS:
            count = 0 if tracked is None else tracked.tracks.markers
            failures.append(f"of {diameter / 10:.1f} nm, {count} could be followed through the tilts")
            continue
        search = _Search(images, pixel_size, diameter, size, settings, candidates)
        try:
            result = search.refined(tracked)
        except FitError as error:
            failures.append(f"of {diameter / 10:.1f} nm, {error}")
            continue
        if result.variation > LARGEST_VARIATION and settings.method == "auto":
            failures.append(
                f"what looks like beads of {diameter / 10:.1f} nm differs in contrast by "
                f"{100 * result.variation:.0f} %"
            )
            continue
        return result
    raise FitError("no usable gold beads: " + ("; ".join(failures) or "no diameter stands out"))


def _diameters(
    images: torch.Tensor, angles: torch.Tensor, pixel_size: float, settings: AlignmentSettings
) -> list[float]:
    """What is worth trying, Å, the most likely first."""
    if settings.bead_diameter > 0.0:
        return [10.0 * settings.bead_diameter]
    usable = torch.nonzero(images.flatten(1).std(dim=1) > 0.0)[:, 0]
    if not len(usable):
        return []
    low = usable[torch.argsort(angles[usable].abs(), stable=True)[:3]]
    scan = find_diameter(images[low], pixel_size)
    tops = []
    for before, here, after in zip(scan, scan[1:], scan[2:], strict=False):
        if here[1] >= LEAST_DIAMETER_SCORE and here[1] >= before[1] and here[1] > after[1]:
            # the vertex of a parabola over the logarithm of the diameter
            curve = 2.0 * here[1] - before[1] - after[1]
            offset = 0.5 * (after[1] - before[1]) / max(curve, 1e-9)
            tops.append((here[1], here[0] * (after[0] / here[0]) ** offset))
    return [diameter for _, diameter in sorted(tops, reverse=True)[:2]]


def _tracked(
    candidates: Candidates,
    angles: torch.Tensor,
    axis: float | None,
    size: tuple[float, float],
    diameter: float,
    settings: AlignmentSettings,
) -> TrackingResult | None:
    """Beads followed about the axis that was given, or about the one that fits most of them."""
    if not len(candidates):
        return None
    if axis is not None:
        result = track_beads(candidates, Cameras.of(angles, axis), size, diameter)
        if _quality(result, candidates) > TRUSTED_QUALITY or not settings.search_axis:
            return result
    else:
        result = None
    near = angles.abs() <= max(AXIS_REACH, float(angles.abs().sort().values[: max(5, len(angles) // 3)][-1]))
    chosen = torch.nonzero(near)[:, 0]
    number = torch.full((len(angles),), -1, dtype=torch.int64)
    number[chosen] = torch.arange(len(chosen))
    inner = candidates.select(near[candidates.tilt])
    inner = replace(inner, tilt=number[inner.tilt])
    best, found = -1.0, 0.0
    for trial in torch.arange(-90.0, 90.0, AXIS_STEP).tolist():
        about = trial
        if axis is not None and abs((trial - axis + 90.0) % 180.0 - 90.0) > 45.0:
            continue  # a nominal axis is not that wrong
        if axis is not None:  # the branch of the nominal axis decides the handedness
            about = axis + ((trial - axis + 90.0) % 180.0 - 90.0)
        part = track_beads(inner, Cameras.of(angles[chosen], about), size, diameter)
        quality = _quality(part, inner)
        if quality > best:
            best, found = quality, _fitted_axis(part, about)
    if axis is None:  # either side fits as well
        found = (found + 90.0) % 180.0 - 90.0
    again = track_beads(candidates, Cameras.of(angles, found), size, diameter)
    if result is None or _quality(again, candidates) > _quality(result, candidates):
        return again
    return result


def _fitted_axis(result: TrackingResult, axis: float) -> float:
    try:
        return float(solve_bundle(result.tracks, result.cameras).cameras.axis.mean())
    except FitError:
        return axis


def _quality(result: TrackingResult, candidates: Candidates) -> float:
    """Share of the candidates that long tracks explain."""
    if not len(result.tracks):
        return 0.0
    length = torch.bincount(result.tracks.marker)[result.tracks.marker]
    return float((length >= 0.5 * int(result.placed.sum())).double().sum()) / max(len(candidates), 1)


@dataclass
class _Search:
    """Rounds of centring, fitting and searching again."""

    images: torch.Tensor
    pixel_size: float
    diameter: float
    size: tuple[float, float]
    settings: AlignmentSettings
    candidates: Candidates

    def __post_init__(self) -> None:
        self.beads = BeadImages(self.images, self.pixel_size, self.diameter)
        self.half = 0.5 * torch.tensor(self.size, dtype=torch.float64)
        self.usable = self.images.flatten(1).std(dim=1) > 0.0

    def refined(self, tracked: TrackingResult) -> FiducialResult:
        """From what tracking gave to what does not change any more."""
        start = tracked.cameras
        tracks = tracked.tracks
        solution = solve_bundle(tracks, start, self.settings)
        placed = self._placed_well(tracks, solution)
        if not bool(placed.all()):
            tracks = tracks.select(placed)
            solution = solve_bundle(tracks, start, self.settings)
        before: set[tuple[int, int]] = set()
        rounds, centres = 0, None
        for rounds in range(1, ROUNDS + 1):
            if rounds == 2:
                solution = self._with_overlooked(tracks, solution, start)
            solution = self._placed(solution)
            tracks, centres = self._searched(solution, tracks, rounds == 1)
            solution = solve_bundle(tracks, self._start(start, solution), self.settings)
            tracks, centres, solution = self._without_doubtful(tracks, centres, solution, start)
            placed = self._placed_well(tracks, solution)
            if not bool(placed.all()):  # tried anew in the next round
                tracks, centres = tracks.select(placed), centres.select(placed)
                solution = solve_bundle(tracks, self._start(start, solution), self.settings)
            kept = solution.weights > 0.0
            pairs = set(zip(tracks.marker[kept].tolist(), tracks.tilt[kept].tolist(), strict=True))
            if rounds > 2 and len(pairs ^ before) <= 0.005 * len(pairs):
                break
            before = pairs
        if 2 * int(solution.missing.sum()) > int(self.usable.sum()):
            raise FitError(f"they could be followed through {int((~solution.missing).sum())} tilts only")
        assert centres is not None
        kept = solution.weights > 0.0
        return FiducialResult(
            tracks,
            solution,
            self.diameter,
            float(kept.sum()) / max(1, int(self._shown(solution)[0].sum())),
            self._variation(tracks, centres, kept),
            rounds,
        )

    def _start(self, start: Cameras, solution: BundleSolution) -> Cameras:
        """Stage angles (which the prior believes) with the axis and shifts found so far."""
        return replace(start, axis=solution.cameras.axis, shift=solution.cameras.shift)

    def _shown(self, solution: BundleSolution) -> tuple[torch.Tensor, torch.Tensor]:
        """Where markers should be: a (tilts, n) mask of those inside images, and (tilts, n, 2) places."""
        places = solution.cameras.project(solution.markers)
        inside = (places.abs() < self.half - EDGE * self.diameter).all(dim=-1)
        return inside & (self.usable & ~solution.missing)[:, None], places

    def _placed_well(self, tracks: Tracks, solution: BundleSolution) -> torch.Tensor:
        """Observations (a mask) in tilts where about as many of the beads were seen as elsewhere.

        A shift that is wrong puts a bead or two on something else, and these fit exactly.
        """
        kept = solution.weights > 0.0
        counts = torch.bincount(tracks.tilt[kept], minlength=len(solution.missing)).double()
        shares = counts / self._shown(solution)[0].sum(dim=1).clamp_min(1)
        usual = shares[~solution.missing].median()
        lost = shares < LEAST_SHARE * usual
        good: torch.Tensor = ~lost[tracks.tilt]
        return good

    def _placed(self, solution: BundleSolution) -> BundleSolution:
        """Tilts that could not be placed before, by the markers that are known now."""
        shift, missing = solution.cameras.shift.clone(), solution.missing.clone()
        for t in torch.nonzero(missing & self.usable)[:, 0].tolist():
            found = shift_by_vote(
                solution.markers,
                solution.cameras.parameters()[t],
                self.candidates.select(self.candidates.tilt == t),
                self.half,
                TOLERANCE * self.diameter,
            )
            if found is not None:
                shift[t], missing[t] = found, False
        return replace(solution, cameras=replace(solution.cameras, shift=shift), missing=missing)

    def _with_overlooked(self, tracks: Tracks, solution: BundleSolution, start: Cameras) -> BundleSolution:
        """Add markers for candidates that no marker explains but that agree with each other."""
        places = solution.cameras.project(solution.markers)[self.candidates.tilt]
        nearest = (places - self.candidates.xy[:, None]).norm(dim=-1).min(dim=1).values
        free = (nearest > 0.7 * self.diameter) & ~solution.missing[self.candidates.tilt]
        if int(free.sum()) < 3:
            return solution
        cameras = self._start(solution.cameras, solution)
        more = track_beads(
            self.candidates.select(free), cameras, self.size, self.diameter, shifts_known=True
        ).tracks
        if not len(more):
            return solution
        points = cameras.triangulate(more)
        return replace(solution, markers=torch.cat([solution.markers, points]))

    def _searched(self, solution: BundleSolution, tracks: Tracks, first: bool) -> tuple[Tracks, BeadCentres]:
        """Fit a bead wherever the model says that one should be, and keep those that are."""
        shown, places = self._shown(solution)
        tilt, marker = torch.nonzero(shown, as_tuple=True)
        predicted = places[tilt, marker]
        begin = predicted.clone()
        if first:  # shifts are not exact yet: begin where beads were seen
            row = torch.full(shown.shape, -1, dtype=torch.int64)
            good = solution.weights > 0.0
            row[tracks.tilt[good], tracks.marker[good]] = torch.nonzero(good)[:, 0]
            seen = row[tilt, marker]
            begin[seen >= 0] = tracks.xy[seen[seen >= 0]]
        centres = self.beads.fit(tilt, begin, 2)
        noise = solution.sigma * float(tracks.sigma.median())
        reach = max(4.0 * noise, LEAST_REACH * self.pixel_size)
        reach = FIRST_REACH * self.diameter if first else min(reach, FIRST_REACH * self.diameter)
        near = (centres.xy - predicted).norm(dim=-1) <= reach
        usual = torch.ones(len(shown), dtype=torch.float64)
        for t in torch.unique(tilt).tolist():
            scores = centres.score[(tilt == t) & near]
            usual[t] = scores.median() if len(scores) else 1.0
        like = (centres.score >= (SCORE_SHARE * usual[tilt]).clamp_min(0.1)) & (centres.contrast > 0.0)
        good = near & like
        sigma = centres.sigma / centres.sigma[good].median() if bool(good.any()) else centres.sigma
        sigma = sigma.clamp(0.6, 3.0) * self._crowding(places, tilt, marker)
        found = Tracks(marker[good], tilt[good], centres.xy[good], sigma[good])
        return found, centres.select(good)

    def _crowding(self, places: torch.Tensor, tilt: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        """(m,): larger than 1 for beads that another one overlaps."""
        factor = torch.ones(len(tilt), dtype=torch.float64)
        for t in torch.unique(tilt).tolist():
            here = tilt == t
            apart = torch.cdist(places[t][marker[here]], places[t])
            apart[torch.arange(len(apart)), marker[here]] = torch.inf
            crowded = apart.min(dim=1).values < OVERLAP * self.diameter
            factor[here] += (OVERLAP_SIGMA - 1.0) * crowded
        return factor

    def _without_doubtful(
        self, tracks: Tracks, centres: BeadCentres, solution: BundleSolution, start: Cameras
    ) -> tuple[Tracks, BeadCentres, BundleSolution]:
        """Leave out markers seen too rarely, doubles, and those that fit far worse than the rest."""
        shown, places = self._shown(solution)
        kept = solution.weights > 0.0
        n = len(solution.markers)
        seen = torch.bincount(tracks.marker[kept], minlength=n)
        tilts = int((self.usable & ~solution.missing).sum())
        good = seen >= (LEAST_SEEN * shown.sum(0)).clamp_min(min(3, tilts))
        good[tracks.markers :] = False
        usual = solution.marker_rms[good[: len(solution.marker_rms)]].nanmedian()
        good &= ~(solution.marker_rms > 4.0 * usual)
        # one bead with two numbers: they are seen at the same places
        for a in torch.argsort(seen, descending=True, stable=True).tolist():
            if not bool(good[a]):
                continue
            apart = (places - places[:, a : a + 1]).norm(dim=-1).median(dim=0).values
            double = (apart < 0.5 * self.diameter) & good
            double[a] = False
            good &= ~double
        if int(good.sum()) < LEAST_BEADS:
            raise FitError(f"{int(good.sum())} are seen where they should be")
        rows = good[tracks.marker]
        number = torch.cumsum(good, 0) - 1
        chosen = tracks.select(rows)
        again = replace(chosen, marker=number[chosen.marker])
        parts = centres.select(rows)
        if bool(good.all()):
            return again, parts, solution
        return again, parts, solve_bundle(again, self._start(start, solution), self.settings)

    @staticmethod
    def _variation(tracks: Tracks, centres: BeadCentres, kept: torch.Tensor) -> float:
        """Of the mean contrast from bead to bead, by quartiles."""
        total = torch.zeros(tracks.markers, dtype=torch.float64)
        total.index_add_(0, tracks.marker[kept], centres.contrast[kept])
        mean = total / torch.bincount(tracks.marker[kept], minlength=tracks.markers)
        mean = mean[torch.isfinite(mean)]
        low, middle, high = torch.quantile(mean, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        return float((high - low) / 1.349 / middle.clamp_min(1e-9))

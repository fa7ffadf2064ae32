"""Which candidate in one tilt is the same bead as which in another.

Tilts are taken from the lowest outwards. What is known of the beads in three dimensions predicts the next
tilt up to its shift, and the shift is the one that most pairs of prediction and candidate agree on (a vote
over all their differences). A candidate that nothing predicts may be a bead that came into view, and starts a
marker of its own; a marker that is not seen where it should be is given up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment

from weft.tilts.bead_search import Candidates
from weft.tilts.bundle import Cameras, Tracks
from weft.tilts.equations import jacobians, projected

__all__ = ["TrackingResult", "match", "shift_by_vote", "track_beads"]

DEPTH = 700.0  # Å: how far from the specimen's middle a bead is expected before it was seen from two sides
TOLERANCE = 0.35  # of the bead's diameter
LEAST_SEEN = 0.3  # of the tilts in which a marker should be seen, or it is given up
PATIENCE = 6  # tilts before that is judged
SWEEPS = 3


@dataclass(frozen=True)
class TrackingResult:
    """Beads followed through the tilts.

    Attributes
    ----------
    tracks : Tracks
    cameras : Cameras
        Stage angles, the axis that was given, and the shifts that were found.
    placed : (tilts,) bool
        Where enough beads agreed on a shift.
    """

    tracks: Tracks
    cameras: Cameras
    placed: torch.Tensor


@dataclass
class _Model:
    """What is known while tracking: observations, markers, shifts."""

    cameras: Cameras
    tolerance: float
    half: torch.Tensor
    marker: list[int]
    tilt: list[int]
    xy: list[torch.Tensor]
    points: torch.Tensor
    covariance: torch.Tensor
    done: list[int]
    alive: torch.Tensor
    born: list[int]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.tensor(self.marker), torch.tensor(self.tilt), torch.stack(self.xy)

    def triangulate(self) -> None:
        """Markers and their covariance from all observations, with the expected depth as a prior."""
        marker, tilt, xy = self.tensors()
        n, p = len(self.born), self.cameras.parameters()[tilt]
        zero = torch.zeros(len(tilt), 3, dtype=torch.float64)
        _, b = jacobians(p, zero)
        weight = (2.0 / self.tolerance) ** 2
        normal = torch.zeros(n, 3, 3, dtype=torch.float64).index_add_(0, marker, weight * (b.mT @ b))
        normal += torch.diag(torch.tensor([1e-8, 1e-8, DEPTH**-2], dtype=torch.float64))
        right = torch.zeros(n, 3, dtype=torch.float64)
        right.index_add_(0, marker, weight * (b.mT @ (xy - projected(p, zero))[..., None])[..., 0])
        self.covariance = torch.linalg.inv(normal)
        self.points = (self.covariance @ right[..., None])[..., 0]

    def settle(self) -> None:
        """Shifts of all tilts (but the first) and markers in turn."""
        marker, tilt, xy = self.tensors()
        for _ in range(SWEEPS):
            self.triangulate()
            residual = xy - projected(self.cameras.parameters()[tilt], self.points[marker])
            shift = self.cameras.shift.clone()
            for t in self.done[1:]:
                here = residual[tilt == t]
                if len(here):
                    shift[t] += here.median(dim=0).values
            self.cameras = replace(self.cameras, shift=shift)
        self.triangulate()

    def visible(self, t: int, margin: float) -> torch.Tensor:
        """Markers (a mask) that tilt `t` should show."""
        places = self.cameras.project(self.points)[t]
        return (places.abs() < self.half - margin).all(dim=-1)

    def prune(self) -> None:
        """Give up markers that were not seen where they should have been."""
        if not self.done:
            return
        places = self.cameras.project(self.points)[self.done]
        shown = (places.abs() < self.half - self.tolerance).all(dim=-1)
        # only tilts that came after the marker's first
        order = torch.arange(len(self.done))[:, None]
        shown &= order >= torch.tensor(self.born)[None]
        seen = torch.bincount(torch.tensor(self.marker), minlength=len(self.born))
        chances = shown.sum(0)
        self.alive = ~((chances >= PATIENCE) & (seen < LEAST_SEEN * chances))


def match(
    predicted: torch.Tensor, found: torch.Tensor, inverse: torch.Tensor, reach: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One-to-one pairs of predictions and places found.

    Parameters
    ----------
    predicted : (n, 2) tensor
    found : (k, 2) tensor
    inverse : (n, 2, 2) tensor
        Inverse squared tolerance of each prediction.
    reach : float
        Pairs farther apart than so many tolerances are none.

    Returns
    -------
    (pairs,) and (pairs,) int64 tensors
        Indices of predictions and of places.
    """
    d = found[None] - predicted[:, None]
    distance = (d[..., None, :] @ inverse[:, None] @ d[..., None])[..., 0, 0]
    cost = distance.clamp_max(reach**2)
    rows, columns = linear_sum_assignment(cost.numpy())
    i, j = torch.as_tensor(rows), torch.as_tensor(columns)
    near = distance[i, j] < reach**2
    return i[near], j[near]


def _voted(differences: torch.Tensor, weight: torch.Tensor, widths: tuple[float, float]) -> torch.Tensor:
    """The place (2,) where weighted differences (n, 2) are densest; `widths` of the kernel along both."""
    step = torch.tensor(widths, dtype=torch.float64) / 2.0
    low = differences.min(0).values - 4.0 * step
    index = ((differences - low) / step).round().long()
    shape = [int(v) + 5 for v in index.max(0).values]
    votes = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    votes.index_add_(0, index[:, 0] * shape[1] + index[:, 1], weight)
    kernel = torch.exp(-0.5 * (torch.arange(-4, 5, dtype=torch.float64) / 2.0).square())
    smooth = votes.reshape(1, 1, *shape)
    for window, padding in ((kernel[:, None], (4, 0)), (kernel[None], (0, 4))):
        smooth = torch.nn.functional.conv2d(smooth, window[None, None], padding=padding)
    smooth = smooth[0, 0]
    top = int(smooth.argmax())
    at = low + torch.tensor([top // shape[1], top % shape[1]], dtype=torch.float64) * step
    width = torch.tensor(widths, dtype=torch.float64)
    for _ in range(4):
        w = weight * torch.exp(-0.5 * ((differences - at) / width).square().sum(-1))
        at = (w[:, None] * differences).sum(0) / w.sum().clamp_min(1e-300)
    return at


def track_beads(
    candidates: Candidates,
    cameras0: Cameras,
    image_size: tuple[float, float],
    diameter: float,
    *,
    shifts_known: bool = False,
) -> TrackingResult:
    """Follow beads through a tilt series.

    Parameters
    ----------
    candidates : Candidates
        Of all tilts; a tilt may have none.
    cameras0 : Cameras
        Stage angles and axis; its shifts are used only with `shifts_known`.
    image_size : (float, float)
        x, y, Å.
    diameter : float
        Å, of the beads.
    shifts_known : bool
        The shifts are right to within the tolerance; otherwise they are found.

    Returns
    -------
    TrackingResult
        Only markers seen in 3 or more tilts, or in all where there are only as many.
    """
    half = 0.5 * torch.tensor(image_size, dtype=torch.float64)
    here = [torch.nonzero(candidates.tilt == t)[:, 0] for t in range(len(cameras0))]
    counts = torch.tensor([len(c) for c in here])
    if int(counts.max()) == 0:
        return TrackingResult(_no_tracks(), cameras0, torch.zeros(len(cameras0), dtype=torch.bool))
    # the least tilted of those that show at least the usual number of beads
    usual = counts[counts > 0].double().median() * 0.8
    tilted = torch.where(counts >= usual, cameras0.angles.abs(), torch.inf)
    first = int(tilted.argmin())
    order = torch.argsort((cameras0.angles - cameras0.angles[first]).abs(), stable=True).tolist()
    order.remove(first)
    start = cameras0 if shifts_known else replace(cameras0, shift=torch.zeros_like(cameras0.shift))
    empty = torch.zeros(0, 3, dtype=torch.float64)
    model = _Model(
        start,
        TOLERANCE * diameter,
        half,
        [],
        [],
        [],
        empty,
        torch.zeros(0, 3, 3, dtype=torch.float64),
        [],
        torch.zeros(0, dtype=torch.bool),
        [],
    )
    _begin(model, first, candidates.xy[here[first]])
    waiting: list[int] = []
    for t in order:
        if not _follow(model, t, candidates, here[t], shifts_known):
            waiting.append(t)
    for t in waiting:  # more is known now
        _follow(model, t, candidates, here[t], shifts_known)
    return _result(model)


def shift_by_vote(
    points: torch.Tensor,
    camera: torch.Tensor,
    candidates: Candidates,
    half: torch.Tensor,
    tolerance: float,
) -> torch.Tensor | None:
    """The shift at which most of what a tilt shows is where well-known markers should be.

    Parameters
    ----------
    points : (n, 3) tensor
        Markers, Å.
    camera : (5,) tensor
        The tilt's parameters; its shift does not matter.
    candidates : Candidates
        Of this tilt.
    half : (2,) tensor
        Half the image's size, Å.
    tolerance : float
        Å.

    Returns
    -------
    (2,) tensor or None
        Å; None where too few agree.
    """
    if not len(candidates):
        return None
    guess = camera.clone()
    guess[:2] = 0.0
    places = projected(guess, points)
    differences = (candidates.xy[None] - places[:, None]).reshape(-1, 2)
    weight = candidates.score.expand(len(points), -1).reshape(-1)
    guess[:2] = _voted(differences, weight, (0.7 * tolerance, 0.7 * tolerance))
    places = projected(guess, points)
    inverse = torch.eye(2, dtype=torch.float64).expand(len(points), 2, 2) / tolerance**2
    i, j = match(places, candidates.xy, inverse)
    expected = int((places.abs() < half - tolerance).all(dim=-1).sum())
    if len(i) < max(3, 0.3 * min(expected, len(candidates))):
        return None
    return guess[:2] + (candidates.xy[j] - places[i]).median(dim=0).values


def _no_tracks() -> Tracks:
    whole = torch.zeros(0, dtype=torch.int64)
    return Tracks(whole, whole, torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


def _begin(model: _Model, t: int, places: torch.Tensor) -> None:
    """New markers from places in tilt `t`, at the specimen's middle."""
    if t not in model.done:
        model.done.append(t)
    for xy in places:
        model.marker.append(len(model.born))
        model.tilt.append(t)
        model.xy.append(xy)
        model.born.append(len(model.done) - 1)
    model.alive = torch.cat([model.alive, torch.ones(len(places), dtype=torch.bool)])
    model.triangulate()


def _follow(model: _Model, t: int, candidates: Candidates, here: torch.Tensor, shift_known: bool) -> bool:
    """Place tilt `t` and add what it shows; False where too few beads agree."""
    alive = torch.nonzero(model.alive)[:, 0]
    if not len(here) or not len(alive):
        return False
    found, score = candidates.xy[here], candidates.score[here]
    p = model.cameras.parameters()[t]
    _, b = jacobians(p[None], torch.zeros(1, 3, dtype=torch.float64))
    tolerance = torch.eye(2, dtype=torch.float64) * model.tolerance**2
    spread = b[0] @ model.covariance[alive] @ b[0].T + tolerance
    guess = p.clone()
    if not shift_known:
        # along the direction that tilting compresses depth is what is uncertain
        u = torch.stack([p[2].cos(), p[2].sin()])
        frame = torch.stack([u, torch.stack([-u[1], u[0]])])
        guess[:2] = 0.0
        places = projected(guess, model.points[alive])
        differences = ((found[None] - places[:, None]) @ frame.T).reshape(-1, 2)
        seen = torch.bincount(torch.tensor(model.marker), minlength=len(model.born))[alive].double()
        weight = (seen.clamp_max(5.0)[:, None] * score[None]).reshape(-1)
        width = float((u @ spread @ u).median().sqrt())
        guess[:2] = _voted(differences, weight, (0.7 * width, 0.7 * model.tolerance)) @ frame
    i, j = match(projected(guess, model.points[alive]), found, torch.linalg.inv(spread), 1.5)
    places = projected(guess, model.points[alive])
    expected = int((places.abs() < model.half - model.tolerance).all(-1).sum())
    if len(i) < max(2, 0.3 * min(expected, len(here))):
        return False
    if not shift_known:
        guess[:2] += (found[j] - places[i]).median(dim=0).values
        i, j = match(projected(guess, model.points[alive]), found, torch.linalg.inv(spread))
        if len(i) < 2:
            return False
    shift = model.cameras.shift.clone()
    shift[t] = guess[:2]
    model.cameras = replace(model.cameras, shift=shift)
    model.done.append(t)
    for a, c in zip(alive[i].tolist(), j.tolist(), strict=True):
        model.marker.append(a)
        model.tilt.append(t)
        model.xy.append(found[c])
    if shift_known:
        model.triangulate()
    else:
        model.settle()
    rest = torch.ones(len(found), dtype=torch.bool)
    rest[j] = False
    _begin(model, t, found[rest])
    model.prune()
    return True


def _result(model: _Model) -> TrackingResult:
    marker, tilt, xy = model.tensors()
    seen = torch.bincount(marker, minlength=len(model.born))
    good = model.alive & (seen >= min(3, len(model.done)))
    number = torch.cumsum(good, 0) - 1
    kept = good[marker]
    placed = torch.zeros(len(model.cameras), dtype=torch.bool)
    placed[model.done] = True
    tracks = Tracks(
        number[marker[kept]], tilt[kept], xy[kept], torch.full((int(kept.sum()),), 1.0, dtype=torch.float64)
    )
    return TrackingResult(tracks if len(tracks) else _no_tracks(), model.cameras, placed)

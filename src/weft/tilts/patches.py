"""Alignment without fiducials: what the specimen itself shows, followed through all tilts.

1. whole images are placed, and the axis is found (:mod:`weft.tilts.coarse`);
2. places with structure are found in a coarse reconstruction (:mod:`weft.tilts.features`);
3. each is located in every tilt by what the other tilts say (:mod:`weft.tilts.patch_tracks`);
4. bundle adjustment finds cameras and places from that (:mod:`weft.tilts.bundle`);
5. again from 2 or 3, with finer detail.

Where that fails because too little stays in place, patches on grids are followed from tilt to tilt in chains
(:mod:`weft.tilts.chains`) before 2. (Always doing so costs a third more; thick texture gets worse by it.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from weft.errors import FitError
from weft.tilts.alignment import AlignmentSettings, Levelling, Observations, TiltAlignment, Verdict
from weft.tilts.bundle import BundleSolution, solve_bundle
from weft.tilts.cameras import Cameras, Tracks
from weft.tilts.chains import follow_chains
from weft.tilts.coarse import COARSE_PIXELS, CoarseAlignment, agreement, coarse_alignment, prepare_images
from weft.tilts.features import coarse_volume, find_places
from weft.tilts.levelling import level_markers
from weft.tilts.patch_tracks import DEPTH, PatchTracks, Response, follow_patches
from weft.tilts.slab import level_from_volume
from weft.tilts.verdict import judged

__all__ = ["align_by_patches"]

VOLUME_VOXELS = 128  # of the coarse reconstruction along the field's longer side
FEWEST_PLACES = 6  # an alignment rests on no fewer
ALLOWED_LOSS = 0.03  # of the agreement of whole images: noise of its measurement
HELD = 0.5  # of the observations of chains must fit one model
SHARE_OF_FIELD = 0.3  # patches are no larger
PIXELS_PER_DETAIL = 3.0  # detail is compared on a grid that is this much finer
START_ERROR = 0.45  # of a coarse pixel: how wrong coarse alignments are beforehand
LEAST_STEP = 0.2  # of what is measured
SLOWEST = 1.0 / 600.0  # 1/Å: structure coarser than that is ice thickness and illumination


@dataclass(frozen=True)
class _Round:
    """One pass over all patches."""

    detail: float  # Å
    reach: float  # Å
    search: bool  # new places are found first
    solve: bool  # equation (1) of patch_tracks is solved

    def step(self, pixel_size: float) -> float:
        return max(pixel_size, self.detail / PIXELS_PER_DETAIL)


def _plan(field: float, patch: float, finest: float) -> list[_Round]:
    """From coarse to fine; the first looks as far as the coarse placement may be wrong."""
    first = min(max(60.0, 2.5 * field / COARSE_PIXELS), 0.3 * patch)
    coarse, middle = max(45.0, finest), max(36.0, finest)
    return [
        _Round(coarse, first, True, True),
        _Round(middle, 0.7 * first, True, True),
        _Round(max(30.0, finest), 0.5 * first, False, True),
        _Round(finest, 0.4 * first, False, True),
        _Round(finest, 0.4 * first, False, False),
    ]


@dataclass(frozen=True)
class _Refined:
    """Where a refinement has got to."""

    cameras: Cameras
    tracks: Tracks
    solution: BundleSolution
    patches: PatchTracks
    evidence: tuple[Tracks, torch.Tensor]  # and places of the last round in which equation (1) was solved
    expected_error: torch.Tensor  # (tilts,) Å
    step: float  # share of the solution of (1) by which cameras were moved


def align_by_patches(
    images: Sequence[torch.Tensor] | torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None = None,
    settings: AlignmentSettings | None = None,
) -> TiltAlignment:
    """Align a tilt series by what the specimen shows.

    Parameters
    ----------
    images : (tilts, y, x) tensor, or a sequence of images
        In any order; density is dark.
    angles : (tilts,) tensor
        Stage angles, degrees.
    pixel_size : float
        Å.
    axis : float, optional
        Nominal tilt axis, degrees; without it all directions are tried
        (:func:`~weft.tilts.coarse.coarse_alignment`).
    settings : AlignmentSettings, optional

    Returns
    -------
    TiltAlignment
        Of the method "patches". Its verdict is "good" only if the refinement agrees with itself (two halves
        of the places) and whole images agree with each other no less than before it. Where nothing can be
        followed it holds the coarse alignment, and says so.

    Raises
    ------
    ItemError
        If fewer than 3 images show something, or sizes differ.
    """
    settings = settings or AlignmentSettings()
    angles = torch.as_tensor(angles, dtype=torch.float64)
    search = 5.0 if settings.search_axis else 0.0
    coarse = coarse_alignment(images, angles, pixel_size, axis, search=search)
    start = Cameras.of(angles, coarse.axis, coarse.shift)
    try:
        try:
            refined = _refine(images, pixel_size, start, ~coarse.lost, settings)
        except FitError:
            chained = _chained(images, pixel_size, start, ~coarse.lost, settings)
            if chained is None:
                raise
            refined = _refine(images, pixel_size, chained, ~coarse.lost, settings)
    except FitError as error:
        return _coarse_only(images, pixel_size, start, coarse, settings, str(error))
    usable = ~coarse.lost
    cameras = refined.cameras
    before = coarse.axis_score
    now = agreement(images, angles, pixel_size, float(cameras.axis[usable].mean()), cameras.shift, usable)
    if now < before - ALLOWED_LOSS:
        reason = f"following patches made whole images agree less ({before:.2f} before, {now:.2f} after)"
        return _coarse_only(images, pixel_size, start, coarse, settings, reason)
    levelling = _levelled(images, pixel_size, refined, usable, settings)
    halves = _halves(refined, _patch(images, pixel_size, settings), settings)
    solution = replace(refined.solution, expected_error=refined.expected_error)
    grain = _grain(pixel_size, settings)
    verdict, reasons = judged(solution, refined.tracks, grain)
    if not halves <= 2.0 * grain:
        worse: Verdict = "bad" if not halves <= 8.0 * grain else "doubtful"
        verdict = worse if verdict != "bad" else verdict
        reasons = (*reasons, f"alignments by either half of the patches differ by {2 * halves:.0f} Å")
    seen = refined.patches.seen[refined.patches.good]
    correlation = refined.patches.correlation[refined.patches.good][seen]
    extras = {
        "patch_correlation": float(correlation.mean()),
        "halves_error": halves,
        "image_agreement": now,
        "image_agreement_before": before,
    }
    return TiltAlignment.of(
        solution,
        refined.tracks,
        angles,
        _image_size(images, pixel_size),
        pixel_size,
        settings,
        "patches",
        levelling,
        verdict,
        (*coarse.notes, *reasons),
        extras,
    )


def _image_size(images: Sequence[torch.Tensor] | torch.Tensor, pixel_size: float) -> tuple[float, float]:
    return images[0].shape[1] * pixel_size, images[0].shape[0] * pixel_size


def _patch(
    images: Sequence[torch.Tensor] | torch.Tensor, pixel_size: float, settings: AlignmentSettings
) -> float:
    """Diameter of patches, Å."""
    return min(settings.patch_size, SHARE_OF_FIELD * max(_image_size(images, pixel_size)))


def _grain(pixel_size: float, settings: AlignmentSettings) -> float:
    """What counts as one pixel when patches are judged, Å: half of the finest grid that they are seen on."""
    return max(pixel_size, 0.5 * settings.patch_resolution / PIXELS_PER_DETAIL)


def _refine(
    images: Sequence[torch.Tensor] | torch.Tensor,
    pixel_size: float,
    cameras: Cameras,
    usable: torch.Tensor,
    settings: AlignmentSettings,
) -> _Refined:
    """All rounds; FitError where there is too little to follow."""
    field = max(_image_size(images, pixel_size))
    patch = _patch(images, pixel_size, settings)
    finest = max(settings.patch_resolution, 2.0 * pixel_size)
    if int(usable.sum()) < 3:
        raise FitError("fewer than 3 images agree with each other")
    stage = cameras.angles
    before, size = cameras, math.prod(_image_size(images, pixel_size))
    start_error = START_ERROR * field / COARSE_PIXELS
    places = torch.zeros(0, 3, dtype=torch.float64)
    last: torch.Tensor | None = None
    share = 1.0
    evidence: tuple[Tracks, torch.Tensor] | None = None
    expected: torch.Tensor | None = None
    refined: _Refined | None = None
    at: tuple[float, torch.Tensor, tuple[float, float]] | None = None
    for one in _plan(field, patch, finest):
        if at is None or at[0] != one.detail:
            small, pixels, _ = prepare_images(
                images, pixel_size, one.step(pixel_size), (SLOWEST, 1.0 / one.detail)
            )
            at = (one.detail, small, pixels)
        _, small, pixels = at
        if one.search:
            places = _places(small, pixels, _image_size(images, pixel_size), cameras, usable, patch, settings)
        if len(places) < FEWEST_PLACES:
            raise FitError(f"only {len(places)} places of the specimen stand out in a coarse reconstruction")
        step = one.step(max(pixels))
        found = follow_patches(
            small, pixels, cameras, places, usable, diameter=patch, step=step, reach=one.reach
        )
        count = int(found.good.sum())
        if count < FEWEST_PLACES:
            raise FitError(
                f"only {count} of {len(places)} patches could be followed from tilt to tilt, which is too few"
            )
        alone = found.independent(size, patch)
        response = Response.of(stage, usable, DEPTH * patch, (found.noise() / start_error) ** 2 / alone)
        errors = None
        if one.solve:
            errors = response.errors(found, before, cameras)
            common = response.common(errors[found.good])
            if last is not None:  # the same again is half the way; back again is too far
                again = float((common * last).sum() / last.square().sum().clamp(min=1e-12))
                share = min(1.0, max(LEAST_STEP, share / (1.0 - min(max(again, -2.0), 0.5))))
            last = share * common
            errors = share * errors
        tracks = found.tracks(cameras.axis, errors)
        solution = solve_bundle(tracks, replace(cameras, angles=stage), settings)
        cameras, places = solution.cameras, solution.markers
        if one.solve:
            # places that overlap err together
            scatter = solution.expected_error / share * math.sqrt(len(tracks) / int(usable.sum()) / alone)
            evidence = (tracks, places)
            expected = torch.hypot(scatter, response.left(start_error))
        assert evidence is not None
        assert expected is not None
        refined = _Refined(cameras, tracks, solution, found, evidence, expected, share)
    assert refined is not None
    return refined


def _chained(
    images: Sequence[torch.Tensor] | torch.Tensor,
    pixel_size: float,
    cameras: Cameras,
    usable: torch.Tensor,
    settings: AlignmentSettings,
) -> Cameras | None:
    """Better cameras from chains of patches; None where chains do not hold together."""
    patch, finest = _patch(images, pixel_size, settings), max(settings.patch_resolution, 2.0 * pixel_size)
    one = _plan(max(_image_size(images, pixel_size)), patch, finest)[0]
    small, pixels, _ = prepare_images(images, pixel_size, one.step(pixel_size), (SLOWEST, 1.0 / one.detail))
    step = one.step(max(pixels))
    tracks = follow_chains(small, pixels, cameras, usable, diameter=patch, step=step, reach=one.reach)
    if not len(tracks):
        return None
    found = solve_bundle(tracks, cameras, settings)
    held = float((found.weights > 0.0).double().mean())
    return None if held < HELD or bool((found.missing & usable).any()) else found.cameras


def _places(
    small: torch.Tensor,
    pixels: tuple[float, float],
    image_size: tuple[float, float],
    cameras: Cameras,
    usable: torch.Tensor,
    patch: float,
    settings: AlignmentSettings,
) -> torch.Tensor:
    """Places with structure, in the frame of the cameras."""
    volume, voxel, size = _volume(small, pixels, image_size, cameras, usable, settings)
    found, _ = find_places(volume, voxel, patch / 8.0, patch / 2.8, settings.patches)
    return found - 0.5 * size


def _volume(
    small: torch.Tensor,
    pixels: tuple[float, float],
    image_size: tuple[float, float],
    cameras: Cameras,
    usable: torch.Tensor,
    settings: AlignmentSettings,
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """A coarse reconstruction, its voxel size and its extent, high enough for an inclined specimen."""
    field = max(image_size)
    voxel = max(field / VOLUME_VOXELS, *pixels)
    size = (*image_size, settings.thickness + 0.2 * field)
    chosen = usable.nonzero()[:, 0]
    geometry = cameras.select(chosen).geometry(image_size, size)
    return coarse_volume(small[chosen], pixels, geometry, voxel, 0.45 / voxel), voxel, geometry.volume_size


def _levelled(
    images: Sequence[torch.Tensor] | torch.Tensor,
    pixel_size: float,
    refined: _Refined,
    usable: torch.Tensor,
    settings: AlignmentSettings,
) -> Levelling:
    """From the places that were followed; from the reconstruction where they do not tell."""
    if not settings.level:
        return Levelling()
    kept = torch.bincount(refined.tracks.marker, refined.solution.weights, len(refined.solution.markers))
    seen = torch.bincount(refined.tracks.marker, minlength=len(refined.solution.markers))
    by_places = level_markers(refined.solution.markers[kept > 0.5 * seen], what="patches")
    if not math.isnan(by_places.error) and by_places.error < 2.0:
        return by_places
    image_size = _image_size(images, pixel_size)
    target = max(image_size) / VOLUME_VOXELS
    small, pixels, _ = prepare_images(images, pixel_size, target, (SLOWEST, 0.45 / target))
    volume, voxel, size = _volume(small, pixels, image_size, refined.cameras, usable, settings)
    centre = (0.5 * float(size[0]), 0.5 * float(size[1]), 0.5 * float(size[2]))
    by_slab = level_from_volume(volume, voxel, centre)
    if math.isnan(by_places.error) or (not math.isnan(by_slab.error) and by_slab.error < by_places.error):
        return by_slab
    return by_places


def _halves(refined: _Refined, patch: float, settings: AlignmentSettings) -> float:
    """Å: how wrong places are seen, by the difference of alignments from either half of them.

    Each half of the places, like the fields of a chessboard so that they do not overlap, aligns the tilts by
    itself; all places are then triangulated by both, and seen by both. The error of the whole is half of the
    difference.
    """
    kept = refined.tracks.select(refined.solution.weights > 0.0)
    tracks, places = refined.evidence
    field = ((places[:, :2] / (2.0 * patch)).floor().sum(-1) % 2).long()
    seen = []
    for half in (0, 1):
        one = tracks.select(field[tracks.marker] == half)
        number = torch.cumsum(field == half, 0) - 1
        try:
            cameras = solve_bundle(
                replace(one, marker=number[one.marker]), refined.solution.cameras, settings
            ).cameras
        except FitError:
            return math.inf
        seen.append(cameras.predict(cameras.triangulate(kept), kept))
    return 0.5 * float((seen[0] - seen[1]).square().sum(-1).mean().sqrt()) / refined.step


def _coarse_only(
    images: Sequence[torch.Tensor] | torch.Tensor,
    pixel_size: float,
    cameras: Cameras,
    coarse: CoarseAlignment,
    settings: AlignmentSettings,
    reason: str,
) -> TiltAlignment:
    """What is left where patches cannot be followed."""
    image_size = _image_size(images, pixel_size)
    convinced = coarse.axis_score > 0.2 and int(coarse.lost.sum()) <= 0.25 * len(cameras)
    return TiltAlignment(
        cameras.geometry(image_size, (*image_size, settings.thickness)),
        "patches",
        cameras.angles,
        pixel_size,
        torch.zeros(0, 3, dtype=torch.float64),
        Observations.none(),
        torch.full((len(cameras),), math.nan, dtype=torch.float64),
        ~coarse.lost,
        Levelling(),
        "doubtful" if convinced else "bad",
        (*coarse.notes, reason, "whole images have been aligned with each other, and nothing finer"),
        {"image_agreement": coarse.axis_score},
    )

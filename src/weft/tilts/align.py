"""Aligning one tilt series: by gold beads where there are some, else by what the specimen itself shows."""

from __future__ import annotations

from dataclasses import replace

import torch

from weft.errors import FitError, ItemError
from weft.physics.geometry import TiltGeometry
from weft.tilts.alignment import (
    MAGNIFICATION_NOTE,
    AlignmentSettings,
    Levelling,
    Observations,
    TiltAlignment,
    judged,
)
from weft.tilts.bundle import solve_bundle
from weft.tilts.fiducials import FiducialResult, find_fiducials

__all__ = ["align_series"]

LEAST_TILTS = 3
DARK = 0.02  # of the usual spread of grey values: such an image shows nothing


def align_series(
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None = None,
    settings: AlignmentSettings | None = None,
) -> TiltAlignment:
    """Align a tilt series.

    Parameters
    ----------
    images : (tilts, y, x) float32 tensor
        In any order; specimen and beads are dark. Beads wider than 24 px are fitted as if they had 24:
        reduced images serve as well as full ones.
    angles : (tilts,) tensor
        Stage angles, degrees.
    pixel_size : float
        Å.
    axis : float, optional
        Nominal tilt axis, degrees counter-clockwise from the image's y axis. The axis that is found lies on
        the same side: one that is turned by 180° would fit as well, with a mirrored specimen.
    settings : AlignmentSettings, optional

    Returns
    -------
    TiltAlignment
        Tilts in the order of `images`. Its verdict and notes say how far it is to be trusted.

    Raises
    ------
    ItemError
        With fewer than 3 usable images, or a method that was asked for and finds nothing to go by.
    """
    settings = settings or AlignmentSettings()
    angles = torch.as_tensor(angles, dtype=torch.float64)
    if images.ndim != 3 or len(images) != len(angles):
        raise ItemError(
            f"{len(angles)} tilt angles for images of shape {tuple(images.shape)}: each image needs its own"
        )
    order = torch.argsort(angles, stable=True)
    sorted_already = torch.equal(order, torch.arange(len(order)))
    # a stack may take gigabytes: not copied without need
    ordered, notes = _cleared(images if sorted_already else images[order], angles[order])
    result = _aligned(ordered, angles[order], pixel_size, axis, settings)
    if axis is None and result.method != "none":
        notes = (
            *notes,
            "the tilt axis was not given: it may be turned by 180°, which mirrors the specimen",
        )
    result = replace(result, notes=(*notes, *result.notes))
    return result.reordered(torch.argsort(order, stable=True))


def _cleared(images: torch.Tensor, angles: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Images in which unusable ones are 0 throughout, and what to say about those."""
    spread = images.flatten(1).std(dim=1)
    finite = torch.isfinite(spread)
    usual = spread[finite].median() if bool(finite.any()) else torch.tensor(0.0)
    usable = finite & (spread > DARK * usual) & (spread > 0.0)
    if int(usable.sum()) < LEAST_TILTS:
        raise ItemError(
            f"{int(usable.sum())} of {len(images)} tilt images show anything; an alignment needs at least "
            f"{LEAST_TILTS}"
        )
    if bool(usable.all()):
        return images, ()
    images = images.clone()
    images[~usable] = 0.0
    named = ", ".join(f"{angle:.1f}°" for angle in angles[~usable].tolist())
    return images, (f"the image at {named} is empty and could not be aligned: exclude it",)


def _aligned(
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None,
    settings: AlignmentSettings,
) -> TiltAlignment:
    if settings.method == "none":
        return _nominal(images, angles, pixel_size, axis, settings)
    reason = ""
    if settings.method in ("auto", "fiducials"):
        try:
            found = find_fiducials(images, angles, pixel_size, axis, settings)
        except FitError as error:
            if settings.method == "fiducials":
                raise
            reason = str(error)
        else:
            by_beads = _by_fiducials(found, images, angles, pixel_size, settings)
            if settings.method == "fiducials" or by_beads.verdict == "good":
                return by_beads
            return _better(by_beads, images, angles, pixel_size, axis, settings)
    from weft.tilts.patches import align_by_patches

    result = align_by_patches(images, angles, pixel_size, axis, settings)
    return replace(result, notes=(*result.notes, reason)) if reason else result


def _better(
    by_beads: TiltAlignment,
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None,
    settings: AlignmentSettings,
) -> TiltAlignment:
    """An alignment by beads that is not good, or one by patches where that is better."""
    from weft.tilts.patches import align_by_patches

    try:
        by_patches = align_by_patches(images, angles, pixel_size, axis, settings)
    except ItemError as error:
        return replace(by_beads, notes=(*by_beads.notes, f"patches were tried too: {error}"))
    ranks = ("good", "doubtful", "bad")
    if ranks.index(by_patches.verdict) >= ranks.index(by_beads.verdict):
        return by_beads
    beads = f"{len(by_beads.markers)} beads were found, but patches fit better ({'; '.join(by_beads.notes)})"
    return replace(by_patches, notes=(*by_patches.notes, beads))


def _by_fiducials(
    found: FiducialResult,
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    settings: AlignmentSettings,
) -> TiltAlignment:
    """Level, judge and describe an alignment by beads."""
    ny, nx = images.shape[-2:]
    solution, tracks = found.solution, found.tracks
    levelling = _levelled(found) if settings.level else Levelling()
    verdict, notes = judged(solution, tracks, pixel_size)
    if found.found < 0.6 and verdict == "good":
        verdict = "doubtful"
        notes = (*notes, f"only {100 * found.found:.0f} % of the places that should show a bead do")
    # with magnification: not for the geometry, but to say when it matters
    free = solve_bundle(tracks, solution.cameras, settings, magnification=True)
    seen = ~free.missing
    change = float((free.cameras.magnification[seen] - 1.0).abs().max())
    if change > MAGNIFICATION_NOTE:
        worst = int((free.cameras.magnification - 1.0).abs().argmax())
        notes = (
            *notes,
            f"the magnification changes by up to {100 * change:.1f} % (at {float(angles[worst]):.1f}°), "
            "which is not corrected",
        )
    extras = {
        "bead_diameter_nm": found.diameter / 10.0,
        "beads_found_share": found.found,
        "contrast_variation": found.variation,
        "refinement_rounds": float(found.rounds),
        "magnification_change_max": change,
    }
    return TiltAlignment.of(
        solution,
        tracks,
        angles,
        (nx * pixel_size, ny * pixel_size),
        pixel_size,
        settings,
        "fiducials",
        levelling,
        verdict,
        notes,
        extras,
    )


def _levelled(found: FiducialResult) -> Levelling:
    """From beads that were seen often enough."""
    from weft.tilts.levelling import level_markers

    kept = found.solution.weights > 0.0
    seen = torch.bincount(found.tracks.marker[kept], minlength=len(found.solution.markers))
    return level_markers(found.solution.markers[seen >= 0.4 * seen.max()])


def _nominal(
    images: torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None,
    settings: AlignmentSettings,
) -> TiltAlignment:
    """What the microscope says, with nothing found."""
    ny, nx = images.shape[-2:]
    size = (nx * pixel_size, ny * pixel_size)
    n = len(angles)
    notes: tuple[str, ...] = ("not aligned: stage angles and the nominal axis are used as they are",)
    if axis is None:
        notes = (*notes, "the tilt axis is not known, and taken as 0°")
    geometry = TiltGeometry.of(
        angles, axis=axis or 0.0, volume_size=(*size, settings.thickness), image_size=size
    )
    return TiltAlignment(
        geometry,
        "none",
        angles,
        pixel_size,
        torch.zeros(0, 3, dtype=torch.float64),
        Observations.none(),
        torch.full((n,), torch.nan, dtype=torch.float64),
        torch.ones(n, dtype=torch.bool),
        Levelling(),
        "doubtful",
        notes,
    )
